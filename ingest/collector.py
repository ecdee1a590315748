"""Everything of one exchange: its markets, the feed that streams them, and what completes it.

What completes it: minutes (`repair`), mark candles (`marks`), settlements (`settlements`), gaps of
ticks (`outages`), and the watch over all of it (`sentinel`). Every half a minute it looks whether
other pairs are wanted, or the exchange lists other markets, and has everyone follow.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog
from cryptofeed.feedhandler import FeedHandler

from ingest.backends import InboxBackend
from ingest.backoff import Backoff, Gate
from ingest.budget import Budgets
from ingest.capture import INTERVALS, SELECTED
from ingest.capture_writer import CaptureWriter
from ingest.catalogue import Catalogues
from ingest.clock import Clock
from ingest.discovery import Discovery
from ingest.exchanges import EXCHANGES
from ingest.exchanges.base import SupervisedFeed
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.lanes import Lane
from ingest.marks import MarkRepairer
from ingest.model import Event
from ingest.outages import OutageCloser
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.repair import Repairer
from ingest.selection import Selection, select
from ingest.sentinel import Sentinel
from ingest.settlements import Settler
from ingest.sinks.base import Marker
from ingest.status import exchange_status
from ingest.stored import StoredRows
from marketdata.errors import ConfigError, ExchangeUnavailable, MarketDataError
from marketdata.pairs import Catalogue, Market
from marketdata.schema import Gap, MarkPrice
from marketdata.settings import ExchangeSettings

log = structlog.get_logger()

REFRESH_S = 300.0
"""How often metadata is fetched anew: listings and funding intervals change during the day.

