"""The process's own cache: bounded, with a lifetime for each entry and a grace after it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

TTL_MS: Final = 500
"""Lifetime of what may change at any time."""
GRACE_MS: Final = 60_000
"""How long a value still answers after its lifetime, while nothing newer can be had."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps at most `size` values; the least recently used goes first. Thread-safe.

    >>> cache = Cache[str, int](size=2)
    >>> cache.put("a", 1, valid_until_ms=500)
    >>> cache.fresh("a", now_ms=499), cache.fresh("a", now_ms=500)
    (1, None)
    >>> cache.in_grace("a", now_ms=60_499), cache.in_grace("a", now_ms=60_500)
    (1, None)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, key: K, value: V, *, valid_until_ms: int) -> None:
        """Keep `value`, as fresh until `valid_until_ms`."""
        with self._lock:
            self._entries[key] = (value, valid_until_ms)
            self._entries.move_to_end(key)
            if len(self._entries) > self.size:
                self._entries.popitem(last=False)

    def fresh(self, key: K, now_ms: int) -> V | None:
        """The value within its lifetime."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or now_ms >= entry[1]:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def in_grace(self, key: K, now_ms: int) -> V | None:
        """The value within its grace, for when nothing newer can be had."""
        with self._lock:
            entry = self._entries.get(key)
            return entry[0] if entry is not None and now_ms < entry[1] + GRACE_MS else None
