"""Candles out of the store for a Redis that lacks them: at the start, and when it was emptied.

A pair at a time and slowly, beside everything else. What is put back is not announced, and readers
take what isn't there yet from the store.
"""

from __future__ import annotations

import asyncio

from ingest.clock import Clock
from ingest.hot import HotState, PairKey
from ingest.publish import Publisher
from ingest.stored import StoredRows
from marketdata import keys
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import CANDLE_MS, Ohlcv

PERIOD_S = 0.5
STORE_RETRY_S = 30.0


class Restorer:
    """Gives a publisher, pair by pair, what Redis keeps of the closed candles."""

    def __init__(self, hot: HotState, stored: StoredRows, clock: Clock) -> None:
        self._hot = hot
        self._stored = stored
        self._clock = clock
        self._done: set[PairKey] = set()

    def start_over(self) -> None:
        """Redis may lack candles of any pair."""
        self._done.clear()

    async def run(self, publisher: Publisher) -> None:
        """Restore what isn't done until cancelled."""
        while True:
            await self._clock.sleep(PERIOD_S)
            due = next(iter(self._hot.keys() - self._done), None)
            if due is None or publisher.state == "down":
                continue
            # Before the store is asked: what is lost meanwhile has to be put back as well.
            self._done.add(due)
            try:
                candles = await self._candles(due)
            except (StoreUnavailable, StoreRefused):  # delivery says that the store is away
                self._done.discard(due)
                await self._clock.sleep(STORE_RETRY_S)
                continue
            while not publisher.put_restored(candles):
                await self._clock.sleep(PERIOD_S)

    async def _candles(self, pair: PairKey) -> list[Ohlcv]:
        # Not those in the outbox: a candle that is on its way to the store hasn't been announced.
        end_ms = self._clock.now_ms()
        start_ms = end_ms - keys.CANDLES_KEPT * CANDLE_MS
        rows = await asyncio.to_thread(self._stored.rows, "ohlcv_3m", *pair, start_ms, end_ms)
        return [row for row in rows if isinstance(row, Ohlcv)]
