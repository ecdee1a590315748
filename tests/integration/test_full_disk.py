"""A disk that is full for minutes, under a whole service: a tmpfs, which only root can mount."""

import json

import pytest

from ingest.simulator.universe import BINANCE, BYBIT
from marketdata.schema import MINUTE_MS
from tests.scenarios import Scene, hurrying_simulator, measured
from tests.service import assert_true, running
from tests.soak.disk import small_disk
from tests.waiting import eventually

PAIRS = {BINANCE: ["BTC/USDT:USDT"], BYBIT: ["BTC/USDT:USDT", "BTC/USDT"]}
TEN_MINUTES_MS = 10 * MINUTE_MS


@pytest.fixture
async def simulator():
    async with hurrying_simulator() as simulator:
        yield simulator


@pytest.fixture
def disk(tmp_path):
    try:
        with small_disk(tmp_path / "disk") as disk:
            yield disk
    except PermissionError as error:
        pytest.skip(str(error))


async def test_a_disk_that_is_full_for_ten_minutes_costs_no_candle(
    simulator, tmp_path, disk, free_port
):
    scene, clock = Scene(simulator, tmp_path / "disk", free_port, PAIRS), simulator.clock
    async with running(scene.settings, clock) as scene.service:
        await scene.settled()
        disk.fill()
        began_ms = clock.now_ms()
        await eventually(
            lambda: scene.service.status()["outbox"]["state"] == "down", 30, "it is told"
        )
        assert "disk" in scene.service.status()["outbox"]["error"]
        clock.hurry(40)
        await clock.reach(began_ms + TEN_MINUTES_MS)
        clock.hurry(20)
        status = scene.service.status()
        assert status["state"] in ("live", "quiet"), "the exchanges are as fresh as ever"
        disk.free()
        await eventually(
            lambda: scene.service.status()["outbox"]["state"] == "live", 30, "there is room"
        )
        freed_ms = clock.now_ms()
        await scene.whole(began_ms - MINUTE_MS, freed_ms)
        measured("whole after (s)", (clock.now_ms() - freed_ms) / 1000)
        await scene.settled()
        measured("dropped", json.dumps(scene.service.status()["dropped"]))
    for where in scene.where():
        await assert_true(simulator, scene.settings, *where)
