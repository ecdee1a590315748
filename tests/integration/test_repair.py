"""What the stream loses comes back by REST, and the rows say so."""

import pytest

from ingest.simulator.faults import ClosingKline, MissingRows, NoEmptyRows, ReviseMinute, Silence
from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.service import assert_true, configuration, fast_simulator, running, stored
from tests.waiting import eventually

BINANCE = ("BINANCE_FUTURES", "BTC/USDT:USDT")
BYBIT = ("BYBIT", "BTC/USDT:USDT")
THIN = ("BINANCE_FUTURES", "B/USDT:USDT")
PAIRS = {"BINANCE_FUTURES": ["BTC/USDT:USDT", "B/USDT:USDT"], "BYBIT": ["BTC/USDT:USDT"]}


@pytest.fixture
async def simulator():
    async with fast_simulator() as simulator:
        yield simulator


async def new_candles(settings, since_ms, where, count=2):
    def found():
        rows = [row for row in stored(settings, "ohlcv_3m", *where) if row.time >= since_ms]
        return rows if len(rows) >= count else None

    return await eventually(found, 60, f"{count} new candles of {where}")


def next_candle_ms(clock):
    now_ms = clock.now_ms()
    return now_ms - now_ms % CANDLE_MS + CANDLE_MS


ASTRAY = {"BTC": "drop", "ETH": "delay", "SOL": "duplicate", "XRP": "reorder"}


async def test_closing_klines_that_go_astray_cost_no_candle(simulator, tmp_path, free_port):
    pairs = {exchange: [f"{base}/USDT:USDT" for base in ASTRAY] for exchange in PAIRS}
    settings = configuration(simulator, tmp_path, free_port, pairs=pairs)
    async with running(settings, simulator.clock):
        for exchange in pairs:
            for base, action in ASTRAY.items():
                fault = ClosingKline(action=action, delay_s=20, exchange=exchange, id=f"{base}USDT")
                simulator.inject(fault)
        since_ms = next_candle_ms(simulator.clock)
        for exchange in pairs:
            for pair in pairs[exchange]:
                await new_candles(settings, since_ms, (exchange, pair))
    for exchange in pairs:
        for pair in pairs[exchange]:
            rows = await assert_true(simulator, settings, exchange, pair)
            assert {row.revision for row in rows} == {0}
        dropped = stored(settings, "ohlcv_3m", exchange, "BTC/USDT:USDT", since_ms)
        assert {row.source for row in dropped} == {"rest"}


async def test_a_minute_revised_after_its_close_rewrites_the_candle(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    async with running(settings, simulator.clock):
        since_ms = next_candle_ms(simulator.clock)
        (first, *_) = await new_candles(settings, since_ms, BINANCE, count=1)
        minute_ms = first.time + MINUTE_MS
        simulator.inject(ReviseMinute(exchange=BINANCE[0], id="BTCUSDT", minute_ms=minute_ms))

        def rewritten():
            (row,) = stored(settings, "ohlcv_3m", *BINANCE, first.time, first.time + 1)
            return row if row.revision else None

        row = await eventually(rewritten, 30, "the corrected candle")
    assert row.revision == 1
    await assert_true(simulator, settings, *BINANCE)


async def test_minutes_that_the_exchange_has_no_row_for_become_synthetic(
    simulator, tmp_path, free_port
):
    simulator.inject(NoEmptyRows(exchange=THIN[0]))
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    async with running(settings, simulator.clock):
        await new_candles(settings, next_candle_ms(simulator.clock), THIN)
    minutes = stored(settings, "ohlcv_1m", *THIN)
    synthetic = [row for row in minutes if row.source == "synthetic"]
    assert synthetic
    by_time = {row.time: row for row in minutes}
    for row in synthetic:
        before = by_time.get(row.time - MINUTE_MS)
        if before is not None:
            assert row[3:7] == (before.close,) * 4
        assert (row.volume, row.trades) == (0.0, 0)
    await assert_true(simulator, settings, *THIN)


async def test_a_minute_that_rest_has_only_later_is_asked_for_again(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    async with running(settings, simulator.clock):
        since_ms = next_candle_ms(simulator.clock)
        simulator.inject(ClosingKline(action="drop", exchange=BYBIT[0], id="BTCUSDT"))
        hidden = MissingRows(
            exchange=BYBIT[0], id="BTCUSDT", start_ms=since_ms, end_ms=since_ms + CANDLE_MS,
            seconds=(since_ms - simulator.clock.now_ms()) / 1000 + 185,
        )  # fmt: skip
        simulator.inject(hidden)
        await new_candles(settings, since_ms + CANDLE_MS, BYBIT, count=1)

        def whole():
            rows = stored(settings, "ohlcv_3m", *BYBIT)
            times = [row.time for row in rows]
            return times == list(range(times[0], times[-1] + 1, CANDLE_MS))

        await eventually(whole, 30, "a store without a hole")
    await assert_true(simulator, settings, *BYBIT)


async def test_a_silent_connection_is_replaced_and_nothing_is_missing(
    simulator, tmp_path, free_port
):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    async with running(settings, simulator.clock) as service:
        since_ms = next_candle_ms(simulator.clock)
        simulator.inject(Silence(exchange="BINANCE_FUTURES", seconds=30))
        await eventually(
            lambda: service.status()["exchanges"]["BINANCE_FUTURES"]["connections"][0][
                "reconnects"
            ],
            30,
            "another connection",
        )
        await new_candles(settings, since_ms, BINANCE)
    await assert_true(simulator, settings, *BINANCE)
