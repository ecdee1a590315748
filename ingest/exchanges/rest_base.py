"""What an exchange's REST side offers, whatever the exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from math import isfinite
from typing import Generic, NamedTuple, Protocol, TypeVar

from ingest.budget import Limit
from ingest.model import Kline
from ingest.rest import RestClient
from marketdata.errors import BadMessage
from marketdata.pairs import Catalogue, Market
from marketdata.schema import CANDLE_MS, MINUTE_MS, FundingSettled, Mark3m

R = TypeVar("R")

Metadata = Mapping[str, object]
"""An exchange's own words about its markets: JSON, as it is kept on disk."""


class ClosedPage(NamedTuple, Generic[R]):
    """What the exchange answers for the minutes or candles that open in [start_ms, end_ms).

    All of them were closed at `server_ms`, the exchange's clock when it was asked; for one that
    `rows` (ascending) lacks, the exchange has no row.
    """

    rows: list[R]
    start_ms: int
    end_ms: int
    server_ms: int


HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LATEST_MS = 2**53
LONGEST_INTERVAL_MS = 8 * HOUR_MS
"""No exchange here settles less often: a longer distance between two settlements is a hole."""


class Cost(NamedTuple):
    """What one call for history takes: `weight` of `limit`, for at most `span_ms` of time."""

    limit: Limit
    weight: int
    span_ms: int


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

    def minutes(
        self, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[ClosedPage[Kline]]:
        """Closed minutes that open in [start_ms, end_ms), page by page, oldest first.

        Pages follow each other without a hole and end with the last minute that is closed.
        """

    def settlements(
        self, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[list[FundingSettled]]:
        """Settlements with start_ms <= time < end_ms, page by page, oldest first.

        Times are floored to the minute, rates are fractions. `interval_hours` is the distance to
        the settlement before, or the market's own where that one is unknown.
        """

    def mark_candles(
        self, market: Market, start_ms: int, end_ms: int
    ) -> AsyncIterator[ClosedPage[Mark3m]]:
        """Closed 3-minute candles of the mark price that open in [start_ms, end_ms), likewise."""

    def cost(self, measurement: str, market: Market) -> Cost:
        """What a call for `ohlcv`, `mark_3m` or `funding_settled` costs at its cheapest page."""

    async def close(self) -> None:
        """Close the connections."""


def server_time_ms(exchange: str, time_ms: object, received_ms: int) -> int:
    """The exchange's clock out of an answer that came at `received_ms`.

    Raises
    ------
    BadMessage
        No time, or one a day ahead of ours: what is open still would be taken for closed.
    """
    if isinstance(time_ms, int) and 0 < time_ms < received_ms + DAY_MS:
        return time_ms
    raise BadMessage(f"{exchange} says that it is {time_ms!r:.100}, expected its time in ms")


def milliseconds(text: str) -> int:
    """A time that an exchange writes as text; 0, which is none, for what isn't one.

    >>> milliseconds("1670608800000"), milliseconds("-1"), milliseconds("9" * 30)
    (1670608800000, 0, 0)
    """
    return int(text) if text.isdecimal() and len(text) <= 15 else 0


def require_within(times: Iterable[int], start_ms: int, end_ms: int) -> None:
    """Check that an answer has what was asked for only: start_ms <= time < end_ms.

    Raises
    ------
    BadMessage
        It has other times, so what it lacks proves nothing.
    """
    for time_ms in times:
        if not start_ms <= time_ms < end_ms:
            raise BadMessage(f"an answer for {start_ms} to {end_ms} has a row of {time_ms}")


def next_minute(time_ms: int) -> int:
    """The first start of a minute from `time_ms` on.

    >>> next_minute(60_000), next_minute(60_001)
    (60000, 120000)
    """
    return -(-time_ms // MINUTE_MS) * MINUTE_MS


def next_candle(time_ms: int) -> int:
    """The first start of a 3-minute candle from `time_ms` on.

    >>> next_candle(180_000), next_candle(180_001)
    (180000, 360000)
    """
    return -(-time_ms // CANDLE_MS) * CANDLE_MS


def volumes_by_id(rows: object, column: str) -> dict[str, float]:
    """Volumes out of a list of tickers; one that states none is left out, as if nothing traded.

    >>> row = {"symbol": "BTCUSDT", "turnover24h": "7.5"}
    >>> volumes_by_id([row, {"symbol": "X"}, {"symbol": "Y", "turnover24h": "-1"}], "turnover24h")
    {'BTCUSDT': 7.5}
    """
    if not isinstance(rows, list):
        raise BadMessage(f"tickers are {rows!r:.100}, expected a list")
    volumes = {}
    for row in rows:
        match row:
            case {"symbol": str(market_id)} if numbers := _decimals((row.get(column),)):
                if numbers[0] >= 0:
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
        Not a minute, a price that is no positive number, a volume that is no number from 0 up, or
        no count of trades.
    """
    numbers = _decimals((*prices, *volumes))
    counted = trades is None or (0 <= trades < LATEST_MS and not isinstance(trades, bool))
    if (
        numbers is None
        or not _starts(minute_ms, MINUTE_MS)
        or not counted
        or float(min(numbers[:4])) <= 0
        or min(numbers) < 0
    ):
        raise BadMessage(
            f"{market.exchange} {market.id}: minute {minute_ms}, prices {prices!s:.200}, "
            f"volumes {volumes!s:.200}, trades {trades}; expected the start of a minute, prices "
            f"above 0, the others from 0 up"
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


def mark_candle(market: Market, open_ms: int, prices: Sequence[object]) -> Mark3m:
    """A closed 3-minute candle out of an exchange's strings: open, high, low, close.

    Raises
    ------
    BadMessage
        Not the start of a candle, a price that is no positive number.
    """
    numbers = _decimals(prices)
    if numbers is None or not _starts(open_ms, CANDLE_MS) or float(min(numbers)) <= 0:
        raise BadMessage(
            f"{market.exchange} {market.id}: mark candle {open_ms}, prices {prices!s:.200}; "
            f"expected the start of a 3-minute candle and prices above 0"
        )
    open_, high, low, close = map(float, numbers)
    return Mark3m(market.exchange, market.pair, open_ms, open_, high, low, close, "rest")


def closed_mark_candles(
    rows: object, market: Market, server_ms: int, parse: Callable[[object, Market], Mark3m]
) -> list[Mark3m]:
    """The mark candles of an answer that were over at `server_ms`, ascending however they came.

    Raises
    ------
    BadMessage
        No list, or a row that `parse` can't understand.
    """
    if not isinstance(rows, list):
        raise BadMessage(
            f"{market.exchange} {market.id}: mark candles are {rows!r:.100}, expected a list"
        )
    candles = (parse(row, market) for row in rows)
    return sorted(
        (candle for candle in candles if candle.time + CANDLE_MS <= server_ms),
        key=lambda candle: candle.time,
    )


class Settled(NamedTuple):
    """One rate of an exchange's funding history; `special` where it is an extra one."""

    time_ms: int
    rate: float
    special: bool = False


def settled_rate(market: Market, time_ms: int, text: object, *, special: bool = False) -> Settled:
    """One settlement out of an exchange's strings, its time floored to the minute.

    Raises
    ------
    BadMessage
        No time, or a rate that is no number.
    """
    numbers = _decimals((text,))
    if numbers is None or not MINUTE_MS <= time_ms < LATEST_MS:
        raise BadMessage(
            f"{market.exchange} {market.id}: settled {text!r:.200} at {time_ms}, "
            f"expected a rate and a time in ms"
        )
    return Settled(time_ms - time_ms % MINUTE_MS, float(numbers[0]), special)


def settlement_rows(
    rates: Sequence[Settled], market: Market, start_ms: int, before_ms: int | None = None
) -> list[FundingSettled]:
    """Rows from `start_ms` on, ascending; earlier rates tell the first one's interval only.

    A special rate becomes a column of the settlement that it came with; one that came alone is
    left out.

    Parameters
    ----------
    before_ms
        The settlement before all of `rates`, if it is known.
    """
    special = {rate.time_ms: rate.rate for rate in rates if rate.special}
    regular = {rate.time_ms: rate.rate for rate in rates if not rate.special}
    rows = []
    for time_ms in sorted(regular):
        if time_ms >= start_ms:
            rows.append(
                FundingSettled(
                    market.exchange, market.pair, time_ms, regular[time_ms],
                    interval_between(before_ms, time_ms, market), special.get(time_ms),
                )
            )  # fmt: skip
        before_ms = time_ms
    return rows


def interval_between(before_ms: int | None, time_ms: int, market: Market) -> float | None:
    """Hours from one settlement to the next; the market's own where the former is unknown.

    Intervals change during the day, so the distance says more than today's metadata.
    """
    if before_ms is not None and 0 < time_ms - before_ms <= LONGEST_INTERVAL_MS:
        return (time_ms - before_ms) / HOUR_MS
    return market.interval_hours


def _starts(time_ms: int, step_ms: int) -> bool:
    return 0 < time_ms < LATEST_MS and time_ms % step_ms == 0


def _decimals(texts: Sequence[object]) -> list[Decimal] | None:
    """The numbers, None unless all of them are; each is finite as a float too."""
    try:
        numbers = [Decimal(text) for text in texts if isinstance(text, str)]
    except InvalidOperation:
        return None
    complete = len(numbers) == len(texts) and all(
        number.is_finite() and isfinite(float(number)) for number in numbers
    )
    return numbers if complete else None
