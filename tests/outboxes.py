"""Outboxes for tests: filled, emptied, and damaged in every way."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ingest.outbox import Outbox
from ingest.sinks.base import Rejected, Settled
from marketdata.schema import Batch, LastPrice, Row
from tests.stores import EXCHANGE, SYMBOL, TIME, mark, ohlcv, one_of_each

PLENTY = 2**30
PARTS = ("", "-wal", ".lock")
"""The files of an outbox; the -shm is made anew."""

Rows = Counter[tuple[str, Row]]


def marks(count: int, start: int = TIME) -> list[Row]:
    return [mark(time=start + n, mark_price=float(n)) for n in range(count)]


def rows_of(batch: Batch) -> Rows:
    return Counter((name, row) for name, rows in batch.items() for row in rows)


def batches() -> list[Batch]:
    """Rows of every measurement, in records of one page and of several, none twice."""
    found: list[Batch] = []
    for n in range(8):
        candles: Sequence[Row] = [
            ohlcv(time=TIME + (10 * n + k) * 180_000, revision=k) for k in range(10)
        ]
        found.append({"ohlcv_3m": candles, "mark_price": marks(120, TIME + n * 1_000)})
    others = one_of_each()
    del others["ohlcv_3m"], others["mark_price"]
    return [*found, others]


async def filled(path: Path) -> Outbox:
    """An open outbox with `batches()` in it, and one more row in quarantine."""
    outbox = await Outbox.open(path, PLENTY)
    row = LastPrice(EXCHANGE, SYMBOL, TIME - 1, 0.25)
    await outbox.append({"last_price": [row]})
    parcel = await outbox.take(1)
    assert parcel is not None
    await outbox.settle(parcel, Settled(0, (Rejected("last_price", row, "422: too old [1]"),)))
    for batch in batches():
        await outbox.append(batch)
    return outbox


def all_rows() -> Rows:
    """What waits in a filled outbox."""
    rows: Rows = Counter()
    for batch in batches():
        rows += rows_of(batch)
    return rows


async def emptied(outbox: Outbox) -> Rows:
    """Take and accept until nothing waits: all rows that came out."""
    rows: Rows = Counter()
    while parcel := await outbox.take(5_000):
        rows += rows_of(parcel.batch)
        await outbox.settle(parcel, Settled(parcel.rows))
    return rows


def copied(path: Path, into: Path) -> Path:
    """The files as they are on disk now, in a folder of their own."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for part in PARTS:
        if Path(f"{path}{part}").exists():
            shutil.copy(f"{path}{part}", f"{into / path.name}{part}")
    return into / path.name
