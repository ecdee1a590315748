"""What both simulated exchanges share: connections, who listens to what, counters, and faults."""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Generic, TypeVar

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from ingest.clock import Clock
from ingest.simulator.faults import (
    CloseNew,
    ClosingKline,
    FaultBoard,
    Lifetime,
    Maintenance,
    Offline,
    RefuseHandshakes,
)
from ingest.simulator.limits import SlidingWindow
from ingest.simulator.market import Market
from ingest.simulator.stats import Stats
from ingest.simulator.universe import Contract

log = structlog.get_logger()

PULSE_MS = 250
"""Streams are looked at this often."""
_MOST_QUEUED = 20_000
"""Frames that wait for a slow client; with more it is cut off, as the exchanges do."""
_RESET = struct.pack("ii", 1, 0)


class Client:
    """One WebSocket connection: frames wait in a bounded queue that a task of its own empties."""

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, now_ms: int) -> None:
        self.socket = socket
        self.opened_ms = now_ms
        self.heard_ms = now_ms
        self.ponged_ms = now_ms
        self.streams: dict[str, None] = {}
        self.overrun = False
        self.stalled = False
        self.half_open = False
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
        if self._closing is not None or self.half_open:
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
        self._give_up()
        reset(self._request)

    def end(self) -> None:
        """Let TCP end in order, without a closing frame."""
        self._give_up()
        if self._request.transport is not None:
            self._request.transport.close()

    def stall(self, half_open: bool) -> None:
        """Deliver nothing more; when half open, read and answer nothing either."""
        self.stalled = True
        if half_open and self._request.transport is not None:
            self.half_open = True
            self._queue.clear()
            self._request.transport.pause_reading()

    def _give_up(self) -> None:
        self._closing = (WSCloseCode.ABNORMAL_CLOSURE, "")
        self._queue.clear()
        self._wake.set()

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


def _no_answer(request: web.Request) -> web.Response:
    """A reset; what is returned reaches nobody."""
    reset(request)
    return web.Response(status=503)


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
        at_once = self.faults.take(CloseNew, self.name, self.now_ms())
        socket = web.WebSocketResponse(autoping=False, compress=False, timeout=2.0)
        await socket.prepare(request)
        client = self.connected(socket, request, self.clock.now_ms())
        self.clients.add(client)
        try:
            async with asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(client.write())
                keeper = tasks.create_task(self.keep(client))
                self.opened(client, request)
                if at_once is not None:
                    client.close(at_once.code)
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

    def now_ms(self) -> int:
        """The exchange's own clock."""
        return self.clock.now_ms() + self.faults.skew_ms(self.name)

    def _refusal(self, request: web.Request) -> web.Response | None:
        self.stats.handshake(self.clock.now_ms())
        now_ms = self.now_ms()
        if self.faults.take(Offline, self.name, now_ms) is not None:
            return _no_answer(request)
        if self.faults.take(Maintenance, self.name, now_ms) is not None:
            return web.Response(status=503, text="Service Unavailable")
        window = self._handshakes.setdefault(
            request.remote or "", SlidingWindow(self.handshake_limit, 300_000)
        )
        if not window.admit(now_ms):
            return web.Response(status=self.handshake_refusal)
        fault = self.faults.take(RefuseHandshakes, self.name, now_ms)
        if fault is None:
            return None
        if fault.status is None:
            return _no_answer(request)
        retry_after_s = fault.retry_after_s
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        return web.Response(status=fault.status, headers=headers)

    def answer(self, client: ClientT, frame: bytes) -> None:
        """Send an acknowledgement or a pong."""
        if not self.faults.mute(self.name, self.now_ms()):
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
                if not client.stalled:
                    self._send(client, self.frame(client, stream, message))

    def publish_to(
        self, client: ClientT, stream: str, contract: Contract, data: bytes, at_ms: int
    ) -> None:
        """Likewise to one client."""
        if not client.stalled and not self.faults.silenced(self.name, contract, stream, at_ms):
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
        """Send what is due at this pulse, and cut the connections that are.

        `at_ms` is the simulator's time; what is sent tells that of the exchange.
        """
        cut_ms, at_ms = at_ms, at_ms + self.faults.skew_ms(self.name)
        held, self._held = self._held, []
        for entry in held:
            if entry[0] > at_ms:
                self._held.append(entry)
            else:
                self.publish(entry[1], None, entry[2], at_ms)
        self.step(at_ms)
        self._cut_old(cut_ms)

    def close_all(self, code: int, reason: str = "", *, in_order: bool = False) -> None:
        """Close every connection; 1006 resets them, or lets TCP end in order."""
        for client in list(self.clients):
            if in_order and code == WSCloseCode.ABNORMAL_CLOSURE:
                client.end()
            else:
                client.close(code, reason)

    def stall_all(self, half_open: bool) -> None:
        """Let the connections that are open now deliver nothing more."""
        for client in self.clients:
            client.stall(half_open)

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
        fault = self.faults.current(Lifetime, self.name, self.now_ms())
        age_s = self.lifetime_s if fault is None else fault.age_s
        if age_s is not None:
            for client in list(self.clients):
                if at_ms - client.opened_ms >= age_s * 1000 and not client.half_open:
                    client.close(WSCloseCode.GOING_AWAY)

    def _send(self, client: ClientT, frame: bytes) -> None:
        self.stats.messages_sent += 1
        client.send(frame)
