"""The outbox's file: its tables, its records, what is dropped at the bound. See `ingest.outbox`."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, cast

import orjson

from ingest.database import Database
from ingest.sinks.base import Rejected, Settled
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import MEASUREMENTS, Batch, Row

SCHEMA_VERSION = 1
SHARD_MS = 30 * 86_400_000
"""A parcel never crosses a multiple of this: InfluxDB's shards are as long, or divide it."""
ENTRY_ROWS = 1_000
_AFTER_ALL = 2**62
THINNED_FIRST = ("mark_price", "funding_rate", "last_price")
"""At the bound these go, in this order, oldest first; nothing else ever does."""
QUARANTINED_TICKS = 10_000
"""Rejected ticks kept to be looked at; a store that rejects every tick must not fill the disk."""

_TABLES = (
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
    "CREATE INDEX entries_by_shard ON entries (tick, shard, id)",
    "CREATE INDEX entries_by_measurement ON entries (measurement, id)",
    """CREATE TABLE quarantine (
        id INTEGER PRIMARY KEY,
        rejected_ms INTEGER NOT NULL,
        measurement TEXT NOT NULL,
        tick INTEGER NOT NULL,
        row BLOB NOT NULL,
        reason TEXT NOT NULL
    )""",
)


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
    """The file, locked for this process. All methods belong to one thread."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._in_flight: frozenset[int] = frozenset()
        self.dropped: Counter[str] = Counter()
        with ExitStack() as stack:
            stack.callback(os.close, _locked(path))
            self._database = Database(path, "outbox", _TABLES, SCHEMA_VERSION)
            stack.callback(self._database.close)
            self.depth = self._read_depth()
            self._open = stack.pop_all()

    def _read_depth(self) -> Depth:
        with self._database.transaction() as connection:
            rows, size, quarantined = connection.execute(
                "SELECT total(rows), total(length(payload)), (SELECT count(*) FROM quarantine)"
                " FROM entries"
            ).fetchone()
            return Depth(int(rows), int(size), _oldest_ms(connection), quarantined)

    def append(self, batch: Batch, now_ms: int) -> None:
        """Commit every row of `batch`; ticks may be dropped for it, also of this batch."""
        entries = [entry for name, rows in batch.items() for entry in _entries(name, rows, now_ms)]
        if not entries:
            return
        with self._database.transaction() as connection:
            connection.executemany(
                "INSERT INTO entries (created_ms, measurement, tick, shard, first_ms, last_ms,"
                " rows, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                entries,
            )
            rows = self.depth.rows + sum(entry[-2] for entry in entries)
            size = self.depth.bytes + sum(len(entry[-1]) for entry in entries)
            thinned = self._thin(connection, size - self._max_bytes)
            oldest_ms = _oldest_ms(connection)
        for measurement, dropped_rows, dropped_bytes in thinned:
            self.dropped[f"outbox_full.{measurement}"] += dropped_rows
            rows -= dropped_rows
            size -= dropped_bytes
        self.depth = Depth(rows, size, oldest_ms, self.depth.quarantined)

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
        with self._database.transaction() as connection:
            shelf = next((found for found in _shelves(connection) if found not in skip), None)
            if shelf is None:
                return None
            taken: list[tuple[int, str, bytes]] = []
            total = 0
            for entry, measurement, rows, payload in connection.execute(
                "SELECT id, measurement, rows, payload FROM entries WHERE tick = ? AND shard = ?"
                f" ORDER BY id {'DESC' if shelf.tick else ''}",
                shelf,
            ):
                if taken and total + rows > max_rows:
                    break
                taken.append((entry, measurement, payload))
                total += rows
        batch: dict[str, list[Row]] = {}
        for _, measurement, payload in sorted(taken):
            batch.setdefault(measurement, []).extend(self._decode(measurement, payload))
        entries = tuple(entry for entry, _, _ in taken)
        self._in_flight = frozenset(entries)
        return Parcel(shelf, entries, total, sum(len(payload) for *_, payload in taken), batch)

    def settle(self, parcel: Parcel, settled: Settled, now_ms: int) -> None:
        """Forget the parcel; what was rejected goes to the quarantine, in the same transaction."""
        with self._database.transaction() as connection:
            connection.executemany(
                "DELETE FROM entries WHERE id = ?", [(entry,) for entry in parcel.entries]
            )
            connection.executemany(
                "INSERT INTO quarantine (rejected_ms, measurement, tick, row, reason)"
                " VALUES (?, ?, ?, ?, ?)",
                [_quarantined(rejected, now_ms) for rejected in settled.rejected],
            )
            forgotten = self._forget_ticks(connection) if settled.rejected else []
            oldest_ms = _oldest_ms(connection)
        self._in_flight = frozenset()
        self.dropped.update(f"quarantine_full.{measurement}" for measurement in forgotten)
        self.depth = Depth(
            self.depth.rows - parcel.rows,
            self.depth.bytes - parcel.bytes,
            oldest_ms,
            self.depth.quarantined + len(settled.rejected) - len(forgotten),
        )

    def _forget_ticks(self, connection: sqlite3.Connection) -> list[str]:
        """Keep the newest rejected ticks only; the measurements of those that went."""
        oldest = connection.execute(
            "SELECT id, measurement FROM quarantine WHERE tick ORDER BY id DESC LIMIT -1 OFFSET ?",
            (QUARANTINED_TICKS,),
        ).fetchall()
        connection.executemany("DELETE FROM quarantine WHERE id = ?", [row[:1] for row in oldest])
        return [measurement for _, measurement in oldest]

    def pending(
        self, measurement: str, exchange: str, symbol: str, start_ms: int, end_ms: int
    ) -> list[Row]:
        """A pair's rows with start <= time < end, ascending; the newest where one was rewritten."""
        with self._database.transaction() as connection:
            payloads = connection.execute(
                "SELECT payload FROM entries WHERE measurement = ? AND last_ms >= ?"
                " AND first_ms < ? ORDER BY id",
                (measurement, start_ms, end_ms),
            ).fetchall()
        key = attrgetter(*MEASUREMENTS[measurement].keys)
        head = orjson.dumps([exchange, symbol])[:-1]
        newest = {
            key(row): row
            for (payload,) in payloads
            for row in self._decode(measurement, _rows_with(head, payload))
            if start_ms <= row.time < end_ms
        }
        return sorted(newest.values(), key=attrgetter("time"))

    def close(self) -> None:
        self._open.close()

    def _decode(self, measurement: str, payload: bytes) -> Iterable[Row]:
        try:
            make = cast(type[Row], MEASUREMENTS[measurement].row)._make
            return [make(values) for values in orjson.loads(payload)]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreRefused(
                f"outbox {self._database.path}: an entry of {measurement!r} can't be read"
                f" ({error}); nothing is delivered until the file is mended or moved away"
            ) from error


