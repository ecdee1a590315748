"""Which markets are collected: what is wanted, held against what the exchange lists.

Pure: what the exchange doesn't list or doesn't trade is left out with the reason, and the others
run; when nothing is left, the configuration is wrong. `discovery` finds out what is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from marketdata.errors import ConfigError, Fault, UnknownPair
from marketdata.pairs import Catalogue, Market, MarketKind

DOLLAR = "USDT"
"""What a currency named by itself is quoted in."""
_KINDS: Sequence[MarketKind] = ("perpetual", "spot", "future")
_LONGEST_NAME = 64
_DEEPEST = 3


@dataclass(frozen=True, slots=True)
class Selection:
    """The markets to collect by pair, and why others were left out."""

    markets: Mapping[str, Market]
    left_out: Sequence[str]


def select(exchange: str, wanted: Iterable[str], catalogue: Catalogue) -> Selection:
    """The listed, traded markets among the wanted pairs, in the order wanted.

    Raises
    ------
    ConfigError
        None of the pairs is listed.
    """
    markets: dict[str, Market] = {}
    left_out: list[str] = []
    for pair in dict.fromkeys(wanted):
        try:
            market = catalogue.find(pair)
        except UnknownPair as error:
            left_out.append(str(error))
            continue
        if market.active:
            markets[pair] = market
        else:
            left_out.append(f"{exchange} lists {pair} but doesn't trade it now")
    if not markets:
        found = f"{len(left_out)} pairs, none of which {exchange} lists and trades"
        near = "; ".join(left_out[:3])
        key = f"exchanges.{exchange}.pairs"
        raise ConfigError("the configuration", [Fault(key, None, found, near or "listed pairs")])
    return Selection(markets, left_out)


def ranked(volumes: Mapping[str, float], catalogue: Catalogue, quote: str) -> list[str]:
    """The traded perpetuals of a quote currency, that with the largest 24 h volume first.

    Parameters
    ----------
    volumes
        Exchange id → 24 h volume in quote units; one that is missing counts as zero.
    """
    traded = [
        market
        for market in catalogue.markets
        if market.kind == "perpetual" and market.quote == quote and market.active
    ]
    traded.sort(key=lambda market: (-volumes.get(market.id, 0.0), market.pair))
    return [market.pair for market in traded]


def last_rank(top: int) -> int:
    """The rank that a chosen pair may sink to: a tenth below `top`, two ranks at least.

    >>> last_rank(5), last_rank(20), last_rank(120)
    (7, 22, 132)
    """
    return top + max(2, -(-top // 10))


def steady_top(by_volume: Sequence[str], chosen: Sequence[str], top: int) -> list[str]:
    """The `top` largest pairs, without changes for every breath of the volumes.

    A chosen pair stays until its rank is worse than `last_rank(top)` or it isn't traded any more.
    A place that is free goes to the pair of the best rank without one, which is always one of the
    `top` largest. So there are `top` pairs at any time (fewer only when fewer are traded), and
    those that stay keep their order, new ones follow.

    Parameters
    ----------
    by_volume
        Every pair that is traded, the largest first.
    chosen
        The pairs until now; none at the start.

    >>> steady_top(["A", "B", "C", "D", "E"], [], 2)
    ['A', 'B']
    >>> steady_top(["C", "D", "A", "B", "E"], ["A", "B"], 2)
    ['A', 'B']
    >>> steady_top(["C", "D", "A", "E", "B"], ["A", "B"], 2)
    ['A', 'C']
    """
    allowed = set(by_volume[: last_rank(top)])
    kept = [pair for pair in chosen if pair in allowed][:top]
    taken = set(kept)
    free = (pair for pair in by_volume if pair not in taken)
    return kept + [pair for _, pair in zip(range(top - len(kept)), free, strict=False)]


def names_in(value: object, depth: int = 0) -> Iterator[str]:
    """The names in a JSON value: a text, a list, an object's `symbol`, or an object of lists.

    What is none of these is given as it would be printed, so that it can be told what it was.

    >>> list(names_in(["BTCUSDT", {"symbol": "ETHUSDT", "score": 7}]))
    ['BTCUSDT', 'ETHUSDT']
    >>> list(names_in({"majors": ["BTC", "ETH"], "memes": ["DOGE"], "at": 1795132800}))
    ['BTC', 'ETH', 'DOGE']
    >>> list(names_in([7, None]))
    ['7', 'None']
    """
    match value:
        case str():
            yield value
        case {"symbol": str(name)}:
            yield name
        case dict() if depth < _DEEPEST:
            for item in value.values():
                if isinstance(item, list):
                    yield from names_in(item, depth + 1)
        case list() if depth < _DEEPEST:
            for item in value:
                yield from names_in(item, depth + 1)
        case _:
            yield str(value)


def is_name(text: str) -> bool:
    """Whether a text can be a market's name at all.

    >>> is_name("币安人生/USDT:USDT"), is_name("1000PEPEUSDT"), is_name(""), is_name('{"a": 1}')
    (True, True, False, False)
    """
    return len(text) <= _LONGEST_NAME and re.fullmatch(r"\w[\w/:\-.]*", text) is not None


class Names:
    """A catalogue's pairs by any name that other programs give them.

    Every form comes from the exchange's metadata, and none is taken that could mean two markets.
    In this order: the pair (`BTC/USDT:USDT`, `BTC/USDT`); the exchange's id (`BTCUSDT`; of a
    perpetual before that of a spot market of the same id); either of them, or base and quote,
    without regard to case and separators (`btc-usdt`; a traded perpetual before a spot market);
    a currency by itself (`BTC`), which means its perpetual settled in USDT, or where there is none
    its spot market against USDT.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._by_letters: dict[MarketKind, dict[str, set[str]]] = {kind: {} for kind in _KINDS}
        for market in catalogue.markets:
            forms = {market.pair, market.id}
            if market.kind != "future":
                forms.add(market.base + market.quote)
            if market.active:
                for letters in map(_letters, forms):
                    self._by_letters[market.kind].setdefault(letters, set()).add(market.pair)

    def pair(self, name: str) -> str | None:
        """The pair that is meant; None where none is, or it might be several."""
        if name in self._catalogue.by_pair:
            return name
        for kind in _KINDS:
            market = self._catalogue.by_id.get((kind, name))
            if market is not None:
                return market.pair
        letters = _letters(name)
        for wanted in (letters, letters + DOLLAR):
            for kind in _KINDS:
                pairs = self._by_letters[kind].get(wanted, ())
                if pairs:
                    return next(iter(pairs)) if len(pairs) == 1 else None
        return None


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).upper()
