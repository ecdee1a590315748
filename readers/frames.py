"""From stored candles to a DataFrame of any timeframe: aggregated, filled flat, typed; pure.

Sums and extremes are those of the trades: a candle without trades (volume 0) takes no part in
open, high and low, and volumes are summed in decimal, so that an aggregated candle equals the
exchange's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from marketdata.schema import Ohlcv
from readers.timeframes import Timeframe

if TYPE_CHECKING:
    import pandas as pd

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]

OHLCV = ("open", "high", "low", "close", "volume")
_OPEN, _HIGH, _LOW, _CLOSE, _VOLUME = range(5)


@dataclass(frozen=True, slots=True, eq=False)
class Candles:
    """Closed candles of one length, ascending.

    Attributes
    ----------
    time
        Open times in UTC milliseconds, int64.
    values
        Shape (5, n), float64: open, high, low, close, volume.
    filled
        Open times of the candles beneath which something is missing.
    """

    time: Int64s
    values: Float64s
    filled: Int64s

    def __len__(self) -> int:
        return len(self.time)

    def tail(self, limit: int) -> Candles:
        """The newest `limit` candles."""
        if len(self) <= limit:
            return self
        time = self.time[-limit:]
        return Candles(time, self.values[:, -limit:], self.filled[self.filled >= time[0]])


def from_rows(rows: Sequence[Ohlcv]) -> Candles:
    """Stored rows, ascending, as candles of the same length."""
    table = np.array([row[2:8] for row in rows], dtype=np.float64).reshape(-1, 6).T
    return Candles(table[0].astype(np.int64), table[1:], _no_times())


def from_columns(columns: Mapping[str, npt.NDArray[np.generic]]) -> Candles:
    """Bulk columns `time open high low close volume` as candles of the same length."""
    values = np.array([columns[name] for name in OHLCV], dtype=np.float64)
    return Candles(columns["time"].astype(np.int64), values, _no_times())


def join(before: Candles, after: Candles) -> Candles:
    """Candles of one length, one after the other."""
    return Candles(
        np.concatenate((before.time, after.time)),
        np.concatenate((before.values, after.values), axis=1),
        np.concatenate((before.filled, after.filled)),
    )


def build(base: Candles, timeframe: Timeframe) -> Candles:
    """Candles of `timeframe` out of the candles that it is made of, without holes in between.

    A candle is given only when it is closed: when it ends no later than the newest of `base`.
    Where nothing is stored it is flat at the previous close with volume 0.
    """
    if not len(base):
        return base
    closed_ms = int(base.time[-1]) + timeframe.base_ms
    return _fill_flat(_aggregate(base, timeframe, closed_ms), timeframe.step_ms)


def _aggregate(base: Candles, timeframe: Timeframe, closed_ms: int) -> Candles:
    if timeframe.step_ms == timeframe.base_ms:
        return base
    opens = base.time - (base.time - timeframe.origin_ms) % timeframe.step_ms
    closed = opens + timeframe.step_ms <= closed_ms
    opens, rows = opens[closed], base.values[:, closed]
    if not len(opens):
        return Candles(opens, rows, _no_times())
    starts = np.flatnonzero(np.diff(opens, prepend=opens[0] - 1))
    ends = np.append(starts[1:], len(opens))

    traded = rows[_VOLUME] > 0
    positions = np.where(traded, np.arange(len(opens)), len(opens))
    first_traded = np.minimum.reduceat(positions, starts)
    quiet = first_traded >= ends
    values = np.empty((5, len(starts)))
    values[_OPEN] = rows[_OPEN, np.where(quiet, starts, first_traded)]
    values[_CLOSE] = rows[_CLOSE, ends - 1]
    values[_HIGH] = np.maximum.reduceat(np.where(traded, rows[_HIGH], -np.inf), starts)
    values[_LOW] = np.minimum.reduceat(np.where(traded, rows[_LOW], np.inf), starts)
    values[_HIGH, quiet] = np.maximum.reduceat(rows[_HIGH], starts)[quiet]
    values[_LOW, quiet] = np.minimum.reduceat(rows[_LOW], starts)[quiet]
    values[_VOLUME] = _decimal_sums(rows[_VOLUME], starts, ends)
    time = opens[starts]
    whole = ends - starts == timeframe.step_ms // timeframe.base_ms
    return Candles(time, values, time[~whole])


def _decimal_sums(volumes: Float64s, starts: Int64s, ends: Int64s) -> list[float]:
    """Floats would add up to 0.30000000000000004 where the exchange says 0.3."""
    exact = [Decimal(repr(volume)) for volume in volumes.tolist()]
    return [float(sum(exact[start:end])) for start, end in zip(starts, ends, strict=True)]


def _fill_flat(candles: Candles, step_ms: int) -> Candles:
    if not len(candles):
        return candles
    first = candles.time[0]
    places = (candles.time - first) // step_ms
    count = int(places[-1]) + 1
    if count == len(candles):
        return candles
    time = first + np.arange(count) * step_ms
    present = np.zeros(count, dtype=np.bool_)
    present[places] = True
    newest = np.cumsum(present) - 1
    values = candles.values[:, newest]
    missing = ~present
    values[:_CLOSE, missing] = values[_CLOSE, missing]
    values[_VOLUME, missing] = 0.0
    return Candles(time, values, np.union1d(candles.filled, time[missing]))


def to_frame(candles: Candles, source: str) -> pd.DataFrame:
    """The one shape in which candles are handed out, also when there are none.

    Columns `date` (open time, `datetime64[ms, UTC]`), `open high low close volume` (float64), a
    RangeIndex; `.attrs["filled"]` lists the open times (ms) that are made up or made of less than
    the whole, `.attrs["source"]` says where the candles came from.
    """
    import pandas as pd

    dates = pd.DatetimeIndex(candles.time.view("datetime64[ms]"), tz="UTC")
    columns = dict(zip(OHLCV, candles.values, strict=True))
    frame = pd.DataFrame({"date": dates, **columns})
    frame.attrs = {"filled": candles.filled.tolist(), "source": source}
    return frame


def settled_frame(
    columns: Mapping[str, npt.NDArray[np.generic]], source: str, limit: int | None
) -> pd.DataFrame:
    """The newest `limit` settlements: `date`, `funding_rate`, `interval_hours`, `special_rate`.

    `date` is `datetime64[ms, UTC]`, the others float64, NaN where the exchange gives none.
    """
    import pandas as pd

    newest = slice(None if limit is None else -limit, None)
    frame = pd.DataFrame(
        {
            "date": pd.DatetimeIndex(columns["time"][newest].view("datetime64[ms]"), tz="UTC"),
            "funding_rate": columns["rate"][newest],
            "interval_hours": columns["interval_hours"][newest],
            "special_rate": columns["special_rate"][newest],
        }
    )
    frame.attrs = {"source": source}
    return frame


def _no_times() -> Int64s:
    return np.empty(0, dtype=np.int64)
