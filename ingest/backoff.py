"""When to try again: back-off of one lane, and the gate that all lanes of an exchange share.

Pure: times and randomness are passed in.
"""

from __future__ import annotations

import random
from bisect import insort
from collections.abc import Callable
from email.utils import parsedate_to_datetime

Uniform = Callable[[float, float], float]

LONGEST_S = 3 * 86_400.0
"""No ban is longer, so what asks for more is a mistake."""
REFUSED_S = 120.0
"""The least that is waited after 403, 418 or 429: an address that goes on asking is banned."""


class Backoff:
    """Exponential back-off with full jitter: any time from none to the doubled ceiling.

    Full jitter, since lanes that fail together must not come back together.

    >>> backoff = Backoff(uniform=lambda low, high: high)
    >>> [backoff.next_s() for _ in range(8)]
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    >>> backoff.reset()
    >>> backoff.next_s()
    1.0
    """

    def __init__(
        self, base_s: float = 1.0, cap_s: float = 60.0, uniform: Uniform = random.uniform
    ) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._uniform = uniform
        self._ceiling_s = base_s

    def next_s(self) -> float:
        """Seconds to wait before the next attempt."""
        ceiling_s = self._ceiling_s
        self._ceiling_s = min(self._cap_s, 2 * ceiling_s)
        return self._uniform(0.0, ceiling_s)

    def reset(self) -> None:
        """Start from the first step again."""
        self._ceiling_s = self._base_s


class Gate:
    """Says when the next handshake with an exchange may start.

    Handshakes keep a distance. One that hasn't led to data, or only for a moment, is unproven, and
    of those only a few a minute are allowed, so that a venue that accepts nobody isn't asked by
    every lane at once. A refusal closes the gate for all. Times are milliseconds of a clock that
    nobody sets.

    >>> gate = Gate()
    >>> gate.start(0)
    >>> gate.wait_ms(100)
    150
    >>> gate.close(until_ms=120_000)
    >>> gate.wait_ms(250)
    119750
    """

    SPACING_MS = 250
    UNPROVEN = 10
    WINDOW_MS = 66_000
    """A minute, and what handshakes may take longer than others on their way to who counts them."""

    def __init__(self) -> None:
        self.starts = 0
        self._last_ms: int | None = None
        self._closed_until_ms = 0
        self._unproven: list[int] = []

    def wait_ms(self, now_ms: int) -> int:
        """Milliseconds until a handshake may start, as things are; 0 means now."""
        until_ms = self._closed_until_ms
        if self._last_ms is not None:
            until_ms = max(until_ms, self._last_ms + self.SPACING_MS)
        self._unproven = [start for start in self._unproven if start + self.WINDOW_MS > now_ms]
        if len(self._unproven) >= self.UNPROVEN:
            until_ms = max(until_ms, self._unproven[-self.UNPROVEN] + self.WINDOW_MS)
        return max(0, until_ms - now_ms)

    def start(self, now_ms: int) -> None:
        """A handshake starts now; `starts` counts them."""
        self.starts += 1
        self._last_ms = now_ms
        self._unproven.append(now_ms)

    def proved(self, start_ms: int) -> None:
        """The connection whose handshake started at `start_ms` has delivered for a while."""
        if start_ms in self._unproven:
            self._unproven.remove(start_ms)

    def failed(self, start_ms: int) -> None:
        """That connection is over before it was worth its handshake, data or not."""
        if start_ms not in self._unproven:
            insort(self._unproven, start_ms)

    def close(self, until_ms: int) -> None:
        """Nobody passes before `until_ms`."""
        self._closed_until_ms = max(self._closed_until_ms, until_ms)


def retry_after_s(header: str | None, now_ms: int) -> float | None:
    """Seconds that a `Retry-After` header asks for, in either of its forms; None without one.

    At most `LONGEST_S`.

    >>> retry_after_s("30", now_ms=0), retry_after_s("soon", now_ms=0), retry_after_s(None, 0)
    (30.0, None, None)
    >>> retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", now_ms=15_000)
    45.0
    """
    if header is None:
        return None
    if header.strip().isdecimal():
        return min(float(header), LONGEST_S)
    try:
        wait_s = parsedate_to_datetime(header).timestamp() - now_ms / 1000
        return min(max(0.0, wait_s), LONGEST_S)
    except (ValueError, OverflowError):
        return None
