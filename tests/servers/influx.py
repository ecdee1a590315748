"""A real InfluxDB 2.9, set up with a fixed token; buckets are made on demand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import urllib3

from tests.servers.process import ServerProcess, cache_folder, find_program

ORG = "trading"
TOKEN = "test-token-of-the-operator"


def find_influxd() -> Path | None:
    """INFLUXD, else PATH, else what `make influxd` built."""
    return find_program("influxd", "INFLUXD", cache_folder() / "influxd-2.9.1" / "influxd")


def call(method: str, url: str, token: str = TOKEN, **options: Any) -> urllib3.BaseHTTPResponse:
    """One HTTP request on a connection of its own, which is closed again."""
    headers = {"Authorization": f"Token {token}"}
    with urllib3.PoolManager(retries=False, timeout=30) as pool:
        return pool.request(method, url, headers=headers, **options)


class InfluxServer(ServerProcess):
    """`url`, `org` and `token` stay the same over restarts; so does what was written."""

    name = "influxd"
    org = ORG
    token = TOKEN

    def __init__(self, program: Path, folder: Path) -> None:
        super().__init__(program, folder)
        self._bucket_numbers = itertools.count(1)
        self._org_id: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def arguments(self) -> Sequence[str]:
        # The defaults listen on every interface and report usage to the vendor.
        # fmt: off
        return [
            "--http-bind-address", f"127.0.0.1:{self.port}", "--reporting-disabled",
            "--bolt-path", str(self.folder / "influxd.bolt"),
            "--sqlite-path", str(self.folder / "influxd.sqlite"),
            "--engine-path", str(self.folder / "engine"), "--log-level", "error",
            # As a careful operator starts it: without it one query can take all memory.
            "--influxql-max-select-buckets", "10000",
        ]
        # fmt: on

    def start(self) -> None:
        super().start()
        if self._org_id is None:
            answer = self.request(
                "POST",
                "/api/v2/setup",
                username="test",
                password="test-password",
                org=ORG,
                bucket="unused",
                token=TOKEN,
            )
            self._org_id = answer["org"]["id"]

    def is_ready(self) -> bool:
        try:
            return call("GET", f"{self.url}/health", timeout=1).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def request(self, method: str, path: str, **body: Any) -> Any:
        """One call of the server's API with the operator's token; its JSON answer."""
        answer = call(method, self.url + path, json=body or None)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.data!r}"
        return answer.json() if answer.data else None

    def new_bucket(self, retention_s: int = 0, shard_s: int = 0) -> str:
        """Make a bucket that nobody else uses and return its name.

        A retention of 0 keeps for ever; shards of 0 are as long as the server thinks best.
        """
        name = f"bucket_{next(self._bucket_numbers)}"
        rule = {"everySeconds": retention_s, "shardGroupDurationSeconds": shard_s}
        self.request(
            "POST", "/api/v2/buckets", orgID=self._org_id, name=name, retentionRules=[rule]
        )
        return name

    def new_token(self, bucket: str, *, write: bool) -> str:
        """A token that reads `bucket`, and writes it where `write` says so."""
        found = self.request("GET", f"/api/v2/buckets?name={bucket}")
        resource = {"type": "buckets", "id": found["buckets"][0]["id"], "orgID": self._org_id}
        actions = ["read", "write"] if write else ["read"]
        answer = self.request(
            "POST",
            "/api/v2/authorizations",
            orgID=self._org_id,
            permissions=[{"action": action, "resource": resource} for action in actions],
        )
        token: str = answer["token"]
        return token


@dataclass(frozen=True)
class InfluxBucket:
    """What a test needs to write to and read from a bucket of its own."""

    server: InfluxServer = field(repr=False)
    bucket: str

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def org(self) -> str:
        return self.server.org

    @property
    def token(self) -> str:
        return self.server.token

    def new_bucket(self, retention_s: int = 0) -> str:
        return self.server.new_bucket(retention_s)
