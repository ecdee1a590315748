"""The Redis sink: newest values, closed candles, streams and views, under the keys of design 4.

Other collectors may write the same Redis, and Redis may execute a call that was given up here. So
whatever is written is compared inside Redis with what is there (`redis_scripts`): a later state
never loses against an earlier one, and nothing is announced twice. A reader never sees half a pair.

`write` takes candles and lets the other measurements pass. Nothing here waits longer than the
timeout, and nothing is kept for later: whoever calls decides what is worth sending again.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from redis import asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ingest.sinks.base import Fields, Marker, Rejected, Settled, fault
from ingest.sinks.redis_scripts import CANDLES, CHANNELS, HEALTH, LAST, MARKERS, Script
from ingest.sinks.views import CHANNEL_COLUMNS, PRESETS, show
from marketdata import keys
from marketdata.errors import MarketDataError, StoreRefused, StoreUnavailable
from marketdata.pairs import Market
from marketdata.schema import MEASUREMENTS, Batch, Last, Ohlcv, Row

if TYPE_CHECKING:
    from redis.asyncio.client import Pipeline

TIMEOUT_S = 2.0
ROWS_PER_PIPELINE = 500

FindMarket = Callable[[str, str], Market | None]
"""The market of (exchange, pair), None where it isn't known; views take their names from it."""

PROCESS = secrets.token_hex(4)
"""Whose word on an exchange's states it is, where two collectors have one."""

_INDEXES = [[Last._fields.index(name) for name in names] for names in CHANNEL_COLUMNS.values()]

_NOTHING = [[""] * len(indexes) for indexes in _INDEXES]
_MARK, _PRICE = CHANNELS.index("mark_price"), CHANNELS.index("last_price")

_TRANSIENT = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    OSError,
)
_TRANSIENT_CODES = ("MISCONF", "BUSY", "NOREPLICAS", "MASTERDOWN", "LATE")
"""Of Redis's answers that redis-py has no type for: a full disk, a script that runs, replicas; the
last is our own."""
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError)
"""Of redis-py's connection errors those that another attempt won't mend."""


class _Call(NamedTuple):
    """One run of a script."""

    keys: Sequence[str]
    args: Sequence[Any]


