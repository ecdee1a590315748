"""Timeframes: names such as `15m` or `1d`, what they are made of, and where their candles begin."""

from __future__ import annotations

import re
from dataclasses import dataclass

from marketdata.schema import CANDLE_MS, MINUTE_MS

_UNIT_MINUTES = {"m": 1, "h": 60, "d": 1_440, "w": 10_080}
_WEEK_MS = 7 * 86_400_000
_MONDAY_MS = 4 * 86_400_000
"""1970-01-05: exchanges begin their weeks on Monday, the epoch began on a Thursday."""


@dataclass(frozen=True, slots=True)
class Timeframe:
    """A whole number of minutes.

    Candles begin at multiples of their length since the epoch, those of whole weeks on Mondays.

    >>> Timeframe.parse("15m")
    Timeframe(step_ms=900000)
    >>> Timeframe.parse("1h").base, Timeframe.parse("5m").base
    ('ohlcv_3m', 'ohlcv_1m')
    >>> Timeframe.parse("3m").floor_ms(1_700_000_000_000)
    1699999920000
    """

    step_ms: int

    @classmethod
    def parse(cls, name: str) -> Timeframe:
        """Read `1m`, `3m`, `5m`, `1h`, `4h`, `1d`, `1w`, or any other number of these units.

        Raises
        ------
        ValueError
            The name is none.
        """
        match = re.fullmatch(r"([1-9][0-9]{0,5})([mhdw])", name)
        if match is None:
            raise ValueError(
                f"timeframe {name!r} is not known; "
                "valid: a number and one of m, h, d, w, such as 15m"
            )
        return cls(int(match[1]) * _UNIT_MINUTES[match[2]] * MINUTE_MS)

    @property
    def base(self) -> str:
        """The measurement that its candles are made of."""
        return "ohlcv_1m" if self.step_ms % CANDLE_MS else "ohlcv_3m"

    @property
    def base_ms(self) -> int:
        """Length of the candles that its candles are made of."""
        return MINUTE_MS if self.step_ms % CANDLE_MS else CANDLE_MS

    @property
    def origin_ms(self) -> int:
        """An instant at which a candle begins."""
        return 0 if self.step_ms % _WEEK_MS else _MONDAY_MS

    def floor_ms(self, time_ms: int) -> int:
        """The open time of the candle that `time_ms` falls into."""
        return time_ms - (time_ms - self.origin_ms) % self.step_ms

    def ceil_ms(self, time_ms: int) -> int:
        """The first open time that is not before `time_ms`."""
        return time_ms + (self.origin_ms - time_ms) % self.step_ms
