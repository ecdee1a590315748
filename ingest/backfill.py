"""Years of history by REST, under the rate budget: `ingest backfill`.

A job is one measurement of one pair. It goes through its range in time order, chunk by chunk: read
what the store has, ask for what it lacks, commit that to the backfill's outbox, note the chunk as
done. Of all jobs of an exchange the one that is furthest behind goes first, so that the store is
written month by month, whatever the number of pairs.

A call that fails in passing is made again, with growing pauses; what the exchange refuses ends that
job only, and is told at the end. The calls of a chunk are made at once, so that the budget is the
limit, not the way to the exchange.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import structlog

from ingest.backfill_progress import Done, Key, Progress, still_to_do
from ingest.backfill_rows import candle_holes, fill, whole
from ingest.backoff import Backoff
from ingest.candles import candle_open_ms
from ingest.clock import Clock
from ingest.exchanges.rest_base import Cost, ExchangeRest, next_candle
from ingest.holes import Hole, merge_holes, split_hole
from ingest.model import Kline
from ingest.outbox import Outbox
from ingest.settlements import first_missing
from ingest.stored import StoredRows
from marketdata.errors import BadMessage, ExchangeRefused, TransientError
from marketdata.pairs import Market
from marketdata.schema import MINUTE_MS, Batch, FundingSettled, Mark3m, Ohlcv, Row

log = structlog.get_logger()

MEASUREMENTS = ("ohlcv", "funding_settled", "mark_3m")
SETTLED_MS = 15 * MINUTE_MS
"""The newest minutes are the service's: the exchange may still correct them."""
CHUNK_PAGES = 12
"""Calls of a chunk: more than go out at once. A multiple of three makes whole candles."""
WORKERS = 2
MOST_WAITING_ROWS = 100_000
LOOK_BACK_MINUTES = 240
"""How far back the last trade before a minute without a row is looked for."""
POLL_S = 0.2

T = TypeVar("T")


