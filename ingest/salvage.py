"""What can be read of a damaged outbox goes into a fresh file, and what can't is counted.

1. The fresh file grows beside the damaged one, as `<name>.salvaging`. Nothing is written to the
   damaged one, except its first page where that is unreadable and `<name>.lock` has a copy of it.
2. Every record that can be read, and whose checksum is right, is copied under its own id. Around
   what can't be read the walk comes from both ends, then in halves, for at most PROBES tries.
3. The rows that the ledger knows and that were not found are entered in the fresh ledger as lost.
   The ledger is the damaged file's own, or else its copy in `<name>.lock`. Without one, what is
   known to be gone is counted, and one row more as unknown: no repair is silent.
4. The fresh file is fsynced and called `<name>.salvaged`: from here on it is the outbox. The
   damaged one is moved to `<name>.damaged-<ms>` with its -wal and -shm, the fresh one into its
   place.

Killed before step 4, the next start begins anew; within it, the next start ends it. A disk without
room for the fresh file is `StoreUnavailable`, and the damaged one stays where it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from ingest.database import DamagedFile, errors_by_type, lenient_text
from ingest.outbox_ledger import PAGE_BYTES, Account, Damage, Ledger, Lock
from ingest.outbox_records import (
    INSERT_ENTRY,
    INSERT_QUARANTINED,
    BrokenRecord,
    Entry,
    Quarantined,
)
from ingest.outbox_schema import TABLES, VERSION, version_of
from marketdata.errors import StoreRefused
from marketdata.schema import MEASUREMENTS

PROBES = 20_000
"""Tries to read something around what can't be read; some 50 µs each."""
UNKNOWN = "unknown"
"""In the place of a measurement, where it can't be told which lost a row."""
_BEYOND = 2**62
_SIZE = slice(28, 32)
"""Where the first page says how many pages there are."""
_UNREADABLE = (sqlite3.Error, MemoryError, UnicodeDecodeError)
"""What reading damaged pages raises; the last where SQLite's complaint quotes garbled names."""

Record = TypeVar("Record", Entry, Quarantined)


