"""The embedded store: a table per measurement, and the newest values in the table `last`.

A batch is one transaction, fsynced before it counts as settled. If the file is moved away or
replaced under the service, the next write opens what the path leads to then.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ingest.database import Database, Worker
from ingest.sinks.base import Rejected, Settled, fault
from marketdata.errors import StoreRefused
from marketdata.schema import LAST, MEASUREMENTS, Batch, Last, Measurement, Row
from marketdata.tables import SCHEMA_VERSION, STATEMENTS, expire, next_pair, upsert

EXPIRE_ROWS = 5_000
"""Rows that one slice of `expire` deletes, so that a write never waits long behind it."""

_UPSERT = {name: upsert(table) for name, table in (*MEASUREMENTS.items(), ("last", LAST))}


class SqliteSink:
    """Writes the store's file in a thread of its own; the file is opened with the first write."""

    name = "sqlite"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._worker = Worker("sqlite-sink")
        self._database: Database | None = None

    async def write(self, batch: Batch) -> Settled:
        return await self._worker.run(self._write, batch)

    async def update(self, lasts: Sequence[Last]) -> None:
        """Write the newest values of each pair given."""
        await self._worker.run(self._update, lasts)

    async def expire(self, before_ms: int) -> int:
        """Delete ticks older than `before_ms`, in slices between which writes get their turn.

        Returns how many rows are gone. Errors are those of `write`; what is deleted stays so.
        """
        deleted = 0
        for table in (table for table in MEASUREMENTS.values() if table.tick):
            done: tuple[str, str] | None = ("", "")
            while done is not None:
                done, rows = await self._worker.run(self._expire_slice, table, done, before_ms)
                deleted += rows
        return deleted

    async def close(self) -> None:
        await self._worker.close(self._close)

    def _write(self, batch: Batch) -> Settled:
        rejected: list[Rejected] = []
        with self._transaction() as connection:
            for name, rows in batch.items():
                reasons = [(row, fault(MEASUREMENTS[name], row)) for row in rows]
                rejected += [Rejected(name, row, why) for row, why in reasons if why is not None]
                rejected += _insert(connection, name, [row for row, why in reasons if why is None])
        total = sum(len(rows) for rows in batch.values())
        return Settled(total - len(rejected), tuple(rejected))

    def _update(self, lasts: Sequence[Last]) -> None:
        with self._transaction() as connection:
            connection.executemany(_UPSERT["last"], lasts)

    def _expire_slice(
        self, table: Measurement, done: tuple[str, str], before_ms: int
    ) -> tuple[tuple[str, str] | None, int]:
        """Delete from the pairs after `done`: which is done now (None: all are), rows deleted."""
        left = EXPIRE_ROWS
        with self._transaction() as connection:
            while left:
                # Pair by pair along the primary key: a condition on time alone reads the table.
                pair = connection.execute(next_pair(table), done).fetchone()
                if pair is None:
                    return None, EXPIRE_ROWS - left
                cursor = connection.execute(expire(table), (*pair, before_ms, left))
                left -= cursor.rowcount
                if left:
                    done = pair
        return done, EXPIRE_ROWS

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._database is not None and self._database.moved():
            self._close()
        if self._database is None:
            self._database = Database(self._path, "store", STATEMENTS, SCHEMA_VERSION)
        try:
            with self._database.transaction() as connection:
                yield connection
        except StoreRefused:
            self._close()  # the next try opens what is there by then
            raise

    def _close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()


def _insert(connection: sqlite3.Connection, name: str, rows: Sequence[Row]) -> list[Rejected]:
    """Write the rows; which of them SQLite refuses, as a constraint or trigger of a site may."""
    try:
        connection.executemany(_UPSERT[name], rows)
    except sqlite3.IntegrityError:
        return [rejected for row in rows for rejected in _insert_one(connection, name, row)]
    return []


def _insert_one(connection: sqlite3.Connection, name: str, row: Row) -> list[Rejected]:
    try:
        connection.execute(_UPSERT[name], row)
    except sqlite3.IntegrityError as error:
        return [Rejected(name, row, f"SQLite: {error}")]
    return []
