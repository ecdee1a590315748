"""The collectors of all exchanges: they start, follow the configuration and end one by one.

An exchange that is added gets a collector of its own, one that is removed loses it, and one whose
address, proxy or channels have changed gets a new one; the others don't notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import structlog
from cryptofeed.feedhandler import FeedHandler

from ingest.clock import Clock
from ingest.collector import Collector, Parts
from marketdata.errors import ConfigError
from marketdata.pairs import Market
from marketdata.settings import ExchangeSettings

log = structlog.get_logger()

PREPARE_S = 20.0
"""How long exchanges' metadata is waited for before the others go on without it."""

Wanted = Mapping[str, ExchangeSettings]


class Fleet:
    """Owns the collectors and their tasks.

    Attributes
    ----------
    collectors
        By exchange, in the order of the configuration and of joining.
    """

    def __init__(self, clock: Clock) -> None:
        self.collectors: dict[str, Collector] = {}
        self._clock = clock
        self._settings: dict[str, ExchangeSettings] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def others_reached(self, exchange: str) -> bool:
        """Whether the network is to be believed: another exchange answers, or there is none."""
        others = [c.sentinel.reached for name, c in self.collectors.items() if name != exchange]
        return not others or any(others)

    def market(self, exchange: str, pair: str) -> Market | None:
        """The market of a pair that is collected."""
        collector = self.collectors.get(exchange)
        return None if collector is None else collector.market(pair)

    async def prepare(self, wanted: Wanted, parts: Parts) -> None:
        """Make a collector of each exchange, and let them learn their markets for a while.

        Raises
        ------
        ConfigError
            None of an exchange's pairs is listed.
        """
        self._parts = parts
        for exchange, settings in wanted.items():
            self._add(exchange, settings)
        await self._wait_for([c.prepare() for c in self.collectors.values()])

    def start(self, tasks: asyncio.TaskGroup, handler: FeedHandler) -> None:
        """Have all of them collect, in tasks of this group."""
        self._group, self._handler = tasks, handler
        for exchange in self.collectors:
            self._run(exchange)

    async def follow(self, wanted: Wanted) -> None:
        """Collect these exchanges from now on.

        Raises
        ------
        ConfigError
            None of an exchange's pairs is listed; that exchange stays as it was.
        """
        for exchange in self.collectors.keys() - wanted.keys():
            await self._leave(exchange)
        for exchange, settings in wanted.items():
            before = self._settings.get(exchange)
            if before is not None and settings.model_copy(update={"pairs": before.pairs}) == before:
                await self.collectors[exchange].reconcile(settings)
                self._settings[exchange] = settings
                continue
            if before is not None:
                await self._leave(exchange)
            await self._join(exchange, settings)

    async def end(self) -> None:
        """End every collector; what they have received stays in the inbox."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """Close what the collectors hold."""
        for collector in self.collectors.values():
            await collector.close()

    async def _join(self, exchange: str, settings: ExchangeSettings) -> None:
        collector = self._add(exchange, settings)
        try:
            await self._wait_for([collector.prepare()])
        except ConfigError:
            await self._drop(exchange)
            raise
        self._run(exchange)
        log.info("exchange_joined", exchange=exchange)

    async def _leave(self, exchange: str) -> None:
        task = self._tasks.pop(exchange)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._drop(exchange)
        log.info("exchange_left", exchange=exchange)

    def _add(self, exchange: str, settings: ExchangeSettings) -> Collector:
        collector = Collector(exchange, settings, self._parts)
        self.collectors[exchange] = collector
        self._settings[exchange] = settings
        return collector

    async def _drop(self, exchange: str) -> None:
        del self._settings[exchange]
        await self.collectors.pop(exchange).close()

    def _run(self, exchange: str) -> None:
        work = self.collectors[exchange].run(self._handler)
        self._tasks[exchange] = self._group.create_task(work, name=f"collect.{exchange}")

    async def _wait_for(self, preparing: list[Coroutine[Any, Any, None]]) -> None:
        """Until all are prepared, or for a while; those that aren't go on when they run."""
        tasks = [asyncio.create_task(work) for work in preparing]
        try:
            done, _ = await asyncio.wait(tasks, timeout=PREPARE_S)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
