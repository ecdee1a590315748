"""One opening of a lane: a connection from its handshake to its end, and how it ended.

It ends by itself, by the peer or by our verdict that it is silent. That it should be left while it
still delivers is only said: leaving it is for the supervisor, who first opens another.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from ingest.backoff import Uniform
from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.lanes import Lane
from ingest.liveness import Doubt, Liveness
from marketdata.errors import ExchangeUnavailable, RateLimited

log = structlog.get_logger()

NOTICE_JITTER_S = 5.0
LIFETIME_JITTER_S = 60.0
RAW_KEPT = 500
_LOOK_S = 1.0


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


class LaneFeed(Protocol):
    """What supervision needs of the feed that a lane belongs to."""

    id: str
    bad_messages: BadMessages

    def connection(self, lane: Lane) -> FeedConnection:
        """A connection that isn't open yet."""

    async def subscribe(self, connection: FeedConnection) -> None:
        """Ask for the lane's topics, where that isn't done by the address."""

    def subscribed(self, connection: FeedConnection) -> bool:
        """Whether all that was asked for has been answered."""

    async def message_handler(
        self, msg: bytes | str, conn: FeedConnection, timestamp: float
    ) -> str | None:
        """Emit what a message says; the kind of data that it was, None if it was none."""

    async def keep_alive(self, connection: FeedConnection) -> None:
        """Send what the exchange wants to hear from an idle client."""


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended."""

    cause: str
    refused: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Leaving:
    """Why a connection that still delivers is to be left; not `planned` if something is missing.

    One that is `doubted` may have died, or have nothing to deliver.
    """

    cause: str
    planned: bool = True
    doubted: bool = False


class Opening:
    """One connection of a lane, from `start` to its end.

    Parameters
    ----------
    doubt
        The lane's, shared by its openings.
    news
        Called with this at each change of what the attributes say.

    Attributes
    ----------
    liveness
        None until the handshake is done.
    opened_ms, last_data_ms
        Wall time, None before.
    proven
        It has delivered for more than a moment.
    complete
        Everything that the lane must bring has come.
    leaving
        Set once it is to be left.
    end
        Set once it is of no use any more; its socket may take a moment longer to close.
    """

    def __init__(
        self,
        feed: LaneFeed,
        lane: Lane,
        clock: Clock,
        uniform: Uniform,
        doubt: Doubt,
        news: Callable[[Opening], None],
    ) -> None:
        self.lane = lane
        self.started_ms = clock.monotonic_ms()
        self.liveness: Liveness | None = None
        self.opened_ms: int | None = None
        self.last_data_ms: int | None = None
        self.proven = False
        self.complete = False
        self.leaving: Leaving | None = None
        self.end: End | None = None
        self._feed = feed
        self._connection = feed.connection(lane)
        self._clock = clock
        self._uniform = uniform
        self._doubt = doubt
        self._news = news
        self._leave_ms: int | None = None
        self._leave_cause = ""
        self._task: asyncio.Task[None] | None = None

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Open it, in a task of its own."""
        self._task = tasks.create_task(self._run())

    def leave(self, end: End) -> None:
        """Close it politely, in that task."""
        self.end = self.end or end
        self._connection.tell_closed(self.end.cause)
        if self._task is not None:
            self._task.cancel()

    @property
    def delivers(self) -> bool:
        """Whether any data has come."""
        return self.liveness is not None and self.liveness.first_ms is not None

    @property
    def is_silent(self) -> bool:
        """Whether it is open and no data has come."""
        return self.liveness is not None and self.liveness.first_ms is None

    def as_good_as(self, other: Opening) -> bool:
        """Whether leaving the other for it would lose nothing that the other brings."""
        if self.liveness is None or other.liveness is None:
            return False
        return self.liveness.as_good_as(other.liveness)

    async def _run(self) -> None:
        try:
            end = await self._connect()
        except RateLimited as refusal:
            end = End(str(refusal), refused=True, retry_after_s=refusal.retry_after_s)
        except ExchangeUnavailable as error:
            end = End(str(error), retry_after_s=error.retry_after_s)
        except Exception as defect:
            # Whatever breaks a lane costs it one connection, and the other lanes nothing.
            log.exception("lane_defect", exchange=self._feed.id, lane=self.lane.id)
            end = End(repr(defect))
        # Where we closed it ourselves, we know better why.
        self._finish(self.end or end)

    async def _connect(self) -> End:
        async with self._connection.connect():
            now_ms = self._clock.monotonic_ms()
            self.liveness = Liveness(self.lane, now_ms)
            self.opened_ms = self._clock.now_ms()
            if self.lane.lifetime_s is not None:
                early_s = self._uniform(0.0, LIFETIME_JITTER_S)
                self._leave_ms = now_ms + round((self.lane.lifetime_s - early_s) * 1000)
                self._leave_cause = (
                    f"the exchange ends connections after {self.lane.lifetime_s:g} s"
                )
            log.info("lane_up", exchange=self._feed.id, lane=self.lane.id)
            self._news(self)
            return await self._serve(self.liveness)

    async def _serve(self, liveness: Liveness) -> End:
        end = End("closed")
        async with asyncio.TaskGroup() as helpers:
            watch = helpers.create_task(self._watch(liveness))
            keep_alive = helpers.create_task(self._keep_alive())
            try:
                await self._feed.subscribe(self._connection)
                await self._read(liveness)
            except ExchangeUnavailable as error:
                end = End(str(error))
            watch.cancel()
            keep_alive.cancel()
        return end

    async def _read(self, liveness: Liveness) -> None:
        connection, feed, clock = self._connection, self._feed, self._clock
        while True:
            raw, received_s = await connection.receive()
            now_ms = clock.monotonic_ms()
            try:
                kind = await feed.message_handler(raw, connection, received_s)
            except ExchangeUnavailable:
                raise
            except Exception as error:
                # Whatever a message breaks, it costs only itself.
                feed.bad_messages.add(type(error).__name__, raw, error)
                kind = None
            if kind is None:
                liveness.frame(now_ms)
            else:
                self.last_data_ms = round(received_s * 1000)
                if liveness.data(kind, now_ms):
                    self._news(self)
            if not self.complete and liveness.complete and feed.subscribed(connection):
                self.complete = True
                self._news(self)

    async def _watch(self, liveness: Liveness) -> None:
        while not self._judge(liveness, self._clock.monotonic_ms()):
            await self._clock.sleep(_LOOK_S)
        await self._connection.close()

    def _judge(self, liveness: Liveness, now_ms: int) -> bool:
        """Draw the conclusions of what came; True if that is the end of it."""
        if not self.proven and liveness.proven:
            self.proven = True
            self._news(self)
        overdue = liveness.overdue(now_ms)
        if overdue is not None and liveness.silent(now_ms):
            # Said before it is closed: a peer that is gone takes seconds to say farewell to.
            self._finish(End(overdue))
            self._connection.tell_closed(overdue)
            return True
        notice = self._connection.notice
        if notice is not None and self._leave_cause != notice:
            # It still delivers, so it is left at a moment of its own, not with all others.
            self._leave_cause = notice
            self._leave_ms = now_ms + round(self._uniform(0.0, NOTICE_JITTER_S) * 1000)
        leaving: Leaving | None = None
        if overdue is not None:
            leaving = Leaving(overdue, planned=False)
        elif self._leave_ms is not None and now_ms >= self._leave_ms:
            leaving = Leaving(self._leave_cause)
        elif (doubt := self._doubt.about(liveness, now_ms)) is not None:
            leaving = Leaving(doubt, doubted=True)
        if leaving != self.leaving:
            self.leaving = leaving
            self._news(self)
        return False

    def _finish(self, end: End) -> None:
        if self.end is None:
            self.end = end
            self._connection.tell_closed(end.cause)
            self._news(self)

    async def _keep_alive(self) -> None:
        # That the connection is gone is for the reader to say.
        with suppress(ExchangeUnavailable):
            await self._feed.keep_alive(self._connection)
