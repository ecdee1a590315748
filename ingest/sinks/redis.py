"""The Redis sink: newest values, closed candles, streams and views, under the keys of design 4.

`update` writes the newest values in one transaction, one in flight, so a reader never sees half a
state and a later state never loses against an earlier one. `write` takes candles and lets the other
measurements pass: a candle replaces the one with the same open time, and goes to the stream if that
changed anything, so a batch written twice is announced once. Nothing here waits longer than the
timeout, and nothing is kept for later: whoever calls decides what is worth sending again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import orjson
from redis import asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ingest.sinks.base import Marker, Rejected, Settled, fault
from ingest.sinks.views import PRESETS, show
from marketdata import keys
from marketdata.errors import MarketDataError, StoreRefused, StoreUnavailable
from marketdata.pairs import Market
from marketdata.schema import MEASUREMENTS, Batch, Last, Row

if TYPE_CHECKING:
    from redis.asyncio.client import Pipeline

TIMEOUT_S = 2.0
COMMANDS_PER_PIPELINE = 500

FindMarket = Callable[[str, str], Market | None]
"""The market of (exchange, pair), None where it isn't known; views take their names from it."""

_CANDLE_SCRIPT = """
local candles, stream = KEYS[1], KEYS[2]
local open_ms, data = ARGV[1], ARGV[2]
local kept, ttl_ms, stream_from = ARGV[3], ARGV[4], ARGV[5]
if redis.call('ZSCORE', candles, data) then return end
redis.call('ZREMRANGEBYSCORE', candles, open_ms, open_ms)
redis.call('ZADD', candles, open_ms, data)
redis.call('ZREMRANGEBYRANK', candles, 0, -kept - 1)
redis.call('PEXPIRE', candles, ttl_ms)
if redis.call('ZSCORE', candles, data) then
    redis.call('XADD', stream, 'MINID', '~', stream_from, '*',
        'exchange', ARGV[6], 'symbol', ARGV[7], 'data', data)
end
"""

_TRANSIENT = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    OSError,
)
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError)
"""Of redis-py's connection errors those that another attempt won't mend."""