@dataclass(slots=True)
class Job:
    """One measurement of one pair; `left` is what isn't done yet, in time order."""

    market: Market
    measurement: str
    rest: ExchangeRest
    left: list[Hole]
    close: float | None = None
    since_ms: int | None = None
    newest_ms: int | None = None

    @property
    def key(self) -> Key:
        return (self.market.exchange, self.market.pair, self.measurement)

    @property
    def cost(self) -> Cost:
        return self.rest.cost(self.measurement, self.market)

    @property
    def calls(self) -> int:
        """How many calls are left at most."""
        return sum(-(-(some.end_ms - some.start_ms) // self.cost.span_ms) for some in self.left)

    def chunk(self) -> Hole:
        """The range that comes next."""
        start_ms, end_ms = self.left[0]
        pages = 1 if self.measurement == "funding_settled" else CHUNK_PAGES
        return Hole(start_ms, min(end_ms, start_ms + pages * self.cost.span_ms))


@dataclass(slots=True)
class Tally:
    """What has been done: calls that were planned and are over, rows by measurement, refusals."""

    planned: int = 0
    over: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    refused: dict[Key, str] = field(default_factory=dict)
    at_ms: dict[str, int] = field(default_factory=dict)


def has(market: Market, measurement: str) -> bool:
    """Whether a market has a measurement at all."""
    if measurement == "funding_settled":
        return market.kind == "perpetual"
    return measurement == "ohlcv" or market.kind != "spot"


def span_of(market: Market, since_ms: int, until_ms: int, now_ms: int) -> Hole:
    """The whole candles of a range that exist and won't change any more."""
    start_ms = candle_open_ms(max(since_ms, market.listed_ms or 0))
    end_ms = candle_open_ms(min(until_ms, now_ms - SETTLED_MS))
    if market.expiry_ms is not None:
        end_ms = min(end_ms, next_candle(market.expiry_ms))
    return Hole(start_ms, max(start_ms, end_ms))


def estimate_s(jobs: Iterable[Job], share: float) -> float:
    """Seconds that the exchanges' limits demand: calls × weight, against what may be used of them.

    The exchanges are asked side by side, and so are limits that count apart.
    """
    seconds: dict[tuple[str, str], float] = {}
    for job in jobs:
        limit, weight, _ = job.cost
        per_s = limit.weight * share / (limit.window_ms / 1000)
        where = (job.market.exchange, limit.name)
        seconds[where] = seconds.get(where, 0.0) + job.calls * weight / per_s
    return max(seconds.values(), default=0.0)


async def plan(
    rest: ExchangeRest,
    markets: Iterable[Market],
    measurements: Sequence[str],
    since_ms: int,
    until_ms: int,
    stored: StoredRows,
    progress: Progress,
    clock: Clock,
) -> list[Job]:
    """The jobs of an exchange that aren't done, without what earlier runs have done.

    Raises
    ------
    StoreUnavailable, StoreRefused
        The store can't be asked whether it still has what they did.
    """
    jobs = []
    for market in markets:
        span = span_of(market, since_ms, until_ms, clock.now_ms())
        for measurement in measurements:
            if not has(market, measurement):
                continue
            job = Job(market, measurement, rest, [])
            done = await progress.done(job.key)
            if not await _believed(job, done, stored):
                log.warning("progress_forgotten", pair=market.pair, measurement=measurement)
                await progress.forget(job.key)
                done = []
            job.left = still_to_do(done, *span)
            if job.left:
                jobs.append(job)
    return jobs


async def _believed(job: Job, done: Sequence[Done], stored: StoredRows) -> bool:
    newest_ms = max((some.newest_ms for some in done if some.newest_ms is not None), default=None)
    if newest_ms is None:
        return True
    name = "ohlcv_1m" if job.measurement == "ohlcv" else job.measurement
    where = (name, job.market.exchange, job.market.pair, newest_ms, newest_ms + 1)
    return bool(await asyncio.to_thread(stored.rows, *where))


class Backfill:
    """Works jobs off; `tally` says how far it is."""

    def __init__(
        self,
        jobs: Sequence[Job],
        stored: StoredRows,
        outbox: Outbox,
        progress: Progress,
        clock: Clock,
    ) -> None:
        self.tally = Tally(planned=sum(job.calls for job in jobs))
        self._jobs = jobs
        self._stored = stored
        self._outbox = outbox
        self._progress = progress
        self._clock = clock
        self._waiting: set[str] = set()

    async def run(self) -> None:
        """Until every job is done or refused; may be cancelled at any time.

        Raises
        ------
        StoreRefused
            The store, the outbox or the progress file can't be used.
        """
        exchanges = {job.market.exchange for job in self._jobs}
        async with asyncio.TaskGroup() as tasks:
            for exchange in exchanges:
                queue = [
                    (job.left[0].start_ms, n, job)
                    for n, job in enumerate(self._jobs)
                    if job.market.exchange == exchange
                ]
                heapq.heapify(queue)
                for n in range(WORKERS):
                    tasks.create_task(self._work(queue), name=f"backfill.{exchange}.{n}")

    async def _work(self, queue: list[tuple[int, int, Job]]) -> None:
        while queue:
            at_ms, n, job = heapq.heappop(queue)
            self.tally.at_ms[job.market.exchange] = at_ms
            calls = job.calls
            try:
                await self._advance(job)
            except (ExchangeRefused, BadMessage) as error:
                log.error("backfill_refused", pair=job.market.pair, cause=str(error))
                self.tally.refused[job.key] = str(error)
                self.tally.over += calls
                continue
            self.tally.over += calls - job.calls
            if job.left:
                heapq.heappush(queue, (job.left[0].start_ms, n, job))

    async def _advance(self, job: Job) -> None:
        """Bring the next chunk of a job, and note it."""
        chunk = job.chunk()
        batch = {name: rows for name, rows in (await self._batch(job, chunk)).items() if rows}
        while self._outbox.depth().rows > MOST_WAITING_ROWS:
            await self._clock.sleep(POLL_S)
        await self._again(job, lambda: self._outbox.append(batch))
        for name, rows in batch.items():
            self.tally.rows[name] += len(rows)
        if job.since_ms is None:
            job.since_ms = chunk.start_ms
        done = Done(job.since_ms, chunk.end_ms, job.newest_ms)
        await self._again(job, lambda: self._progress.extend(job.key, done))
        if chunk.end_ms < job.left[0].end_ms:
            job.left[0] = Hole(chunk.end_ms, job.left[0].end_ms)
        else:
            # What follows lies behind a range that an earlier run has done.
            del job.left[0]
            job.close = job.since_ms = job.newest_ms = None

    async def _batch(self, job: Job, chunk: Hole) -> Batch:
        match job.measurement:
            case "ohlcv":
                return await self._candles(job, chunk)
            case "mark_3m":
                return await self._marks(job, chunk)
            case _:
                return await self._settlements(job, chunk)

    async def _candles(self, job: Job, chunk: Hole) -> Batch:
        market = job.market
        before = Hole(chunk.start_ms - MINUTE_MS, chunk.end_ms)
        stored = {row.time: row for row in await self._rows(job, "ohlcv_1m", before, Ohlcv)}
        candles = {row.time: row for row in await self._rows(job, "ohlcv_3m", chunk, Ohlcv)}
        if job.close is None and before.start_ms in stored:
            job.close = stored[before.start_ms].close
        minutes = {time_ms: row for time_ms, row in stored.items() if time_ms >= chunk.start_ms}
        klines: dict[int, Kline] = {}
        holes = candle_holes(whole(minutes, candles), *chunk)
        for kline in await self._ask_all(job, holes, self._klines):
            klines[kline.minute_ms] = kline
        first_ms = chunk.start_ms
        if job.close is None and first_ms not in klines and first_ms not in minutes:
            earlier = Hole(first_ms - LOOK_BACK_MINUTES * MINUTE_MS, first_ms)
            found = await self._again(job, lambda: self._klines(job, earlier))
            job.close = found[-1].close if found else None
        where = (market.exchange, market.pair)
        filled = fill(where, chunk, klines, minutes, candles, job.close)
        job.close = filled.close
        times = (row.time for row in (*filled.minutes, *minutes.values()))
        job.newest_ms = max(times, default=job.newest_ms)
        return {"ohlcv_1m": filled.minutes, "ohlcv_3m": filled.candles}

    async def _marks(self, job: Job, chunk: Hole) -> Batch:
        present = {row.time for row in await self._rows(job, "mark_3m", chunk, Mark3m)}
        holes = candle_holes(present, *chunk)
        found = await self._ask_all(job, holes, self._mark_rows)
        rows = [row for row in found if row.time not in present]
        job.newest_ms = max((*present, *(row.time for row in rows)), default=job.newest_ms)
        return {"mark_3m": rows}

    async def _settlements(self, job: Job, chunk: Hole) -> Batch:
        market = job.market
        stored = await self._rows(job, "funding_settled", chunk, FundingSettled)
        missing_ms = first_missing(stored, chunk.start_ms, chunk.end_ms, market.interval_hours)
        rows: list[Row] = []
        present = {row.time for row in stored}
        if missing_ms is not None:
            hole = Hole(missing_ms, chunk.end_ms)
            found = await self._again(job, lambda: self._settlement_rows(job, hole))
            rows = [row for row in found if row.time not in present]
        job.newest_ms = max((*present, *(row.time for row in rows)), default=job.newest_ms)
        return {"funding_settled": rows}

    async def _rows(self, job: Job, name: str, span: Hole, kind: type[T]) -> list[T]:
        where = (name, job.market.exchange, job.market.pair, *span)
        rows = await self._again(job, lambda: asyncio.to_thread(self._stored.rows, *where))
        return cast("list[T]", rows)

    async def _klines(self, job: Job, hole: Hole) -> list[Kline]:
        pages = job.rest.minutes(job.market, *hole)
        return [kline async for page in pages for kline in page.rows]

    async def _mark_rows(self, job: Job, hole: Hole) -> list[Mark3m]:
        pages = job.rest.mark_candles(job.market, *hole)
        return [candle async for page in pages for candle in page.rows]

    async def _settlement_rows(self, job: Job, hole: Hole) -> list[FundingSettled]:
        return [row async for rows in job.rest.settlements(job.market, *hole) for row in rows]

    async def _ask_all(
        self, job: Job, holes: Sequence[Hole], ask: Callable[[Job, Hole], Awaitable[list[T]]]
    ) -> list[T]:
        """Ask for holes side by side, in the fewest calls that cover them."""
        page = job.cost.span_ms // MINUTE_MS
        parts = [part for hole in merge_holes(holes, page) for part in split_hole(hole, page)]

        async def one(part: Hole) -> list[T]:
            return await self._again(job, lambda: ask(job, part))

        answers = await asyncio.gather(*map(one, sorted(parts)), return_exceptions=True)
        rows: list[T] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            rows += answer
        return rows

    async def _again(self, job: Job, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` brings, however often it has to be tried; what can't work is raised."""
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        exchange = job.market.exchange
        while True:
            try:
                answer = await ask()
            except TransientError as error:
                delay_s = max(error.retry_after_s or 0.0, backoff.next_s())
                if exchange not in self._waiting:
                    # Many calls fail together: one line for all of them.
                    self._waiting.add(exchange)
                    log.warning(
                        "backfill_waits", exchange=exchange, cause=str(error), next_try_s=delay_s
                    )
                await self._clock.sleep(delay_s)
            else:
                self._waiting.discard(exchange)
                return answer
