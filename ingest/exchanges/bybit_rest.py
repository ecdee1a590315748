"""Bybit v5 over REST: metadata, minutes, funding intervals, for its categories linear and spot.

Sources: https://bybit-exchange.github.io/docs/v5/market/kline, …/market/instrument, …/rate-limit,
…/error. An error comes as HTTP 200 with a code, or as 403 once the address has asked too much.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import unquote

from ingest.budget import Budgets, Limit
from ingest.clock import Clock
from ingest.exchanges.rest_base import (
    Metadata,
    MinutesPage,
    closed_klines,
    kline,
    next_minute,
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
from marketdata.schema import MINUTE_MS

EXCHANGE = "BYBIT"
BASE_URL = "https://api.bybit.com"
REQUESTS = Limit("requests", 600, 5_000, sliding=True)
BAN_S = 600.0
PAGE = 1_000

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
    if code is None or code in SERVER_FAULTS:
        return ExchangeUnavailable(f"{words}; worth another try later")
    return ExchangeRefused(f"{words}, expected 0")


DIALECT = Dialect(EXCHANGE, (REQUESTS,), ban_s=BAN_S, refusal=refusal)


class BybitRest:
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

    async def minutes(
        self, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[MinutesPage]:
        minute_ms, end_ms = next_minute(start_ms), next_minute(end_ms)
        while minute_ms < end_ms:
            asked_end_ms = min(end_ms, minute_ms + PAGE * MINUTE_MS)
            answer = await self.client.get(
                "/v5/market/kline",
                {
                    "category": "spot" if market.kind == "spot" else "linear",
                    "symbol": market.id,
                    "interval": "1",
                    "start": minute_ms,
                    "end": asked_end_ms - 1,
                    "limit": (asked_end_ms - minute_ms) // MINUTE_MS,
                },
            )
            # The rows were read after we sent and before the answer's time: no open minute passes.
            server_ms = _time_ms(answer) - (answer.received_ms - answer.sent_ms)
            page_end_ms = min(asked_end_ms, server_ms - server_ms % MINUTE_MS)
            if page_end_ms > minute_ms:
                klines = parse_klines(_list(answer), market, server_ms)
                yield MinutesPage(klines, minute_ms, page_end_ms, server_ms)
            if page_end_ms < asked_end_ms:
                return
            minute_ms = page_end_ms

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


def _kline(row: object, market: Market, server_ms: int) -> Kline:
    match row:
        case [str(start), open_, high, low, close, volume, turnover] if start.isdecimal():
            prices, volumes = (open_, high, low, close), (volume, turnover)
            return kline(market, server_ms, int(start), prices, volumes, None)
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
    match answer.body:
        case {"time": int(time_ms)}:
            return time_ms
        case _:
            raise BadMessage(f"{EXCHANGE} answers {answer.body!r:.100}, expected its time in ms")


def _reset_s(answer: Answer) -> float:
    """Until the limit's window ends, or a whole window where the header doesn't say."""
    reset = answer.headers.get("X-Bapi-Limit-Reset-Timestamp", "")
    if not reset.isdecimal():
        return REQUESTS.window_ms / 1000
    return max(0.1, (int(reset) - _time_ms(answer)) / 1000)
