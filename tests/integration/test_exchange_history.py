"""Metadata and minutes over real sockets, from exchanges of a few lines and from the simulator."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest

from ingest.budget import Budgets, Limit
from ingest.clock import Clock
from ingest.exchanges.binance_futures_rest import BinanceFuturesRest
from ingest.exchanges.bybit_rest import BybitRest
from ingest.exchanges.rest_base import ClosedPage, ExchangeRest
from ingest.model import Kline
from ingest.simulator.server import Simulator
from marketdata.errors import ExchangeRefused, RateLimited
from marketdata.pairs import Market
from marketdata.schema import MINUTE_MS
from tests.venues import BinanceVenue, BybitVenue, Venue


@pytest.fixture
async def venue() -> AsyncIterator[Venue]:
    venue = Venue()
    await venue.start()
    yield venue
    await venue.stop()


# Binance

START_MS = 1_791_382_920_000


def market(exchange: str, kind: str = "perpetual") -> Market:
    return Market(
        exchange=exchange,
        kind="spot" if kind == "spot" else "perpetual",
        id="BTCUSDT",
        pair="BTC/USDT" if kind == "spot" else "BTC/USDT:USDT",
        base="BTC",
        quote="USDT",
        settle=None if kind == "spot" else "USDT",
        expiry_ms=None,
        active=True,
        listed_ms=None,
        interval_hours=None,
    )


def clock_at(now_ms: int) -> Clock:
    """Ours, of the same day as the venue's."""
    return Clock(start_ms=now_ms)


BINANCE = market("BINANCE_FUTURES")
BYBIT = market("BYBIT")


@pytest.fixture
async def binance_venue() -> AsyncIterator[BinanceVenue]:
    venue = BinanceVenue(START_MS + 600 * MINUTE_MS + 30_000)
    await venue.start()
    yield venue
    await venue.stop()


@pytest.fixture
async def binance(binance_venue: BinanceVenue) -> AsyncIterator[BinanceFuturesRest]:
    rest = BinanceFuturesRest(Budgets(), clock_at(binance_venue.now_ms), binance_venue.url)
    yield rest
    await rest.close()


async def collect(pages: AsyncIterator[ClosedPage[Kline]]) -> list[ClosedPage[Kline]]:
    return [page async for page in pages]


def contiguous(pages: list[ClosedPage[Kline]]) -> bool:
    return all(a.end_ms == b.start_ms for a, b in itertools.pairwise(pages))


async def test_binance_minutes_come_in_the_cheapest_pages_up_to_the_last_closed_one(
    binance_venue: BinanceVenue, binance: BinanceFuturesRest
) -> None:
    pages = await collect(binance.minutes(BINANCE, START_MS + 1, START_MS + 10**9))
    assert contiguous(pages)
    assert pages[0].start_ms == START_MS + MINUTE_MS
    assert pages[-1].end_ms == START_MS + 600 * MINUTE_MS
    minutes = [kline.minute_ms for page in pages for kline in page.rows]
    assert minutes == list(range(pages[0].start_ms, pages[-1].end_ms, MINUTE_MS))
    assert [request.query.get("limit") for request in binance_venue.asked] == [None, "499", "100"]
    assert binance.client.weight["/fapi/v1/klines"] == 4
    assert {kline.event_ms for page in pages for kline in page.rows} <= {
        page.server_ms for page in pages
    }
    assert all(page.server_ms <= binance_venue.now_ms + 5_000 for page in pages)


async def test_a_minute_that_binance_has_no_row_for_is_missing_from_its_page(
    binance_venue: BinanceVenue, binance: BinanceFuturesRest
) -> None:
    hole_ms = START_MS + 2 * MINUTE_MS
    binance_venue.missing.add(hole_ms)
    (page,) = await collect(binance.minutes(BINANCE, START_MS, START_MS + 4 * MINUTE_MS))
    assert (page.start_ms, page.end_ms) == (START_MS, START_MS + 4 * MINUTE_MS)
    assert hole_ms not in {kline.minute_ms for kline in page.rows}
    assert len(page.rows) == 3


