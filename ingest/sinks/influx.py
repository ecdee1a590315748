"""The InfluxDB 2.x sink: joined lines, one request at a time, and a named outcome for every answer.

| answer | what it means here |
|---|---|
| 204 | in the store |
| 400 | nothing is stored: the quoted lines are rejected, the rest is sent again at once |
| 422 | the offenders are dropped: they are rejected, the rest is sent again until a 204 covers it |
| 413 | sent again in halves |
| 401, 403, 404, a redirect, any other 4xx, a 2xx that isn't 204 | `StoreRefused` |
| 429, 503 (with `Retry-After`), every other 5xx; refused, no such host, TLS | `StoreUnavailable` |
| 408, 499, 500, 504; reset, cut off, no answer in time | `BatchFailed` |

Where a 400 or 422 doesn't tell which lines it means, they are told apart by halving. Points are
keyed, so sending again what may be stored already is safe.

The client is influxdb-client's asynchronous one: on joined lines it is as fast as the synchronous
one, and needs no thread. Its batching WriteApi is not used: that gives up after three minutes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

import aiohttp
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync
from influxdb_client.domain.write_precision import WritePrecision
from influxdb_client.rest import ApiException

from ingest.backoff import retry_after_s
from ingest.sinks import rejections
from ingest.sinks.base import Rejected, Settled
from ingest.sinks.lineprotocol import LineRenderer
from marketdata.errors import BatchFailed, StoreRefused, StoreUnavailable
from marketdata.schema import MEASUREMENTS, Batch, Row

LINES_PER_REQUEST = 5_000
TIMEOUT_S = 25.0
"""Longer than the server's own write timeout of 10 s, so that it is the server that answers."""

_ABOUT_LINES = frozenset({400, 413, 422})
_ABOUT_ONE_WRITE = frozenset({408, 499, 500, 504})
"""A server or a proxy that failed on this request, and may do better on another one."""


@dataclass(frozen=True, slots=True)
class _Request:
    """Lines and, at the same positions, the rows that they stand for and their measurements."""

    lines: list[str]
    rows: list[Row]
    names: list[str]

    def part(self, start: int, stop: int) -> _Request:
        return _Request(self.lines[start:stop], self.rows[start:stop], self.names[start:stop])

    def without(self, positions: dict[int, str]) -> _Request:
        kept = [n for n in range(len(self.lines)) if n not in positions]
        return _Request(
            [self.lines[n] for n in kept],
            [self.rows[n] for n in kept],
            [self.names[n] for n in kept],
        )

    def reject(self, reasons: dict[int, str]) -> list[Rejected]:
        return [Rejected(self.names[n], self.rows[n], why) for n, why in sorted(reasons.items())]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An answer that is about some of the lines: 400, 413 or 422."""

    status: int
    message: str

    def culprits(self, request: _Request) -> dict[int, str]:
        """The lines that the message names, by position; empty if it doesn't tell."""
        if self.status == 400:
            return rejections.unparsable(self.message, request.lines)
        if self.status == 422:
            points = list(zip(request.names, request.rows, strict=True))
            return rejections.dropped(self.message, points)
        return {}


