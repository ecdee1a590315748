"""Funding settlements, fetched from the exchange's history after each of them.

A stream only shows the running estimate; what was settled is in the history, a little later. When
a pair's history is asked follows from the newest settlement time that its stream shows, which moves
when the exchange changes the interval during the day, and from what has been settled last:

- a minute after the settlement, then after three and five minutes until the row is there;
- from the last known settlement on, so that one which was missed comes with the next;
- pairs settle at the same hour, so each has its own place within a minute;
- a settlement that another collector has written by then isn't asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

import structlog

from ingest.backoff import Backoff
from ingest.clock import Clock
from ingest.exchanges.rest_base import HOUR_MS, ExchangeRest
from ingest.hot import HotState
from ingest.logs import OncePerOutage
from ingest.outbox import Outbox
from ingest.stored import StoredRows, StoreFirst, rows_so_far
from marketdata.errors import TerminalError, TransientError
from marketdata.pairs import Market
from marketdata.schema import MINUTE_MS, Batch, FundingSettled, Row

log = structlog.get_logger()

ASK_AFTER_MS = (60_000, 180_000, 300_000)
"""When the row of a settlement is asked for, until it is there."""
SPREAD_MS = 60_000
ROLL_MS = 60_000
"""This near to a settlement, a later time on the stream means that it is done, not put off."""
LOOK_S = 1.0


class RowWriter(Protocol):
    """Where finished rows go: `ingest.pipeline.Pipeline` has it."""

    async def put_rows(self, rows: Batch) -> None: ...


@dataclass(slots=True)
class _Pair:
    """`last_ms`: the newest settlement that is known; `next_ms`: the one that is waited for."""

    last_ms: int | None
    interval_ms: int | None
    next_ms: int | None = None
    asked: int = 0


class Schedule:
    """When the history of each pair is due; pure, in UTC milliseconds.

    >>> schedule = Schedule()
    >>> schedule.add("A/B:B", last_ms=None, interval_ms=None, now_ms=0)
    >>> schedule.see("A/B:B", next_funding_ms=28_800_000, now_ms=0)
    >>> at_ms = schedule.due_ms("A/B:B")
    >>> 28_860_000 <= at_ms < 28_920_000
    True
    >>> schedule.due(at_ms - 1), schedule.due(at_ms)
    ([], ['A/B:B'])
    """

    def __init__(self) -> None:
        self._pairs: dict[str, _Pair] = {}

    def add(self, pair: str, last_ms: int | None, interval_ms: int | None, now_ms: int) -> None:
        """Wait for a pair's settlements after `last_ms`; all before `now_ms` have been asked for.

        `interval_ms` is how far apart they are, where the stream doesn't tell.
        """
        self._pairs[pair] = state = _Pair(last_ms, interval_ms)
        _wait_for_next(state, now_ms)

    def remove(self, pair: str) -> None:
        """Wait for it no longer."""
        self._pairs.pop(pair, None)

    def see(self, pair: str, next_funding_ms: int, now_ms: int) -> None:
        """Take in what the stream shows as the time of the next settlement."""
        state = self._pairs[pair]
        shown_ms = next_funding_ms - next_funding_ms % MINUTE_MS
        if shown_ms == state.next_ms or (state.last_ms is not None and shown_ms <= state.last_ms):
            return
        if state.next_ms is None or now_ms < state.next_ms - ROLL_MS:
            state.next_ms, state.asked = shown_ms, 0

    def due_ms(self, pair: str) -> int | None:
        """When the pair's history is to be asked next, as things are; None if nothing is known."""
        state = self._pairs[pair]
        if state.next_ms is None:
            return None
        return state.next_ms + ASK_AFTER_MS[state.asked] + crc32(pair.encode()) % SPREAD_MS

    def waits_for(self, pair: str, settled_ms: int) -> bool:
        """Whether a settlement at this time is the one that is waited for, or a later one."""
        next_ms = self._pairs[pair].next_ms
        return next_ms is not None and settled_ms >= next_ms

    def due(self, now_ms: int) -> list[str]:
        """The pairs to be asked now, the one that has waited longest first."""
        times = [(self.due_ms(pair), pair) for pair in self._pairs]
        return [
            pair for _, pair in sorted((t, p) for t, p in times if t is not None and t <= now_ms)
        ]

    def answered(self, pair: str, last_ms: int | None, now_ms: int) -> int | None:
        """The history was asked at `now_ms`; its newest settlement is `last_ms`, None without any.

        Returns the settlement that is given up: not there though it was asked for often enough.
        """
        state = self._pairs[pair]
        if last_ms is not None:
            state.last_ms = max(last_ms, state.last_ms or last_ms)
        if state.next_ms is None or (state.last_ms is not None and state.last_ms >= state.next_ms):
            _wait_for_next(state, now_ms)
            return None
        state.asked += 1
        if state.asked < len(ASK_AFTER_MS):
            return None
        given_up_ms, state.asked = state.next_ms, 0
        state.next_ms = _following(given_up_ms, state.interval_ms, now_ms)
        return given_up_ms


