"""How old a value may be before it is not handed out as fresh.

The hot values (Redis, SQLite's table `last`) follow every message of the exchange, so the channels'
own deadlines are theirs. The ticks stored in InfluxDB don't: an unchanged value is written again
only once a minute, so a value from there gets that minute on top. A candle's age is counted from
its close.
"""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import Final

from marketdata.deadlines import DEADLINE_MS
from marketdata.errors import StaleData
from marketdata.schema import State

TICK_REPEAT_MS: Final = 60_000
CANDLE_GRACE_MS: Final = 30_000
"""What the newest candle may take from its close to the store, with a minute fetched by REST."""
QUIET_MS: Final = 600_000
"""What candles of a pair in which nothing is traded may be late: the minutes that the exchange
confirms as empty are stored as well, at latest when the budget of REST allows to ask."""


class Deadline(Enum):
    """What `max_age` is when the caller leaves it out: the deadline of this module."""

    OF_CHANNEL = "the channel's own deadline"


MaxAge = float | None | Deadline
"""Seconds, None for any age, or the channel's own deadline."""


def value_deadline_ms(channel: str, *, hot: bool) -> int:
    """Deadline of a funding rate, mark or last price.

    >>> value_deadline_ms("mark_price", hot=True), value_deadline_ms("mark_price", hot=False)
    (10000, 70000)
    """
    return DEADLINE_MS[channel] + (0 if hot else TICK_REPEAT_MS)


def candle_deadline_ms(base_ms: int) -> int:
    """Deadline of the newest candle that a timeframe is made of.

    >>> candle_deadline_ms(180_000)
    210000
    """
    return base_ms + CANDLE_GRACE_MS


def allowed_ms(max_age: MaxAge, deadline_ms: int) -> float:
    """The largest age that a value may have.

    >>> allowed_ms(2.5, 10_000), allowed_ms(Deadline.OF_CHANNEL, 10_000), allowed_ms(None, 10_000)
    (2500.0, 10000, inf)
    """
    if max_age is None:
        return inf
    return deadline_ms if isinstance(max_age, Deadline) else max_age * 1000


def stale(
    what: str, age_ms: int | None, max_age: MaxAge, deadline_ms: int, state: State
) -> StaleData:
    """The error for a value that is too old, or that there is none of (`age_ms` None).

    One that is `live` by its deadline is `late` by the caller's own.
    """
    limit_ms = deadline_ms if max_age is None else int(allowed_ms(max_age, deadline_ms))
    shown = "late" if state == "live" else state
    return StaleData(what, age_ms=age_ms, max_age_ms=limit_ms, state=shown)
