"""Bybit v5 over REST, its categories linear and spot: metadata, minutes, marks, settlements.

Sources: https://bybit-exchange.github.io/docs/v5/market/kline, …/market/instrument, …/rate-limit,
…/error. An error comes as HTTP 200 with a code, or as 403 once the address has asked too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

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
    milliseconds,
    require_within,
    server_time_ms,
    settled_rate,
    volumes_by_id,
)
from ingest.model import Kline
from ingest.rest import Answer, Dialect, RestClient
from marketdata.errors import (
    BadMessage,
    ExchangeRefused,
    ExchangeUnavailable,
    MarketDataError,
    RateLimited,
)
from marketdata.pairs import Catalogue, Market, bybit_markets
from marketdata.schema import CANDLE_MS, MINUTE_MS, Mark3m

EXCHANGE = "BYBIT"
BASE_URL = "https://api.bybit.com"
REQUESTS = Limit("requests", 600, 5_000, sliding=True)
BAN_S = 600.0
SERIES: Mapping[Series, tuple[str, str]] = {
    "ohlcv": ("/v5/market/kline", "1"),
    "mark_3m": ("/v5/market/mark-price-kline", "3"),
}
PAGE = 1_000
SETTLEMENTS_PAGE = 200
SETTLEMENTS_SPAN = 190
"""Settlements that surely fit into one page, the one before them included."""

TOO_MANY_VISITS = 10_006
ADDRESS_LIMITED = 10_018
SERVER_FAULTS = frozenset({10_000, 10_016})
"""Time-out and internal error: the same request may work later."""


def refusal(answer: Answer) -> MarketDataError | None:
    """The error in an answer whose `retCode` isn't 0."""
    body = answer.body
    code = body.get("retCode") if isinstance(body, dict) else None
    if code == 0:
        return None
    words = f"{EXCHANGE} answers {code}: {str(body)[:200]}"
    if code == TOO_MANY_VISITS:
        wait_s = _reset_s(answer)
        return RateLimited(f"{words}; asked again in {wait_s:.1f} s", retry_after_s=wait_s)
    if code == ADDRESS_LIMITED:
        return RateLimited(f"{words}; left alone for {BAN_S:.0f} s", retry_after_s=BAN_S)
    if not isinstance(code, int) or code in SERVER_FAULTS:
        return ExchangeUnavailable(f"{words}; worth another try later")
    return ExchangeRefused(f"{words}, expected 0")


DIALECT = Dialect(EXCHANGE, (REQUESTS,), ban_s=BAN_S, refusal=refusal)


class BybitRest(PagedHistory):
    """REST side of Bybit (see `rest_base.ExchangeRest`)."""

    exchange = EXCHANGE
    interval_hours: float | None = None

    def __init__(
        self,
        budgets: Budgets,
        clock: Clock,
        rest_url: str | None = None,
        proxy: str | None = None,
    ) -> None:
        super().__init__(parse_klines, parse_mark_candles)
        self.client = RestClient(rest_url or BASE_URL, DIALECT, budgets, clock, proxy)

    async def close(self) -> None:
        await self.client.close()

    async def catalogue(self) -> Metadata:
        """Instruments by category, all pages of them."""
        return {
            "linear": await self._instruments("linear"),
            "spot": await self._instruments("spot"),
        }

    def markets(self, metadata: Metadata) -> Catalogue:
        return bybit_markets(
            {category: rows for category, rows in metadata.items() if isinstance(rows, list)}
        )

    async def intervals(self) -> dict[str, float]:
        linear = bybit_markets({"linear": await self._instruments("linear")})
        return {
            market.id: market.interval_hours
            for market in linear.markets
            if market.interval_hours is not None
        }

    async def volumes(self) -> dict[str, float]:
        answer = await self.client.get("/v5/market/tickers", {"category": "linear"})
        return volumes_by_id(_list(answer), "turnover24h")

    async def server_ms(self) -> int:
        return _time_ms(await self.client.get("/v5/market/time"))

    async def _page(self, series: Series, market: Market, start_ms: int, end_ms: int) -> Page:
        path, interval = SERIES[series]
        page_end_ms = min(end_ms, start_ms + PAGE * EACH_MS[series])
        answer = await self.client.get(
            path,
            {
                "category": "spot" if market.kind == "spot" else "linear",
                "symbol": market.id,
                "interval": interval,
                "start": start_ms,
                "end": page_end_ms - 1,
                "limit": (page_end_ms - start_ms) // EACH_MS[series],
            },
        )
        # The rows were read after we sent and before the answer's time: no open one passes.
        server_ms = _time_ms(answer) - (answer.received_ms - answer.sent_ms)
        return Page(_list(answer), start_ms, page_end_ms, server_ms)

    async def _rates(self, market: Market, start_ms: int, end_ms: int) -> tuple[list[Settled], int]:
        """A span that fits into a page; more, and pages of it come newest first."""
        end_ms = until_ms = min(end_ms, start_ms + self.cost("funding_settled", market).span_ms)
        rates: list[Settled] = []
        while start_ms < end_ms:
            answer = await self.client.get(
                "/v5/market/funding/history",
                {
                    "category": "linear",
                    "symbol": market.id,
                    "startTime": start_ms,
                    "endTime": end_ms - 1,
                    "limit": SETTLEMENTS_PAGE,
                },
            )
            page = parse_settlements(_list(answer), market)
            require_within((rate.time_ms for rate in page), start_ms, end_ms)
            rates = page + rates
            if len(page) < SETTLEMENTS_PAGE:
                break
            end_ms = page[0].time_ms
        return rates, until_ms

    def cost(self, measurement: str, market: Market) -> Cost:
        if measurement == "funding_settled":
            span_ms = SETTLEMENTS_SPAN * int((market.interval_hours or 1.0) * HOUR_MS)
            return Cost(REQUESTS, 1, span_ms)
        each_ms = CANDLE_MS if measurement == "mark_3m" else MINUTE_MS
        return Cost(REQUESTS, 1, PAGE * each_ms)

    async def _instruments(self, category: str) -> list[dict[str, object]]:
        instruments: list[dict[str, object]] = []
        cursor = ""
        while True:
            params: dict[str, str | int] = {"category": category, "limit": PAGE}
            if cursor:
                # It comes percent-encoded, and the client encodes what it sends.
                params["cursor"] = unquote(cursor)
            answer = await self.client.get("/v5/market/instruments-info", params)
            for row in _list(answer):
                if not isinstance(row, dict):
                    raise BadMessage(f"{EXCHANGE} instrument {row!r:.100}, expected an object")
                instruments.append(row)
            following = _result(answer).get("nextPageCursor")
            if not isinstance(following, str) or following in ("", cursor):
                return instruments
            cursor = following


