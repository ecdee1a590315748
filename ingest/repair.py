"""Missing minutes, fetched by REST: past ones at the start, others seconds after their close.

One repairer serves one exchange. It looks each second for minutes that should have closed and
aren't there, newest first. The store is asked first: another collector, or an earlier run, may have
written them. Then the exchange is asked for whole candles. What its answer doesn't hold:

- a minute closed only just now is asked again, since REST may lag behind the stream;
- one that the exchange still has no row for some seconds later, though the pair traded before, is
  synthetic: flat at the previous close;
- one before the pair's first trade doesn't exist: it is `lost`.

What is missing `minutes` finds, and enters into the ledger. The weight budget lives in the REST
client; live minutes don't wait for the store, past ones do, because the rows that they would
replace must be known.

Every ten minutes each pair's newest minutes are held against the store. Where another collector's
row has other values the exchange has the last word; and gaps that it left open are taken over.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from ingest.backoff import Backoff
from ingest.candles import CandleBook, candle_open_ms, is_exact, is_traded, synthetic_minute
from ingest.clock import Clock
from ingest.exchanges.rest_base import ExchangeRest
from ingest.freshness import Freshness
from ingest.gaps import abandoned
from ingest.holes import Hole, find_holes, merge_holes, split_hole, whole_candles
from ingest.logs import OncePerOutage
from ingest.minutes import MinuteWatch
from ingest.model import Kline
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.stored import StoredRows, StoreFirst, rows_so_far
from marketdata.errors import TerminalError, TransientError
from marketdata.pairs import Market
from marketdata.schema import CANDLE_MS, MINUTE_MS, Gap, GapState, Ohlcv

log = structlog.get_logger()

SYNTHETIC_AFTER_MS = 15_000
"""An exchange that has no row for a minute this long after its close has nothing to add."""
ASK_AGAIN_S = 5.0
REFUSED_S = 600.0
WORKERS = 4
PAGE_MINUTES = 996
"""A multiple of 3 that fits into two calls of Binance and one of Bybit."""
AGREE_S = 600.0
"""How often a pair's newest minutes are held against the store."""
AGREE_MS = 1_800_000
"""How many of them: at least two looks see each."""
DAY_MS = 86_400_000
LOOK_BACK_MINUTES = 240
"""How far back the last trade before a minute without a row is looked for."""


@dataclass(slots=True)
class _Followed:
    """One pair under repair; its minutes come by stream since `since_ms`."""

    market: Market
    since_ms: int
    asked_again_ms: int = 0
    queued: bool = False
    agreed_ms: int = 0


@dataclass(slots=True)
class RepairCounts:
    """Minutes that were done with since the start, by what became of them."""

    repaired: int = 0
    synthetic: int = 0
    lost: int = 0


