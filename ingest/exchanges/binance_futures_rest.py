"""Binance USD-M futures over REST: metadata, minutes, mark candles, settlements, intervals.

Sources: https://developers.binance.com/docs/derivatives/usds-margined-futures/market-data/rest-api
and its general info on limits. Weight is counted by address and UTC minute, refused calls included.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from ingest.budget import Budgets, Limit
from ingest.clock import Clock
from ingest.exchanges.history import EACH_MS, Page, PagedHistory, Series
from ingest.exchanges.rest_base import (
    HOUR_MS,
    Cost,
    Metadata,
    Settled,
    closed_klines,
    closed_mark_candles,
    kline,
    mark_candle,
    require_within,
    server_time_ms,
    settled_rate,
    volumes_by_id,
)
from ingest.model import Kline
from ingest.rest import Dialect, RestClient
from marketdata.errors import BadMessage, ExchangeRefused
from marketdata.pairs import Catalogue, Market, binance_futures_markets
from marketdata.schema import CANDLE_MS, MINUTE_MS, Mark3m

log = structlog.get_logger()

EXCHANGE = "BINANCE_FUTURES"
BASE_URL = "https://fapi.binance.com"
WEIGHT = Limit("weight", 2_400, 60_000)
FUNDING = Limit("funding", 500, 300_000, sliding=True)
DIALECT = Dialect(EXCHANGE, (WEIGHT, FUNDING), used_header="X-MBX-USED-WEIGHT-1M")

SERIES: Mapping[Series, tuple[str, str]] = {
    "ohlcv": ("/fapi/v1/klines", "1m"),
    "mark_3m": ("/fapi/v1/markPriceKlines", "3m"),
}
LONG_PAGE = 499
SHORT_PAGE = 99
"""The most rows for weight 2 and 1, whether or not a band of the price list includes its top."""
SETTLEMENTS_PAGE = 1_000
SETTLEMENTS_SPAN = 990
"""Settlements that surely fit into one page, the one before them and special ones included."""
CLOCK_LIFE_MS = 60_000


class BinanceFuturesRest(PagedHistory):
    """REST side of Binance USD-M futures (see `rest_base.ExchangeRest`)."""

    exchange = EXCHANGE
    interval_hours: float | None = 8.0
    """Of perpetuals that `fundingInfo` leaves out, since it lists adjusted ones only."""

    def __init__(
        self,
        budgets: Budgets,
        clock: Clock,
        rest_url: str | None = None,
        proxy: str | None = None,
    ) -> None:
        super().__init__(parse_klines, parse_mark_candles)
        self.client = RestClient(rest_url or BASE_URL, DIALECT, budgets, clock, proxy)
        self._clock = clock
        self._ahead_ms = 0
        self._measured_ms: int | None = None

    async def close(self) -> None:
        await self.client.close()

    async def catalogue(self) -> Metadata:
        """`exchangeInfo`, whole. Its `serverTime` may be hours old: no use as a clock."""
        answer = await self.client.get("/fapi/v1/exchangeInfo", weight=1)
        if not isinstance(answer.body, dict):
            raise BadMessage(f"{EXCHANGE} exchangeInfo is no JSON object")
        return answer.body

    def markets(self, metadata: Metadata) -> Catalogue:
        return binance_futures_markets(metadata)

    async def intervals(self) -> dict[str, float]:
        answer = await self.client.get("/fapi/v1/fundingInfo", limit=FUNDING.name)
        return parse_intervals(answer.body)

    async def volumes(self) -> dict[str, float]:
        answer = await self.client.get("/fapi/v1/ticker/24hr", weight=40)
        return volumes_by_id(answer.body, "quoteVolume")

    async def server_ms(self) -> int:
        answer = await self.client.get("/fapi/v1/time", weight=1)
        body = answer.body
        told = body.get("serverTime") if isinstance(body, dict) else None
        server_ms = server_time_ms(EXCHANGE, told, answer.received_ms)
        self._ahead_ms = server_ms - answer.received_ms
        self._measured_ms = answer.received_ms
        return server_ms

    async def _page(
        self, series: Series, market: Market, start_ms: int, end_ms: int
    ) -> Page | None:
        path, interval = SERIES[series]
        each_ms = EACH_MS[series]
        server_ms = await self._server_now_ms()
        closed_ms = min(end_ms, server_ms - server_ms % each_ms)
        if start_ms >= closed_ms:
            return None
        rows = page_rows((closed_ms - start_ms) // each_ms)
        page_end_ms = min(closed_ms, start_ms + rows * each_ms)
        answer = await self.client.get(
            path,
            {
                "symbol": market.id,
                "interval": interval,
                "startTime": start_ms,
                "endTime": page_end_ms - 1,
                "limit": rows,
            },
            weight=klines_weight(rows),
        )
        return Page(answer.body, start_ms, page_end_ms, server_ms)

    async def _rates(self, market: Market, start_ms: int, end_ms: int) -> tuple[list[Settled], int]:
        answer = await self.client.get(
            "/fapi/v1/fundingRate",
            {
                "symbol": market.id,
                "startTime": start_ms,
                "endTime": end_ms - 1,
                "limit": SETTLEMENTS_PAGE,
            },
            limit=FUNDING.name,
        )
        rates = parse_settlements(answer.body, market)
        require_within((rate.time_ms for rate in rates), start_ms, end_ms)
        if len(rates) < SETTLEMENTS_PAGE:
            return rates, end_ms
        # A special rate of the last minute may stand on the next page.
        until_ms = rates[-1].time_ms
        return [rate for rate in rates if rate.time_ms < until_ms], until_ms

    def cost(self, measurement: str, market: Market) -> Cost:
        if measurement == "funding_settled":
            hours = market.interval_hours or self.interval_hours or 1.0
            return Cost(FUNDING, 1, SETTLEMENTS_SPAN * int(hours * HOUR_MS))
        each_ms = CANDLE_MS if measurement == "mark_3m" else MINUTE_MS
        return Cost(WEIGHT, klines_weight(LONG_PAGE), LONG_PAGE * each_ms)

    async def _server_now_ms(self) -> int:
        """The server's clock, rather too early than too late, so that no open minute passes."""
        now_ms = self._clock.now_ms()
        if self._measured_ms is None or now_ms - self._measured_ms > CLOCK_LIFE_MS:
            try:
                await self.server_ms()
            except ExchangeRefused as refused:
                log.warning("server_clock_unknown", exchange=EXCHANGE, cause=str(refused))
                self._ahead_ms, self._measured_ms = 0, now_ms
        return self._clock.now_ms() + self._ahead_ms


