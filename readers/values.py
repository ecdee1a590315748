"""Single values with what is known about them: what `with_source=True` returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from marketdata.errors import StaleData
from marketdata.schema import Last, State
from readers.deadlines import MaxAge, stale, value_deadline_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What every value tells.

    Attributes
    ----------
    event_ms, age_ms
        The exchange's time of the value (UTC), and how long ago that was when it was handed out,
        by the exchange's clock where the difference to ours is known.
    source
        `cache` (this process), `redis`, `sqlite` or `influxdb`.
    deadline_ms
        The age from which on it counts as stale, for a value of this kind and from there.
    """

    channel: ClassVar[str]
    name: ClassVar[str]

    exchange: str
    pair: str
    event_ms: int
    age_ms: int = 0
    source: str
    deadline_ms: int

    @classmethod
    def of(cls, last: Last, source: str, *, hot: bool) -> Self | None:
        """The value out of a pair's newest values, if there is one."""
        raise NotImplementedError

    def at(self, exchange_ms: int) -> Self:
        """The same, with its age at an instant of the exchange's clock."""
        return replace(self, age_ms=max(0, exchange_ms - self.event_ms))

    def is_fresh(self, exchange_ms: int) -> bool:
        """Whether it is within its deadline."""
        return exchange_ms - self.event_ms <= self.deadline_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Funding(Reading):
    """What the exchange shows for the upcoming settlement.

    Attributes
    ----------
    rate
        Fraction of the position's value per interval: at 0.0001 longs pay shorts one basis point.
    predicted_rate
        A separate prediction, where the exchange gives one.
    next_funding_ms, interval_hours
        When the rate is settled, and how often that happens.
    """

    channel = "funding"
    name = "funding rate"

    rate: float
    predicted_rate: float | None
    next_funding_ms: int | None
    interval_hours: float | None

    @classmethod
    def of(cls, last: Last, source: str, *, hot: bool) -> Self | None:
        if last.funding_rate is None or last.funding_event_ms is None:
            return None
        return cls(
            exchange=last.exchange,
            pair=last.symbol,
            event_ms=last.funding_event_ms,
            source=source,
            deadline_ms=value_deadline_ms(cls.channel, hot=hot),
            rate=last.funding_rate,
            predicted_rate=last.predicted_rate,
            next_funding_ms=last.next_funding_ms,
            interval_hours=last.interval_hours,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark(Reading):
    """The mark price, and the index price where the exchange gives one."""

    channel = "mark_price"
    name = "mark price"

    price: float
    index_price: float | None

    @classmethod
    def of(cls, last: Last, source: str, *, hot: bool) -> Self | None:
        if last.mark_price is None or last.mark_event_ms is None:
            return None
        return cls(
            exchange=last.exchange,
            pair=last.symbol,
            event_ms=last.mark_event_ms,
            source=source,
            deadline_ms=value_deadline_ms(cls.channel, hot=hot),
            price=last.mark_price,
            index_price=last.index_price,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LastTrade(Reading):
    """The price of the last trade: as such, or as the close of the forming minute."""

    channel = "last_price"
    name = "last price"

    price: float

    @classmethod
    def of(cls, last: Last, source: str, *, hot: bool) -> Self | None:
        """The newer of the two.

        >>> LastTrade.of(Last("X", "A/B:B", price=5.0, price_event_ms=1), "redis", hot=True).price
        5.0
        >>> last = Last("X", "A/B:B", price=5.0, price_event_ms=1, close=6.0, candle_event_ms=2)
        >>> LastTrade.of(last, "redis", hot=True).price
        6.0
        """
        stated = [(last.price_event_ms, last.price), (last.candle_event_ms, last.close)]
        known = [(event_ms, price) for event_ms, price in stated if event_ms and price is not None]
        if not known:
            return None
        event_ms, price = max(known)
        return cls(
            exchange=last.exchange,
            pair=last.symbol,
            event_ms=event_ms,
            source=source,
            deadline_ms=value_deadline_ms(cls.channel, hot=hot),
            price=price,
        )


def stale_value(
    kind: type[Reading], what: str, reading: Reading | None, max_age: MaxAge, state: State
) -> StaleData:
    """The error for a reading (with its age) that is too old, or that there is none of."""
    if reading is None:
        return stale(what, None, max_age, value_deadline_ms(kind.channel, hot=True), state)
    return stale(what, reading.age_ms, max_age, reading.deadline_ms, state)
