"""What every event and row must be, whatever it was made of."""

from __future__ import annotations

from math import isfinite

from ingest.model import Event, Kline
from ingest.sinks.base import fault
from marketdata.schema import (
    MEASUREMENTS,
    MINUTE_MS,
    FundingRate,
    FundingSettled,
    LastPrice,
    Mark3m,
    MarkPrice,
    Row,
)

MEASUREMENT_OF = {
    MarkPrice: "mark_price",
    FundingRate: "funding_rate",
    LastPrice: "last_price",
    Mark3m: "mark_3m",
    FundingSettled: "funding_settled",
}


def assert_sound(event: Event | Row, latest_ms: float) -> None:
    """No store and no reader could stumble over it, and it isn't of the future."""
    if isinstance(event, Kline):
        assert_sound_minute(event, latest_ms)
        return
    assert fault(MEASUREMENTS[MEASUREMENT_OF[type(event)]], event) is None
    assert 0 < event.time <= latest_ms
    if isinstance(event, MarkPrice):
        assert event.mark_price > 0
        assert event.index_price is None or event.index_price > 0
    elif isinstance(event, LastPrice):
        assert event.price > 0
    elif isinstance(event, FundingRate):
        assert event.next_funding_ms is None or event.next_funding_ms > 0
        assert event.interval_hours is None or event.interval_hours > 0
    elif isinstance(event, Mark3m):
        assert min(event.open, event.high, event.low, event.close) > 0


def assert_sound_minute(kline: Kline, latest_ms: float) -> None:
    """The same for a minute."""
    prices = kline.open, kline.high, kline.low, kline.close
    assert all(isfinite(price) and price > 0 for price in prices)
    for volume in (kline.volume, kline.quote_volume):
        assert volume is None or (volume >= 0 and isfinite(float(volume)))
    assert kline.minute_ms > 0
    assert kline.minute_ms % MINUTE_MS == 0
    assert kline.minute_ms <= kline.event_ms + MINUTE_MS
    assert 0 < kline.event_ms <= latest_ms
    assert kline.trades is None or (type(kline.trades) is int and 0 <= kline.trades < 2**53)
