"""What a store and the hot cache must give to be read from; the same answers, whichever it is.

Sources are used from several threads at once and connect when they are first asked. They are not
carried across a fork or a pickle: `readers.chain` makes new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from marketdata.schema import MEASUREMENTS, Last, Ohlcv, Row

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Columns = Mapping[str, npt.NDArray[np.generic]]


class Source(Protocol):
    """A store: the history of every pair, and its newest values.

    Each method raises `StoreUnavailable` where the store can't be reached or can't answer now, and
    `StoreRefused` where it never will as things are.
    """

    name: str
    """`sqlite` or `influxdb`."""
    hot: bool
    """Whether `last` follows every message, rather than the thinned ticks."""

    def rows(
        self,
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
        limit: int | None = None,
    ) -> list[Row]:
        """Rows with start_ms <= time < end_ms, ascending; with `limit`, the newest ones."""
        ...

    def columns(
        self,
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
        names: Sequence[str],
    ) -> Columns:
        """The same range in bulk: `time` (int64) and `names`.

        Numbers are float64, NaN where absent; texts (`source`) are arrays of objects.
        """
        ...

    def pairs(self, exchange: str) -> list[str]:
        """The pairs of which anything is stored."""
        ...

    def last(self, exchange: str, symbols: Sequence[str]) -> dict[str, Last]:
        """Newest values; a pair without any is left out."""
        ...

    def close(self) -> None:
        """Give back every connection."""
        ...


class HotSource(Protocol):
    """The hot cache: newest values, newest closed candles, states. Raises `StoreUnavailable`."""

    name: str

    def last(self, exchange: str, symbols: Sequence[str]) -> dict[str, Last]:
        """Newest values; a pair without any is left out."""
        ...

    def candles(self, exchange: str, symbol: str, limit: int) -> list[Ohlcv]:
        """The newest closed 3-minute candles, ascending; perhaps fewer than there are."""
        ...

    def health(self, exchange: str) -> dict[str, str]:
        """What the service says of an exchange; empty where it is away."""
        ...

    def close(self) -> None:
        """Give back every connection."""
        ...


def text_columns(measurement: str) -> frozenset[str]:
    """The fields of a measurement that are texts.

    >>> text_columns("ohlcv_3m")
    frozenset({'source'})
    """
    fields = MEASUREMENTS[measurement].fields
    return frozenset(column.name for column in fields if column.kind == "str")


def row_class(measurement: str) -> type[Row]:
    """What a row of a measurement is made of."""
    return cast("type[Row]", MEASUREMENTS[measurement].row)
