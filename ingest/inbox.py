"""The bounded queue between the feeds and everything behind them.

Policy: the oldest goes first, but ticks and forming minutes go before closed minutes, since those
have to be fetched again while a newer tick replaces a lost one. Every loss is counted by channel.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from operator import itemgetter

from ingest.model import Event, Kline
from marketdata.schema import Channel, FundingRate, LastPrice, MarkPrice

CAPACITY = 50_000
"""Half a minute of 164 pairs at their busiest."""

_CHANNEL: dict[type, Channel] = {
    Kline: "candles",
    FundingRate: "funding",
    MarkPrice: "mark_price",
    LastPrice: "last_price",
}
_Item = tuple[int, Event, int]
"""Number of arrival, event, time of receipt."""


class Inbox:
    """Events in the order of arrival, each with its time of receipt; one consumer.

    `dropped` counts lost events by channel.

    >>> inbox = Inbox(capacity=1)
    >>> inbox.put(LastPrice("X", "A/B", 1, 5.0), received_ms=2)
    >>> inbox.put(LastPrice("X", "A/B", 3, 6.0), received_ms=4)
    >>> [event.price for event, received_ms in inbox.drain()], dict(inbox.dropped)
    ([6.0], {'last_price': 1})
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.dropped: Counter[str] = Counter()
        self._capacity = capacity
        self._minutes: deque[_Item] = deque()
        self._ticks: deque[_Item] = deque()
        self._arrivals = itertools.count()
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        return len(self._minutes) + len(self._ticks)

    def put(self, event: Event, received_ms: int) -> None:
        """Take in an event; never waits."""
        closed_minute = isinstance(event, Kline) and event.closed
        queue = self._minutes if closed_minute else self._ticks
        queue.append((next(self._arrivals), event, received_ms))
        if len(self._minutes) + len(self._ticks) > self._capacity:
            _, lost, _ = (self._ticks or self._minutes).popleft()
            self.dropped[_CHANNEL[type(lost)]] += 1
        self._filled.set()

    async def wait(self) -> None:
        """Until there is something to drain."""
        await self._filled.wait()

    def drain(self) -> list[tuple[Event, int]]:
        """Everything that is there, oldest first."""
        arrived = sorted((*self._minutes, *self._ticks), key=itemgetter(0))
        self._minutes.clear()
        self._ticks.clear()
        self._filled.clear()
        return [(event, received_ms) for _, event, received_ms in arrived]
