"""The connections that a configuration needs, without asking anyone."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.exchanges import EXCHANGES
from ingest.lanes import Lane
from marketdata.pairs import Market, MarketKind
from marketdata.settings import Settings


def plan_without_connecting(
    settings: Settings,
) -> tuple[dict[str, Sequence[Lane]], list[str]]:
    """Lanes by exchange, and what can't be planned before the service starts.

    Exchange ids are guessed from the pairs' names, which is good enough to count with.
    """
    lanes: dict[str, Sequence[Lane]] = {}
    notes: list[str] = []
    for exchange, wanted in settings.exchanges.items():
        if isinstance(wanted.pairs, tuple):
            markets = [_guessed(exchange, pair) for pair in wanted.pairs]
            lanes[exchange] = EXCHANGES[exchange].plan(markets, wanted.channels, wanted.ws_url)
        else:
            notes.append(f"{exchange}: its pairs are chosen when the service starts")
    return lanes, notes


def _guessed(exchange: str, pair: str) -> Market:
    names, _, settled = pair.partition(":")
    base, _, quote = names.partition("/")
    settle, _, expiry = settled.partition("-")
    kind: MarketKind = "spot" if not settle else "future" if expiry else "perpetual"
    return Market(
        exchange=exchange,
        kind=kind,
        id=base + quote,
        pair=pair,
        base=base,
        quote=quote,
        settle=settle or None,
        expiry_ms=None,
        active=True,
        listed_ms=None,
        interval_hours=None,
    )
