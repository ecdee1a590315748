"""Delivery: one task that carries parcels from the outbox to the store, for ever.

A parcel is taken, written and settled; it stays in the outbox until the store has answered. What
went wrong decides what happens next, by type:

* `BatchFailed` (500, cut off, no answer): the parcel's shelf is set aside for a back-off of its own
  (full jitter, capped at 30 s) and the others are tried. Where all fail, the store is down.
* `StoreUnavailable` (no connection, 429, 503, locked, the disk is full): the store is down. Tried
  again after such a back-off, and not before the time that the store itself named.
* `StoreRefused` (wrong token, no bucket, damaged file): sending stops, with one alarm in the log.
  Every 30 s one parcel asks whether it has been mended, so that no restart is needed.

In all cases everything is kept. `state` is "down" until a write succeeds.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal

import structlog

from ingest.backoff import Backoff
from ingest.clock import Clock
from ingest.outbox import Outbox, Parcel
from ingest.shelves import BACKOFF_FIRST_S, BACKOFF_MAX_S, ParcelSize, Shelves
from ingest.sinks.base import Settled, Sink
from marketdata.errors import BatchFailed, StoreRefused, StoreUnavailable

DOUBTED_SHELVES = 3
"""So many shelves failing in a row, and nothing stored between: that is the store."""
LOOK_S = 0.05
"""How often new rows are looked for while all that waits has been set aside."""
PROBE_S = 30.0
"""How often a store that refused is asked whether someone has mended it."""

log = structlog.get_logger()


class Delivery:
    """Owns the way from one outbox to one sink; `run` is its task.

    `accepted` and `rejected` count rows since the start; `error` is what keeps the store "down".
    """

    def __init__(self, outbox: Outbox, sink: Sink, clock: Clock) -> None:
        self._outbox = outbox
        self._sink = sink
        self._clock = clock
        self._backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S)
        self._shelves = Shelves()
        self._size = ParcelSize()
        self._cause: BatchFailed | None = None
        self._turn = asyncio.Event()
        self.state: Literal["live", "down"] = "live"
        self.accepted = 0
        self.rejected = 0
        self.error: str | None = None
        self.last_success_ms: int | None = None

    async def run(self) -> None:
        """Deliver until cancelled; a parcel that is under way then stays in the outbox."""
        while True:
            await self._outbox.wait()
            try:
                await self._deliver_one()
            except (StoreUnavailable, StoreRefused) as error:
                self._fell(error)
                await self._clock.sleep(self._pause_s(error))

    @property
    def aside(self) -> int:
        """How many shelves fail while others are stored."""
        return self._shelves.alone

    async def drain(self, timeout_s: float) -> bool:
        """Wait until the outbox is empty; False after `timeout_s`, or as soon as the store is down.

        `run` has to go on meanwhile. What is left stays on disk for the next start.
        """
        try:
            async with self._clock.timeout(timeout_s):
                while self._outbox.depth().rows and self.state == "live":
                    self._turn.clear()
                    await self._turn.wait()
        except TimeoutError:
            pass
        return self._outbox.depth().rows == 0

    async def _deliver_one(self) -> None:
        # The world's seconds: a store is as fast as it is, whatever the service's clock shows.
        begun_s = time.perf_counter()
        now_ms = self._clock.monotonic_ms()
        parcel = await self._take(now_ms)
        if parcel is None:
            await self._all_aside(now_ms)
            return
        try:
            settled = await self._write(parcel)
        except BatchFailed as error:
            self._failed(parcel, error, time.perf_counter() - begun_s)
            return
        await self._outbox.settle(parcel, settled)
        self._size.took(parcel.rows, time.perf_counter() - begun_s)
        self._count(settled)
        self._shelves.stored(parcel.shelf)
        self._rose()

    async def _take(self, now_ms: int) -> Parcel | None:
        aside = self._shelves.aside(now_ms)
        parcel = await self._outbox.take(self._size.rows, aside)
        if parcel is not None and parcel.rows > (most := self._shelves.most_rows(parcel.shelf)):
            return await self._outbox.take(most, aside)
        return parcel

    async def _write(self, parcel: Parcel) -> Settled:
        patience_s = self._shelves.patience_s(parcel.shelf)
        try:
            async with asyncio.timeout(patience_s):
                return await self._sink.write(parcel.batch)
        except TimeoutError:
            raise BatchFailed(
                f"{self._sink.name} takes more than {patience_s:g} s for {parcel.rows} rows that"
                " have failed before; they are kept and sent again"
            ) from None

    async def _all_aside(self, now_ms: int) -> None:
        """Nothing waits that might be tried now: wait for a shelf's turn, or for new rows."""
        if self.state == "live" and self._cause is not None and self._shelves.doubted:
            self._fell(self._cause)
        wait_ms = self._shelves.wait_ms(now_ms)
        if wait_ms is not None:
            await self._clock.sleep(min(LOOK_S, wait_ms / 1000))

    def _count(self, settled: Settled) -> None:
        self.accepted += settled.accepted
        self.rejected += len(settled.rejected)
        if settled.rejected:
            first = settled.rejected[0]
            log.warning(
                "rows_rejected",
                sink=self._sink.name,
                rows=len(settled.rejected),
                measurement=first.measurement,
                reason=first.reason,
            )

    def _failed(self, parcel: Parcel, error: BatchFailed, took_s: float) -> None:
        self._cause = error
        shelf, now_ms = parcel.shelf, self._clock.monotonic_ms()
        asked_s = error.retry_after_s or 0.0
        if self._shelves.failed(shelf, parcel.rows, now_ms, took_s, asked_s):
            log.warning(
                "shelf_set_aside",
                sink=self._sink.name,
                ticks=shelf.tick,
                shard=shelf.shard,
                cause=str(error),
            )
        if self.state == "down" or self._shelves.doubted >= DOUBTED_SHELVES:
            self._fell(error)

    def _rose(self) -> None:
        if self.state == "down":
            log.info("store_live", sink=self._sink.name)
            self._shelves.release(self._clock.monotonic_ms())
        self.state = "live"
        self.error = None
        self.last_success_ms = self._clock.now_ms()
        self._backoff.reset()
        self._turn.set()

    def _fell(self, error: StoreUnavailable | StoreRefused) -> None:
        """Log the first failure of an outage, and one alarm when it turns out to be terminal."""
        if str(error) != self.error and isinstance(error, StoreRefused):
            log.error("store_refused", sink=self._sink.name, cause=str(error), probe_s=PROBE_S)
        elif self.state == "live":
            log.warning("store_unavailable", sink=self._sink.name, cause=str(error))
        self.state = "down"
        self.error = str(error)
        self._turn.set()

    def _pause_s(self, error: StoreUnavailable | StoreRefused) -> float:
        if isinstance(error, StoreRefused):
            return PROBE_S
        return max(self._backoff.next_s(), error.retry_after_s or 0.0)
