"""A real redis-server and a real influxd, killed and started again at random under full load.

By hand: `python -m tests.soak.chaos --seconds 600 --speed 2`. Afterwards InfluxDB has every row as
the simulator's market has it, and what Redis has is what InfluxDB has.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import redis

from ingest.candles import candle_open_ms
from marketdata import keys
from marketdata.config import load_config
from marketdata.schema import CANDLE_MS
from tests.servers.influx import InfluxServer, find_influxd
from tests.servers.process import ServerProcess
from tests.servers.redis import RedisServer, find_redis_server
from tests.service import stored
from tests.service_process import ServiceProcess, SharedClock
from tests.soak.day import many_pairs
from tests.soak.kill import influx_store, shared_simulator, write_config
from tests.soak.proof import Figures, Proof
from tests.waiting import eventually

UP_S = 8.0
AWAY_S = 8.0
"""The longest that a server is left alone, and that it is away, in real time."""
WHOLE_S = 120.0
READY_S = 60.0


@dataclass(frozen=True)
class Chaos:
    """What was done, and what came of it; `whole_s` is real time from the last start on."""

    kills: Mapping[str, int]
    whole_s: float
    most_outbox_rows: int
    dropped: Mapping[str, int]
    rejected: int
    in_redis: int
    figures: Figures


async def chaos(
    folder: Path,
    influx: InfluxServer,
    cache: RedisServer,
    pairs: Mapping[str, Sequence[str]] | None,
    *,
    seconds: float,
    speed: float,
    seed: int,
) -> Chaos:
    """Both servers through so many seconds of kills; `pairs` left out: the demo's 164."""
    async with shared_simulator(speed) as simulator:
        clock = simulator.clock
        assert isinstance(clock, SharedClock)
        pairs = pairs or many_pairs(clock.now_ms())
        store = influx_store(influx.url, influx.org, influx.new_bucket(), influx.token)
        more = {"redis": {"url": cache.url}, "repair": {"lookback": "30m"}}
        config = write_config(folder, simulator, store, pairs, **more)
        settings = load_config(config)
        began_ms = clock.now_ms()
        async with ServiceProcess(config, clock) as service:
            await service.start()
            url = f"http://127.0.0.1:{settings.monitor.port}/status"
            await eventually(lambda: _is_live(url), READY_S, "a live service")
            kills, most = await _trouble([influx, cache], seconds, random.Random(seed), url)
            until_ms = candle_open_ms(clock.now_ms())
            proof = Proof(simulator, settings, pairs, (candle_open_ms(began_ms), until_ms))
            whole_s = await proof.whole(WHOLE_S)
            newest_ms = candle_open_ms(clock.now_ms())
            await eventually(
                lambda: _all_in_redis(cache.url, proof, newest_ms),
                CANDLE_MS / 1000 / speed + READY_S,
                "a later candle of every pair in Redis",
            )
            status = await _status(url)
            assert status is not None
            assert await service.end("term") == 0, service.log()[-3000:]
            figures = await proof.equal()
        in_redis = _compare_redis(cache.url, proof)
    return Chaos(
        kills, whole_s, most, status["dropped"], status["store"]["rejected"], in_redis, figures
    )


async def _trouble(
    servers: Sequence[ServerProcess], seconds: float, lot: random.Random, url: str
) -> tuple[Counter[str], int]:
    """Kill and start servers until the time is over; how often, and the longest outbox."""
    kills: Counter[str] = Counter()
    most = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        await asyncio.sleep(lot.uniform(0.5, min(UP_S, seconds / 4)))
        some = lot.choice([servers[:1], servers[1:], servers])
        for server in some:
            await asyncio.to_thread(server.kill)
            kills[server.name] += 1
        await asyncio.sleep(lot.uniform(0.5, min(AWAY_S, seconds / 4)))
        status = await _status(url)
        assert status is not None, "the service answers whatever happens to its stores"
        most = max(most, status["outbox"]["rows"])
        for server in some:
            await asyncio.to_thread(server.start)
    return kills, most


async def _status(url: str) -> dict[str, Any] | None:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            status: dict[str, Any] = await answer.json()
            return status
    except aiohttp.ClientConnectionError:
        return None


async def _is_live(url):
    status = await _status(url)
    return status is not None and status["state"] in ("live", "quiet")


def _candles_in_redis(url: str, where: tuple[str, str]) -> list[list[Any]]:
    with redis.Redis.from_url(url) as client:
        return [json.loads(member) for member in client.zrange(keys.candles(*where), 0, -1)]


def _all_in_redis(url: str, proof: Proof, since_ms: int) -> bool:
    return all(
        (found := _candles_in_redis(url, where)) and found[-1][0] >= since_ms
        for where in proof.where()
    )


def _compare_redis(url: str, proof: Proof) -> int:
    """Every candle in Redis is the stored one, and is there once; how many there are."""
    count = 0
    for where in proof.where():
        found = _candles_in_redis(url, where)
        assert len({candle[0] for candle in found}) == len(found)
        rows = stored(proof.settings, "ohlcv_3m", *where)
        in_store = {row.time: list(row[2:]) for row in rows}
        for candle in found:
            assert candle == in_store[candle[0]], where
        count += len(found)
    return count


@click.command()
@click.option("--seconds", default=600.0, help="Of real time.")
@click.option("--speed", default=2.0)
@click.option("--seed", default=1)
def main(seconds: float, speed: float, seed: int) -> None:
    """Kill InfluxDB and Redis at random under 164 pairs, and look whether anything is lost."""
    influxd, redis_program = find_influxd(), find_redis_server()
    if influxd is None or redis_program is None:
        raise click.ClickException("influxd and redis-server are needed: `make test` gets them")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        influx = InfluxServer(influxd, folder / "influx")
        cache = RedisServer(redis_program, folder / "redis")
        influx.start()
        cache.start()
        try:
            done = asyncio.run(
                chaos(folder, influx, cache, None, seconds=seconds, speed=speed, seed=seed)
            )
        finally:
            influx.stop()
            cache.stop()
    for what, value in vars(done).items():
        click.echo(f"{what}: {value}")


if __name__ == "__main__":
    main()