class InfluxSink:
    """Writes to one bucket, and ticks to one of their own where `ticks_bucket` is given.

    Connects with the first write. The token appears in no error.
    """

    name = "influxdb"

    def __init__(
        self,
        url: str,
        org: str,
        bucket: str,
        token: str,
        *,
        ticks_bucket: str | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._url = url
        self._org = org
        self._bucket = bucket
        self._token = token
        self._ticks_bucket = ticks_bucket or bucket
        self._timeout_s = timeout_s
        self._client: InfluxDBClientAsync | None = None
        self._renderers = {name: LineRenderer(table) for name, table in MEASUREMENTS.items()}

    async def write(self, batch: Batch) -> Settled:
        rejected: list[Rejected] = []
        by_bucket: dict[str, _Request] = {}
        for name, rows in batch.items():
            lines, sound, unsound = self._renderers[name].render(rows)
            rejected += unsound
            bucket = self._ticks_bucket if MEASUREMENTS[name].tick else self._bucket
            request = by_bucket.setdefault(bucket, _Request([], [], []))
            request.lines.extend(lines)
            request.rows.extend(sound)
            request.names.extend([name] * len(sound))
        for bucket, request in by_bucket.items():
            for start in range(0, len(request.lines), LINES_PER_REQUEST):
                part = request.part(start, start + LINES_PER_REQUEST)
                rejected += await self._settle(bucket, part)
        total = sum(len(rows) for rows in batch.values())
        return Settled(total - len(rejected), tuple(rejected))

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()  # type: ignore[no-untyped-call]

    async def _settle(self, bucket: str, request: _Request) -> list[Rejected]:
        """Send until each line is stored or rejected; which were rejected."""
        rejected: list[Rejected] = []
        while request.lines:
            refusal = await self._post(bucket, request.lines)
            if refusal is None:
                break
            if culprits := refusal.culprits(request):
                rejected += request.reject(culprits)
                request = request.without(culprits)
                continue
            if len(request.lines) == 1:
                reason = f"{refusal.status} {refusal.message}"[: rejections.REASON_CHARS]
                return [*rejected, *request.reject({0: reason})]
            middle = len(request.lines) // 2
            rejected += await self._settle(bucket, request.part(0, middle))
            request = request.part(middle, len(request.lines))
        return rejected

    async def _post(self, bucket: str, lines: Sequence[str]) -> _Refusal | None:
        """One request. None if all is stored; errors of the store as a whole are raised."""
        write_api = self._connected().write_api()
        body = "\n".join(lines).encode()
        try:
            stored = await write_api.write(
                bucket,
                self._org,
                body,
                WritePrecision.MS,  # type: ignore[arg-type]  # a str, whatever the client says
            )
        except ApiException as error:
            message = self._message(error)
            if error.status in _ABOUT_LINES:
                return _Refusal(error.status, message)
            header = error.headers.get("Retry-After") if error.headers else None
            self._raise(bucket, error.status, message, retry_after_s(header, _world_ms()))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            unreachable = isinstance(error, aiohttp.ClientConnectorError)
            # From None, here and below: the cause can carry the request's headers and the token.
            raise (StoreUnavailable if unreachable else BatchFailed)(
                f"InfluxDB at {self._address} doesn't answer: {self._describe(error)}; the rows are"
                " kept and sent again"
            ) from None
        if not stored:
            self._raise(bucket, 200, "expected 204: this is not InfluxDB's write API", None)
        return None

    def _connected(self) -> InfluxDBClientAsync:
        if self._client is None:
            self._client = InfluxDBClientAsync(
                url=self._url,
                token=self._token,
                org=self._org,
                timeout=int(self._timeout_s * 1000),
                enable_gzip=False,
                connection_pool_maxsize=1,
                allow_redirects=False,
            )
        return self._client

    @property
    def _address(self) -> str:
        return urlsplit(self._url).netloc.rpartition("@")[2]

    def _message(self, error: ApiException) -> str:
        text = bytes(error.body or b"").decode(errors="replace")
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        message = answer.get("message") if isinstance(answer, dict) else text
        return str(message or error.reason).replace(self._token, "***")

    def _describe(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"nothing within {self._timeout_s:g} s"
        return f"{type(error).__name__}: {error}".replace(self._token, "***")

    def _raise(self, bucket: str, status: int, message: str, wait_s: float | None) -> NoReturn:
        said = f"{status} {message}"[: rejections.REASON_CHARS]
        if status >= 500 or status == 429 or status in _ABOUT_ONE_WRITE:
            raise (BatchFailed if status in _ABOUT_ONE_WRITE else StoreUnavailable)(
                f"InfluxDB at {self._address} answers {said}; the rows are kept and sent again",
                retry_after_s=wait_s,
            ) from None
        raise StoreRefused(
            f"InfluxDB at {self._address} refuses bucket {bucket!r} of org {self._org!r}:"
            f" {said}; check url, org, bucket and token; until then all rows are kept"
        ) from None


def _world_ms() -> int:
    """The time that a date in an answer refers to, whatever the service's own clock shows."""
    return int(time.time() * 1000)
