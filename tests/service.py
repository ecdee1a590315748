"""A whole service against the simulator, both on a clock that runs faster than the world."""

import asyncio
import json
import os
from contextlib import asynccontextmanager

import aiohttp

from ingest.clock import Clock
from ingest.service import Service
from ingest.simulator.market import Market
from ingest.simulator.server import Simulator
from marketdata.config import parse_config
from marketdata.schema import CANDLE_MS
from readers.sources import open_source
from tests.waiting import eventually

SPEED = 20.0
"""Seconds of the market per second: a candle closes every nine."""
MARKET_STARTS_MS = int(os.environ.get("MARKETDATA_STARTS_MS", "1795172960000"))
"""What the market's clock shows at first: a test doesn't depend on the time of day.

20 s into a candle, hours from any settlement. Another start is another way through the same test.
"""
PAIRS = {
    "BINANCE_FUTURES": ["BTC/USDT:USDT", "币安人生/USDT:USDT", "XAU/USDT:USDT", "B/USDT:USDT"],
    "BYBIT": ["BTC/USDT:USDT", "ETH/USDT:USDT", "BTC/USDT", "ETH/USDT"],
}


def fast_simulator():
    clock = Clock(SPEED, MARKET_STARTS_MS)
    return Simulator(market=Market(as_of_ms=clock.now_ms()), clock=clock)


def configuration(simulator, folder, port, *, pairs=PAIRS, extra=None):
    exchanges = {
        name: {"pairs": some, "ws_url": simulator.ws_url, "rest_url": simulator.url}
        for name, some in pairs.items()
    }
    text = json.dumps(
        {
            "store": {"kind": "sqlite", "path": "market_data.db", "ticks": {"every": "1s"}},
            "outbox": {"path": "outbox.db"},
            "monitor": {"port": port},
            "repair": {"lookback": "15m"},
            "exchanges": exchanges,
            **(extra or {}),
        }
    )
    return parse_config(text, source="test", folder=folder, environ={})


@asynccontextmanager
async def running(settings, clock, reload=None):
    stop = asyncio.Event()
    service = Service(settings, clock, reload)
    task = asyncio.create_task(service.run(stop))
    try:
        await eventually(lambda: task.done() or _live(service), 30, "service live")
        if task.done():
            task.result()
        yield service
    finally:
        stop.set()
        await task


def _live(service):
    return service.started.is_set() and service.status()["state"] in ("live", "quiet")


def stored(settings, measurement, exchange, pair, start_ms=0, end_ms=2**53):
    source = open_source(settings)
    try:
        return source.rows(measurement, exchange, pair, start_ms, end_ms)
    finally:
        source.close()


async def truth(simulator, exchange, pair, start_ms, end_ms, interval="3m"):
    base, _, rest = pair.partition("/")
    quote, kind = rest.partition(":")[0], "perpetual" if ":" in pair else "spot"
    query = {"interval": interval, "start": start_ms, "end": end_ms, "kind": kind}
    url = f"{simulator.url}/sim/truth/{exchange}/{base}{quote}/klines"
    async with aiohttp.ClientSession() as session, session.get(url, params=query) as answer:
        rows = (await answer.json())["rows"]
    return {row[0]: (*map(float, row[1:7]), row[7]) for row in rows}


async def assert_true(simulator, settings, exchange, pair):
    """Every stored candle equals the truth bit for bit, without a hole between first and last."""
    rows = stored(settings, "ohlcv_3m", exchange, pair)
    expected = await truth(simulator, exchange, pair, rows[0].time, rows[-1].time + CANDLE_MS)
    assert [row.time for row in rows] == list(range(rows[0].time, rows[-1].time + 1, CANDLE_MS))
    for row in rows:
        values = expected[row.time]
        assert row[3:9] == values[:6], (exchange, pair, row)
        assert row.trades in (None, values[6])
    return rows


def candles_since(settings, since_ms, pairs=PAIRS):
    return [
        [row for row in stored(settings, "ohlcv_3m", exchange, pair) if row.time >= since_ms]
        for exchange, some in pairs.items()
        for pair in some
    ]


def every_pair_has_one(settings, since_ms):
    """Whether each pair has a candle that opened since then."""
    return all(candles_since(settings, since_ms))
