"""Binance's streams and metadata for some pairs at a fixed rate, with next to no work.

An open loop: each message has a time at which it is due, and is sent then, whatever became of those
before; who measures from that time omits nothing. Once all streams are asked for it runs for
`WARM_UP_S`, then so long as it is told to; while it does, a few messages close a minute of the past
hour. Those are the probes: each becomes a row, whose count of trades is the number of the message.

Run: `python -m tests.bench.flood PORT MESSAGES_A_SECOND SECONDS`
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from urllib.parse import unquote

import orjson
from aiohttp import web

PAIRS = 200
WARM_UP_S = 5.0
PROBES_A_SECOND = 250
TICK_S = 0.002
MINUTE_MS = 60_000
OLDEST_MINUTES = 55
"""The first probes are of the minute so long ago: the pipeline takes none before its hour."""

IDS = [f"C{n}USDT" for n in range(PAIRS)]
REST = {
    "exchangeInfo": {
        "symbols": [
            {
                "symbol": id, "pair": id, "contractType": "PERPETUAL", "status": "TRADING",
                "deliveryDate": 4_133_404_800_000, "onboardDate": 1_567_965_300_000,
                "baseAsset": id.removesuffix("USDT"), "quoteAsset": "USDT", "marginAsset": "USDT",
            }
            for id in IDS
        ]
    },
    "fundingInfo": [],
    "fundingRate": [],
}  # fmt: skip

_KLINE = (
    b'{"stream":"%b@kline_1m","data":{"e":"kline","E":%d,"s":"%b","k":{"t":%d,"T":%d,"s":"%b",'
    b'"i":"1m","f":8153633367,"L":8153634395,"o":"83084.90","c":"83091.60","h":"83091.70",'
    b'"l":"83051.20","v":"13.551","n":%d,"x":%b,"q":"1125714.73960","V":"6.426",'
    b'"Q":"533856.66860","B":"0"}}}'
)
_MARK = (
    b'{"stream":"%b@markPrice@1s","data":{"e":"markPriceUpdate","E":%d,"s":"%b",'
    b'"p":"83084.30000000","ap":"83084.30000000","P":"83195.15881449","i":"83123.65891304",'
    b'"r":"0.00000078","T":%d,"st":1}}'
)


def kline(id: str, event_ms: int, start_ms: int, trades: int, *, closed: bool) -> bytes:
    name, end_ms = id.encode(), start_ms + MINUTE_MS - 1
    flag = b"true" if closed else b"false"
    return _KLINE % (name.lower(), event_ms, name, start_ms, end_ms, name, trades, flag)


def mark(id: str, event_ms: int) -> bytes:
    name = id.encode()
    return _MARK % (name.lower(), event_ms, name, event_ms + MINUTE_MS)


def frame(payload: bytes) -> bytes:
    """A WebSocket text frame of a server, of 126 to 65,535 bytes."""
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


class Flood:
    """The server; `stats` tells when the first message was due, and how late it was at worst."""

    def __init__(self, rate: int, seconds: float) -> None:
        self.rate = rate
        self.seconds = seconds
        self.started_s: float | None = None
        self.sent = 0
        self.late_s = 0.0
        self._sockets: dict[str, asyncio.Transport] = {}
        self._complete = asyncio.Event()

    async def stream(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        assert isinstance(request.transport, asyncio.Transport)
        for topic in unquote(request.query_string.partition("streams=")[2]).split("/"):
            self._sockets[topic] = request.transport
        if len(self._sockets) >= 2 * PAIRS:
            self._complete.set()
        async for _ in socket:
            pass
        return socket

    async def answer(self, request: web.Request) -> web.Response:
        call, query = request.match_info["call"], request.query
        body: object = REST.get(call, [])
        if call == "stats":
            body = self.stats()
        elif call == "time":
            body = {"serverTime": int(time.time() * 1000)}
        elif call in ("klines", "markPriceKlines"):
            step_ms = MINUTE_MS if call == "klines" else 3 * MINUTE_MS
            times = range(int(query["startTime"]), int(query["endTime"]) + 1, step_ms)
            prices = ["83084.90", "83091.70", "83051.20", "83091.60", "13.551"]
            rest = ["1125714.73960", 7, "6.426", "533856.66860", "0"]
            body = [[start, *prices, start + step_ms - 1, *rest] for start in times]
        return web.Response(body=orjson.dumps(body), content_type="application/json")

    def stats(self) -> dict[str, object]:
        return {
            "started_s": self.started_s,
            "sent": self.sent,
            "late_ms": round(self.late_s * 1000, 1),
            "done": self.started_s is not None and self._due() >= self._total(),
        }

    async def run(self) -> None:
        """Send what is due, when it is due."""
        await self._complete.wait()
        self.started_s = time.time()
        minute_ms = self._minute_ms()
        number = 0
        while True:
            await asyncio.sleep(TICK_S)
            out: dict[asyncio.Transport, list[bytes]] = {}
            if self._minute_ms() > minute_ms:
                for id in IDS:
                    closed = kline(id, int(time.time() * 1000), minute_ms, 1, closed=True)
                    out.setdefault(self._sockets[f"{id.lower()}@kline_1m"], []).append(
                        frame(closed)
                    )
                minute_ms = self._minute_ms()
            due = self._due()
            if number < due:
                self.late_s = max(self.late_s, time.time() - self.due_s(number))
            for topic, payload in self._messages(number, due, minute_ms):
                out.setdefault(self._sockets[topic], []).append(frame(payload))
            for transport, frames in out.items():
                if not transport.is_closing():
                    transport.write(b"".join(frames))
            self.sent = number = due

    def due_s(self, number: int) -> float:
        """When a message is due, by the world's clock."""
        assert self.started_s is not None
        return self.started_s + number / self.rate

    def _due(self) -> int:
        assert self.started_s is not None
        return int((time.time() - self.started_s) * self.rate)

    def _total(self) -> int:
        return int((WARM_UP_S + self.seconds) * self.rate)

    @staticmethod
    def _minute_ms() -> int:
        return int(time.time()) // 60 * MINUTE_MS

    def _messages(self, first: int, end: int, minute_ms: int) -> Iterator[tuple[str, bytes]]:
        rounds = max(1, self.rate // PROBES_A_SECOND)
        first_turn = int(WARM_UP_S * self.rate) // PAIRS
        for number in range(first, end):
            turn, pair = divmod(number, PAIRS)
            id = IDS[pair]
            event_ms = int(self.due_s(number) * 1000)
            if (turn + pair) % 7 == 3:
                yield f"{id.lower()}@markPrice@1s", mark(id, event_ms)
                continue
            start_ms, trades = minute_ms, 1
            # Each pair at another turn, so that they come evenly.
            probe, left = divmod(turn - first_turn + pair, rounds)
            closes = turn >= first_turn and left == 0 and number < self._total()
            if closes:
                ago = OLDEST_MINUTES - probe
                start_ms, trades = minute_ms - ago * MINUTE_MS, number
            yield f"{id.lower()}@kline_1m", kline(id, event_ms, start_ms, trades, closed=closes)


async def serve(port: int, rate: int, seconds: float) -> None:
    """Serve until the process is ended."""
    flood = Flood(rate, seconds)
    app = web.Application()
    app.router.add_get("/market/stream", flood.stream)
    app.router.add_get("/fapi/v1/{call:.+}", flood.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("up", flush=True)
    await flood.run()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
