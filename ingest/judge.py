"""States of an exchange's channels, and what of their ticks is missing: told each second. Pure.

The same code runs live and in replay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ingest.freshness import TRADED, Change, Freshness
from ingest.gaps import Key, Outages
from ingest.model import Event, Kline
from marketdata.deadlines import DEADLINE_MS
from marketdata.schema import FundingRate, LastPrice, MarkPrice

DOWN = ("late", "disconnected", "venue_down")

_CHANNEL = {
    Kline: "candles",
    FundingRate: "funding",
    MarkPrice: "mark_price",
    LastPrice: "last_price",
}


class Judge:
    """Judges one exchange by its events, its connections and the time."""

    def __init__(self, exchange: str, freshness: Freshness) -> None:
        self.freshness = freshness
        self.outages = Outages()
        self._exchange = exchange
        self._price: dict[str, float] = {}

    def follow(self, channels: Mapping[str, Collection[str]], now_ms: int) -> None:
        """Judge these pairs' channels from now on, and no others."""
        self.freshness.follow(channels, now_ms)
        self._price = {pair: price for pair, price in self._price.items() if pair in channels}
        keys = {(self._exchange, pair, name) for pair, some in channels.items() for name in some}
        self.outages.keep(keys, now_ms)

    def observe(self, event: Event, received_ms: int) -> None:
        """An event has come."""
        event_ms = event.event_ms if isinstance(event, Kline) else event.time
        channel = _CHANNEL[type(event)]
        self.freshness.event(event.symbol, channel, event_ms, received_ms)
        if isinstance(event, LastPrice):
            self._price[event.symbol] = event.price
        elif isinstance(event, Kline) and event.close == self._price.get(event.symbol):
            self.freshness.confirm_price(event.symbol, event_ms)

    def look(self, now_ms: int) -> list[Change]:
        """Judge everything now; what has changed."""
        changes = self.freshness.tick(now_ms)
        self._enter_outages(changes, now_ms)
        return changes

    def resume_after_restart(self, key: Key, newest_ms: int, started_ms: int) -> None:
        """The newest tick that an earlier run has stored; what lies between is missing."""
        if started_ms - newest_ms > DEADLINE_MS[key[2]]:
            self.outages.begin(key, newest_ms + 1, "restart", started_ms)
            event_ms = self.freshness.event_ms(key[1], key[2])
            if event_ms is not None:
                self.outages.resume(key, event_ms)

    def _enter_outages(self, changes: Sequence[Change], now_ms: int) -> None:
        for change in changes:
            if change.channel in TRADED:
                continue  # candles are counted in minutes; last prices have no rhythm
            key = (self._exchange, change.pair, change.channel)
            if change.new in DOWN and change.event_ms is not None:
                reason = self.freshness.reason(change.pair, change.channel, change.event_ms)
                self.outages.begin(key, change.event_ms + 1, reason, now_ms)
            elif change.new == "live" and change.event_ms is not None:
                self.outages.resume(key, change.event_ms)
