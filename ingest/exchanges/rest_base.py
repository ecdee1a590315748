"""What an exchange's REST side offers, whatever the exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import NamedTuple, Protocol

from ingest.model import Kline
from ingest.rest import RestClient
from marketdata.errors import BadMessage
from marketdata.pairs import Catalogue, Market
from marketdata.schema import MINUTE_MS

Metadata = Mapping[str, object]
"""An exchange's own words about its markets: JSON, as it is kept on disk."""


class MinutesPage(NamedTuple):
    """What the exchange answers for the minutes that open in [start_ms, end_ms).

    All of them were closed at `server_ms`, the exchange's clock when it was asked; for one that
    `klines` (ascending) lacks, the exchange has no row.
    """

    klines: list[Kline]
    start_ms: int
    end_ms: int
    server_ms: int


class ExchangeRest(Protocol):
    """The REST side of one exchange; each call raises what `RestClient.get` and parsing raise.

    `interval_hours`: between two fundings of a perpetual that `intervals()` doesn't name.
    """

    exchange: str
    interval_hours: float | None
    client: RestClient

    async def catalogue(self) -> Metadata:
        """The exchange's metadata of all markets, as it says it."""

    def markets(self, metadata: Metadata) -> Catalogue:
        """What `catalogue()` brought, understood."""

    async def intervals(self) -> dict[str, float]:
        """Hours between two fundings, by exchange id."""

    async def volumes(self) -> dict[str, float]:
        """What contracts traded in the last 24 hours, in quote units, by exchange id."""

    async def server_ms(self) -> int:
        """The exchange's clock, UTC milliseconds."""

    def minutes(self, market: Market, start_ms: int, end_ms: int) -> AsyncIterator[MinutesPage]:
        """Closed minutes that open in [start_ms, end_ms), page by page, oldest first.

        Pages follow each other without a hole and end with the last minute that is closed.
        """

    async def close(self) -> None:
        """Close the connections."""


def next_minute(time_ms: int) -> int:
    """The first start of a minute from `time_ms` on.

    >>> next_minute(60_000), next_minute(60_001)
    (60000, 120000)
    """
    return -(-time_ms // MINUTE_MS) * MINUTE_MS


def volumes_by_id(rows: object, column: str) -> dict[str, float]:
    """Volumes out of a list of tickers; one that states none is left out, as if nothing traded.

    >>> volumes_by_id([{"symbol": "BTCUSDT", "turnover24h": "7.5"}, {"symbol": "X"}], "turnover24h")
    {'BTCUSDT': 7.5}
    """
    if not isinstance(rows, list):
        raise BadMessage(f"tickers are {rows!r:.100}, expected a list")
    volumes = {}
    for row in rows:
        match row:
            case {"symbol": str(market_id)} if numbers := _decimals((row.get(column),)):
                volumes[market_id] = float(numbers[0])
    return volumes


def closed_klines(
    rows: object, market: Market, server_ms: int, parse: Callable[[object, Market, int], Kline]
) -> list[Kline]:
    """The minutes of an answer that were over at `server_ms`, ascending however they came.

    Raises
    ------
    BadMessage
        No list, or a row that `parse` can't understand.
    """
    if not isinstance(rows, list):
        raise BadMessage(
            f"{market.exchange} {market.id}: klines are {rows!r:.100}, expected a list"
        )
    klines = (parse(row, market, server_ms) for row in rows)
    return sorted(
        (kline for kline in klines if kline.minute_ms + MINUTE_MS <= server_ms),
        key=lambda kline: kline.minute_ms,
    )


def kline(
    market: Market,
    server_ms: int,
    minute_ms: int,
    prices: Sequence[object],
    volumes: Sequence[object],
    trades: int | None,
) -> Kline:
    """A closed minute out of an exchange's strings: open, high, low, close; base and quote volume.

    Raises
    ------
    BadMessage
        Not a minute, a price that is no positive number, a volume that is no number from 0 up.
    """
    numbers = _decimals((*prices, *volumes))
    if numbers is None or minute_ms % MINUTE_MS or min(numbers[:4]) <= 0 or min(numbers) < 0:
        raise BadMessage(
            f"{market.exchange} {market.id}: minute {minute_ms}, prices {prices}, "
            f"volumes {volumes}; expected the start of a minute, prices above 0, volumes from 0 up"
        )
    open_, high, low, close, volume, quote_volume = numbers
    return Kline(
        exchange=market.exchange,
        symbol=market.pair,
        minute_ms=minute_ms,
        open=float(open_),
        high=float(high),
        low=float(low),
        close=float(close),
        volume=volume,
        quote_volume=quote_volume,
        trades=trades,
        closed=True,
        event_ms=server_ms,
        source="rest",
    )


def _decimals(texts: Sequence[object]) -> list[Decimal] | None:
    try:
        numbers = [Decimal(text) for text in texts if isinstance(text, str)]
    except InvalidOperation:
        return None
    complete = len(numbers) == len(texts) and all(number.is_finite() for number in numbers)
    return numbers if complete else None
