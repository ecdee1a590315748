"""Two services on one store, each with an exchange connection, an outbox and a ledger of its own.

Each has a simulator of its own that shows the same market on the same clock, so that what happens
to the connections of one doesn't happen to the other.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from ingest.clock import Clock
from ingest.simulator.faults import Close, RefuseHandshakes, ReviseMinute
from ingest.simulator.market import Market
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE, BYBIT
from ingest.sinks import open_sink
from marketdata.schema import CANDLE_MS, MINUTE_MS, Gap
from tests.scenarios import Scene, measured
from tests.servers.process import free_port
from tests.service import MARKET_STARTS_MS, assert_true, running
from tests.waiting import eventually

BTC = "BTC/USDT:USDT"
PAIRS = {BINANCE: [BTC, "ETH/USDT:USDT"], BYBIT: [BTC, "BTC/USDT"]}
SPEED = 20.0
OFF_S = 120


@pytest.fixture
async def venues():
    """The same market twice."""
    clock = Clock(SPEED, MARKET_STARTS_MS)
    market = Market(as_of_ms=clock.now_ms())
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Simulator(market=market, clock=clock)) for _ in "ab"]


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """What takes real time gets it: a busy machine is late by more than the clock's seconds."""
    monkeypatch.setattr("ingest.connection.HANDSHAKE_S", 1_000.0)
    monkeypatch.setattr("ingest.minutes.GRACE_MS", 40_000)
    monkeypatch.setattr("ingest.stored.ANSWER_S", 300.0)


@pytest.fixture
def hurry(monkeypatch):
    """What is done every ten minutes is done every minute from now on."""

    def hurry():
        monkeypatch.setattr("ingest.repair.AGREE_S", 60.0)
        monkeypatch.setattr("ingest.outages.ADOPT_S", 60.0)
        monkeypatch.setattr("ingest.gaps.ABANDONED_MS", 60_000)

    return hurry


def scenes(venues, folder, store):
    """A service's settings at each venue, on the same store."""
    return [
        Scene(venue, folder / name, free_port(), PAIRS, {"store": store})
        for name, venue in zip("ab", venues, strict=True)
    ]


@asynccontextmanager
async def unswerving(scene):
    """Meanwhile no stored row's source gets worse, and no revision falls, whoever writes."""
    seen: dict[tuple[object, ...], tuple[int, int]] = {}
    order = ("synthetic", "rest", "stream")

    async def look():
        while True:
            for where in scene.where():
                for measurement in ("ohlcv_3m", "ohlcv_1m"):
                    for row in scene.rows(measurement, where):
                        now = (row.revision, order.index(row.source))
                        before = seen.setdefault((*where, measurement, row.time), now)
                        assert now >= before, (measurement, row, before)
                        seen[*where, measurement, row.time] = now
                await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking
    assert seen


def next_candle_ms(clock):
    return clock.now_ms() // CANDLE_MS * CANDLE_MS + CANDLE_MS


def fetched(*those):
    """Minutes that were fetched so far."""
    return [scene.service.status()["minutes"]["repaired"] for scene in those]


def calls(*those):
    return [sum(s["rest_requests"] for s in scene.simulator.stats().values()) for scene in those]


async def assert_true_and_unrevised(scene, since_ms):
    """Every row since then equals the truth, and no value was ever another."""
    sources: Counter[str] = Counter()
    for where in scene.where():
        await assert_true(scene.simulator, scene.settings, *where)
        for measurement in ("ohlcv_3m", "ohlcv_1m"):
            rows = scene.rows(measurement, where, since_ms)
            assert {row.revision for row in rows} == {0}, (where, measurement)
            sources.update(row.source for row in rows)
    # A machine that is late for seconds may have both ask for what the stream then brings.
    assert sources["stream"] >= 0.9 * sources.total(), sources


