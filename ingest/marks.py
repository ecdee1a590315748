"""3-minute candles of the mark price: from the stream where it misses no mark, else by REST.

A `MarkBook` folds the marks of one pair into candles, whatever the order in which they come. It
can't see the marks that didn't come, so a candle counts as complete only if no two marks in a row,
nor a mark and the candle's edge, are further apart than the stream's cadence explains. All others
are holes: `MarkRepairer` fetches them in whole ranges, the newest first, and also those of the
lookback that the store lacks. What another collector has written by then isn't fetched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from ingest.backoff import Backoff
from ingest.candles import candle_open_ms
from ingest.clock import Clock
from ingest.exchanges.rest_base import ExchangeRest
from ingest.holes import Hole, merge_holes, split_hole
from ingest.logs import OncePerOutage
from ingest.outbox import Outbox
from ingest.settlements import RowWriter
from ingest.stored import StoredRows, StoreFirst, rows_so_far
from marketdata.errors import TerminalError, TransientError
from marketdata.pairs import Market
from marketdata.schema import CANDLE_MS, GapState, Mark3m, MarkPrice, Row

log = structlog.get_logger()

LARGEST_STEP_MS = 5_500
"""Marks come each second; where one hasn't changed, Bybit says so again after 5 s and a push."""
CLOSE_AFTER_MS = 10_000
"""A candle without a later mark is over when so much has passed since its end."""
ASK_AFTER_MS = 3_000
"""How long after its end an exchange may need until it has the candle."""
ASK_AGAIN_MS = 10_000
LOST_AFTER_MS = 120_000
"""A candle that the exchange has no row for this long after its end won't come any more."""
REFUSED_S = 600.0
PAGE_MINUTES = 1_497
"""One call of Binance, half of one of Bybit."""
LOOK_S = 1.0
WORKERS = 2


class MarkBook:
    """Folds the marks of one pair into 3-minute candles; pure, in UTC milliseconds.

    Every candle from that of `since_ms` on comes out once: made of the stream, or as a hole.

    >>> book = MarkBook("X", "A/B:B", since_ms=0)
    >>> for second in range(361):
    ...     book.feed(second * 1000, 5.0 + second)
    >>> [(candle.time, candle.open, candle.close) for candle in book.candles]
    [(0, 5.0, 184.0), (180000, 185.0, 364.0)]
    >>> book.close(now_ms=1_090_000)
    >>> book.holes
    [Hole(start_ms=360000, end_ms=1080000)]
    """

    __slots__ = (
        "_end_ms", "_exchange", "_first", "_first_ms", "_high", "_last", "_last_ms", "_low",
        "_start_ms", "_step_ms", "_symbol", "candles", "holes",
    )  # fmt: skip

    def __init__(self, exchange: str, symbol: str, since_ms: int) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self.candles: list[Mark3m] = []
        """Complete candles, until `take` fetches them."""
        self.holes: list[Hole] = []
        """Ranges of whole candles in which a mark is missing, likewise."""
        self._start_ms = self._end_ms = self._first_ms = self._last_ms = self._step_ms = 0
        self._first = self._high = self._low = self._last = 0.0
        self._begin(candle_open_ms(since_ms))

    def feed(self, time_ms: int, price: float) -> None:
        """Take in one mark; runs a thousand times a second."""
        if time_ms >= self._end_ms:
            self._roll(candle_open_ms(time_ms))
        elif time_ms < self._start_ms:
            return  # its candle is closed: complete without it, or a hole
        if time_ms > self._last_ms:
            step_ms = time_ms - self._last_ms
            if step_ms > self._step_ms:
                self._step_ms = step_ms
            self._last_ms, self._last = time_ms, price
        if time_ms < self._first_ms:
            self._first_ms, self._first = time_ms, price
        if price > self._high:
            self._high = price
        if price < self._low:
            self._low = price

    def close(self, now_ms: int) -> None:
        """Close the candles that are over, though no later mark has come."""
        start_ms = candle_open_ms(now_ms - CLOSE_AFTER_MS)
        if start_ms > self._start_ms:
            self._roll(start_ms)

    def take(self) -> tuple[list[Mark3m], list[Hole]]:
        """What has closed since the last call: complete candles, and holes, ascending."""
        taken = self.candles, self.holes
        self.candles, self.holes = [], []
        return taken

    @property
    def start_ms(self) -> int:
        """Where the candle in progress began."""
        return self._start_ms

    def _begin(self, start_ms: int) -> None:
        self._start_ms, self._end_ms = start_ms, start_ms + CANDLE_MS
        self._first_ms, self._last_ms = self._end_ms, start_ms
        self._first = self._last = 0.0
        self._high, self._low = 0.0, float("inf")
        self._step_ms = 0

    def _roll(self, start_ms: int) -> None:
        """Close the candle in progress and begin that of `start_ms`; those between are holes."""
        hole_ms = self._start_ms
        if self._complete():
            hole_ms = self._end_ms
            self.candles.append(
                Mark3m(
                    self._exchange, self._symbol, self._start_ms,
                    self._first, self._high, self._low, self._last, "stream",
                )
            )  # fmt: skip
        if hole_ms < start_ms:
            self.holes.append(Hole(hole_ms, start_ms))
        self._begin(start_ms)

    def _complete(self) -> bool:
        # The step to the first mark was counted from the start. Without any, none is complete.
        return (
            self._first_ms < self._end_ms
            and self._first_ms - self._start_ms <= LARGEST_STEP_MS
            and self._end_ms - self._last_ms <= LARGEST_STEP_MS
            and self._step_ms <= LARGEST_STEP_MS
        )


