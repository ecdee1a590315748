"""The newest values of every pair, and which of them have changed since they were last published.

Latest wins, by the exchange's time: a message that comes late never replaces a newer value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ingest.model import Event, Kline
from marketdata.schema import FundingRate, Last, LastPrice, MarkPrice

PairKey = tuple[str, str]


@dataclass(slots=True)
class _Newest:
    """The newest event of each kind of one pair."""

    kline: Kline | None = None
    mark: MarkPrice | None = None
    funding: FundingRate | None = None
    price: LastPrice | None = None
    received_ms: int = 0
    seq: int = 0

    def put(self, event: Event) -> bool:
        """Take in an event; False if a newer one is known."""
        if isinstance(event, Kline):
            if self.kline is not None and event.event_ms < self.kline.event_ms:
                return False
            self.kline = event
        elif isinstance(event, MarkPrice):
            if self.mark is not None and event.time < self.mark.time:
                return False
            self.mark = event
        elif isinstance(event, FundingRate):
            if self.funding is not None and event.time < self.funding.time:
                return False
            self.funding = event
        else:
            if self.price is not None and event.time < self.price.time:
                return False
            self.price = event
        return True

    def last(self, key: PairKey) -> Last:
        """The same as the columns that readers know."""
        last = Last(*key, received_ms=self.received_ms, seq=self.seq)
        if self.mark is not None:
            last = last._replace(
                mark_price=self.mark.mark_price,
                index_price=self.mark.index_price,
                mark_event_ms=self.mark.time,
            )
        if self.funding is not None:
            last = last._replace(
                funding_rate=self.funding.rate,
                predicted_rate=self.funding.predicted_rate,
                next_funding_ms=self.funding.next_funding_ms,
                interval_hours=self.funding.interval_hours,
                funding_event_ms=self.funding.time,
            )
        if self.price is not None:
            last = last._replace(price=self.price.price, price_event_ms=self.price.time)
        if self.kline is not None:
            kline = self.kline
            last = last._replace(
                minute_ms=kline.minute_ms,
                open=kline.open,
                high=kline.high,
                low=kline.low,
                close=kline.close,
                volume=float(kline.volume),
                quote_volume=None if kline.quote_volume is None else float(kline.quote_volume),
                trades=kline.trades,
                candle_event_ms=kline.event_ms,
            )
        return last


class HotState:
    """Newest values by pair, in the columns of `marketdata.schema.Last`.

    >>> hot = HotState()
    >>> changed = hot.subscribe()
    >>> hot.put(MarkPrice("X", "A/B:B", 2_000, 5.0, None), received_ms=2_100)
    >>> hot.put(MarkPrice("X", "A/B:B", 1_000, 4.0, None), received_ms=2_200)
    >>> [(last.symbol, last.mark_price) for last in hot.take(changed)]
    [('A/B:B', 5.0)]
    >>> hot.take(changed)
    []
    """

    def __init__(self) -> None:
        self._newest: dict[PairKey, _Newest] = {}
        self._subscribers: list[set[PairKey]] = []

    def subscribe(self) -> set[PairKey]:
        """A set that collects the pairs that change; its owner empties it through `take`."""
        changed = set(self._newest)
        self._subscribers.append(changed)
        return changed

    def put(self, event: Event, received_ms: int) -> None:
        """Take in one event of a stream; runs a thousand times a second."""
        key = (event.exchange, event.symbol)
        newest = self._newest.get(key)
        if newest is None:
            newest = self._newest[key] = _Newest()
        if newest.put(event):
            newest.received_ms = received_ms
            newest.seq += 1
            for changed in self._subscribers:
                changed.add(key)

    def keys(self) -> set[PairKey]:
        """The pairs of which anything is known."""
        return set(self._newest)

    def take(self, changed: set[PairKey]) -> list[Last]:
        """The newest values of the pairs that have changed; empties `changed`."""
        lasts = [self._newest[key].last(key) for key in changed if key in self._newest]
        changed.clear()
        return lasts

    def forget(self, keys: Iterable[PairKey]) -> None:
        """Drop pairs that are no longer collected."""
        for key in keys:
            self._newest.pop(key, None)

    def get(self, key: PairKey) -> Last | None:
        """The newest values of one pair."""
        newest = self._newest.get(key)
        return None if newest is None else newest.last(key)
