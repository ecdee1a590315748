"""The limits that the exchanges enforce, as pure state: every method is told the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

MINUTE_MS = 60_000
_FIRST_BAN_MS = 120_000
_LONGEST_BAN_MS = 3 * 86_400_000
_PATIENCE = 5
"""So many requests of a minute are answered 429; who still goes on is banned."""


@dataclass(slots=True)
class SlidingWindow:
    """At most `limit` events in any `window_ms`.

    >>> window = SlidingWindow(limit=2, window_ms=1_000)
    >>> [window.admit(0), window.admit(10), window.admit(20), window.admit(1_005)]
    [True, True, False, True]
    """

    limit: int
    window_ms: int
    _events: deque[int] = field(default_factory=deque)

    def admit(self, now_ms: int) -> bool:
        """Count an event, unless it is one too many."""
        if self.used(now_ms) >= self.limit:
            return False
        self._events.append(now_ms)
        return True

    def used(self, now_ms: int) -> int:
        """Events within the window."""
        while self._events and self._events[0] <= now_ms - self.window_ms:
            self._events.popleft()
        return len(self._events)


@dataclass(slots=True)
class TokenBucket:
    """`burst` events at once, then `per_second`.

    >>> bucket = TokenBucket(burst=2, per_second=10)
    >>> [bucket.admit(0), bucket.admit(0), bucket.admit(0), bucket.admit(100)]
    [True, True, False, True]
    """

    burst: float
    per_second: float
    _tokens: float | None = None
    _seen_ms: int = 0

    def admit(self, now_ms: int) -> bool:
        """Take a token, if there is one."""
        tokens = self.burst if self._tokens is None else self._tokens
        tokens = min(self.burst, tokens + (now_ms - self._seen_ms) / 1000 * self.per_second)
        self._seen_ms = now_ms
        self._tokens = tokens - 1 if tokens >= 1 else tokens
        return tokens >= 1


class Verdict(NamedTuple):
    """`status` 200, 429 or 418; `retry_after_s` with the latter two; the weight used so far."""

    status: int
    retry_after_s: int
    used: int
    banned_until_ms: int = 0


class MinuteWeight:
    """Binance's request weight: a budget for each clock minute, 429 beyond it, and a ban for those
    who go on; each further ban is longer.

    >>> weight = MinuteWeight(limit=10)
    >>> weight.charge(8, 0).status, weight.charge(8, 1).status
    (200, 429)
    >>> [weight.charge(1, 2 + i).status for i in range(5)]
    [429, 429, 429, 429, 418]
    >>> weight.charge(1, 61_000).status, weight.charge(1, 180_000).status
    (418, 200)
    """

    def __init__(self, limit: int = 2_400) -> None:
        self.limit = limit
        self.most = 0
        self._minute = 0
        self._used = 0
        self._refused = 0
        self._bans = 0
        self._banned_until_ms = 0

    def used(self, now_ms: int) -> int:
        """Weight used in the clock minute of `now_ms`."""
        return self._used if now_ms // MINUTE_MS == self._minute else 0

    def charge(self, weight: int, now_ms: int) -> Verdict:
        """Count a request; it is to be served only with status 200."""
        if now_ms < self._banned_until_ms:
            return self._banned(now_ms)
        minute = now_ms // MINUTE_MS
        if minute != self._minute:
            self._minute, self._used, self._refused = minute, 0, 0
        self._used += weight
        self.most = max(self.most, self._used)
        if self._used <= self.limit:
            return Verdict(200, 0, self._used)
        self._refused += 1
        if self._refused > _PATIENCE:
            self._banned_until_ms = now_ms + min(_FIRST_BAN_MS << self._bans, _LONGEST_BAN_MS)
            self._bans += 1
            return self._banned(now_ms)
        return Verdict(429, MINUTE_MS // 1000 - now_ms // 1000 % 60, self._used)

    def _banned(self, now_ms: int) -> Verdict:
        left_ms = self._banned_until_ms - now_ms
        return Verdict(418, -(-left_ms // 1000), self._used, self._banned_until_ms)


class BlockingWindow:
    """Bybit's limit by address: one request too many, and the address is shut out for a while."""

    def __init__(self, limit: int = 600, window_ms: int = 5_000, block_ms: int = 600_000) -> None:
        self._window = SlidingWindow(limit, window_ms)
        self._block_ms = block_ms
        self._blocked_until_ms = 0

    def admit(self, now_ms: int) -> bool:
        """Whether a request is to be served."""
        if now_ms < self._blocked_until_ms:
            return False
        if not self._window.admit(now_ms):
            self._blocked_until_ms = now_ms + self._block_ms
            return False
        return True