class RedisSink:
    """Writes one Redis; connects with the first write.

    Parameters
    ----------
    views
        Names of `views.PRESETS`: more keys to show the newest values under.
    find_market
        Where views take a pair's names from; a pair that it doesn't know is shown in none.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        views: Sequence[str] = (),
        find_market: FindMarket = lambda exchange, pair: None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._address = urlsplit(url).netloc.rpartition("@")[2]
        self._views = [view for name in views for view in PRESETS[name]]
        self._find_market = find_market
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._candle = self._client.register_script(_CANDLE_SCRIPT)
        self._in_flight = asyncio.Lock()
        self._shown_ms: dict[str, int] = {}
        self._streamed: dict[str, tuple[int | None, int | None]] = {}

    async def update(self, lasts: Sequence[Last]) -> None:
        """Make `lasts` the newest values: hashes, views, and the stream of prices."""
        if not lasts:
            return
        shown_ms: dict[str, int] = {}
        streamed: dict[str, tuple[int | None, int | None]] = {}
        async with self._in_flight, self._pipeline(transaction=True) as pipeline:
            for last in lasts:
                key = keys.last(last.exchange, last.symbol)
                _put_hash(pipeline, key, _present(last), keys.LAST_TTL_MS)
                shown_ms |= self._show(pipeline, last)
                events = last.mark_event_ms, last.price_event_ms
                if any(events) and events != self._streamed.get(key):
                    streamed[key] = events
                    _stream_price(pipeline, last)
        self._shown_ms |= shown_ms
        self._streamed |= streamed

    async def write(self, batch: Batch) -> Settled:
        """Write the batch's 3-minute candles; every other row counts as accepted."""
        candles = batch.get("ohlcv_3m", ())
        reasons = [(row, fault(MEASUREMENTS["ohlcv_3m"], row)) for row in candles]
        sound = [row for row, why in reasons if why is None]
        rejected = [Rejected("ohlcv_3m", row, why) for row, why in reasons if why is not None]
        for start in range(0, len(sound), COMMANDS_PER_PIPELINE):
            async with self._pipeline(transaction=False) as pipeline:
                for row in sound[start : start + COMMANDS_PER_PIPELINE]:
                    await self._put_candle(pipeline, row)
        total = sum(len(rows) for rows in batch.values())
        return Settled(total - len(rejected), tuple(rejected))

    async def announce(self, markers: Sequence[Marker]) -> None:
        """Put changes of state and gaps into the stream of health."""
        async with self._pipeline(transaction=False) as pipeline:
            for marker in markers:
                pipeline.xadd(
                    keys.STREAM_HEALTH,
                    {name: value for name, value in marker.items()},  # noqa: C416 (its key type)
                    minid=_stream_from_ms(),
                    approximate=True,
                )

    async def health(self, exchange: str, fields: Mapping[str, str | int | float]) -> None:
        """Replace the health hash of an exchange; it is gone 30 s after the last call."""
        async with self._pipeline(transaction=True) as pipeline:
            _put_hash(pipeline, keys.health(exchange), fields, keys.HEALTH_TTL_MS)

    async def close(self) -> None:
        await self._client.aclose()

    def _show(self, pipeline: Pipeline, last: Last) -> dict[str, int]:
        """Write the views whose channel has news; the time of the event that each shows now."""
        shown_ms: dict[str, int] = {}
        market = self._find_market(last.exchange, last.symbol) if self._views else None
        if market is None:
            return shown_ms
        for view in self._views:
            key, shown = view.key_for(market), show(view, market, last)
            if key is None or shown is None or shown.event_ms == self._shown_ms.get(key):
                continue
            _put_hash(pipeline, key, shown.fields, view.ttl_ms)
            shown_ms[key] = shown.event_ms
        return shown_ms

    async def _put_candle(self, pipeline: Pipeline, row: Row) -> None:
        await self._candle(
            keys=[keys.candles(row.exchange, row.symbol), keys.STREAM_OHLCV_3M],
            args=[
                row.time,
                orjson.dumps(tuple(row[2:])),
                keys.CANDLES_KEPT,
                keys.CANDLES_TTL_MS,
                _stream_from_ms(),
                row.exchange,
                row.symbol,
            ],
            client=pipeline,
        )

    @asynccontextmanager
    async def _pipeline(self, *, transaction: bool) -> AsyncIterator[Pipeline]:
        """Commands that are sent together when the block is left."""
        try:
            async with self._client.pipeline(transaction=transaction) as pipeline:
                yield pipeline
                await pipeline.execute()
        except (exceptions.RedisError, OSError) as error:
            raise self._error(error) from error

    def _error(self, error: exceptions.RedisError | OSError) -> MarketDataError:
        said = str(error) or type(error).__name__
        if isinstance(error, _TRANSIENT) and not isinstance(error, _REFUSED):
            return StoreUnavailable(f"Redis at {self._address} doesn't take writes now: {said}")
        return StoreRefused(
            f"Redis at {self._address} refuses: {said}; check redis.url and its user"
        )


def _put_hash(
    pipeline: Pipeline, key: str, fields: Mapping[str, str | int | float], ttl_ms: int
) -> None:
    """Replace a hash, so that what is absent now doesn't stay from before."""
    pipeline.delete(key)
    if fields:
        pipeline.hset(key, items=[part for field in fields.items() for part in field])
        pipeline.pexpire(key, ttl_ms)


def _stream_price(pipeline: Pipeline, last: Last) -> None:
    shown = ("mark_price", "index_price", "mark_event_ms", "price", "price_event_ms")
    values = _present(last)
    pipeline.xadd(
        keys.STREAM_PRICE,
        {
            "exchange": last.exchange,
            "symbol": last.symbol,
            **{name: values[name] for name in shown if name in values},
        },
        minid=_stream_from_ms(),
        approximate=True,
    )


def _present(last: Last) -> dict[str, int | float]:
    pairs = zip(last._fields[2:], last[2:], strict=True)
    return {name: value for name, value in pairs if value is not None}


def _stream_from_ms() -> int:
    """Ids of stream entries are Redis's wall clock, so the cap is too, however fast ours runs."""
    return int(time.time() * 1000) - keys.STREAM_KEPT_MS
