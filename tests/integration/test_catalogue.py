"""What is known of the markets outlives the exchange's REST side."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from ingest.budget import Budgets
from ingest.catalogue import Catalogues
from ingest.clock import Clock
from ingest.exchanges.binance_futures_rest import BinanceFuturesRest
from marketdata.errors import ExchangeRefused, ExchangeUnavailable
from tests.venues import Venue

BINANCE = "BINANCE_FUTURES"


class MetadataVenue(Venue):
    """Binance's exchangeInfo and fundingInfo."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = ["BTC", "ETH"]
        self.hours: dict[str, int] | None = {"ETHUSDT": 4}
        self.answer = self.metadata

    async def metadata(self, request: web.Request) -> web.Response:
        if request.path == "/fapi/v1/fundingInfo":
            if self.hours is None:
                return web.json_response({}, status=503)
            return web.json_response(
                [{"symbol": id_, "fundingIntervalHours": h} for id_, h in self.hours.items()]
            )
        symbols = [
            {
                "symbol": f"{base}USDT",
                "pair": f"{base}USDT",
                "contractType": "PERPETUAL",
                "status": "TRADING",
                "baseAsset": base,
                "quoteAsset": "USDT",
                "marginAsset": "USDT",
            }
            for base in self.listed
        ]
        return web.json_response({"symbols": symbols})


@pytest.fixture
async def venue() -> AsyncIterator[MetadataVenue]:
    venue = MetadataVenue()
    await venue.start()
    yield venue
    await venue.stop()


@pytest.fixture
async def rest(venue: MetadataVenue) -> AsyncIterator[BinanceFuturesRest]:
    rest = BinanceFuturesRest(Budgets(), Clock(), venue.url)
    yield rest
    await rest.close()


def catalogues(folder: Path, rest: BinanceFuturesRest, timeout_s: float = 5.0) -> Catalogues:
    """As after a start: nothing known but what the folder holds."""
    return Catalogues(folder, [rest], Clock(), timeout_s)


async def test_markets_and_intervals_are_fetched_and_kept(
    rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    known = await catalogues(tmp_path / "var", rest).refresh(BINANCE)
    assert known.error is None
    assert known.catalogue.find("BTC/USDT:USDT").interval_hours == 8.0
    assert known.catalogue.find("ETH/USDT:USDT").interval_hours == 4.0
    assert [path.name for path in (tmp_path / "var").iterdir()] == ["BINANCE_FUTURES.json"]


async def test_with_rest_down_a_start_uses_what_was_kept_and_tells_its_age(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    fetched = await catalogues(tmp_path, rest).refresh(BINANCE)
    venue.says({}, status=503)
    after_restart = catalogues(tmp_path, rest)
    known = await after_restart.refresh(BINANCE)
    assert known.catalogue.markets == fetched.catalogue.markets
    assert known.fetched_ms == fetched.fetched_ms
    assert isinstance(known.error, ExchangeUnavailable)
    assert after_restart.failures == {BINANCE: 1}


async def test_with_rest_silent_a_start_waits_no_longer_than_the_time_limit(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    await catalogues(tmp_path, rest).refresh(BINANCE)
    venue.hangs()
    known = await catalogues(tmp_path, rest, timeout_s=0.2).refresh(BINANCE)
    assert "within 0.2 s" in str(known.error)


async def test_a_first_start_without_rest_is_unavailable_and_says_that_nothing_was_kept(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    venue.resets()
    with pytest.raises(ExchangeUnavailable, match=f"none kept at {tmp_path}"):
        await catalogues(tmp_path, rest).refresh(BINANCE)


async def test_a_first_start_that_the_exchange_refuses_is_refused(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    venue.says({"msg": "restricted location"}, status=451)
    with pytest.raises(ExchangeRefused, match="restricted location"):
        await catalogues(tmp_path, rest).refresh(BINANCE)


@pytest.mark.parametrize("content", [b"", b'{"fetched_ms": 1, "meta', b"[]"])
async def test_a_damaged_file_is_as_good_as_none(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "BINANCE_FUTURES.json").write_bytes(content)
    known = await catalogues(tmp_path, rest).refresh(BINANCE)
    assert len(known.catalogue.markets) == 2
    (tmp_path / "BINANCE_FUTURES.json").write_bytes(content)
    venue.resets()
    with pytest.raises(ExchangeUnavailable, match="none kept"):
        await catalogues(tmp_path, rest).refresh(BINANCE)


async def test_an_empty_market_list_does_not_replace_what_was_known(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    known = catalogues(tmp_path, rest)
    await known.refresh(BINANCE)
    venue.listed = []
    assert len((await known.refresh(BINANCE)).catalogue.markets) == 2
    venue.resets()
    assert len((await catalogues(tmp_path, rest).refresh(BINANCE)).catalogue.markets) == 2


async def test_a_new_listing_is_known_after_a_refresh(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    known = catalogues(tmp_path, rest)
    await known.refresh(BINANCE)
    venue.listed.append("币安人生")
    assert (await known.refresh(BINANCE)).catalogue.find("币安人生/USDT:USDT").active
    venue.resets()
    kept = await catalogues(tmp_path, rest).refresh(BINANCE)
    assert kept.catalogue.find("币安人生/USDT:USDT").id == "币安人生USDT"


async def test_intervals_that_can_t_be_had_stay_as_they_were_and_cost_no_market(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    known = catalogues(tmp_path, rest)
    await known.refresh(BINANCE)
    venue.hours = None
    assert (await known.refresh(BINANCE)).catalogue.find("ETH/USDT:USDT").interval_hours == 4.0
    assert known.failures == {BINANCE: 1}
    venue.hours = {"ETHUSDT": 1}
    now = await known.refresh(BINANCE)
    assert now.catalogue.find("ETH/USDT:USDT").interval_hours == 1.0


async def test_intervals_never_told_are_unknown(
    venue: MetadataVenue, rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    venue.hours = None
    known = await catalogues(tmp_path, rest).refresh(BINANCE)
    assert known.catalogue.find("BTC/USDT:USDT").interval_hours is None


async def test_a_folder_that_can_t_be_written_costs_the_file_and_not_the_service(
    rest: BinanceFuturesRest, tmp_path: Path
) -> None:
    (tmp_path / "var").write_text("a file where the folder should be")
    known = catalogues(tmp_path / "var", rest)
    assert len((await known.refresh(BINANCE)).catalogue.markets) == 2
    assert known.failures == {BINANCE: 1}
