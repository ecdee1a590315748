"""Delivery: one task that carries parcels from the outbox to the store, for ever.

A parcel is taken, written and settled; it stays in the outbox until the store has answered. What
went wrong decides what happens next, by type:

* `StoreUnavailable` (refused, timed out, 5xx, locked, the disk is full): the same rows again after
  a full-jitter back-off, capped at 30 s, and not before the time that the store itself named.
* `StoreRefused` (wrong token, no bucket, damaged file): sending stops, with one alarm in the log.
  Every 30 s one parcel asks whether it has been mended, so that no restart is needed.

In both cases everything is kept, and `state` is "down" until a write succeeds.
"""

from __future__ import annotations

import asyncio
from typing import Literal

import structlog

from ingest.backoff import Backoff
from ingest.clock import Clock
from ingest.outbox import Outbox
from ingest.sinks.base import Sink
from marketdata.errors import StoreRefused, StoreUnavailable

PARCEL_ROWS = 5_000
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
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
        parcel = await self._outbox.take(PARCEL_ROWS)
        if parcel is None:
            return
        settled = await self._sink.write(parcel.batch)
        await self._outbox.settle(parcel, settled)
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
        self._rose()

    def _rose(self) -> None:
        if self.state == "down":
            log.info("store_live", sink=self._sink.name)
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