async def test_nothing_is_asked_for_minutes_that_are_not_closed_yet(
    binance_venue: BinanceVenue, binance: BinanceFuturesRest
) -> None:
    open_ms = START_MS + 600 * MINUTE_MS
    assert await collect(binance.minutes(BINANCE, open_ms, open_ms + MINUTE_MS)) == []
    assert binance_venue.paths == ["/fapi/v1/time"]


async def test_a_server_that_does_not_tell_its_time_is_taken_to_share_ours(
    venue: Venue,
) -> None:
    venue.says({"code": 404, "msg": "no such path"}, status=404)
    rest = BinanceFuturesRest(Budgets(), clock_at(START_MS), venue.url)
    with pytest.raises(ExchangeRefused):
        await collect(rest.minutes(BINANCE, START_MS - 2 * MINUTE_MS, START_MS))
    await rest.close()
    assert venue.paths == ["/fapi/v1/time", "/fapi/v1/klines"]


async def test_funding_info_counts_against_a_limit_of_its_own(venue: Venue) -> None:
    venue.says([{"symbol": "BTCUSDT", "fundingIntervalHours": 4}])
    budgets = Budgets()
    rest = BinanceFuturesRest(budgets, Clock(), venue.url)
    budgets.at(rest.client.address, (Limit("weight", 2_400, 60_000),))["weight"].hold(10**15)
    assert await rest.intervals() == {"BTCUSDT": 4.0}
    await rest.close()


# Bybit


@pytest.fixture
async def bybit_venue() -> AsyncIterator[BybitVenue]:
    venue = BybitVenue(START_MS + 1_500 * MINUTE_MS + 30_000)
    await venue.start()
    yield venue
    await venue.stop()


@pytest.fixture
async def bybit(bybit_venue: BybitVenue) -> AsyncIterator[BybitRest]:
    rest = BybitRest(Budgets(), clock_at(bybit_venue.now_ms), bybit_venue.url)
    yield rest
    await rest.close()


@pytest.mark.parametrize(("kind", "category"), [("perpetual", "linear"), ("spot", "spot")])
async def test_bybit_minutes_come_in_long_pages_up_to_the_last_closed_one(
    bybit_venue: BybitVenue, bybit: BybitRest, kind: str, category: str
) -> None:
    pages = await collect(bybit.minutes(market("BYBIT", kind), START_MS, START_MS + 10**9))
    assert contiguous(pages)
    assert (pages[0].start_ms, pages[-1].end_ms) == (START_MS, START_MS + 1_500 * MINUTE_MS)
    minutes = [kline.minute_ms for page in pages for kline in page.rows]
    assert minutes == list(range(START_MS, START_MS + 1_500 * MINUTE_MS, MINUTE_MS))
    assert {request.query["category"] for request in bybit_venue.asked} == {category}
    assert len(bybit_venue.asked) == 2


async def test_a_minute_that_is_open_on_bybit_s_clock_when_it_is_asked_is_not_taken(
    bybit: BybitRest,
) -> None:
    open_ms = START_MS + 1_500 * MINUTE_MS
    assert await collect(bybit.minutes(BYBIT, open_ms, open_ms + MINUTE_MS)) == []


async def test_bybit_s_instruments_are_read_page_by_page_with_the_cursor_as_it_came(
    bybit_venue: BybitVenue, bybit: BybitRest
) -> None:
    catalogue = bybit.markets(await bybit.catalogue())
    assert set(catalogue.by_pair) == {"BTC/USDT:USDT", "IOST/USDT:USDT", "BTC/USDT"}
    assert (
        "cursor=first%3DBTCUSDT%26last%3DBTCUSDT" in bybit_venue.asked[1].rel_url.raw_query_string
    )
    assert await bybit.intervals() == {"IOSTUSDT": 1.0}


async def test_too_many_visits_in_an_http_200_stop_bybit_s_callers_until_the_reset(
    venue: Venue,
) -> None:
    clock = Clock(speed=100)
    now_ms = clock.now_ms()
    venue.says(
        {"retCode": 10006, "retMsg": "Too many visits!", "result": {}, "time": now_ms},
        X_Bapi_Limit_Reset_Timestamp=str(now_ms + 4_000),
    )
    rest = BybitRest(Budgets(), clock, venue.url)
    with pytest.raises(RateLimited) as caught:
        await rest.server_ms()
    assert caught.value.retry_after_s == 4.0
    venue.says({"retCode": 0, "result": {}, "time": now_ms})
    await rest.server_ms()
    assert clock.now_ms() - now_ms >= 4_000
    await rest.close()


