"""An exchange's history over REST, page by page: minutes, mark candles, settlements.

How large a page is, and what is asked for it, each exchange says; how pages follow each other is
the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Literal, NamedTuple

from ingest.exchanges.rest_base import (
    LONGEST_INTERVAL_MS,
    ClosedPage,
    Settled,
    next_candle,
    next_minute,
    require_within,
    settlement_rows,
)
from ingest.model import Kline
from marketdata.pairs import Market
from marketdata.schema import CANDLE_MS, MINUTE_MS, FundingSettled, Mark3m

Series = Literal["ohlcv", "mark_3m"]
EACH_MS: Mapping[Series, int] = {"ohlcv": MINUTE_MS, "mark_3m": CANDLE_MS}
"""How far the rows of a series are apart."""


class Page(NamedTuple):
    """An answer for the rows that open in [start_ms, end_ms), at `server_ms` of the exchange."""

    rows: object
    start_ms: int
    end_ms: int
    server_ms: int


class PagedHistory(ABC):
    """What `rest_base.ExchangeRest` says of history, out of single pages.

    Parameters
    ----------
    parse_klines, parse_mark_candles
        Make of the rows of a page, for a market, what was closed at a time of the exchange.
    """

    def __init__(
        self,
        parse_klines: Callable[[object, Market, int], list[Kline]],
        parse_mark_candles: Callable[[object, Market, int], list[Mark3m]],
    ) -> None:
        self._parse_klines = parse_klines
        self._parse_mark_candles = parse_mark_candles

    @abstractmethod
    async def _page(
        self, series: Series, market: Market, start_ms: int, end_ms: int
    ) -> Page | None:
        """The first page of [start_ms, end_ms); None where it is known that none has closed."""

    @abstractmethod
    async def _rates(self, market: Market, start_ms: int, end_ms: int) -> tuple[list[Settled], int]:
        """All rates from `start_ms` on and before a time, ascending, and that time.

        It is at most `end_ms`, and the next page begins there.
        """

    async def minutes(
        self, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[ClosedPage[Kline]]:
        start_ms, end_ms = next_minute(start_ms), next_minute(end_ms)
        async for page in self._pages("ohlcv", market, start_ms, end_ms):
            klines = self._parse_klines(page.rows, market, page.server_ms)
            require_within((kline.minute_ms for kline in klines), page.start_ms, page.end_ms)
            yield ClosedPage(klines, page.start_ms, page.end_ms, page.server_ms)

    async def mark_candles(
        self, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[ClosedPage[Mark3m]]:
        start_ms, end_ms = next_candle(start_ms), next_candle(end_ms)
        async for page in self._pages("mark_3m", market, start_ms, end_ms):
            candles = self._parse_mark_candles(page.rows, market, page.server_ms)
            require_within((candle.time for candle in candles), page.start_ms, page.end_ms)
            yield ClosedPage(candles, page.start_ms, page.end_ms, page.server_ms)

    async def settlements(
        self, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[list[FundingSettled]]:
        start_ms, end_ms = next_minute(start_ms), next_minute(end_ms)
        # One interval earlier, so that the distance to the settlement before is known.
        asked_ms, before_ms = max(0, start_ms - LONGEST_INTERVAL_MS), None
        while asked_ms < end_ms:
            rates, until_ms = await self._rates(market, asked_ms, end_ms)
            rows = settlement_rows(rates, market, start_ms, before_ms)
            if rows:
                yield rows
            if rates:
                before_ms = rates[-1].time_ms
            if until_ms <= asked_ms:
                return
            asked_ms = until_ms

    async def _pages(
        self, series: Series, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[Page]:
        """Pages that follow each other without a hole, up to what has closed."""
        each_ms = EACH_MS[series]
        while start_ms < end_ms:
            page = await self._page(series, market, start_ms, end_ms)
            if page is None:
                return
            closed_ms = min(page.end_ms, page.server_ms - page.server_ms % each_ms)
            if closed_ms > start_ms:
                yield page._replace(end_ms=closed_ms)
            if closed_ms < page.end_ms:
                return
            start_ms = closed_ms
