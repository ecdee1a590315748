"""A whole service through the exchanges' odd days, while connections hold: against the truth."""

import pytest
from structlog.testing import capture_logs

from ingest.simulator.faults import (
    Delist,
    FundingInterval,
    HaltTrading,
    Lifetime,
    ListNew,
    NoEmptyRows,
    Notice,
    Rename,
    Silence,
    Skew,
)
from ingest.simulator.universe import BINANCE, BYBIT
from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.scenarios import Scene, hurrying_simulator, measured
from tests.service import assert_true, running
from tests.waiting import eventually

PAIRS = {
    BINANCE: ["BTC/USDT:USDT", "ETH/USDT:USDT", "XAU/USDT:USDT"],
    BYBIT: ["BTC/USDT:USDT", "ETH/USDT:USDT", "BTC/USDT"],
}
HOUR_MS = 3_600_000
BEFORE_SETTLEMENT_MS = 1_795_190_400_000 - 150_000
"""Two and a half minutes before a full eight hours."""


@pytest.fixture
async def simulator():
    async with hurrying_simulator() as simulator:
        yield simulator


async def test_the_daily_cut_twice_loses_and_doubles_nothing(
    simulator, tmp_path, free_port, monkeypatch
):
    monkeypatch.setattr("ingest.exchanges.binance_futures.LIFETIME_S", 110.0)
    monkeypatch.setattr("ingest.opening.LIFETIME_JITTER_S", 10.0)
    scene, clock = Scene(simulator, tmp_path, free_port, PAIRS), simulator.clock
    simulator.inject(Lifetime(age_s=150, exchange=BINANCE))
    async with running(scene.settings, clock) as scene.service:
        await scene.settled()
        since_ms = clock.now_ms()
        await clock.reach(since_ms + 250_000)
        simulator.inject(Notice())
        await clock.reach(since_ms + 2 * CANDLE_MS + 10_000)  # holds one whole candle at least
        until_ms = clock.now_ms() - 5_000
        (lane,) = scene.lanes(BINANCE).values()
        await scene.whole(since_ms, until_ms)
        await scene.settled()
    measured("rotations, reconnects", (lane["rotations"], lane["reconnects"]))
    assert lane["rotations"] >= 3
    assert lane["reconnects"] == 0
    for pair in PAIRS[BINANCE]:
        where = (BINANCE, pair)
        rows = await assert_true(simulator, scene.settings, *where)
        assert {row.revision for row in rows} == {0}
        assert {row.source for row in rows if row.time > since_ms} == {"stream"}
        assert not scene.gaps(where, since_ms)
        if pair != "XAU/USDT:USDT":  # its marks are off the whole second
            scene.assert_every_second_has_its_mark(where, since_ms, until_ms)


async def test_a_silent_pair_is_told_and_its_connection_replaced_and_others_lose_nothing(
    simulator, tmp_path, free_port
):
    scene, clock = Scene(simulator, tmp_path, free_port, PAIRS), simulator.clock
    silent = {exchange: (exchange, "ETH/USDT:USDT") for exchange in PAIRS}
    carrying = {BINANCE: "market-1", BYBIT: "linear-1"}
    with capture_logs() as logs:
        async with running(scene.settings, clock) as scene.service:
            await scene.settled()
            await clock.sleep(60)  # the minute in which the connection was opened is over
            since_ms = clock.now_ms()
            simulator.inject(Silence(id="ETHUSDT", market="perpetual", seconds=70))
            await eventually(
                lambda: {scene.state(where, "mark_price") for where in silent.values()} == {"late"},
                15,
                "late",
            )
            for exchange, (_, pair) in silent.items():
                cell = scene.exchange(exchange)["pairs"][pair]["mark_price"]
                measured(f"late on {exchange} after (s)", (cell["since_ms"] - since_ms) / 1000)
                assert cell["since_ms"] - since_ms <= 15_000
            await eventually(
                lambda: all(scene.lanes(e)[carrying[e]]["rotations"] for e in PAIRS),
                15,
                "another connection",
            )
            await clock.reach(since_ms + 2 * CANDLE_MS + 10_000)  # at least one whole candle
            until_ms = clock.now_ms() - 5_000
            await scene.whole(since_ms, until_ms)
            await scene.settled()
            lanes = {e: scene.lanes(e)[carrying[e]] for e in PAIRS}
    told = [line for line in logs if line["event"] == "pair_silent"]
    assert {(line["exchange"], line["pair"]) for line in told} == set(silent.values())
    assert [line["channel"] for line in told].count("mark_price") == len(silent)
    for exchange, where in silent.items():
        # Bybit tells a pair's funding with the subscription only: that takes a second one.
        assert lanes[exchange]["rotations"] <= 2
        assert lanes[exchange]["reconnects"] == 0
        await assert_true(simulator, scene.settings, *where)
        gaps = scene.gaps(where, since_ms - MINUTE_MS)
        assert ("mark_price", "silent", "repaired") in gaps
        assert ("candles", "silent", "repaired") in gaps
        assert {reason for _, reason, _ in gaps} == {"silent"}
        assert {state for channel, _, state in gaps if channel != "funding"} == {"repaired"}
    for where in set(scene.where()) - set(silent.values()):
        rows = await assert_true(simulator, scene.settings, *where)
        assert {row.source for row in rows if row.time > since_ms} == {"stream"}
        assert not scene.gaps(where, since_ms - MINUTE_MS)
    scene.assert_every_second_has_its_mark((BINANCE, "BTC/USDT:USDT"), since_ms, until_ms)


