"""What both simulated exchanges share: connections, who listens to what, counters, and faults."""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Generic, TypeVar

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from ingest.clock import Clock
from ingest.simulator.faults import ClosingKline, FaultBoard, Lifetime, RefuseHandshakes
from ingest.simulator.limits import SlidingWindow
from ingest.simulator.market import Market
from ingest.simulator.universe import Contract

log = structlog.get_logger()

PULSE_MS = 250
"""Streams are looked at this often."""
_MOST_QUEUED = 20_000
"""Frames that wait for a slow client; with more it is cut off, as the exchanges do."""
_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Stats:
    """What tests and the demo want to know about an exchange's callers."""

    handshakes: int = 0
    handshakes_refused: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    rest_requests: int = 0
    rest_refused: int = 0
    slow_clients: int = 0
    recent_handshakes: SlidingWindow = field(default_factory=lambda: SlidingWindow(1 << 30, 60_000))

    def as_json(self, now_ms: int) -> dict[str, int]:
        counts = asdict(self)
        del counts["recent_handshakes"]
        return {**counts, "handshakes_last_minute": self.recent_handshakes.used(now_ms)}


class Client:
    """One WebSocket connection: frames wait in a bounded queue that a task of its own empties."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, now_ms: int) -> None:
        self.socket = socket
        self.opened_ms = now_ms
        self.heard_ms = now_ms
        self.ponged_ms = now_ms
        self.streams: dict[str, None] = {}
        self.overrun = False
        self._request = request
        self._queue: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._closing: tuple[int, str] | None = None

    @property
    def closing(self) -> bool:
        """The server has decided to close it."""
        return self._closing is not None

    def send(self, frame: bytes) -> None:
        """Queue a text frame."""
        if self._closing is not None:
            return
        if len(self._queue) >= _MOST_QUEUED:
            self.overrun = True
            self.abort()
            return
        self._queue.append(frame)
        self._wake.set()

    def close(self, code: int, reason: str = "") -> None:
        """Close after what is queued; 1006 resets the connection at once."""
        if code == WSCloseCode.ABNORMAL_CLOSURE:
            self.abort()
        elif self._closing is None:
            self._closing = (code, reason)
            self._wake.set()

    def abort(self) -> None:
        """Reset the connection."""
        self._closing = (WSCloseCode.ABNORMAL_CLOSURE, "")
        self._queue.clear()
        self._wake.set()
        reset(self._request)

    async def write(self) -> None:
        """Send what is queued, until the connection ends."""
        while not self.socket.closed:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self.socket.send_frame(self._queue.popleft(), WSMsgType.TEXT)
            if self._closing is not None:
                code, reason = self._closing
                await self.socket.close(code=code, message=reason.encode())
                return


def reset(request: web.Request) -> None:
    """End the request's TCP connection with a reset instead of a farewell."""
    transport = request.transport
    if transport is None:
        return
    raw = transport.get_extra_info("socket")
    if raw is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()


ClientT = TypeVar("ClientT", bound=Client)


