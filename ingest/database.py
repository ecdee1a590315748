"""One SQLite file and its only connection, with errors by type and durable commits.

Both the outbox and the SQLite store are such files. WAL with synchronous=FULL: what is committed is
fsynced. The store needs that as much as the outbox does, because the outbox forgets a row as soon
as the store has it; with NORMAL the last commits before a power cut would be in neither.

| SQLite says | raised |
|---|---|
| busy, locked, full, I/O error, read-only, can't open, no permission | `StoreUnavailable` |
| corrupt, not a database, a table that differs | `DamagedFile`, a `StoreRefused` |
| a schema version unknown here | `StoreRefused` |

The outbox mends a damaged file by itself (`ingest.salvage`). A damaged store is the operator's to
mend: it stays refused, and what it doesn't have waits in the outbox.

All methods belong to one thread: `Worker` is that thread for asyncio.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
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

Migration = Sequence[str] | Callable[[sqlite3.Connection], None]
"""The way from one schema version to the next: statements, or what runs them."""
Check = Callable[[sqlite3.Connection, int], None]
"""Raises where a file, of the schema version that it names, must not be touched."""


class DamagedFile(StoreRefused):
    """What is in the file isn't what was written to it."""


class Database:
    """An open file with the given tables; raises as the module says.

    Parameters
    ----------
    label
        What the file is, for messages: "outbox", "store".
    statements, version
        The tables, made in a new file, and what `PRAGMA user_version` says of them.
    migrations
        By the version that they start from. All that a file needs run in one transaction: whatever
        happens meanwhile, it has its old version and content, or the new ones.
    check
        Asked about a file that is there, before anything is written to it.
    """

    def __init__(
        self,
        path: Path,
        label: str,
        statements: Sequence[str],
        version: int,
        migrations: Mapping[int, Migration] = MappingProxyType({}),
        check: Check | None = None,
    ) -> None:
        self.path = path
        self._label = label
        with errors_by_type(label, path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None)
            # A damaged letter must not hide its row: what is wrong with it is for others to say.
            self._connection.text_factory = lenient_text
            try:
                found = self._version()
                if check is not None:
                    check(self._connection, found)
                self._prepare(found, {0: statements, **migrations}, version)
            except BaseException:
                self._connection.close()
                raise
            self._inode = path.stat().st_ino

    def _version(self) -> int:
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        return int(found)

    def _prepare(self, found: int, steps: Mapping[int, Migration], version: int) -> None:
        if found != version and found not in steps:
            raise StoreRefused(
                f"{self._label} {self.path} has schema version {found}, this program knows"
                f" {version}: run the program that wrote it, or move the file away"
            )
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA journal_size_limit = {WAL_BYTES}")
        if found == version:
            return
        with self.transaction() as connection:
            for start in [0] if found == 0 else range(found, version):
                step = steps[start]
                if callable(step):
                    step(connection)
                else:
                    for statement in step:
                        run(statement)
            run(f"PRAGMA user_version = {version}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on disk when the block is left."""
        connection = self._connection
        with errors_by_type(self._label, self.path):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @property
    def connection(self) -> sqlite3.Connection:
        """For reading what is left of a file that can't be written any more."""
        return self._connection

    def moved(self) -> bool:
        """Whether the path leads to another file now, or to none: writing on would be in vain."""
        try:
            return self.path.stat().st_ino != self._inode
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # what can't be looked at needn't be gone

    def close(self) -> None:
        self._connection.close()


@contextmanager
def errors_by_type(label: str, path: Path) -> Iterator[None]:
    """Raise SQLite's errors as the module says."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _error(label, path, error) from error
    except UnicodeDecodeError as error:  # the module can't read SQLite's complaint
        raise DamagedFile(f"{label} {path} can't be used: names in it are garbled") from error


def _error(label: str, path: Path, error: sqlite3.Error | OSError) -> MarketDataError:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, OSError) or (code is not None and code & 0xFF in _TRANSIENT):
        return StoreUnavailable(f"{label} {path} can't be written now: {error}; tried again later")
    # Without a code it isn't SQLite that complains but its module, about us.
    refused = StoreRefused if code is None else DamagedFile
    return refused(
        f"{label} {path} can't be used: {error}; nothing is written to it until it is mended or"
        " moved away"
    )


def lenient_text(value: bytes) -> str:
    """Text as SQLite has it, whatever its bytes.

    >>> lenient_text(b"gap"), lenient_text(b"g\\xffp")
    ('gap', 'g\ufffdp')
    """
    return value.decode(errors="replace")


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
