"""What each exchange can give: the channels that a configuration may ask it for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from marketdata.schema import Channel

CHANNELS_OF: Mapping[str, tuple[Channel, ...]] = {
    "BINANCE_FUTURES": ("candles", "funding", "mark_price", "last_price"),
    # Funding and marks on its perpetuals; its spot pairs have candles and last prices.
    "BYBIT": ("candles", "funding", "mark_price", "last_price"),
}
"""Channels by exchange id (cryptofeed's)."""


def channels_of(exchange: str) -> tuple[Channel, ...]:
    """The channels of an exchange; all there are, where the exchange isn't known."""
    return CHANNELS_OF.get(exchange, get_args(Channel))