class Repairer:
    """Keeps the minutes of one exchange's pairs complete."""

    def __init__(
        self,
        exchange: str,
        rest: ExchangeRest,
        stored: StoredRows,
        pipeline: Pipeline,
        outbox: Outbox,
        freshness: Freshness,
        clock: Clock,
        *,
        lookback_ms: int,
    ) -> None:
        self.counts = RepairCounts()
        self.watch = MinuteWatch(exchange, pipeline.books, freshness)
        self._freshness = freshness
        self._exchange = exchange
        self._rest = rest
        self._stored = stored
        self._store_first = StoreFirst(stored, outbox, clock)
        self._pipeline = pipeline
        self._outbox = outbox
        self._clock = clock
        self._lookback_ms = lookback_ms
        self._followed: dict[str, _Followed] = {}
        self._jobs: list[tuple[int, str, Hole]] = []
        self._unscanned: list[str] = []
        self._work = asyncio.Condition()
        self._outage = OncePerOutage(log)

    async def follow(self, markets: Mapping[str, Market]) -> None:
        """Keep these pairs complete from now on, their past within the lookback included."""
        now_ms = self._clock.now_ms()
        async with self._work:
            for pair in self._followed.keys() - markets.keys():
                del self._followed[pair]
                self.watch.forget(pair, now_ms)
            for pair, market in markets.items():
                if pair in self._followed:
                    self._followed[pair].market = market
                else:
                    since_ms = candle_open_ms(now_ms)
                    self._followed[pair] = _Followed(market, since_ms)
                    self.watch.follow(pair, since_ms)
                    self._unscanned.append(pair)
            self._jobs = [job for job in self._jobs if job[1] in self._followed]
            heapq.heapify(self._jobs)
            self._work.notify_all()

    async def run(self) -> None:
        """Watch and repair until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name=f"repair.{self._exchange}.watch")
            tasks.create_task(self._scan(), name=f"repair.{self._exchange}.scan")
            tasks.create_task(self._agree(), name=f"repair.{self._exchange}.agree")
            for n in range(WORKERS):
                tasks.create_task(self._fetch(), name=f"repair.{self._exchange}.fetch.{n}")

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(1.0)
            async with self._work:
                for pair, followed in self._followed.items():
                    self._look(pair, followed)
                self._work.notify_all()

    def _look(self, pair: str, followed: _Followed) -> None:
        """Queue the minutes of a pair that should have closed by now and haven't come."""
        now_ms = self._clock.now_ms()
        holes = self.watch.look(pair, now_ms)
        if holes and not followed.queued and now_ms >= followed.asked_again_ms:
            followed.queued = True
            self._queue(pair, holes)

    def _queue(self, pair: str, holes: Iterable[Hole]) -> None:
        now_ms = self._clock.now_ms()
        whole = [whole_candles(hole, now_ms) for hole in holes]
        for hole in merge_holes(whole, PAGE_MINUTES):
            for part in split_hole(hole, PAGE_MINUTES):
                heapq.heappush(self._jobs, (-part.end_ms, pair, part))

    async def _scan(self) -> None:
        """Compare what is stored of each new pair's lookback with what should be."""
        backoff = Backoff(base_s=1.0, cap_s=30.0)
        while True:
            async with self._work:
                await self._work.wait_for(lambda: self._unscanned)
                followed = self._followed.get(pair := self._unscanned[0])
            if followed is not None:
                try:
                    holes = await self._past_holes(pair, followed)
                except TransientError as error:
                    delay_s = backoff.next_s()
                    log.warning("scan_waits_for_store", cause=str(error), next_try_s=delay_s)
                    await self._clock.sleep(delay_s)
                    continue
                backoff.reset()
                async with self._work:
                    self._queue(pair, holes)
                    self._work.notify_all()
            self._unscanned.remove(pair)

    async def _past_holes(self, pair: str, followed: _Followed) -> list[Hole]:
        end_ms = followed.since_ms
        start_ms = candle_open_ms(end_ms - self._lookback_ms)
        if followed.market.listed_ms is not None:
            start_ms = max(start_ms, candle_open_ms(followed.market.listed_ms))
        past = Hole(start_ms, end_ms)
        minutes, candles = await self._written(pair, past)
        unfinished = await self._open_gaps(pair, since_ms=0)
        await self._remember(pair, minutes, candles)
        there = {row.time for row in minutes}
        holes = find_holes(there, start_ms, end_ms)
        self.watch.ledger.load(unfinished)
        for hole in holes:
            self.watch.missing(pair, hole, "restart")
        unmade = set(range(start_ms, end_ms, CANDLE_MS)) - {row.time for row in candles}
        gaps = [Hole(gap.time, gap.until_ms) for gap in unfinished]
        return [*gaps, *holes, *(Hole(open_ms, open_ms + CANDLE_MS) for open_ms in unmade)]

    async def _remember(
        self, pair: str, minutes: Sequence[Ohlcv], candles: Sequence[Ohlcv]
    ) -> None:
        """Put the newest of what is stored into the book, so that corrections count on from it."""
        key = (self._exchange, pair)
        since_ms = candle_open_ms(self._clock.now_ms() - self._pipeline.books[key].horizon_ms)
        newest = [row for row in minutes if row.time >= since_ms]
        await self._pipeline.repair(key, (), newest, [c for c in candles if c.time >= since_ms])

    async def _open_gaps(self, pair: str, since_ms: int) -> list[Gap]:
        """Gaps of a pair's minutes that the store says are open."""
        where = ("gap", self._exchange, pair, since_ms, self._clock.now_ms())
        known = await rows_so_far(Gap, self._stored, self._outbox, *where)
        return [gap for gap in known if gap.channel == "candles" and gap.state == "open"]

    async def _agree(self) -> None:
        """Hold what each pair's book has against the store, where another collector writes too."""
        while True:
            await self._clock.sleep(1.0)
            now_ms = self._clock.now_ms()
            due = [
                followed
                for followed in self._followed.values()
                if now_ms - followed.agreed_ms >= AGREE_S * 1000
            ]
            for followed in due[: 1 + len(self._followed) // int(AGREE_S)]:
                followed.agreed_ms = now_ms
                try:
                    await self._agree_on(followed)
                except (TransientError, TerminalError) as error:
                    log.debug("agreed_later", pair=followed.market.pair, cause=str(error))

    async def _agree_on(self, followed: _Followed) -> None:
        market, now_ms = followed.market, self._clock.now_ms()
        key, book = (self._exchange, market.pair), self._pipeline.books[self._exchange, market.pair]
        newest = Hole(candle_open_ms(now_ms - AGREE_MS), now_ms)
        minutes, candles = await self._written(market.pair, newest)
        klines: list[Kline] = []
        for hole in _whole(book.disputed(minutes, candles), now_ms):
            said, _ = await self._ask(market, hole)
            klines += said
        if klines:
            # The other collector may have written just that while the exchange was asked.
            minutes, candles = await self._written(market.pair, newest)
        await self._pipeline.repair(key, klines, minutes, candles)
        unfinished = abandoned(await self._open_gaps(market.pair, now_ms - DAY_MS), now_ms)
        async with self._work:
            self.watch.ledger.load(unfinished)
            self._queue(market.pair, [Hole(gap.time, gap.until_ms) for gap in unfinished])
            self._work.notify_all()

    async def _written(self, pair: str, hole: Hole) -> tuple[list[Ohlcv], list[Ohlcv]]:
        """Minutes and candles of a range; those of any of these candles are among the minutes."""
        # In this order: what a candle was made of is written with it, or before.
        candles = await self._rows("ohlcv_3m", pair, hole)
        return await self._rows("ohlcv_1m", pair, hole), candles

    async def _rows(self, measurement: str, pair: str, hole: Hole) -> list[Ohlcv]:
        where = (measurement, self._exchange, pair, hole.start_ms, hole.end_ms)
        return await rows_so_far(Ohlcv, self._stored, self._outbox, *where)

    async def _fetch(self) -> None:
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        while True:
            async with self._work:
                await self._work.wait_for(lambda: self._jobs)
                job = heapq.heappop(self._jobs)
            _, pair, hole = job
            followed = self._followed.get(pair)
            if followed is None:
                continue
            try:
                await self._repair(followed, hole)
            except TerminalError as error:
                log.error("repair_refused", pair=pair, cause=str(error), next_try_s=REFUSED_S)
                followed.asked_again_ms = self._clock.now_ms() + int(REFUSED_S * 1000)
            except TransientError as error:
                delay_s = max(error.retry_after_s or 0.0, backoff.next_s())
                self._outage.failed(
                    "repair_waits", exchange=self._exchange, cause=str(error), next_try_s=delay_s
                )
                async with self._work:
                    heapq.heappush(self._jobs, job)
                await self._pause(delay_s)
                continue
            else:
                backoff.reset()
                self._outage.over()
            followed.queued = False

    async def _pause(self, delay_s: float) -> None:
        """Wait before another try, but no longer than until a connection is up where none was."""
        freshness, until_ms = self._freshness, self._clock.monotonic_ms() + round(delay_s * 1000)
        down = freshness.all_down_since_ms is not None
        while (left_ms := until_ms - self._clock.monotonic_ms()) > 0:
            if down and freshness.all_down_since_ms is None:
                return
            await self._clock.sleep(min(left_ms, 1000) / 1000)

    async def _repair(self, followed: _Followed, hole: Hole) -> None:
        pair = followed.market.pair
        key = (self._exchange, pair)
        book = self._pipeline.books[key]
        minutes, candles = await self._known_rows(followed, hole)
        there = {row.time: row.close for row in minutes}
        there |= {minute_ms: kline.close for minute_ms, kline in book.minutes.items()}
        said: list[Kline] = []
        filled: list[Kline] = []
        for part in _whole(_to_ask(hole, book, minutes, candles), hole.end_ms):
            klines, server_ms = await self._ask(followed.market, part)
            said += klines
            closes = there | {kline.minute_ms: kline.close for kline in klines}
            missing = [t for t in range(part.start_ms, part.end_ms, MINUTE_MS) if t not in closes]
            filled += await self._fill(followed, missing, closes, server_ms) if missing else []
        new = [kline for kline in said if kline.minute_ms not in there]
        self._judge_silence(pair, [*(row for row in minutes if row.time not in book.minutes), *new])
        await self._pipeline.repair(key, said + filled, minutes, candles)
        now_ms = self._clock.now_ms()
        within = range(hole.start_ms, hole.end_ms, MINUTE_MS)
        in_book = [book.minutes[t] for t in within if t in book.minutes]
        known: list[Kline | Ohlcv] = [*minutes, *said, *filled, *in_book]
        found = {_time_ms(minute): minute for minute in known}
        for state, some in _outcomes(found.values()).items():
            self.watch.found(pair, some, state, now_ms)
        self.watch.settle(pair, found)
        self.counts.repaired += len(new)
        self.counts.synthetic += len(filled)

    async def _known_rows(self, followed: _Followed, hole: Hole) -> tuple[list[Ohlcv], list[Ohlcv]]:
        """Minutes, also the one before, and candles of a range that the store has already."""
        pair, wider = followed.market.pair, Hole(hole.start_ms - MINUTE_MS, hole.end_ms)
        book = self._pipeline.books[self._exchange, pair]
        in_book_since_ms = max(followed.since_ms, self._clock.now_ms() - book.horizon_ms)
        if hole.start_ms < in_book_since_ms:
            minutes = await self._rows("ohlcv_1m", pair, wider)
            candles = await self._rows("ohlcv_3m", pair, hole) if minutes else []
            return minutes, candles
        where = (self._exchange, pair)
        minutes = await self._store_first.rows(Ohlcv, "ohlcv_1m", *where, *wider)
        if all(row.time in book.minutes for row in minutes):
            return [], []
        return minutes, await self._store_first.rows(Ohlcv, "ohlcv_3m", *where, *hole)

    def _judge_silence(self, pair: str, new: Sequence[Kline | Ohlcv]) -> None:
        """What is known of minutes by now says about a stream that brought none of them."""
        if not new:
            return
        newest = max(new, key=_time_ms)
        newest_ms = _time_ms(newest)
        if not is_traded(newest):
            self._freshness.confirm_quiet(pair, newest_ms + MINUTE_MS)
            return
        event_ms = self._freshness.event_ms(pair, "candles")
        unheard = event_ms is not None and event_ms < newest_ms
        if unheard and self._freshness.reason(pair, "candles", newest_ms) == "silent":
            self._freshness.confirm_silent(pair)

    async def _ask(self, market: Market, hole: Hole) -> tuple[list[Kline], int]:
        klines: list[Kline] = []
        server_ms = 0
        async for page in self._rest.minutes(market, hole.start_ms, hole.end_ms):
            klines += page.rows
            server_ms = page.server_ms
        return klines, server_ms

    async def _fill(
        self, followed: _Followed, missing: list[int], closes: dict[int, float], server_ms: int
    ) -> list[Kline]:
        """What to make of minutes that neither the exchange's answer nor anyone else has."""
        market = followed.market
        settled = [t for t in missing if t + MINUTE_MS + SYNTHETIC_AFTER_MS <= server_ms]
        if len(settled) < len(missing):
            followed.asked_again_ms = self._clock.now_ms() + int(ASK_AGAIN_S * 1000)
            self.watch.rewind(market.pair, next(t for t in missing if t not in settled))
        if settled and not any(t < settled[0] for t in closes):
            before = Hole(settled[0] - LOOK_BACK_MINUTES * MINUTE_MS, settled[0])
            earlier, _ = await self._ask(market, before)
            closes |= {kline.minute_ms: kline.close for kline in earlier}
        times = sorted(closes)
        filled: list[Kline] = []
        for time_ms in settled:
            n = bisect_left(times, time_ms)
            if n:
                close = closes[times[n - 1]]
                filled.append(synthetic_minute(market.exchange, market.pair, time_ms, close))
            else:
                self.watch.settle(market.pair, [time_ms])
                self.watch.found(market.pair, [time_ms], "lost", self._clock.now_ms())
                self.counts.lost += 1
        return filled


def _to_ask(
    hole: Hole, book: CandleBook, minutes: Sequence[Ohlcv], candles: Sequence[Ohlcv]
) -> list[int]:
    """The minutes of a hole that the exchange has to be asked for, where these rows are stored."""
    made = {row.time for row in candles}
    usable = {row.time for row in minutes if is_exact(row) or candle_open_ms(row.time) in made}
    wanted = range(hole.start_ms, hole.end_ms, MINUTE_MS)
    absent = {t for t in wanted if t not in usable and t not in book.minutes}
    return sorted(absent.union(book.disputed(minutes, candles).intersection(wanted)))


def _whole(times: Iterable[int], now_ms: int) -> list[Hole]:
    """The calls, of whole candles, that bring these minutes."""
    holes = [whole_candles(Hole(t, t + MINUTE_MS), now_ms) for t in times]
    return merge_holes(holes, PAGE_MINUTES)


def _time_ms(minute: Kline | Ohlcv) -> int:
    return minute.minute_ms if isinstance(minute, Kline) else minute.time


def _outcomes(minutes: Iterable[Kline | Ohlcv]) -> dict[GapState, list[int]]:
    """What missing minutes came to: something was traded in them, or nothing."""
    outcomes: dict[GapState, list[int]] = {"repaired": [], "empty": []}
    for minute in minutes:
        outcomes["repaired" if is_traded(minute) else "empty"].append(_time_ms(minute))
    return outcomes
