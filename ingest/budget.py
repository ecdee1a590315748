"""How much may be asked of an exchange, and when: pure bookkeeping, time passed in.

An exchange counts weight by the caller's address, so everything that calls one address shares one
`WeightBudget` per limit; `Budgets` hands them out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

EDGE_MS = 2_000
"""How far an exchange may count a request from when it was granted: clocks differ, and requests
travel. Weight granted this near to the turn of a window counts on both sides of it."""


class Limit(NamedTuple):
    """A limit as an exchange publishes it: `weight` in each window of `window_ms`.

    Windows follow the clock (Binance counts by the UTC minute) or slide (any `window_ms` on end).
    """

    name: str
    weight: int
    window_ms: int
    sliding: bool = False


class WeightBudget:
    """What may still be spent in a window of one limit.

    Hands out no more than `share` of the limit in a window, and counts what others at the same
    address use as taken: `share` is then of what they leave. One call that is heavier than the
    whole share goes alone.

    Parameters
    ----------
    limit
        Weight that the exchange allows in a window.
    window_ms
        Length of a window.
    share
        The part of the limit to use, above 0 and up to 1.
    sliding
        Whether any `window_ms` on end counts; otherwise windows start at its multiples in UTC.

    >>> budget = WeightBudget(limit=10, window_ms=60_000, share=0.5)
    >>> budget.reserve(5, now_ms=0), budget.reserve(1, now_ms=15_000)
    (0, 47000)
    >>> budget.reserve(1, now_ms=62_000)
    0
    >>> budget.observe(used=9, now_ms=63_000)      # eight by others: half of two is left to us
    >>> budget.reserve(1, now_ms=63_000)
    59000
    """

    def __init__(
        self, limit: int, window_ms: int, share: float = 1.0, *, sliding: bool = False
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share is {share}; expected above 0 and up to 1")
        self.limit = limit
        self.window_ms = window_ms
        self.share = share
        self.held_until_ms = 0
        self._sliding = sliding
        self._grants: deque[tuple[int, int]] = deque()
        self._others = 0
        self._others_until_ms = 0

    def reserve(self, weight: int, now_ms: int) -> int:
        """Take `weight` and return 0; or take nothing and return the ms after which to ask again.

        Raises
        ------
        ValueError
            So much never fits, however long one waits.
        """
        if weight > self.limit:
            raise ValueError(f"weight {weight} never fits: {self.limit} in {self.window_ms} ms")
        if now_ms < self.held_until_ms:
            return self.held_until_ms - now_ms
        spent = self.spent(now_ms)
        left = self.limit - (self._others if now_ms < self._others_until_ms else 0)
        if spent + weight <= int(left * self.share) or (not spent and weight <= left):
            self._grants.append((now_ms, weight))
            return 0
        return self._relief_ms(now_ms) - now_ms

    def observe(self, used: int, now_ms: int) -> None:
        """Take over what the exchange has counted for the address in this window of the clock."""
        start_ms = now_ms - now_ms % self.window_ms
        until_ms = start_ms + self.window_ms + EDGE_MS
        if until_ms < self._others_until_ms:
            return  # a late answer about an earlier window
        own = sum(weight for time_ms, weight in self._grants if start_ms <= time_ms <= now_ms)
        self._others = max(0, used - own)
        self._others_until_ms = until_ms

    def hold(self, until_ms: int) -> None:
        """Grant nothing before `until_ms`: the exchange has said to stop."""
        self.held_until_ms = max(self.held_until_ms, until_ms)

    def spent(self, now_ms: int) -> int:
        """Weight granted here that may still count."""
        first_ms = self._since_ms(now_ms) - EDGE_MS
        while self._grants and self._grants[0][0] < first_ms:
            self._grants.popleft()
        return sum(weight for _, weight in self._grants)

    def _since_ms(self, now_ms: int) -> int:
        """The start of the earliest window that the exchange may be counting in."""
        if self._sliding:
            return now_ms - self.window_ms + 1
        return (now_ms - EDGE_MS) // self.window_ms * self.window_ms

    def _relief_ms(self, now_ms: int) -> int:
        """The next time at which more may be free than now."""
        counted_ms = self._grants[0][0] if self._sliding else self._since_ms(now_ms)
        return counted_ms + self.window_ms + EDGE_MS


class Budgets:
    """The one budget of each limit at each address, for everything that calls it.

    Parameters
    ----------
    share
        The part of every exchange's limit that this service may use.
    """

    def __init__(self, share: float = 1.0) -> None:
        self._share = share
        self._budgets: dict[tuple[str, str], WeightBudget] = {}

    def at(self, address: str, limits: Iterable[Limit]) -> dict[str, WeightBudget]:
        """The budgets of an address by the names of their limits; made at the first call."""
        return {
            limit.name: self._budgets.setdefault(
                (address, limit.name),
                WeightBudget(limit.weight, limit.window_ms, self._share, sliding=limit.sliding),
            )
            for limit in limits
        }
