"""What every sink promises, over real stores: SQLite files, InfluxDB 2.9 and Redis."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import redis

from ingest.sinks.base import HotSink, Settled, Sink
from marketdata import keys
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import Last
from tests.stores import (
    EXCHANGE,
    SYMBOL,
    TIME,
    InfluxStore,
    RedisStore,
    SqliteStore,
    Store,
    ohlcv,
    one_of_each,
)

STORES = ("sqlite", "influxdb", "redis")


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return SqliteStore(tmp_path)
    if request.param == "influxdb":
        return InfluxStore(request.getfixturevalue("shared_influx"))
    return RedisStore(request.getfixturevalue("redis_url"))


@pytest.fixture(params=STORES)
def mortal_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """A store of the test's own, which may go away."""
    if request.param == "sqlite":
        monkeypatch.setattr("ingest.database.LOCKED_S", 0.05)
        return SqliteStore(tmp_path)
    if request.param == "influxdb":
        return InfluxStore(request.getfixturevalue("influx_server"))
    server = request.getfixturevalue("redis_server")
    return RedisStore(server.url, server)


@pytest.fixture
async def sink(store: Store) -> AsyncIterator[Sink]:
    sink = store.sink()
    yield sink
    await sink.close()


async def test_every_measurement_comes_out_as_it_went_in(store: Store, sink: Sink) -> None:
    batch = one_of_each()
    assert await sink.write(batch) == Settled(accepted=len(batch))
    for measurement in store.measurements:
        assert store.rows(measurement) == batch[measurement]


async def test_an_empty_batch_is_settled(sink: Sink) -> None:
    assert await sink.write({}) == Settled(accepted=0)
    assert await sink.write({"ohlcv_3m": []}) == Settled(accepted=0)


async def test_a_batch_written_twice_is_one(store: Store, sink: Sink) -> None:
    batch = one_of_each()
    assert await sink.write(batch) == await sink.write(batch)
    for measurement in store.measurements:
        assert store.rows(measurement) == batch[measurement]


async def test_a_rewrite_replaces_every_field(store: Store, sink: Sink) -> None:
    await sink.write({"ohlcv_3m": [ohlcv()]})
    rewritten = ohlcv(
        open=9.0,
        high=9.5,
        low=8.0,
        close=8.5,
        volume=7.0,
        quote_volume=60.0,
        trades=3,
        source="rest",
        revision=1,
    )
    await sink.write({"ohlcv_3m": [rewritten]})
    assert store.rows("ohlcv_3m") == [rewritten]


async def test_of_two_states_in_one_batch_the_later_one_stays(store: Store, sink: Sink) -> None:
    later = ohlcv(close=2.5, revision=1)
    await sink.write({"ohlcv_3m": [ohlcv(), later]})
    assert store.rows("ohlcv_3m") == [later]


async def test_none_stays_absent(store: Store, sink: Sink) -> None:
    bare = ohlcv(quote_volume=None, trades=None)
    await sink.write({"ohlcv_3m": [bare]})
    assert store.rows("ohlcv_3m") == [bare]


async def test_names_may_have_any_letters_and_the_protocols_own_signs(
    store: Store, sink: Sink
) -> None:
    names = sorted(("币安人生/USDT:USDT", "A B=C,D/USDT", '"quoted"/USDT', "1000'S/USDT"))
    rows = [ohlcv(symbol=name) for name in names]
    await sink.write({"ohlcv_3m": rows})
    assert store.rows("ohlcv_3m") == rows


async def test_floats_survive_to_the_last_bit(store: Store, sink: Sink) -> None:
    values = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, 123_456_789.123_456_78, 1e16, 1e-7]
    rows = [ohlcv(time=TIME + n * 180_000, close=value) for n, value in enumerate(values)]
    await sink.write({"ohlcv_3m": rows})
    assert [row.close for row in store.rows("ohlcv_3m")] == values  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"close": nan}, "close is nan, expected a finite number"),
        ({"volume": -inf}, "volume is -inf, expected a finite number"),
        ({"close": None}, "close is None, expected float, never absent or of another type"),
        ({"close": "2.5"}, "close is '2.5', expected float, never absent or of another type"),
        ({"trades": True}, "trades is True, expected int, never absent or of another type"),
        ({"trades": 2**63}, f"trades is {2**63}, expected an integer of 64 bits"),
        ({"symbol": ""}, "symbol is '', expected printable text without a backslash"),
        ({"symbol": "A\nB"}, "symbol is 'A\\nB', expected printable text without a backslash"),
    ],
)
async def test_a_row_that_no_store_may_take_costs_only_itself(
    store: Store, sink: Sink, fault: dict[str, Any], reason: str
) -> None:
    bad, good = ohlcv(**fault), ohlcv(time=TIME + 180_000)
    settled = await sink.write({"ohlcv_3m": [bad, good]})
    assert settled.accepted == 1
    (rejected,) = settled.rejected
    assert (rejected.measurement, rejected.row) == ("ohlcv_3m", bad)
    assert reason in rejected.reason
    assert store.rows("ohlcv_3m") == [good]