def check(connection: sqlite3.Connection, found: int) -> None:
    """Raise DamagedFile unless the file is a new one, or sound, or of a version unknown here."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if names and not names & {"entries", "quarantine"}:
        raise StoreRefused(
            "outbox.path leads to a database of something else: it has none of an outbox's tables;"
            " nothing is done to it, name another path"
        )
    version = version_of(connection, exactly=found not in TABLES)
    empty = found == 0 and not names
    if not empty and version != found and (version is not None or found in (0, *TABLES)):
        raise DamagedFile(f"it says version {found}, but has the tables of {version}")
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise DamagedFile(f"integrity_check says: {verdict}")


def missing(path: Path, lock: Lock) -> str | None:
    """Why the file must not be opened as it is: SQLite would begin a new one and say nothing."""
    if path.exists():
        return None if path.stat().st_size else "the file is empty"
    if _size(f"{path}-wal"):
        return "the file is gone, its write-ahead log is there"
    known = Ledger() if lock.ledger is None else lock.ledger
    return "the file is gone" if known.total().rows or known.total().quarantined else None


def salvage(
    path: Path,
    cause: str,
    lock: Lock,
    now_ms: int,
    reading: sqlite3.Connection | None = None,
) -> None:
    """Replace the damaged file at `path` by one with all that can be read of it.

    `reading` is an open connection to a file that `path` doesn't lead to any more. Raises
    StoreUnavailable if the fresh file can't be written now; then nothing has changed.
    """
    work = _beside(path, "salvaging")
    with errors_by_type("outbox", path):
        _clear(work)
        try:
            with closing(sqlite3.connect(work, isolation_level=None)) as fresh:
                _fill(fresh, path, cause, lock, f"{path}.damaged-{now_ms}", reading)
            _sync(work)
            os.replace(work, _beside(path, "salvaged"))
            _sync(path.parent)
        except BaseException:
            _clear(work)
            raise
    finish(path, lock, now_ms)


def finish(path: Path, lock: Lock, now_ms: int) -> None:
    """Put a salvaged file into its place, if there is one; part of that may be done already."""
    with errors_by_type("outbox", path):
        salvaged = _beside(path, "salvaged")
        if not salvaged.exists():
            return
        lock.forget_first_page()
        # The log first: beside another database SQLite would take it for its own.
        for end in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                os.rename(f"{path}{end}", f"{path}.damaged-{now_ms}{end}")
        os.replace(salvaged, path)
        _sync(path.parent)


def _fill(
    fresh: sqlite3.Connection,
    path: Path,
    cause: str,
    lock: Lock,
    moved_to: str,
    reading: sqlite3.Connection | None,
) -> None:
    """The fresh file's tables, records and ledger, as one commit."""
    run = fresh.execute
    run("PRAGMA journal_mode = OFF")  # if it fails it is thrown away
    run("BEGIN")
    for statement in TABLES[VERSION]:
        run(statement)
    with nullcontext(reading) if reading else closing(_opened(path, lock.first_page)) as damaged:
        version, own = _version_and_ledger(damaged)
        copy = lock.ledger
        if own is not None and copy is not None and own.file != copy.file:
            copy = None
        last = max((book.last for book in (own, copy) if book is not None), default=_BEYOND)
        rows = _Found(damaged, Entry, version, last)
        fresh.executemany(INSERT_ENTRY, rows)
        refused = _Found(damaged, Quarantined, version, last)
        fresh.executemany(INSERT_QUARANTINED, refused)
    lost = _lost(own, copy, rows, refused)
    known = own or copy or Ledger()
    ledger = Ledger(known.file, known.last, damage=Damage(cause, dict(lost), moved_to))
    ledger.last = max(ledger.last, rows.last_seen, refused.last_seen)
    for name in {*rows.rows, *refused.rows, *known.accounts}:
        books = [book.accounts.get(name, Account()) for book in (own, copy) if book is not None]
        ledger.add(
            name,
            appended=max((book.appended for book in books), default=rows.rows[name]),
            rows=rows.rows[name],
            size=rows.bytes[name],
            refused=refused.rows[name],
        )
    ledger.write(fresh)
    run(f"PRAGMA user_version = {VERSION}")
    run("COMMIT")


def _lost(
    own: Ledger | None, copy: Ledger | None, rows: _Found[Entry], refused: _Found[Quarantined]
) -> Counter[str]:
    """How many rows of each measurement should be there, and are not."""
    lost: Counter[str] = Counter()
    known = own or copy
    if known is None:
        lost.update(rows.lost)
        lost.update(refused.lost)
        lost[UNKNOWN] += 1  # at least: a page that reads as an empty one gives no error
        return lost
    for name, account in known.accounts.items():
        found = rows.rows[name] + refused.rows[name]
        lost[name] = max(0, account.rows + account.quarantined - found)
    if known.damage is not None:
        lost.update(known.damage.lost)
    if own is not None and copy is not None:
        lost.update(own.behind(copy))
    return +lost


