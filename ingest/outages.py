"""What becomes of the gaps of ticks: asked of the store, since another collector may have had them.

Lost marks come back as mark candles; lost funding ticks can't be had again, but are in the store if
another collector has received them. A gap that an earlier run left open, or another collector that
has ended, is brought to its end here too.
"""

from __future__ import annotations

import asyncio

import structlog

from ingest.clock import Clock
from ingest.gaps import abandoned, is_covered
from ingest.judge import Judge
from ingest.marks import MarkRepairer
from ingest.outbox import Outbox
from ingest.stored import StoredRows, StoreFirst
from marketdata.deadlines import DEADLINE_MS
from marketdata.errors import StoreUnavailable
from marketdata.schema import FundingRate, Gap, GapState

log = structlog.get_logger()

NEVER_BEFORE_MS = 7 * 86_400_000
"""How far back the last tick of an earlier run is looked for."""
ADOPT_S = 600.0
"""How often gaps that another collector has left open are looked for."""
STORED_AFTER_MS = 15_000
"""After the end of a gap another collector's ticks are in the store by then."""

_MEASUREMENT = {"mark_price": "mark_price", "funding": "funding_rate"}
"""Where the ticks of a channel are stored."""


class OutageCloser:
    """Closes the gaps of one exchange's ticks."""

    def __init__(
        self,
        exchange: str,
        judge: Judge,
        marks: MarkRepairer,
        stored: StoredRows,
        outbox: Outbox,
        clock: Clock,
    ) -> None:
        self._exchange = exchange
        self._judge = judge
        self._marks = marks
        self._stored = stored
        self._store_first = StoreFirst(stored, outbox, clock)
        self._clock = clock

    async def run(self) -> None:
        """Look each second until cancelled."""
        await self._resume()
        adopted_ms = self._clock.monotonic_ms()
        while True:
            await self._clock.sleep(1.0)
            await self._settle()
            if self._clock.monotonic_ms() - adopted_ms >= ADOPT_S * 1000:
                await self._adopt()
                adopted_ms = self._clock.monotonic_ms()

    async def _settle(self) -> None:
        for key, gap in self._judge.outages.ended():
            state = await self._state(gap)
            if state != "open":
                self._judge.outages.settle(key, gap.time, state, self._clock.now_ms())

    async def _state(self, gap: Gap) -> GapState:
        if gap.channel == "mark_price":
            return self._marks.state(gap.symbol, gap.time, gap.until_ms)
        if self._clock.now_ms() < gap.until_ms + STORED_AFTER_MS:
            return "open"
        where = ("funding_rate", self._exchange, gap.symbol, gap.time, gap.until_ms)
        times = [tick.time for tick in await self._store_first.rows(FundingRate, *where)]
        there = is_covered(times, gap.time, gap.until_ms, DEADLINE_MS["funding"])
        return "repaired" if there else "lost"

    async def _adopt(self) -> None:
        """Take over what another collector has left open."""
        now_ms = self._clock.now_ms()
        for pair in self._judge.freshness.channels():
            self._judge.outages.load(abandoned(await self._gaps(pair), now_ms))

    async def _gaps(self, pair: str) -> list[Gap]:
        now_ms = self._clock.now_ms()
        where = ("gap", self._exchange, pair, now_ms - NEVER_BEFORE_MS, now_ms)
        gaps = await self._store_first.rows(Gap, *where)
        return [gap for gap in gaps if gap.channel in _MEASUREMENT]

    async def _resume(self) -> None:
        """What was stored last tells since when ticks are missing."""
        now_ms = self._clock.now_ms()
        for pair, channels in self._judge.freshness.channels().items():
            self._judge.outages.load(await self._gaps(pair))
            for channel, measurement in _MEASUREMENT.items():
                if channel not in channels:
                    continue
                where = (measurement, self._exchange, pair, now_ms - NEVER_BEFORE_MS, now_ms)
                try:
                    rows = await asyncio.to_thread(self._stored.rows, *where, 1)
                except StoreUnavailable as error:
                    log.warning("restart_gap_unknown", pair=pair, cause=str(error))
                    return
                if rows:
                    key = (self._exchange, pair, channel)
                    self._judge.resume_after_restart(key, rows[-1].time, now_ms)
