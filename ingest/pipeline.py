"""The way of every event: inbox → candles and ticks → outbox → publishers.

One task folds what the feeds have put in the inbox into rows and commits them to the outbox; a
repair goes the same way. Folding and committing happen under one lock, so that two versions of a
row reach the outbox in the order in which they were made.

While the outbox can't be written (its disk is full), folding goes on, so that newest values stay
fresh and nobody mistakes our disk for a silent exchange. Rows are held in memory and committed once
there is room; if even those reach their bound, nothing more is folded, and the inbox decides.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import structlog

from ingest.candles import CandleBook
from ingest.clock import Clock
from ingest.held import Held
from ingest.hot import HotState, PairKey
from ingest.inbox import Inbox
from ingest.model import Event, Kline
from ingest.outbox import Outbox
from ingest.ticks import Thinner, Tick
from marketdata.errors import TransientError
from marketdata.schema import MINUTE_MS, Batch, Ohlcv, Row

log = structlog.get_logger()

LINGER_S = 0.05
"""How long events collect before they are committed: one fsync for many, well inside 200 ms."""
IDLE_STEP_S = 1.0
APPEND_RETRY_S = 1.0

_MEASUREMENT = {"FundingRate": "funding_rate", "MarkPrice": "mark_price", "LastPrice": "last_price"}

Listener = Callable[[Sequence[Ohlcv]], None]
Observer = Callable[[Event, int], None]


class Pipeline:
    """Turns events into rows and commits them.

    Parameters
    ----------
    listeners
        Called with the 3-minute candles of each commit, after it is on disk.

    `observers` are told of every event of their exchange and when it was received.
    `counts` has `events`, `too_old` (a stream's minute before the horizon: repair brings it) and
    rows by measurement. `turns` rises with each commit, and with each try that the disk refuses.
    `error` says why the outbox can't be written now, `down_since_ms` since when.
    """

    def __init__(
        self,
        inbox: Inbox,
        outbox: Outbox,
        hot: HotState,
        thinner: Thinner,
        clock: Clock,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.turns = 0
        self.error: str | None = None
        self.down_since_ms: int | None = None
        self.observers: dict[str, Observer] = {}
        self.books: defaultdict[PairKey, CandleBook] = defaultdict(CandleBook)
        self._inbox = inbox
        self._outbox = outbox
        self._hot = hot
        self._thinner = thinner
        self._clock = clock
        self._listeners = listeners
        self._held = Held()
        self._not_before_ms = 0
        self._commit = asyncio.Lock()

    @property
    def dropped(self) -> Counter[str]:
        """Rows that were dropped because the outbox couldn't be written."""
        return self._held.dropped

    async def run(self) -> None:
        """Fold and commit until cancelled; `finish` commits what is left."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._fold_events(), name="pipeline.events")
            tasks.create_task(self._release_ticks(), name="pipeline.ticks")

    async def finish(self) -> None:
        """Commit everything that has arrived, and the ticks that still wait for their window."""
        async with self._commit:
            rows = self._fold(self._inbox.drain())
            _add_ticks(rows, self._thinner.rest())
            self._not_before_ms = 0
            await self._store(rows)
            if self._held.rows:
                log.error(
                    "rows_not_kept",
                    rows=self._held.rows,
                    cause=self.error,
                    next="the next start fetches what is missing, but for ticks",
                )

    async def put_rows(self, rows: Batch) -> None:
        """Commit rows as they are, behind those that are on their way."""
        await self._room()
        async with self._commit:
            await self._store(rows)

    async def step(self) -> None:
        """Commit what has arrived, and the ticks whose window is over."""
        async with self._commit:
            rows: dict[str, list[Row]] = {}
            if not self._held.is_full:
                rows = self._fold(self._inbox.drain())
                _add_ticks(rows, self._thinner.due(self._clock.now_ms()))
            await self._store(rows)
            self.turns += 1

    async def repair(
        self,
        key: PairKey,
        statements: Iterable[Kline],
        minutes: Iterable[Ohlcv],
        candles: Iterable[Ohlcv],
    ) -> None:
        """Apply minutes that came by REST, where these rows are stored of their range."""
        await self._room()
        async with self._commit:
            book = self.books[key]
            changes = book.merge(statements, minutes, candles)
            book.prune(self._clock.now_ms())
            await self._store({"ohlcv_1m": [*changes.minutes], "ohlcv_3m": [*changes.candles]})

    async def _fold_events(self) -> None:
        while True:
            await self._inbox.wait()
            await self._clock.sleep(LINGER_S)
            await self.step()

    async def _release_ticks(self) -> None:
        # Without it the last tick of a pair that falls silent would wait for the next one.
        while True:
            await self._clock.sleep(IDLE_STEP_S)
            await self.step()

    def _fold(self, events: Sequence[tuple[Event, int]]) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = defaultdict(list)
        closed: dict[PairKey, list[Kline]] = defaultdict(list)
        self.counts["events"] += len(events)
        for event, received_ms in events:
            self._hot.put(event, received_ms)
            observe = self.observers.get(event.exchange)
            if observe is not None:
                observe(event, received_ms)
            if not isinstance(event, Kline):
                _add_ticks(rows, self._thinner.put(event))
            elif event.closed:
                closed[event.exchange, event.symbol].append(event)
        for key, statements in closed.items():
            book = self.books[key]
            oldest_ms = self._clock.now_ms() - book.horizon_ms
            recent = [minute for minute in statements if minute.minute_ms >= oldest_ms]
            self.counts["too_old"] += len(statements) - len(recent)
            changes = book.apply(recent)
            rows["ohlcv_1m"] += changes.minutes
            rows["ohlcv_3m"] += changes.candles
            book.prune(self._clock.now_ms() - MINUTE_MS)
        return rows

    async def _store(self, rows: Batch) -> None:
        """Commit these rows behind those that are held; all are held on if that fails."""
        self._held.add(rows)
        batch = self._held.batch
        if not batch or self._clock.monotonic_ms() < self._not_before_ms:
            return
        try:
            await self._outbox.append(batch)
        except TransientError as error:
            self._fell(error)
            return
        self._held.clear()
        self._rose(batch)
        for measurement, some in batch.items():
            self.counts[measurement] += len(some)
        candles = [row for row in batch.get("ohlcv_3m", ()) if isinstance(row, Ohlcv)]
        for listener in self._listeners if candles else ():
            listener(candles)

    def _fell(self, error: TransientError) -> None:
        self._held.thin()
        self._not_before_ms = self._clock.monotonic_ms() + int(APPEND_RETRY_S * 1000)
        self.counts["append_retries"] += 1
        self.turns += 1
        if self.error is None:
            self.down_since_ms = self._clock.now_ms()
            log.error("outbox_unavailable", cause=str(error), next_try_s=APPEND_RETRY_S)
        self.error = str(error)

    def _rose(self, batch: Batch) -> None:
        if self.error is not None:
            log.info("outbox_live", held_rows=sum(map(len, batch.values())))
        self.error = self.down_since_ms = None
        self._not_before_ms = 0

    async def _room(self) -> None:
        """Until rows may be added: those who fetch by REST can wait."""
        while self._held.is_full:
            await self._clock.sleep(APPEND_RETRY_S)


def _add_ticks(rows: dict[str, list[Row]], ticks: Iterable[Tick]) -> None:
    for tick in ticks:
        rows[_MEASUREMENT[type(tick).__name__]].append(tick)
