"""The simulator: both exchanges' REST and WebSocket on one port, and a control route for tests."""

from __future__ import annotations

import asyncio
from heapq import heapify, heappop, heappush
from types import TracebackType
from typing import Self

import structlog
from aiohttp import WSCloseCode, web

from ingest.clock import Clock
from ingest.simulator.binance import Binance
from ingest.simulator.binance_rest import BinanceRest
from ingest.simulator.bybit import Bybit
from ingest.simulator.bybit_rest import BybitRest
from ingest.simulator.control import Control
from ingest.simulator.faults import (
    Close,
    Delist,
    Fault,
    FaultBoard,
    FundingInterval,
    HaltTrading,
    Inject,
    ListNew,
    Maintenance,
    Notice,
    Offline,
    OnContract,
    Rename,
    ReviseMinute,
    Stall,
)
from ingest.simulator.halts import Halt
from ingest.simulator.listings import Change, planned
from ingest.simulator.market import Market
from ingest.simulator.scenarios import SCENARIOS
from ingest.simulator.universe import BINANCE
from ingest.simulator.venue import PULSE_MS
from marketdata.errors import UnknownPair

log = structlog.get_logger()

_LONGEST_LINE = 32_768
_FURTHEST_BEHIND_MS = 120_000
"""After a longer stop (a suspended machine) the streams go on at the present."""


