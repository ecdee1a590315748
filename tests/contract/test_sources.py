"""What every source promises, and that all of them give equal answers."""

from __future__ import annotations

import io
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import csv

from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import CANDLE_MS, Gap, Last, Ohlcv
from readers.sources.base import Source
from readers.sources.influx import InfluxSource
from readers.sources.redis import RedisSource
from readers.sources.sqlite import SqliteSource
from tests.servers.influx import InfluxBucket, InfluxServer
from tests.servers.redis import RedisServer
from tests.stored import (
    BTC,
    ETH,
    EXCHANGE,
    InfluxHome,
    RedisHome,
    SqliteHome,
    candles,
    last_of,
    settlements,
)

NOW_MS = int(time.time() * 1000)
END_MS = NOW_MS - NOW_MS % CANDLE_MS
START_MS = END_MS - 50 * CANDLE_MS
OHLCV = ("open", "high", "low", "close", "volume")
FAR_MS = END_MS + 365 * 86_400_000


@pytest.fixture(scope="module", autouse=True)
def _arrow_is_loaded() -> None:
    """Arrow opens a pipe with the first CSV that it reads, and keeps it."""
    csv.read_csv(io.BytesIO(b"a\n1\n"))


@pytest.fixture(params=["sqlite", "influxdb"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteHome | InfluxHome:
    """An empty store of each kind."""
    if request.param == "sqlite":
        return SqliteHome(tmp_path / "market_data.db")
    influx: InfluxBucket = request.getfixturevalue("influx")
    return InfluxHome(influx, influx.new_bucket())


@pytest.fixture
def source(home: SqliteHome | InfluxHome) -> Iterator[Source]:
    """Its source, while some rows are in it."""
    home.put(
        {
            "ohlcv_3m": candles(BTC, START_MS, 50) + candles(ETH, START_MS, 3),
            "ohlcv_1m": candles(BTC, START_MS, 2, step_ms=60_000),
            "funding_settled": settlements(BTC, END_MS, 9),
        }
    )
    opened = _open(home)
    yield opened
    opened.close()


def _open(home: SqliteHome | InfluxHome) -> Source:
    if isinstance(home, SqliteHome):
        return SqliteSource(home.path)
    influx = home.bucket
    return InfluxSource(influx.url, influx.token, influx.bucket, home.ticks_bucket)


def test_rows_come_ascending_and_exactly_as_written(source: Source) -> None:
    rows = source.rows("ohlcv_3m", EXCHANGE, BTC, START_MS, END_MS)
    assert rows == candles(BTC, START_MS, 50)
    assert [type(value) for value in rows[0]] == [type(v) for v in candles(BTC, START_MS, 1)[0]]
    assert all(isinstance(row, Ohlcv) for row in rows)


def test_a_range_begins_with_its_start_and_ends_before_its_end(source: Source) -> None:
    rows = source.rows("ohlcv_3m", EXCHANGE, BTC, START_MS + CANDLE_MS, START_MS + 3 * CANDLE_MS)
    assert [row.time for row in rows] == [START_MS + CANDLE_MS, START_MS + 2 * CANDLE_MS]


def test_a_limit_gives_the_newest_rows_ascending(source: Source) -> None:
    rows = source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, limit=3)
    assert rows == candles(BTC, START_MS, 50)[-3:]


def test_what_is_not_stored_has_no_rows(source: Source) -> None:
    assert source.rows("ohlcv_3m", EXCHANGE, "XRP/USDT:USDT", 0, FAR_MS) == []
    assert source.rows("ohlcv_3m", "OKX", BTC, 0, FAR_MS) == []
    assert source.rows("mark_3m", EXCHANGE, BTC, 0, FAR_MS) == []
    assert source.rows("ohlcv_3m", EXCHANGE, BTC, 0, START_MS, limit=1) == []


def test_a_measurement_with_one_more_tag_is_read_too(
    home: SqliteHome | InfluxHome, source: Source
) -> None:
    gaps = [
        Gap(EXCHANGE, BTC, "candles", START_MS, END_MS, "silent", "repaired", END_MS),
        Gap(EXCHANGE, BTC, "funding", START_MS + 1, END_MS, "restart", "open", None),
    ]
    home.put({"gap": gaps})
    assert source.rows("gap", EXCHANGE, BTC, 0, FAR_MS) == gaps


def test_a_value_is_never_taken_for_a_part_of_the_query(source: Source) -> None:
    for text in ("' OR ''='", '" OR time > 0 --', "BTC/USDT:USDT'; DROP MEASUREMENT ohlcv_3m"):
        assert source.rows("ohlcv_3m", EXCHANGE, text, 0, FAR_MS) == []
        assert source.pairs(text) == []
    assert source.pairs(EXCHANGE) == [BTC, ETH]


def test_columns_hold_what_rows_hold(source: Source) -> None:
    rows = candles(BTC, START_MS, 50)
    columns = source.columns(
        "ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, (*OHLCV, "quote_volume", "trades")
    )
    assert columns["time"].tolist() == [row.time for row in rows]
    for name in OHLCV:
        assert columns[name].tolist() == [getattr(row, name) for row in rows]
    for name in ("quote_volume", "trades"):
        expected = [getattr(row, name) for row in rows]
        assert [None if np.isnan(value) else value for value in columns[name]] == expected


def test_a_bulk_read_in_pieces_has_each_row_once(
    home: SqliteHome | InfluxHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("readers.sources.influx._PIECE_ROWS", 7)
    step_ms = 11 * 86_400_000
    times = range(END_MS - 60 * step_ms, END_MS, step_ms)
    home.put({"ohlcv_3m": candles(BTC, times[0], 60, step_ms=step_ms)})
    source = _open(home)
    try:
        for first, last in ((0, 60), (1, 59), (17, 18), (30, 30)):
            start_ms, end_ms = times[0] + first * step_ms, times[0] + last * step_ms
            found = source.columns("ohlcv_3m", EXCHANGE, BTC, start_ms, end_ms, ("close", "source"))
            assert found["time"].tolist() == list(times[first:last])
            assert len(found["close"]) == len(found["source"]) == last - first
        forever = source.columns("ohlcv_3m", EXCHANGE, BTC, -(10**16), 10**16, ("close",))
        assert forever["time"].tolist() == list(times)
    finally:
        source.close()


def test_texts_come_in_bulk_too(source: Source) -> None:
    columns = source.columns("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, ("source", "close"))
    assert columns["source"].tolist() == ["stream"] * 50
    assert columns["close"].dtype == np.float64
    empty = source.columns("ohlcv_3m", EXCHANGE, BTC, 0, 1, ("source",))
    assert len(empty["source"]) == 0


def test_columns_have_the_same_types_whatever_is_in_them(source: Source) -> None:
    for end_ms in (FAR_MS, 1):
        columns = source.columns("funding_settled", EXCHANGE, BTC, 0, end_ms, ("special_rate",))
        assert columns["time"].dtype == np.int64
        assert columns["special_rate"].dtype == np.float64
    rows = source.columns("funding_settled", EXCHANGE, BTC, 0, FAR_MS, ("special_rate",))
    assert len(rows["time"]) == 9
    assert int(np.isnan(rows["special_rate"]).sum()) == 6


def test_every_pair_of_which_anything_is_stored_is_known(
    home: SqliteHome | InfluxHome, source: Source
) -> None:
    home.put_last(last_of("SOL/USDT:USDT", NOW_MS))
    assert source.pairs(EXCHANGE) == [BTC, ETH, "SOL/USDT:USDT"]
    assert source.pairs("OKX") == []


def test_the_newest_values_are_the_same_everywhere(
    home: SqliteHome | InfluxHome, source: Source, redis_url: str
) -> None:
    lasts = {
        BTC: last_of(BTC, NOW_MS),
        ETH: last_of(ETH, NOW_MS, index_price=None, predicted_rate=1e-4, price=None)._replace(
            price_event_ms=None
        ),
    }
    cache = RedisHome(redis_url)
    for place in (home, cache):
        place.put_last(*(_earlier(last) for last in lasts.values()))
        place.put_last(*lasts.values())
    hot = RedisSource(redis_url)
    try:
        for found in (source, hot):
            several = found.last(EXCHANGE, [BTC, ETH, "XRP/USDT:USDT"])
            assert {pair: _ticks(last) for pair, last in several.items()} == {
                pair: _ticks(last) for pair, last in lasts.items()
            }
            assert {BTC: several[BTC]} == found.last(EXCHANGE, [BTC])
            assert found.last(EXCHANGE, ["XRP/USDT:USDT"]) == {}
    finally:
        hot.close()


def _earlier(last: Last) -> Last:
    assert last.mark_event_ms is not None
    assert last.funding_event_ms is not None
    return last._replace(
        mark_price=1.0,
        mark_event_ms=last.mark_event_ms - 5_000,
        funding_rate=1.0,
        funding_event_ms=last.funding_event_ms - 5_000,
    )


def _ticks(last: Last) -> tuple[object, ...]:
    """Everything but the forming minute and what is our own: InfluxDB has no row of these."""
    return last[: Last._fields.index("minute_ms")]


def test_the_hot_cache_has_the_stores_newest_candles(source: Source, redis_url: str) -> None:
    RedisHome(redis_url).put({"ohlcv_3m": candles(BTC, START_MS, 50)})
    hot = RedisSource(redis_url)
    try:
        assert hot.candles(EXCHANGE, BTC, 20) == source.rows(
            "ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, limit=20
        )
        assert hot.candles(EXCHANGE, ETH, 20) == []
    finally:
        hot.close()


def test_a_corrected_candle_is_read_once_with_its_highest_revision(
    home: SqliteHome | InfluxHome, source: Source, redis_url: str
) -> None:
    cache = RedisHome(redis_url)
    *_, newest = candles(BTC, START_MS, 50)
    corrected = newest._replace(close=5.0, quote_volume=3.0, trades=2, revision=9)
    for place in (home, cache):
        place.put({"ohlcv_3m": candles(BTC, START_MS, 50)})
        place.put({"ohlcv_3m": [corrected]})
    hot = RedisSource(redis_url)
    try:
        assert hot.candles(EXCHANGE, BTC, 5)[-1] == corrected
        assert source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, limit=1) == [corrected]
    finally:
        hot.close()


def test_several_threads_read_at_once(source: Source) -> None:
    expected = candles(BTC, START_MS, 50)
    right: list[bool] = []

    def read() -> None:
        for _ in range(5):
            right.append(source.rows("ohlcv_3m", EXCHANGE, BTC, START_MS, END_MS) == expected)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 40


def test_a_missing_sqlite_file_is_unavailable_and_named(tmp_path: Path) -> None:
    source = SqliteSource(tmp_path / "nothing.db")
    with pytest.raises(StoreUnavailable, match=r"nothing\.db can't be opened: No such file"):
        source.pairs(EXCHANGE)
    assert not list(tmp_path.iterdir())


def test_a_damaged_sqlite_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    path.write_bytes(b"no database at all" * 1_000)
    with pytest.raises(StoreRefused, match="damaged or no database"):
        SqliteSource(path).pairs(EXCHANGE)


def test_sqlite_is_read_while_the_service_is_writing(tmp_path: Path) -> None:
    home = SqliteHome(tmp_path / "market_data.db")
    home.put({"ohlcv_3m": candles(BTC, START_MS, 2)})
    source = SqliteSource(home.path)
    writer = sqlite3.connect(home.path, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM ohlcv_3m")
        assert len(source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS)) == 2
        writer.execute("COMMIT")
        assert source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS) == []
    finally:
        writer.close()
        source.close()


def test_a_replaced_sqlite_file_is_read_instead_of_the_old_one(tmp_path: Path) -> None:
    home, other = SqliteHome(tmp_path / "market_data.db"), SqliteHome(tmp_path / "restored.db")
    home.put({"ohlcv_3m": candles(BTC, START_MS, 2)})
    other.put({"ohlcv_3m": candles(BTC, START_MS, 5)})
    source = SqliteSource(home.path)
    try:
        assert len(source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS)) == 2
        other.path.replace(home.path)
        assert len(source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS)) == 5
    finally:
        source.close()


