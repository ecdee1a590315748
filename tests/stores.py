"""The stores that a sink writes to, as their tests see them: what is in there, gone, back again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import redis

from ingest.sinks.base import Sink
from ingest.sinks.influx import InfluxSink
from ingest.sinks.redis import RedisSink
from ingest.sinks.sqlite import SqliteSink
from marketdata import keys
from marketdata.schema import (
    MEASUREMENTS,
    FundingRate,
    FundingSettled,
    Gap,
    LastPrice,
    Mark3m,
    MarkPrice,
    Ohlcv,
    Row,
)
from tests.servers.influx import InfluxServer, call
from tests.servers.redis import RedisServer

EXCHANGE = "BINANCE_FUTURES"
SYMBOL = "BTC/USDT:USDT"
TIME = 1_760_000_040_000
"""A whole number of 3-minute candles."""


def ohlcv(**changes: Any) -> Ohlcv:
    row = Ohlcv(EXCHANGE, SYMBOL, TIME, 1.5, 3.0, 0.1, 2.25, 1e-05, 1e22, 12, "stream", 0)
    return row._replace(**changes)


def mark(**changes: Any) -> MarkPrice:
    return MarkPrice(EXCHANGE, SYMBOL, TIME, 62_000.1, 62_000.2)._replace(**changes)


def one_of_each() -> dict[str, list[Row]]:
    """A full row of every measurement."""
    names = EXCHANGE, SYMBOL
    return {
        "ohlcv_3m": [ohlcv()],
        "ohlcv_1m": [ohlcv(source="rest", revision=2)],
        "funding_rate": [FundingRate(*names, TIME, -1.25e-05, 1e-04, TIME + 5_000, 8.0)],
        "funding_settled": [FundingSettled(*names, TIME, 1e-04, 4.0, 0.5)],
        "mark_price": [mark()],
        "mark_3m": [Mark3m(*names, TIME, 1.0, 2.0, 0.5, 1.5, "stream")],
        "last_price": [LastPrice(*names, TIME, 5e-324)],
        "gap": [Gap(*names, "candles", TIME, TIME + 60_000, "silent", "open", TIME + 70_000)],
    }


class Store(Protocol):
    """A running store, its sink, and what can happen to it."""

    @property
    def measurements(self) -> Sequence[str]:
        """What it keeps; of the others a sink may say that it accepts them."""
        ...

    @property
    def durable(self) -> bool:
        """Whether it still has its rows after it was away."""
        ...

    def sink(self) -> Sink: ...

    def refusing_sink(self) -> Sink:
        """A sink of a store that takes nothing as things are."""
        ...

    def rows(self, measurement: str) -> list[Row]:
        """Everything that it keeps, ascending by symbol and time."""
        ...

    def go_away(self) -> None: ...

    def come_back(self) -> None: ...


class SqliteStore:
    measurements = tuple(MEASUREMENTS)
    durable = True

    def __init__(self, folder: Path) -> None:
        self.path = folder / "data" / "market_data.db"
        self._folder = folder
        self._locking: sqlite3.Connection | None = None

    def sink(self) -> SqliteSink:
        return SqliteSink(self.path)

    def refusing_sink(self) -> SqliteSink:
        path = self._folder / "damaged.db"
        path.write_bytes(b"this is no database" * 1_000)
        return SqliteSink(path)

    def rows(self, measurement: str) -> list[Row]:
        make = MEASUREMENTS[measurement].row._make
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            found = connection.execute(f"SELECT * FROM {measurement} ORDER BY symbol, time")
            return [make(row) for row in found]  # type: ignore[misc]

    def go_away(self) -> None:
        """Another program holds the lock, as a copy or a repair does."""
        self._locking = sqlite3.connect(self.path, isolation_level=None)
        self._locking.execute("BEGIN IMMEDIATE")

    def come_back(self) -> None:
        assert self._locking is not None
        self._locking.close()


class InfluxStore:
    measurements = tuple(MEASUREMENTS)
    durable = True

    def __init__(self, server: InfluxServer) -> None:
        self.server = server
        self.bucket = server.new_bucket()

    def sink(self) -> InfluxSink:
        return InfluxSink(self.server.url, self.server.org, self.bucket, self.server.token)

    def refusing_sink(self) -> InfluxSink:
        return InfluxSink(self.server.url, self.server.org, "no_such_bucket", self.server.token)

    def rows(self, measurement: str) -> list[Row]:
        return list(influx_rows(self.server, self.bucket, measurement))

    def go_away(self) -> None:
        self.server.stop()

    def come_back(self) -> None:
        self.server.start()


def influx_rows(server: InfluxServer, bucket: str, measurement: str) -> Iterator[Row]:
    """Everything in a bucket's measurement, as rows."""
    query = {"db": bucket, "epoch": "ms", "q": f'SELECT * FROM "{measurement}"'}
    answer = call("GET", f"{server.url}/query", fields=query)
    (result,) = json.loads(answer.data)["results"]
    assert "error" not in result, result
    for series in result.get("series", ()):
        found = [dict(zip(series["columns"], values, strict=True)) for values in series["values"]]
        for point in sorted(found, key=lambda point: (point["symbol"], point["time"])):
            yield _typed(measurement, point)


def _typed(measurement: str, point: Mapping[str, Any]) -> Row:
    """InfluxDB writes 1.0 as 1 in JSON; the schema says which it was."""
    table = MEASUREMENTS[measurement]
    values = []
    for column in table.columns:
        value = point.get(column.name)
        values.append(float(value) if column.kind == "float" and value is not None else value)
    return table.row._make(values)  # type: ignore[return-value]


class RedisStore:
    measurements = ("ohlcv_3m",)
    durable = False

    def __init__(self, url: str, server: RedisServer | None = None) -> None:
        self.url = url
        self._server = server

    def sink(self) -> RedisSink:
        return RedisSink(self.url)

    def refusing_sink(self) -> RedisSink:
        return RedisSink(self.url.replace("redis://", "redis://nobody:secret-password@"))

    def rows(self, measurement: str) -> list[Row]:
        assert measurement == "ohlcv_3m"
        with redis.Redis.from_url(self.url) as client:
            found = sorted(client.scan_iter(match=keys.candles("*", "*"), count=1_000))
            return [
                Ohlcv(*key.decode().split(":", 3)[2:], *json.loads(member))
                for key in found
                for member in client.zrange(key, 0, -1)
            ]

    def go_away(self) -> None:
        assert self._server is not None
        self._server.stop()

    def come_back(self) -> None:
        assert self._server is not None
        self._server.start()


class NoOutbox:
    """What is read of an `Outbox`, where nothing waits to be stored."""

    async def pending(
        self, measurement: str, exchange: str, symbol: str, start_ms: int, end_ms: int
    ) -> list[Row]:
        return []
