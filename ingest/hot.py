"""The newest values of every pair, and which of them have changed since they were last published.

Latest wins, by the exchange's time: a message that comes late never replaces a newer value.
"""

from __future__ import annotations

from collections.abc import Iterable

from ingest.model import Event, Kline
from marketdata.schema import FundingRate, Last, LastPrice, MarkPrice

PairKey = tuple[str, str]
_EMPTY = dict.fromkeys(Last._fields[2:])


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
        self._values: dict[PairKey, dict[str, float | int | None]] = {}
        self._subscribers: list[set[PairKey]] = []

    def subscribe(self) -> set[PairKey]:
        """A set that collects the pairs that change; its owner empties it through `take`."""
        changed: set[PairKey] = set(self._values)
        self._subscribers.append(changed)
        return changed

    def put(self, event: Event, received_ms: int) -> None:
        """Take in one event of a stream."""
        key = (event.exchange, event.symbol)
        values = self._values.get(key)
        if values is None:
            values = self._values[key] = _EMPTY | {"seq": 0}
        if not _update(values, event):
            return
        values["received_ms"] = received_ms
        values["seq"] = (values["seq"] or 0) + 1
        for changed in self._subscribers:
            changed.add(key)

    def take(self, changed: set[PairKey]) -> list[Last]:
        """The newest values of the pairs that have changed; empties `changed`."""
        lasts = [self._last(key) for key in changed if key in self._values]
        changed.clear()
        return lasts

    def forget(self, keys: Iterable[PairKey]) -> None:
        """Drop pairs that are no longer collected."""
        for key in keys:
            self._values.pop(key, None)

    def get(self, key: PairKey) -> Last | None:
        """The newest values of one pair."""
        return self._last(key) if key in self._values else None

    def _last(self, key: PairKey) -> Last:
        return Last(*key, *self._values[key].values())  # type: ignore[arg-type]


def _update(values: dict[str, float | int | None], event: Event) -> bool:
    if isinstance(event, Kline):
        if event.event_ms < (values["candle_event_ms"] or 0):
            return False
        values["minute_ms"] = event.minute_ms
        values["open"] = event.open
        values["high"] = event.high
        values["low"] = event.low
        values["close"] = event.close
        values["volume"] = float(event.volume)
        values["quote_volume"] = None if event.quote_volume is None else float(event.quote_volume)
        values["trades"] = event.trades
        values["candle_event_ms"] = event.event_ms
    elif isinstance(event, MarkPrice):
        if event.time < (values["mark_event_ms"] or 0):
            return False
        values["mark_price"] = event.mark_price
        values["index_price"] = event.index_price
        values["mark_event_ms"] = event.time
    elif isinstance(event, FundingRate):
        if event.time < (values["funding_event_ms"] or 0):
            return False
        values["funding_rate"] = event.rate
        values["predicted_rate"] = event.predicted_rate
        values["next_funding_ms"] = event.next_funding_ms
        values["interval_hours"] = event.interval_hours
        values["funding_event_ms"] = event.time
    elif isinstance(event, LastPrice):
        if event.time < (values["price_event_ms"] or 0):
            return False
        values["price"] = event.price
        values["price_event_ms"] = event.time
    return True
