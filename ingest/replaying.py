"""`ingest replay`: a capture's bytes through the whole pipeline, at the times of their arrival.

The same feed, inbox, pipeline, outbox and sink as live; only the sockets are missing and the clock
shows the time at which each message came. It is lived through second by second, silence too, so
that whatever live judges by time is judged here in the same way. The outbox of a replay lies beside
its store.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from ingest.backends import InboxBackend
from ingest.budget import Budgets
from ingest.capture import INTERVALS, SELECTED, Capture, Frame, open_captures
from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.exchanges import EXCHANGES
from ingest.exchanges.base import SupervisedFeed
from ingest.exchanges.rest_base import ExchangeRest
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.incident import Incident
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.sinks.sqlite import SqliteSink
from ingest.ticks import Thinner
from marketdata.errors import BadMessage, ConfigError, Fault
from marketdata.pairs import Catalogue, Market
from marketdata.schema import Channel

TICKS_EVERY_MS = 1_000
PARCEL_ROWS = 5_000
OUTBOX_BYTES = 2**32
SECOND_MS = 1_000
PAUSE_MS = 86_400_000
"""Of a longer time without a line only so much is lived through: the capture itself paused."""


class _Selected(BaseModel):
    """What was collected; see `capture.SELECTED`."""

    pairs: tuple[str, ...]
    channels: Annotated[tuple[Channel, ...], Field(min_length=1)]


_HOURS = TypeAdapter(dict[str, Annotated[float, Field(gt=0, lt=10_000)]])


class Observer(Protocol):
    """Who judges by time and connections: freshness, the ledger of gaps.

    Connections have their names in the capture: `EXCHANGE.ws.LANE`, and `EXCHANGE.ws.LANE~2` where
    another of the lane was open still when it was opened.
    """

    async def on_second(self, now_ms: int) -> None:
        """A second of the capture's time is over; what came in it is committed."""

    def on_open(self, connection: str) -> None:
        """A connection is open now, or when the window begins."""

    def on_close(self, connection: str, cause: str) -> None:
        """A connection ended now, or an attempt at it failed."""


class Unobserved:
    """Judges nothing."""

    async def on_second(self, now_ms: int) -> None: ...

    def on_open(self, connection: str) -> None: ...

    def on_close(self, connection: str, cause: str) -> None: ...


