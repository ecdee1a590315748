"""`ingest compare`: a running service against its exchange's REST, and what it says of faults."""

import asyncio
import json
import re
import sqlite3
import sys
from contextlib import closing

import pytest
from click.testing import CliRunner

from ingest.cli import main
from ingest.compare_command import Comparison
from ingest.compare_report import Report
from ingest.simulator.faults import RestDown
from ingest.simulator.server import Simulator
from marketdata.errors import ExchangeUnavailable, StoreUnavailable
from marketdata.schema import CANDLE_MS
from tests.service import configuration, fast_simulator, running, stored
from tests.waiting import eventually

PROGRAM = "from ingest.cli import main; main()"

BINANCE, BYBIT = "BINANCE_FUTURES", "BYBIT"
BTC, SPOT = "BTC/USDT:USDT", "BTC/USDT"
PAIRS = {BINANCE: [BTC, "B/USDT:USDT"], BYBIT: [BTC, SPOT]}


@pytest.fixture
async def simulator():
    async with fast_simulator() as simulator:
        yield simulator


async def filled(settings, simulator):
    """Until every pair has its newest closed candles."""

    def there():
        newest_ms = simulator.clock.now_ms() - 2 * CANDLE_MS - 60_000
        return all(
            (rows := stored(settings, "ohlcv_3m", exchange, pair)) and rows[-1].time >= newest_ms
            for exchange, pairs in PAIRS.items()
            for pair in pairs
        )

    await eventually(there, 30, "candles of every pair")


async def compared(settings, clock, **run):
    report = Report(clock.now_ms())
    comparison = Comparison(settings, clock, 0.5, report)
    await comparison.run(asyncio.Event(), **run)
    return report


def wrong(report):
    """What differs, but for lateness: at twenty-fold speed three seconds of a busy machine are a
    minute of the market."""
    found = [result for results in report.worst.values() for result in results]
    return [result for result in found if not result.what.startswith("late")]


async def test_a_sound_stream_equals_rest(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    async with running(settings, simulator.clock):
        await filled(settings, simulator)
        report = await compared(settings, simulator.clock)
    assert wrong(report) == [], report.as_markdown()
    same = {key: counts["same"] for key, counts in report.counts.items()}
    assert same.keys() == {
        (exchange, channel)
        for exchange in PAIRS
        for channel in ("candles", "funding", "mark_price")
    }
    assert all(same.values())


async def test_watching_goes_round_until_it_is_stopped(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    stop = asyncio.Event()
    report = Report(simulator.clock.now_ms())

    def kept():
        if report.rounds >= 4:
            stop.set()

    async with running(settings, simulator.clock):
        await filled(settings, simulator)
        comparison = Comparison(settings, simulator.clock, 0.5, report, kept=kept)
        await comparison.run(stop, watch=True, seconds=600)
    assert report.rounds >= 4
    assert wrong(report) == [], report.as_markdown()


async def test_watching_ends_with_its_time(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    async with running(settings, simulator.clock):
        await filled(settings, simulator)
        report = await compared(settings, simulator.clock, watch=True, seconds=30)
    assert report.compared
    assert report.ended_ms - report.started_ms >= 30_000


async def test_changed_values_and_a_lost_candle_are_found(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    async with running(settings, simulator.clock):
        await filled(settings, simulator)
    rows = stored(settings, "ohlcv_3m", BINANCE, BTC)
    newest_ms = stored(settings, "ohlcv_3m", BYBIT, SPOT)[-3].time
    with closing(sqlite3.connect(settings.store.path, isolation_level=None)) as store:
        pair = (BINANCE, BTC, rows[-3].time)
        where = "WHERE exchange = ? AND symbol = ? AND time = ?"
        store.execute(f"UPDATE ohlcv_3m SET close = close + 1 {where}", pair)
        store.execute(f"DELETE FROM ohlcv_3m {where}", (BYBIT, SPOT, newest_ms))
        # The service has ended: its newest values are made to be of now, and wrong.
        now_ms = simulator.clock.now_ms() + 600_000
        store.execute(
            "UPDATE last SET mark_price = mark_price * 1.5, funding_rate = funding_rate + 0.01,"
            " mark_event_ms = ?, funding_event_ms = ?",
            (now_ms, now_ms),
        )
    report = await compared(settings, simulator.clock)
    worst = {
        (exchange, channel, result.symbol): result
        for (exchange, channel), results in report.worst.items()
        for result in results
    }
    candle = worst[BINANCE, "candles", BTC]
    assert candle.what == "another close"
    assert candle.ours == f"close {rows[-3].close + 1!r}"
    assert candle.theirs == f"close {rows[-3].close!r}"
    assert worst[BYBIT, "candles", SPOT].what == "missing"
    assert "outside of the stream's own movement" in worst[BINANCE, "mark_price", BTC].what
    assert worst[BYBIT, "funding", BTC].what == "another rate"
    assert "another close" in report.as_markdown()
    assert report.as_json()["differing"] == report.differing > 0


async def test_an_exchange_or_a_store_that_is_away_is_an_error(simulator, tmp_path, free_port):
    settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
    with pytest.raises(BaseExceptionGroup) as raised:
        await compared(settings, simulator.clock)
    assert raised.group_contains(StoreUnavailable)
    simulator.inject(RestDown(exchange=BINANCE))
    simulator.inject(RestDown(exchange=BYBIT))
    with pytest.raises(BaseExceptionGroup) as raised:
        await compared(settings, simulator.clock)
    assert raised.group_contains(ExchangeUnavailable)


async def test_the_command_ends_with_0_and_keeps_its_report(tmp_path, free_port):
    """At the world's speed, as a user runs it."""
    async with Simulator() as simulator:
        settings = configuration(simulator, tmp_path, free_port, pairs=PAIRS)
        document = {
            "store": {"kind": "sqlite", "path": "market_data.db"},
            "exchanges": {
                exchange: {"pairs": pairs, "rest_url": simulator.url}
                for exchange, pairs in PAIRS.items()
            },
        }
        (tmp_path / "config.yaml").write_text(json.dumps(document))
        async with running(settings, simulator.clock):
            await filled(settings, simulator)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", PROGRAM, "compare", "--config",
                str(tmp_path / "config.yaml"), "--report", str(tmp_path / "report.md"),
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, output.decode()
    assert "0 differ" in output.decode()
    kept = (tmp_path / "report.md").read_text()
    assert re.search(r"\| BYBIT \| candles \| (\d+) \| \1 \| 0 \| 0 \|", kept), kept


def run(tmp_path, *arguments, code):
    path = tmp_path / "config.yaml"
    url = "http://127.0.0.1:9"
    path.write_text(json.dumps({"exchanges": {BINANCE: {"pairs": [BTC], "rest_url": url}}}))
    done = CliRunner().invoke(main, ["compare", "--config", str(path), *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_the_command_ends_with_3_where_nobody_answers_and_with_2_on_wrong_use(tmp_path):
    assert "127.0.0.1:9" in run(tmp_path, "--log-level", "error", code=3)
    assert "neither in .md nor in .json" in run(tmp_path, "--report", "x.txt", code=2)
    assert "not in the configuration" in run(tmp_path, "--exchange", "OKX", code=2)
    assert "1 hour" in run(tmp_path, "--for", "1 hour", code=2)
