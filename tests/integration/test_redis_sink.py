"""Redis as the hot cache: candles and streams, views and their lifetimes, and its own faults."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis

from ingest.sinks.base import Settled
from ingest.sinks.redis import RedisSink
from marketdata import keys
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.pairs import Market
from marketdata.schema import Last
from tests.servers.redis import RedisServer
from tests.stores import EXCHANGE, SYMBOL, TIME, RedisStore, ohlcv
from tests.waiting import eventually

BTC = Market(EXCHANGE, "perpetual", "BTCUSDT", SYMBOL, "BTC", "USDT", "USDT", None, True, None, 8.0)
PRICED = Last(
    EXCHANGE,
    SYMBOL,
    mark_price=62_000.5,
    mark_event_ms=TIME,
    price=62_001.0,
    price_event_ms=TIME,
    received_ms=TIME + 20,
    seq=1,
)


def find_market(exchange: str, symbol: str) -> Market | None:
    return BTC if (exchange, symbol) == (EXCHANGE, SYMBOL) else None


def stream(client: redis.Redis, name: str) -> list[Any]:
    """The fields of each entry, oldest first."""
    return [fields for _, fields in client.xrange(name) or ()]


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def sink(redis_url: str) -> AsyncIterator[RedisSink]:
    sink = RedisSink(redis_url, ["quantum"], find_market)
    yield sink
    await sink.close()


async def test_a_candle_and_its_correction_are_announced_once_each(redis_url: str) -> None:
    sink = RedisSink(redis_url)
    try:
        corrected = ohlcv(close=2.5, revision=1)
        for row in (ohlcv(), ohlcv(), corrected, corrected):
            await sink.write({"ohlcv_3m": [row]})
    finally:
        await sink.close()
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        entries = stream(client, keys.STREAM_OHLCV_3M)
        ttl_ms = client.pttl(keys.candles(EXCHANGE, SYMBOL))
    assert [(e["exchange"], e["symbol"]) for e in entries] == [(EXCHANGE, SYMBOL)] * 2
    assert [e["data"] for e in entries] == [
        f'[{TIME},1.5,3.0,0.1,2.25,0.00001,1e+22,12,"stream",0]',
        f'[{TIME},1.5,3.0,0.1,2.5,0.00001,1e+22,12,"stream",1]',
    ]
    assert keys.CANDLES_TTL_MS - 60_000 < ttl_ms <= keys.CANDLES_TTL_MS


async def test_only_the_newest_candles_are_kept_and_older_ones_not_announced(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "CANDLES_KEPT", 3)
    store, sink = RedisStore(redis_url), RedisSink(redis_url)
    try:
        rows = [ohlcv(time=TIME + n * 180_000) for n in range(5)]
        await sink.write({"ohlcv_3m": [*rows, rows[0]]})
    finally:
        await sink.close()
    assert store.rows("ohlcv_3m") == rows[2:]
    with redis.Redis.from_url(redis_url) as client:
        assert client.xlen(keys.STREAM_OHLCV_3M) == 5


async def test_the_newest_values_live_as_long_as_the_longest_deadline(
    sink: RedisSink, client: redis.Redis
) -> None:
    await sink.update([PRICED])
    left_ms = client.pttl(keys.last(EXCHANGE, SYMBOL))
    assert keys.LAST_TTL_MS - 10_000 < left_ms <= keys.LAST_TTL_MS


async def test_each_news_of_a_price_is_in_the_stream_once(
    sink: RedisSink, client: redis.Redis
) -> None:
    news = PRICED._replace(mark_price=None, mark_event_ms=None, price=5.0, price_event_ms=TIME + 1)
    for last in (PRICED, PRICED._replace(funding_rate=1e-4, seq=2), news, news):
        await sink.update([last])
    assert stream(client, keys.STREAM_PRICE) == [
        {
            "exchange": EXCHANGE,
            "symbol": SYMBOL,
            "mark_price": "62000.5",
            "mark_event_ms": str(TIME),
            "price": "62001.0",
            "price_event_ms": str(TIME),
        },
        {
            "exchange": EXCHANGE,
            "symbol": SYMBOL,
            "price": "5.0",
            "price_event_ms": str(TIME + 1),
        },
    ]


async def test_streams_are_cut_by_the_age_of_their_entries(
    sink: RedisSink, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(300):
        client.xadd(keys.STREAM_PRICE, {"n": n}, id=f"{n + 1}-0")
        client.xadd(keys.STREAM_OHLCV_3M, {"n": n}, id=f"{n + 1}-0")
    await sink.update([PRICED])
    await sink.write({"ohlcv_3m": [ohlcv()]})
    for stream in (keys.STREAM_PRICE, keys.STREAM_OHLCV_3M):
        assert client.xlen(stream) <= 101  # whole nodes of 100 entries are cut


async def test_a_views_lifetime_is_renewed_by_its_own_channel_only(
    sink: RedisSink, client: redis.Redis
) -> None:
    await sink.update([PRICED])
    ticker, market = "quantum:ticker:BTCUSDT", "quantum:market:BTCUSDT"
    shown = {
        "symbol": "BTCUSDT",
        "price": "62001.0",
        "markPrice": "62000.5",
        "timestamp": str(TIME),
    }
    assert client.hgetall(ticker) == client.hgetall(market) == shown
    assert 9_000 < client.pttl(ticker) <= 10_000

    for key in (ticker, market):
        client.pexpire(key, 5_000)
    await sink.update([PRICED._replace(mark_price=1.0, mark_event_ms=TIME + 1_000, seq=2)])
    assert client.pttl(ticker) <= 5_000
    assert client.pttl(market) > 5_000
    assert client.hget(market, "markPrice") == "1.0"


async def test_a_view_of_a_pair_whose_market_is_unknown_is_not_made_up(
    sink: RedisSink, client: redis.Redis
) -> None:
    await sink.update([PRICED._replace(symbol="ETH/USDT:USDT")])
    assert list(client.scan_iter("quantum:*")) == []
    assert client.exists(keys.last(EXCHANGE, "ETH/USDT:USDT"))


async def test_values_that_vanish_leave_the_hash(sink: RedisSink, client: redis.Redis) -> None:
    await sink.update([PRICED])
    await sink.update([Last(EXCHANGE, SYMBOL)])
    assert client.hgetall(keys.last(EXCHANGE, SYMBOL)) == {}


async def test_health_is_gone_when_nobody_renews_it(sink: RedisSink, client: redis.Redis) -> None:
    await sink.health(EXCHANGE, {"state": "live", "lanes": 3})
    await sink.health(EXCHANGE, {"state": "late"})
    assert client.hgetall(keys.health(EXCHANGE)) == {"state": "late"}
    assert 25_000 < client.pttl(keys.health(EXCHANGE)) <= keys.HEALTH_TTL_MS


async def test_measurements_that_redis_does_not_keep_pass_as_accepted(
    sink: RedisSink, client: redis.Redis
) -> None:
    assert await sink.write({"ohlcv_1m": [ohlcv()]}) == Settled(1)
    assert client.dbsize() == 0


# Its own faults.


async def test_a_redis_that_hangs_costs_the_timeout_and_no_more(redis_server: RedisServer) -> None:
    sink = RedisSink(redis_server.url, timeout_s=0.3)
    try:
        await sink.update([PRICED])
        redis_server.pause()
        with pytest.raises(StoreUnavailable):
            await sink.update([PRICED])
        with pytest.raises(StoreUnavailable):
            await sink.write({"ohlcv_3m": [ohlcv()]})
        redis_server.resume()
        await eventually(redis_server.is_ready)
        await sink.update([PRICED])
    finally:
        await sink.close()


async def test_a_full_redis_and_a_replica_are_unavailable_until_that_has_passed(
    redis_server: RedisServer,
) -> None:
    sink = RedisSink(redis_server.url)
    try:
        with redis.Redis.from_url(redis_server.url) as client:
            client.config_set("maxmemory", 1)
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                await sink.update([PRICED])
            client.config_set("maxmemory", 0)
            client.replicaof("127.0.0.1", 1)
            with pytest.raises(StoreUnavailable, match="read only replica"):
                await sink.update([PRICED])
            with pytest.raises(StoreUnavailable, match="read only replica"):
                await sink.write({"ohlcv_3m": [ohlcv()]})
            client.replicaof("NO", "ONE")
        await sink.update([PRICED])
    finally:
        await sink.close()


async def test_a_password_that_was_changed_is_refused(redis_server: RedisServer) -> None:
    sink = RedisSink(redis_server.url)
    try:
        with redis.Redis.from_url(redis_server.url) as client:
            client.config_set("requirepass", "another")
        with pytest.raises(StoreRefused, match=r"refuses: .*authenticat"):
            await sink.update([PRICED])
    finally:
        await sink.close()


async def test_a_key_that_someone_else_uses_otherwise_is_named_as_the_cause(
    sink: RedisSink, client: redis.Redis
) -> None:
    client.set(keys.candles(EXCHANGE, SYMBOL), "mine")
    with pytest.raises(StoreRefused, match="WRONGTYPE"):
        await sink.write({"ohlcv_3m": [ohlcv()]})


async def test_a_redis_that_lost_everything_is_written_anew(
    sink: RedisSink, client: redis.Redis
) -> None:
    await sink.write({"ohlcv_3m": [ohlcv()]})
    client.flushall()
    client.script_flush()
    await sink.update([PRICED])
    await sink.write({"ohlcv_3m": [ohlcv()]})
    assert client.xlen(keys.STREAM_OHLCV_3M) == 1
    assert client.exists(keys.last(EXCHANGE, SYMBOL))
