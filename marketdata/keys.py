"""Every Redis key and its lifetime.

A key's lifetime is how long a consumer may still find it after the service has stopped: what is
not renewed is not fresh.
"""

from __future__ import annotations

from marketdata.deadlines import DEADLINE_MS

LAST_TTL_MS = max(DEADLINE_MS.values())
"""The longest of a pair's deadlines."""
CANDLES_KEPT = 1_000
CANDLES_TTL_MS = 2 * 86_400_000
BOOK_TTL_MS = 10_000
HEALTH_TTL_MS = 30_000
HEALTH_HELD_MS = 15_000
"""How long another collector's word on an exchange can't be replaced by a worse one: three of the
periods in which it is renewed."""
STREAM_KEPT_MS = 3_600_000
WRITER_TTL_MS = STREAM_KEPT_MS
"""Without the memory of its writer a Redis counts as emptied; older entries are cut anyway."""

WANTED_BOOK = "md:wanted:book"
STREAM_OHLCV_3M = "md:stream:ohlcv_3m"
STREAM_PRICE = "md:stream:price"
STREAM_HEALTH = "md:stream:health"
STREAMS = (STREAM_OHLCV_3M, STREAM_PRICE, STREAM_HEALTH)


def last(exchange: str, symbol: str) -> str:
    """The hash of a pair's newest values.

    >>> last("BINANCE_FUTURES", "BTC/USDT:USDT")
    'md:last:BINANCE_FUTURES:BTC/USDT:USDT'
    """
    return f"md:last:{exchange}:{symbol}"


def candles(exchange: str, symbol: str) -> str:
    """The sorted set of a pair's newest closed 3-minute candles, scored by open time."""
    return f"md:ohlcv_3m:{exchange}:{symbol}"


def book(exchange: str, symbol: str) -> str:
    """The top of a pair's order book, as JSON."""
    return f"md:book:{exchange}:{symbol}"


def health(exchange: str) -> str:
    """The hash of an exchange's states: the whole, its connections, and what isn't live."""
    return f"md:health:{exchange}"


def speaker(exchange: str) -> str:
    """Which collector's word the hash of an exchange's states is."""
    return f"md:speaker:{exchange}"


def writer(writer: str) -> str:
    """What Redis remembers of a writer: how often it came, and its newest entry of health."""
    return f"md:writer:{writer}"