def parse_klines(rows: object, market: Market, server_ms: int) -> list[Kline]:
    """Closed minutes of a kline list (which comes newest first), ascending.

    Volume is in base, turnover in quote units on linear and spot; trades are not counted.

    Raises
    ------
    BadMessage
        No list, or a row that can't be understood.
    """
    return closed_klines(rows, market, server_ms, _kline)


def parse_mark_candles(rows: object, market: Market, server_ms: int) -> list[Mark3m]:
    """Closed candles of a mark price kline list (which comes newest first), ascending.

    Raises
    ------
    BadMessage
        No list, or a row that can't be understood.
    """
    return closed_mark_candles(rows, market, server_ms, _mark_candle)


def parse_settlements(rows: list[object], market: Market) -> list[Settled]:
    """Rates of a funding history (which comes newest first), ascending.

    Raises
    ------
    BadMessage
        A row without time and rate.
    """
    return sorted(_settlement(row, market) for row in rows)


def _mark_candle(row: object, market: Market) -> Mark3m:
    match row:
        case [str(start), open_, high, low, close]:
            return mark_candle(market, milliseconds(start), (open_, high, low, close))
        case _:
            raise BadMessage(f"{EXCHANGE} {market.id}: mark kline {row!r:.200}, expected 5 strings")


def _settlement(row: object, market: Market) -> Settled:
    match row:
        case {"fundingRateTimestamp": str(time), "fundingRate": rate}:
            return settled_rate(market, milliseconds(time), rate)
        case _:
            raise BadMessage(f"{EXCHANGE} {market.id}: settlement {row!r:.200}, expected a rate")


def _kline(row: object, market: Market, server_ms: int) -> Kline:
    match row:
        case [str(start), open_, high, low, close, volume, turnover]:
            prices, volumes = (open_, high, low, close), (volume, turnover)
            return kline(market, server_ms, milliseconds(start), prices, volumes, None)
        case _:
            raise BadMessage(f"{EXCHANGE} {market.id}: kline {row!r:.200}, expected 7 strings")


def _result(answer: Answer) -> dict[str, object]:
    match answer.body:
        case {"result": dict(result)}:
            return result
        case _:
            raise BadMessage(f"{EXCHANGE} answers {answer.body!r:.100}, expected a result")


def _list(answer: Answer) -> list[object]:
    rows = _result(answer).get("list")
    if not isinstance(rows, list):
        raise BadMessage(f"{EXCHANGE} answers {answer.body!r:.100}, expected a list")
    return rows


def _time_ms(answer: Answer) -> int:
    told = answer.body.get("time") if isinstance(answer.body, dict) else None
    return server_time_ms(EXCHANGE, told, answer.received_ms)


def _reset_s(answer: Answer) -> float:
    """Until the limit's window ends, or a whole window where the answer doesn't say."""
    reset_ms = milliseconds(answer.headers.get("X-Bapi-Limit-Reset-Timestamp", ""))
    try:
        left_ms = reset_ms - _time_ms(answer) if reset_ms else REQUESTS.window_ms
    except BadMessage:
        left_ms = REQUESTS.window_ms
    return min(max(0.1, left_ms / 1000), BAN_S)
