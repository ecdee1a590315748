"""Two exchanges, every channel: what the simulator says is what the store holds."""

from functools import partial

import aiohttp
import pytest

from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.service import (
    PAIRS,
    assert_true,
    candles_since,
    configuration,
    every_pair_has_one,
    fast_simulator,
    running,
    stored,
)
from tests.waiting import eventually


@pytest.fixture
async def simulator():
    async with fast_simulator() as simulator:
        yield simulator


async def test_streamed_and_repaired_candles_of_both_exchanges_equal_the_truth(
    simulator, tmp_path, free_port
):
    settings = configuration(simulator, tmp_path, free_port)
    started_ms = simulator.clock.now_ms()
    async with running(settings, simulator.clock):
        await eventually(
            lambda: all(len(rows) >= 2 for rows in candles_since(settings, started_ms)),
            60,
            "two new candles of every pair",
        )
    for exchange, pairs in PAIRS.items():
        for pair in pairs:
            rows = await assert_true(simulator, settings, exchange, pair)
            assert rows[0].time <= started_ms - 14 * MINUTE_MS
            assert {row.source for row in rows if row.time < started_ms - CANDLE_MS} == {"rest"}
    busy = stored(settings, "ohlcv_3m", "BINANCE_FUTURES", "BTC/USDT:USDT")
    assert busy[-1].source == "stream"


async def test_a_restart_leaves_no_hole_and_doubles_nothing(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port)
    for _ in range(2):
        started_ms = simulator.clock.now_ms()
        async with running(settings, simulator.clock):
            await eventually(
                partial(every_pair_has_one, settings, started_ms),
                60,
                "a new candle of every pair",
            )
        await simulator.clock.sleep(100)
    for exchange, pairs in PAIRS.items():
        for pair in pairs:
            rows = await assert_true(simulator, settings, exchange, pair)
            assert {row.revision for row in rows} == {0}


async def test_funding_and_marks_mean_what_the_exchange_means(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port)
    async with running(settings, simulator.clock):
        await eventually(
            lambda: (
                stored(settings, "funding_rate", "BYBIT", "BTC/USDT:USDT")
                and stored(settings, "funding_rate", "BINANCE_FUTURES", "XAU/USDT:USDT")
            ),
            30,
            "funding of both exchanges",
        )
    for exchange, pair in (("BINANCE_FUTURES", "BTC/USDT:USDT"), ("BYBIT", "BTC/USDT:USDT")):
        contract = simulator.market.contract(exchange, "BTCUSDT", "perpetual")
        for funding in stored(settings, "funding_rate", exchange, pair):
            assert abs(funding.rate) < 0.01
            assert funding.predicted_rate is None
            assert funding.interval_hours == contract.interval_hours
            assert funding.next_funding_ms % 3_600_000 == 0
            ahead_ms = funding.next_funding_ms - funding.time
            assert -60_000 < ahead_ms <= contract.interval_hours * 3_600_000
        marks = stored(settings, "mark_price", exchange, pair)
        assert len({row.time // 1_000 for row in marks}) == len(marks)
        assert all(abs(row.mark_price / row.index_price - 1) < 0.05 for row in marks)
    assert stored(settings, "mark_price", "BYBIT", "BTC/USDT") == []


async def test_pairs_follow_the_configuration_without_a_restart(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port)
    wider = dict(PAIRS, BYBIT=["BTC/USDT:USDT", "SOL/USDT:USDT", "NOPE/USDT:USDT"])
    changed = configuration(simulator, tmp_path, free_port, pairs=wider)
    async with running(settings, simulator.clock, reload=lambda: changed) as service:
        service.reconcile_soon()
        await eventually(
            lambda: (
                set(service.status()["exchanges"]["BYBIT"]["pairs"])
                == {"BTC/USDT:USDT", "SOL/USDT:USDT"}
            ),
            30,
            "the new pairs",
        )
        await eventually(
            lambda: stored(settings, "ohlcv_3m", "BYBIT", "SOL/USDT:USDT"), 30, "its history"
        )
    await assert_true(simulator, settings, "BYBIT", "SOL/USDT:USDT")


async def test_with_rest_down_the_service_starts_on_the_markets_it_knew(
    simulator, tmp_path, free_port
):
    settings = configuration(simulator, tmp_path, free_port)
    async with running(settings, simulator.clock):
        pass
    async with aiohttp.ClientSession() as session:
        fault = {"kind": "rest_down"}
        async with session.post(f"{simulator.url}/sim/faults", json=fault) as answer:
            assert answer.status < 300, await answer.text()
    async with running(settings, simulator.clock) as service:
        assert set(service.status()["exchanges"]) == set(PAIRS)


async def test_the_monitor_tells_the_same_state_as_json_health_and_metrics(
    simulator, tmp_path, free_port
):
    settings = configuration(simulator, tmp_path, free_port)
    url = f"http://127.0.0.1:{free_port}"
    async with running(settings, simulator.clock), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/status") as answer:
            status = await answer.json()
        async with session.get(f"{url}/health") as answer:
            assert (answer.status, (await answer.json())["fresh"]) == (200, True)
        async with session.get(f"{url}/metrics") as answer:
            metrics = await answer.text()
    assert status["exchanges"]["BYBIT"]["pairs"]["BTC/USDT"].keys() == {"candles", "last_price"}
    assert status["store"]["kind"] == "sqlite"
    assert status["dropped"] == {}
    assert "ingest_fresh 1.0" in metrics
    figures = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[:1] != "#")
    assert float(figures["process_resident_memory_bytes"]) > 2**24
    assert float(figures["process_open_fds"]) > 10
    assert float(figures["ingest_tasks"]) > 10
    assert 0 <= float(figures["ingest_inbox_events"]) <= 50_000
    assert 'ingest_connections{exchange="BINANCE_FUTURES",state="live"} 1.0' in metrics


async def test_exchanges_join_and_leave_without_a_restart(simulator, tmp_path, free_port):
    both = configuration(simulator, tmp_path, free_port)
    one = configuration(
        simulator, tmp_path, free_port, pairs={"BINANCE_FUTURES": PAIRS["BINANCE_FUTURES"]}
    )
    asked = iter([both, one])
    async with running(one, simulator.clock, reload=lambda: next(asked)) as service:
        binance = service.status()["exchanges"]["BINANCE_FUTURES"]["connections"]
        service.reconcile_soon()
        await eventually(
            lambda: service.status()["exchanges"].get("BYBIT", {}).get("state") == "live",
            30,
            "the second exchange live",
        )
        await eventually(
            lambda: stored(one, "ohlcv_3m", "BYBIT", "BTC/USDT:USDT"), 30, "its history"
        )
        service.reconcile_soon()
        await eventually(lambda: "BYBIT" not in service.status()["exchanges"], 30, "it is gone")
        after = service.status()["exchanges"]["BINANCE_FUTURES"]["connections"]
        assert [lane["opened_ms"] for lane in after] == [lane["opened_ms"] for lane in binance]
