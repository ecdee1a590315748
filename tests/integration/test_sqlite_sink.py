"""SQLite as the store: its file locked, read-only, full, damaged, replaced, of another version.

And old ticks leave it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.clock import Clock
from ingest.delivery import Delivery
from ingest.outbox import Outbox
from ingest.sinks.base import Rejected, Settled
from ingest.sinks.sqlite import SqliteSink
from marketdata.errors import StoreRefused
from marketdata.schema import LastPrice
from tests.stores import EXCHANGE, TIME, SqliteStore, mark, ohlcv, one_of_each
from tests.waiting import eventually


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


@contextmanager
def locked(store: SqliteStore) -> Iterator[None]:
    store.go_away()
    yield
    store.come_back()


@contextmanager
def read_only(store: SqliteStore) -> Iterator[None]:
    """The file may not be written by whom the service runs as, nor its folder."""
    user, folder = os.geteuid(), store.path.parent
    store.path.chmod(0o444)
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        store.path.chmod(0o644)


@contextmanager
def full(store: SqliteStore) -> Iterator[None]:
    """As if the disk were full: no file can grow beyond what a parcel needs."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def damaged(store: SqliteStore) -> Iterator[None]:
    """Its pages are overwritten; afterwards a copy is put in its place."""
    sound = store.path.read_bytes()
    store.path.write_bytes(sound[:100] + b"\xa5" * (len(sound) - 100))
    yield
    store.path.unlink()
    store.path.write_bytes(sound)


@contextmanager
def moved(store: SqliteStore) -> Iterator[None]:
    """Its folder is away, and something that isn't one is in its place."""
    folder = store.path.parent
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.write_text("not mounted")
    yield
    folder.unlink()
    elsewhere.rename(folder)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, other than pytest's own."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize(
    ("fault", "alarm"),
    [
        (locked, "store_unavailable"),
        (read_only, "store_unavailable"),
        (full, "store_unavailable"),
        (damaged, "store_refused"),
        (moved, "store_unavailable"),
    ],
)
async def test_whatever_befalls_the_file_nothing_is_lost_and_one_line_tells(
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[SqliteStore], AbstractContextManager[None]],
    alarm: str,
) -> None:
    monkeypatch.setattr("ingest.database.LOCKED_S", 0.05)
    store = SqliteStore(open_folder)
    sink = store.sink()
    await sink.write({"ohlcv_3m": [ohlcv(time=0)]})
    await sink.close()
    rows = [ohlcv(time=TIME + n * 60_000) for n in range(2_000)]
    outbox = await Outbox.open(open_folder / "outbox.db", 2**30)
    await outbox.append({"ohlcv_1m": rows, "mark_price": [mark()]})
    sink = store.sink()
    delivery = Delivery(outbox, sink, Clock(200.0))
    task: asyncio.Task[None] | None = None
    try:
        with capture_logs() as logs:
            with fault(store):
                task = asyncio.create_task(delivery.run())
                await eventually(lambda: delivery.state == "down")
                assert str(store.path) in (delivery.error or "")
                assert outbox.depth().rows == 2_001
            await eventually(lambda: outbox.depth().rows == 0 and delivery.state == "live")
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await outbox.close()
        await sink.close()
    assert [entry["event"] for entry in logs] == [alarm, "store_live"]
    assert store.rows("ohlcv_3m") == [ohlcv(time=0)]
    assert store.rows("ohlcv_1m") == rows
    assert store.rows("mark_price") == [mark()]
