"""A whole service through connections that end, fall silent or are refused, and through outages."""

from collections import Counter

import pytest
from structlog.testing import capture_logs

from ingest.simulator.faults import (
    Close,
    CloseNew,
    Maintenance,
    Offline,
    RefuseHandshakes,
    RestLimited,
    Stall,
)
from ingest.simulator.universe import BINANCE, BYBIT
from marketdata.schema import MINUTE_MS
from tests.scenarios import Scene, hurrying_simulator, measured
from tests.service import assert_true, running
from tests.waiting import eventually

PAIRS = {
    BINANCE: ["BTC/USDT:USDT", "ETH/USDT:USDT", "XAU/USDT:USDT"],
    BYBIT: ["BTC/USDT:USDT", "ETH/USDT:USDT", "BTC/USDT"],
}
MANY = 164
FIVE_MINUTES_MS = 300_000
HOUR_MS = 3_600_000

ENDINGS = {
    "silent": Stall(),
    "half-open": Stall(half_open=True),
    "1000": Close(code=1000),
    "1001": Close(code=1001),
    "1006": Close(code=1006, reset=False),
    "reset": Close(code=1006),
}
REFUSALS = {
    "closed at once, and 403": (
        CloseNew(exchange=BINANCE),
        RefuseHandshakes(exchange=BYBIT, status=403),
        RestLimited(exchange=BYBIT, status=403),
    ),
    "418, and refused": (
        RefuseHandshakes(exchange=BINANCE, status=418),
        RestLimited(exchange=BINANCE, status=418),
        RefuseHandshakes(exchange=BYBIT, status=None),
    ),
    "429": (RefuseHandshakes(status=429), RestLimited(status=429)),
}