class ReplayClock(Clock):
    """A clock that shows what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.time_ms = 0

    def now_ms(self) -> int:
        return self.time_ms


class Replay:
    """One exchange's capture on its way; an observer finds here what it needs of the pipeline.

    Parameters
    ----------
    since_ms, until_ms
        The window: since <= time < until. What came before it is used for what connections and
        their merged tickers were at its beginning, and stored nowhere.
    """

    def __init__(
        self, capture: Capture, outbox: Outbox, since_ms: int | None, until_ms: int | None
    ) -> None:
        self.exchange = capture.exchange
        self.clock = ReplayClock()
        self.inbox = Inbox()
        self.hot = HotState()
        self.pipeline = Pipeline(self.inbox, outbox, self.hot, Thinner(TICKS_EVERY_MS), self.clock)
        adapter = EXCHANGES[capture.exchange]
        rest = adapter.rest(Budgets(), self.clock, None, None)
        known = _Known.of(capture, rest, until_ms)
        channels = known.channels or adapter.channels
        self.feed: SupervisedFeed = adapter.feed(
            known.collected(self.exchange, rest.interval_hours),
            channels,
            dict.fromkeys(channels, InboxBackend(self.inbox)),
            self.clock,
        )
        self._intervals = known.intervals
        self.changed = self.hot.subscribe()
        self._capture = capture
        self._since_ms = since_ms
        self._until_ms = until_ms
        self._connections: dict[str, FeedConnection] = {}
        self._open: set[str] = set()
        self._second_ms = 0
        self._counts: Counter[str] = Counter()

    async def run(self, observer: Observer) -> Mapping[str, int]:
        """Live through the window; rows by measurement, and what of the capture wasn't used."""
        for frame in self._capture.frames(self._since_ms, merging=self.feed.merges):
            if self._since_ms is not None and frame.received_ms < self._since_ms:
                await self._before(frame)
                continue
            if not self._second_ms:
                self._begin(
                    frame.received_ms if self._since_ms is None else self._since_ms, observer
                )
            if self._until_ms is not None and frame.received_ms >= self._until_ms:
                await self._pass(self._until_ms, observer)
                break
            await self._pass(frame.received_ms, observer)
            self._follow_intervals(frame.received_ms)
            self.clock.time_ms = frame.received_ms
            await self._live(frame, observer)
        await self.pipeline.finish()
        await self.feed.shutdown()
        self._counts["damaged"] = self._capture.damaged
        return self._counts + self.pipeline.counts

    async def _before(self, frame: Frame) -> None:
        """What came before the window leaves its traces in the connection only."""
        self.clock.time_ms = frame.received_ms
        if frame.text is None:
            self._told(frame, Unobserved())
        elif self.feed.merges:
            await self._handle(frame.text, frame)
            self.inbox.drain()
        self._counts.clear()

    def _begin(self, time_ms: int, observer: Observer) -> None:
        self.clock.time_ms = time_ms
        self._second_ms = time_ms - time_ms % SECOND_MS
        for connection in sorted(self._open):
            observer.on_open(connection)

    async def _pass(self, time_ms: int, observer: Observer) -> None:
        """Live through the seconds up to a time."""
        first_ms = max(self._second_ms + SECOND_MS, time_ms // SECOND_MS * SECOND_MS - PAUSE_MS)
        for second_ms in range(first_ms, time_ms + 1, SECOND_MS):
            self.clock.time_ms = self._second_ms = second_ms
            await self.pipeline.step()
            await observer.on_second(second_ms)

    async def _live(self, frame: Frame, observer: Observer) -> None:
        if frame.text is None:
            self._told(frame, observer)
            return
        if frame.connection not in self._open:
            self._opened(frame.connection, observer)
        self._counts["messages"] += 1
        await self._handle(frame.text, frame)

    async def _handle(self, text: str, frame: Frame) -> None:
        connection = self._connection(frame)
        try:
            await self.feed.message_handler(text, connection, frame.received_ms / 1000)
        except Exception as error:  # as live: a message costs only itself
            self.feed.bad_messages.add(type(error).__name__, text, error)
            self._counts["unused"] += 1

    def _follow_intervals(self, time_ms: int) -> None:
        while self._intervals and self._intervals[0][0] <= time_ms:
            _, hours = self._intervals.popleft()
            self.feed.set_intervals(
                {
                    market.pair: hours[market.id]
                    for market in self.feed.markets
                    if market.id in hours
                }
            )

    def _told(self, frame: Frame, observer: Observer) -> None:
        """Follow what is told of a connection."""
        name, (what, _, rest) = frame.connection, frame.told.partition(": ")
        if what == "lost":
            self._counts["lost"] += int(rest) if rest.isdecimal() and len(rest) <= 15 else 1
        elif what == "closed":
            self._closed(name, rest, observer)
        elif what in ("opened", "continued"):
            self._connection(frame)
            self._opened(name, observer)
        else:
            if name in self._open:
                self._closed(name, "its end was not captured", observer)
            self._connections.pop(name, None)
            self._connection(frame)

    def _connection(self, frame: Frame) -> FeedConnection:
        connection = self._connections.get(frame.connection)
        if connection is None:
            # What a connection has merged ends with it.
            connection = FeedConnection(frame.url, frame.connection, self.clock)
            self._connections[frame.connection] = connection
        return connection

    def _opened(self, connection: str, observer: Observer) -> None:
        if connection not in self._open:
            self._open.add(connection)
            observer.on_open(connection)

    def _closed(self, connection: str, cause: str, observer: Observer) -> None:
        self._open.discard(connection)
        self._connections.pop(connection, None)
        observer.on_close(connection, cause)


async def replay_capture(
    folder: Path,
    store: Path,
    *,
    since_ms: int | None = None,
    until_ms: int | None = None,
    observe: Callable[[Replay], Observer] | None = None,
) -> dict[str, Mapping[str, int]]:
    """Replay every exchange of a capture into a SQLite store; counts by exchange.

    Parameters
    ----------
    since_ms, until_ms
        The window; left out, all that the capture has.
    observe
        Makes the observer of each exchange; left out, one that enters the gaps into the store.

    Raises
    ------
    ConfigError
        The folder holds no capture of an exchange that is known here.
    """
    captures = open_captures(folder, EXCHANGES)
    sink = SqliteSink(store)
    outbox = await Outbox.open(store.with_name(f"{store.name}.outbox"), OUTBOX_BYTES)
    counts: dict[str, Mapping[str, int]] = {}
    try:
        for capture in captures:
            replay = Replay(capture, outbox, since_ms, until_ms)
            observer = (observe or _incident)(replay)
            counts[capture.exchange] = await replay.run(observer)
            await _deliver(outbox, sink)
            await sink.update(replay.hot.take(replay.changed))
    finally:
        await outbox.close()
        await sink.close()
    return counts


def _incident(replay: Replay) -> Observer:
    return Incident(replay.exchange, replay.feed, replay.pipeline)


@dataclass(slots=True)
class _Known:
    """What was known of an exchange before a window's end; later answers replace earlier ones.

    A market that is listed or selected within the window is in it, and one that goes too.
    """

    markets: dict[tuple[str, str], Market] = field(default_factory=dict)
    pairs: set[str] = field(default_factory=set)
    channels: tuple[Channel, ...] | None = None
    intervals: deque[tuple[int, dict[str, float]]] = field(default_factory=deque)
    """Funding intervals by exchange id, and since when."""

    @classmethod
    def of(cls, capture: Capture, rest: ExchangeRest, until_ms: int | None) -> _Known:
        known = cls()
        for answer in capture.answers():
            if known.markets and until_ms is not None and answer.received_ms >= until_ms:
                break  # without any, better late names than none
            if isinstance(answer.value, dict):
                try:
                    known._add(answer.received_ms, answer.url, answer.value, rest)
                except ValidationError:
                    capture.damaged += 1
        if not known.markets:
            valid = "the exchange's list of markets"
            fault = Fault(f"{capture.exchange}.*", None, "no metadata", valid)
            raise ConfigError("the capture", [fault])
        return known

    def _add(self, received_ms: int, url: str, value: dict[str, Any], rest: ExchangeRest) -> None:
        if url.endswith(INTERVALS):
            self.intervals.append((received_ms, _HOURS.validate_python(value)))
        elif url.endswith(SELECTED):
            selected = _Selected.model_validate(value)
            self.pairs.update(selected.pairs)
            self.channels = selected.channels
        else:
            with suppress(BadMessage):  # something else that REST said
                told = rest.markets(value).markets
                self.markets.update({(market.kind, market.id): market for market in told})

    def collected(self, exchange: str, otherwise: float | None) -> list[Market]:
        """The markets, with the intervals that were told first."""
        catalogue = Catalogue(exchange, self.markets.values())
        if self.intervals:
            catalogue = catalogue.with_intervals(self.intervals[0][1], otherwise)
        return [
            market
            for market in catalogue.markets
            if self.channels is None or market.pair in self.pairs
        ]


async def _deliver(outbox: Outbox, sink: SqliteSink) -> None:
    while (parcel := await outbox.take(PARCEL_ROWS)) is not None:
        await outbox.settle(parcel, await sink.write(parcel.batch))
