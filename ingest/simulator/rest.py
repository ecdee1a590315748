"""What both exchanges' REST sides share: the faults that come before any answer, and after it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import orjson
from aiohttp import web

from ingest.clock import Clock
from ingest.simulator.bars import Bar
from ingest.simulator.faults import (
    FaultBoard,
    Maintenance,
    MissingRows,
    NoEmptyRows,
    Offline,
    RestDown,
    RestLimited,
    RestSlow,
)
from ingest.simulator.market import MarkBar, Market
from ingest.simulator.stats import Stats
from ingest.simulator.universe import Contract
from ingest.simulator.venue import reset

T = TypeVar("T")
_WORK = "<html><head><title>Maintenance</title></head><body>We'll be back soon.</body></html>"
_PORTION_MS = 500 * 60_000


class Rest(ABC):
    """The REST side of one exchange."""

    name: str

    def __init__(self, market: Market, clock: Clock, faults: FaultBoard, stats: Stats) -> None:
        self.market = market
        self.clock = clock
        self.faults = faults
        self.stats = stats

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """The exchange's paths."""

    @abstractmethod
    async def respond(self, request: web.Request, now_ms: int) -> web.Response:
        """The exchange's own answer."""

    @abstractmethod
    def status(self, work: Maintenance | None, now_ms: int) -> web.Response:
        """What the exchange's status route says, which no maintenance ends."""

    @abstractmethod
    def closed(self, now_ms: int) -> web.Response:
        """The exchange's words for being under maintenance."""

    @abstractmethod
    def limited(self, status: int) -> web.Response:
        """The exchange's words for too many requests."""

    async def serve(self, request: web.Request) -> web.Response:
        """Answer a request as the faults in force and the limits want it."""
        self.stats.request(self.clock.now_ms())
        now_ms = self.now_ms()
        if self.faults.take(Offline, self.name, now_ms) is not None:
            self.stats.rest_refused += 1
            reset(request)
            return web.Response(status=503)
        work = self.faults.take(Maintenance, self.name, now_ms)
        if work is not None:
            self.stats.rest_refused += 1
            if work.body == "html":
                return web.Response(status=503, text=_WORK, content_type="text/html")
            return self.closed(now_ms)
        slow = self.faults.take(RestSlow, self.name, now_ms)
        if slow is not None:
            await self.clock.sleep(slow.delay_s)
        down = self.faults.take(RestDown, self.name, now_ms)
        if down is not None:
            self.stats.rest_refused += 1
            return await self._down(request, down)
        limited = self.faults.take(RestLimited, self.name, now_ms)
        if limited is not None:
            response = self.limited(limited.status)
            if limited.retry_after_s is not None:
                response.headers["Retry-After"] = str(limited.retry_after_s)
        else:
            response = await self.respond(request, self.now_ms())
        self.stats.rest_refused += response.status in (403, 418, 429)
        return response

    async def serve_status(self, request: web.Request) -> web.Response:
        """Answer a question for the exchange's status."""
        self.stats.request(self.clock.now_ms())
        now_ms = self.now_ms()
        if self.faults.take(Offline, self.name, now_ms) is not None:
            reset(request)
        return self.status(self.faults.current(Maintenance, self.name, now_ms), now_ms)

    def now_ms(self) -> int:
        """The exchange's own clock."""
        return self.clock.now_ms() + self.faults.skew_ms(self.name)

    async def _down(self, request: web.Request, fault: RestDown) -> web.Response:
        if fault.how == "unavailable":
            return web.Response(status=503, text="Service Unavailable")
        if fault.how == "hang":
            hanging = fault
            while hanging is self.faults.current(RestDown, self.name, self.now_ms()):
                await self.clock.sleep(0.25)
        reset(request)
        return web.Response(status=503)

    async def klines(
        self, contract: Contract, interval_ms: int, start_ms: int, end_ms: int, now_ms: int
    ) -> list[Bar]:
        """The market's, as REST gives them with the faults in force."""
        bars = await _in_portions(
            self.market.klines, contract, interval_ms, start_ms, end_ms, now_ms
        )
        return list(self._kept(contract, bars, now_ms))

    async def mark_klines(
        self, contract: Contract, interval_ms: int, start_ms: int, end_ms: int, now_ms: int
    ) -> list[MarkBar]:
        """Likewise of mark prices."""
        return await _in_portions(
            self.market.mark_klines, contract, interval_ms, start_ms, end_ms, now_ms
        )

    def _kept(self, contract: Contract, bars: Iterable[Bar], now_ms: int) -> Iterator[Bar]:
        """Those that REST gives, with the faults in force."""
        missing = self.faults.take_on(MissingRows, self.name, contract, now_ms)
        no_empty = self.faults.take_on(NoEmptyRows, self.name, contract, now_ms)
        for bar in bars:
            if missing is not None and missing.start_ms <= bar.open_ms < missing.end_ms:
                continue
            if no_empty is not None and not bar.trades:
                continue
            yield bar


async def _in_portions(
    find: Callable[[Contract, int, int, int, int], list[T]],
    contract: Contract,
    interval_ms: int,
    start_ms: int,
    end_ms: int,
    now_ms: int,
) -> list[T]:
    """A long range piece by piece, so that the streams go on meanwhile."""
    portion_ms = max(interval_ms, _PORTION_MS)
    found: list[T] = []
    for first_ms in range(max(start_ms, contract.listed_ms), end_ms, portion_ms):
        found += find(contract, interval_ms, first_ms, min(first_ms + portion_ms, end_ms), now_ms)
        await asyncio.sleep(0)
    return found


def json_response(
    payload: object, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    """UTF-8 JSON."""
    return web.Response(
        body=orjson.dumps(payload), status=status, headers=headers, content_type="application/json"
    )
