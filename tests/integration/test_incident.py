"""What a service saw of an incident, a replay of its capture sees again."""

import pytest

from ingest.replaying import replay_capture
from ingest.simulator.faults import Close, ClosingKline, Silence
from marketdata.schema import MINUTE_MS
from readers.sources.sqlite import SqliteSource
from tests.service import configuration, fast_simulator, running, stored
from tests.waiting import eventually

PAIRS = {"BINANCE_FUTURES": ["BTC/USDT:USDT", "ETH/USDT:USDT"], "BYBIT": ["BTC/USDT:USDT"]}


@pytest.fixture
async def simulator():
    async with fast_simulator() as simulator:
        yield simulator


def gaps(rows, since_ms):
    return {
        (row.symbol, row.channel, row.time, row.reason)
        for row in rows
        if row.time >= since_ms and row.channel == "candles"
    }


async def halfway_through_a_minute(clock):
    """Of the next one: the minute of a start, and its turn, are judged by a second more or less."""
    await clock.sleep((MINUTE_MS * 1.5 - clock.now_ms() % MINUTE_MS) / 1000)


async def test_a_replayed_incident_gives_the_same_ledger_as_the_live_run(
    simulator, tmp_path, free_port
):
    capture = {"capture": {"path": "capture", "segment": "10s"}}
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS, extra=capture)
    async with running(settings, simulator.clock) as service:
        await halfway_through_a_minute(simulator.clock)
        since_ms = simulator.clock.now_ms() // MINUTE_MS * MINUTE_MS
        simulator.inject(ClosingKline(action="drop", exchange="BYBIT", id="BTCUSDT", seconds=200))
        simulator.inject(Silence(exchange="BINANCE_FUTURES", id="ETHUSDT", seconds=150))
        await simulator.clock.sleep(160)
        await halfway_through_a_minute(simulator.clock)
        simulator.inject(Close(code=1006))
        await simulator.clock.sleep(120)
        await eventually(lambda: service.status()["gaps"]["open"] == 0, 30, "no open gap")
        until_ms = simulator.clock.now_ms()
    live = {
        exchange: gaps(
            [row for pair in pairs for row in stored(settings, "gap", exchange, pair)], since_ms
        )
        for exchange, pairs in PAIRS.items()
    }
    assert live["BYBIT"]
    assert live["BINANCE_FUTURES"]
    store = tmp_path / "replay.db"
    await replay_capture(tmp_path / "capture", store, until_ms=until_ms)
    source = SqliteSource(store)
    try:
        for exchange, pairs in PAIRS.items():
            rows = [r for pair in pairs for r in source.rows("gap", exchange, pair, 0, 2**53)]
            assert gaps(rows, since_ms) == live[exchange]
    finally:
        source.close()