class RedisSink:
    """Writes one Redis; connects with the first write.

    Parameters
    ----------
    views
        Names of `views.PRESETS`: more keys to show the newest values under.
    find_market
        Where views take a pair's names from; a pair that it doesn't know is shown in none.
    now_ms
        The clock by which values were received: what is written late lives shorter. Left out,
        everything counts as new.
    collector
        Two collectors of the same exchanges have different ones.

    Attributes
    ----------
    losses
        How often Redis was found to lack what it had confirmed: it was emptied, replaced or set
        back.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        views: Sequence[str] = (),
        find_market: FindMarket = lambda exchange, pair: None,
        *,
        timeout_s: float = TIMEOUT_S,
        now_ms: Callable[[], int] | None = None,
        collector: str = PROCESS,
    ) -> None:
        self.losses = 0
        parts = urlsplit(url)
        self._address = parts.netloc.rpartition("@")[2] or parts.path
        self._views = [view for name in views for view in PRESETS[name]]
        self._find_market = find_market
        self._timeout_s = timeout_s
        self._now_ms = now_ms
        self._collector = collector
        self._client = redis.Redis.from_url(
            url,
            # Our own holds for all of it; theirs is a `wait_for`, which loses cancellations before
            # Python 3.12.
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        self._in_flight = asyncio.Lock()
        self._writer = keys.writer(secrets.token_hex(4))
        self._calls = 0
        self._seen_ms = 0
        self._sent: dict[str, list[list[str]]] = {}
        self._shown: set[str] = set()

    async def probe(self) -> None:
        """Find out whether Redis takes writes, and still has everything that it has confirmed.

        One that hangs gets no more than this into its sockets.
        """
        async with self._in_flight, self._pipeline() as pipeline:
            pipeline.time()
            [(seconds, microseconds)] = await self._confirmed(pipeline)
        self._seen_ms = seconds * 1000 + microseconds // 1000

    async def ends(self) -> dict[str, int]:
        """When the newest entry of each stream was made, by Redis's clock."""
        async with self._pipeline() as pipeline:
            for stream in keys.STREAMS:
                pipeline.xrevrange(stream, count=1)
            answers = await self._execute(pipeline)
        ids = {
            stream: found[0][0]
            for stream, found in zip(keys.STREAMS, answers, strict=True)
            if found
        }
        return {stream: int(name.partition(b"-")[0]) for stream, name in ids.items()}

    async def update(self, lasts: Sequence[Last]) -> None:
        """Make `lasts` the newest values: hashes, views, and the stream of prices."""
        if not lasts:
            return
        now_ms = None if self._now_ms is None else self._now_ms()
        calls, sent = [], {}
        async with self._in_flight:
            for last in lasts:
                age_ms = max(0, now_ms - last.received_ms) if now_ms and last.received_ms else 0
                # In Redis's absence it has become too old for a key that says: it is fresh.
                if age_ms < keys.LAST_TTL_MS:
                    key = keys.last(last.exchange, last.symbol)
                    sent[key] = _texts(last)
                    calls.append(self._newest(key, last, sent[key], age_ms))
            await self._run(LAST, calls)
            self._sent |= sent
            self._shown |= sent.keys()

    async def write(self, batch: Batch) -> Settled:
        """Write the batch's 3-minute candles; every other row counts as accepted."""
        candles = batch.get("ohlcv_3m", ())
        reasons = [(row, fault(MEASUREMENTS["ohlcv_3m"], row)) for row in candles]
        sound = [row for row, why in reasons if why is None]
        rejected = [Rejected("ohlcv_3m", row, why) for row, why in reasons if why is not None]
        await self._put_candles(sound, announced=True)
        total = sum(len(rows) for rows in batch.values())
        return Settled(total - len(rejected), tuple(rejected))

    async def restore(self, candles: Sequence[Ohlcv]) -> None:
        """Put back candles that are not there, without announcing them."""
        await self._put_candles(candles, announced=False)

    async def announce(self, markers: Sequence[tuple[int, Marker]]) -> None:
        """Put changes of state, gaps and breaks into the stream of health, each number once."""
        args: list[Any] = []
        for number, marker in markers:
            args += (number, _flat_json(marker))
        await self._run(MARKERS, [_Call((self._writer, keys.STREAM_HEALTH), args)])

    async def health(self, exchange: str, fields: Fields) -> None:
        """Replace the health hash of an exchange; it is gone 30 s after the last call."""
        place = keys.health(exchange), keys.speaker(exchange)
        about = self._collector, fields.get("state", ""), fields.get("time_ms", 0)
        await self._run(HEALTH, [_Call(place, (*about, _flat_json(fields)))])

    async def close(self) -> None:
        await self._client.aclose()

    def _newest(self, key: str, last: Last, values: list[list[str]], age_ms: int) -> _Call:
        """Everything that the script has to know of a pair."""
        before = self._sent.get(key, _NOTHING)
        has_changed = [new != old for new, old in zip(values, before, strict=True)]
        retracted = [
            int(old[0] or 0) if not new[0] else 0 for new, old in zip(values, before, strict=True)
        ]
        # By the exchange's clock, as far as the pair's newest event tells it.
        now_ms = max(int(texts[0] or 0) for texts in values) + age_ms
        view_keys, views = self._views_of(key, last, now_ms, has_changed)
        call = {
            "exchange": last.exchange,
            "symbol": last.symbol,
            "seen_ms": self._seen_ms,
            "kept_ms": keys.LAST_TTL_MS,
            "ttl_ms": keys.LAST_TTL_MS - age_ms,
            "received_ms": last.received_ms or 0,
            "seq": last.seq or 0,
            "is_announced": has_changed[_MARK] or has_changed[_PRICE],
            "values": values,
            "has_changed": has_changed,
            "retracted_ms": retracted,
            "views": views,
        }
        return _Call((key, keys.STREAM_PRICE, *view_keys), (orjson.dumps(call),))

    def _views_of(
        self, key: str, last: Last, now_ms: int, has_changed: Sequence[bool]
    ) -> tuple[list[str], list[dict[str, Any]]]:
        """The views whose channel has news, or that Redis has lost."""
        market = self._find_market(last.exchange, last.symbol) if self._views else None
        view_keys: list[str] = []
        views: list[dict[str, Any]] = []
        if market is None:
            return view_keys, views
        for view in self._views:
            view_key = view.key_for(market)
            shown = None if view_key is None else show(view, market, last)
            if view_key is None or shown is None:
                continue
            channel = CHANNELS.index(shown.channel)
            ttl_ms = view.ttl_ms - (now_ms - shown.event_ms)
            if ttl_ms > 0 and (has_changed[channel] or key not in self._shown):
                view_keys.append(view_key)
                views.append(
                    {
                        "time_field": view.time_field,
                        "event_ms": shown.event_ms,
                        "channel": channel + 1,
                        "ttl_ms": ttl_ms,
                        "fields": [part for field in shown.fields.items() for part in field],
                    }
                )
        return view_keys, views

    async def _put_candles(self, candles: Sequence[Row], *, announced: bool) -> None:
        for start in range(0, len(candles), ROWS_PER_PIPELINE):
            members: dict[tuple[str, str], list[bytes]] = {}
            for row in candles[start : start + ROWS_PER_PIPELINE]:
                pair = row.exchange, row.symbol
                members.setdefault(pair, []).append(orjson.dumps(tuple(row[2:])))
            await self._run(
                CANDLES,
                [
                    _Call(
                        (keys.candles(*pair), keys.STREAM_OHLCV_3M),
                        (*pair, int(announced), keys.CANDLES_KEPT, *some),
                    )
                    for pair, some in members.items()
                ],
            )

    async def _run(self, script: Script, calls: Sequence[_Call]) -> None:
        """Run a script for each of the calls, in one round trip."""
        if not calls:
            return
        async with self._pipeline() as pipeline:
            # Each time: a Redis that was restarted has forgotten it.
            pipeline.script_load(script.text)
            for call in calls:
                pipeline.evalsha(script.sha, len(call.keys), *call.keys, *call.args)
            await self._confirmed(pipeline, ["", *(call.keys[0] for call in calls)])

    @asynccontextmanager
    async def _pipeline(self) -> AsyncIterator[Pipeline]:
        """Commands that are sent together; what goes wrong with them is of our own errors."""
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.pipeline(transaction=False) as pipeline,
            ):
                yield pipeline
        except (exceptions.RedisError, OSError) as error:
            raise self._error(error) from error

    async def _confirmed(self, pipeline: Pipeline, names: Iterable[str] = ()) -> list[Any]:
        """The answers; a number that every call raises tells whether Redis has those before it.

        It comes after the rest: a Redis that lacks a part of a call lacks its number as well.
        """
        pipeline.hincrby(self._writer, "calls", 1)
        pipeline.pexpire(self._writer, keys.WRITER_TTL_MS)
        *answers, calls, _ = await self._execute(pipeline, names)
        if calls <= self._calls:
            self.losses += 1
            self._shown.clear()
        self._calls = calls
        return answers

    async def _execute(self, pipeline: Pipeline, names: Iterable[str] = ()) -> list[Any]:
        """The answers; an error among them is raised after all have been heard."""
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        named = dict(enumerate(names))
        for n, answer in enumerate(answers):
            if isinstance(answer, exceptions.RedisError):
                raise self._error(answer, named.get(n, "")) from answer
        return answers

    def _error(self, error: exceptions.RedisError | OSError, key: str = "") -> MarketDataError:
        if isinstance(error, TimeoutError | exceptions.TimeoutError):
            said = f"no answer within {self._timeout_s:g} s"
        else:
            said = str(error) or type(error).__name__
        is_transient = isinstance(error, _TRANSIENT) and not isinstance(error, _REFUSED)
        if is_transient or said.split(" ", 1)[0] in _TRANSIENT_CODES:
            return StoreUnavailable(f"Redis at {self._address} doesn't take writes now: {said}")
        if isinstance(error, _REFUSED) or not key:
            advice = "check redis.url and its user"
        else:
            advice = f"{key} has to be a key of the service's own"
        return StoreRefused(f"Redis at {self._address} refuses: {said}; {advice}")


def _texts(last: Last) -> list[list[str]]:
    """Each channel's columns as Redis keeps them: the event's time first, "" where absent."""
    return [["" if last[n] is None else repr(last[n]) for n in indexes] for indexes in _INDEXES]


def _flat_json(fields: Fields) -> bytes:
    return orjson.dumps([str(part) for field in fields.items() for part in field])
