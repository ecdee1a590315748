"""Hot values, closed candles and health markers on their way to Redis and the table `last`.

Hot values are coalesced: whatever has changed since the last publication goes out as one, one
publication in flight. Closed candles and markers are never coalesced; they wait in bounded queues
while the other side is away (policy: drop the oldest, counted), since the store has them anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal, TypeVar

import structlog

from ingest.clock import Clock
from ingest.hot import HotState
from ingest.sinks.base import HotSink, Marker, StreamSink
from marketdata.errors import StoreRefused, TransientError
from marketdata.schema import Ohlcv

log = structlog.get_logger()

RETRY_S = 1.0
QUEUED = 50_000
PER_WRITE = 1_000

T = TypeVar("T")


class Publisher:
    """Keeps one sink up to date with the hot state.

    Parameters
    ----------
    streams
        Where candles and markers go; None for a sink of newest values only.

    `state` is `live` or `down`; `dropped` counts candles and markers that did not fit.
    """

    def __init__(
        self,
        hot: HotState,
        sink: HotSink,
        clock: Clock,
        *,
        every_s: float,
        streams: StreamSink | None = None,
    ) -> None:
        self.state: Literal["live", "down"] = "live"
        self.error: str | None = None
        self.dropped = 0
        self._hot = hot
        self._sink = sink
        self._streams = streams
        self._clock = clock
        self._every_s = every_s
        self._changed = hot.subscribe()
        self._candles: deque[Ohlcv] = deque()
        self._markers: deque[Marker] = deque()

    def put_candles(self, candles: Sequence[Ohlcv]) -> None:
        """Queue closed candles and corrections."""
        self._queue(self._candles, candles)

    def put_markers(self, markers: Sequence[Marker]) -> None:
        """Queue changes of state and gaps."""
        self._queue(self._markers, markers)

    def _queue(self, queue: deque[T], items: Sequence[T]) -> None:
        queue.extend(items)
        while len(queue) > QUEUED:
            queue.popleft()
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
        streams = self._streams
        while streams is not None and self._candles:
            candles = _head(self._candles)
            await streams.write({"ohlcv_3m": candles})
            _drop_head(self._candles, candles)
        while streams is not None and self._markers:
            markers = _head(self._markers)
            await streams.announce(markers)
            _drop_head(self._markers, markers)
        keys = set(self._changed)
        lasts = self._hot.take(self._changed)
        if lasts:
            try:
                await self._sink.update(lasts)
            except (TransientError, StoreRefused):
                self._changed |= keys
                raise


def _head(queue: deque[T]) -> list[T]:
    return [queue[n] for n in range(min(len(queue), PER_WRITE))]


def _drop_head(queue: deque[T], written: Sequence[T]) -> None:
    # What came in meanwhile is at the other end; what fell out of the bound is gone already.
    for item in written:
        if queue and queue[0] is item:
            queue.popleft()
