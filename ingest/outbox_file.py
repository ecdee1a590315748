"""The outbox's file: what is written to it, read from it and mended. See `ingest.outbox`."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import structlog

from ingest import quarantine, salvage
from ingest.database import DamagedFile, Database, errors_by_type
from ingest.outbox_ledger import PAGE_BYTES, Damage, Ledger, Lock, new_file
from ingest.outbox_records import (
    ENTRY_COLUMNS,
    INSERT_ENTRY,
    BrokenRecord,
    Entry,
    entries,
    entries_between,
    key_of,
)
from ingest.outbox_schema import MIGRATIONS, TABLES, VERSION
from ingest.sinks.base import Settled
from marketdata.errors import StoreUnavailable
from marketdata.schema import Batch, Row

_AFTER_ALL = 2**62
THINNED_FIRST = ("mark_price", "funding_rate", "last_price")
"""At the bound these go, in this order, oldest first; nothing else ever does."""
BROKEN_KEPT = 1_000
"""Broken records kept as bytes, the newest; all are counted."""
MENDS = 2
"""Repairs for one job: a disk that damages what has just been written isn't mended for ever."""
MOVED = "it was moved or deleted under the service"
MENDED_AGAIN_S = 5.0
"""Between two repairs that fail, because the disk is full."""
_SOMETHING = " UNION ALL ".join(f"SELECT 1 FROM {t}" for t in ("ledger", "entries", "quarantine"))

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


class Shelf(NamedTuple):
    """Where a row waits: with the ticks or with the rest, by its shard of time."""

    tick: bool
    shard: int


@dataclass(frozen=True, slots=True)
class Parcel:
    """Pending rows that go to the store together, all of one shelf."""

    shelf: Shelf
    entries: tuple[int, ...]
    rows: int
    bytes: int
    batch: Batch


@dataclass(frozen=True, slots=True)
class Depth:
    """How much waits: rows, bytes of payload, when the oldest was appended; rows in quarantine."""

    rows: int = 0
    bytes: int = 0
    oldest_ms: int | None = None
    quarantined: int = 0


