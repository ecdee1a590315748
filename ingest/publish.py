"""Hot values and closed candles on their way to Redis and to SQLite's table `last`.

Hot values are coalesced: whatever has changed since the last publication goes out as one, one
publication in flight. Closed candles are never coalesced; they wait in a bounded queue while the
other side is away (policy: drop the oldest, counted), since the store has them anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

import structlog

from ingest.clock import Clock
from ingest.hot import HotState
from ingest.sinks.base import HotSink, Sink
from marketdata.errors import StoreRefused, TransientError
from marketdata.schema import Ohlcv

log = structlog.get_logger()

RETRY_S = 1.0
QUEUED_CANDLES = 50_000
CANDLES_PER_WRITE = 1_000


class Publisher:
    """Keeps one sink up to date with the hot state.

    `state` is `live` or `down`; `dropped` counts candles that did not fit into the queue.
    """

    def __init__(
        self, hot: HotState, sink: HotSink, clock: Clock, *, every_s: float, candles: Sink | None
    ) -> None:
        self.state: Literal["live", "down"] = "live"
        self.error: str | None = None
        self.dropped = 0
        self._hot = hot
        self._sink = sink
        self._candle_sink = candles
        self._clock = clock
        self._every_s = every_s
        self._changed = hot.subscribe()
        self._candles: deque[Ohlcv] = deque()

    def put_candles(self, candles: Sequence[Ohlcv]) -> None:
        """Queue closed candles and corrections."""
        self._candles.extend(candles)
        while len(self._candles) > QUEUED_CANDLES:
            self._candles.popleft()
            self.dropped += 1

    async def run(self) -> None:
        """Publish until cancelled; while the sink is away, try again each second."""
        while True:
            try:
                await self.publish()
            except (TransientError, StoreRefused) as error:
                if self.state == "live":
                    log.warning("publishing_stopped", cause=str(error), next_try_s=RETRY_S)
                self.state, self.error = "down", str(error)
                await self._clock.sleep(RETRY_S)
            else:
                if self.state == "down":
                    log.info("publishing_resumed")
                self.state, self.error = "live", None
                await self._clock.sleep(self._every_s)

    async def publish(self) -> None:
        """Publish what has changed; on an error it stays due."""
        while self._candle_sink is not None and self._candles:
            some = [self._candles[n] for n in range(min(len(self._candles), CANDLES_PER_WRITE))]
            await self._candle_sink.write({"ohlcv_3m": some})
            # What came in meanwhile is at the other end; what fell out of the bound is gone.
            for candle in some:
                if self._candles and self._candles[0] is candle:
                    self._candles.popleft()
        keys = set(self._changed)
        lasts = self._hot.take(self._changed)
        if lasts:
            try:
                await self._sink.update(lasts)
            except (TransientError, StoreRefused):
                self._changed |= keys
                raise
