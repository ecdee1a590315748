"""Bybit's tickers: what a snapshot and the deltas after it say about marks, funding, last price.

A delta leaves out what hasn't changed. It thereby says that it is still so, and an unchanged value
is emitted again after a while, at the delta's time: its age is then that of the exchange's word.

Source: https://bybit-exchange.github.io/docs/v5/websocket/public/ticker
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from ingest.exchanges import base
from marketdata.errors import BadMessage
from marketdata.schema import Channel, FundingRate, LastPrice, MarkPrice

ID = "BYBIT"

RESTATE_MS = 5_000
"""How long an unchanged value stays unsaid."""

_FIELDS: Mapping[Channel, frozenset[str]] = {
    "funding": frozenset({"funding_rate", "next_funding_time", "funding_interval_hour"}),
    "mark_price": frozenset({"mark_price", "index_price"}),
    "last_price": frozenset({"last_price"}),
}
_MAIN_FIELD: Mapping[Channel, str] = {
    "funding": "funding_rate",
    "mark_price": "mark_price",
    "last_price": "last_price",
}


class TickerUpdate(Struct, rename="camel"):
    """`data` of a ticker message: None is unchanged, an empty text is no value."""

    symbol: str = ""
    funding_rate: str | None = None
    next_funding_time: str | None = None
    funding_interval_hour: str | None = None
    mark_price: str | None = None
    index_price: str | None = None
    last_price: str | None = None


def _price(text: str) -> float:
    value = base.optional_price(text)
    if value is None:
        raise BadMessage(f"{text!r} is no price")
    return value


_PARSE: Mapping[str, Callable[[str], float | None]] = {
    "funding_rate": base.rate,
    "next_funding_time": base.optional_price,
    "funding_interval_hour": base.optional_price,
    "mark_price": _price,
    "index_price": base.optional_price,
    "last_price": _price,
}
Tick = FundingRate | MarkPrice | LastPrice


class Ticker:
    """One market's ticker on one connection: a snapshot, and what deltas have changed since.

    >>> ticker = Ticker(("mark_price",))
    >>> def marks(kind, event_ms, **changes):
    ...     ticks = ticker.apply("B/USDT:USDT", kind, TickerUpdate(**changes), event_ms, 8.0)
    ...     return [(mark.time, mark.mark_price, mark.index_price) for _, mark in ticks]
    >>> marks("delta", 1, mark_price="4")
    []
    >>> marks("snapshot", 2, mark_price="5", index_price="6")
    [(2, 5.0, 6.0)]
    >>> marks("delta", 3, mark_price="7"), marks("delta", 4, last_price="1")
    ([(3, 7.0, 6.0)], [])
    """

    def __init__(self, channels: Sequence[str]) -> None:
        self._channels = [channel for channel in _FIELDS if channel in channels]
        self._values: dict[str, float | None] | None = None
        self._said_ms = dict.fromkeys(self._channels, 0)

    def apply(
        self,
        pair: str,
        kind: str,
        update: TickerUpdate,
        event_ms: int,
        interval_hours: float | None,
    ) -> list[tuple[Channel, Tick]]:
        """The ticks that a message gives.

        Parameters
        ----------
        pair
            What the market is called now; the exchange's id stays, our name for it may not.
        interval_hours
            Of its funding, for a message that doesn't name them.
        """
        # Parsed before anything is kept: a bad message leaves no trace.
        if kind not in ("snapshot", "delta"):
            raise BadMessage(f"a ticker of type {kind!r}")
        changes = {
            name: parse(text) if text else None
            for name, parse in _PARSE.items()
            if (text := getattr(update, name)) is not None
        }
        if kind == "snapshot":
            self._values = dict.fromkeys(_PARSE) | changes
        elif self._values is None:
            return []
        else:
            self._values.update(changes)
        ticks: list[tuple[Channel, Tick]] = []
        for channel in self._channels:
            unsaid_ms = event_ms - self._said_ms[channel]
            if unsaid_ms < RESTATE_MS and _FIELDS[channel].isdisjoint(changes):
                continue
            tick = self._tick(pair, channel, self._values, event_ms, interval_hours)
            if tick is not None:
                self._said_ms[channel] = event_ms
                ticks.append((channel, tick))
        return ticks

    @staticmethod
    def _tick(
        pair: str,
        channel: Channel,
        values: Mapping[str, float | None],
        event_ms: int,
        interval_hours: float | None,
    ) -> Tick | None:
        value = values[_MAIN_FIELD[channel]]
        if value is None:
            return None
        if channel == "mark_price":
            return MarkPrice(ID, pair, event_ms, value, values["index_price"])
        if channel == "last_price":
            return LastPrice(ID, pair, event_ms, value)
        next_ms = values["next_funding_time"]
        return FundingRate(
            ID,
            pair,
            event_ms,
            value,
            None,
            None if next_ms is None else int(next_ms),
            values["funding_interval_hour"] or interval_hours,
        )