def test_an_influxdb_that_is_away_is_unavailable_and_back_when_it_is_back(
    influx_server: InfluxServer,
) -> None:
    bucket = InfluxBucket(influx_server, influx_server.new_bucket())
    home = InfluxHome(bucket, bucket.bucket)
    home.put({"ohlcv_3m": candles(BTC, START_MS, 2)})
    source = _open(home)
    try:
        assert source.pairs(EXCHANGE) == [BTC]
        influx_server.stop()
        with pytest.raises(StoreUnavailable, match="refused"):
            source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS)
        with pytest.raises(StoreUnavailable, match="refused"):
            source.columns("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, OHLCV)
        influx_server.start()
        assert len(source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS)) == 2
    finally:
        source.close()


@pytest.mark.parametrize("wrong", ["token", "bucket"])
def test_an_influxdb_that_refuses_says_so_in_rows_and_in_bulk(
    influx: InfluxBucket, wrong: str
) -> None:
    token = "not-the-token" if wrong == "token" else influx.token
    bucket = "no_such_bucket" if wrong == "bucket" else influx.bucket
    source = InfluxSource(influx.url, token, bucket)
    try:
        for ask in (
            lambda: source.rows("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS),
            lambda: source.columns("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, OHLCV),
            lambda: source.pairs(EXCHANGE),
            lambda: source.last(EXCHANGE, [BTC]),
        ):
            with pytest.raises(StoreRefused) as refused:
                ask()
            assert "not-the-token" not in str(refused.value)
    finally:
        source.close()


def test_a_read_only_token_is_enough(influx: InfluxBucket) -> None:
    home = InfluxHome(influx, influx.bucket)
    home.put({"ohlcv_3m": candles(BTC, START_MS, 3)})
    home.put_last(last_of(BTC, NOW_MS))
    source = InfluxSource(
        influx.url, influx.server.new_token(influx.bucket, write=False), influx.bucket
    )
    try:
        assert source.pairs(EXCHANGE) == [BTC]
        assert len(source.columns("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, OHLCV)["time"]) == 3
        assert source.last(EXCHANGE, [BTC])[BTC].mark_price == 61_000.5
    finally:
        source.close()


def test_a_bulk_answer_that_is_short_of_rows_is_never_handed_out(
    influx: InfluxBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    InfluxHome(influx, influx.bucket).put({"ohlcv_3m": candles(BTC, START_MS, 10)})
    source = InfluxSource(influx.url, influx.token, influx.bucket)
    whole = source._csv

    def cut(*arguments: object) -> bytes:
        return b"".join(whole(*arguments).splitlines(keepends=True)[:-1])  # type: ignore[arg-type]

    monkeypatch.setattr(source, "_csv", cut)
    try:
        with pytest.raises(StoreUnavailable, match="sent 9 of 10 rows"):
            source.columns("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, OHLCV)
    finally:
        source.close()


def test_rows_that_are_written_during_a_bulk_read_cost_a_second_try(
    influx: InfluxBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = InfluxHome(influx, influx.bucket)
    home.put({"ohlcv_3m": candles(BTC, START_MS, 10)})
    source = InfluxSource(influx.url, influx.token, influx.bucket)
    whole = source._csv
    asked = 0

    def late(*arguments: object) -> bytes:
        nonlocal asked
        asked += 1
        home.put({"ohlcv_3m": candles(BTC, START_MS, 11)})
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(source, "_csv", late)
    try:
        found = source.columns("ohlcv_3m", EXCHANGE, BTC, 0, FAR_MS, OHLCV)
        assert (len(found["time"]), asked) == (11, 2)
    finally:
        source.close()


def test_a_redis_that_is_away_is_unavailable_and_back_when_it_is_back(
    redis_server: RedisServer,
) -> None:
    source = RedisSource(redis_server.url)
    try:
        assert source.last(EXCHANGE, [BTC]) == {}
        redis_server.stop()
        with pytest.raises(StoreUnavailable, match="Redis can't be read"):
            source.last(EXCHANGE, [BTC])
        redis_server.start()
        assert source.candles(EXCHANGE, BTC, 5) == []
    finally:
        source.close()