async def test_a_store_that_was_away_takes_the_batch_when_it_is_back(mortal_store: Store) -> None:
    sink = mortal_store.sink()
    try:
        earlier, later = ohlcv(), ohlcv(time=TIME + 180_000)
        await sink.write({"ohlcv_3m": [earlier]})
        mortal_store.go_away()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await sink.write({"ohlcv_3m": [later]})
        mortal_store.come_back()
        assert await sink.write({"ohlcv_3m": [later]}) == Settled(accepted=1)
        kept = [earlier, later] if mortal_store.durable else [later]
        assert mortal_store.rows("ohlcv_3m") == kept
    finally:
        await sink.close()


async def test_a_store_that_takes_nothing_refuses_and_shows_no_secret(store: Store) -> None:
    sink = store.refusing_sink()
    try:
        with pytest.raises(StoreRefused) as refused:
            await sink.write({"ohlcv_3m": [ohlcv()]})
    finally:
        await sink.close()
    for secret in ("secret-password", "test-token"):
        assert secret not in str(refused.value)


async def test_a_sink_that_never_wrote_can_be_closed(store: Store) -> None:
    await store.sink().close()


HOT = Last(
    EXCHANGE,
    SYMBOL,
    mark_price=62_000.5,
    mark_event_ms=TIME,
    funding_rate=1e-05,
    funding_event_ms=TIME,
    received_ms=TIME + 20,
    seq=1,
)


@pytest.fixture(params=["sqlite", "redis"])
async def hot_store(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[SqliteStore | RedisStore]:
    if request.param == "sqlite":
        yield SqliteStore(tmp_path)
    else:
        yield RedisStore(request.getfixturevalue("redis_url"))


@pytest.fixture
async def hot_sink(hot_store: SqliteStore | RedisStore) -> AsyncIterator[HotSink]:
    sink = hot_store.sink()
    yield sink
    await sink.close()


def newest(store: SqliteStore | RedisStore) -> dict[str, str]:
    """The newest values of the one pair, as text, without what is absent."""
    if isinstance(store, RedisStore):
        with redis.Redis.from_url(store.url, decode_responses=True) as client:
            found: dict[str, str] = client.hgetall(keys.last(EXCHANGE, SYMBOL))
            return found
    with closing(sqlite3.connect(store.path)) as connection:
        connection.row_factory = sqlite3.Row
        (row,) = connection.execute("SELECT * FROM last")
        tags = ("exchange", "symbol")
        return {k: str(row[k]) for k in row.keys() if k not in tags and row[k] is not None}  # noqa: SIM118


async def test_the_newest_values_hold_what_is_known_and_nothing_else(
    hot_store: SqliteStore | RedisStore, hot_sink: HotSink
) -> None:
    await hot_sink.update([HOT])
    assert newest(hot_store) == {
        "mark_price": "62000.5",
        "mark_event_ms": str(TIME),
        "funding_rate": "1e-05",
        "funding_event_ms": str(TIME),
        "received_ms": str(TIME + 20),
        "seq": "1",
    }


async def test_of_the_newest_values_the_last_ones_given_stay(
    hot_store: SqliteStore | RedisStore, hot_sink: HotSink
) -> None:
    await hot_sink.update([HOT])
    later = HOT._replace(mark_price=None, mark_event_ms=None, price=5.0, price_event_ms=TIME, seq=2)
    await hot_sink.update([later])
    found = newest(hot_store)
    assert found["price"] == "5.0"
    assert found["seq"] == "2"
    assert "mark_price" not in found


async def test_an_update_of_no_pairs_is_none(hot_sink: HotSink) -> None:
    await hot_sink.update([])