@pytest.fixture
async def simulator():
    async with hurrying_simulator() as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Handshakes take real time: on a busy machine, longer than ten seconds of a fast clock."""
    monkeypatch.setattr("ingest.connection.HANDSHAKE_S", 1_000.0)


async def test_a_connection_is_replaced_within_15_s_however_it_ends(simulator, tmp_path, free_port):
    scene, clock = Scene(simulator, tmp_path, free_port, PAIRS), simulator.clock
    async with running(scene.settings, clock) as scene.service:
        started_ms = clock.now_ms()
        for name, fault in ENDINGS.items():
            clock.hurry(10)
            before = {exchange: scene.lanes(exchange) for exchange in PAIRS}
            simulator.inject(fault)
            fault_ms = clock.now_ms()

            def replaced(before=before, fault_ms=fault_ms):
                return all(
                    lane["state"] == "live"
                    and lane["opened_ms"] >= fault_ms
                    and lane["last_data_ms"] >= lane["opened_ms"]
                    and replacements(lane) == replacements(before[exchange][id]) + 1
                    for exchange in PAIRS
                    for id, lane in scene.lanes(exchange).items()
                )

            await eventually(replaced, 15, f"{name}: other connections")
            after_s = {
                id: (lane["opened_ms"] - fault_ms) / 1000
                for exchange in PAIRS
                for id, lane in scene.lanes(exchange).items()
            }
            measured(name, after_s)
            assert max(after_s.values()) <= 15, name
            clock.hurry(20)
            await clock.sleep(40)
        await scene.whole(started_ms, clock.now_ms())
        await scene.settled()
    for where in scene.where():
        await assert_true(simulator, scene.settings, *where)
        for channel, _, state in scene.gaps(where, started_ms):
            assert state == ("lost" if channel == "funding" else "repaired"), where


def replacements(lane):
    """Where there are no marks, a silent connection is only doubted, and therefore rotated."""
    return lane["reconnects"] + lane["rotations"]


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_server_that_takes_nobody_is_asked_at_most_ten_times_a_minute(
    simulator, tmp_path, free_port, name
):
    scene, clock = Scene(simulator, tmp_path, free_port, PAIRS), simulator.clock
    async with running(scene.settings, clock) as scene.service:
        await scene.settled()
        await clock.sleep(60)  # the handshakes of the start are not of this minute
        before, began_ms = simulator.stats(), clock.now_ms()
        numbers = [simulator.inject(fault) for fault in REFUSALS[name]]
        simulator.inject(Close(code=1006))
        clock.hurry(40)
        await clock.reach(began_ms + FIVE_MINUTES_MS)
        after = simulator.stats()
        assert scene.states("mark_price") == {"disconnected"}
        for number in numbers:
            simulator.faults.remove(number)
        clock.hurry(20)
        await scene.whole(began_ms - 2 * MINUTE_MS, clock.now_ms())
        await scene.settled()
    for exchange in PAIRS:
        tried = after[exchange]["handshakes"] - before[exchange]["handshakes"]
        asked = after[exchange]["rest_refused"] - before[exchange]["rest_refused"]
        most = after[exchange]["most_handshakes_in_a_minute"]
        measured(exchange, f"{tried} handshakes, {most} in a minute, {asked} refused")
        assert 1 <= tried <= 5 * 10
        assert most <= 10
        assert asked <= 5 * 2, "an address that goes on asking is banned"
    for where in scene.where():
        await assert_true(simulator, scene.settings, *where)
        gaps = scene.gaps(where, began_ms - MINUTE_MS)
        assert ("candles", "disconnected", "repaired") in gaps
        assert {reason for _, reason, _ in gaps} == {"disconnected"}


async def test_an_hour_without_network_is_whole_two_minutes_after_its_return(
    simulator, tmp_path, free_port
):
    pairs = {BINANCE: {"quote": "USDT", "top": MANY}}
    scene, clock = Scene(simulator, tmp_path, free_port, pairs), simulator.clock
    clock.hurry(5)
    async with running(scene.settings, clock) as scene.service:
        scene.pairs = {BINANCE: list(scene.exchange(BINANCE)["pairs"])}
        assert len(scene.where()) == MANY
        await scene.settled()
        began_ms = clock.now_ms()
        number = simulator.inject(Offline())
        clock.hurry(200)
        await clock.reach(began_ms + HOUR_MS)
        clock.hurry(2)  # disks and cores have the speed that they have
        before = simulator.stats()[BINANCE]["rest_requests"]
        simulator.faults.remove(number)
        back_ms = clock.now_ms()
        await scene.whole(began_ms - MINUTE_MS, back_ms, measurement="ohlcv_1m")
        whole_ms = clock.now_ms()
        await scene.whole(began_ms, back_ms)
        clock.hurry(10)
        await scene.settled()
        stats = simulator.stats()[BINANCE]
    measured("whole after (s)", (whole_ms - back_ms) / 1000)
    measured("calls", stats["rest_requests"] - before)
    measured("most weight in a minute", stats["most_weight"])
    assert whole_ms - back_ms <= 120_000
    assert stats["most_weight"] <= 2_400 * scene.settings.repair.weight_share
    assert scene.service.status()["minutes"]["lost"] == 0
    for where in scene.where():
        gaps = scene.gaps(where, began_ms - MINUTE_MS, back_ms)
        assert {(channel, state) for channel, _, state in gaps} <= {
            ("candles", "repaired"), ("candles", "empty"), ("mark_price", "repaired"),
            ("funding", "lost"),
        }  # fmt: skip
    for where in scene.where()[:5]:
        await assert_true(simulator, scene.settings, *where)


async def test_maintenance_is_told_in_one_line_and_asks_for_little(simulator, tmp_path, free_port):
    scene, clock = Scene(simulator, tmp_path, free_port, PAIRS), simulator.clock
    with capture_logs() as logs:
        async with running(scene.settings, clock) as scene.service:
            await scene.settled()
            before, lines, began_ms = simulator.stats(), len(logs), clock.now_ms()
            number = simulator.inject(Maintenance())
            clock.hurry(40)
            await clock.reach(began_ms + 2 * FIVE_MINUTES_MS)
            after = simulator.stats()
            assert scene.states("candles") | scene.states("funding") == {"venue_down"}
            simulator.faults.remove(number)
            clock.hurry(20)
            await scene.whole(began_ms - MINUTE_MS, clock.now_ms())
            await scene.settled()
    told = Counter(
        line["event"] for line in logs[lines:] if line["log_level"] in ("warning", "error")
    )
    measured("lines", dict(told))
    assert told["venue_down"] == len(PAIRS), "one for each exchange"
    assert told.total() <= 20, told
    for exchange in PAIRS:
        assert after[exchange]["handshakes"] - before[exchange]["handshakes"] <= 10 * 10
        assert after[exchange]["rest_requests"] - before[exchange]["rest_requests"] <= 10 * 30
    for where in scene.where():
        await assert_true(simulator, scene.settings, *where)
        gaps = scene.gaps(where, began_ms - MINUTE_MS)
        assert ("candles", "venue_down", "repaired") in gaps
