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


def assert_true_mark(simulator: Simulator, feed: SupervisedFeed, mark: MarkPrice) -> None:
    """A mark is one of the last seconds'; Bybit rounds it to the contract's tick."""
    contract = contract_of(simulator, feed, mark.symbol)
    rounded = 0.0 if feed.id == "BINANCE_FUTURES" else 10.0**-contract.price_digits
    second_ms = mark.time // 1000 * 1000
    shown = [simulator.market.mark(contract, second_ms - back) for back in (0, 1000, 2000)]
    assert any(
        abs(mark.mark_price - float(fixed(truth.price, 8))) <= rounded
        and abs((mark.index_price or 0) - float(fixed(truth.index_price, 8))) <= rounded
        for truth in shown
    )


def assert_true_funding(simulator: Simulator, feed: SupervisedFeed, funding: FundingRate) -> None:
    """Rate, settlement and interval are those of now, or of a moment ago."""
    contract = contract_of(simulator, feed, funding.symbol)
    shown = [simulator.market.funding(contract, funding.time - back) for back in (0, 60_000)]
    assert (funding.rate, funding.next_funding_ms) in [
        (float(fixed(truth.rate, 8)), truth.next_ms) for truth in shown
    ]
    assert funding.interval_hours == contract.interval_hours
    assert funding.predicted_rate is None


def busiest(markets: list[Market]) -> list[Market]:
    return markets[:164]


def of_each_kind(markets: list[Market]) -> list[Market]:
    return [market for market in markets if market.base in ("BTC", "ETH", "XAU", "币安人生")]


@pytest.mark.parametrize(
    ("exchange", "choose"),
    [("BINANCE_FUTURES", of_each_kind), ("BINANCE_FUTURES", busiest), ("BYBIT", of_each_kind)],
    ids=["binance", "binance all-market marks", "bybit"],
)
async def test_everything_that_arrives_is_the_markets_own(
    exchange: str, choose: Callable[[list[Market]], list[Market]]
) -> None:
    async with collecting(exchange, choose) as (simulator, feed, recorder):

        def closed() -> list[Kline]:
            return [kline for kline in recorder.of(Kline) if kline.closed]

        def pairs(*kinds: str) -> set[str]:
            return {market.pair for market in feed.markets if market.kind in kinds}

        traded = {market.pair for market in feed.markets if market.base == "BTC"}
        await eventually(lambda: traded <= {kline.symbol for kline in closed()}, timeout_s=15)
        marked = pairs("perpetual", "future")
        await eventually(lambda: marked <= {mark.symbol for mark in recorder.of(MarkPrice)})
        assert traded
        assert traded <= {last.symbol for last in recorder.of(LastPrice)}
        assert {funding.symbol for funding in recorder.of(FundingRate)} == pairs("perpetual")
        assert feed.dropped == {}
    for kline in closed():
        assert_true(simulator, feed, kline)
    for mark in recorder.of(MarkPrice):
        assert_true_mark(simulator, feed, mark)
    for funding in recorder.of(FundingRate):
        assert_true_funding(simulator, feed, funding)


async def test_silence_of_a_venue_is_noticed_and_overcome() -> None:
    async with collecting("BYBIT", of_each_kind) as (simulator, feed, recorder):
        await feed.wait_for_data()
        simulator.inject(Silence(exchange="BYBIT", seconds=30))
        linear = feed.lane_statuses()[0]
        await eventually(lambda: feed.lane_statuses()[0].last_error is not None, timeout_s=10)
        await eventually(lambda: feed.lane_statuses()[0].state == "live", timeout_s=10)
        assert feed.lane_statuses()[0].reconnects > linear.reconnects
        count = len(recorder.events)
        await eventually(lambda: len(recorder.events) > count)
