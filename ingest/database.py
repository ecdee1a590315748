"""One SQLite file and its only connection, with errors by type and durable commits.

Both the outbox and the SQLite store are such files. WAL with synchronous=FULL: what is committed is
fsynced. The store needs that as much as the outbox does, because the outbox forgets a row as soon
as the store has it; with NORMAL the last commits before a power cut would be in neither.

| SQLite says | raised |
|---|---|
| busy, locked, full, I/O error, read-only, can't open, no permission | `StoreUnavailable` |
| corrupt, not a database, a table that differs, a schema version unknown here | `StoreRefused` |

All methods belong to one thread: `Worker` is that thread for asyncio.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from marketdata.errors import MarketDataError, StoreRefused, StoreUnavailable

LOCKED_S = 5.0
"""How long a statement waits for another process's lock."""
WAL_BYTES = 64 * 2**20
"""What is left of the write-ahead log after a long reader has made it grow."""

_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """An open file with the given tables; raises as the module says.

    Parameters
    ----------
    label
        What the file is, for messages: "outbox", "store".
    statements, version
        The tables, made in a new file, and what `PRAGMA user_version` says of them.
    """

    def __init__(self, path: Path, label: str, statements: Sequence[str], version: int) -> None:
        self.path = path
        self._label = label
        with self._translated():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None)
            try:
                self._prepare(statements, version)
            except BaseException:
                self._connection.close()
                raise
            self._inode = path.stat().st_ino

    def _prepare(self, statements: Sequence[str], version: int) -> None:
        run = self._connection.execute
        (found,) = run("PRAGMA user_version").fetchone()
        if found not in (0, version):
            raise StoreRefused(
                f"{self._label} {self.path} has schema version {found}, this program knows"
                f" {version}: run the program that wrote it, or move the file away"
            )
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if found == 0:
            with self.transaction():
                for statement in statements:
                    run(statement)
                run(f"PRAGMA user_version = {version}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on disk when the block is left."""
        connection = self._connection
        with self._translated():
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def moved(self) -> bool:
        """Whether the path leads to another file now, or to none: writing on would be in vain."""
        try:
            return self.path.stat().st_ino != self._inode
        except OSError:
            return True

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.Error | OSError) -> MarketDataError:
        code = getattr(error, "sqlite_errorcode", None)
        if isinstance(error, OSError) or (code is not None and code & 0xFF in _TRANSIENT):
            return StoreUnavailable(
                f"{self._label} {self.path} can't be written now: {error}; tried again later"
            )
        return StoreRefused(
            f"{self._label} {self.path} can't be used: {error}; nothing is written to it until it"
            " is mended or moved away"
        )


class Worker:
    """One thread for blocking work, in the order in which it was asked for."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `job` returns or raises. A job that has begun ends, even if this is cancelled."""
        future = self._executor.submit(job, *args, **kwargs)
        return await asyncio.wrap_future(future)

    async def close(self, *last: Callable[[], None]) -> None:
        """Run `last`, after everything asked for before, and end the thread."""
        try:
            for job in last:
                await self.run(job)
        finally:
            self._executor.shutdown()
