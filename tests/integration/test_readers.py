"""What readers hand out, from where, and when they refuse to."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from pyarrow import csv

import readers
from marketdata.errors import ConfigError, StaleData, StoreUnavailable, UnknownPair
from marketdata.schema import CANDLE_MS, MINUTE_MS
from readers import MarketData
from readers.cache import GRACE_MS
from readers.sources.redis import RedisSource
from tests.servers.influx import InfluxBucket, InfluxServer
from tests.servers.redis import RedisServer
from tests.stored import (
    BTC,
    ETH,
    EXCHANGE,
    InfluxHome,
    RedisHome,
    SqliteHome,
    Watch,
    candles,
    last_of,
    minutes,
    reading,
    settlements,
)
from tests.waiting import eventually_sync

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW_MS = int(datetime.now(UTC).timestamp() * 1000)
CLOSE_MS = NOW_MS - NOW_MS % HOUR_MS
"""A full hour; tests read a second later, by their own watch."""
COLUMNS = ["date", "open", "high", "low", "close", "volume"]
DTYPES = ["datetime64[ms, UTC]", *["float64"] * 5]


@pytest.fixture(scope="module", autouse=True)
def _arrow_is_loaded() -> None:
    """Arrow opens a pipe with the first CSV that it reads, and keeps it."""
    csv.read_csv(io.BytesIO(b"a\n1\n"))


@pytest.fixture
def watch() -> Watch:
    return Watch(CLOSE_MS + 1_000)


@pytest.fixture
def home(tmp_path: Path) -> SqliteHome:
    """A SQLite store with 2 days of BTC, 100 candles of ETH, and their newest values."""
    home = SqliteHome(tmp_path / "market_data.db")
    fill(home)
    return home


@pytest.fixture
def data(home: SqliteHome, watch: Watch) -> Iterator[MarketData]:
    with reading(home, watch) as data:
        yield data


@pytest.fixture(scope="module", params=["sqlite", "influxdb"])
def any_home(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> SqliteHome | InfluxHome:
    """The same in each kind of store, for tests that only read."""
    home: SqliteHome | InfluxHome
    if request.param == "sqlite":
        home = SqliteHome(tmp_path_factory.mktemp("store") / "market_data.db")
    else:
        server: InfluxServer = request.getfixturevalue("shared_influx")
        home = InfluxHome(InfluxBucket(server, server.new_bucket()), server.new_bucket())
    fill(home)
    return home


@pytest.fixture
def any_data(any_home: SqliteHome | InfluxHome, watch: Watch) -> Iterator[MarketData]:
    with reading(any_home, watch) as data:
        yield data


def fill(home: SqliteHome | InfluxHome) -> None:
    home.put(
        {
            "ohlcv_3m": [
                *candles(BTC, CLOSE_MS - 2 * DAY_MS, 2 * DAY_MS // CANDLE_MS),
                *candles(ETH, CLOSE_MS - 100 * CANDLE_MS, 100),
            ],
            "ohlcv_1m": minutes(BTC, CLOSE_MS - 6 * HOUR_MS, 6 * 60),
            "funding_settled": settlements(BTC, CLOSE_MS - HOUR_MS, 9),
        }
    )
    home.put_last(last_of(BTC, CLOSE_MS + 1_000), last_of(ETH, CLOSE_MS + 1_000))


def opens(frame: pd.DataFrame) -> list[int]:
    return frame["date"].astype("int64").tolist()


def shape(frame: pd.DataFrame) -> tuple[list[str], list[str], bool]:
    is_range = isinstance(frame.index, pd.RangeIndex) and frame.index.start == 0
    return list(frame.columns), [str(dtype) for dtype in frame.dtypes], is_range


# What the package is


def test_the_package_exports_what_the_documentation_names() -> None:
    assert set(readers.__all__) == {
        "ConfigError",
        "MarketData",
        "MarketDataError",
        "StaleData",
        "StoreRefused",
        "StoreUnavailable",
        "UnknownPair",
        "get_all_funding_rates",
        "get_funding_rate",
        "get_funding_rate_history",
        "get_history",
        "get_last_price",
        "get_mark_price",
        "get_ohlcv",
    }
    assert all(getattr(readers, name) is not None for name in readers.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'get_orderbook'"):
        readers.get_orderbook  # noqa: B018


def test_importing_it_reads_nothing_and_loads_no_library_of_size(tmp_path: Path) -> None:
    loaded = run_python(
        tmp_path,
        "import sys, readers; from readers import get_ohlcv, MarketData\n"
        "import readers.sources, readers.sources.sqlite\n"
        "print([n for n in ('pandas', 'pyarrow', 'redis', 'urllib3', 'cryptofeed', 'ingest')"
        " if n in sys.modules])",
        MARKETDATA_CONFIG="/nowhere/config.yaml",
    )
    assert loaded == "[]"


def test_the_functions_are_configured_by_the_environment_when_they_are_called(
    home: SqliteHome, tmp_path: Path
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"store: {{kind: sqlite, path: {home.path.name}}}\n"
        f"exchanges: {{{EXCHANGE}: {{pairs: [{BTC!r}]}}}}\n"
    )
    code = (
        "from readers import get_ohlcv, get_mark_price\n"
        f"frame = get_ohlcv({BTC!r}, limit=7, max_age=None)\n"
        f"print(len(frame), get_mark_price({BTC!r}, max_age=None))"
    )
    assert run_python(tmp_path, code, MARKETDATA_CONFIG=str(config)) == "7 61000.5"


def test_a_missing_configuration_is_told_at_the_first_call(tmp_path: Path) -> None:
    data = MarketData(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match=r"nothing\.yaml can't be used"):
        data.get_ohlcv(BTC)


def test_without_an_exchange_the_caller_has_to_name_one(home: SqliteHome, watch: Watch) -> None:
    with MarketData(store=home.store, now_ms=watch) as data:
        assert len(data.get_ohlcv(BTC, limit=5, exchange=EXCHANGE)) == 5
        with pytest.raises(ValueError, match="pass exchange="):
            data.get_ohlcv(BTC)


# Candles


def test_candles_are_the_newest_closed_ones_in_one_fixed_shape(any_data: MarketData) -> None:
    frame = any_data.get_ohlcv(BTC, "3m", limit=200)
    assert shape(frame) == (COLUMNS, DTYPES, True)
    assert opens(frame) == [CLOSE_MS - (200 - n) * CANDLE_MS for n in range(200)]
    rows = candles(BTC, CLOSE_MS - 2 * DAY_MS, 960)[-200:]
    assert frame[COLUMNS[1:]].to_numpy().tolist() == [list(row[3:8]) for row in rows]
    assert frame.attrs["filled"] == []


def test_candles_are_the_same_from_the_cache_redis_and_the_store(
    any_home: SqliteHome | InfluxHome, watch: Watch, redis_url: str
) -> None:
    RedisHome(redis_url).put({"ohlcv_3m": candles(BTC, CLOSE_MS - 2 * DAY_MS, 960)})
    with reading(any_home, watch) as data, reading(any_home, watch, redis_url) as cached:
        for timeframe, limit in (("3m", 200), ("15m", 100), ("1h", 40)):
            stored = data.get_ohlcv(BTC, timeframe, limit)
            hot = cached.get_ohlcv(BTC, timeframe, limit)
            again = cached.get_ohlcv(BTC, timeframe, limit)
            sources = [frame.attrs.pop("source") for frame in (stored, hot, again)]
            assert sources == [any_home.source, "redis", "cache"]
            pd.testing.assert_frame_equal(stored, hot)
            pd.testing.assert_frame_equal(hot, again)


@pytest.mark.parametrize(
    ("timeframe", "step_ms", "available"),
    [
        ("1m", MINUTE_MS, 360),
        ("5m", 5 * MINUTE_MS, 72),
        ("15m", 15 * MINUTE_MS, 192),
        ("1h", HOUR_MS, 48),
        ("1d", DAY_MS, 3),
    ],
)
def test_any_timeframe_is_made_of_what_is_stored(
    any_data: MarketData, timeframe: str, step_ms: int, available: int
) -> None:
    frame = any_data.get_ohlcv(BTC, timeframe, limit=500)
    dates = opens(frame)
    assert all(date % step_ms == 0 for date in dates)
    assert {b - a for a, b in pairwise(dates)} <= {step_ms}
    assert dates[-1] + step_ms <= CLOSE_MS
    assert available - 1 <= len(frame) <= available
    assert shape(frame) == (COLUMNS, DTYPES, True)


def test_many_base_candles_are_read_in_bulk_with_the_same_result(any_data: MarketData) -> None:
    few = any_data.get_ohlcv(BTC, "1h", limit=30)
    many = any_data.get_ohlcv(BTC, "1h", limit=300)
    pd.testing.assert_frame_equal(few, many.tail(30).reset_index(drop=True))


def test_a_candle_appears_when_it_is_stored_and_not_before_it_is_closed(
    home: SqliteHome, data: MarketData, watch: Watch
) -> None:
    watch.now_ms = CLOSE_MS + CANDLE_MS + 200
    assert opens(data.get_ohlcv(BTC, limit=2))[-1] == CLOSE_MS - CANDLE_MS
    home.put({"ohlcv_3m": candles(BTC, CLOSE_MS, 1)})
    watch.now_ms += 600
    assert opens(data.get_ohlcv(BTC, limit=2)) == [CLOSE_MS - CANDLE_MS, CLOSE_MS]
    assert opens(data.get_ohlcv(BTC, "6m", limit=1)) == [CLOSE_MS - 2 * CANDLE_MS]


def test_a_finished_list_of_candles_is_not_read_again_before_the_next_close(
    data: MarketData, watch: Watch
) -> None:
    data.get_ohlcv(BTC)
    reads = data.counts()["sqlite"]
    watch.now_ms = CLOSE_MS + CANDLE_MS - 1
    data.get_ohlcv(BTC)
    assert data.counts()["sqlite"] == reads
    watch.now_ms = CLOSE_MS + CANDLE_MS
    data.get_ohlcv(BTC)
    assert data.counts()["sqlite"] > reads


def test_a_frame_is_the_callers_own(data: MarketData) -> None:
    first = data.get_ohlcv(BTC, limit=5)
    expected = first.copy()
    first["close"] = 0.0
    first.attrs["filled"].append(1)
    second = data.get_ohlcv(BTC, limit=5)
    second.loc[0, "open"] = -1.0
    third = data.get_ohlcv(BTC, limit=5)
    assert third["close"].tolist() == expected["close"].tolist()
    assert third["open"].tolist() == expected["open"].tolist()
    assert third.attrs == {"filled": [], "source": "cache", "state": "live"}


def test_a_hole_is_filled_flat_wherever_it_is_in_the_window(tmp_path: Path, watch: Watch) -> None:
    home = SqliteHome(tmp_path / "holes.db")
    rows = candles(BTC, CLOSE_MS - 20 * CANDLE_MS, 20)
    home.put({"ohlcv_3m": rows[:3] + rows[6:]})
    with reading(home, watch) as data:
        for limit in (20, 17, 16, 15):
            frame = data.get_ohlcv(BTC, limit=limit)
            assert len(frame) == limit
            missing = [row.time for row in rows[3:6] if row.time >= opens(frame)[0]]
            assert frame.attrs["filled"] == missing
            filled = frame[frame["date"].isin(pd.to_datetime(missing, unit="ms", utc=True))]
            assert filled["close"].eq(rows[2].close).all()
            assert filled["volume"].eq(0.0).all()


def test_a_young_pair_gives_the_candles_that_there_are(data: MarketData) -> None:
    assert len(data.get_ohlcv(ETH, limit=200)) == 100
    assert len(data.get_ohlcv(ETH, "1h", limit=200)) == 5


def test_a_pair_without_candles_gives_an_empty_frame_of_the_same_shape(
    home: SqliteHome, data: MarketData
) -> None:
    home.put_last(last_of("SOL/USDT:USDT", CLOSE_MS))
    frame = data.get_ohlcv("SOL/USDT:USDT", max_age=None)
    assert (len(frame), shape(frame)) == (0, (COLUMNS, DTYPES, True))
    with pytest.raises(StaleData, match="no value at all"):
        data.get_ohlcv("SOL/USDT:USDT")


@pytest.mark.parametrize("timeframe", ["3m", "1h"])
def test_old_candles_are_stale_unless_any_age_will_do(
    any_data: MarketData, watch: Watch, timeframe: str
) -> None:
    expected = opens(any_data.get_ohlcv(BTC, timeframe, limit=10))
    watch.now_ms = CLOSE_MS + CANDLE_MS + 30_000
    assert opens(any_data.get_ohlcv(BTC, timeframe, limit=10)) == expected
    watch.now_ms += 1
    with pytest.raises(StaleData) as stale:
        any_data.get_ohlcv(BTC, timeframe, limit=10)
    assert (stale.value.age_ms, stale.value.max_age_ms) == (210_001, 210_000)
    watch.now_ms += 30 * DAY_MS
    frame = any_data.get_ohlcv(BTC, timeframe, limit=10, max_age=None)
    assert opens(frame) == expected
    assert len(any_data.get_ohlcv(BTC, timeframe, limit=10, max_age=31 * 86_400)) == 10


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_asks_for_nothing_is_wrong(data: MarketData, limit: int) -> None:
    with pytest.raises(ValueError, match="valid: 1 or more"):
        data.get_ohlcv(BTC, limit=limit)


# Pairs


def test_a_pair_is_found_by_either_form_of_its_name(home: SqliteHome, data: MarketData) -> None:
    home.put_last(last_of("BTC/USDT", CLOSE_MS, mark_price=1.0))
    assert data.get_mark_price("BTCUSDT", max_age=None) == 61_000.5
    assert data.get_mark_price("BTC/USDT", max_age=None) == 1.0
    assert data.pairs() == ["BTC/USDT", BTC, ETH]


def test_an_unknown_pair_is_told_with_those_that_come_close(any_data: MarketData) -> None:
    for read in (
        lambda pair: any_data.get_ohlcv(pair),
        lambda pair: any_data.get_ohlcv(pair, max_age=None),
        lambda pair: any_data.get_mark_price(pair),
        lambda pair: any_data.get_funding_rate(pair),
        lambda pair: any_data.get_history(pair),
        lambda pair: any_data.get_funding_rate_history(pair),
    ):
        for pair in ("BTC/USDC:USDC", "BTCUSDC"):
            with pytest.raises(UnknownPair) as unknown:
                read(pair)
            assert unknown.value.near[0] == BTC


def test_a_pair_that_appears_is_known_at_once(home: SqliteHome, data: MarketData) -> None:
    with pytest.raises(UnknownPair):
        data.get_mark_price("SOLUSDT")
    home.put_last(last_of("SOL/USDT:USDT", CLOSE_MS))
    assert data.get_mark_price("SOLUSDT", max_age=None) == 61_000.5


# Funding and prices


def test_values_are_numbers_and_tell_more_on_demand(
    any_home: SqliteHome | InfluxHome, any_data: MarketData
) -> None:
    assert any_data.get_funding_rate(BTC) == -1.25e-05
    assert any_data.get_mark_price(BTC) == 61_000.5
    assert any_data.get_last_price(BTC) == 61_002.0
    funding = any_data.get_funding_rate(ETH, with_source=True)
    assert (funding.rate, funding.predicted_rate, funding.interval_hours) == (-1.25e-05, None, 8.0)
    assert funding.next_funding_ms == CLOSE_MS + 1_000 + HOUR_MS
    assert (funding.event_ms, funding.age_ms) == (CLOSE_MS, 1_000)
    assert (funding.pair, funding.exchange, funding.source) == (ETH, EXCHANGE, any_home.source)
    assert any_data.get_funding_rate(ETH, with_source=True).source == "cache"
    mark = any_data.get_mark_price(ETH, with_source=True)
    assert (mark.price, mark.index_price) == (61_000.5, 61_001.25)
    assert any_data.get_last_price(ETH, with_source=True).price == 61_002.0


def test_the_forming_minutes_close_is_the_last_price_where_it_is_newer(
    home: SqliteHome, data: MarketData
) -> None:
    home.put_last(last_of(BTC, CLOSE_MS, close=7.0, candle_event_ms=CLOSE_MS + 500, minute_ms=1))
    assert data.get_last_price(BTC) == 7.0


def test_a_hot_mark_price_is_stale_after_ten_seconds(home: SqliteHome, watch: Watch) -> None:
    with reading(home, watch) as data:
        watch.now_ms = CLOSE_MS + 10_000
        assert data.get_mark_price(BTC) == 61_000.5
        watch.now_ms += 1
        with pytest.raises(StaleData) as stale:
            data.get_mark_price(BTC)
        assert stale.value.age_ms == 10_001
        assert data.get_mark_price(BTC, max_age=None) == 61_000.5
        assert data.get_mark_price(BTC, max_age=11) == 61_000.5
        assert data.get_funding_rate(BTC) == -1.25e-05
        watch.now_ms = CLOSE_MS + 120_001
        with pytest.raises(StaleData, match="funding rate"):
            data.get_funding_rate(BTC)


def test_a_stored_mark_price_may_be_as_old_as_ticks_are_apart(
    influx: InfluxBucket, watch: Watch
) -> None:
    home = InfluxHome(influx, influx.new_bucket())
    home.put_last(last_of(BTC, CLOSE_MS + 1_000))
    with reading(home, watch) as data:
        watch.now_ms = CLOSE_MS + 70_000
        assert data.get_mark_price(BTC) == 61_000.5
        watch.now_ms += 1
        with pytest.raises(StaleData):
            data.get_mark_price(BTC)


def test_a_value_that_never_came_is_stale_whatever_age_will_do(
    home: SqliteHome, data: MarketData
) -> None:
    home.put_last(last_of("SOL/USDT:USDT", CLOSE_MS, funding_rate=None, funding_event_ms=None))
    for max_age in (None, 5.0):
        with pytest.raises(StaleData) as stale:
            data.get_funding_rate("SOL/USDT:USDT", max_age=max_age)
        assert stale.value.age_ms is None


def test_all_funding_rates_leave_out_those_that_are_stale(
    home: SqliteHome, data: MarketData, watch: Watch
) -> None:
    home.put_last(last_of(ETH, CLOSE_MS - 300_000), last_of("SOL/USDT:USDT", CLOSE_MS))
    assert data.get_all_funding_rates() == {BTC: -1.25e-05, "SOL/USDT:USDT": -1.25e-05}
    everything = data.get_all_funding_rates(EXCHANGE, with_source=True, max_age=None)
    assert {pair: funding.age_ms for pair, funding in everything.items()} == {
        BTC: 1_000,
        ETH: 302_000,
        "SOL/USDT:USDT": 2_000,
    }
    watch.now_ms += DAY_MS
    with pytest.raises(StaleData) as stale:
        data.get_all_funding_rates()
    assert stale.value.age_ms == DAY_MS + 1_000


def test_settled_funding_is_a_frame_of_one_fixed_shape(any_data: MarketData) -> None:
    frame = any_data.get_funding_rate_history(BTC)
    rows = settlements(BTC, CLOSE_MS - HOUR_MS, 9)
    assert list(frame.columns) == ["date", "funding_rate", "interval_hours", "special_rate"]
    assert [str(dtype) for dtype in frame.dtypes] == ["datetime64[ms, UTC]", *["float64"] * 3]
    assert opens(frame) == [row.time for row in rows]
    assert frame["funding_rate"].tolist() == [row.rate for row in rows]
    assert frame["interval_hours"].isna().tolist() == [row.interval_hours is None for row in rows]
    newest = any_data.get_funding_rate_history(BTC, limit=2)
    assert opens(newest) == opens(frame)[-2:]
    empty = any_data.get_funding_rate_history(ETH)
    assert (len(empty), shape(empty)) == (0, shape(frame))
    part = any_data.get_funding_rate_history(BTC, since=rows[1].time, until=rows[3].time)
    assert opens(part) == [rows[1].time, rows[2].time]


# History


def test_history_is_a_half_open_range_however_its_ends_are_told(any_data: MarketData) -> None:
    start_ms = CLOSE_MS - 5 * HOUR_MS
    start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (start_ms, CLOSE_MS))
    expected = [start_ms + n * HOUR_MS for n in range(5)]
    for since, until in (
        (start_ms, CLOSE_MS),
        (start, end),
        (start.isoformat(), end.isoformat()),
        (start.replace(tzinfo=None).isoformat(), None),
        (start_ms - HOUR_MS + 1, CLOSE_MS - HOUR_MS + 1),
    ):
        assert opens(any_data.get_history(BTC, "1h", since, until)) == expected
    assert len(any_data.get_history(BTC)) == 960
    empty = any_data.get_history(BTC, since=CLOSE_MS + DAY_MS, until=CLOSE_MS + 2 * DAY_MS)
    assert (len(empty), shape(empty)) == (0, (COLUMNS, DTYPES, True))


def test_history_of_several_pairs_comes_by_the_names_that_were_asked_for(
    any_data: MarketData,
) -> None:
    frames = any_data.get_history([BTC, "ETHUSDT"], "3m")
    assert {pair: len(frame) for pair, frame in frames.items()} == {BTC: 960, "ETHUSDT": 100}


def test_history_has_no_deadline(data: MarketData, watch: Watch) -> None:
    watch.now_ms += 365 * DAY_MS
    assert len(data.get_history(BTC)) == 960


@pytest.mark.parametrize("when", ["yesterday", "2026-13-01", ""])
def test_a_time_that_is_none_is_told_with_what_is(data: MarketData, when: str) -> None:
    with pytest.raises(ValueError, match="valid: ISO 8601"):
        data.get_history(BTC, since=when)


# Where values come from


def test_redis_is_asked_before_the_store(home: SqliteHome, watch: Watch, redis_url: str) -> None:
    RedisHome(redis_url).put_last(last_of(BTC, CLOSE_MS + 1_500, mark_price=5.0))
    with reading(home, watch, redis_url) as data:
        mark = data.get_mark_price(BTC, with_source=True)
        assert (mark.price, mark.source) == (5.0, "redis")
        assert data.counts() == {"redis": 1}


def test_what_redis_lacks_or_has_too_old_comes_from_the_store(
    home: SqliteHome, watch: Watch, redis_url: str
) -> None:
    RedisHome(redis_url).put_last(last_of(BTC, CLOSE_MS - 60_000, mark_price=5.0))
    with reading(home, watch, redis_url) as data:
        for pair in (BTC, ETH):
            mark = data.get_mark_price(pair, with_source=True)
            assert (mark.price, mark.source) == (61_000.5, "sqlite")


def test_candles_that_redis_has_not_whole_come_from_the_store(
    home: SqliteHome, watch: Watch, redis_url: str
) -> None:
    rows = candles(BTC, CLOSE_MS - 2 * DAY_MS, 960)
    RedisHome(redis_url).put({"ohlcv_3m": rows[-10:-5] + rows[-4:]})
    with reading(home, watch, redis_url) as data:
        for limit, source in ((4, "redis"), (5, "sqlite"), (200, "sqlite")):
            frame = data.get_ohlcv(BTC, limit=limit)
            assert (frame.attrs["source"], frame.attrs["filled"]) == (source, [])


def test_candles_that_redis_has_too_old_come_from_the_store(
    home: SqliteHome, watch: Watch, redis_url: str
) -> None:
    rows = candles(BTC, CLOSE_MS - 2 * DAY_MS, 960)
    RedisHome(redis_url).put({"ohlcv_3m": rows[:-5]})
    with reading(home, watch, redis_url) as data:
        frame = data.get_ohlcv(BTC, limit=50)
        assert (frame.attrs["source"], opens(frame)[-1]) == ("sqlite", CLOSE_MS - CANDLE_MS)


def test_redis_down_never_fails_a_read_and_is_counted(
    home: SqliteHome, watch: Watch, redis_server: RedisServer
) -> None:
    RedisHome(redis_server.url).put_last(last_of(BTC, CLOSE_MS + 1_500, mark_price=5.0))
    with reading(home, watch, redis_server.url) as data:
        assert data.get_mark_price(BTC) == 5.0
        redis_server.stop()
        watch.now_ms += 600
        assert data.get_mark_price(BTC) == 61_000.5
        assert data.get_ohlcv(BTC, limit=5).attrs["source"] == "sqlite"
        assert data.counts()["redis_failed"] == 2
        redis_server.start()
        RedisHome(redis_server.url).put_last(last_of(BTC, CLOSE_MS + 1_900, mark_price=6.0))

        def from_redis() -> bool:
            watch.now_ms += 600
            return data.get_mark_price(BTC, max_age=None) == 6.0

        eventually_sync(from_redis, what="Redis is asked again")


def test_a_source_that_failed_is_not_asked_again_at_once(
    home: SqliteHome, watch: Watch, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ask = RedisSource.last

    def counting(self: RedisSource, exchange: str, symbols: list[str]) -> object:
        asked.append(exchange)
        return ask(self, exchange, symbols)

    monkeypatch.setattr(RedisSource, "last", counting)
    with reading(home, watch, f"redis://127.0.0.1:{free_port}/0") as data:
        for _ in range(20):
            watch.now_ms += 600
            data.get_mark_price(BTC, max_age=None)
        assert len(asked) < 5
        assert data.counts()["redis_failed"] == 20


def test_the_cache_answers_through_its_grace_while_the_store_is_away(
    home: SqliteHome, watch: Watch
) -> None:
    with reading(home, watch) as data:
        data.get_ohlcv(BTC, limit=5)
        data.get_funding_rate("BTCUSDT")
        home.path.rename(home.path.with_suffix(".away"))
        watch.now_ms += GRACE_MS
        assert data.get_funding_rate("BTCUSDT", with_source=True).source == "cache"
        assert data.counts()["grace"] == 1
        watch.now_ms += 1_000
        with pytest.raises(StoreUnavailable, match="can't be opened"):
            data.get_funding_rate("BTCUSDT")
        watch.now_ms = CLOSE_MS + CANDLE_MS + 5_000
        assert len(data.get_ohlcv(BTC, limit=5)) == 5
        watch.now_ms = CLOSE_MS + CANDLE_MS + GRACE_MS
        with pytest.raises(StoreUnavailable):
            data.get_ohlcv(BTC, limit=5, max_age=None)
        home.path.with_suffix(".away").rename(home.path)
        eventually_sync(lambda: _mark_or_none(data), what="the store is asked again")


def _mark_or_none(data: MarketData) -> float | None:
    try:
        return data.get_mark_price(BTC, max_age=None)
    except StoreUnavailable:
        return None


def test_a_value_in_its_grace_is_still_judged_by_its_age(home: SqliteHome, watch: Watch) -> None:
    with reading(home, watch) as data:
        data.get_mark_price(BTC)
        home.path.rename(home.path.with_suffix(".away"))
        watch.now_ms = CLOSE_MS + 10_001
        with pytest.raises(StaleData):
            data.get_mark_price(BTC)


def test_redis_answers_for_a_store_that_is_away(
    tmp_path: Path, watch: Watch, redis_url: str
) -> None:
    cache = RedisHome(redis_url)
    cache.put_last(last_of(BTC, CLOSE_MS))
    cache.put({"ohlcv_3m": candles(BTC, CLOSE_MS - 10 * CANDLE_MS, 10)})
    with reading(SqliteHome(tmp_path / "nothing.db"), watch, redis_url) as data:
        assert data.get_mark_price(BTC) == 61_000.5
        assert len(data.get_ohlcv(BTC, limit=10)) == 10
        with pytest.raises(StoreUnavailable):
            data.get_ohlcv(BTC, limit=11)
        with pytest.raises(StoreUnavailable):
            data.get_mark_price("XRP/USDT:USDT")


# Processes and threads


def test_it_survives_pickling_with_what_it_is_connected_to(data: MarketData) -> None:
    data.get_ohlcv(BTC, limit=5)
    other: MarketData = pickle.loads(pickle.dumps(data))  # noqa: S301
    with other:
        assert len(other.get_ohlcv(BTC, limit=5)) == 5
        assert other.counts() == {"sqlite": 1}


def test_its_functions_unpickle_to_one_reader() -> None:
    functions = (readers.get_ohlcv, readers.get_mark_price)
    assert pickle.loads(pickle.dumps(functions)) == functions  # noqa: S301


def test_children_of_a_fork_connect_by_themselves(
    home: SqliteHome, tmp_path: Path, influx: InfluxBucket, redis_url: str
) -> None:
    stored = InfluxHome(influx, influx.new_bucket())
    fill(stored)
    code = f"""
