"""Several writers of one Redis, late writes and writes that come twice: nothing goes backwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import pytest
import redis

from ingest.sinks.base import Marker
from ingest.sinks.redis import RedisSink
from ingest.sinks.redis_scripts import LATE_MS
from marketdata import keys
from marketdata.errors import StoreUnavailable
from marketdata.pairs import Market
from marketdata.schema import Last
from tests.servers.forwarder import Forwarder
from tests.servers.redis import RedisServer
from tests.stores import EXCHANGE, SYMBOL, TIME, RedisStore, ohlcv

BTC = Market(EXCHANGE, "perpetual", "BTCUSDT", SYMBOL, "BTC", "USDT", "USDT", None, True, None, 8.0)
LAST = keys.last(EXCHANGE, SYMBOL)
TICKER = "quantum:ticker:BTCUSDT"


def marked(event_ms: int, mark_price: float, **others: Any) -> Last:
    """A pair of which a mark is known, received as soon as it was made."""
    last = Last(EXCHANGE, SYMBOL, mark_price=mark_price, mark_event_ms=event_ms)
    return last._replace(received_ms=event_ms, **others)


def priced(event_ms: int, price: float, **others: Any) -> Last:
    last = Last(EXCHANGE, SYMBOL, price=price, price_event_ms=event_ms, received_ms=event_ms)
    return last._replace(**others)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def sinks(redis_url: str) -> AsyncIterator[list[RedisSink]]:
    """Those of two collectors."""
    find = partial(lambda exchange, symbol: BTC)
    sinks = [RedisSink(redis_url, ["quantum"], find, collector=name) for name in ("a", "b")]
    yield sinks
    for sink in sinks:
        await sink.close()


def entries(client: redis.Redis, stream: str) -> list[dict[str, str]]:
    return [fields for _, fields in client.xrange(stream) or ()]  # type: ignore[misc]


async def test_each_channel_keeps_its_newest_event_whoever_brings_it(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    one, other = sinks
    await one.update([marked(TIME + 2_000, 2.0, funding_rate=1e-4, funding_event_ms=TIME)])
    await other.update([marked(TIME + 1_000, 1.0, price=5.0, price_event_ms=TIME)])
    assert client.hgetall(LAST) == {
        "mark_price": "2.0",
        "mark_event_ms": str(TIME + 2_000),
        "funding_rate": "0.0001",
        "funding_event_ms": str(TIME),
        "price": "5.0",
        "price_event_ms": str(TIME),
        "received_ms": str(TIME + 1_000),
        "seq": "2",
    }
    await one.update([marked(TIME + 1_500, 1.5)])
    assert client.hget(LAST, "mark_price") == "2.0"
    assert client.hget(LAST, "seq") == "2"


async def test_a_newer_event_takes_with_it_what_it_no_longer_says(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    one, other = sinks
    await one.update([marked(TIME, 1.0, index_price=1.5)])
    await other.update([marked(TIME + 1, 2.0)])
    assert client.hget(LAST, "index_price") is None


async def test_of_two_trades_in_one_millisecond_the_one_that_came_later_stays(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    one, other = sinks
    await one.update([priced(TIME, 5.0, received_ms=TIME + 10)])
    await one.update([priced(TIME, 6.0, received_ms=TIME + 20)])
    await other.update([priced(TIME, 5.0, received_ms=TIME + 10)])
    assert client.hget(LAST, "price") == "6.0"
    assert [entry["price"] for entry in entries(client, keys.STREAM_PRICE)] == ["5.0", "6.0"]


async def test_a_price_that_two_collectors_see_is_in_the_stream_once_and_never_backwards(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    for event_ms in (TIME, TIME + 2_000, TIME + 1_000, TIME + 2_000):
        for sink in sinks:
            await sink.update([priced(event_ms, float(event_ms))])
    times = [int(entry["price_event_ms"]) for entry in entries(client, keys.STREAM_PRICE)]
    assert times == [TIME, TIME + 2_000]


async def test_an_entry_shows_the_newest_of_what_any_collector_has_brought(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    one, other = sinks
    await one.update([marked(TIME + 2_000, 2.0)])
    await other.update([marked(TIME + 1_000, 1.0, price=5.0, price_event_ms=TIME + 1_000)])
    newest = entries(client, keys.STREAM_PRICE)[-1]
    assert (newest["mark_price"], newest["price"]) == ("2.0", "5.0")


async def test_a_view_never_shows_an_older_event_again(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    one, other = sinks
    await one.update([priced(TIME + 2_000, 2.0)])
    client.pexpire(TICKER, 5_000)
    await other.update([priced(TIME + 1_000, 1.0)])
    assert client.hget(TICKER, "price") == "2.0"
    assert client.pttl(TICKER) <= 5_000
    await other.update([priced(TIME + 3_000, 3.0)])
    assert client.hget(TICKER, "price") == "3.0"
    assert client.pttl(TICKER) > 5_000


async def test_a_channel_that_nobody_renews_leaves_the_hash(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    one, other = sinks
    await one.update([priced(TIME, 5.0)])
    await other.update([marked(TIME + keys.LAST_TTL_MS, 1.0)])
    assert client.hget(LAST, "price") == "5.0"
    await other.update([marked(TIME + keys.LAST_TTL_MS + 1, 1.0)])
    assert client.hget(LAST, "price") is None


# Candles.


async def test_an_identical_candle_is_announced_once_whoever_sends_it(
    sinks: list[RedisSink], client: redis.Redis, redis_url: str
) -> None:
    for sink in sinks:
        for candle in (ohlcv(), ohlcv(source="rest"), ohlcv(revision=0)):
            await sink.write({"ohlcv_3m": [candle]})
    assert len(entries(client, keys.STREAM_OHLCV_3M)) == 1
    assert RedisStore(redis_url).rows("ohlcv_3m") == [ohlcv()]


async def test_of_equal_values_the_best_source_and_the_highest_revision_stay(
    sinks: list[RedisSink], client: redis.Redis, redis_url: str
) -> None:
    one, other = sinks
    await one.write({"ohlcv_3m": [ohlcv(source="rest", revision=2)]})
    await other.write({"ohlcv_3m": [ohlcv(source="stream", revision=0)]})
    await one.write({"ohlcv_3m": [ohlcv(source="synthetic", revision=1)]})
    assert RedisStore(redis_url).rows("ohlcv_3m") == [ohlcv(source="stream", revision=2)]
    assert len(entries(client, keys.STREAM_OHLCV_3M)) == 1


async def test_a_state_before_a_correction_doesnt_come_back(
    sinks: list[RedisSink], client: redis.Redis, redis_url: str
) -> None:
    one, other = sinks
    corrected = ohlcv(close=2.5, revision=1)
    for candle in (ohlcv(), corrected):
        await one.write({"ohlcv_3m": [candle]})
    await other.write({"ohlcv_3m": [ohlcv()]})
    assert RedisStore(redis_url).rows("ohlcv_3m") == [corrected]
    assert len(entries(client, keys.STREAM_OHLCV_3M)) == 2


async def test_what_is_restored_fills_in_and_is_not_announced(
    sinks: list[RedisSink], client: redis.Redis, redis_url: str
) -> None:
    sink, _ = sinks
    rows = [ohlcv(time=TIME + n * 180_000) for n in range(4)]
    await sink.write({"ohlcv_3m": rows[2:]})
    differing = rows[2]._replace(close=2.9)
    newer = rows[3]._replace(close=2.8, revision=1)
    await sink.restore([*rows[:2], differing, newer])
    assert RedisStore(redis_url).rows("ohlcv_3m") == [*rows[:3], newer]
    assert len(entries(client, keys.STREAM_OHLCV_3M)) == 2


# Answers that never came.


async def test_what_redis_executed_without_being_heard_is_not_announced_twice(
    redis_server: RedisServer,
) -> None:
    marker: Marker = {"kind": "state", "state": "late"}
    async with Forwarder(redis_server.port).listening() as forwarder:
        sink = RedisSink(forwarder.url, timeout_s=0.3)
        writes = [
            lambda: sink.update([priced(TIME, 5.0)]),
            lambda: sink.write({"ohlcv_3m": [ohlcv()]}),
            lambda: sink.announce([(1, marker), (2, marker)]),
        ]
        try:
            await sink.probe()
            forwarder.brings_answers = False
            for write in writes:
                with pytest.raises(StoreUnavailable, match=r"no answer within 0\.3 s"):
                    await write()
            forwarder.brings_answers = True
            await sink.probe()
            for write in writes:
                await write()
            await sink.announce([(2, marker), (3, marker)])
        finally:
            await sink.close()
    assert sink.losses == 0
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        assert len(entries(client, keys.STREAM_PRICE)) == 1
        assert len(entries(client, keys.STREAM_OHLCV_3M)) == 1
        assert entries(client, keys.STREAM_HEALTH) == [marker] * 3


async def test_what_redis_executes_long_after_it_was_given_up_is_no_news(
    sinks: list[RedisSink], client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, _ = sinks
    await sink.probe()
    # As if the call had lain in the socket of a Redis that hung.
    monkeypatch.setattr(sink, "_seen_ms", sink._seen_ms - LATE_MS - 1)
    with pytest.raises(StoreUnavailable, match="LATE by"):
        await sink.update([priced(TIME, 5.0)])
    assert client.exists(LAST, TICKER, keys.STREAM_PRICE) == 0
    await sink.probe()
    await sink.update([priced(TIME + 1, 6.0)])
    assert client.hget(LAST, "price") == "6.0"


# States.


async def test_of_two_collectors_states_the_better_one_is_shown_and_stays(
    sinks: list[RedisSink], client: redis.Redis
) -> None:
    one, other = sinks
    key = keys.health(EXCHANGE)

    async def tell(sink: RedisSink, state: str, time_ms: int) -> tuple[Any, Any]:
        await sink.health(EXCHANGE, {"state": state, "time_ms": time_ms})
        return client.hget(key, "state"), client.hget(key, "time_ms")

    assert await tell(one, "live", 1_000) == ("live", "1000")
    assert await tell(other, "late", 2_000) == ("live", "1000")
    assert await tell(other, "live", 3_000) == ("live", "1000")
    assert await tell(one, "late", 4_000) == ("late", "4000")
    assert await tell(other, "quiet", 3_500) == ("quiet", "3500")
    assert await tell(other, "live", 3_000) == ("quiet", "3500")
    # Its own word is not renewed any more.
    client.pexpire(key, keys.HEALTH_TTL_MS - keys.HEALTH_HELD_MS)
    assert await tell(one, "venue_down", 9_000) == ("venue_down", "9000")


# Ending.


async def test_a_writer_ends_at_whatever_moment_it_is_cancelled(sinks: list[RedisSink]) -> None:
    sink, _ = sinks

    async def write_on() -> None:
        while True:
            await sink.probe()

    await sink.probe()
    for moment in range(100):
        writing = asyncio.create_task(write_on())
        for _ in range(moment % 40):
            await asyncio.sleep(0)
        writing.cancel()
        ended, _ = await asyncio.wait([writing], timeout=10)
        assert ended, f"it goes on after a cancellation at step {moment % 40}"
