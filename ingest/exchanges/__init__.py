"""Every exchange that the service can collect, by its cryptofeed id.

A new one is a module for its feed, one for its REST side, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.exchanges import base
from ingest.exchanges.base import SupervisedFeed
from ingest.exchanges.binance_futures import BinanceFutures
from ingest.exchanges.binance_futures_rest import BinanceFuturesRest
from ingest.exchanges.bybit import Bybit
from ingest.exchanges.bybit_rest import BybitRest
from ingest.exchanges.rest_base import ExchangeRest
from ingest.lanes import Lane
from marketdata.exchanges import CHANNELS_OF
from marketdata.pairs import Market
from marketdata.schema import Channel


@dataclass(frozen=True, slots=True)
class Adapter:
    """One exchange: the class of its feed and how its REST side is made."""

    feed: type[SupervisedFeed]
    rest: Callable[[Budgets, Clock, str | None, str | None], ExchangeRest]

    @property
    def channels(self) -> tuple[Channel, ...]:
        """What the exchange can give, of whatever kind of market."""
        return CHANNELS_OF[self.feed.id]

    def channels_of(self, market: Market, channels: Sequence[str]) -> tuple[Channel, ...]:
        """Those of `channels` that a market of this kind has."""
        return base.wanted(market, channels, self.feed.channels_by_kind)

    def plan(
        self, markets: Sequence[Market], channels: Sequence[str], ws_url: str | None = None
    ) -> list[Lane]:
        """The connections that a feed of these markets and channels would open; pure."""
        return self.feed.plan_lanes(markets, channels, ws_url or self.feed.ws_url)


EXCHANGES: Mapping[str, Adapter] = {
    "BINANCE_FUTURES": Adapter(BinanceFutures, BinanceFuturesRest),
    "BYBIT": Adapter(Bybit, BybitRest),
}