@dataclass
class _Found(Generic[Record]):
    """The records of one table that can be read and are right; what is known of the others."""

    connection: sqlite3.Connection
    kind: type[Record]
    version: int | None
    """Of the tables; None where there are none."""
    last: int
    """No record has a higher id."""
    last_seen: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._table = "entries" if self.kind is Entry else "quarantine"
        self._sealed = self.version is not None and self.version >= 2
        fields = self.kind._fields if self._sealed else self.kind._fields[:-1]
        self._select = f"SELECT {', '.join(fields)} FROM {self._table} NOT INDEXED"

    def __iter__(self) -> Iterator[Record]:
        if self.version is None:
            return
        for record in self._records():
            count = record.rows if isinstance(record, Entry) else 1
            try:
                record.check()
                if not self._sealed:
                    record.decode()
            except BrokenRecord:
                self._lose(record.measurement, count)
                continue
            self.rows[record.measurement] += count
            self.last_seen = max(self.last_seen, record.id)
            if isinstance(record, Entry):
                self.bytes[record.measurement] += len(record.payload)
            yield record

    def _records(self) -> Iterator[Record]:
        ranges = [(1, self.last)]
        for _ in range(PROBES):
            if not ranges:
                return
            low, high = ranges.pop()
            low = yield from self._walk(low, high, 1)
            if low <= high:
                high = yield from self._walk(low, high, -1)
            if low == high:
                self._look_at_head(low)
            elif low < high:
                middle = (low + high) // 2
                ranges += [(middle + 1, high), (low, middle)]

    def _walk(self, low: int, high: int, step: int) -> Generator[Record, None, int]:
        """Yield from one end as far as it can be read; return the id where that ended."""
        at, end = (low, high) if step == 1 else (high, low)
        order = "ASC" if step == 1 else "DESC"
        try:
            for values in self.connection.execute(
                f"{self._select} WHERE id BETWEEN ? AND ? ORDER BY id {order}", (low, high)
            ):
                record = self.kind(*values) if self._sealed else self.kind.sealed(*values)
                if (record.id - at) * step < 0:
                    return at  # it goes in a circle
                yield record
                at = record.id + step
        except _UNREADABLE:
            return at
        return end + step

    def _look_at_head(self, record: int) -> None:
        """Of a record that can't be read whole, its first columns often can."""
        counted = "rows" if self.kind is Entry else "1"
        try:
            head = self.connection.execute(
                f"SELECT measurement, {counted} FROM {self._table} WHERE id = ?", (record,)
            ).fetchone()
        except _UNREADABLE:
            return
        if head is not None:
            self._lose(*head)

    def _lose(self, measurement: object, count: object) -> None:
        name = measurement if measurement in MEASUREMENTS else UNKNOWN
        self.lost[str(name)] += count if isinstance(count, int) and count > 0 else 1


def _opened(path: Path, copy: bytes | None) -> sqlite3.Connection:
    """The damaged file, to be read only, with its first page mended where there is a copy."""
    if path.exists() or _size(f"{path}-wal"):
        _mend_first_page(path, copy)
    # Without a page of its own SQLite would delete the log.
    where = f"{path.resolve().as_uri()}?mode=ro" if _size(path) else "file::memory:"
    connection = sqlite3.connect(where, uri=True, isolation_level=None)
    connection.text_factory = lenient_text
    # Reads on where the file is shorter than it says, or an index is described wrongly.
    connection.execute("PRAGMA writable_schema = ON")
    return connection


def _mend_first_page(path: Path, copy: bytes | None) -> None:
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        page = file.read(PAGE_BYTES)
        size = os.fstat(file.fileno()).st_size
        if copy is not None and _lasting(copy) != _lasting(page):
            page = copy
        elif page[_SIZE] == (size // PAGE_BYTES).to_bytes(4, "big"):
            return
        if page:
            file.seek(0)
            # No number of pages: SQLite then goes by the length of the file.
            file.write(page[: _SIZE.start] + bytes(4) + page[_SIZE.stop :])


def _lasting(page: bytes) -> bytes:
    """What of the first page only changes with the tables."""
    return page[:24] + page[40:92] + page[100:]


def _version_and_ledger(damaged: sqlite3.Connection) -> tuple[int | None, Ledger | None]:
    try:
        version = version_of(damaged, exactly=False)
    except _UNREADABLE:
        return None, None
    try:
        return version, Ledger.read(damaged)
    except _UNREADABLE:
        return version, None


def _size(path: Path | str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f"{path.name}.{end}")


def _clear(work: Path) -> None:
    for end in ("", "-journal"):
        Path(f"{work}{end}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
