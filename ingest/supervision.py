"""Keeping the connections to an exchange alive: one supervisor for each lane.

A lane is a planned connection: an address and what is subscribed on it. Its supervisor opens it,
reads it, replaces it when it ends, stays silent or is asked to leave, and never gives up. However a
connection ends, only the next attempt's time depends on it.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import structlog

from ingest.backoff import Backoff, Gate, Uniform
from ingest.clock import Clock
from ingest.connection import FeedConnection
from marketdata.errors import ExchangeUnavailable, RateLimited
from marketdata.schema import State

log = structlog.get_logger()

FIRST_DATA_S = 15.0
HEALTHY_S = 30.0
"""Data for so long, and the back-off starts anew."""
NOTICE_JITTER_S = 5.0
LIFETIME_JITTER_S = 60.0
RAW_KEPT = 500
_LOOK_S = 1.0

ANY_DATA = "data"


@dataclass(frozen=True, slots=True)
class Lane:
    """A planned connection.

    Parameters
    ----------
    silence_s
        For each kind of data how long none may come before the connection is replaced; the kind
        `data` is all of them together.
    lifetime_s
        When the exchange cuts connections of a certain age: how old it may become before that.
    """

    id: str
    url: str
    topics: tuple[str, ...]
    silence_s: Mapping[str, float]
    lifetime_s: float | None = None

    @property
    def streams(self) -> int:
        return len(self.topics)


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """What a lane is worth now; `last_error` is how its last connection failed."""

    id: str
    state: State
    opened_ms: int | None
    last_data_ms: int | None
    streams: int
    reconnects: int
    last_error: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class BadMessages:
    """Counts messages that could not be understood; the first of each kind is kept and logged.

    A kind is the name of an error class, or `refused` for a request that the exchange refuses.
    """

    def __init__(self, exchange: str) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self._exchange = exchange

    def add(self, kind: str, raw: object, cause: object) -> None:
        """Count one; `raw` is the message, or the part of it that is bad."""
        self.counts[kind] += 1
        if kind in self.first:
            return
        text = raw.decode(errors="replace") if isinstance(raw, bytes) else str(raw)
        self.first[kind] = text[:RAW_KEPT]
        log.warning(
            "bad_message",
            exchange=self._exchange,
            kind=kind,
            cause=str(cause),
            raw=self.first[kind],
        )


class Liveness:
    """Judges one connection by the data that it delivers; no clock, no socket.

    Only data counts: an exchange that answers pings and acknowledges subscriptions may still have
    forgotten them.

    >>> lane = Lane("a", "ws://x", ("t",), {"data": 90.0, "marks": 10.0})
    >>> liveness = Liveness(lane, opened_ms=0)
    >>> liveness.overdue(15_001)
    'no data within 15 s'
    >>> liveness.data("candles", 1_000)
    True
    >>> liveness.overdue(10_001)
    'no marks for 10 s'
    """

    def __init__(self, lane: Lane, opened_ms: int) -> None:
        self.opened_ms = opened_ms
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self._limits_s = lane.silence_s
        self._last_ms = dict.fromkeys(lane.silence_s, opened_ms)

    def data(self, kind: str, now_ms: int) -> bool:
        """Data of a kind has come; True if it is the first of this connection."""
        self._last_ms[kind] = self._last_ms[ANY_DATA] = self.last_ms = now_ms
        if self.first_ms is not None:
            return False
        self.first_ms = now_ms
        return True

    def overdue(self, now_ms: int) -> str | None:
        """What should have come and hasn't; None while all is well."""
        if self.first_ms is None:
            late = now_ms - self.opened_ms > FIRST_DATA_S * 1000
            return f"no data within {FIRST_DATA_S:g} s" if late else None
        for kind, limit_s in self._limits_s.items():
            if now_ms - self._last_ms[kind] > limit_s * 1000:
                return f"no {kind} for {limit_s:g} s"
        return None

    @property
    def healthy(self) -> bool:
        """Whether it has delivered long enough to believe in it."""
        if self.first_ms is None or self.last_ms is None:
            return False
        return self.last_ms - self.first_ms >= HEALTHY_S * 1000


