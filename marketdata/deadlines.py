"""How old a channel's newest event may be: one table for the service, which judges, and readers.

Ages are counted from the exchange's event time, by the exchange's clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEADLINE_MS: Final[Mapping[str, int]] = {
    "candles": 90_000,
    "funding": 120_000,
    "mark_price": 10_000,
    "last_price": 90_000,
}
"""A mark price comes each second, a pair's funding is repeated at least once a minute; a trade, and
with it the minute that is forming, may let a minute pass."""
