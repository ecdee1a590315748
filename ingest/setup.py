"""What `ingest setup` does: everything that the configuration needs of its servers is there after.

Each thing is looked for first; what is there and right stays as it is, so that a second run changes
nothing. Every step says what it found and did. The server's side of it is `ingest.setup_influx`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ingest.sinks.sqlite import SqliteSink
from marketdata.settings import RedisSettings, SqliteStore
from marketdata.units import format_duration

TOKENS = ("service", "readers")
"""The tokens of an InfluxDB: one that writes and reads, one that only reads."""
REDIS_TIMEOUT_S = 2.0

Outcome = Literal["created", "changed", "there", "missing"]
"""`missing` is what the setup wants, and can't or mustn't make by itself."""


class Step(NamedTuple):
    """One thing, what became of it, and what there is to know about that."""

    what: str
    outcome: Outcome
    detail: str = ""

    def text(self, *, dry_run: bool = False) -> str:
        """The step as a line.

        >>> Step("bucket ticks", "changed", "retention was 7d, is 30d").text(dry_run=True)
        'bucket ticks: would be changed (retention was 7d, is 30d)'
        """
        would = "would be " if dry_run and self.outcome in ("created", "changed") else ""
        return f"{self.what}: {would}{self.outcome}{f' ({self.detail})' if self.detail else ''}"


class Place(Protocol):
    """Where one new secret goes."""

    def put(self, secret: str) -> str:
        """Keep it; says where it is."""


class Keeper(Protocol):
    """Where secrets go: each is told once, when it is made."""

    def place(self, name: str) -> contextlib.AbstractContextManager[Place]:
        """A place that is known to take a secret, before that is made.

        Raises
        ------
        OSError
            It can't be written there.
        """

    def kept(self, name: str) -> str | None:
        """The secret of an earlier run; None if there is none."""

    @property
    def keeps(self) -> bool:
        """Whether it should have the secrets of earlier runs."""


class Printer:
    """Tells each secret once."""

    keeps = False

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[Place]:
        yield _Printed(name, self._tell)

    def kept(self, name: str) -> str | None:
        return None


class _Printed:
    def __init__(self, name: str, tell: Callable[[str], None]) -> None:
        self._name = name
        self._tell = tell

    def put(self, secret: str) -> str:
        self._tell(f"{self._name} token, told only now: {secret}")
        return "told only now"


class Folder:
    """Keeps each secret in a file `<name>.token` of its own that only its owner can read."""

    keeps = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """The file appears when the secret is in it, whole and on disk."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path(name)
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        opened = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            yield _Filed(opened, new, path)
        finally:
            os.close(opened)
            new.unlink(missing_ok=True)

    def kept(self, name: str) -> str | None:
        try:
            return self.path(name).read_text().strip() or None
        except FileNotFoundError:
            return None

    def path(self, name: str) -> Path:
        """The file of a secret."""
        return self._folder / f"{name}.token"


class _Filed:
    def __init__(self, opened: int, new: Path, path: Path) -> None:
        self._opened = opened
        self._new = new
        self._path = path

    def put(self, secret: str) -> str:
        os.write(self._opened, f"{secret}\n".encode())
        os.fsync(self._opened)
        self._new.rename(self._path)
        return f"its secret is in {self._path}"


def set_up_sqlite(store: SqliteStore, *, dry_run: bool) -> Step:
    """Create the file and its tables, as `ingest run` would.

    Raises
    ------
    StoreUnavailable, StoreRefused
        The file can't be written, or is no store.
    """
    there = store.path.exists() and store.path.stat().st_size > 0
    if not dry_run:
        asyncio.run(_write_nothing(store.path))
    kept_ms = store.ticks.retention_ms
    ticks = (
        "ticks stay for ever"
        if kept_ms is None
        else f"the service deletes ticks older than {format_duration(kept_ms)}"
    )
    return Step(f"store {store.path}", "there" if there else "created", ticks)


async def _write_nothing(path: Path) -> None:
    sink = SqliteSink(path)
    try:
        await sink.write({})
    finally:
        await sink.close()


def look_for_redis(settings: RedisSettings) -> Step:
    """Whether Redis answers; there is nothing to create in it."""
    url = settings.url.get_secret_value()
    what = f"Redis at {urlsplit(url).netloc.rpartition('@')[2] or 'its socket'}"
    retry = Retry(NoBackoff(), 0)
    options = {"socket_timeout": REDIS_TIMEOUT_S, "socket_connect_timeout": REDIS_TIMEOUT_S}
    try:
        with redis.Redis.from_url(url, retry=retry, **options) as client:
            client.ping()
    except redis.RedisError as error:
        said = "wrong password" if isinstance(error, redis.AuthenticationError) else str(error)
        return Step(what, "missing", f"it doesn't answer: {said}; the service goes on without it")
    return Step(what, "there")