async def test_bybit_s_403_stops_its_callers_for_ten_minutes(venue: Venue) -> None:
    venue.says_text("access too frequent", status=403, content_type="text/plain")
    rest = BybitRest(Budgets(), Clock(), venue.url)
    with pytest.raises(RateLimited, match="access too frequent") as caught:
        await rest.server_ms()
    assert caught.value.retry_after_s == 600
    await rest.close()


# The simulator


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator() as simulator:
        yield simulator


@pytest.fixture(params=[BinanceFuturesRest, BybitRest])
async def rest(request: pytest.FixtureRequest, simulator: Simulator) -> AsyncIterator[ExchangeRest]:
    rest: ExchangeRest = request.param(Budgets(), simulator.clock, simulator.url)
    yield rest
    await rest.close()


async def test_every_market_of_the_simulator_is_understood(
    simulator: Simulator, rest: ExchangeRest
) -> None:
    catalogue = rest.markets(await rest.catalogue())
    listed = {
        (contract.kind, contract.id): (contract.base, contract.quote, contract.settle)
        for contract in simulator.market.listed(rest.exchange, "perpetual", "future", "spot")
        if not contract.coin_margined
    }
    assert {
        key: (market.base, market.quote, market.settle) for key, market in catalogue.by_id.items()
    } == listed
    timed = catalogue.with_intervals(await rest.intervals(), rest.interval_hours)
    for contract in simulator.market.listed(rest.exchange, "perpetual"):
        if contract.active and not contract.coin_margined:
            assert timed.by_id["perpetual", contract.id].interval_hours == contract.interval_hours


async def test_volumes_name_what_is_traded(rest: ExchangeRest) -> None:
    volumes = await rest.volumes()
    assert volumes["BTCUSDT"] > volumes["ADAUSDT"] > 0


@pytest.mark.parametrize("kind", ["perpetual", "future", "spot"])
async def test_minutes_are_those_of_the_simulator_to_the_last_digit(
    simulator: Simulator, rest: ExchangeRest, kind: str
) -> None:
    markets = rest.markets(await rest.catalogue()).markets
    chosen = next((market for market in markets if market.kind == kind and market.active), None)
    if chosen is None:
        assert (rest.exchange, kind) == ("BINANCE_FUTURES", "spot")
        return
    now_ms = simulator.clock.now_ms()
    end_ms = now_ms - now_ms % MINUTE_MS
    start_ms = end_ms - 150 * MINUTE_MS
    pages = await collect(rest.minutes(chosen, start_ms, end_ms))
    contract = simulator.market.contract(rest.exchange, chosen.id, chosen.kind)
    bars = simulator.market.klines(contract, MINUTE_MS, start_ms, end_ms, now_ms)
    assert [
        (k.minute_ms, k.open, k.high, k.low, k.close, k.volume, k.quote_volume)
        for page in pages
        for k in page.rows
    ] == [
        (
            bar.open_ms,
            *(float(contract.price(units)) for units in (bar.open, bar.high, bar.low, bar.close)),
            Decimal(contract.quantity(bar.volume)),
            Decimal(contract.amount(bar.quote)),
        )
        for bar in bars
    ]
    assert len(bars) == 150


async def test_a_long_fill_keeps_to_its_share_of_the_weight() -> None:
    clock = Clock(speed=120)
    async with Simulator(clock=clock) as simulator:
        rest = BinanceFuturesRest(Budgets(share=0.05), clock, simulator.url)
        end_ms = await rest.server_ms() // MINUTE_MS * MINUTE_MS
        await asyncio.gather(
            *(collect(rest.minutes(BINANCE, end_ms - 100 * MINUTE_MS, end_ms)) for _ in range(200))
        )
        await rest.close()
        # The share is 120. On a busy machine the few requests under way may be late by minutes of a
        # clock as fast as this one.
        assert simulator.binance_rest.weight.most < 240
        assert rest.client.weight["/fapi/v1/klines"] == 400
