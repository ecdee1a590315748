"""Thinning of ticks (funding, mark and last prices) before they are stored; no clock.

At most one tick a window of event time and pair is stored: the newest in it, with its own event
time. A value that hasn't changed waits until it was last stored a minute ago.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from marketdata.schema import MINUTE_MS, FundingRate, LastPrice, MarkPrice

Tick = FundingRate | MarkPrice | LastPrice

_Key = tuple[type, str, str]


@dataclass(slots=True)
class Thinner:
    """Keeps the newest tick of each open window until the window is over.

    Parameters
    ----------
    every_ms
        Length of a window; windows start at multiples of it.
    repeat_ms
        An unchanged value is stored again after this long.

    >>> thinner = Thinner(every_ms=1_000)
    >>> a = MarkPrice("X", "A/B:B", 1_100, 5.0, None)
    >>> b = MarkPrice("X", "A/B:B", 1_900, 6.0, None)
    >>> thinner.put(a), thinner.put(b)
    ([], [])
    >>> [tick.time for tick in thinner.due(2_000)]
    [1900]
    """

    every_ms: int
    repeat_ms: int = MINUTE_MS
    waiting: dict[_Key, Tick] = field(default_factory=dict)
    stored: dict[_Key, Tick] = field(default_factory=dict)

    def put(self, tick: Tick) -> list[Tick]:
        """Take in a tick; return the one that its arrival makes due, if any.

        A tick of an earlier window than the one waiting is late: its window has been stored, so
        it counts as superseded.
        """
        key = (type(tick), tick.exchange, tick.symbol)
        waiting = self.waiting.get(key)
        if waiting is None:
            self.waiting[key] = tick
            return []
        if tick.time < waiting.time:
            return []
        self.waiting[key] = tick
        return self._changed(key, waiting) if self._window(waiting) != self._window(tick) else []

    def due(self, now_ms: int) -> list[Tick]:
        """The waiting ticks whose windows are over at `now_ms`."""
        over = [key for key, tick in self.waiting.items() if self._ends_ms(tick) <= now_ms]
        return self._release(over)

    def rest(self) -> list[Tick]:
        """Whatever still waits, for a service that stops."""
        return self._release(list(self.waiting))

    def _release(self, keys: Iterable[_Key]) -> list[Tick]:
        released: list[Tick] = []
        for key in keys:
            released += self._changed(key, self.waiting.pop(key))
        return released

    def _changed(self, key: _Key, tick: Tick) -> list[Tick]:
        stored = self.stored.get(key)
        if stored is not None:
            if tick.time <= stored.time or self._window(tick) == self._window(stored):
                return []
            if tick[3:] == stored[3:] and tick.time - stored.time < self.repeat_ms:
                return []
        self.stored[key] = tick
        return [tick]

    def _window(self, tick: Tick) -> int:
        return tick.time // self.every_ms

    def _ends_ms(self, tick: Tick) -> int:
        return (self._window(tick) + 1) * self.every_ms
