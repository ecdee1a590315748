"""Stores with market data in them, written by the service's own sinks, for tests of readers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ingest.sinks.influx import InfluxSink
from ingest.sinks.redis import RedisSink
from ingest.sinks.sqlite import SqliteSink
from ingest.status import health_fields
from marketdata.schema import (
    CANDLE_MS,
    MINUTE_MS,
    STATES,
    Batch,
    FundingRate,
    FundingSettled,
    Last,
    LastPrice,
    MarkPrice,
    Ohlcv,
    Row,
    State,
)
from readers import MarketData
from tests.servers.influx import InfluxBucket

EXCHANGE = "BINANCE_FUTURES"
BTC = "BTC/USDT:USDT"
ETH = "ETH/USDT:USDT"


def candles(
    pair: str, start_ms: int, count: int, *, step_ms: int = CANDLE_MS, first: int = 0
) -> list[Ohlcv]:
    """Candles whose values tell which they are; some fields are absent in every other."""
    return [
        Ohlcv(
            EXCHANGE,
            pair,
            start_ms + n * step_ms,
            100.0 + n,
            101.5 + n,
            99.25 + n,
            100.1 + n,
            0.1 * (n + 1),
            None if n % 2 else 10.0 * n,
            None if n % 2 else n,
            "stream",
            n % 3,
        )
        for n in range(first, first + count)
    ]


def last_of(pair: str, now_ms: int, **changes: Any) -> Last:
    """The newest values of a pair, a second old."""
    event_ms = now_ms - 1_000
    last = Last(
        EXCHANGE,
        pair,
        mark_price=61_000.5,
        index_price=61_001.25,
        mark_event_ms=event_ms,
        funding_rate=-1.25e-05,
        next_funding_ms=now_ms + 3_600_000,
        interval_hours=8.0,
        funding_event_ms=event_ms,
        price=61_002.0,
        price_event_ms=event_ms,
        received_ms=now_ms,
        seq=7,
    )
    return last._replace(**changes)


def ticks_of(last: Last) -> dict[str, list[Row]]:
    """The same values as the rows that the service stores of them."""
    key = last.exchange, last.symbol
    batch: dict[str, list[Row]] = {}
    if last.mark_event_ms is not None and last.mark_price is not None:
        mark = MarkPrice(*key, last.mark_event_ms, last.mark_price, last.index_price)
        batch["mark_price"] = [mark]
    if last.funding_event_ms is not None and last.funding_rate is not None:
        batch["funding_rate"] = [
            FundingRate(
                *key,
                last.funding_event_ms,
                last.funding_rate,
                last.predicted_rate,
                last.next_funding_ms,
                last.interval_hours,
            )
        ]
    if last.price_event_ms is not None and last.price is not None:
        batch["last_price"] = [LastPrice(*key, last.price_event_ms, last.price)]
    return batch


def settlements(pair: str, end_ms: int, count: int) -> list[FundingSettled]:
    """Settlements every 8 hours, the newest at `end_ms`; one in four has an extra rate."""
    return [
        FundingSettled(
            EXCHANGE,
            pair,
            end_ms - (count - 1 - n) * 8 * 3_600_000,
            1e-05 * (n - 3),
            None if n % 5 == 4 else 8.0,
            0.001 if n % 4 == 0 else None,
        )
        for n in range(count)
    ]


class Home(Protocol):
    """A place that rows and newest values can be put into."""

    def put(self, batch: Batch) -> None: ...

    def put_last(self, *lasts: Last) -> None: ...


@dataclass(frozen=True)
class SqliteHome:
    """A SQLite store."""

    path: Path
    source: str = field(default="sqlite", init=False)

    @property
    def store(self) -> dict[str, Any]:
        return {"kind": "sqlite", "path": self.path}

    def put(self, batch: Batch) -> None:
        asyncio.run(_write(SqliteSink(self.path), batch))

    def put_last(self, *lasts: Last) -> None:
        async def update() -> None:
            sink = SqliteSink(self.path)
            try:
                await sink.update(lasts)
            finally:
                await sink.close()

        asyncio.run(update())


@dataclass(frozen=True)
class InfluxHome:
    """An InfluxDB store with a bucket of its own for ticks."""

    bucket: InfluxBucket
    ticks_bucket: str
    source: str = field(default="influxdb", init=False)

    @property
    def store(self) -> dict[str, Any]:
        return {
            "kind": "influxdb",
            "url": self.bucket.url,
            "org": self.bucket.org,
            "bucket": self.bucket.bucket,
            "token": self.bucket.token,
            "ticks": {"bucket": self.ticks_bucket},
        }

    def put(self, batch: Batch) -> None:
        sink = InfluxSink(
            self.bucket.url,
            self.bucket.org,
            self.bucket.bucket,
            self.bucket.token,
            ticks_bucket=self.ticks_bucket,
        )
        asyncio.run(_write(sink, batch))

    def put_last(self, *lasts: Last) -> None:
        for last in lasts:
            self.put(ticks_of(last))


@dataclass(frozen=True)
class RedisHome:
    """The hot cache: of what is put it keeps 3-minute candles and newest values."""

    url: str
    source: str = field(default="redis", init=False)

    def put(self, batch: Batch) -> None:
        asyncio.run(_write(RedisSink(self.url), batch))

    def put_health(
        self,
        time_ms: int,
        *,
        clock_ahead_ms: int = 0,
        states: Mapping[tuple[str, str], State] | None = None,
    ) -> None:
        """What the service says at `time_ms`, with the states of pairs' channels."""
        pairs: dict[str, dict[str, Any]] = {}
        for (pair, channel), state in (states or {}).items():
            pairs.setdefault(pair, {})[channel] = {"state": state, "age_ms": None}
        told = {"clock_ahead_ms": clock_ahead_ms, "connections": [], "pairs": pairs}
        status = told | {"state": max((states or {}).values(), key=STATES.index, default="live")}

        async def put() -> None:
            sink = RedisSink(self.url)
            try:
                await sink.health(EXCHANGE, health_fields(status, time_ms))
            finally:
                await sink.close()

        asyncio.run(put())

    def put_last(self, *lasts: Last) -> None:
        async def update() -> None:
            sink = RedisSink(self.url)
            try:
                await sink.update(lasts)
            finally:
                await sink.close()

        asyncio.run(update())


async def _write(sink: SqliteSink | InfluxSink | RedisSink, batch: Batch) -> None:
    try:
        settled = await sink.write(batch)
    finally:
        await sink.close()
    assert not settled.rejected, settled.rejected


class Watch:
    """A clock that a test sets."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


@contextmanager
def reading(
    home: SqliteHome | InfluxHome, watch: Watch, redis_url: str | None = None
) -> Iterator[MarketData]:
    """A `MarketData` on a store, closed at the end."""
    with MarketData(store=home.store, redis=redis_url, exchange=EXCHANGE, now_ms=watch) as data:
        yield data


def minutes(pair: str, start_ms: int, count: int) -> Sequence[Ohlcv]:
    """Minutes, as `candles`."""
    return candles(pair, start_ms, count, step_ms=MINUTE_MS)
