"""The store's measurements: one row class each, shared by every sink and every reader.

A row is a NamedTuple in column order, so that the same object goes to SQLite as parameters, to
InfluxDB as a line and to Redis as JSON. `time` is UTC milliseconds. A value that the exchange
doesn't give is None, never zero. Prices and rates are floats (the nearest to the exchange's
decimal string), rates are fractions per funding interval, volumes are in base units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args, get_type_hints

MINUTE_MS = 60_000
CANDLE_MS = 180_000

Source = Literal["stream", "rest", "synthetic"]
GapReason = Literal["restart", "disconnected", "silent", "dropped", "venue_down"]
GapState = Literal["open", "repaired", "empty", "lost"]
Channel = Literal["candles", "funding", "mark_price", "last_price"]
State = Literal["live", "quiet", "starting", "late", "disconnected", "venue_down"]
"""From the best to the worst."""

CHANNELS: tuple[str, ...] = get_args(Channel)
STATES: tuple[str, ...] = get_args(State)


class Ohlcv(NamedTuple):
    """A closed candle of `ohlcv_1m` or `ohlcv_3m`, keyed by its open time."""

    exchange: str
    symbol: str
    time: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    quote_volume: float | None
    trades: int | None
    source: str
    revision: int


class FundingRate(NamedTuple):
    """What the exchange shows for the upcoming settlement, keyed by event time."""

    exchange: str
    symbol: str
    time: int
    rate: float
    predicted_rate: float | None
    next_funding_ms: int | None
    interval_hours: float | None


class FundingSettled(NamedTuple):
    """A settlement, keyed by its time floored to the minute."""

    exchange: str
    symbol: str
    time: int
    rate: float
    interval_hours: float | None
    special_rate: float | None


class MarkPrice(NamedTuple):
    """Mark and index price, keyed by event time."""

    exchange: str
    symbol: str
    time: int
    mark_price: float
    index_price: float | None


class Mark3m(NamedTuple):
    """A closed 3-minute candle of the mark price, keyed by its open time."""

    exchange: str
    symbol: str
    time: int
    open: float
    high: float
    low: float
    close: float
    source: str


class LastPrice(NamedTuple):
    """The price of the last trade, keyed by event time."""

    exchange: str
    symbol: str
    time: int
    price: float


class Gap(NamedTuple):
    """One contiguous hole of a pair's channel, keyed by its first missing instant."""

    exchange: str
    symbol: str
    channel: str
    time: int
    until_ms: int
    reason: str
    state: str
    closed_ms: int | None


class Last(NamedTuple):
    """The newest values of a pair: the Redis hash, and a row of SQLite's table `last`."""

    exchange: str
    symbol: str
    mark_price: float | None = None
    index_price: float | None = None
    mark_event_ms: int | None = None
    funding_rate: float | None = None
    predicted_rate: float | None = None
    next_funding_ms: int | None = None
    interval_hours: float | None = None
    funding_event_ms: int | None = None
    price: float | None = None
    price_event_ms: int | None = None
    minute_ms: int | None = None
    open: float | None = None
    high: float | None = None
    low: float | None = None
    close: float | None = None
    volume: float | None = None
    quote_volume: float | None = None
    trades: int | None = None
    candle_event_ms: int | None = None
    received_ms: int | None = None
    seq: int | None = None


Row = Ohlcv | FundingRate | FundingSettled | MarkPrice | Mark3m | LastPrice | Gap
Batch = Mapping[str, Sequence[Row]]
"""Rows by measurement: what the outbox keeps and a sink writes."""

Kind = Literal["float", "int", "str"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column and the only type that its values ever have."""

    name: str
    kind: Kind
    nullable: bool


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement: its row class, what keys a point, and its field types.

    `keys` are the tags and `time`, in the order of SQLite's primary key.

    >>> MEASUREMENTS["gap"].tags
    ('exchange', 'symbol', 'channel')
    >>> [column.name for column in MEASUREMENTS["mark_price"].fields]
    ['mark_price', 'index_price']
    >>> MEASUREMENTS["mark_price"].tick, MEASUREMENTS["ohlcv_3m"].tick
    (True, False)
    """

    name: str
    row: type[Row] | type[Last]
    columns: tuple[Column, ...]
    tags: tuple[str, ...]
    tick: bool
    """A tick may be thinned and may expire; the others are never dropped."""

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.tags, "time") if "time" in self.row._fields else self.tags

    @property
    def fields(self) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.name not in self.keys)


def _measurement(name: str, row: type[Row] | type[Last], *, tick: bool = False) -> Measurement:
    hints = get_type_hints(row)
    columns = []
    for column, hint in hints.items():
        types = get_args(hint) or (hint,)
        kind: Kind = "float" if float in types else "int" if int in types else "str"
        columns.append(Column(column, kind, type(None) in types))
    tags = tuple(tag for tag in ("exchange", "symbol", "channel") if tag in hints)
    return Measurement(name, row, tuple(columns), tags, tick)


MEASUREMENTS: Mapping[str, Measurement] = {
    measurement.name: measurement
    for measurement in (
        _measurement("ohlcv_3m", Ohlcv),
        _measurement("ohlcv_1m", Ohlcv),
        _measurement("funding_rate", FundingRate, tick=True),
        _measurement("funding_settled", FundingSettled),
        _measurement("mark_price", MarkPrice, tick=True),
        _measurement("mark_3m", Mark3m),
        _measurement("last_price", LastPrice, tick=True),
        _measurement("gap", Gap),
    )
}

LAST = _measurement("last", Last)
"""SQLite's table of newest values; Redis has the same columns in `md:last:*`."""
