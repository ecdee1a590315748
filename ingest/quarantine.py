"""The outbox's quarantine: rows that the store refused, kept with its words, or sent again.

The functions work within the caller's transaction, and keep its ledger.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ingest.outbox_ledger import Ledger
from ingest.outbox_records import (
    INSERT_QUARANTINED,
    QUARANTINED_COLUMNS,
    Entry,
    Quarantined,
    entries,
    entries_between,
    key_of,
    quarantined,
)
from ingest.sinks.base import Rejected
from marketdata.schema import MEASUREMENTS, Row

QUARANTINED_TICKS = 10_000
"""Rejected ticks kept to be looked at; a store that rejects every tick must not fill the disk."""
RETRIED_ROWS = 10_000
"""Rows that leave the quarantine in one transaction, so that an append never waits long."""


def keep(
    connection: sqlite3.Connection, ledger: Ledger, rejected: Sequence[Rejected], now_ms: int
) -> list[str]:
    """Keep the rejected rows, of ticks the newest only; the measurements of those that go."""
    if not rejected:
        return []
    first = ledger.new_ids(len(rejected))
    connection.executemany(
        INSERT_QUARANTINED,
        [(first + n, *quarantined(row, now_ms)[1:]) for n, row in enumerate(rejected)],
    )
    for row in rejected:
        ledger.add(row.measurement, refused=1)
    oldest = connection.execute(
        "SELECT id, measurement FROM quarantine WHERE tick ORDER BY id DESC LIMIT -1 OFFSET ?",
        (QUARANTINED_TICKS,),
    ).fetchall()
    connection.executemany("DELETE FROM quarantine WHERE id = ?", [row[:1] for row in oldest])
    for _, measurement in oldest:
        ledger.add(measurement, refused=-1)
    return [measurement for _, measurement in oldest]


def retried(connection: sqlite3.Connection, ledger: Ledger, now_ms: int) -> list[Entry]:
    """Take out the rows that `ingest outbox retry` has marked, as entries to be inserted.

    A row of which a later state waits already is left out: that one must be written last.
    """
    marked = [
        Quarantined(*values)
        for values in connection.execute(
            f"SELECT {QUARANTINED_COLUMNS} FROM quarantine INDEXED BY quarantine_to_retry"
            " WHERE retry ORDER BY id LIMIT ?",
            (RETRIED_ROWS,),
        )
    ]
    batch: dict[str, list[Row]] = {}
    for record in marked:
        batch.setdefault(record.measurement, []).append(record.decode())
        ledger.add(record.measurement, refused=-1)
    connection.executemany(
        "DELETE FROM quarantine WHERE id = ?", [(record.id,) for record in marked]
    )
    found: list[Entry] = []
    for name, rows in batch.items():
        waiting = _waiting(connection, name, rows)
        found += entries(name, [row for row in rows if key_of(name)(row) not in waiting], now_ms)
    return found


def _waiting(
    connection: sqlite3.Connection, name: str, rows: Sequence[Row]
) -> set[tuple[object, ...]]:
    """Keys of the rows that wait in the time of these; none of ticks, which aren't rewritten."""
    if MEASUREMENTS[name].tick:
        return set()
    times = [row.time for row in rows]
    between = entries_between(connection, name, min(times), max(times) + 1)
    return {key_of(name)(row) for entry in between for row in entry.decode()}