def page_rows(minutes: int) -> int:
    """How many rows to ask for next, so that weight goes furthest.

    >>> page_rows(5), page_rows(99), page_rows(100), page_rows(2880)
    (5, 99, 100, 499)
    """
    return min(minutes, LONG_PAGE)


def klines_weight(rows: int) -> int:
    """Weight of a klines call with that limit, by the dearer reading of the price list.

    >>> [klines_weight(rows) for rows in (1, 99, 100, 499, 500, 1000, 1500)]
    [1, 1, 2, 2, 5, 5, 10]
    """
    if rows <= SHORT_PAGE:
        return 1
    if rows <= LONG_PAGE:
        return 2
    return 5 if rows <= 1_000 else 10


def parse_klines(rows: object, market: Market, server_ms: int) -> list[Kline]:
    """Closed minutes of a `klines` answer, ascending; volumes in base and quote units.

    Raises
    ------
    BadMessage
        No list, or a row that can't be understood.
    """
    return closed_klines(rows, market, server_ms, _kline)


def parse_mark_candles(rows: object, market: Market, server_ms: int) -> list[Mark3m]:
    """Closed candles of a `markPriceKlines` answer, ascending.

    Raises
    ------
    BadMessage
        No list, or a row that can't be understood.
    """
    return closed_mark_candles(rows, market, server_ms, _mark_candle)


def parse_settlements(rows: object, market: Market) -> list[Settled]:
    """Rates of a `fundingRate` answer, ascending; before July 2026 it doesn't say `rateType`.

    Raises
    ------
    BadMessage
        No list, or a row without time and rate.
    """
    if not isinstance(rows, list):
        raise BadMessage(f"{EXCHANGE} {market.id}: fundingRate is {rows!r:.100}, expected a list")
    return sorted(_settled(row, market) for row in rows)


def parse_intervals(rows: object) -> dict[str, float]:
    """Funding intervals in hours by id, out of a `fundingInfo` answer.

    Raises
    ------
    BadMessage
        No list, or a row without symbol or hours.
    """
    if not isinstance(rows, list):
        raise BadMessage(f"{EXCHANGE} fundingInfo is {rows!r:.100}, expected a list")
    intervals = {}
    for row in rows:
        match row:
            case {"symbol": str(symbol), "fundingIntervalHours": int(hours)} if hours > 0:
                intervals[symbol] = float(hours)
            case _:
                raise BadMessage(f"{EXCHANGE} fundingInfo has {row!r:.100}, expected hours")
    return intervals


def _kline(row: object, market: Market, server_ms: int) -> Kline:
    match row:
        case [int(minute_ms), open_, high, low, close, volume, _, quote_volume, int(trades), *_]:
            prices, volumes = (open_, high, low, close), (volume, quote_volume)
            return kline(market, server_ms, minute_ms, prices, volumes, trades)
        case _:
            raise BadMessage(f"{EXCHANGE} {market.id}: kline {row!r:.200}, expected 12 columns")


def _mark_candle(row: object, market: Market) -> Mark3m:
    match row:
        case [int(open_ms), open_, high, low, close, *_]:
            return mark_candle(market, open_ms, (open_, high, low, close))
        case _:
            raise BadMessage(
                f"{EXCHANGE} {market.id}: mark kline {row!r:.200}, expected 12 columns"
            )


def _settled(row: object, market: Market) -> Settled:
    match row:
        case {"fundingTime": int(time_ms), "fundingRate": rate, **others}:
            special = others.get("rateType", "Regular") != "Regular"
            return settled_rate(market, time_ms, rate, special=special)
        case _:
            raise BadMessage(f"{EXCHANGE} {market.id}: settlement {row!r:.200}, expected a rate")
