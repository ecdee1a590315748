"""Exchanges of a few lines over real HTTP, for tests that say what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.test_utils import TestServer

from marketdata.schema import MINUTE_MS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Venue:
    """An HTTP server whose answer is exchanged at will, and which remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.answer: Handler = self._nothing
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self._server.make_url("/")).rstrip("/")

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.asked]

    def says(self, body: object = None, *, status: int = 200, **headers: str) -> None:
        """Answer everything with this JSON."""

        async def answer(_: web.Request) -> web.Response:
            named = {key.replace("_", "-"): value for key, value in headers.items()}
            return web.json_response(body, status=status, headers=named)

        self.answer = answer

    def says_text(self, text: str, *, status: int = 200, content_type: str = "text/html") -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=text, status=status, content_type=content_type)

        self.answer = answer

    def resets(self) -> None:
        async def answer(request: web.Request) -> web.Response:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()

        self.answer = answer

    def hangs(self) -> None:
        async def answer(_: web.Request) -> web.Response:
            await asyncio.sleep(3_600)
            return web.Response()

        self.answer = answer

    async def start(self) -> None:
        await self._server.start_server()

    async def stop(self) -> None:
        await self._server.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        return await self.answer(request)

    async def _nothing(self, _: web.Request) -> web.Response:
        return web.json_response({})


class BinanceVenue(Venue):
    """Binance's klines and time, on a clock of its own."""

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self.now_ms = now_ms
        self.missing: set[int] = set()
        self.answer = self._binance

    async def _binance(self, request: web.Request) -> web.Response:
        if request.path == "/fapi/v1/time":
            return web.json_response({"serverTime": self.now_ms})
        query = request.query
        opens = range(int(query["startTime"]), int(query["endTime"]) + 1, MINUTE_MS)
        rows = [
            [m, "1.1", "1.3", "1.0", "1.2", "0.30", m + 59_999, "0.36", 7, "0", "0", "0"]
            for m in opens
            if m <= self.now_ms and m not in self.missing
        ]
        return web.json_response(rows[: int(query["limit"])])


class BybitVenue(Venue):
    """Bybit's klines (newest first) and instruments in two pages, on a clock of its own."""

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self.now_ms = now_ms
        self.answer = self._bybit

    async def _bybit(self, request: web.Request) -> web.Response:
        if request.path == "/v5/market/kline":
            result: dict[str, object] = {"list": self._klines(request)}
        elif request.query["category"] == "spot":
            result = {"list": [instrument("BTCUSDT")], "nextPageCursor": ""}
        elif "cursor" not in request.query:
            linear = [instrument("BTCUSDT", contractType="LinearPerpetual", settleCoin="USDT")]
            result = {"list": linear, "nextPageCursor": "first%3DBTCUSDT%26last%3DBTCUSDT"}
        else:
            linear = [
                instrument(
                    "IOSTUSDT",
                    contractType="LinearPerpetual",
                    settleCoin="USDT",
                    fundingInterval=60,
                )
            ]
            result = {"list": linear, "nextPageCursor": ""}
        return web.json_response(
            {"retCode": 0, "retMsg": "OK", "result": result, "retExtInfo": {}, "time": self.now_ms}
        )

    def _klines(self, request: web.Request) -> list[list[str]]:
        opens = range(int(request.query["start"]), int(request.query["end"]) + 1, MINUTE_MS)
        rows = [
            [str(minute), "1.1", "1.3", "1.0", "1.2", "0.30", "0.36"]
            for minute in reversed(opens)
            if minute <= self.now_ms
        ]
        return rows[: int(request.query["limit"])]


def instrument(market_id: str, **changes: object) -> dict[str, object]:
    return {
        "symbol": market_id,
        "status": "Trading",
        "baseCoin": market_id.removesuffix("USDT"),
        "quoteCoin": "USDT",
    } | changes
