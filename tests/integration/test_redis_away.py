"""The whole service while its Redis is killed, hangs and comes back empty: nobody else notices."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from functools import partial

import redis

from marketdata import keys
from readers import MarketData
from tests.servers.redis import RedisServer
from tests.service import (
    PAIRS,
    assert_true,
    configuration,
    every_pair_has_one,
    fast_simulator,
    running,
)
from tests.waiting import eventually

BTC = "BTC/USDT:USDT"
WAIT_S = 60


async def test_a_redis_that_dies_and_hangs_costs_the_store_nothing_and_doubles_nothing(
    tmp_path, free_port, redis_server: RedisServer
):
    async with fast_simulator() as simulator:
        settings = configuration(
            simulator, tmp_path, free_port, extra={"redis": {"url": redis_server.url}}
        )
        clock = simulator.clock
        with redis.Redis(port=redis_server.port, decode_responses=True) as client:
            async with running(settings, clock) as service:

                async def becomes(state):
                    await eventually(
                        lambda: service.status()["redis"]["state"] == state, WAIT_S, state
                    )

                async def has_another_candle():
                    at_ms = clock.now_ms() - 60_000
                    await eventually(partial(every_pair_has_one, settings, at_ms), WAIT_S)

                await becomes("live")
                redis_server.pause()
                await becomes("down")
                await has_another_candle()
                redis_server.resume()
                await becomes("live")
                redis_server.kill()
                await becomes("down")
                await has_another_candle()
                await eventually(lambda: service.status()["state"] in ("live", "quiet"), WAIT_S)
                assert service.status()["dropped"] == {}
                redis_server.start()
                await becomes("live")
                await has_another_candle()
                await eventually(partial(all_is_back, client, service), WAIT_S, "all is back")
                with MarketData(settings=settings, now_ms=clock.now_ms) as data:
                    mark = await asyncio.to_thread(data.get_mark_price, BTC, with_source=True)
                    assert mark.source == "redis"
            announced = Counter(
                (fields["exchange"], fields["symbol"], json.loads(fields["data"])[0])
                for _, fields in client.xrange(keys.STREAM_OHLCV_3M)
                if json.loads(fields["data"])[-1] == 0
            )
            assert set(announced.values()) == {1}
            told = [fields for _, fields in client.xrange(keys.STREAM_HEALTH)]
            assert {e["stream"] for e in told if e["kind"] == "break"} == set(keys.STREAMS)
        for exchange, pairs in PAIRS.items():
            for pair in pairs:
                await assert_true(simulator, settings, exchange, pair)


def all_is_back(client: redis.Redis, service) -> bool:
    """Whether Redis has the hash, the states and every stored candle of each pair."""
    for exchange, pairs in PAIRS.items():
        if not client.exists(keys.health(exchange)):
            return False
        for pair in pairs:
            held: list[str] = client.zrange(keys.candles(exchange, pair), 0, -1)  # type: ignore[assignment]
            times = [json.loads(member)[0] for member in held]
            stored = service_rows(service, exchange, pair)
            if not client.exists(keys.last(exchange, pair)) or not set(stored) <= set(times):
                return False
    return True


def service_rows(service, exchange: str, pair: str) -> list[int]:
    return [row.time for row in service._parts.stored.rows("ohlcv_3m", exchange, pair, 0, 2**53)]
