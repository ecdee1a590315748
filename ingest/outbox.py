"""The outbox: rows are committed to disk here before they are sent, and forgotten once settled.

Invariants
    * When `append` returns, every row of the batch is fsynced: it survives `kill -9` and a power
      cut. When it raises, none is kept.
    * A row leaves in one of three ways only: settled as accepted, settled as rejected (then it is
      in the quarantine, with the sink's words), or dropped and counted in `dropped`.
    * Rows lie on shelves: ticks or the rest, by shard of time (30 days). A parcel is of one shelf.
      Ticks are never rewritten: the newest leave first. The rest leaves in the order in which it
      came, so that the later state of a row is written last. Shelves without ticks go before those
      with, newer shards before older ones; `take` passes over those that its caller has set aside.
    * A row comes out as it went in, or not at all: one whose record is damaged is counted.
    * One process per file: a second one is refused.

Records
    SQLite in WAL mode, synchronous=FULL. `entries`: one record per measurement, shard and at most
    1,000 rows of one batch; `id` is the order, `first_ms` and `last_ms` the rows' times, `payload`
    a JSON array of rows, each an array in column order. `quarantine`: one record a row, with the
    reason; `retry` marks those that are to be sent again. `broken`: the bytes of damaged records,
    the newest 1,000. Each record has a CRC-32 over its columns in `checksum`; ids count up over
    both tables, and none is used twice. `PRAGMA user_version` is the version of this layout: an
    earlier one is migrated in one transaction (`ingest.outbox_schema`), a later one refused.

Ledger
    One row, written in the transaction of every change: by measurement, the rows that ever came in,
    the rows and bytes that wait, the rows in quarantine. Beside the file lies `<name>.lock`, locked
    (flock) by the process that has it open. It holds copies of the ledger, written after each
    commit, and of the database's first page, without which SQLite reads none of the others.

Recovery
    SQLite's own: a commit is whole or absent. After a crash what was with the sink is taken again;
    rows that the store has already are written to it once more, which changes nothing there, since
    points are keyed. Delivery is at least once, and effectively once.

Damage
    On opening the whole file is checked (`integrity_check`), and the ledger is held against its
    copy, which shows commits that the file has lost. While running, checksums and SQLite's own
    errors show it, and so do rows that the ledger knows and nobody finds.
    One broken record is moved to `broken`; the others go on. Anything worse: what can be read goes
    into a fresh file, and the damaged one aside, as `<name>.damaged-<ms>` (`ingest.salvage`).
    What the ledger knows and wasn't found is counted under `outbox_damaged.<measurement>`; where no
    ledger is left to tell, what is known to be gone, and one row more as `outbox_damaged.unknown`.
    One error in the log says it all. Of lost commits it is all that came in by them: some of it the
    store may have.

The bound
    `max_bytes` of payload. Beyond it the oldest entries of mark prices are dropped, then those of
    funding rates, then last prices, each row counted under `outbox_full.<measurement>`; what is
    with the sink at that moment stays. Candles, settlements and gap records are never dropped: they
    go beyond the bound, at some 40 MB a day for 164 pairs. Of rejected ticks the newest 10,000 are
    kept; older ones are counted under `quarantine_full.<measurement>`.

Not promised
    The file doesn't shrink: freed space is used again. A number that isn't finite becomes absent.
    If the disk is full, `append` raises `StoreUnavailable`, and the caller has to count or keep;
    forgetting what was stored needs some room too. A repair needs as much room as what it saves,
    and appends wait for it. Damaged files are never deleted here. A row that is sent again from the
    quarantine replaces a later state of it that the store got meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import ParamSpec, TypeVar

from ingest.clock import Clock
from ingest.database import Worker
from ingest.outbox_file import Depth, OutboxFile, Parcel, Shelf
from ingest.sinks.base import Settled
from marketdata.schema import Batch, Row

__all__ = ["Depth", "Outbox", "Parcel", "Shelf"]

P = ParamSpec("P")
T = TypeVar("T")


class Outbox:
    """The durable buffer between the pipeline and a store; `Outbox.open` makes one.

    Every method raises `StoreUnavailable` if the file can't be written now and `StoreRefused` if it
    can't be used; then nothing has changed.
    """

    def __init__(self, file: OutboxFile, worker: Worker, clock: Clock) -> None:
        self._file = file
        self._worker = worker
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._something = asyncio.Event()
        self._refresh()

    @classmethod
    async def open(cls, path: Path, max_bytes: int, clock: Clock | None = None) -> Outbox:
        """Open or create the file; StoreRefused if another process has it open."""
        worker = Worker("outbox")
        clock = clock or Clock()
        try:
            file = await worker.run(OutboxFile, path, max_bytes, clock.now_ms)
        except BaseException:
            await worker.close()
            raise
        return cls(file, worker, clock)

    async def append(self, batch: Batch) -> None:
        """Keep `batch`: on disk when this returns. Don't change its lists before that."""
        await self._run(self._file.append, batch, self._clock.now_ms())

    async def take(self, max_rows: int, skip: Collection[Shelf] = ()) -> Parcel | None:
        """The next rows to send, None if nothing waits outside of the shelves in `skip`.

        They stay until they are settled; taken again before that, ticks that came meanwhile are
        first.
        """
        return await self._run(self._file.take, max_rows, skip)

    async def settle(self, parcel: Parcel, settled: Settled) -> None:
        """Forget what was accepted, and put what was rejected into the quarantine."""
        await self._run(self._file.settle, parcel, settled, self._clock.now_ms())

    async def pending(
        self, measurement: str, exchange: str, symbol: str, start_ms: int, end_ms: int
    ) -> list[Row]:
        """A pair's rows with start <= time < end that the store doesn't have yet, ascending."""
        return await self._run(self._file.pending, measurement, exchange, symbol, start_ms, end_ms)

    def depth(self) -> Depth:
        """How much waits, and how much is in the quarantine."""
        return self._file.depth

    @property
    def dropped(self) -> Counter[str]:
        """Rows dropped since the start, by `<reason>.<measurement>`."""
        return self._file.dropped

    async def wait(self) -> None:
        """Until something waits to be sent."""
        await self._something.wait()

    async def close(self) -> None:
        """Finish what was begun, close the file and end the thread; what waits stays on disk."""
        await self._worker.close(self._file.close)

    async def _run(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        def run() -> T:
            try:
                return self._file.mending(job, *args, **kwargs)
            finally:
                # From the thread, so that it happens even if the caller was cancelled meanwhile.
                self._loop.call_soon_threadsafe(self._refresh)

        return await self._worker.run(run)

    def _refresh(self) -> None:
        if self.depth().rows:
            self._something.set()
        else:
            self._something.clear()
