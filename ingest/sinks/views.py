"""Views: more Redis keys by template, so that other bots find the layout that they know. Pure.

A view shows one channel, and only that channel's news renew its lifetime. What it says of other
channels is left out once it is older than the view may live: a key that exists is fresh in all.

Placeholders of a key: {exchange} {symbol} {id} {base} {quote}, where {id} is the exchange's own
name. Of a field: those, {event_ms} (the shown channel's) and any column of `schema.Last`. {price}
is the last price; where that channel isn't collected, the forming candle's close.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from marketdata.pairs import Market
from marketdata.schema import Channel, Last

NAMES = ("exchange", "symbol", "id", "base", "quote")

CHANNEL_COLUMNS: Mapping[Channel, tuple[str, ...]] = {
    "candles": (
        "candle_event_ms",
        *("minute_ms", "open", "high", "low", "close", "volume", "quote_volume", "trades"),
    ),
    "funding": (
        "funding_event_ms",
        *("funding_rate", "predicted_rate", "next_funding_ms", "interval_hours"),
    ),
    "mark_price": ("mark_event_ms", "mark_price", "index_price"),
    "last_price": ("price_event_ms", "price"),
}
"""The columns of each channel; the first is the time of its event."""


@dataclass(frozen=True, slots=True)
class View:
    """One kind of key: for which markets, what it shows, how long it lives.

    `where` holds what a market has to match, by names of `marketdata.pairs.Market`: a key that
    doesn't name exchange or quote must not get the values of two markets in turn.
    """

    key: str
    channel: Channel
    fields: Mapping[str, str]
    ttl_ms: int
    where: Mapping[str, str] = field(default_factory=dict)

    @property
    def time_field(self) -> str:
        """The field that shows the time of the event: by it a newer one is told from an older."""
        return next(name for name, template in self.fields.items() if template == "{event_ms}")

    def __post_init__(self) -> None:
        _check(self.key, NAMES)
        for template in self.fields.values():
            _check(template, (*NAMES, "event_ms", *Last._fields[2:]))
        if "{event_ms}" not in self.fields.values():
            raise ValueError(f"no field of {self.key!r} is '{{event_ms}}', the time of its event")

    def key_for(self, market: Market) -> str | None:
        """The key of a market, None where the view isn't about it."""
        if any(str(getattr(market, name)) != wanted for name, wanted in self.where.items()):
            return None
        return self.key.format(**_names(market))


@dataclass(frozen=True, slots=True)
class Shown:
    """What a view shows of a pair at one time; `channel` is what its price comes from."""

    channel: Channel
    event_ms: int
    fields: Mapping[str, str]


def show(view: View, market: Market, last: Last) -> Shown | None:
    """What `view` shows of `last`; None while there is nothing of its channel.

    >>> fields = {"ltp": "{price}", "mark": "{mark_price}", "time": "{event_ms}"}
    >>> view = View("ltp:{id}", "last_price", fields, 10_000)
    >>> market = Market("X", "spot", "AB", "A/B", "A", "B", None, None, True, None, None)
    >>> last = Last("X", "A/B", price=5.0, price_event_ms=20_000, mark_price=6.0, mark_event_ms=1)
    >>> show(view, market, last)
    Shown(channel='last_price', event_ms=20000, fields={'ltp': '5.0', 'time': '20000'})
    """
    values: dict[str, float | int | None] = dict(zip(last._fields[2:], last[2:], strict=True))
    channel = view.channel
    if last.price_event_ms is None:
        values |= {"price": last.close, "price_event_ms": last.candle_event_ms}
        channel = "candles" if channel == "last_price" else channel
    event_ms = values[CHANNEL_COLUMNS[view.channel][0]]
    if event_ms is None:
        return None
    for columns in CHANNEL_COLUMNS.values():
        other_ms = values[columns[0]]
        if other_ms is None or other_ms < event_ms - view.ttl_ms:
            values.update(dict.fromkeys(columns))
    known: dict[str, object] = {**_names(market), "event_ms": event_ms}
    known |= {name: value for name, value in values.items() if value is not None}
    fields = {
        name: template.format(**known)
        for name, template in view.fields.items()
        if all(used in known for used in _placeholders(template))
    }
    return Shown(channel, int(event_ms), fields)


def _names(market: Market) -> dict[str, str]:
    return {
        "exchange": market.exchange,
        "symbol": market.pair,
        "id": market.id,
        "base": market.base,
        "quote": market.quote,
    }


@cache
def _placeholders(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _check(template: str, valid: tuple[str, ...]) -> None:
    unknown = sorted(set(_placeholders(template)) - set(valid))
    if unknown:
        raise ValueError(f"{template!r} names {', '.join(unknown)}; valid: {', '.join(valid)}")


_QUANTUM = {
    "symbol": "{id}",
    "price": "{price}",
    "markPrice": "{mark_price}",
    "timestamp": "{event_ms}",
}
_TICKER = {"ltp": "{price}", "timestamp": "{event_ms}", "original_symbol": "{id}"}

PRESETS: Mapping[str, tuple[View, ...]] = {
    "quantum": (
        View(
            "quantum:ticker:{id}",
            "last_price",
            _QUANTUM,
            10_000,
            {"exchange": "BINANCE_FUTURES"},
        ),
        View(
            "quantum:market:{id}",
            "mark_price",
            _QUANTUM,
            10_000,
            {"exchange": "BINANCE_FUTURES"},
        ),
    ),
    "bybit_spot": (
        View(
            "bybit_spot:{base}",
            "last_price",
            _TICKER,
            3_600_000,
            {"exchange": "BYBIT", "kind": "spot", "quote": "USDT"},
        ),
    ),
    "coindcx_futures": (
        View(
            "coindcx_futures:{base}",
            "last_price",
            {
                **_TICKER,
                "current_funding_rate": "{funding_rate}",
                "estimated_funding_rate": "{predicted_rate}",
                "funding_timestamp": "{funding_event_ms}",
            },
            3_600_000,
            {"exchange": "COINDCX_FUTURES", "kind": "perpetual", "quote": "USDT"},
        ),
    ),
}
"""The views that `redis.views` names; times in them are milliseconds."""