class LaneFeed(Protocol):
    """What a supervisor needs of the feed that its lane belongs to."""

    id: str
    bad_messages: BadMessages

    def connection(self, lane: Lane) -> FeedConnection:
        """A connection that isn't open yet."""

    async def subscribe(self, connection: FeedConnection) -> None:
        """Ask for the lane's topics, where that isn't done by the address."""

    async def message_handler(
        self, msg: bytes | str, conn: FeedConnection, timestamp: float
    ) -> str | None:
        """Emit what a message says; the kind of data that it was, None if it was none."""

    async def keep_alive(self, connection: FeedConnection) -> None:
        """Send what the exchange wants to hear from an idle client."""


@dataclass(frozen=True, slots=True)
class _End:
    """How a connection ended."""

    cause: str
    planned: bool = False
    refused: bool = False
    retry_after_s: float | None = None


class _OpenConnection:
    """One open connection, read until it ends."""

    def __init__(
        self, feed: LaneFeed, lane: Lane, connection: FeedConnection, clock: Clock, uniform: Uniform
    ) -> None:
        now_ms = clock.now_ms()
        self.liveness = Liveness(lane, now_ms)
        self._feed = feed
        self._connection = connection
        self._clock = clock
        self._uniform = uniform
        self._verdict: _End | None = None
        self._leave_ms: int | None = None
        self._leave_cause = ""
        if lane.lifetime_s is not None:
            early_s = uniform(0.0, LIFETIME_JITTER_S)
            self._leave_ms = now_ms + round((lane.lifetime_s - early_s) * 1000)
            self._leave_cause = f"the exchange ends connections after {lane.lifetime_s:g} s"

    async def serve(self, on_first_data: Callable[[], None]) -> _End:
        """Subscribe and read; says how it ended."""
        end = _End("closed")
        async with asyncio.TaskGroup() as helpers:
            watch = helpers.create_task(self._watch())
            keep_alive = helpers.create_task(self._keep_alive())
            try:
                await self._feed.subscribe(self._connection)
                await self._read(on_first_data)
            except ExchangeUnavailable as error:
                end = _End(str(error))
            watch.cancel()
            keep_alive.cancel()
        # Where we closed it ourselves, we know better why.
        return self._verdict or end

    async def _read(self, on_first_data: Callable[[], None]) -> None:
        connection, feed = self._connection, self._feed
        while True:
            raw, received_s = await connection.receive()
            try:
                kind = await feed.message_handler(raw, connection, received_s)
            except ExchangeUnavailable:
                raise
            except Exception as error:
                # Whatever a message breaks, it costs only itself.
                feed.bad_messages.add(type(error).__name__, raw, error)
                continue
            if kind is not None and self.liveness.data(kind, round(received_s * 1000)):
                on_first_data()

    async def _watch(self) -> None:
        while (verdict := self._judge(self._clock.now_ms())) is None:
            await self._clock.sleep(_LOOK_S)
        self._verdict = verdict
        await self._connection.close()

    def _judge(self, now_ms: int) -> _End | None:
        overdue = self.liveness.overdue(now_ms)
        if overdue is not None:
            return _End(overdue)
        notice = self._connection.notice
        if notice is not None and self._leave_cause != notice:
            # It still delivers, so it is left at a moment of its own, not with all others.
            self._leave_cause = notice
            self._leave_ms = now_ms + round(self._uniform(0.0, NOTICE_JITTER_S) * 1000)
        if self._leave_ms is not None and now_ms >= self._leave_ms:
            return _End(self._leave_cause, planned=True)
        return None

    async def _keep_alive(self) -> None:
        # That the connection is gone is for the reader to say.
        with suppress(ExchangeUnavailable):
            await self._feed.keep_alive(self._connection)