def _wait_for_next(state: _Pair, now_ms: int) -> None:
    state.next_ms = _following(state.last_ms, state.interval_ms, now_ms)
    state.asked = 0


def _following(last_ms: int | None, interval_ms: int | None, now_ms: int) -> int | None:
    """The next settlement whose row may not be there yet."""
    if last_ms is None or interval_ms is None:
        return None
    passed = max(0, now_ms - ASK_AFTER_MS[-1] - last_ms) // interval_ms
    return last_ms + (passed + 1) * interval_ms


def first_missing(
    rows: Sequence[FundingSettled], start_ms: int, end_ms: int, interval_hours: float | None
) -> int | None:
    """Where the first settlement may be missing between start_ms <= time < end_ms.

    Parameters
    ----------
    rows
        Those that are there, ascending; each says how far the one before it is away.
    interval_hours
        Between the last of them and the next; None where it isn't known.

    >>> def row(hour):
    ...     return FundingSettled("X", "A/B:B", hour * HOUR_MS, 0.0, 8.0, None)
    >>> first_missing([row(8), row(16)], 1, 20 * HOUR_MS, 8.0)
    >>> first_missing([row(8), row(24)], 1, 25 * HOUR_MS, 8.0) == 8 * HOUR_MS + 1
    True
    >>> first_missing([], 1, 20 * HOUR_MS, 8.0)
    1
    """
    at_ms = start_ms
    for row in rows:
        hours = row.interval_hours or interval_hours
        if hours is None or row.time - hours * HOUR_MS >= at_ms:
            return at_ms
        at_ms = row.time + 1
    if rows and interval_hours is not None and rows[-1].time + interval_hours * HOUR_MS >= end_ms:
        return None
    return at_ms


