"""How far a backfill has come: the ranges that are done, in a small SQLite file.

A range is done when its rows are in the backfill's outbox. The file is believed only while the
newest row that it speaks of is in the store: another store, or an emptied one, begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ingest.database import Database, Worker
from ingest.holes import Hole

SCHEMA_VERSION = 1
_TABLES = (
    """CREATE TABLE done (
        exchange TEXT NOT NULL,
        symbol TEXT NOT NULL,
        measurement TEXT NOT NULL,
        start_ms INTEGER NOT NULL,
        end_ms INTEGER NOT NULL,
        newest_ms INTEGER,
        PRIMARY KEY (exchange, symbol, measurement, start_ms)
    ) WITHOUT ROWID""",
)

Key = tuple[str, str, str]
"""Exchange, pair, measurement."""


class Done(NamedTuple):
    """A range that is done; `newest_ms` is its newest row that is in the store, None without."""

    start_ms: int
    end_ms: int
    newest_ms: int | None


def still_to_do(done: Iterable[Done], start_ms: int, end_ms: int) -> list[Hole]:
    """What of a range isn't done, in time order.

    >>> still_to_do([Done(60_000, 120_000, None)], 0, 180_000)
    [Hole(start_ms=0, end_ms=60000), Hole(start_ms=120000, end_ms=180000)]
    """
    left: list[Hole] = []
    for some in sorted(done):
        if start_ms < some.start_ms:
            left.append(Hole(start_ms, min(some.start_ms, end_ms)))
        start_ms = max(start_ms, some.end_ms)
        if start_ms >= end_ms:
            return left
    return [*left, Hole(start_ms, end_ms)] if start_ms < end_ms else left


class Progress:
    """The file; every method raises as `ingest.database` says."""

    def __init__(self, database: Database, worker: Worker) -> None:
        self._database = database
        self._worker = worker

    @classmethod
    async def open(cls, path: Path) -> Progress:
        """Open or create it."""
        worker = Worker("backfill-progress")
        try:
            database = await worker.run(Database, path, "progress", _TABLES, SCHEMA_VERSION)
        except BaseException:
            await worker.close()
            raise
        return cls(database, worker)

    async def done(self, key: Key) -> list[Done]:
        """The ranges of a pair's measurement that are done, in time order."""
        return await self._worker.run(self._read, key)

    async def extend(self, key: Key, done: Done) -> None:
        """A range that begins where `done` begins is done up to its end."""
        await self._worker.run(self._write, key, done)

    async def forget(self, key: Key) -> None:
        """Nothing is done of this."""
        await self._worker.run(self._delete, key)

    async def close(self) -> None:
        """Close the file and end the thread."""
        await self._worker.close(self._database.close)

    def _read(self, key: Key) -> list[Done]:
        with self._database.transaction() as connection:
            rows = connection.execute(
                "SELECT start_ms, end_ms, newest_ms FROM done"
                " WHERE exchange = ? AND symbol = ? AND measurement = ? ORDER BY start_ms",
                key,
            ).fetchall()
        return [Done(*row) for row in rows]

    def _write(self, key: Key, done: Done) -> None:
        with self._database.transaction() as connection:
            connection.execute("REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?)", (*key, *done))

    def _delete(self, key: Key) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "DELETE FROM done WHERE exchange = ? AND symbol = ? AND measurement = ?", key
            )
