"""Which pair a caller means: `BTC/USDT:USDT` or `BTCUSDT`; pure.

The short form is base and quote written together. It is looked up among the pairs that the store
knows, never taken apart. Where a perpetual and a spot pair share it, it means the perpetual.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def short_form(pair: str) -> str | None:
    """Base and quote of a perpetual or spot pair; dated contracts have no short form.

    >>> short_form("1000PEPE/USDT:USDT"), short_form("BTC/USDT"), short_form("BTC/USDT:USDT-261225")
    ('1000PEPEUSDT', 'BTCUSDT', None)
    """
    market, _, settlement = pair.partition(":")
    return None if "-" in settlement else market.replace("/", "")


class Pairs:
    """The pairs of one exchange, found by either form of their name.

    >>> pairs = Pairs(["BTC/USDT", "BTC/USDT:USDT", "ETH/USDT:USDT"])
    >>> pairs.find("BTCUSDT"), pairs.find("BTC/USDT"), pairs.find("XRPUSDT")
    ('BTC/USDT:USDT', 'BTC/USDT', None)
    >>> pairs.near("BTC-USDT")
    ['BTC/USDT:USDT', 'BTC/USDT']
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(names)
        self._by_form: dict[str, str] = {}
        for name in sorted(self.names, key=_is_perpetual):
            form = short_form(name)
            if form is not None:
                self._by_form[form] = name
        self._by_form.update((name, name) for name in self.names)

    def find(self, symbol: str) -> str | None:
        """The pair, or None."""
        return self._by_form.get(symbol)

    def near(self, symbol: str) -> list[str]:
        """At most three pairs whose names come close, the closest first."""
        forms = get_close_matches(symbol.upper(), self._by_form, n=6, cutoff=0.7)
        return list(dict.fromkeys(self._by_form[form] for form in forms))[:3]


def _is_perpetual(pair: str) -> bool:
    return ":" in pair
