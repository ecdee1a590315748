"""Settlements, mark candles and years of history, from the simulator over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from ingest.backfill import Backfill, Job
from ingest.backfill_command import OUTBOX_NAME, PROGRESS_NAME, Wanted, run_backfill
from ingest.backfill_progress import Progress
from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.exchanges.binance_futures_rest import BinanceFuturesRest
from ingest.exchanges.bybit_rest import BybitRest
from ingest.exchanges.rest_base import ExchangeRest
from ingest.holes import Hole
from ingest.hot import HotState
from ingest.marks import MarkRepairer
from ingest.outbox import Outbox
from ingest.settlements import Settler
from ingest.simulator.faults import MissingRows, RestDown, RestLimited
from ingest.simulator.market import Market as SimulatedMarket
from ingest.simulator.server import Simulator
from ingest.sinks import open_sink
from marketdata.config import parse_config
from marketdata.errors import StoreRefused, UnknownPair
from marketdata.schema import CANDLE_MS, MINUTE_MS, FundingRate, MarkPrice
from readers.sources import open_source
from tests.service import MARKET_STARTS_MS, stored, truth
from tests.stores import NoOutbox
from tests.waiting import eventually

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
SPEED = 20.0
BTC = "BTC/USDT:USDT"
EXCHANGES: dict[str, Callable[..., ExchangeRest]] = {
    "BINANCE_FUTURES": BinanceFuturesRest,
    "BYBIT": BybitRest,
}


@pytest.fixture
async def simulator():
    clock = Clock(SPEED, MARKET_STARTS_MS)
    async with Simulator(market=SimulatedMarket(as_of_ms=clock.now_ms()), clock=clock) as simulator:
        yield simulator


@asynccontextmanager
async def rest_of(simulator, exchange):
    rest = EXCHANGES[exchange](Budgets(), simulator.clock, simulator.url)
    try:
        yield rest
    finally:
        await rest.close()


@pytest.fixture(params=list(EXCHANGES))
async def rest(request, simulator):
    async with rest_of(simulator, request.param) as rest:
        yield rest


async def catalogue_of(rest):
    catalogue = rest.markets(await rest.catalogue())
    return catalogue.with_intervals(await rest.intervals(), rest.interval_hours)


async def collect(pages):
    return [row for rows in [page async for page in pages] for row in rows]


def contract_of(simulator, market):
    return simulator.market.contract(market.exchange, market.id, market.kind)


def true_settlements(simulator, market, start_ms, end_ms):
    found = simulator.market.settled(contract_of(simulator, market), start_ms, end_ms - 1)
    return [(time_ms, rate / 1e8) for time_ms, rate in found]


def true_marks(simulator, market, start_ms, end_ms):
    now_ms = simulator.clock.now_ms()
    bars = simulator.market.mark_klines(
        contract_of(simulator, market), CANDLE_MS, start_ms, end_ms, now_ms
    )
    return {bar.open_ms: tuple(units / 1e8 for units in bar[1:]) for bar in bars}


# What REST gives


async def test_a_year_of_settlements_comes_ascending_on_the_minute_with_its_interval(
    simulator, rest
):
    market = (await catalogue_of(rest)).find(BTC)
    end_ms = simulator.clock.now_ms()
    start_ms = end_ms - 365 * DAY_MS
    rows = await collect(rest.settlements(market, start_ms, end_ms))
    assert [(row.time, row.rate) for row in rows] == true_settlements(
        simulator, market, start_ms, end_ms
    )
    assert len(rows) >= 1_090
    assert {row.interval_hours for row in rows} == {8.0}
    assert {(row.exchange, row.symbol) for row in rows} == {(rest.exchange, BTC)}


async def test_an_extra_settlement_is_a_column_of_the_one_at_the_same_time(simulator):
    async with rest_of(simulator, "BINANCE_FUTURES") as rest:
        catalogue = await catalogue_of(rest)
        equity = next(
            market
            for market in catalogue.markets
            if market.kind == "perpetual"
            and market.active
            and contract_of(simulator, market).underlying == "EQUITY"
        )
        end_ms = simulator.clock.now_ms()
        rows = await collect(rest.settlements(equity, end_ms - 300 * DAY_MS, end_ms))
    special = [row for row in rows if row.special_rate is not None]
    assert {row.special_rate for row in special} == {0.0004}
    assert len({row.time for row in rows}) == len(rows)
    assert 0 < len(special) < len(rows)


async def test_settlements_of_a_moment_are_that_one_only(simulator, rest):
    market = (await catalogue_of(rest)).find(BTC)
    now_ms = simulator.clock.now_ms()
    settled_ms = now_ms - now_ms % (8 * HOUR_MS)
    rows = await collect(rest.settlements(market, settled_ms, settled_ms + 1))
    assert [(row.time, row.interval_hours) for row in rows] == [(settled_ms, 8.0)]
    assert await collect(rest.settlements(market, settled_ms + 1, now_ms)) == []


async def test_mark_candles_are_the_exchange_s_own_closed_ones(simulator, rest):
    market = (await catalogue_of(rest)).find(BTC)
    now_ms = simulator.clock.now_ms()
    start_ms = now_ms - now_ms % CANDLE_MS - 1_200 * CANDLE_MS
    pages = rest.mark_candles(market, start_ms, now_ms + DAY_MS)
    rows = [candle async for page in pages for candle in page.rows]
    expected = true_marks(simulator, market, start_ms, now_ms - now_ms % CANDLE_MS)
    times = [row.time for row in rows]
    assert times == list(range(start_ms, times[-1] + 1, CANDLE_MS))
    assert times[-1] >= max(expected)
    for row in rows[: len(expected)]:
        assert row[3:7] == pytest.approx(expected[row.time], rel=1e-6)
        assert row.source == "rest"


# What the service keeps complete


class Straight:
    """Rows go to the store at once."""

    def __init__(self, settings):
        self.sink = open_sink(settings)
        self.batches = []

    async def put_rows(self, rows):
        self.batches.append(rows)
        settled = await self.sink.write(rows)
        assert not settled.rejected

    async def close(self):
        await self.sink.write({})  # so that there is a file to read
        await self.sink.close()


def configuration(simulator, folder, **extra):
    exchanges = {name: {"pairs": [BTC], "rest_url": simulator.url} for name in EXCHANGES}
    document = {
        "store": {"kind": "sqlite", "path": "market_data.db"},
        "outbox": {"path": "outbox.db"},
        "exchanges": exchanges,
        **extra,
    }
    return parse_config(json.dumps(document), source="test", folder=folder, environ={})


@asynccontextmanager
async def keeping(part_class, simulator, rest, settings, *more, lookback_ms=2 * DAY_MS, clock=None):
    """A running Settler or MarkRepairer on the store of the settings."""
    straight, source = Straight(settings), open_source(settings)
    await straight.sink.write({})
    part = part_class(
        rest.exchange, rest, source, straight, NoOutbox(), *more, clock or simulator.clock,
        lookback_ms=lookback_ms,
    )  # fmt: skip
    task = asyncio.create_task(part.run())
    try:
        yield part, straight
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await straight.sink.close()
        source.close()


async def test_the_settlements_of_the_lookback_are_brought_once(simulator, rest, tmp_path):
    settings = configuration(simulator, tmp_path)
    market = (await catalogue_of(rest)).find(BTC)
    since_ms = simulator.clock.now_ms() - 2 * DAY_MS
    async with keeping(Settler, simulator, rest, settings, HotState()) as (settler, _):
        await settler.follow({BTC: market})
        rows = await eventually(lambda: stored(settings, "funding_settled", rest.exchange, BTC))
    expected = true_settlements(simulator, market, since_ms, simulator.clock.now_ms())
    assert [(row.time, row.rate) for row in rows] == expected
    asked = rest.client.requests.total()
    async with keeping(Settler, simulator, rest, settings, HotState()) as (settler, straight):
        await settler.follow({BTC: market})
        await eventually(lambda: settler._scanned, what="a look at the store")
    assert rest.client.requests.total() == asked
    assert straight.batches == []


async def test_a_settlement_is_fetched_after_it_happens(tmp_path):
    clock = Clock(speed=200, start_ms=1_795_132_800_000 + 8 * HOUR_MS - 120_000)
    async with Simulator(clock=clock) as simulator, rest_of(simulator, "BYBIT") as rest:
        settings = configuration(simulator, tmp_path)
        market = (await catalogue_of(rest)).find(BTC)
        next_ms = 1_795_132_800_000 + 8 * HOUR_MS
        hot = HotState()
        shown = FundingRate("BYBIT", BTC, clock.now_ms(), 0.0001, None, next_ms, 8.0)
        hot.put(shown, received_ms=clock.now_ms())
        async with keeping(Settler, simulator, rest, settings, hot) as (settler, _):
            await settler.follow({BTC: market})
            rows = await eventually(
                lambda: stored(settings, "funding_settled", "BYBIT", BTC, next_ms), 20, "the row"
            )
            assert clock.now_ms() >= next_ms + 60_000
        expected = true_settlements(simulator, market, next_ms, next_ms + 1)
        assert [(row.time, row.rate) for row in rows] == expected
        assert settler.missing == 0


@pytest.mark.parametrize("exchange", list(EXCHANGES))
async def test_marks_lost_in_an_outage_come_back_and_complete_ones_stay_of_the_stream(
    exchange, tmp_path
):
    clock = Clock(speed=80)
    async with (
        Simulator(market=SimulatedMarket(as_of_ms=clock.now_ms()), clock=clock) as simulator,
        rest_of(simulator, exchange) as rest,
    ):
        await marks_come_back(simulator, rest, tmp_path)


async def marks_come_back(simulator, rest, folder):
    settings = configuration(simulator, folder)
    market = (await catalogue_of(rest)).find(BTC)
    clock = simulator.clock
    arguments = (MarkRepairer, simulator, rest, settings)
    async with keeping(*arguments, lookback_ms=2 * HOUR_MS) as (repairer, _):
        await repairer.follow({BTC: market})
        began_ms = clock.now_ms() // CANDLE_MS * CANDLE_MS
        whole_ms = began_ms + CANDLE_MS
        for second_ms in range(whole_ms, whole_ms + CANDLE_MS + 1_000, 1_000):
            repairer.feed(MarkPrice(rest.exchange, BTC, second_ms, 100.0, None))

        def complete():
            rows = stored(settings, "mark_3m", rest.exchange, BTC)
            times = {row.time for row in rows}
            last_ms = whole_ms + CANDLE_MS
            wanted = range(began_ms - 2 * HOUR_MS + CANDLE_MS, last_ms + 1, CANDLE_MS)
            return rows if times.issuperset(wanted) else None

        rows = {row.time: row for row in await eventually(complete, 40, "every candle")}
        assert repairer.state(BTC, began_ms, whole_ms) == "repaired"
        assert repairer.state(BTC, began_ms, clock.now_ms()) == "open"
    expected = true_marks(simulator, market, began_ms - 2 * HOUR_MS, began_ms)
    assert rows[whole_ms].source == "stream"
    assert rows[whole_ms][3:7] == (100.0,) * 4
    for open_ms, prices in expected.items():
        assert rows[open_ms].source == "rest"
        assert rows[open_ms][3:7] == pytest.approx(prices, rel=1e-6)
    # The lookback and what was lost came in few calls, not one a candle.
    assert sum(n for path, n in rest.client.requests.items() if "mark" in path) < 20


@pytest.mark.parametrize("exchange", list(EXCHANGES))
async def test_marks_of_a_time_that_is_yet_to_come_for_the_exchange_are_not_lost(
    exchange, tmp_path
):
    clock, ahead_ms = Clock(speed=160), HOUR_MS // 3
    wrong = Clock(clock.speed, clock.now_ms() + ahead_ms)
    async with (
        Simulator(market=SimulatedMarket(as_of_ms=clock.now_ms()), clock=clock) as simulator,
        rest_of(simulator, exchange) as rest,
    ):
        settings = configuration(simulator, tmp_path)
        market = (await catalogue_of(rest)).find(BTC)
        began_ms = clock.now_ms() // CANDLE_MS * CANDLE_MS
        wanted = range(began_ms, wrong.now_ms() // CANDLE_MS * CANDLE_MS, CANDLE_MS)
        arguments = (MarkRepairer, simulator, rest, settings)
        async with keeping(*arguments, lookback_ms=HOUR_MS, clock=wrong) as (repairer, _):
            await repairer.follow({BTC: market})

            def complete():
                rows = stored(settings, "mark_3m", exchange, BTC)
                return {row.time for row in rows}.issuperset(wanted)

            await eventually(complete, 30, "every candle")
            assert repairer.lost == 0


# Years of it


async def backfilled(settings, simulator, stop=None, **wanted):
    console = Console(file=io.StringIO())
    stop = stop or asyncio.Event()
    return await run_backfill(settings, Wanted(**wanted), simulator.clock, stop, console)


def range_of(simulator, days):
    now_ms = simulator.clock.now_ms()
    until_ms = now_ms - now_ms % DAY_MS
    return {"since_ms": until_ms - days * DAY_MS, "until_ms": until_ms}


async def test_history_is_the_truth_on_both_exchanges_and_without_a_hole(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    wanted = range_of(simulator, days=3)
    outcome = await backfilled(settings, simulator, **wanted)
    assert outcome.whole
    for exchange in EXCHANGES:
        where = (exchange, BTC)
        candles = stored(settings, "ohlcv_3m", *where)
        opens = list(range(wanted["since_ms"], wanted["until_ms"], CANDLE_MS))
        assert [row.time for row in candles] == opens
        expected = await truth(simulator, *where, wanted["since_ms"], wanted["until_ms"])
        for row in candles:
            assert row[3:9] == expected[row.time][:6]
            assert (row.source, row.revision) == ("rest", 0)
        assert len(stored(settings, "ohlcv_1m", *where)) == 3 * len(opens)
        assert [row.time for row in stored(settings, "mark_3m", *where)] == opens
        assert len(stored(settings, "funding_settled", *where)) == 9


async def test_a_second_run_asks_nothing_and_an_earlier_start_only_what_is_new(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    wanted = range_of(simulator, days=2)
    await backfilled(settings, simulator, **wanted)
    before = simulator.binance.stats.rest_requests
    again = await backfilled(settings, simulator, **wanted)
    catalogue_calls = simulator.binance.stats.rest_requests - before
    assert again.whole
    assert again.tally.rows.total() == again.tally.planned == 0
    assert catalogue_calls == 2
    earlier = {**wanted, "since_ms": wanted["since_ms"] - DAY_MS}
    more = await backfilled(settings, simulator, **earlier)
    assert more.tally.rows["ohlcv_3m"] == len(EXCHANGES) * DAY_MS // CANDLE_MS


async def test_what_the_store_has_is_not_asked_and_keeps_its_source(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    wanted = {**range_of(simulator, days=1), "exchanges": ("BYBIT",), "measurements": ("ohlcv",)}
    await backfilled(settings, simulator, **wanted)
    (tmp_path / PROGRESS_NAME).unlink()
    sink = open_sink(settings)
    minutes = stored(settings, "ohlcv_1m", "BYBIT", BTC)
    candles = stored(settings, "ohlcv_3m", "BYBIT", BTC)
    streamed = [row._replace(source="stream", revision=2) for row in minutes]
    await sink.write({"ohlcv_1m": streamed})
    await sink.close()
    delete(settings, "ohlcv_3m", candles[7].time + CANDLE_MS)
    before = simulator.bybit.stats.rest_requests
    again = await backfilled(settings, simulator, **wanted)
    assert again.tally.rows == {"ohlcv_3m": 1}
    # Two pages brought the day; one call brings the candle, and the metadata costs the same.
    assert simulator.bybit.stats.rest_requests - before == before - 1
    assert stored(settings, "ohlcv_1m", "BYBIT", BTC) == streamed
    assert stored(settings, "ohlcv_3m", "BYBIT", BTC)[8] == candles[8]


def delete(settings, table, time_ms):
    with closing(sqlite3.connect(settings.store.path)) as connection, connection:
        connection.execute(f"DELETE FROM {table} WHERE time = ?", (time_ms,))


async def test_influxdb_is_filled_and_not_asked_for_twice(simulator, tmp_path, influx):
    store = {
        "kind": "influxdb", "url": influx.url, "org": influx.org, "bucket": influx.bucket,
        "token": influx.token,
    }  # fmt: skip
    settings = configuration(simulator, tmp_path, store=store)
    wanted = {**range_of(simulator, days=1), "exchanges": ("BYBIT",)}
    first = await backfilled(settings, simulator, **wanted)
    candles = DAY_MS // CANDLE_MS
    assert first.tally.rows == {
        "ohlcv_1m": 3 * candles, "ohlcv_3m": candles, "mark_3m": candles, "funding_settled": 3,
    }  # fmt: skip
    assert len(stored(settings, "ohlcv_3m", "BYBIT", BTC, **times(wanted))) == candles
    assert (await backfilled(settings, simulator, **wanted)).tally.planned == 0
    (tmp_path / PROGRESS_NAME).unlink()
    assert (await backfilled(settings, simulator, **wanted)).tally.rows == {}


def times(wanted):
    return {"start_ms": wanted["since_ms"], "end_ms": wanted["until_ms"]}


async def test_an_emptied_store_is_filled_again(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    wanted = {**range_of(simulator, days=1), "exchanges": ("BYBIT",)}
    first = await backfilled(settings, simulator, **wanted)
    for path in tmp_path.glob("market_data.db*"):
        path.unlink()
    again = await backfilled(settings, simulator, **wanted)
    assert again.tally.rows == first.tally.rows


async def test_minutes_without_a_row_are_synthetic_at_the_close_before(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    wanted = {**range_of(simulator, days=1), "measurements": ("ohlcv",)}
    hole_ms = wanted["since_ms"] + 6 * MINUTE_MS
    missing = MissingRows(
        exchange="BYBIT", id="BTCUSDT", start_ms=hole_ms, end_ms=hole_ms + 4 * MINUTE_MS
    )
    simulator.inject(missing)
    await backfilled(settings, simulator, exchanges=("BYBIT",), **wanted)
    minutes = {row.time: row for row in stored(settings, "ohlcv_1m", "BYBIT", BTC)}
    flat = [minutes[hole_ms + n * MINUTE_MS] for n in range(4)]
    close = minutes[hole_ms - MINUTE_MS].close
    assert {row[3:9] for row in flat} == {(close, close, close, close, 0.0, 0.0)}
    assert {row.source for row in flat} == {"synthetic"}
    assert len(minutes) == DAY_MS // MINUTE_MS
    candles = {row.time: row for row in stored(settings, "ohlcv_3m", "BYBIT", BTC)}
    assert candles[hole_ms].source == "synthetic"
    assert candles[hole_ms + CANDLE_MS].source == "rest"


async def test_nothing_is_made_up_before_the_first_trade(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    wanted = {**range_of(simulator, days=1), "measurements": ("ohlcv",)}
    since_ms = wanted["since_ms"]
    hidden = MissingRows(
        exchange="BYBIT",
        id="BTCUSDT",
        start_ms=since_ms - DAY_MS,
        end_ms=since_ms + 100 * MINUTE_MS,
    )
    simulator.inject(hidden)
    await backfilled(settings, simulator, exchanges=("BYBIT",), **wanted)
    minutes = stored(settings, "ohlcv_1m", "BYBIT", BTC)
    assert minutes[0].time == since_ms + 100 * MINUTE_MS
    assert {row.source for row in minutes} == {"rest"}


async def test_it_lives_through_429_and_an_outage(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    simulator.inject(RestLimited(exchange="BINANCE_FUTURES", status=429, retry_after_s=5, times=1))
    simulator.inject(RestDown(exchange="BYBIT", how="unavailable", seconds=20))
    outcome = await backfilled(settings, simulator, **range_of(simulator, days=2))
    assert outcome.whole
    for exchange in EXCHANGES:
        assert len(stored(settings, "ohlcv_3m", exchange, BTC)) == 2 * DAY_MS // CANDLE_MS


async def test_a_run_that_is_stopped_goes_on_where_it_was(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    wanted = {**range_of(simulator, days=16), "measurements": ("ohlcv",)}
    await Straight(settings).close()
    stop = asyncio.Event()
    running = asyncio.create_task(backfilled(settings, simulator, stop, **wanted))
    await eventually(
        lambda: stored(settings, "ohlcv_3m", "BINANCE_FUTURES", BTC), 20, "the first candles"
    )
    stop.set()
    assert (await running).stopped
    had = len(stored(settings, "ohlcv_3m", "BINANCE_FUTURES", BTC))
    whole = 16 * DAY_MS // CANDLE_MS
    assert 0 < had < whole
    outcome = await backfilled(settings, simulator, **wanted)
    assert outcome.whole
    assert outcome.tally.rows["ohlcv_3m"] < len(EXCHANGES) * whole
    for exchange in EXCHANGES:
        assert len(stored(settings, "ohlcv_3m", exchange, BTC)) == whole


async def test_what_the_exchange_refuses_ends_that_pair_only(simulator, rest, tmp_path):
    settings = configuration(simulator, tmp_path)
    await Straight(settings).close()
    known = (await catalogue_of(rest)).find(BTC)
    unknown = replace(known, id="NOSUCHUSDT", pair="NOSUCH/USDT:USDT")
    span = Hole(*range_of(simulator, days=1).values())
    jobs = [Job(market, "mark_3m", rest, [span]) for market in (unknown, known)]
    source = open_source(settings)
    outbox = await Outbox.open(tmp_path / OUTBOX_NAME, 1 << 30)
    progress = await Progress.open(tmp_path / PROGRESS_NAME)
    backfill = Backfill(jobs, source, outbox, progress, simulator.clock)
    await backfill.run()
    assert set(backfill.tally.refused) == {(rest.exchange, unknown.pair, "mark_3m")}
    assert backfill.tally.rows == {"mark_3m": DAY_MS // CANDLE_MS}
    assert backfill.tally.over == backfill.tally.planned
    assert outbox.depth().rows == DAY_MS // CANDLE_MS
    for close in (outbox.close, progress.close):
        await close()
    source.close()


async def test_two_at_a_time_are_refused(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    outbox = await Outbox.open(tmp_path / OUTBOX_NAME, 1 << 20)
    with pytest.raises(StoreRefused):
        await backfilled(settings, simulator, **range_of(simulator, days=1))
    await outbox.close()


async def test_an_unknown_pair_is_told_with_near_ones(simulator, tmp_path):
    settings = configuration(simulator, tmp_path)
    with pytest.raises(UnknownPair) as caught:
        await backfilled(
            settings, simulator, **range_of(simulator, days=1), pairs=("BTC/USD:USDT",)
        )
    assert caught.value.near


COMMAND = "from ingest.backfill_command import backfill; backfill()"


@asynccontextmanager
async def command(folder, simulator, *arguments):
    """The command as a process of its own."""
    config = folder / "config.yaml"
    pairs = {"pairs": [BTC], "rest_url": simulator.url}
    config.write_text(json.dumps({"exchanges": dict.fromkeys(EXCHANGES, pairs)}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND, "--config", str(config), *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process):
    out, err = await process.communicate()
    assert b"Traceback" not in err, err
    return out.decode(), err.decode()


async def test_sigterm_ends_it_with_0_and_the_same_command_goes_on(tmp_path):
    async with Simulator() as simulator:
        now_ms = simulator.clock.now_ms()
        since = datetime.fromtimestamp(now_ms / 1000 - 12 * 86_400, UTC).strftime("%Y-%m-%d")
        arguments = ("--since", since, "--measurement", "ohlcv", "--exchange", "BYBIT")
        async with command(tmp_path, simulator, *arguments) as process:
            noted = tmp_path / "var" / PROGRESS_NAME
            await eventually(lambda: simulator.bybit.stats.rest_requests > 8, 20, "some calls")
            process.send_signal(signal.SIGTERM)
            out, err = await said(process)
            assert (process.returncode, out) == (0, "")
            assert "goes on from here" in err
            assert "BYBIT ohlcv: 1 pairs" in err
            assert noted.exists()
        async with command(tmp_path, simulator, *arguments) as process:
            out, err = await said(process)
            assert process.returncode == 0, err
            assert "rows written:" in out
        async with command(tmp_path, simulator, *arguments) as process:
            out, err = await said(process)
            assert "nothing left to do" in err or "1 pairs, 1 calls" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--since", "soon"), "ISO 8601"),
        (("--since", "2024-01-01", "--until", "2023-01-01"), "before --since"),
        (("--since", "2024-01-01", "--exchange", "OKX"), "configured: BINANCE_FUTURES, BYBIT"),
        ((), "--since"),
    ],
)
async def test_wrong_use_ends_with_2_and_says_what_is_valid(simulator, tmp_path, arguments, words):
    async with command(tmp_path, simulator, *arguments) as process:
        _, err = await said(process)
    assert process.returncode == 2
    assert words in err