class Simulator:
    """A server that speaks BINANCE_FUTURES and BYBIT on a deterministic market.

    Parameters
    ----------
    host, port
        Where it listens; port 0 takes a free one.
    market
        Left out: the default universe with seed 7, as listed at the clock's time.
    clock
        Every cadence and every limit follows it, so that a fast clock is a fast exchange.
    scenario
        A name of `SCENARIOS`.
    bybit_idle_s
        Bybit cuts clients that send nothing for this long.
    kline_push_ms, ticker_push_ms
        Cadence of Binance's growing klines and of Bybit's tickers: multiples of 250. The default
        is cheap; Bybit itself sends tickers each 100 ms.

    Started and stopped by `async with`; then `url` and `ws_url` are what a configuration takes,
    `faults` and `inject` make trouble, and `market` has the truth.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        market: Market | None = None,
        clock: Clock | None = None,
        *,
        scenario: str = "calm",
        bybit_idle_s: float = 600.0,
        kline_push_ms: int = 250,
        ticker_push_ms: int = 1_000,
    ) -> None:
        self.host = host
        self.port = port
        self.clock = Clock() if clock is None else clock
        self.market = Market(as_of_ms=self.clock.now_ms()) if market is None else market
        self.faults = FaultBoard()
        self.binance = Binance(self.market, self.clock, self.faults, kline_push_ms)
        self.bybit = Bybit(self.market, self.clock, self.faults, bybit_idle_s, ticker_push_ms)
        self.binance_rest = BinanceRest(self.market, self.clock, self.faults, self.binance.stats)
        self.bybit_rest = BybitRest(
            self.market, self.clock, self.faults, self.bybit.stats, self.bybit.streams
        )
        self._scenario = SCENARIOS[scenario]
        self._changes: list[tuple[str, Change]] = []
        self._runner: web.AppRunner | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def url(self) -> str:
        """What goes into `rest_url` of either exchange."""
        return f"http://{self.host}:{self.port}"

    @property
    def ws_url(self) -> str:
        """What goes into `ws_url` of either exchange."""
        return f"ws://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; when it returns, clients can connect. Raises OSError when the port is taken."""
        app = web.Application()
        for part in (self.binance, self.bybit, self.binance_rest, self.bybit_rest, Control(self)):
            app.add_routes(part.routes())
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=1.0, max_line_size=_LONGEST_LINE
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, backlog=1024)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._tasks = [asyncio.create_task(self._pulse()), asyncio.create_task(self._play())]
        log.info("simulator_started", url=self.url, contracts=len(self.market.contracts))

    async def run(self) -> None:
        """Until cancelled; raises what ended the streams."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Reset every connection and close the port."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for venue in (self.binance, self.bybit):
            for client in list(venue.clients):
                client.abort()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for cause in ended:
            if isinstance(cause, Exception):
                raise cause

    def inject(self, fault: Fault) -> int | None:
        """Put a fault in force; the number to remove it by, None for those that happen at once.

        Raises `UnknownPair`, and ValueError for a minute that can't be revised or a name that is
        taken.
        """
        if isinstance(fault, OnContract | HaltTrading) and fault.id is not None:
            self._check_listed(fault, fault.id)
        now_ms = self.clock.now_ms()
        venues = [v for v in (self.binance, self.bybit) if fault.exchange in (None, v.name)]
        log.info("fault_injected", fault=fault.model_dump(exclude_none=True))
        match fault:
            case Close(code=code, reason=reason, reset=reset):
                for venue in venues:
                    venue.close_all(code, reason, in_order=not reset)
            case Stall(half_open=half_open):
                for venue in venues:
                    venue.stall_all(half_open)
            case Inject(text=text):
                for venue in venues:
                    venue.send_all(text.encode())
            case Notice(cut_after_s=cut_after_s):
                self.binance.announce_shutdown(now_ms, cut_after_s)
            case ReviseMinute():
                self._revise(fault, self.now_ms(fault.exchange))
            case HaltTrading():
                for venue in venues:
                    first = self.now_ms(venue.name) // 60_000 + 1
                    end = first + fault.minutes
                    self.market.halt(Halt(first, end, venue.name, fault.id, fault.market))
            case Delist() | ListNew() | Rename() | FundingInterval():
                changes = planned(self.market, fault, self.now_ms(fault.exchange))
                self._changes += [(fault.exchange, change) for change in list(changes)]
            case _:
                number = self.faults.add(fault, now_ms)
                for venue in venues:
                    if isinstance(fault, Offline):
                        venue.close_all(WSCloseCode.ABNORMAL_CLOSURE)
                    elif isinstance(fault, Maintenance):
                        venue.close_all(WSCloseCode.SERVICE_RESTART, "system maintenance")
                return number
        return None

    def now_ms(self, exchange: str) -> int:
        """The clock of an exchange, which a fault may have set wrong."""
        return self.clock.now_ms() + self.faults.skew_ms(exchange)

    def stats(self) -> dict[str, dict[str, int]]:
        """Counters by exchange."""
        now_ms = self.clock.now_ms()
        found = {
            venue.name: {"connections": len(venue.clients), **venue.stats.as_json(now_ms)}
            for venue in (self.binance, self.bybit)
        }
        weight = self.binance_rest.weight
        found[self.binance.name] |= {
            "used_weight": weight.used(self.now_ms(BINANCE)),
            "most_weight": weight.most,
        }
        return found

    def _check_listed(self, fault: OnContract | HaltTrading, id: str) -> None:
        exchanges = (self.binance.name, self.bybit.name)
        names = exchanges if fault.exchange is None else (fault.exchange,)
        if not any(c.exchange in names and fault.hits(c) for c in self.market.contracts):
            raise UnknownPair(id, " and ".join(names))

    def _revise(self, fault: ReviseMinute, now_ms: int) -> None:
        contract = self.market.contract(fault.exchange, fault.id, fault.market)
        minute_ms = fault.minute_ms
        if minute_ms is None:
            minute_ms = now_ms // 60_000 * 60_000 - 60_000
        if minute_ms % 60_000 or minute_ms + 60_000 > now_ms:
            raise ValueError(f"minute_ms: {minute_ms} is not the open time of a closed minute")
        self.market.revise(contract, minute_ms)
        venue = self.binance if contract.exchange == self.binance.name else self.bybit
        venue.republish(contract, minute_ms, now_ms)

    async def _pulse(self) -> None:
        next_ms = self.clock.now_ms() // PULSE_MS * PULSE_MS + PULSE_MS
        while True:
            await self.clock.sleep((next_ms - self.clock.now_ms()) / 1000)
            now_ms = self.clock.now_ms()
            if now_ms - next_ms > _FURTHEST_BEHIND_MS:
                log.warning("streams_jump", from_ms=next_ms, to_ms=now_ms)
                next_ms = now_ms // PULSE_MS * PULSE_MS
            while next_ms <= now_ms:
                self._change(next_ms)
                self.binance.pulse(next_ms)
                self.bybit.pulse(next_ms)
                next_ms += PULSE_MS
                await asyncio.sleep(0)

    def _change(self, at_ms: int) -> None:
        """Let come true what is due by the clock of its exchange."""
        due = [
            entry
            for entry in self._changes
            if entry[1].at_ms <= at_ms + self.faults.skew_ms(entry[0])
        ]
        for entry in due:
            self._changes.remove(entry)
            entry[1].apply()

    async def _play(self) -> None:
        started_ms = self.clock.now_ms()
        plan = [(step.at_s, number) for number, step in enumerate(self._scenario)]
        heapify(plan)
        while plan:
            at_s, number = heappop(plan)
            await self.clock.sleep(at_s - (self.clock.now_ms() - started_ms) / 1000)
            step = self._scenario[number]
            self.inject(step.fault)
            if step.every_s is not None:
                heappush(plan, (at_s + step.every_s, number))
