"""The pairs of each exchange, as the store knows them."""

from __future__ import annotations

from typing import Final

from marketdata.errors import StoreUnavailable, UnknownPair
from readers.cache import Cache
from readers.origins import Origins
from readers.symbols import Pairs

_TTL_MS: Final = 60_000
_EXCHANGES_KEPT: Final = 64


class PairBook:
    """Finds the pair that a caller means; asks the store at most once a minute while it knows."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._cache: Cache[str, Pairs] = Cache(_EXCHANGES_KEPT)

    def pairs(self, exchange: str, now_ms: int) -> list[str]:
        """The pairs of an exchange, sorted."""
        return (self._cache.fresh(exchange, now_ms) or self._ask(exchange, now_ms)).names

    def find(self, exchange: str, symbol: str, now_ms: int) -> str:
        """The pair that `symbol` means. Raises `UnknownPair`.

        A name in the unified form is taken as it is where the store would have to be asked:
        whether there is such a pair shows when it is read (`require`).
        """
        known = self._cache.fresh(exchange, now_ms)
        if known is None and "/" in symbol:
            return symbol
        pair = None if known is None else known.find(symbol)
        return pair or self.require(exchange, symbol, now_ms)

    def require(self, exchange: str, symbol: str, now_ms: int) -> str:
        """The pair that `symbol` means, as the store knows it now. Raises `UnknownPair`."""
        known = self._ask(exchange, now_ms)
        pair = known.find(symbol)
        if pair is None:
            raise UnknownPair(symbol, exchange, known.near(symbol))
        return pair

    def _ask(self, exchange: str, now_ms: int) -> Pairs:
        try:
            pairs = Pairs(self._origins.ask_store(lambda store: store.pairs(exchange)))
        except StoreUnavailable:
            kept = self._cache.in_grace(exchange, now_ms)
            if kept is None:
                raise
            return kept
        self._cache.put(exchange, pairs, valid_until_ms=now_ms + _TTL_MS)
        return pairs