class Venue(ABC, Generic[ClientT]):
    """One exchange. `step` is called with each pulse of the clock and sends what is due."""

    name: str
    handshake_limit: int
    handshake_refusal: int
    lifetime_s: float | None

    def __init__(self, market: Market, clock: Clock, faults: FaultBoard) -> None:
        self.market = market
        self.clock = clock
        self.faults = faults
        self.stats = Stats()
        self.clients: set[ClientT] = set()
        self._listeners: dict[str, set[ClientT]] = defaultdict(set)
        self._handshakes: dict[str, SlidingWindow] = {}
        self._held: list[tuple[int, str, bytes]] = []
        self._overtaken: dict[str, bytes] = {}
        self._cut_ms: int | None = None

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """The exchange's paths."""

    @abstractmethod
    def step(self, at_ms: int) -> None:
        """Send what is due at this pulse."""

    @abstractmethod
    def republish(self, contract: Contract, minute_ms: int, at_ms: int) -> None:
        """Send a corrected minute to those who listen to the contract's minutes."""

    @abstractmethod
    async def received(self, client: ClientT, text: str) -> None:
        """Answer a client's message."""

    @abstractmethod
    def frame(self, client: ClientT, stream: str, data: bytes) -> bytes:
        """A stream's message as this client gets it."""

    @abstractmethod
    def connected(
        self, socket: web.WebSocketResponse, request: web.Request, now_ms: int
    ) -> ClientT:
        """A new connection, as a client of this exchange."""

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Hold one WebSocket connection until it ends."""
        refusal = self._refusal(request)
        if refusal is not None:
            self.stats.handshakes_refused += 1
            return refusal
        socket = web.WebSocketResponse(autoping=False, compress=False, timeout=2.0)
        await socket.prepare(request)
        client = self.connected(socket, request, self.clock.now_ms())
        self.clients.add(client)
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(client.write())
                keeper = tasks.create_task(self.keep(client))
                self.opened(client, request)
                await self._read(client)
                keeper.cancel()
                if not client.closing:
                    writer.cancel()
        except* ConnectionError as lost:
            log.debug("client_lost", exchange=self.name, cause=str(lost.exceptions[0]))
        finally:
            self.clients.discard(client)
            self.stats.slow_clients += client.overrun
            for stream in client.streams:
                self._listeners[stream].discard(client)
        return socket

    @abstractmethod
    def opened(self, client: ClientT, request: web.Request) -> None:
        """Begin the streams that the address names."""

    @abstractmethod
    async def keep(self, client: ClientT) -> None:
        """Do what the exchange does on its own while a connection lives: pings, cuts."""

    async def _read(self, client: ClientT) -> None:
        async for message in client.socket:
            if message.type is WSMsgType.PING:
                await client.socket.pong(message.data)
            elif message.type is WSMsgType.PONG:
                client.ponged_ms = self.clock.now_ms()
            elif message.type is WSMsgType.TEXT:
                self.stats.messages_received += 1
                client.heard_ms = self.clock.now_ms()
                await self.received(client, message.data)

    def _refusal(self, request: web.Request) -> web.Response | None:
        now_ms = self.clock.now_ms()
        self.stats.handshakes += 1
        self.stats.recent_handshakes.admit(now_ms)
        window = self._handshakes.setdefault(
            request.remote or "", SlidingWindow(self.handshake_limit, 300_000)
        )
        if not window.admit(now_ms):
            return web.Response(status=self.handshake_refusal)
        fault = self.faults.take(RefuseHandshakes, self.name, now_ms)
        if fault is None:
            return None
        retry_after_s = fault.retry_after_s
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        return web.Response(status=fault.status, headers=headers)

    def answer(self, client: ClientT, frame: bytes) -> None:
        """Send an acknowledgement or a pong."""
        if not self.faults.mute(self.name, self.clock.now_ms()):
            self._send(client, frame)

    def listen(self, client: ClientT, stream: str) -> None:
        self._listeners[stream].add(client)

    def leave(self, client: ClientT, stream: str) -> None:
        self._listeners[stream].discard(client)

    def heard(self) -> list[str]:
        """The streams that somebody listens to."""
        return [stream for stream, clients in self._listeners.items() if clients]

    def publish(self, stream: str, contract: Contract | None, data: bytes, at_ms: int) -> None:
        """Send to all who listen, unless a fault silences it."""
        if self.faults.silenced(self.name, contract, stream, at_ms):
            return
        overtaken = self._overtaken.pop(stream, None)
        for message in (data,) if overtaken is None else (data, overtaken):
            for client in self._listeners[stream]:
                self._send(client, self.frame(client, stream, message))

    def publish_to(
        self, client: ClientT, stream: str, contract: Contract, data: bytes, at_ms: int
    ) -> None:
        """Likewise to one client."""
        if not self.faults.silenced(self.name, contract, stream, at_ms):
            self._send(client, self.frame(client, stream, data))

    def publish_closing(self, stream: str, contract: Contract, data: bytes, at_ms: int) -> None:
        """Publish the message that closes a kline, as the faults want it."""
        fault = self.faults.take_on(ClosingKline, self.name, contract, at_ms)
        if fault is None:
            self.publish(stream, contract, data, at_ms)
        elif fault.action == "duplicate":
            self.publish(stream, contract, data, at_ms)
            self.publish(stream, contract, data, at_ms)
        elif fault.action == "delay":
            self._held.append((at_ms + round(fault.delay_s * 1000), stream, data))
        elif fault.action == "reorder":
            self._overtaken[stream] = data

    def pulse(self, at_ms: int) -> None:
        """Send what is due at this pulse, and cut the connections that are."""
        held, self._held = self._held, []
        for entry in held:
            if entry[0] > at_ms:
                self._held.append(entry)
            else:
                self.publish(entry[1], None, entry[2], at_ms)
        self.step(at_ms)
        self._cut_old(at_ms)

    def close_all(self, code: int, reason: str = "") -> None:
        """Close every connection; 1006 resets them."""
        for client in list(self.clients):
            client.close(code, reason)

    def send_all(self, frame: bytes) -> None:
        """Send a frame to every connection, as it is."""
        for client in self.clients:
            self._send(client, frame)

    def cut_at(self, at_ms: int) -> None:
        """Close every connection then."""
        self._cut_ms = at_ms

    def _cut_old(self, at_ms: int) -> None:
        if self._cut_ms is not None and at_ms >= self._cut_ms:
            self._cut_ms = None
            self.close_all(WSCloseCode.GOING_AWAY)
        fault = self.faults.current(Lifetime, self.name, at_ms)
        age_s = self.lifetime_s if fault is None else fault.age_s
        if age_s is not None:
            for client in list(self.clients):
                if at_ms - client.opened_ms >= age_s * 1000:
                    client.close(WSCloseCode.GOING_AWAY)

    def _send(self, client: ClientT, frame: bytes) -> None:
        self.stats.messages_sent += 1
        client.send(frame)
