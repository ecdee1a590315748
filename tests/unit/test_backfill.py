"""What a backfill asks for, in which order, and what rows it makes of the answers."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.backfill import SETTLED_MS, Job, estimate_s, has, span_of
from ingest.backfill_progress import Done, Progress, still_to_do
from ingest.backfill_rows import candle_holes, fill, whole
from ingest.budget import Budgets
from ingest.candles import CandleBook
from ingest.clock import Clock
from ingest.exchanges.binance_futures_rest import BinanceFuturesRest
from ingest.exchanges.bybit_rest import BybitRest
from ingest.exchanges.rest_base import ExchangeRest
from ingest.holes import Hole
from ingest.model import Kline
from marketdata.pairs import Market
from marketdata.schema import CANDLE_MS, MINUTE_MS, Ohlcv

DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS
WHERE = ("BINANCE_FUTURES", "BTC/USDT:USDT")
MARKET = Market(
    exchange=WHERE[0], kind="perpetual", id="BTCUSDT", pair=WHERE[1], base="BTC", quote="USDT",
    settle="USDT", expiry_ms=None, active=True, listed_ms=None, interval_hours=8.0,
)  # fmt: skip


def kline(minute: int, price: float = 5.0, volume: str = "0.1") -> Kline:
    return Kline(
        *WHERE, minute * MINUTE_MS, price, price + 1, price - 1, price,
        Decimal(volume), Decimal(volume), 1, True, 10**13, "rest",
    )  # fmt: skip


def klines(*minutes: int) -> dict[int, Kline]:
    return {minute * MINUTE_MS: kline(minute) for minute in minutes}


def stored(*minutes: int, price: float = 5.0) -> dict[int, Ohlcv]:
    book = CandleBook()
    rows = book.apply([kline(minute, price) for minute in minutes]).minutes
    return {row.time: row._replace(source="stream") for row in rows}


def minutes(count: int) -> Hole:
    return Hole(0, count * MINUTE_MS)


# Rows


def test_a_new_store_gets_every_minute_and_candle_at_revision_0() -> None:
    filled = fill(WHERE, minutes(6), klines(*range(6)), {}, {}, None)
    assert [row.time for row in filled.minutes] == list(range(0, 6 * MINUTE_MS, MINUTE_MS))
    assert [row.volume for row in filled.candles] == [0.3, 0.3]
    assert {(row.source, row.revision) for row in (*filled.minutes, *filled.candles)} == {
        ("rest", 0)
    }
    assert filled.close == 5.0


def test_a_minute_without_a_row_is_flat_at_the_close_before_also_across_ranges() -> None:
    filled = fill(WHERE, minutes(3), klines(2), {}, {}, 7.0)
    assert [row.close for row in filled.minutes] == [7.0, 7.0, 5.0]
    assert [row.source for row in filled.minutes] == ["synthetic", "synthetic", "rest"]
    assert [row.source for row in filled.candles] == ["rest"]
    empty = fill(WHERE, minutes(3), {}, {}, {}, 7.0)
    assert [(row.source, row.close) for row in empty.candles] == [("synthetic", 7.0)]
    assert empty.close == 7.0


def test_before_the_first_trade_there_is_nothing() -> None:
    filled = fill(WHERE, minutes(6), klines(4, 5), {}, {}, None)
    assert [row.time for row in filled.minutes] == [4 * MINUTE_MS, 5 * MINUTE_MS]
    assert filled.candles == []
    assert fill(WHERE, minutes(6), {}, {}, {}, None) == ([], [], None)


def test_a_stored_row_that_differs_only_in_source_stays() -> None:
    filled = fill(WHERE, minutes(3), klines(0, 1, 2), stored(0, 1, 2), {}, None)
    assert filled.minutes == []
    assert [row.time for row in filled.candles] == [0]


def test_a_stored_row_with_other_values_is_rewritten_as_its_next_revision() -> None:
    filled = fill(WHERE, minutes(3), klines(0, 1, 2), stored(1, price=9.0), {}, None)
    assert [(row.time, row.revision) for row in filled.minutes] == [
        (0, 0), (MINUTE_MS, 1), (2 * MINUTE_MS, 0),
    ]  # fmt: skip


def test_a_minute_that_only_the_stream_brought_is_kept_and_counts() -> None:
    filled = fill(WHERE, minutes(3), klines(0, 2), stored(1), {}, None)
    assert [row.time for row in filled.minutes] == [0, 2 * MINUTE_MS]
    assert [row.volume for row in filled.candles] == [0.3]


@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 29)), st.one_of(st.none(), st.just(7.0)))
def test_after_a_range_every_minute_since_the_first_known_is_there(
    said: set[int], kept: set[int], close: float | None
) -> None:
    had = stored(*kept)
    filled = fill(WHERE, minutes(30), klines(*said), had, {}, close)
    there = had.keys() | {row.time for row in filled.minutes}
    known = said | kept
    first = 0 if close is not None else min(known, default=30)
    assert there == set(range(first * MINUTE_MS, 30 * MINUTE_MS, MINUTE_MS))
    assert not had.keys() & {row.time for row in filled.minutes}


@given(st.sets(st.integers(0, 29)), st.sets(st.integers(0, 9)))
def test_what_is_asked_for_is_every_candle_that_is_not_whole(
    kept: set[int], candles: set[int]
) -> None:
    present = {minute * MINUTE_MS for minute in kept}
    opens = {n * CANDLE_MS for n in candles}
    holes = candle_holes(whole(present, opens), 0, 10 * CANDLE_MS)
    asked = {t for hole in holes for t in range(hole.start_ms, hole.end_ms, CANDLE_MS)}
    for n in range(10):
        complete = n in candles and {3 * n, 3 * n + 1, 3 * n + 2} <= kept
        assert (n * CANDLE_MS in asked) is not complete


# Ranges and order


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=8))
def test_what_is_done_and_what_is_left_make_the_whole(parts: list[tuple[int, int]]) -> None:
    done = [Done(start, start + length, None) for start, length in parts]
    left = still_to_do(done, 5, 60)
    covered = {n for some in done for n in range(some.start_ms, some.end_ms)}
    assert [n for hole in left for n in range(*hole)] == [
        n for n in range(5, 60) if n not in covered
    ]


def test_a_range_is_of_whole_candles_that_exist_and_are_settled() -> None:
    now_ms = 10 * DAY_MS + 1
    listed = replace(MARKET, listed_ms=DAY_MS + 1)
    assert span_of(listed, 0, 20 * DAY_MS, now_ms) == (DAY_MS, 10 * DAY_MS - SETTLED_MS)
    expired = replace(MARKET, expiry_ms=5 * DAY_MS)
    assert span_of(expired, 1, 20 * DAY_MS, now_ms) == (0, 5 * DAY_MS)
    assert span_of(listed, 0, DAY_MS // 2, now_ms) == (DAY_MS, DAY_MS)


def test_a_market_is_asked_only_for_what_it_has() -> None:
    spot, future = replace(MARKET, kind="spot"), replace(MARKET, kind="future")
    assert [has(spot, m) for m in ("ohlcv", "funding_settled", "mark_3m")] == [True, False, False]
    assert [has(future, m) for m in ("ohlcv", "funding_settled", "mark_3m")] == [True, False, True]


@pytest.fixture(params=[BinanceFuturesRest, BybitRest])
async def rest(request: pytest.FixtureRequest) -> ExchangeRest:
    made: ExchangeRest = request.param(Budgets(), Clock())
    return made


async def test_every_chunk_is_of_whole_candles_and_full_pages(rest: ExchangeRest) -> None:
    for measurement in ("ohlcv", "mark_3m"):
        job = Job(MARKET, measurement, rest, [Hole(0, YEAR_MS)])
        start_ms, end_ms = job.chunk()
        assert end_ms % CANDLE_MS == 0
        assert (end_ms - start_ms) % job.cost.span_ms == 0


async def test_a_year_of_a_pair_costs_binance_what_its_cheapest_pages_do() -> None:
    rest = BinanceFuturesRest(Budgets(), Clock())
    jobs = [
        Job(MARKET, name, rest, [Hole(0, YEAR_MS)])
        for name in ("ohlcv", "mark_3m", "funding_settled")
    ]
    assert [job.calls for job in jobs] == [1_054, 352, 2]
    # Weight 2 a call, 1,200 a minute at half the limit.
    assert estimate_s(jobs, share=0.5) == pytest.approx((1_054 + 352) * 2 / 1_200 * 60)
    assert estimate_s([], share=0.5) == 0.0


# What is remembered


async def test_progress_is_still_there_after_a_restart(tmp_path: Path) -> None:
    key, other = (*WHERE, "ohlcv"), (*WHERE, "mark_3m")
    progress = await Progress.open(tmp_path / "backfill.db")
    await progress.extend(key, Done(0, 10, None))
    await progress.extend(key, Done(0, 20, 19))
    await progress.extend(key, Done(50, 60, 55))
    await progress.extend(other, Done(0, 5, 1))
    await progress.close()
    progress = await Progress.open(tmp_path / "backfill.db")
    assert await progress.done(key) == [Done(0, 20, 19), Done(50, 60, 55)]
    await progress.forget(key)
    assert await progress.done(key) == []
    assert await progress.done(other) == [Done(0, 5, 1)]
    await progress.close()
