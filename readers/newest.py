"""The newest values of pairs: from the process's cache, else Redis, else the store.

What is found carries its time and its deadline: whether it is handed out is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from marketdata.errors import StoreUnavailable
from marketdata.schema import Last
from readers.cache import TTL_MS, Cache
from readers.origins import Origins
from readers.states import States
from readers.values import Reading

_VALUES_KEPT: Final = 4_096

V = TypeVar("V", bound=Reading)


class Newest:
    """Reads the newest values; each kind of value is looked for, and kept, by itself."""

    def __init__(self, origins: Origins, states: States) -> None:
        self._origins = origins
        self._states = states
        self._cache: Cache[tuple[str, str, str], Reading] = Cache(_VALUES_KEPT)

    def read(self, kind: type[V], exchange: str, pairs: Sequence[str], now_ms: int) -> dict[str, V]:
        """The newest values by pair, fresh or not; a pair without any is left out.

        Raises
        ------
        StoreUnavailable
            The store has to be asked, can't be reached, and nothing is known of any of the pairs.
        """
        cached = self._cached(kind, exchange, pairs, now_ms)
        others = [pair for pair in pairs if pair not in cached]
        found = self._from_redis(kind, exchange, others)
        time_ms = self._states.exchange_ms(exchange, now_ms)
        late = [pair for pair in others if pair not in found or not found[pair].is_fresh(time_ms)]
        kept: dict[str, V] = {}
        if late:
            try:
                found = _later(found, self._from_store(kind, exchange, late))
            except StoreUnavailable:
                kept = self._in_grace(kind, exchange, late, now_ms)
                if not (cached or found or kept):
                    raise
        for pair, value in found.items():
            key = (kind.channel, exchange, pair)
            self._cache.put(key, value, valid_until_ms=now_ms + TTL_MS)
        return cached | _later(found, kept)

    def _cached(
        self, kind: type[V], exchange: str, pairs: Iterable[str], now_ms: int
    ) -> dict[str, V]:
        cached = {}
        for pair in pairs:
            value = self._cache.fresh((kind.channel, exchange, pair), now_ms)
            if isinstance(value, kind):
                cached[pair] = replace(value, source="cache")
                self._origins.count("cache")
        return cached

    def _in_grace(
        self, kind: type[V], exchange: str, pairs: Iterable[str], now_ms: int
    ) -> dict[str, V]:
        kept = {}
        for pair in pairs:
            value = self._cache.in_grace((kind.channel, exchange, pair), now_ms)
            if isinstance(value, kind):
                kept[pair] = replace(value, source="cache")
                self._origins.count("grace")
        return kept

    def _from_redis(self, kind: type[V], exchange: str, pairs: Sequence[str]) -> dict[str, V]:
        if not pairs:
            return {}
        lasts = self._origins.ask_hot(lambda hot: hot.last(exchange, pairs)) or {}
        found = _values(kind, lasts, "redis", hot=True)
        self._origins.count("redis", len(found))
        return found

    def _from_store(self, kind: type[V], exchange: str, pairs: Sequence[str]) -> dict[str, V]:
        lasts = self._origins.ask_store(lambda store: store.last(exchange, pairs))
        return _values(kind, lasts, self._origins.store_name, hot=self._origins.store_is_hot)


def _values(kind: type[V], lasts: dict[str, Last], source: str, *, hot: bool) -> dict[str, V]:
    values = {pair: kind.of(last, source, hot=hot) for pair, last in lasts.items()}
    return {pair: value for pair, value in values.items() if value is not None}


def _later(some: dict[str, V], others: dict[str, V]) -> dict[str, V]:
    """Of two findings of a pair, the one with the later event."""
    merged = dict(some)
    for pair, value in others.items():
        if pair not in merged or value.event_ms > merged[pair].event_ms:
            merged[pair] = value
    return merged
