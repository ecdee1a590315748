"""Bybit v5's public WebSocket side: one path for each category, heartbeats, batches, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from uuid import uuid4

import orjson
from aiohttp import WSCloseCode, web

from ingest.clock import Clock
from ingest.simulator.bybit_streams import BybitStreams, Category, UnknownTopic
from ingest.simulator.faults import FaultBoard
from ingest.simulator.market import Market
from ingest.simulator.universe import BYBIT, Contract
from ingest.simulator.venue import Client, Venue

MOST_SPOT_ARGS = 10
LONGEST_ARGS = 21_000
_IDLE_SCAN_S = 30.0


class BybitClient(Client):
    """A connection of one category."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, now_ms: int) -> None:
        super().__init__(socket, request, now_ms)
        self.category: Category = "spot" if request.path.endswith("spot") else "linear"
        self.id = str(uuid4())


class Bybit(Venue[BybitClient]):
    """The sockets of BYBIT. A client that sends nothing for `idle_s` is cut off."""

    name = BYBIT
    handshake_limit = 500
    handshake_refusal = 403
    lifetime_s = None

    def __init__(
        self,
        market: Market,
        clock: Clock,
        faults: FaultBoard,
        idle_s: float = 600.0,
        ticker_push_ms: int = 1_000,
    ) -> None:
        super().__init__(market, clock, faults)
        self.streams: dict[Category, BybitStreams] = {
            "linear": BybitStreams(market, "linear", ticker_push_ms),
            "spot": BybitStreams(market, "spot", ticker_push_ms),
        }
        self._idle_s = idle_s

    def routes(self) -> Iterable[web.RouteDef]:
        for category in self.streams:
            yield web.get(f"/v5/public/{category}", self.serve)

    def step(self, at_ms: int) -> None:
        for key in self.heard():
            category, name = key.split(":", 1)
            streams = self.streams["spot" if category == "spot" else "linear"]
            try:
                topic = streams.find(name)
            except UnknownTopic:
                continue  # not listed any more
            for message in streams.due(topic, at_ms):
                data = orjson.dumps(message.data)
                if message.closing:
                    self.publish_closing(key, topic.contract, data, at_ms)
                else:
                    self.publish(key, topic.contract, data, at_ms)

    def frame(self, client: BybitClient, stream: str, data: bytes) -> bytes:
        return data

    def republish(self, contract: Contract, minute_ms: int, at_ms: int) -> None:
        category: Category = "spot" if contract.kind == "spot" else "linear"
        topic = self.streams[category].find(f"kline.1.{contract.id}")
        data = orjson.dumps(self.streams[category].closed_bar(topic, minute_ms, at_ms))
        self.publish(_key(category, topic.name), contract, data, at_ms)

    def connected(
        self, socket: web.WebSocketResponse, request: web.Request, now_ms: int
    ) -> BybitClient:
        return BybitClient(socket, request, now_ms)

    def opened(self, client: BybitClient, request: web.Request) -> None:
        """Nothing begins by itself."""

    async def keep(self, client: BybitClient) -> None:
        while True:
            await self.clock.sleep(min(_IDLE_SCAN_S, self._idle_s))
            idle_ms = self.clock.now_ms() - client.heard_ms
            if idle_ms >= self._idle_s * 1000 and not client.half_open:
                client.close(WSCloseCode.GOING_AWAY)
                return

    async def received(self, client: BybitClient, text: str) -> None:
        try:
            request = orjson.loads(text)
        except orjson.JSONDecodeError:
            request = None
        request = request if isinstance(request, dict) else {}
        args = request.get("args")
        args = [arg for arg in args if isinstance(arg, str)] if isinstance(args, list) else []
        req_id = str(request.get("req_id", ""))
        match request.get("op"):
            case "ping":
                self._pong(client, req_id)
            case "subscribe":
                await self._subscribe(client, args, req_id)
            case "unsubscribe":
                for key in (_key(client.category, arg) for arg in args):
                    client.streams.pop(key, None)
                    self.leave(client, key)
                self._acknowledge(client, "unsubscribe", req_id)
            case op:
                self._refuse_request(client, f"error:invalid op,op:{op}", str(op or ""), req_id)

    async def _subscribe(self, client: BybitClient, args: list[str], req_id: str) -> None:
        """All of the request's topics, or none when one of them is wrong."""
        streams = self.streams[client.category]
        try:
            if client.category == "spot" and len(args) > MOST_SPOT_ARGS:
                raise UnknownTopic(f"args size >{MOST_SPOT_ARGS}")
            if sum(map(len, client.streams)) + sum(map(len, args)) > LONGEST_ARGS:
                raise UnknownTopic(f"error:args length >{LONGEST_ARGS}")
            topics = [streams.find(arg) for arg in args]
            for arg in args:
                if _key(client.category, arg) in client.streams:
                    raise UnknownTopic(f"error:already subscribed,topic:{arg}")
        except UnknownTopic as fault:
            self._refuse_request(client, str(fault), "subscribe", req_id)
            return
        self._acknowledge(client, "subscribe", req_id)
        for topic in topics:
            key = _key(client.category, topic.name)
            client.streams[key] = None
            self.listen(client, key)
            now_ms = self.now_ms()
            data = orjson.dumps(streams.first(topic, now_ms).data)
            self.publish_to(client, key, topic.contract, data, now_ms)
            await asyncio.sleep(0)

    def _pong(self, client: BybitClient, req_id: str) -> None:
        pong = {"success": True, "ret_msg": "pong", "conn_id": client.id, "op": "ping"}
        if client.category == "linear":
            pong["req_id"] = req_id
        self.answer(client, orjson.dumps(pong))

    def _acknowledge(self, client: BybitClient, op: str, req_id: str) -> None:
        self._reply(client, True, op if client.category == "spot" else "", op, req_id)

    def _refuse_request(self, client: BybitClient, why: str, op: str, req_id: str) -> None:
        self._reply(client, False, why, op, req_id)

    def _reply(self, client: BybitClient, success: bool, text: str, op: str, req_id: str) -> None:
        reply = {
            "success": success, "ret_msg": text, "conn_id": client.id, "req_id": req_id, "op": op,
        }  # fmt: skip
        self.answer(client, orjson.dumps(reply))


def _key(category: Category, topic: str) -> str:
    """Spot and linear have topics of the same name."""
    return f"{category}:{topic}"
