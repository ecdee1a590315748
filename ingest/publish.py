"""Hot values, closed candles, states and markers on their way to Redis and the table `last`.

Hot values and states are coalesced: whatever has changed since the last publication goes out as it
is now, one publication in flight. Closed candles and markers are never coalesced; they wait in
bounded queues while the other side is away (policy: drop the oldest, counted), since the store has
them anyway. Nothing waits for a publisher.

Whoever follows a stream is told where it broke, by a marker of the kind `break`: while there was no
service, prices that were coalesced because Redis was away, what fell out of a queue, and everything
when Redis has lost what it had. Hot values are then written again at once, candles by `Restorer`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar

import structlog

from ingest.clock import Clock
from ingest.hot import HotState
from ingest.sinks.base import Fields, HotSink, Marker, StreamSink
from marketdata import keys
from marketdata.errors import MarketDataError, StoreRefused, TransientError
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
        Where candles, states and markers go; None for a sink of newest values only.
    on_loss
        Called when candles that had been published, or should have been, are not there.

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
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self.state: Literal["live", "down"] = "live"
        self.error: str | None = None
        self.dropped = 0
        self._hot = hot
        self._sink = sink
        self._streams = streams
        self._on_loss = on_loss
        self._clock = clock
        self._every_s = every_s
        self._changed = hot.subscribe()
        self._candles: deque[Ohlcv] = deque()
        self._restored: list[Ohlcv] = []
        self._markers: deque[tuple[int, Marker]] = deque()
        self._numbered = 0
        self._health: dict[str, Fields] = {}
        self._told: set[type[MarketDataError]] = set()
        self._losses = 0
        self._has_begun = False
        self._begun_ms = clock.now_ms()
        self._whole_ms = dict.fromkeys(keys.STREAMS, self._begun_ms)
        """By stream: when it was last seen to have everything."""
        self._broken: set[str] = set()
        self._missing: Counter[str] = Counter()
        """By stream: what was dropped of it since the last break that was told."""

    def put_candles(self, candles: Sequence[Ohlcv]) -> None:
        """Queue closed candles and corrections."""
        self._queue(self._candles, candles, keys.STREAM_OHLCV_3M)

    def put_markers(self, markers: Sequence[Marker]) -> None:
        """Queue changes of state and gaps."""
        first = self._numbered + 1
        self._numbered += len(markers)
        self._queue(self._markers, list(enumerate(markers, first)), keys.STREAM_HEALTH)

    def put_health(self, exchange: str, fields: Fields) -> None:
        """States of an exchange; the newest counts."""
        self._health[exchange] = fields

    def put_restored(self, candles: Sequence[Ohlcv]) -> bool:
        """Candles of one pair as the store has them; False where others still wait."""
        if not self._restored:
            self._restored = list(candles)
            return True
        return False

    def _queue(self, queue: deque[T], items: Sequence[T], stream: str) -> None:
        queue.extend(items)
        while len(queue) > QUEUED:
            queue.popleft()
            self.dropped += 1
            self._broken.add(stream)
            self._missing[stream] += 1

    async def run(self) -> None:
        """Publish until cancelled; while the sink is away, try again each second."""
        while True:
            try:
                await self.publish()
            except (TransientError, StoreRefused) as error:
                self._tell(error)
                self.state, self.error = "down", str(error)
                await self._clock.sleep(RETRY_S)
            else:
                if self.state == "down":
                    log.info("publishing_resumed")
                    self._told.clear()
                self.state, self.error = "live", None
                await self._clock.sleep(self._every_s)

    def _tell(self, error: MarketDataError) -> None:
        """Once an outage; and once more if it turns out that somebody has to look."""
        kind = StoreRefused if isinstance(error, StoreRefused) else TransientError
        if kind not in self._told and StoreRefused not in self._told:
            say = log.error if kind is StoreRefused else log.warning
            say("publishing_stopped", cause=str(error), next_try_s=RETRY_S)
        self._told.add(kind)

    async def publish(self) -> None:
        """Publish what has changed; on an error it stays due.

        What is refused of one kind (a key that somebody else uses) doesn't keep back the others.
        """
        if self._streams is None:
            await self._publish_hot()
            return
        try:
            await self._streams.probe()
        except (TransientError, StoreRefused):
            self._broken.add(keys.STREAM_PRICE)
            raise
        if not self._has_begun:
            await self._begin(self._streams)
        self._look_for_losses(self._streams)
        refused = None
        for publish in (
            self._publish_hot,
            partial(self._publish_candles, self._streams),
            partial(self._publish_markers, self._streams),
            partial(self._publish_health, self._streams),
            partial(self._publish_restored, self._streams),
        ):
            try:
                await publish()
            except StoreRefused as error:
                refused = refused or error
            except TransientError:
                # Whatever it was that didn't get through: prices are coalesced until the next try.
                self._broken.add(keys.STREAM_PRICE)
                raise
        if refused is not None:
            raise refused

    async def _begin(self, streams: StreamSink) -> None:
        """What was announced before the start ends at the newest entry; it broke there."""
        for stream, ended_ms in (await streams.ends()).items():
            self._broken.add(stream)
            self._whole_ms[stream] = min(ended_ms, self._begun_ms)
        self._has_begun = True

    def _look_for_losses(self, streams: StreamSink) -> None:
        if streams.losses == self._losses:
            return
        self._losses = streams.losses
        self._changed |= self._hot.keys()
        self._broken.update(keys.STREAMS)
        # All that the streams held may be gone, however much of it had been read.
        since_ms = max(self._begun_ms, self._clock.now_ms() - keys.STREAM_KEPT_MS)
        self._whole_ms = dict.fromkeys(keys.STREAMS, since_ms)
        self._on_loss()

    def _is_whole(self, stream: str) -> None:
        """A stream has all that there is; if it broke before, whoever follows it is told."""
        now_ms = self._clock.now_ms()
        if stream in self._broken and self._streams is not None:
            self._broken.discard(stream)
            dropped = self._missing.pop(stream, 0)
            if dropped and stream == keys.STREAM_OHLCV_3M:
                self._on_loss()
            span = {"since_ms": self._whole_ms[stream], "until_ms": now_ms}
            self.put_markers([{"kind": "break", "stream": stream, **span, "dropped": dropped}])
        self._whole_ms[stream] = now_ms

    async def _publish_hot(self) -> None:
        due = set(self._changed)
        lasts = self._hot.take(self._changed)
        try:
            await self._sink.update(lasts)
        except (TransientError, StoreRefused):
            self._changed |= due
            self._broken.add(keys.STREAM_PRICE)
            raise
        self._is_whole(keys.STREAM_PRICE)

    async def _publish_candles(self, streams: StreamSink) -> None:
        candles = _head(self._candles)
        if candles:
            await streams.write({"ohlcv_3m": candles})
            _drop_head(self._candles, candles)
        if not self._candles:
            self._is_whole(keys.STREAM_OHLCV_3M)

    async def _publish_markers(self, streams: StreamSink) -> None:
        markers = _head(self._markers)
        if markers:
            await streams.announce(markers)
            _drop_head(self._markers, markers)
        if not self._markers:
            self._is_whole(keys.STREAM_HEALTH)

    async def _publish_health(self, streams: StreamSink) -> None:
        for exchange, fields in list(self._health.items()):
            await streams.health(exchange, fields)
            if self._health.get(exchange) is fields:
                del self._health[exchange]

    async def _publish_restored(self, streams: StreamSink) -> None:
        # A candle that is put back before it was announced would never be announced.
        if self._restored and not self._candles:
            candles, self._restored = self._restored, []
            try:
                await streams.restore(candles)
            except TransientError:
                self._restored = candles
                raise


def _head(queue: deque[T]) -> list[T]:
    return [queue[n] for n in range(min(len(queue), PER_WRITE))]


def _drop_head(queue: deque[T], written: Sequence[T]) -> None:
    # What came in meanwhile is at the other end; what fell out of the bound is gone already.
    for item in written:
        if queue and queue[0] is item:
            queue.popleft()