class LaneSupervisor:
    """Owns one lane's connections and every task around them; `run` ends only by cancellation.

    Parameters
    ----------
    gate
        Shared by all lanes of the exchange.

    Attributes
    ----------
    delivering
        Set once the lane has delivered data.
    """

    def __init__(
        self,
        feed: LaneFeed,
        lane: Lane,
        gate: Gate,
        clock: Clock,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.lane = lane
        self.delivering = asyncio.Event()
        self._feed = feed
        self._gate = gate
        self._clock = clock
        self._uniform = uniform
        self._backoff = Backoff(uniform=uniform)
        self._current: _OpenConnection | None = None
        self._opened_ms: int | None = None
        self._last_data_ms: int | None = None
        self._openings = 0
        self._last_error: str | None = None

    async def run(self) -> None:
        """Keep the lane open."""
        while True:
            await self._pass_gate()
            end = await self._one_connection()
            pause_s = self._settle(end)
            if end.planned:
                log.info("lane_left", exchange=self._feed.id, lane=self.lane.id, cause=end.cause)
            else:
                log.warning(
                    "lane_down",
                    exchange=self._feed.id,
                    lane=self.lane.id,
                    cause=end.cause,
                    next_try_s=round(pause_s, 1),
                )
            await self._clock.sleep(pause_s)

    def status(self) -> LaneStatus:
        """What the lane is worth now."""
        current_ms = self._current.liveness.last_ms if self._current is not None else None
        return LaneStatus(
            id=self.lane.id,
            state=self._state(),
            opened_ms=self._opened_ms,
            last_data_ms=current_ms or self._last_data_ms,
            streams=self.lane.streams,
            reconnects=max(0, self._openings - 1),
            last_error=self._last_error,
        )

    def _state(self) -> State:
        if self._current is None:
            never_tried = self._openings == 0 and self._last_error is None
            return "starting" if never_tried else "disconnected"
        liveness = self._current.liveness
        if liveness.overdue(self._clock.now_ms()) is not None:
            return "late"
        return "starting" if liveness.first_ms is None else "live"

    async def _pass_gate(self) -> None:
        # Asked again each second: a handshake that proves itself meanwhile makes room.
        while (wait_ms := self._gate.wait_ms(self._clock.now_ms())) > 0:
            await self._clock.sleep(min(wait_ms, 1000) / 1000)

    async def _one_connection(self) -> _End:
        started_ms = self._clock.now_ms()
        self._gate.start(started_ms)
        connection = self._feed.connection(self.lane)
        try:
            async with connection.connect():
                self._current = _OpenConnection(
                    self._feed, self.lane, connection, self._clock, self._uniform
                )
                self._opened_ms = self._current.liveness.opened_ms
                self._openings += 1
                log.info("lane_up", exchange=self._feed.id, lane=self.lane.id)
                return await self._current.serve(lambda: self._prove(started_ms))
        except RateLimited as refusal:
            return _End(str(refusal), refused=True, retry_after_s=refusal.retry_after_s)
        except ExchangeUnavailable as error:
            return _End(str(error), retry_after_s=error.retry_after_s)
        except Exception as defect:
            # Whatever breaks a lane costs it one connection, and the other lanes nothing.
            log.exception("lane_defect", exchange=self._feed.id, lane=self.lane.id)
            return _End(repr(defect))

    def _prove(self, started_ms: int) -> None:
        self._gate.proved(started_ms)
        self.delivering.set()

    def _settle(self, end: _End) -> float:
        """Draw the conclusions of an end; seconds until the next attempt."""
        ended, self._current = self._current, None
        healthy = ended is not None and ended.liveness.healthy
        if ended is not None:
            self._last_data_ms = ended.liveness.last_ms or self._last_data_ms
        if healthy:
            self._backoff.reset()
        if end.planned and healthy:
            return 0.0
        self._last_error = end.cause
        wait_s = end.retry_after_s or 0.0
        if end.refused:
            self._gate.close(self._clock.now_ms() + round(wait_s * 1000))
        return max(self._backoff.next_s(), wait_s)