class Settler:
    """Keeps the funding history of one exchange's perpetuals complete.

    `settled` counts rows that were written, `missing` settlements that never came.
    """

    def __init__(
        self,
        exchange: str,
        rest: ExchangeRest,
        stored: StoredRows,
        pipeline: RowWriter,
        outbox: Outbox,
        hot: HotState,
        clock: Clock,
        *,
        lookback_ms: int,
    ) -> None:
        self.settled = 0
        self.missing = 0
        self._exchange = exchange
        self._rest = rest
        self._stored = stored
        self._store_first = StoreFirst(stored, outbox, clock)
        self._pipeline = pipeline
        self._outbox = outbox
        self._hot = hot
        self._clock = clock
        self._lookback_ms = lookback_ms
        self._markets: dict[str, Market] = {}
        self._scanned: set[str] = set()
        self._newest: dict[str, FundingSettled] = {}
        self._schedule = Schedule()

    async def follow(self, markets: Mapping[str, Market]) -> None:
        """Keep the perpetuals among these complete from now on, the lookback included."""
        wanted = {pair: market for pair, market in markets.items() if market.kind == "perpetual"}
        for pair in self._markets.keys() - wanted.keys():
            self._schedule.remove(pair)
            self._scanned.discard(pair)
            self._newest.pop(pair, None)
        self._markets = wanted

    async def run(self) -> None:
        """Ask and write until cancelled."""
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        outage = OncePerOutage(log)
        while True:
            try:
                await self._look()
                backoff.reset()
                outage.over()
                delay_s = LOOK_S
            except TransientError as error:
                delay_s = max(error.retry_after_s or 0.0, backoff.next_s())
                outage.failed(
                    "settlements_wait", exchange=self._exchange, cause=str(error),
                    next_try_s=delay_s,
                )  # fmt: skip
            await self._clock.sleep(delay_s)

    async def _look(self) -> None:
        for pair, market in list(self._markets.items()):
            if pair not in self._scanned:
                await self._scan(market)
        now_ms = self._clock.now_ms()
        for pair in self._scanned:
            shown = self._hot.get((self._exchange, pair))
            if shown is not None and shown.next_funding_ms is not None:
                self._schedule.see(pair, shown.next_funding_ms, now_ms)
        for pair in self._schedule.due(now_ms):
            if pair in self._scanned:
                await self._ask(self._markets[pair])

    async def _scan(self, market: Market) -> None:
        """Bring the lookback of a new pair, as far as the store lacks it."""
        now_ms = self._clock.now_ms()
        start_ms = max(now_ms - self._lookback_ms, market.listed_ms or 0)
        where = ("funding_settled", self._exchange, market.pair, start_ms, now_ms)
        settled = await rows_so_far(FundingSettled, self._stored, self._outbox, *where)
        if settled:
            self._newest[market.pair] = settled[-1]
        missing_ms = first_missing(settled, start_ms, now_ms, market.interval_hours)
        if missing_ms is not None:
            await self._fetch(market, missing_ms, {row.time: row for row in settled})
        if market.pair in self._markets:
            self._scanned.add(market.pair)
            self._schedule.add(
                market.pair, self._last_ms(market.pair), _interval_ms(market), now_ms
            )

    async def _ask(self, market: Market) -> None:
        """Bring what has been settled since the last known settlement, that one once more: a
        special rate may have come after it."""
        newest = self._newest.get(market.pair)
        now_ms = self._clock.now_ms()
        since_ms = now_ms - self._lookback_ms if newest is None else newest.time
        where = ("funding_settled", self._exchange, market.pair, since_ms, now_ms)
        known = {row.time: row for row in await self._store_first.rows(FundingSettled, *where)}
        if newest is not None:
            known.setdefault(newest.time, newest)
        if market.pair not in self._scanned:
            return
        if known and self._schedule.waits_for(market.pair, max(known)):
            self._newest[market.pair] = known[max(known)]
        else:
            await self._fetch(market, since_ms, known)
        if market.pair in self._scanned:
            now_ms = self._clock.now_ms()
            given_up_ms = self._schedule.answered(market.pair, self._last_ms(market.pair), now_ms)
            if given_up_ms is not None:
                self.missing += 1
                log.warning("settlement_missing", pair=market.pair, settlement_ms=given_up_ms)

    async def _fetch(self, market: Market, start_ms: int, known: Mapping[int, Row]) -> None:
        now_ms = self._clock.now_ms()
        try:
            async for rows in self._rest.settlements(market, start_ms, now_ms + MINUTE_MS):
                if market.pair not in self._markets:
                    return
                self._newest[market.pair] = rows[-1]
                new = [row for row in rows if known.get(row.time) != row]
                if new:
                    await self._pipeline.put_rows({"funding_settled": new})
                    self.settled += len(new)
        except TerminalError as error:
            log.error("settlements_refused", pair=market.pair, cause=str(error))

    def _last_ms(self, pair: str) -> int | None:
        newest = self._newest.get(pair)
        return None if newest is None else newest.time


def _interval_ms(market: Market) -> int | None:
    return None if market.interval_hours is None else int(market.interval_hours * HOUR_MS)
