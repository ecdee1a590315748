"""An outbox of an earlier version is brought to this one, whole, or stays what it was."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from ingest.outbox import Outbox
from ingest.sinks.base import Settled
from marketdata.errors import StoreRefused
from marketdata.schema import MEASUREMENTS
from tests.outboxes import PLENTY, Rows, all_rows, batches, emptied
from tests.stores import TIME, ohlcv

DDL_1 = """
CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        created_ms INTEGER NOT NULL,
        measurement TEXT NOT NULL,
        tick INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        payload BLOB NOT NULL
    );
CREATE INDEX entries_by_shard ON entries (tick, shard, id);
CREATE INDEX entries_by_measurement ON entries (measurement, id);
CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY,
        rejected_ms INTEGER NOT NULL,
        measurement TEXT NOT NULL,
        tick INTEGER NOT NULL,
        row BLOB NOT NULL,
        reason TEXT NOT NULL
    );
PRAGMA user_version = 1;
"""
"""As the first release wrote it: don't touch."""


@pytest.fixture
def first_release(tmp_path: Path) -> Path:
    """A file as the first release left it: `all_rows()` wait, one more is in quarantine."""
    path = tmp_path / "outbox.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(DDL_1)
        for batch in batches():
            for name, rows in batch.items():
                times = [row.time for row in rows]
                connection.execute(
                    "INSERT INTO entries (created_ms, measurement, tick, shard, first_ms, last_ms,"
                    " rows, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        TIME,
                        name,
                        MEASUREMENTS[name].tick,
                        times[0] // (30 * 86_400_000),
                        min(times),
                        max(times),
                        len(rows),
                        orjson.dumps([tuple(row) for row in rows]),
                    ),
                )
        connection.execute(
            "INSERT INTO quarantine (rejected_ms, measurement, tick, row, reason)"
            " VALUES (?, 'ohlcv_3m', 0, ?, 'too old')",
            (TIME + 1, orjson.dumps(tuple(ohlcv(revision=7)))),
        )
    return path


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


async def whole(path: Path) -> tuple[Rows, int]:
    """What waits, oldest first as the first release took it, and how many are in quarantine."""
    outbox = await Outbox.open(path, PLENTY)
    try:
        depth = outbox.depth()
        assert depth.oldest_ms == TIME
        rows = await emptied(outbox)
        assert depth.rows == sum(rows.values())
        assert not outbox.dropped
        return rows, depth.quarantined
    finally:
        await outbox.close()


async def test_a_file_of_the_first_release_is_brought_to_this_version(first_release: Path) -> None:
    assert await whole(first_release) == (all_rows(), 1)
    assert version(first_release) == 2
    with closing(sqlite3.connect(first_release)) as connection:
        (row,) = connection.execute("SELECT rejected_ms, row, reason FROM quarantine").fetchall()
    assert row == (TIME + 1, orjson.dumps(tuple(ohlcv(revision=7))), "too old")


async def test_a_migrated_file_has_the_same_tables_as_a_new_one(
    first_release: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.db"
    for path in (first_release, new):
        await (await Outbox.open(path, PLENTY)).close()
    tables = []
    for path in (first_release, new):
        with closing(sqlite3.connect(path)) as connection:
            tables.append(connection.execute("SELECT sql FROM sqlite_master").fetchall())
    assert set(tables[0]) == set(tables[1])


MIGRATING = """
import sys, time
from pathlib import Path
from ingest import outbox_schema
from ingest.outbox_file import OutboxFile
from ingest.outbox_records import checksum

left = int(sys.argv[2])

def slow(*values):
    global left
    left -= 1
    if left == 0:
        print("in the middle", flush=True)
        time.sleep(60)
    return checksum(*values)

outbox_schema.checksum = slow
OutboxFile(Path(sys.argv[1]), 2**30, lambda: 1)
"""


@pytest.mark.parametrize("records", [1, 12])
async def test_kill_9_in_the_middle_leaves_the_old_version_and_the_next_start_migrates(
    first_release: Path, records: int
) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", MIGRATING, first_release, str(records)],
        stdout=subprocess.PIPE,
        cwd=Path.cwd(),
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"in the middle\n"
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert version(first_release) == 1
    assert await whole(first_release) == (all_rows(), 1)


async def test_rows_of_the_first_release_keep_their_order_before_new_ones(
    first_release: Path,
) -> None:
    outbox = await Outbox.open(first_release, PLENTY)
    try:
        await outbox.append({"gap": []})
        await outbox.append({"ohlcv_3m": [ohlcv(revision=9)]})
        revisions = []
        while parcel := await outbox.take(5_000):
            revisions += [
                row.revision  # type: ignore[union-attr]
                for row in parcel.batch.get("ohlcv_3m", [])
                if row.time == TIME
            ]
            await outbox.settle(parcel, Settled(parcel.rows))
        assert revisions == [0, 9]
    finally:
        await outbox.close()


async def test_a_later_version_is_refused_and_untouched(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    await (await Outbox.open(path, PLENTY)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE entries ADD COLUMN colour TEXT")
        connection.execute("PRAGMA user_version = 3")
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(StoreRefused, match="has schema version 3, this program knows 2"):
            await Outbox.open(path, PLENTY)
    assert path.read_bytes() == before