async def test_an_hour_without_trades_is_quiet_flat_and_asks_for_little(
    simulator, tmp_path, free_port
):
    scene, clock = Scene(simulator, tmp_path, free_port, PAIRS), simulator.clock
    simulator.inject(NoEmptyRows(exchange=BINANCE))
    async with running(scene.settings, clock) as scene.service:
        await scene.settled()
        simulator.inject(HaltTrading(minutes=60))
        dead_ms = (clock.now_ms() // MINUTE_MS + 1) * MINUTE_MS
        await clock.reach(dead_ms + 3 * MINUTE_MS)
        before = simulator.stats()
        clock.hurry(70)
        seen = set()

        def over():
            # At this speed a machine that is busy may be late itself, with everything.
            if scene.states("mark_price") == {"live"}:
                seen.update(scene.states("candles") | scene.states("last_price"))
            return clock.now_ms() >= dead_ms + HOUR_MS - MINUTE_MS

        await eventually(over, 60, "the hour")
        after, spot = simulator.stats(), scene.lanes(BYBIT)["spot-1"]
        clock.hurry(20)
        await scene.whole(dead_ms, clock.now_ms())
        await scene.settled()
    measured("rotations of spot in 56 min", spot["rotations"])
    # Likewise it may drop a connection by itself.
    assert "quiet" in seen
    assert seen <= {"quiet", "live", "disconnected"}, "never late"
    assert 3 <= spot["rotations"] <= 5 * 6, "few in ten minutes"
    for exchange, pairs in PAIRS.items():
        asked = after[exchange]["rest_requests"] - before[exchange]["rest_requests"]
        measured(f"REST calls to {exchange} in 56 min", asked)
        # An exchange without a row is asked until it has had time to make one.
        assert asked <= 5 * (56 / 3 + 1) * len(pairs), "five calls a pair and candle"
    for where in scene.where():
        rows = await assert_true(simulator, scene.settings, *where)
        flat = [row for row in rows if dead_ms <= row.time < dead_ms + HOUR_MS - CANDLE_MS]
        assert len(flat) >= 18
        assert {(row.high - row.low, row.volume) for row in flat} == {(0, 0)}
        if where[0] == BINANCE:
            assert {row.source for row in flat[1:]} == {"synthetic"}
            gaps = scene.gaps(where, dead_ms)
            assert ("candles", "silent", "empty") in gaps


async def test_listed_delisted_and_renamed_pairs_and_another_interval_need_no_restart(
    tmp_path, free_port, monkeypatch
):
    monkeypatch.setattr("ingest.collector.DISCOVER_S", 10.0)
    monkeypatch.setattr("ingest.collector.REFRESH_S", 20.0)
    monkeypatch.setattr("ingest.collector.REFRESH_LEAST_S", 5.0)
    bases = ("BTC", "SOL", "EOS", "NEWCOIN", "VAULTA")
    pairs = {exchange: [f"{base}/USDT:USDT" for base in bases] for exchange in PAIRS}
    async with hurrying_simulator(start_ms=BEFORE_SETTLEMENT_MS) as simulator:
        scene, clock = Scene(simulator, tmp_path, free_port, pairs), simulator.clock
        settlement_ms = BEFORE_SETTLEMENT_MS + 150_000
        async with running(scene.settings, clock) as scene.service:
            for exchange in PAIRS:
                assert set(scene.exchange(exchange)["pairs"]) == set(pairs[exchange][:3])
                simulator.inject(Delist(exchange=exchange, id="SOLUSDT", gone_after_s=120))
                simulator.inject(ListNew(exchange=exchange, base="NEWCOIN"))
                simulator.inject(Rename(exchange=exchange, id="EOSUSDT", base="VAULTA"))
                simulator.inject(FundingInterval(exchange=exchange, id="BTCUSDT", hours=4))
            now = {f"{base}/USDT:USDT" for base in ("BTC", "NEWCOIN", "VAULTA")}
            await eventually(
                lambda: all(set(scene.exchange(e)["pairs"]) == now for e in PAIRS), 30, "the pairs"
            )
            scene.pairs = {exchange: sorted(now) for exchange in PAIRS}
            await eventually(
                lambda: all(scene.rows("ohlcv_3m", where) for where in scene.where()),
                60,
                "candles of the new pairs",
            )
            btc = [(exchange, "BTC/USDT:USDT") for exchange in PAIRS]
            await settlements_of(scene, btc, settlement_ms)
            newest = [scene.rows("funding_rate", where)[-1] for where in btc]
            assert {row.interval_hours for row in newest} == {4}
            assert {row.next_funding_ms for row in newest} == {settlement_ms + 4 * HOUR_MS}
            # As a machine does that was suspended for hours.
            clock.leap(settlement_ms + 4 * HOUR_MS - MINUTE_MS)
            await settlements_of(scene, btc, settlement_ms + 4 * HOUR_MS)
            await scene.settled()
        for where in btc:
            rows = {row.time: row for row in scene.rows("funding_settled", where)}
            assert rows[settlement_ms + 4 * HOUR_MS].interval_hours == 4
        for where in scene.where():
            await assert_true(simulator, scene.settings, *where)
        for exchange in PAIRS:
            for _, _, state in scene.gaps((exchange, "SOL/USDT:USDT")):
                assert state != "open", "nobody waits for a pair that is gone"


async def test_a_delisted_pair_is_noticed_by_its_silence_at_the_cost_of_one_rotation(
    simulator, tmp_path, free_port
):
    pairs = {exchange: ["BTC/USDT:USDT", "SOL/USDT:USDT"] for exchange in PAIRS}
    scene, clock = Scene(simulator, tmp_path, free_port, pairs), simulator.clock
    with capture_logs() as logs:
        async with running(scene.settings, clock) as scene.service:
            await scene.settled()
            ends_ms = (clock.now_ms() // MINUTE_MS + 1) * MINUTE_MS
            for exchange in PAIRS:
                simulator.inject(Delist(exchange=exchange, id="SOLUSDT"))
            await eventually(
                lambda: all(set(scene.exchange(e)["pairs"]) == {"BTC/USDT:USDT"} for e in PAIRS),
                20,
                "without the delisted pair",
            )
            after_ms = clock.now_ms() - ends_ms
    measured("followed after (s)", after_ms / 1000)
    assert after_ms <= 120_000, "not at the next reading of all markets"
    told = [line["exchange"] for line in logs if line["event"] == "pair_silent"
            and line["pair"] == "SOL/USDT:USDT"]  # fmt: skip
    assert len(told) == len(set(told)), "a second connection would not bring it back"


async def settlements_of(scene, pairs, time_ms):
    await eventually(
        lambda: all(scene.rows("funding_settled", where, time_ms, time_ms + 1) for where in pairs),
        60,
        "the settlement",
    )


async def test_a_clock_that_is_minutes_off_is_told_and_costs_no_freshness(
    simulator, tmp_path, free_port
):
    skews = {BINANCE: 300_000, BYBIT: -120_000}
    for exchange, skew_ms in skews.items():
        simulator.inject(Skew(exchange=exchange, skew_ms=skew_ms))
    scene, clock = Scene(simulator, tmp_path, free_port, PAIRS), simulator.clock
    with capture_logs() as logs:
        async with running(scene.settings, clock) as scene.service:
            await scene.settled()
            since_ms = clock.now_ms()
            before = simulator.stats()
            seen = set()

            def over():
                seen.update(scene.states("mark_price") | scene.states("candles"))
                return clock.now_ms() >= since_ms + 240_000

            await eventually(over, 30, "four minutes")
            after = simulator.stats()
            ahead = {exchange: scene.exchange(exchange)["clock_ahead_ms"] for exchange in PAIRS}
    measured("clock_ahead_ms", ahead)
    assert seen == {"live"}
    told = {line["exchange"]: line for line in logs if line["event"] == "clock_wrong"}
    assert told.keys() == skews.keys()
    for exchange, skew_ms in skews.items():
        assert abs(ahead[exchange] - skew_ms) < 5_000
        assert after[exchange]["rest_requests"] - before[exchange]["rest_requests"] <= 30
        for pair in PAIRS[exchange]:
            await assert_true(simulator, scene.settings, exchange, pair)
            assert not scene.gaps((exchange, pair), since_ms + skew_ms)
