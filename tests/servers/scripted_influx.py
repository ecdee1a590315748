"""An HTTP server that answers writes as told: every way in which an InfluxDB, or a proxy, may fail.

What is planned is played once each, in order; after that, and for `Stored`, lines are kept as
InfluxDB keeps them, one point per series and time.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from aiohttp import web

from tests.servers.process import free_port


@dataclass(frozen=True)
class Answer:
    """A status with InfluxDB's JSON error; `stores` is the 500 that stored after all."""

    status: int
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    stores: bool = False


@dataclass(frozen=True)
class Reset:
    """The connection is torn down: before the answer, or in the middle of its body."""

    in_body: bool = False


@dataclass(frozen=True)
class Silence:
    """An answer that never comes; with `headers` it begins, and then nothing follows."""

    headers: bool = False


@dataclass(frozen=True)
class Trickle:
    """An answer of a byte each 50 ms, for ever."""


Behaviour = Answer | Reset | Silence | Trickle
Judge = Callable[[Sequence[str]], Behaviour]

TRICKLE_S = 0.05
STORED = Answer(204, stores=True)


class ScriptedInflux:
    """Use as an async context manager; `url` is its address, `points` what it has stored."""

    token = "a-token-that-must-never-show"
    org = "trading"
    bucket = "market_data"

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.port = free_port()
        self.planned: deque[Behaviour] = deque()
        self.judge: Judge = lambda lines: STORED
        self.requests: list[list[str]] = []
        self.queries: list[Mapping[str, str]] = []
        self.connections: set[object] = set()
        self.points: dict[tuple[str, str], str] = {}
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'http' if self._tls is None else 'https'}://127.0.0.1:{self.port}"

    async def __aenter__(self) -> ScriptedInflux:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._closing.clear()
        app = web.Application(client_max_size=2**30)
        app.router.add_post("/api/v2/write", self._write)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls).start()

    async def stop(self) -> None:
        self._closing.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _write(self, request: web.Request) -> web.StreamResponse:
        lines = (await request.text()).split("\n")
        self.requests.append(lines)
        self.queries.append(dict(request.query))
        self.connections.add(request.transport)
        behaviour = self.planned.popleft() if self.planned else self.judge(lines)
        match behaviour:
            case Answer():
                if behaviour.stores:
                    self._keep(lines)
                body = {"code": "played", "message": behaviour.message}
                if behaviour.status == 204:
                    return web.Response(status=204)
                return web.json_response(
                    body, status=behaviour.status, headers=dict(behaviour.headers)
                )
            case Reset(in_body=True):
                response = await _begin(request)
                _abort(request)
                return response
            case Reset():
                _abort(request)
            case Silence(headers=True):
                response = await _begin(request)
                await self._closing.wait()
                return response
            case Silence():
                await self._closing.wait()
            case Trickle():
                response = await _begin(request)
                with suppress(ConnectionError):
                    while not self._closing.is_set():
                        await response.write(b" ")
                        await asyncio.sleep(TRICKLE_S)
                return response
        return web.Response(status=204)

    def _keep(self, lines: Sequence[str]) -> None:
        for line in lines:
            series, fields, stamp = re.split(r"(?<!\\) ", line)
            self.points[series, stamp] = fields


async def _begin(request: web.Request) -> web.StreamResponse:
    """The first bytes of an answer that is not going to be whole."""
    response = web.StreamResponse(status=500, headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"code": "internal')
    return response


def _abort(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()
