"""The tables of the outbox's file, by version, and the way from one version to the next.

A change of the tables, or of a row class of `marketdata.schema`, is a new version: a function here
brings the file to it. What a version's statements say never changes once it has been released.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from ingest.outbox_ledger import Ledger
from ingest.outbox_records import checksum

VERSION = 2

_BY_SHARD = "CREATE INDEX entries_by_shard ON entries (tick, shard, id)"
_BY_MEASUREMENT = "CREATE INDEX entries_by_measurement ON entries (measurement, id)"

TABLES: Mapping[int, tuple[str, ...]] = {
    1: (
        """CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        created_ms INTEGER NOT NULL,
        measurement TEXT NOT NULL,
        tick INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        payload BLOB NOT NULL
    )""",
        _BY_SHARD,
        _BY_MEASUREMENT,
        """CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY,
        rejected_ms INTEGER NOT NULL,
        measurement TEXT NOT NULL,
        tick INTEGER NOT NULL,
        row BLOB NOT NULL,
        reason TEXT NOT NULL
    )""",
    ),
    2: (
        """CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        created_ms INTEGER NOT NULL,
        measurement TEXT NOT NULL,
        tick INTEGER NOT NULL,
        shard INTEGER NOT NULL,
        first_ms INTEGER NOT NULL,
        last_ms INTEGER NOT NULL,
        rows INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        payload BLOB NOT NULL
    )""",
        _BY_SHARD,
        _BY_MEASUREMENT,
        """CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY,
        rejected_ms INTEGER NOT NULL,
        measurement TEXT NOT NULL,
        tick INTEGER NOT NULL,
        retry INTEGER NOT NULL DEFAULT 0,
        checksum INTEGER NOT NULL,
        row BLOB NOT NULL,
        reason TEXT NOT NULL
    )""",
        "CREATE INDEX quarantine_to_retry ON quarantine (id) WHERE retry",
        "CREATE TABLE ledger (id INTEGER PRIMARY KEY, state BLOB NOT NULL)",
        """CREATE TABLE broken (
        id INTEGER PRIMARY KEY,
        found_ms INTEGER NOT NULL,
        source TEXT NOT NULL,
        record INTEGER NOT NULL,
        measurement TEXT,
        rows INTEGER,
        why TEXT NOT NULL,
        bytes BLOB
    )""",
    ),
}


def migrate_1_to_2(connection: sqlite3.Connection) -> None:
    """Give every record a checksum, and the file its ledger."""
    run = connection.execute
    connection.create_function("checksum", -1, checksum, deterministic=True)
    for index in ("entries_by_shard", "entries_by_measurement"):
        run(f"DROP INDEX {index}")
    for table in ("entries", "quarantine"):
        run(f"ALTER TABLE {table} RENAME TO {table}_1")
    for statement in TABLES[2]:
        run(statement)
    head = "created_ms, measurement, tick, shard, first_ms, last_ms, rows, payload"
    run(
        f"INSERT INTO entries (id, {head}, checksum)"
        f" SELECT id, {head}, checksum({head}) FROM entries_1 ORDER BY id"
    )
    head = "rejected_ms, measurement, tick, reason, row"
    run(
        f"INSERT INTO quarantine (id, {head}, checksum)"
        f" SELECT id, {head}, checksum({head}) FROM quarantine_1 ORDER BY id"
    )
    for table in ("entries", "quarantine"):
        run(f"DROP TABLE {table}_1")
    Ledger.counted(connection).write(connection)


MIGRATIONS = {1: migrate_1_to_2}


def version_of(connection: sqlite3.Connection, *, exactly: bool) -> int | None:
    """The version whose tables the file has (`exactly`: and no others); None if it is none."""
    found = {
        sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
    }
    for version, tables in TABLES.items():
        if found == set(tables) or (not exactly and found > set(tables)):
            return version
    return None