Sooner where a pair falls silent alone.
"""
REFRESH_LEAST_S = 60.0
"""… but not sooner than this: a pair may be silent for other reasons, for long."""
DISCOVER_S = 30.0
"""How often it is asked which pairs are wanted."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What all collectors of a service share.

    `announce` takes markers for consumers; `reached` tells whether an exchange other than the one
    named answers at all; `capture` keeps the raw messages, and what their names mean.
    """

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
    announce: Callable[[Sequence[Marker]], None]
    reached: Callable[[str], bool]
    capture: CaptureWriter | None


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
        self._discovery = self._discover(settings)
        self._look_at_markets = asyncio.Event()
        self.sentinel = Sentinel(
            exchange,
            self._rest,
            lambda: self._feed,
            lambda: parts.reached(exchange),
            self._look_at_markets.set,
            parts.clock,
        )
        shared = (exchange, self._rest, parts.stored, parts.pipeline, parts.outbox)
        self._repairer = Repairer(
            *shared, self.sentinel.freshness, parts.clock, lookback_ms=parts.lookback_ms
        )
        self._marks = MarkRepairer(
            *shared,
            parts.clock,
            lookback_ms=parts.lookback_ms,
            ahead_ms=lambda: self.sentinel.freshness.offset.ms,
        )
        self._settler = Settler(*shared, parts.hot, parts.clock, lookback_ms=parts.lookback_ms)
        self._outages = OutageCloser(
            exchange, self.sentinel.judge, self._marks, parts.stored, parts.outbox, parts.clock
        )
        self._gate = Gate()
        self._catalogue: Catalogue | None = None
        self._markets: Mapping[str, Market] = {}
        self._feed: SupervisedFeed | None = None
        self._following = asyncio.Lock()
        self._dropped = 0

    async def prepare(self) -> None:
        """Learn the exchange's markets, from itself or from what was kept, and select ours.

        Waits for as long as neither is to be had.

        Raises
        ------
        ConfigError
            None of the wanted pairs is listed.
        """
        backoff = Backoff(base_s=1.0, cap_s=60.0)
        while not self._markets:
            try:
                catalogue = (await self._catalogues.refresh(self._exchange)).catalogue
                wanted = await self._discovery.wanted(catalogue)
            except ExchangeUnavailable as error:
                delay_s = max(error.retry_after_s or 0.0, backoff.next_s())
                log.warning(
                    "no_metadata", exchange=self._exchange, cause=str(error), next_try_s=delay_s
                )
                await self._parts.clock.sleep(delay_s)
                continue
            self._catalogue = catalogue
            selection = select(self._exchange, wanted, catalogue)
            self._markets, self.notes = selection.markets, selection.left_out

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
        self._parts.pipeline.observers[self._exchange] = self._observe
        feed = self._feed = self._start(handler)
        await self._have_all_follow()
        tasks = {
            "repair": self._repairer.run,
            "settle": self._settler.run,
            "probe": self.sentinel.probe,
            "watch": self._watch,
            "outages": self._outages.run,
            "refresh": self._refresh,
            "discover": self._look_for_pairs,
        }
        if "mark_price" in self._settings.channels:
            tasks["marks"] = self._marks.run
        try:
            async with asyncio.TaskGroup() as group:
                for name, task in tasks.items():
                    group.create_task(task(), name=f"{name}.{self._exchange}")
        finally:
            handler.feeds.remove(feed)
            await feed.shutdown()

    async def reconcile(self, settings: ExchangeSettings) -> None:
        """Follow changed pairs; the other settings of an exchange need a restart.

        Raises
        ------
        ConfigError
            None of the wanted pairs is listed; the pairs in force stay.
        """
        if settings.pairs == self._settings.pairs:
            return
        changed = self._settings.model_copy(update={"pairs": settings.pairs})
        discovery, before = self._discover(changed), self._discovery
        self._discovery = discovery
        try:
            await self._follow_wanted()
        except ConfigError:
            self._discovery = before
            raise
        self._settings = changed

    async def close(self) -> None:
        """Close the REST connections."""
        await self._rest.close()

    def status(self, now_ms: int) -> dict[str, Any]:
        """This exchange's part of `/status`."""
        lanes = [] if self._feed is None else self._feed.lane_statuses()
        return exchange_status(lanes, self.sentinel.freshness, now_ms=now_ms)

    def gaps(self) -> Counter[str]:
        """Gaps of all channels by state."""
        ledger, outages = self._repairer.watch.ledger, self.sentinel.judge.outages
        found = Counter({"open": ledger.open + outages.open})
        return found + Counter(ledger.closed) + Counter(outages.closed)

    def missing(self) -> Counter[str]:
        """Minutes that were missing, by what became of them."""
        counts = self._repairer.counts
        return Counter(repaired=counts.repaired, synthetic=counts.synthetic, lost=counts.lost)

    def dropped(self) -> Mapping[str, int]:
        """Messages, topics and names of pairs that could not be used, by kind."""
        return {**self._unread(), "unusable_names": self._discovery.unusable}

    def _unread(self) -> Mapping[str, int]:
        return {} if self._feed is None else self._feed.dropped

    def handshakes(self) -> tuple[int, bool]:
        """How many were started, and whether another one may start now."""
        return self._gate.starts, self._gate.wait_ms(self._parts.clock.monotonic_ms()) == 0

    def market(self, pair: str) -> Market | None:
        """The market of a pair that is collected."""
        return self._markets.get(pair)

    def _discover(self, settings: ExchangeSettings) -> Discovery:
        parts = self._parts
        return Discovery(self._exchange, settings.pairs, self._rest, parts.redis_url, parts.clock)

    def _observe(self, event: Event, received_ms: int) -> None:
        self.sentinel.judge.observe(event, received_ms)
        if isinstance(event, MarkPrice):
            self._marks.feed(event)

    def _start(self, handler: FeedHandler) -> SupervisedFeed:
        backend = InboxBackend(self._parts.inbox)
        feed = self._adapter.feed(
            list(self._markets.values()),
            self._settings.channels,
            dict.fromkeys(self._settings.channels, backend),
            self._parts.clock,
            gate=self._gate,
            ws_url=self._settings.ws_url,
            http_proxy=self._proxy,
        )
        handler.add_feed(feed)
        return feed

    async def _have_all_follow(self) -> None:
        """Everyone behind the feed follows the selected pairs."""
        markets, channels = self._markets, self._settings.channels
        wanted = {pair: self._adapter.channels_of(m, channels) for pair, m in markets.items()}
        self.sentinel.judge.follow(wanted, self._parts.clock.now_ms())
        await self._repairer.follow(markets if "candles" in channels else {})
        await self._marks.follow(markets if "mark_price" in channels else {})
        self._tell_capture()
        await self._settler.follow(markets if "funding" in channels else {})

    def _tell_capture(self) -> None:
        """What a replay needs to know of the frames: what the names mean, and what was wanted."""
        capture, known = self._parts.capture, self._catalogues.metadata(self._exchange)
        if capture is None or known is None:
            return
        address = self._rest.client.address
        hours = {m.id: m.interval_hours for m in self._markets.values() if m.interval_hours}
        selected = {"pairs": list(self._markets), "channels": list(self._settings.channels)}
        capture.metadata(self._exchange, f"{address}/markets", orjson.dumps(known))
        capture.metadata(self._exchange, address + INTERVALS, orjson.dumps(hours))
        capture.metadata(self._exchange, address + SELECTED, orjson.dumps(selected))

    async def _watch(self) -> None:
        """Judge once a second; tell consumers and the store what has changed."""
        while True:
            await self._parts.clock.sleep(1.0)
            self._note_dropped()
            markers = self.sentinel.look()
            gaps = self.sentinel.judge.outages.rows() + self._repairer.watch.ledger.rows()
            await self._parts.pipeline.put_rows({"gap": gaps})
            self._parts.announce([*markers, *map(_marker, gaps)])

    def _note_dropped(self) -> None:
        dropped = sum(self._unread().values()) + self._parts.inbox.dropped["candles"]
        if dropped > self._dropped:
            self._repairer.watch.dropped(self._parts.clock.now_ms())
        self._dropped = dropped

    async def _look_for_pairs(self) -> None:
        while True:
            await self._parts.clock.sleep(DISCOVER_S)
            try:
                await self._follow_wanted()
            except MarketDataError as error:
                log.warning("pairs_kept", exchange=self._exchange, cause=str(error))

    async def _follow_wanted(self) -> None:
        """Collect what is wanted now, of what is listed now."""
        async with self._following:
            if self._catalogue is None or self._feed is None:
                return
            wanted = await self._discovery.wanted(self._catalogue)
            selection = select(self._exchange, wanted, self._catalogue)
            self.notes = selection.left_out
            if selection.markets.keys() != self._markets.keys():
                await self._change(self._feed, selection)

    async def _change(self, feed: SupervisedFeed, selection: Selection) -> None:
        gone = self._markets.keys() - selection.markets.keys()
        new = selection.markets.keys() - self._markets.keys()
        self._markets = selection.markets
        await feed.follow(list(selection.markets.values()))
        self._parts.hot.forget((self._exchange, pair) for pair in gone)
        await self._have_all_follow()
        log.info("pairs_changed", exchange=self._exchange, new=sorted(new), gone=sorted(gone))

    async def _refresh(self) -> None:
        """Keep listings and funding intervals up to date."""
        while True:
            await self._parts.clock.sleep(REFRESH_LEAST_S)
            with suppress(TimeoutError):
                async with self._parts.clock.timeout(REFRESH_S - REFRESH_LEAST_S):
                    await self._look_at_markets.wait()
            self._look_at_markets.clear()
            try:
                known = await self._catalogues.refresh(self._exchange)
            except MarketDataError as error:
                log.warning("metadata_kept", exchange=self._exchange, cause=str(error))
                continue
            self._catalogue = known.catalogue
            by_pair = known.catalogue.by_pair
            self._markets = {p: by_pair.get(p, market) for p, market in self._markets.items()}
            if self._feed is not None:
                self._feed.set_intervals({p: m.interval_hours for p, m in self._markets.items()})
            self._tell_capture()


def _marker(gap: Gap) -> Marker:
    return {
        "kind": "gap",
        "exchange": gap.exchange,
        "symbol": gap.symbol,
        "channel": gap.channel,
        "start_ms": gap.time,
        "until_ms": gap.until_ms,
        "reason": gap.reason,
        "state": gap.state,
    }
