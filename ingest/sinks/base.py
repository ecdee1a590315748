"""What every sink promises.

`write` is idempotent: a batch written twice is one. It has three outcomes:

* it returns `Settled`: each row is either in the store, and survives a power cut there, or rejected
  for a reason that lies in the row itself;
* it raises `StoreUnavailable`: what became of the batch is unknown; keep it and write it again.
  `BatchFailed` is that of one write, which may lie in the batch; any other is the whole store's;
* it raises `StoreRefused`: the store takes nothing as things are (token, bucket, damaged file);
  keep it, and have someone look.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

from marketdata.schema import Batch, Kind, Last, Measurement, Ohlcv, Row

_TYPES: Mapping[Kind, tuple[type, ...]] = {"float": (float, int), "int": (int,), "str": (str,)}
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that the store won't ever take, with the store's own words."""

    measurement: str
    row: Row
    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of a batch: how many rows the store has now, and which it refused."""

    accepted: int
    rejected: tuple[Rejected, ...] = ()


class Sink(Protocol):
    """A store that batches of rows are written to."""

    name: str

    async def write(self, batch: Batch) -> Settled:
        """Write `batch`; see the module for what the outcomes mean."""
        ...

    async def close(self) -> None:
        """Give back threads and connections; what was not settled is not written."""
        ...


Marker = Mapping[str, str | int]
"""An entry of the stream of health: `kind` (`state`, `gap` or `break`), and what the kind says."""

Fields = Mapping[str, str | int | float]
"""The fields of a hash."""


class StreamSink(Sink, Protocol):
    """A sink that consumers follow: candles as they close, and what is wrong with them.

    It has no outbox: `losses` counts how often it was found without something that it had
    confirmed. Everything raises as `write` does.
    """

    losses: int

    async def probe(self) -> None:
        """Find out, by a write, whether it takes writes and still has what it had."""
        ...

    async def ends(self) -> Mapping[str, int]:
        """When the newest entry of each stream was made (ms); a stream without any is left out."""
        ...

    async def restore(self, candles: Sequence[Ohlcv]) -> None:
        """Put back candles of one pair that are not there, without announcing them."""
        ...

    async def announce(self, markers: Sequence[tuple[int, Marker]]) -> None:
        """Tell consumers of changes of state, gaps and breaks; each has a number, ascending.

        What comes again under a number that has been told is not told again.
        """
        ...

    async def health(self, exchange: str, fields: Fields) -> None:
        """Replace the states of an exchange."""
        ...


class HotSink(Protocol):
    """A place for the newest values: of two states of a pair the later one counts."""

    async def update(self, lasts: Sequence[Last]) -> None:
        """Make `lasts` the newest values. Raises as `Sink.write` does."""
        ...


def fault(measurement: Measurement, row: Row) -> str | None:
    r"""Why no store may take the row, or None where it is sound.

    Every sink asks this, so that a row means the same in each: SQLite would make NULL of a NaN, and
    a backslash at the end of a tag would glue InfluxDB's line together.

    >>> from marketdata.schema import MEASUREMENTS, LastPrice
    >>> fault(MEASUREMENTS["last_price"], LastPrice("BYBIT", "BTC/USDT", 1, float("nan")))
    'price is nan, expected a finite number'
    >>> fault(MEASUREMENTS["last_price"], LastPrice("BYBIT", "BTC/USDT", 1, 0.5))
    """
    for column, value in zip(measurement.columns, row, strict=True):
        reason = None if value is None and column.nullable else _misfit(column.kind, value)
        if reason is not None:
            return f"{column.name} is {value!r}, expected {reason}"
    return None


def _misfit(kind: Kind, value: object) -> str | None:
    # `type`, not isinstance: a bool is an int, and InfluxDB would make a boolean field of it.
    if type(value) not in _TYPES[kind]:
        return f"{kind}, never absent or of another type"
    if isinstance(value, str):
        if not value or not value.isprintable() or "\\" in value:
            return "printable text without a backslash"
    elif isinstance(value, int):
        if value not in _INT64:
            return "an integer of 64 bits"
    elif isinstance(value, float) and not isfinite(value):
        return "a finite number"
    return None
