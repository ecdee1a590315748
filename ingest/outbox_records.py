"""The outbox's records: rows as bytes under a checksum, so that a flipped bit is never a price."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, cast

import orjson

from ingest.sinks.base import Rejected
from marketdata.schema import MEASUREMENTS, Row

SHARD_MS = 30 * 86_400_000
"""A parcel never crosses a multiple of this: InfluxDB's shards are as long, or divide it."""
ENTRY_ROWS = 1_000


class BrokenRecord(Exception):
    """One record isn't what was written; the others are not concerned."""

    def __init__(self, table: str, record: int, why: str) -> None:
        self.table = table
        self.record = record
        self.why = why
        super().__init__(f"record {record} of {table}: {why}")


class Entry(NamedTuple):
    """A record of `entries`: rows of one measurement and shard that wait, in column order."""

    id: int
    created_ms: int
    measurement: str
    tick: int
    shard: int
    first_ms: int
    last_ms: int
    rows: int
    payload: bytes
    checksum: int

    @classmethod
    def sealed(cls, *values: Any) -> Entry:
        """A record of the other columns' values."""
        return cls._make((*values, checksum(*values[1:])))

    def check(self) -> None:
        """Raise BrokenRecord unless every column is as it was written."""
        if self.sealed(*self[:-1]).checksum != self.checksum:
            raise BrokenRecord("entries", self.id, "the checksum is wrong")

    def decode(self) -> list[Row]:
        """The rows; BrokenRecord where they are not those that were written."""
        self.check()
        rows = self._decoded(self.payload)
        if len(rows) != self.rows:
            raise BrokenRecord("entries", self.id, f"{len(rows)} rows, {self.rows} were written")
        return rows

    def rows_of(self, exchange: str, symbol: str) -> list[Row]:
        """A pair's rows, without parsing the others: a backlog is long."""
        self.check()
        head = orjson.dumps([exchange, symbol])[:-1]
        return self._decoded(_rows_with(head, self.payload))

    def _decoded(self, payload: bytes) -> list[Row]:
        try:
            make = _maker(self.measurement)
            return [make._make(values) for values in orjson.loads(payload)]
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenRecord("entries", self.id, f"it can't be read ({error})") from error


class Quarantined(NamedTuple):
    """A record of `quarantine`: a row that the store refused, with the store's words."""

    id: int
    rejected_ms: int
    measurement: str
    tick: int
    row: bytes
    reason: str
    checksum: int

    @classmethod
    def sealed(cls, *values: Any) -> Quarantined:
        """A record of the other columns' values."""
        *head, row, reason = values[1:]
        return cls._make((*values, checksum(*head, reason, row)))

    def check(self) -> None:
        """Raise BrokenRecord unless every column is as it was written."""
        if self.sealed(*self[:-1]).checksum != self.checksum:
            raise BrokenRecord("quarantine", self.id, "the checksum is wrong")

    def decode(self) -> Row:
        """The row; BrokenRecord where it is not the one that was written."""
        self.check()
        try:
            return _maker(self.measurement)._make(orjson.loads(self.row))
        except (KeyError, TypeError, ValueError) as error:
            raise BrokenRecord("quarantine", self.id, f"it can't be read ({error})") from error


ENTRY_COLUMNS = ", ".join(Entry._fields)
QUARANTINED_COLUMNS = ", ".join(Quarantined._fields)
INSERT_ENTRY = f"INSERT INTO entries ({ENTRY_COLUMNS}) VALUES (?{', ?' * (len(Entry._fields) - 1)})"
INSERT_QUARANTINED = (
    f"INSERT INTO quarantine ({QUARANTINED_COLUMNS})"
    f" VALUES (?{', ?' * (len(Quarantined._fields) - 1)})"
)


def checksum(*values: object) -> int:
    """CRC-32 over a record's columns; the last one is its bytes. No checksum where they aren't.

    >>> checksum(1, "gap", b"[]") == checksum(1, "gap", b"[]") != checksum(2, "gap", b"[]")
    True
    >>> checksum(1, "gap", "text")
    -1
    """
    *head, payload = values
    if not isinstance(payload, bytes):
        return -1
    return zlib.crc32(payload, zlib.crc32(repr(head).encode(errors="replace")))


def entries(name: str, rows: Sequence[Row], now_ms: int) -> Iterator[Entry]:
    """The records of one measurement, each of one shard and at most ENTRY_ROWS rows, in order.

    They have no id yet: it is 0.
    """
    tick = int(MEASUREMENTS[name].tick)
    for shard, run in groupby(rows, lambda row: row.time // SHARD_MS):
        of_shard = list(run)
        for start in range(0, len(of_shard), ENTRY_ROWS):
            part = of_shard[start : start + ENTRY_ROWS]
            times = [row.time for row in part]
            yield Entry.sealed(
                0, now_ms, name, tick, shard, min(times), max(times), len(part), _encode(part)
            )


def quarantined(rejected: Rejected, now_ms: int) -> Quarantined:
    """The record of a rejected row; its id is 0."""
    tick = int(MEASUREMENTS[rejected.measurement].tick)
    row = _encode([rejected.row])[1:-1]
    return Quarantined.sealed(0, now_ms, rejected.measurement, tick, row, rejected.reason)


def entries_between(
    connection: sqlite3.Connection, measurement: str, start_ms: int, end_ms: int
) -> list[Entry]:
    """The measurement's entries that may have rows with start <= time < end, in order."""
    found = connection.execute(
        f"SELECT {ENTRY_COLUMNS} FROM entries WHERE measurement = ? AND last_ms >= ?"
        " AND first_ms < ? ORDER BY id",
        (measurement, start_ms, end_ms),
    )
    return [Entry(*values) for values in found]


def key_of(measurement: str) -> Callable[[Row], tuple[object, ...]]:
    """What keys a measurement's rows: tags and time."""
    return attrgetter(*MEASUREMENTS[measurement].keys)


def _maker(measurement: str) -> type[Row]:
    return cast(type[Row], MEASUREMENTS[measurement].row)


def _rows_with(head: bytes, payload: bytes) -> bytes:
    """The payload's rows that begin with `head`.

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


def _encode(rows: Iterable[Row]) -> bytes:
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