class OutboxFile:
    """The file, locked for this process. All methods belong to one thread.

    A method that meets damage raises `DamagedFile` or `BrokenRecord`, and has changed nothing then:
    `mending` is the way to call them.
    """

    def __init__(self, path: Path, max_bytes: int, now_ms: Callable[[], int]) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._now_ms = now_ms
        self._database: Database | None = None
        self._damage: str | None = None
        self._opened_again_s = 0.0
        self._ledger = Ledger()
        self._oldest_ms: int | None = None
        self._in_flight: frozenset[int] = frozenset()
        self.dropped: Counter[str] = Counter()
        self._lock = Lock(path)
        try:
            self.mending(self.requeue)
        except BaseException:
            self.close()
            raise

    @property
    def depth(self) -> Depth:
        """How much waits, and how much is in the quarantine."""
        total = self._ledger.total()
        return Depth(total.rows, total.bytes, self._oldest_ms, total.quarantined)

    def close(self) -> None:
        """Close the file, and give the lock back."""
        self._close_database()
        self._lock.close()

    def mending(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `job` returns, after whatever damage it met has been mended."""
        mends = 0
        broken: BrokenRecord | None = None
        while True:
            try:
                if self._database is None or self._damage is not None:
                    self._open()
                if broken is not None:
                    self._set_aside(broken)
                    broken = None
                return job(*args, **kwargs)
            except BrokenRecord as found:
                broken = found
            except DamagedFile as damage:
                self._damage = str(damage.__cause__ or damage)
                broken = None
                mends += 1
                if mends > MENDS:
                    raise

    def _open(self) -> None:
        """Open the file, after a repair where it needs one."""
        if self._damage == MOVED and self._database is not None and not self._database.moved():
            self._damage = None  # it is back: its file system was away
            return
        if time.monotonic() < self._opened_again_s:
            raise StoreUnavailable(f"outbox {self._path} waits to be mended: {self._damage}")
        try:
            salvage.finish(self._path, self._lock, self._now_ms())
            self._damage = self._damage or salvage.missing(self._path, self._lock)
            if self._damage is not None:
                salvage.salvage(
                    self._path, self._damage, self._lock, self._now_ms(), reading=self._moved()
                )
                self._damage = None
        except StoreUnavailable:
            self._opened_again_s = time.monotonic() + MENDED_AGAIN_S
            raise
        self._close_database()
        self._database = Database(
            self._path, "outbox", TABLES[VERSION], VERSION, MIGRATIONS, salvage.check
        )
        try:
            self._take_up()
        except BaseException:
            self._close_database()
            raise

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _moved(self) -> sqlite3.Connection | None:
        """The connection to a file that its path doesn't lead to any more: all is there still."""
        if self._database is None or not self._database.moved():
            return None
        return self._database.connection

    def _take_up(self) -> None:
        """Take up the file's ledger, and tell what is known to be lost."""
        with self._change() as (connection, ledger):
            found = Ledger.read(connection)
            if found is None and connection.execute(_SOMETHING).fetchone():
                raise DamagedFile("its ledger can't be read")
        if found is not None:
            # No id of this process again: a parcel that is with the sink may have it.
            found.last = max(found.last, self._ledger.last)
            self._ledger = found
        with self._change() as (connection, ledger):
            if found is None:
                ledger.file = new_file()
            copy = self._lock.ledger
            missed = {} if copy is None else ledger.behind(copy)
            for measurement, rows in missed.items():
                ledger.add(measurement, appended=rows)
            if missed:
                cause = "its last commits are missing: the write-ahead log was cut, or is gone"
                ledger.damage = Damage(cause, missed, None)
        self._lock.keep(self._ledger.encode())
        self._copy_first_page(connection)
        if self._ledger.damage is not None:
            self._tell(self._ledger.damage)
            # If that can't be written now, it is told again at the next start.
            with suppress(StoreUnavailable), self._change() as (_, ledger):
                ledger.damage = None

    def _copy_first_page(self, connection: sqlite3.Connection) -> None:
        with errors_by_type("outbox", self._path):
            with suppress(sqlite3.OperationalError):  # a full disk: another time
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            with self._path.open("rb") as file:
                page = file.read(PAGE_BYTES)
        if b"CREATE TABLE ledger" in page:
            self._lock.keep_first_page(page)

    def _tell(self, damage: Damage) -> None:
        self._lose(damage.lost)
        log.error(
            "outbox_damaged",
            path=str(self._path),
            cause=damage.cause,
            lost=damage.lost,
            kept_rows=self.depth.rows,
            moved_to=damage.moved_to,
        )

    def _lose(self, lost: Mapping[str, int]) -> None:
        for measurement, rows in lost.items():
            self.dropped[f"outbox_damaged.{measurement}"] += rows

    @contextmanager
    def _change(self) -> Iterator[tuple[sqlite3.Connection, Ledger]]:
        """A transaction, and the ledger as it will be after it."""
        if self._database is None:
            raise StoreUnavailable(f"outbox {self._path} isn't open")
        if self._database.moved():
            raise DamagedFile(MOVED)
        ledger = self._ledger.copy()
        line = None
        with self._database.transaction() as connection:
            yield connection, ledger
            if ledger != self._ledger:
                line = ledger.write(connection)
            oldest = connection.execute("SELECT created_ms FROM entries ORDER BY id LIMIT 1")
            oldest_ms = next((created_ms for (created_ms,) in oldest), None)
        self._oldest_ms = oldest_ms
        if line is not None:
            self._ledger = ledger
            self._lock.keep(line)

    def append(self, batch: Batch, now_ms: int) -> None:
        """Commit every row of `batch`; ticks may be dropped for it, also of this batch."""
        new: list[Entry] = []
        for name, rows in batch.items():
            new += entries(name, rows, now_ms)
        if not new:
            return
        with self._change() as (connection, ledger):
            self._insert(connection, ledger, new)
            for entry in new:
                ledger.add(entry.measurement, appended=entry.rows)
            thinned = self._thin(connection, ledger.total().bytes - self._max_bytes)
            for measurement, rows_gone, size in thinned:
                ledger.add(measurement, rows=-rows_gone, size=-size)
        for measurement, rows_gone, _ in thinned:
            self.dropped[f"outbox_full.{measurement}"] += rows_gone

    def _insert(self, connection: sqlite3.Connection, ledger: Ledger, new: Sequence[Entry]) -> None:
        first = ledger.new_ids(len(new))
        connection.executemany(
            INSERT_ENTRY, [(first + n, *entry[1:]) for n, entry in enumerate(new)]
        )
        for entry in new:
            ledger.add(entry.measurement, rows=entry.rows, size=len(entry.payload))

    def _thin(self, connection: sqlite3.Connection, excess: int) -> list[tuple[str, int, int]]:
        """Delete the oldest ticks until `excess` bytes are gone: measurement, rows, bytes of each.

        What is with the sink just now stays: it may be stored already, and would be counted twice.
        """
        thinned: list[tuple[str, int, int]] = []
        for measurement in THINNED_FIRST:
            if excess <= 0:
                break
            doomed: list[tuple[int]] = []
            for entry, rows, size in connection.execute(
                "SELECT id, rows, length(payload) FROM entries WHERE measurement = ? ORDER BY id",
                (measurement,),
            ):
                if excess <= 0:
                    break
                if entry not in self._in_flight:
                    doomed.append((entry,))
                    thinned.append((measurement, rows, size))
                    excess -= size
            connection.executemany("DELETE FROM entries WHERE id = ?", doomed)
        return thinned

    def take(self, max_rows: int, skip: Collection[Shelf] = ()) -> Parcel | None:
        """Pending rows of the first shelf not in `skip`, up to `max_rows` or one entry."""
        with self._change() as (connection, ledger):
            shelves = list(_shelves(connection))
            if not shelves:
                self._expect_none(ledger)
            shelf = next((found for found in shelves if found not in skip), None)
            if shelf is None:
                return None
            taken: list[Entry] = []
            total = 0
            for values in connection.execute(
                f"SELECT {ENTRY_COLUMNS} FROM entries WHERE tick = ? AND shard = ?"
                f" ORDER BY id {'DESC' if shelf.tick else ''}",
                shelf,
            ):
                entry = Entry(*values)
                if taken and total + entry.rows > max_rows:
                    break
                taken.append(entry)
                total += entry.rows
        batch: dict[str, list[Row]] = {}
        for entry in sorted(taken):
            batch.setdefault(entry.measurement, []).extend(entry.decode())
        ids = tuple(entry.id for entry in taken)
        self._in_flight = frozenset(ids)
        return Parcel(shelf, ids, total, sum(len(entry.payload) for entry in taken), batch)

    def _expect_none(self, ledger: Ledger) -> None:
        if ledger.total().rows > 0:
            raise DamagedFile(f"{ledger.total().rows} rows should wait, and none is found")

    def settle(self, parcel: Parcel, settled: Settled, now_ms: int) -> None:
        """Forget the parcel; what was rejected goes to the quarantine, in the same transaction."""
        with self._change() as (connection, ledger):
            for entry in parcel.entries:
                # What a repair has lost meanwhile isn't there, and is counted already.
                for measurement, rows, size in connection.execute(
                    "DELETE FROM entries WHERE id = ? RETURNING measurement, rows, length(payload)",
                    (entry,),
                ):
                    ledger.add(measurement, rows=-rows, size=-size)
            forgotten = quarantine.keep(connection, ledger, settled.rejected, now_ms)
            self._insert(connection, ledger, quarantine.retried(connection, ledger, now_ms))
        self._in_flight = frozenset()
        self.dropped.update(f"quarantine_full.{measurement}" for measurement in forgotten)

    def requeue(self) -> None:
        """Let the rows wait again that `ingest outbox retry` has marked."""
        with self._change() as (connection, ledger):
            marked = quarantine.retried(connection, ledger, self._now_ms())
            self._insert(connection, ledger, marked)

    def pending(
        self, measurement: str, exchange: str, symbol: str, start_ms: int, end_ms: int
    ) -> list[Row]:
        """A pair's rows with start <= time < end, ascending; the newest where one was rewritten."""
        with self._change() as (connection, _):
            found = entries_between(connection, measurement, start_ms, end_ms)
        newest = {
            key_of(measurement)(row): row
            for entry in found
            for row in entry.rows_of(exchange, symbol)
            if start_ms <= row.time < end_ms
        }
        return sorted(newest.values(), key=attrgetter("time"))

    def _set_aside(self, broken: BrokenRecord) -> None:
        """Take one record out of the way of the others: its bytes are kept, its rows counted."""
        table, contents = broken.table, "payload"
        rows = "rows"
        if table == "quarantine":
            contents, rows = "row", "1"
        with self._change() as (connection, ledger):
            connection.execute(
                "INSERT INTO broken (found_ms, source, record, measurement, rows, why, bytes)"
                f" SELECT ?, ?, id, measurement, {rows}, ?, {contents} FROM {table} WHERE id = ?",
                (self._now_ms(), table, broken.why, broken.record),
            )
            connection.execute(
                "DELETE FROM broken WHERE id <= (SELECT max(id) FROM broken) - ?", (BROKEN_KEPT,)
            )
            gone = connection.execute(f"DELETE FROM {table} WHERE id = ?", (broken.record,))
            if gone.rowcount != 1:
                raise DamagedFile(f"{broken}; it is found by one way only")
            lost = ledger.recount(Ledger.counted(connection))
        self._lose(lost)
        log.error(
            "outbox_record_broken",
            path=str(self._path),
            cause=str(broken),
            lost=lost,
            kept="its bytes, in the table broken",
        )


def _shelves(connection: sqlite3.Connection) -> Iterator[Shelf]:
    """The shelves with rows on them: without ticks first, newer before older."""
    for tick in (False, True):
        # One look into the index for each shelf: DISTINCT would read all of a long backlog.
        before = _AFTER_ALL
        while found := connection.execute(
            "SELECT shard FROM entries WHERE tick = ? AND shard < ? ORDER BY shard DESC LIMIT 1",
            (tick, before),
        ).fetchone():
            (before,) = found
            yield Shelf(tick, before)
