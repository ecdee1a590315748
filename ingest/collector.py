"""Everything of one exchange: its markets, the feed that streams them, the repair behind it.

A change of pairs starts a second feed beside the running one, waits for its data, and only then
ends the first; what both deliver in between is the same minute twice, which changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from cryptofeed.feedhandler import FeedHandler

from ingest.backends import InboxBackend
from ingest.backoff import Backoff, Gate
from ingest.budget import Budgets
from ingest.catalogue import Catalogues
from ingest.clock import Clock
from ingest.exchanges import EXCHANGES
from ingest.exchanges.base import SupervisedFeed
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.repair import Repairer, StoredRows
from ingest.selection import Selection, resolve, select
from ingest.status import exchange_status
from ingest.supervision import Lane
from marketdata.errors import ExchangeUnavailable
from marketdata.pairs import Catalogue, Market, MarketKind
from marketdata.settings import ExchangeSettings, Settings

log = structlog.get_logger()

REFRESH_S = 300.0
"""How often metadata is fetched anew: funding intervals change during the day."""
SWAP_S = 15.0
"""How long the old feed waits for the new one's data."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all collectors of a service share."""

    clock: Clock
    inbox: Inbox
    hot: HotState
    pipeline: Pipeline
    outbox: Outbox
    stored: StoredRows
    budgets: Budgets
    folder: Path
    lookback_ms: int
    redis_url: str | None


