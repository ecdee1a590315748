"""SQLite as the store: its file replaced, damaged, of another version; old ticks leave it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ingest.sinks.base import Rejected, Settled
from ingest.sinks.sqlite import SqliteSink
from marketdata.errors import StoreRefused
from marketdata.schema import LastPrice
from tests.stores import EXCHANGE, TIME, SqliteStore, ohlcv, one_of_each


async def test_old_ticks_expire_in_slices_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.sinks.sqlite.EXPIRE_ROWS", 7)
    store, sink = SqliteStore(tmp_path), SqliteSink(tmp_path / "data" / "market_data.db")
    try:
        old = [LastPrice(EXCHANGE, f"P{n % 3}/USDT", TIME - n, 1.0) for n in range(1, 41)]
        kept = [LastPrice(EXCHANGE, f"P{n}/USDT", TIME, 2.0) for n in range(3)]
        await sink.write({**one_of_each(), "last_price": [*old, *kept]})
        assert await sink.expire(TIME) == len(old)
        assert store.rows("last_price") == kept
        assert len(store.rows("ohlcv_3m")) == len(store.rows("mark_price")) == 1
        assert await sink.expire(TIME) == 0
    finally:
        await sink.close()


async def test_a_file_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    sink = store.sink()
    try:
        await sink.write({"ohlcv_3m": [ohlcv()]})
        store.path.rename(tmp_path / "moved.db")
        later = ohlcv(time=TIME + 180_000)
        await sink.write({"ohlcv_3m": [later]})
        assert store.rows("ohlcv_3m") == [later]
    finally:
        await sink.close()


async def test_a_damaged_file_is_used_again_once_it_was_mended(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    sink = store.refusing_sink()
    try:
        with pytest.raises(StoreRefused, match="not a database"):
            await sink.write({"ohlcv_3m": [ohlcv()]})
        (tmp_path / "damaged.db").unlink()
        assert await sink.write({"ohlcv_3m": [ohlcv()]}) == Settled(accepted=1)
    finally:
        await sink.close()


async def test_a_store_of_an_unknown_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    sink = SqliteSink(path)
    try:
        with pytest.raises(StoreRefused, match="schema version 99, this program knows 1"):
            await sink.write({"ohlcv_3m": [ohlcv()]})
    finally:
        await sink.close()


async def test_what_a_sites_own_trigger_refuses_is_rejected_with_its_words(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path)
    sink = store.sink()
    try:
        await sink.write({})
        await sink.write({"ohlcv_3m": [ohlcv()]})
        with closing(sqlite3.connect(store.path)) as connection:
            connection.execute(
                "CREATE TRIGGER site BEFORE INSERT ON ohlcv_3m WHEN NEW.close > 100"
                " BEGIN SELECT RAISE(ABORT, 'too dear'); END"
            )
        bad, good = ohlcv(time=TIME + 180_000, close=101.0), ohlcv(time=TIME + 360_000)
        settled = await sink.write({"ohlcv_3m": [bad, good]})
        assert settled == Settled(1, (Rejected("ohlcv_3m", bad, "SQLite: too dear"),))
        assert store.rows("ohlcv_3m") == [ohlcv(), good]
    finally:
        await sink.close()