@dataclass(slots=True)
class _Followed:
    """One pair: its book, and by open time the candles that are fetched or given up."""

    market: Market
    book: MarkBook
    since_ms: int
    open: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    ask_ms: int = 0
    busy: bool = False
    scanned: bool = False


class MarkRepairer:
    """Keeps the mark candles of one exchange's contracts complete.

    `streamed` and `repaired` count candles that were written, `lost` those that can't be had.
    """

    def __init__(
        self,
        exchange: str,
        rest: ExchangeRest,
        stored: StoredRows,
        pipeline: RowWriter,
        outbox: Outbox,
        clock: Clock,
        *,
        lookback_ms: int,
        ahead_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self.streamed = 0
        self.repaired = 0
        self.lost = 0
        self._exchange = exchange
        self._rest = rest
        self._stored = stored
        self._store_first = StoreFirst(stored, outbox, clock)
        self._pipeline = pipeline
        self._outbox = outbox
        self._clock = clock
        self._lookback_ms = lookback_ms
        self._ahead_ms = ahead_ms
        self._followed: dict[str, _Followed] = {}
        self._work = asyncio.Condition()
        self._outage = OncePerOutage(log)

    @property
    def open(self) -> int:
        """How many candles are known to be missing."""
        return sum(len(followed.open) for followed in self._followed.values())

    def feed(self, mark: MarkPrice) -> None:
        """Take in one mark of the stream; runs a thousand times a second."""
        followed = self._followed.get(mark.symbol)
        if followed is not None:
            followed.book.feed(mark.time, mark.mark_price)

    def state(self, pair: str, start_ms: int, end_ms: int) -> GapState:
        """What has become of the candles that touch start_ms <= time < end_ms.

        `open` while one of them isn't there yet, `lost` if one can't be had, else `repaired`.
        """
        followed = self._followed.get(pair)
        if followed is None:
            return "open"
        opens = range(candle_open_ms(start_ms), end_ms, CANDLE_MS)
        if opens and opens[-1] >= followed.book.start_ms:
            return "open"
        if not followed.scanned or not followed.open.isdisjoint(opens):
            return "open"
        return "repaired" if followed.lost.isdisjoint(opens) else "lost"

    async def follow(self, markets: Mapping[str, Market]) -> None:
        """Keep the contracts among these complete from now on, the lookback included."""
        now_ms = self._now_ms()
        wanted = {pair: market for pair, market in markets.items() if market.kind != "spot"}
        async with self._work:
            for pair in self._followed.keys() - wanted.keys():
                del self._followed[pair]
            for pair, market in wanted.items():
                if pair in self._followed:
                    self._followed[pair].market = market
                else:
                    book = MarkBook(self._exchange, pair, now_ms)
                    self._followed[pair] = _Followed(market, book, candle_open_ms(now_ms))
            self._work.notify_all()

    async def run(self) -> None:
        """Fold, fetch and write until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name=f"marks.{self._exchange}.watch")
            tasks.create_task(self._scan(), name=f"marks.{self._exchange}.scan")
            for n in range(WORKERS):
                tasks.create_task(self._fetch(), name=f"marks.{self._exchange}.fetch.{n}")

    def _now_ms(self) -> int:
        """Candles close by the exchange's clock."""
        return self._clock.now_ms() + self._ahead_ms()

    async def _watch(self) -> None:
        """Write what the stream has completed, and note what it hasn't."""
        while True:
            await self._clock.sleep(LOOK_S)
            now_ms = self._now_ms()
            rows: list[Row] = []
            async with self._work:
                for followed in self._followed.values():
                    followed.book.close(now_ms)
                    candles, holes = followed.book.take()
                    rows += candles
                    for hole in holes:
                        followed.open.update(range(hole.start_ms, hole.end_ms, CANDLE_MS))
                self._work.notify_all()
            if rows:
                await self._pipeline.put_rows({"mark_3m": rows})
                self.streamed += len(rows)

    async def _scan(self) -> None:
        """Compare what is stored of each new pair's lookback with what should be."""
        backoff = Backoff(base_s=1.0, cap_s=30.0)
        while True:
            async with self._work:
                await self._work.wait_for(lambda: self._unscanned() is not None)
                followed = self._unscanned()
            if followed is None:
                continue
            try:
                missing = await self._past(followed)
            except TransientError as error:
                delay_s = backoff.next_s()
                log.warning("scan_waits_for_store", cause=str(error), next_try_s=delay_s)
                await self._clock.sleep(delay_s)
                continue
            backoff.reset()
            async with self._work:
                followed.open |= missing
                followed.scanned = True
                self._work.notify_all()

    def _unscanned(self) -> _Followed | None:
        return next((some for some in self._followed.values() if not some.scanned), None)

    async def _past(self, followed: _Followed) -> set[int]:
        market, end_ms = followed.market, followed.since_ms
        start_ms = candle_open_ms(max(end_ms - self._lookback_ms, market.listed_ms or 0))
        where = ("mark_3m", self._exchange, market.pair, start_ms, end_ms)
        present = await rows_so_far(Mark3m, self._stored, self._outbox, *where)
        return set(range(start_ms, end_ms, CANDLE_MS)) - {row.time for row in present}

    async def _fetch(self) -> None:
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        while True:
            async with self._work:
                await self._work.wait_for(lambda: self._newest() is not None)
                followed = self._newest()
                if followed is None:
                    continue
                followed.busy = True
            delay_s = 0.0
            try:
                await self._repair(followed, self._hole(followed))
            except TerminalError as error:
                pair = followed.market.pair
                log.error("marks_refused", pair=pair, cause=str(error), next_try_s=REFUSED_S)
                followed.ask_ms = self._now_ms() + int(REFUSED_S * 1000)
            except TransientError as error:
                delay_s = max(error.retry_after_s or 0.0, backoff.next_s())
                self._outage.failed(
                    "marks_wait", exchange=self._exchange, cause=str(error), next_try_s=delay_s
                )
            else:
                backoff.reset()
                self._outage.over()
            followed.busy = False
            await self._clock.sleep(delay_s)

    def _newest(self) -> _Followed | None:
        """The pair whose newest missing candle is the newest of those that can be asked for."""
        now_ms = self._now_ms()
        ready = [
            (max(followed.open), pair)
            for pair, followed in self._followed.items()
            if followed.open and not followed.busy and now_ms >= followed.ask_ms
            and min(followed.open) + CANDLE_MS + ASK_AFTER_MS <= now_ms
        ]  # fmt: skip
        return self._followed[max(ready)[1]] if ready else None

    def _hole(self, followed: _Followed) -> Hole:
        """The newest range that one call brings."""
        before_ms = self._now_ms() - CANDLE_MS - ASK_AFTER_MS
        opens = {open_ms for open_ms in followed.open if open_ms <= before_ms}
        holes = [Hole(open_ms, open_ms + CANDLE_MS) for open_ms in opens]
        return next(split_hole(merge_holes(holes, PAGE_MINUTES)[-1], PAGE_MINUTES))

    async def _repair(self, followed: _Followed, hole: Hole) -> None:
        there: dict[int, Mark3m] = {}
        market = followed.market
        where = ("mark_3m", self._exchange, market.pair, hole.start_ms, hole.end_ms)
        followed.open -= {row.time for row in await self._store_first.rows(Mark3m, *where)}
        asked = {t for t in followed.open if hole.start_ms <= t < hole.end_ms}
        if not asked:
            return
        lost: set[int] = set()
        start_ms, end_ms = min(asked), max(asked) + CANDLE_MS
        async for page in self._rest.mark_candles(market, start_ms, end_ms):
            there |= {candle.time: candle for candle in page.rows}
            # By the exchange's clock when it was asked: ours may be ahead, or have gone on since.
            last_ms = min(page.end_ms, page.server_ms - LOST_AFTER_MS) - CANDLE_MS
            lost |= {t for t in asked - there.keys() if page.start_ms <= t <= last_ms}
        # Between missing candles lie some of the stream, which stay as they are.
        found = [there[open_ms] for open_ms in sorted(asked & there.keys())]
        if found:
            await self._pipeline.put_rows({"mark_3m": found})
        now_ms = self._now_ms()
        if asked - there.keys() - lost:
            followed.ask_ms = now_ms + ASK_AGAIN_MS
        followed.open -= there.keys() | lost
        followed.lost = {t for t in followed.lost | lost if t >= now_ms - self._lookback_ms}
        self.repaired += len(found)
        self.lost += len(lost)
