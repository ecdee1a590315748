"""What a feed hands over: minutes as the exchange states them, and ticks as rows of the schema."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from marketdata.schema import FundingRate, LastPrice, MarkPrice


class Kline(NamedTuple):
    """One statement of an exchange about one minute of a pair.

    Volumes are exact decimals in base (quote) units, because a 3-minute candle sums them before it
    rounds. `event_ms` is the exchange's time of the statement: of two that differ the later counts.
    """

    exchange: str
    symbol: str
    minute_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: Decimal
    quote_volume: Decimal | None
    trades: int | None
    closed: bool
    event_ms: int
    source: str = "stream"


Event = Kline | FundingRate | MarkPrice | LastPrice
"""Everything that a feed's callbacks emit."""
