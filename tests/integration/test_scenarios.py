"""A whole service through the exchanges' bad days, against the truth."""

from collections import Counter

import pytest
from structlog.testing import capture_logs

from ingest.simulator.faults import HaltTrading, Lifetime, Maintenance, Notice
from ingest.simulator.universe import BINANCE, BYBIT
from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.service import PAIRS, assert_true, candles_since, configuration, fast_simulator, running
from tests.waiting import eventually


@pytest.fixture
async def simulator():
    async with fast_simulator() as simulator:
        yield simulator


async def whole_since(settings, since_ms, until_ms):
    """Until every pair has every candle of since <= open < until."""
    first_ms = -(-since_ms // CANDLE_MS) * CANDLE_MS
    opens = set(range(first_ms, until_ms // CANDLE_MS * CANDLE_MS, CANDLE_MS))
    await eventually(
        lambda: all(opens <= {row.time for row in rows} for rows in candles_since(settings, 0)),
        60,
        "every candle of every pair",
    )


async def test_the_daily_cut_twice_loses_and_doubles_nothing(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port)
    async with running(settings, simulator.clock):
        started_ms = simulator.clock.now_ms()
        handshakes = simulator.stats()[BINANCE]["handshakes"]
        simulator.inject(Lifetime(age_s=100, exchange=BINANCE, seconds=250))
        simulator.inject(Notice(cut_after_s=30))
        await eventually(lambda: simulator.clock.now_ms() > started_ms + 360_000, 30)
        assert simulator.stats()[BINANCE]["handshakes"] - handshakes >= 2
        await whole_since(settings, started_ms, started_ms + 360_000)
    for exchange, pairs in PAIRS.items():
        for pair in pairs:
            await assert_true(simulator, settings, exchange, pair)


async def test_an_exchange_under_maintenance_costs_few_requests_and_few_lines(
    simulator, tmp_path, free_port
):
    settings = configuration(simulator, tmp_path, free_port)
    with capture_logs() as logs:
        async with running(settings, simulator.clock):
            before = simulator.stats()
            began_ms, lines = simulator.clock.now_ms(), len(logs)
            simulator.inject(Maintenance(seconds=300))
            await eventually(lambda: simulator.clock.now_ms() > began_ms + 300_000, 30)
            ours = [line for line in logs[lines:] if not line["event"].startswith("fault_")]
            after = simulator.stats()
            await whole_since(settings, began_ms, began_ms + 300_000)
    for exchange in (BINANCE, BYBIT):
        spent = {name: after[exchange][name] - before[exchange][name] for name in before[exchange]}
        assert spent["handshakes"] <= 5 * 10
        assert spent["rest_requests"] <= 5 * 30
    told = Counter(line["event"] for line in ours if line["log_level"] in ("warning", "error"))
    assert told.total() <= 20, told


async def test_a_dead_market_is_flat_and_costs_no_requests(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port)
    async with running(settings, simulator.clock):
        simulator.inject(HaltTrading(minutes=9))
        dead_ms = (simulator.clock.now_ms() // MINUTE_MS + 1) * MINUTE_MS
        await eventually(lambda: simulator.clock.now_ms() > dead_ms + 120_000, 30)
        before = simulator.stats()
        await eventually(lambda: simulator.clock.now_ms() > dead_ms + 420_000, 40)
        after = simulator.stats()
        await whole_since(settings, dead_ms, dead_ms + 420_000)
    for exchange, pairs in PAIRS.items():
        asked = after[exchange]["rest_requests"] - before[exchange]["rest_requests"]
        assert asked <= 5 * (len(pairs) + 2), "at most a call a pair and minute"
        for pair in pairs:
            rows = await assert_true(simulator, settings, exchange, pair)
            quiet = [row for row in rows if dead_ms <= row.time < dead_ms + 420_000]
            assert quiet
            assert {(row.high - row.low, row.volume) for row in quiet} == {(0, 0)}
