"""A real redis-server, without persistence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import redis

from tests.servers.process import ServerProcess, cache_folder, find_program


def find_redis_server() -> Path | None:
    """REDIS_SERVER, else PATH, else what `scripts/get-redis.sh` fetched."""
    return find_program("redis-server", "REDIS_SERVER", cache_folder() / "bin" / "redis-server")


class RedisServer(ServerProcess):
    """`options` are added to the command line of the next start."""

    name = "redis-server"

    def __init__(self, program: Path, folder: Path, options: Sequence[str] = ()) -> None:
        super().__init__(program, folder)
        self.options = options

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def arguments(self) -> Sequence[str]:
        # fmt: off
        return [
            "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder),
            "--save", "", "--appendonly", "no", "--daemonize", "no", *self.options,
        ]
        # fmt: on

    def is_ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.ConnectionError:
            return False

    def flush(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushall()