def _entries(
    name: str, rows: Sequence[Row], now_ms: int
) -> Iterator[tuple[int, str, bool, int, int, int, int, bytes]]:
    """The records of one measurement: each of one shard and at most ENTRY_ROWS rows, in order."""
    tick = MEASUREMENTS[name].tick
    for shard, run in groupby(rows, lambda row: row.time // SHARD_MS):
        of_shard = list(run)
        for start in range(0, len(of_shard), ENTRY_ROWS):
            part = of_shard[start : start + ENTRY_ROWS]
            times = [row.time for row in part]
            yield now_ms, name, tick, shard, min(times), max(times), len(part), _encode(part)


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


def _rows_with(head: bytes, payload: bytes) -> bytes:
    """The payload's rows that begin with `head`, without parsing the others: a backlog is long.

    >>> _rows_with(b'["X","B"', b'[["X","A",1],["X","B",2],["X","B",3]]')
    b'[["X","B",2],["X","B",3]]'
    """
    found = []
    start = payload.find(head + b",")
    while start >= 0:
        end = payload.index(b"]", start + len(head)) + 1
        found.append(payload[start:end])
        start = payload.find(head + b",", end)
    return b"[" + b",".join(found) + b"]"


def _encode(rows: Sequence[Row]) -> bytes:
    try:
        return orjson.dumps(list(map(tuple, rows)))
    except orjson.JSONEncodeError:
        return orjson.dumps([[_spelled(value) for value in row] for row in rows])


def _spelled(value: object) -> object:
    """A value that JSON can't hold, as text: the row stays, and the sink rejects it by name."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return ascii(value)
    return value


def _quarantined(rejected: Rejected, now_ms: int) -> tuple[int, str, bool, bytes, str]:
    tick = MEASUREMENTS[rejected.measurement].tick
    row = _encode([rejected.row])[1:-1]
    return now_ms, rejected.measurement, tick, row, rejected.reason


def _oldest_ms(connection: sqlite3.Connection) -> int | None:
    oldest = connection.execute("SELECT created_ms FROM entries ORDER BY id LIMIT 1")
    return next((created_ms for (created_ms,) in oldest), None)


def _locked(path: Path) -> int:
    """A lock on the outbox for as long as the descriptor is open, or this process lives."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreUnavailable(f"outbox {path} can't be opened: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StoreRefused(
            f"outbox {path} is in use by another process (pid {owner}): one service per outbox;"
            " stop the other one, or give this one another outbox.path"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock
