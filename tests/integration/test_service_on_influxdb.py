"""The same service on InfluxDB and Redis as on SQLite: readers can't tell which."""

from functools import partial

import pytest
from pandas.testing import assert_frame_equal

from readers import MarketData
from tests.service import (
    PAIRS,
    assert_true,
    configuration,
    every_pair_has_one,
    fast_simulator,
    running,
)
from tests.waiting import eventually


@pytest.fixture
async def simulator():
    async with fast_simulator() as simulator:
        yield simulator


def on_servers(influx, redis_url):
    store = {
        "kind": "influxdb", "url": influx.url, "org": influx.org, "bucket": influx.bucket,
        "token": influx.token,
    }  # fmt: skip
    redis = {"url": redis_url, "views": ["quantum"]}
    return {"store": store, "redis": redis, "repair": {"lookback": "45m"}}


async def test_readers_give_equal_answers_on_both_stores(
    simulator, tmp_path, free_port, influx, redis_url
):
    embedded = configuration(simulator, tmp_path / "sqlite", free_port)
    servers = configuration(
        simulator, tmp_path / "servers", free_port, extra=on_servers(influx, redis_url)
    )
    for settings in (embedded, servers):
        started_ms = simulator.clock.now_ms()
        async with running(settings, simulator.clock):
            await eventually(
                partial(every_pair_has_one, settings, started_ms),
                60,
                "a new candle of every pair",
            )
    for exchange, pairs in PAIRS.items():
        for pair in pairs:
            await assert_true(simulator, servers, exchange, pair)
            frames = []
            for settings in (embedded, servers):
                data = MarketData(settings=settings)
                frames.append(
                    data.get_ohlcv(pair, "3m", exchange=exchange, limit=500, max_age=None)
                )
                data.close()
            both = set(frames[0]["date"]) & set(frames[1]["date"])
            assert len(both) >= 5
            one, other = (f[f["date"].isin(both)].reset_index(drop=True) for f in frames)
            assert_frame_equal(one, other)
