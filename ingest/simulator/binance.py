"""Binance USD-M futures' WebSocket side: routes, subscriptions and limits.

`/market` carries klines, marks, trades and tickers, `/public` the book. The old paths without a
route accept everything and deliver only what `/public` does; nothing ever says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

import orjson
from aiohttp import WSCloseCode, web

from ingest.clock import Clock
from ingest.simulator.binance_streams import BinanceStreams
from ingest.simulator.faults import FaultBoard
from ingest.simulator.limits import TokenBucket
from ingest.simulator.market import Market
from ingest.simulator.universe import BINANCE, Contract
from ingest.simulator.venue import PULSE_MS, Client, Venue

LONGEST_URL = 8_004
MOST_STREAMS = 1_024
_PING_S = 180.0
_PONG_DEADLINE_MS = 600_000


class BinanceClient(Client):
    """A connection with its route and its form of frames."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, now_ms: int) -> None:
        super().__init__(socket, request, now_ms)
        first = request.path.split("/")[1]
        self.route = first if first in ("market", "public", "private") else "public"
        self.combined = request.path.endswith("/stream")
        self.messages = TokenBucket(burst=15, per_second=10)


class Binance(Venue[BinanceClient]):
    """The sockets of BINANCE_FUTURES."""

    name = BINANCE
    handshake_limit = 300
    handshake_refusal = 429
    lifetime_s = 86_400.0

    def __init__(
        self, market: Market, clock: Clock, faults: FaultBoard, kline_push_ms: int = PULSE_MS
    ) -> None:
        super().__init__(market, clock, faults)
        self._streams = BinanceStreams(market, kline_push_ms)

    def routes(self) -> Iterable[web.RouteDef]:
        for route in ("/market", "/public", "/private", ""):
            for path in ("/stream", "/ws", "/ws/{streams:.+}"):
                yield web.get(route + path, self._connect)

    def step(self, at_ms: int) -> None:
        for name in self.heard():
            stream = self._streams.find(name)
            if stream is None:
                continue
            for message in self._streams.due(stream, at_ms):
                if message.closing and message.contract is not None:
                    self.publish_closing(name, message.contract, message.data, at_ms)
                else:
                    self.publish(name, message.contract, message.data, at_ms)

    def frame(self, client: BinanceClient, stream: str, data: bytes) -> bytes:
        if not client.combined:
            return data
        return b'{"stream":"' + stream.encode() + b'","data":' + data + b"}"

    def republish(self, contract: Contract, minute_ms: int, at_ms: int) -> None:
        data = self._streams.closed_minute(contract, minute_ms, at_ms)
        self.publish(f"{contract.id.lower()}@kline_1m", contract, data, at_ms)

    def announce_shutdown(self, at_ms: int, cut_after_s: float | None) -> None:
        """Tell every connection that its server goes down, and cut them later."""
        if cut_after_s is not None:
            self.cut_at(at_ms + round(cut_after_s * 1000))
        data = orjson.dumps({"e": "serverShutdown", "E": self.now_ms()})
        for client in self.clients:
            self._send(client, self.frame(client, "!serverShutdown", data))

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        if len(str(request.url.origin())) + len(request.raw_path) > LONGEST_URL:
            raise web.HTTPRequestURITooLong
        return await self.serve(request)

    def connected(
        self, socket: web.WebSocketResponse, request: web.Request, now_ms: int
    ) -> BinanceClient:
        return BinanceClient(socket, request, now_ms)

    def opened(self, client: BinanceClient, request: web.Request) -> None:
        if client.combined:
            names = request.query.get("streams", "")
        else:
            names = unquote(request.match_info.get("streams", ""))
        self._subscribe(client, [name for name in names.split("/") if name])

    async def keep(self, client: BinanceClient) -> None:
        while True:
            await self.clock.sleep(_PING_S)
            now_ms = self.clock.now_ms()
            if client.half_open:
                continue
            if now_ms - client.ponged_ms > _PONG_DEADLINE_MS:
                client.abort()
                return
            await client.socket.ping(str(self.now_ms()).encode())

    async def received(self, client: BinanceClient, text: str) -> None:
        if not client.messages.admit(client.heard_ms):
            client.close(WSCloseCode.POLICY_VIOLATION, "Too many requests")
            return
        try:
            request = orjson.loads(text)
        except orjson.JSONDecodeError as fault:
            self._reply(client, {"code": 3, "msg": f"Invalid JSON: {fault}"})
            return
        self._obey(client, request if isinstance(request, dict) else {})

    def _obey(self, client: BinanceClient, request: dict[str, object]) -> None:
        params = request.get("params")
        names = (
            [name for name in params if isinstance(name, str)] if isinstance(params, list) else []
        )
        result: object = None
        match request.get("method"):
            case "SUBSCRIBE":
                if not self._subscribe(client, names):
                    return
            case "UNSUBSCRIBE":
                for name in names:
                    client.streams.pop(name, None)
                    self.leave(client, name)
            case "LIST_SUBSCRIPTIONS":
                result = list(client.streams)
            case "SET_PROPERTY":
                client.combined = params == ["combined", True]
            case method:
                self._reply(client, {"code": 2, "msg": f"Invalid request: method {method!r}"})
                return
        self._reply(client, {"result": result, "id": request.get("id")})

    def _reply(self, client: BinanceClient, reply: dict[str, object]) -> None:
        self.answer(client, orjson.dumps(reply))

    def _subscribe(self, client: BinanceClient, names: list[str]) -> bool:
        client.streams.update(dict.fromkeys(names))
        if len(client.streams) > MOST_STREAMS:
            self._reply(client, {"error": {"code": 4, "msg": "Too many subscriptions"}})
            client.close(WSCloseCode.POLICY_VIOLATION, "Invalid request")
            return False
        for name in names:
            stream = self._streams.find(name)
            if stream is not None and client.route == ("public" if stream.public else "market"):
                self.listen(client, name)
        return True