class Collector:
    """One exchange of a service.

    `notes` says what was left out of the selection and why.
    """

    def __init__(self, exchange: str, settings: ExchangeSettings, parts: Parts) -> None:
        self.notes: Sequence[str] = ()
        self._exchange = exchange
        self._settings = settings
        self._parts = parts
        self._adapter = EXCHANGES[exchange]
        proxy = settings.http_proxy
        self._proxy = None if proxy is None else proxy.get_secret_value()
        self._rest = self._adapter.rest(parts.budgets, parts.clock, settings.rest_url, self._proxy)
        self._catalogues = Catalogues(parts.folder / "markets", [self._rest], parts.clock)
        self._repairer = Repairer(
            exchange,
            self._rest,
            parts.stored,
            parts.pipeline,
            parts.outbox,
            parts.clock,
            lookback_ms=parts.lookback_ms,
        )
        self._gate = Gate()
        self._catalogue: Catalogue | None = None
        self._markets: Mapping[str, Market] = {}
        self._feed: SupervisedFeed | None = None
        self._handler: FeedHandler | None = None
        self._since_ms = parts.clock.now_ms()
        self._reconcile = asyncio.Lock()

    async def prepare(self) -> None:
        """Learn the exchange's markets, from itself or from what was kept, and select ours.

        Waits for as long as neither is to be had.

        Raises
        ------
        ConfigError
            None of the wanted pairs is listed.
        """
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        while self._catalogue is None:
            try:
                self._catalogue = (await self._catalogues.refresh(self._exchange)).catalogue
            except ExchangeUnavailable as error:
                delay_s = max(error.retry_after_s or 0.0, backoff.next_s())
                log.warning(
                    "no_metadata", exchange=self._exchange, cause=str(error), next_try_s=delay_s
                )
                await self._parts.clock.sleep(delay_s)
        selection = await self._select(self._catalogue)
        self._markets = selection.markets
        self.notes = selection.left_out

    def lanes(self) -> Sequence[Lane]:
        """The connections that the selected pairs need."""
        return self._adapter.plan(
            list(self._markets.values()), self._settings.channels, self._settings.ws_url
        )

    async def run(self, handler: FeedHandler) -> None:
        """Collect until cancelled; `close` ends what is left."""
        await self.prepare()
        for note in self.notes:
            log.warning("pair_left_out", exchange=self._exchange, reason=note)
        await self._repairer.follow(self._repaired())
        self._handler = handler
        self._feed = self._start(handler, self._markets)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._repairer.run(), name=f"repair.{self._exchange}")
                tasks.create_task(self._refresh(), name=f"refresh.{self._exchange}")
        finally:
            await self._stop(handler, self._feed)

    async def reconcile(self, settings: ExchangeSettings) -> None:
        """Follow a changed list of pairs; the other settings of an exchange need a restart.

        Raises
        ------
        ConfigError
            None of the wanted pairs is listed; the pairs in force stay.
        """
        async with self._reconcile:
            if self._catalogue is None or self._handler is None or self._feed is None:
                return
            if settings.pairs == self._settings.pairs:
                return
            wanted = self._settings.model_copy(update={"pairs": settings.pairs})
            selection = await self._select(self._catalogue, wanted)
            await self._swap(self._handler, self._feed, selection)
            self._settings = wanted

    async def close(self) -> None:
        """Close the REST connections."""
        await self._rest.close()

    def status(self, now_ms: int) -> dict[str, Any]:
        """This exchange's part of `/status`."""
        channels = {
            pair: self._adapter.channels_of(market, self._settings.channels)
            for pair, market in self._markets.items()
        }
        lanes = [] if self._feed is None else self._feed.lane_statuses()
        return exchange_status(
            self._exchange, lanes, channels, self._parts.hot,
            now_ms=now_ms, since_ms=self._since_ms,
        )  # fmt: skip

    def gaps(self) -> dict[str, int]:
        """Missing minutes: `open`, `repaired`, `lost`."""
        counts = self._repairer.counts
        return {"open": counts.open, "repaired": counts.repaired, "lost": counts.lost}

    def dropped(self) -> Mapping[str, int]:
        """Messages and topics that could not be used, by kind."""
        return {} if self._feed is None else self._feed.dropped

    def market(self, pair: str) -> Market | None:
        """The market of a pair that is collected."""
        return self._markets.get(pair)

    async def _select(
        self, catalogue: Catalogue, settings: ExchangeSettings | None = None
    ) -> Selection:
        pairs = (settings or self._settings).pairs
        wanted = await resolve(pairs, catalogue, self._rest, self._parts.redis_url)
        return select(self._exchange, wanted, catalogue)

    def _repaired(self) -> Mapping[str, Market]:
        return self._markets if "candles" in self._settings.channels else {}

    def _start(self, handler: FeedHandler, markets: Mapping[str, Market]) -> SupervisedFeed:
        backend = InboxBackend(self._parts.inbox)
        feed = self._adapter.feed(
            list(markets.values()),
            self._settings.channels,
            dict.fromkeys(self._settings.channels, backend),
            self._parts.clock,
            gate=self._gate,
            ws_url=self._settings.ws_url,
            http_proxy=self._proxy,
        )
        handler.add_feed(feed)
        self._since_ms = self._parts.clock.now_ms()
        return feed

    async def _stop(self, handler: FeedHandler, feed: SupervisedFeed) -> None:
        handler.feeds.remove(feed)
        await feed.shutdown()

    async def _swap(self, handler: FeedHandler, old: SupervisedFeed, selection: Selection) -> None:
        """Replace the running feed by one of other pairs, without a hole for those that stay."""
        gone = self._markets.keys() - selection.markets.keys()
        new = self._start(handler, selection.markets)
        try:
            async with self._parts.clock.timeout(SWAP_S):
                await new.wait_for_data()
        except TimeoutError:
            log.warning("swap_without_data", exchange=self._exchange, waited_s=SWAP_S)
        self._feed, self._markets, self.notes = new, selection.markets, selection.left_out
        await self._stop(handler, old)
        self._parts.hot.forget((self._exchange, pair) for pair in gone)
        await self._repairer.follow(self._repaired())
        log.info("pairs_changed", exchange=self._exchange, pairs=len(self._markets), gone=len(gone))

    async def _refresh(self) -> None:
        """Keep funding intervals and listings up to date."""
        while True:
            await self._parts.clock.sleep(REFRESH_S)
            catalogue = (await self._catalogues.refresh(self._exchange)).catalogue
            self._catalogue = catalogue
            self._markets = {
                pair: catalogue.by_pair.get(pair, market) for pair, market in self._markets.items()
            }
            if self._feed is not None:
                self._feed.set_intervals(
                    {pair: market.interval_hours for pair, market in self._markets.items()}
                )


def plan_without_connecting(
    settings: Settings,
) -> tuple[dict[str, Sequence[Lane]], list[str]]:
    """The connections that a configuration needs, without asking anyone.

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
        exchange=exchange, kind=kind, id=base + quote, pair=pair, base=base, quote=quote,
        settle=settle or None, expiry_ms=None, active=True, listed_ms=None, interval_hours=None,
    )  # fmt: skip