import os, sys, threading
from readers import MarketData
now = lambda: {CLOSE_MS + 1_000}
stores = [
    MarketData(store={{"kind": "sqlite", "path": {str(home.path)!r}}}, redis={redis_url!r},
               exchange={EXCHANGE!r}, now_ms=now),
    MarketData(store={stored.store!r}, exchange={EXCHANGE!r}, now_ms=now),
]
def read(count):
    return [len(data.get_ohlcv({BTC!r}, limit=count + n)) for data in stores for n in range(3)]
assert read(10) == [10, 11, 12] * 2
children = []
for child in range(3):
    pid = os.fork()
    if pid == 0:
        fine = read(20) == [20, 21, 22] * 2
        counts = [data.counts() for data in stores]
        os._exit(0 if fine and all("cache" not in c for c in counts) else 1)
    children.append(pid)
assert read(30) == [30, 31, 32] * 2
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0]
assert read(40) == [40, 41, 42] * 2
print("fine")
"""
    assert run_python(tmp_path, code) == "fine"


def test_threads_share_one_reader(any_data: MarketData) -> None:
    right: list[bool] = []

    def read(limit: int) -> None:
        for _ in range(10):
            frame = any_data.get_ohlcv(BTC, limit=limit)
            right.append(len(frame) == limit and any_data.get_mark_price(BTC) == 61_000.5)

    threads = [threading.Thread(target=read, args=(limit,)) for limit in range(10, 18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 80


def run_python(folder: Path, code: str, **environ: str) -> str:
    """What a fresh interpreter prints."""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