async def test_what_one_misses_the_other_has_written_and_nothing_is_fetched(
    venues, tmp_path, hurry
):
    store = {"kind": "sqlite", "path": str(tmp_path / "market_data.db"), "ticks": {"every": "1s"}}
    one, other = scenes(venues, tmp_path, store)
    clock = one.clock
    async with (
        running(one.settings, clock) as one.service,
        running(other.settings, clock) as other.service,
        unswerving(other),
    ):
        since_ms = next_candle_ms(clock)
        await one.settled()
        await other.settled()
        await one.whole(since_ms, since_ms + CANDLE_MS)
        before, asked, off_ms = fetched(one, other), calls(one, other), clock.now_ms()
        venues[0].inject(RefuseHandshakes(seconds=OFF_S))
        venues[0].inject(Close(code=1006))
        await eventually(lambda: one.states("mark_price") == {"disconnected"}, 30, "it is told")
        await one.settled()
        whole_ms = clock.now_ms()
        await one.whole(since_ms, whole_ms)
        assert whole_ms - off_ms >= OFF_S * 1000
        missed = (whole_ms - off_ms) // MINUTE_MS * len(one.where())
        assert sum(fetched(one, other)) - sum(before) <= 0.2 * missed
        more = [now - then for now, then in zip(calls(one, other), asked, strict=True)]
        measured("minutes fetched, REST calls while one was off", (before, more))
        for where in one.where():
            gaps = one.gaps(where, off_ms - MINUTE_MS)
            assert ("candles", "disconnected", "repaired") in gaps
            assert {state for _, _, state in gaps} <= {"repaired", "empty"}, "the other had it"
        await assert_true_and_unrevised(one, since_ms)
        for where in ((BINANCE, BTC), (BYBIT, BTC)):
            marks = one.rows("mark_3m", where, since_ms, whole_ms)
            assert "stream" in {mark.source for mark in marks}

        hurry()
        await other_follows_a_correction_that_only_one_has_heard(one, other, since_ms)


async def other_follows_a_correction_that_only_one_has_heard(one, other, since_ms):
    where, minute_ms = (BINANCE, BTC), since_ms + MINUTE_MS
    one.simulator.inject(ReviseMinute(exchange=BINANCE, id="BTCUSDT", minute_ms=minute_ms))

    def revised():
        (row,) = one.rows("ohlcv_3m", where, since_ms, since_ms + 1)
        return row if row.revision else None

    await eventually(revised, 30, "the corrected candle")
    book = other.service._pipeline.books[where]
    await eventually(lambda: book.revisions[minute_ms] == 1, 30, "the other's book follows")
    await one.clock.sleep(70)
    assert revised().revision == 1, "it is the next one, however often it is looked at"
    await assert_true(one.simulator, one.settings, *where)


def left_open(where, start_ms, channel):
    """What a collector that dies leaves in the ledger."""
    exchange, pair = where
    until_ms = start_ms + MINUTE_MS
    return Gap(exchange, pair, channel, start_ms, until_ms, "disconnected", "open", None)


async def test_either_may_end_and_come_back_and_leaves_no_gap_open(venues, tmp_path, influx, hurry):
    hurry()
    store = {
        "kind": "influxdb", "url": influx.url, "org": influx.org, "bucket": influx.bucket,
        "token": influx.token, "ticks": {"every": "1s"},
    }  # fmt: skip
    one, other = scenes(venues, tmp_path, store)
    clock = one.clock
    async with running(other.settings, clock) as other.service:
        async with running(one.settings, clock) as one.service:
            since_ms = next_candle_ms(clock)
            await one.settled()
            await other.whole(since_ms, since_ms + CANDLE_MS)
        sink = open_sink(one.settings)
        dead = [
            left_open(where, since_ms, channel)
            for where in one.where()
            for channel in ("candles", "mark_price", "funding")
            if channel == "candles" or ":" in where[1]
        ]
        await sink.write({"gap": dead})
        await sink.close()
        before, asked = fetched(other), calls(other)
        await clock.sleep(70)

        def closed():
            left = {(gap.exchange, gap.symbol, gap.channel) for gap in dead}
            gaps = [gap for where in one.where() for gap in other.rows("gap", where, since_ms)]
            ours = [gap for gap in gaps if gap.time == since_ms]
            assert {(gap.exchange, gap.symbol, gap.channel) for gap in ours} >= left
            return {gap.state for gap in ours} == {"repaired"}

        await eventually(closed, 60, "nothing that the dead one left is open")
        async with running(one.settings, clock) as one.service:
            await one.settled()
            back_ms = clock.now_ms()
            await other.whole(since_ms, back_ms)
            measured("REST calls of the one that stayed", calls(other)[0] - asked[0])
            measured("minutes fetched by the one that came back", fetched(one))
            measured("minutes fetched by the one that stayed", fetched(other)[0] - before[0])
            assert sum(fetched(one, other)) - before[0] <= 2
    await assert_true_and_unrevised(one, since_ms)
