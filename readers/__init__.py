"""Market data for bots, optimizers and scripts, out of what the service collects.

    from readers import get_ohlcv, get_funding_rate
    df = get_ohlcv("BTC/USDT:USDT", "3m", limit=200)

The functions are the methods of one `MarketData` that is configured by `MARKETDATA_CONFIG` and
connects when it is first asked; importing this package does neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from marketdata.errors import (
    ConfigError,
    MarketDataError,
    StaleData,
    StoreRefused,
    StoreUnavailable,
    UnknownPair,
)

if TYPE_CHECKING:
    from readers.client import MarketData

    _shared = MarketData()
    get_ohlcv = _shared.get_ohlcv
    get_history = _shared.get_history
    get_funding_rate = _shared.get_funding_rate
    get_funding_rate_history = _shared.get_funding_rate_history
    get_all_funding_rates = _shared.get_all_funding_rates
    get_mark_price = _shared.get_mark_price
    get_last_price = _shared.get_last_price

__all__ = [
    "ConfigError",
    "MarketData",
    "MarketDataError",
    "StaleData",
    "StoreRefused",
    "StoreUnavailable",
    "UnknownPair",
    "get_all_funding_rates",
    "get_funding_rate",
    "get_funding_rate_history",
    "get_history",
    "get_last_price",
    "get_mark_price",
    "get_ohlcv",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "MarketData":
        from readers.client import MarketData

        return MarketData
    from readers.shared import shared

    return getattr(shared(), name)
