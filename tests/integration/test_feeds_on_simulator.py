"""Both feeds against the simulated exchanges: what arrives is the truth of the market."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest

from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.exchanges import EXCHANGES
from ingest.exchanges.base import SupervisedFeed
from ingest.exchanges.rest_base import ExchangeRest
from ingest.model import Kline
from ingest.simulator.faults import Silence
from ingest.simulator.server import Simulator
from ingest.simulator.universe import Contract, fixed
from marketdata.pairs import Market
from marketdata.schema import FundingRate, LastPrice, MarkPrice
from tests.feeds import Recorder
from tests.waiting import eventually

SPEED = 20.0


@asynccontextmanager
async def collecting(
    exchange: str, choose: Callable[[list[Market]], list[Market]]
) -> AsyncIterator[tuple[Simulator, SupervisedFeed, Recorder]]:
    """A simulator, and a feed of the chosen markets with every channel."""
    clock = Clock(speed=SPEED)
    adapter = EXCHANGES[exchange]
    async with Simulator(clock=clock) as simulator:
        rest: ExchangeRest = adapter.rest(Budgets(), clock, simulator.url, None)
        try:
            catalogue = rest.markets(await rest.catalogue())
            hours = await rest.intervals()
        finally:
            await rest.close()
        catalogue = catalogue.with_intervals(hours, rest.interval_hours)
        recorder = Recorder()
        feed = adapter.feed(
            choose([market for market in catalogue.markets if market.active]),
            adapter.channels,
            recorder.on(*adapter.channels),
            clock,
            ws_url=simulator.ws_url,
        )
        feed.start(asyncio.get_running_loop())
        try:
            yield simulator, feed, recorder
        finally:
            await feed.shutdown()


def contract_of(simulator: Simulator, feed: SupervisedFeed, pair: str) -> Contract:
    market = next(market for market in feed.markets if market.pair == pair)
    return simulator.market.contract(feed.id, market.id, market.kind)


def assert_true(simulator: Simulator, feed: SupervisedFeed, kline: Kline) -> None:
    """A closed minute is the market's, digit for digit."""
    contract = contract_of(simulator, feed, kline.symbol)
    bar = simulator.market.kline(contract, kline.minute_ms)
    prices = (kline.open, kline.high, kline.low, kline.close)
    assert prices == tuple(
        float(contract.price(units)) for units in (bar.open, bar.high, bar.low, bar.close)
    )
    assert kline.volume == Decimal(contract.quantity(bar.volume))
    assert kline.quote_volume == Decimal(contract.amount(bar.quote))
    assert kline.trades == (bar.trades if feed.id == "BINANCE_FUTURES" else None)


def busiest(count: int) -> Callable[[list[Market]], list[Market]]:
    return lambda markets: markets[:count]


def of_each_kind(markets: list[Market]) -> list[Market]:
    kinds = ("perpetual", "future", "spot")
    return [market for kind in kinds for market in [m for m in markets if m.kind == kind][:3]]


@pytest.mark.parametrize(
    ("exchange", "choose"),
    [
        ("BINANCE_FUTURES", of_each_kind),
        ("BINANCE_FUTURES", busiest(164)),
        ("BYBIT", of_each_kind),
    ],
    ids=["binance", "binance all-market marks", "bybit"],
)
async def test_minutes_marks_and_funding_are_the_markets_own(
    exchange: str, choose: Callable[[list[Market]], list[Market]]
) -> None:
    async with collecting(exchange, choose) as (simulator, feed, recorder):
        await feed.wait_for_data()

        def closed() -> list[Kline]:
            return [kline for kline in recorder.of(Kline) if kline.closed]

        traded = {market.pair for market in feed.markets if market.base in ("BTC", "ETH")}
        await eventually(lambda: traded <= {kline.symbol for kline in closed()}, timeout_s=15)
        for kline in closed():
            assert_true(simulator, feed, kline)

        with_marks = {market.pair for market in feed.markets if market.kind != "spot"}
        await eventually(lambda: with_marks <= {mark.symbol for mark in recorder.of(MarkPrice)})
        for mark in recorder.of(MarkPrice):
            contract = contract_of(simulator, feed, mark.symbol)
            seconds = [mark.time // 1000 * 1000 - back for back in (0, 1000, 2000)]
            shown = [simulator.market.mark(contract, second) for second in seconds]
            prices = (mark.mark_price, mark.index_price)
            assert prices in [(float(fixed(m.price, 8)), float(fixed(m.index_price, 8))) for m in shown] or (
                contract.exchange == "BYBIT"
            )

        perpetual = {market.pair for market in feed.markets if market.kind == "perpetual"}
        assert {funding.symbol for funding in recorder.of(FundingRate)} == perpetual
        for funding in recorder.of(FundingRate):
            contract = contract_of(simulator, feed, funding.symbol)
            truth = simulator.market.funding(contract, funding.time)
            before = simulator.market.funding(contract, funding.time - 60_000)
            assert funding.rate in (float(fixed(truth.rate, 8)), float(fixed(before.rate, 8)))
            assert funding.next_funding_ms in (truth.next_ms, before.next_ms)
            assert funding.interval_hours == truth.interval_hours
            assert funding.predicted_rate is None
        assert traded <= {last.symbol for last in recorder.of(LastPrice)}
        assert feed.dropped == {}
        assert all(lane.last_error is None for lane in feed.lane_statuses())
