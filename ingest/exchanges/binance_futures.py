"""Binance USD-M futures: klines and mark prices of the routed `/market` streams.

One kline stream a pair gives the minutes and the last price, one mark price stream (or the
all-market one) marks, index and funding. What each field means, and how we know: docs/mapping.md.

Source: https://developers.binance.com/docs/derivatives/usds-margined-futures/websocket-market-streams
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import ClassVar, Literal
from urllib.parse import quote

import cryptofeed.exchanges
import msgspec
from msgspec import Raw, Struct, field

from ingest.connection import FeedConnection
from ingest.exchanges import base
from ingest.exchanges.base import PARSE_ERRORS, SupervisedFeed
from ingest.lanes import Lane, refill, relane
from ingest.model import Kline
from marketdata.errors import BadMessage
from marketdata.pairs import Market
from marketdata.schema import Channel, FundingRate, LastPrice, MarkPrice

ID = "BINANCE_FUTURES"
WS_URL = "wss://fstream.binance.com"
PATH = "/market/stream"
QUERY = "?streams="
ALL_MARKS = "!markPrice@arr@1s"
GROUP = "market"
"""All lanes have the one path, so streams are unique among them."""

STREAMS_PER_CONNECTION = 200
"""The exchange allows 1024; with fewer, a cut costs fewer pairs."""
URL_BYTES = 7_500
"""Addresses beyond 8,004 characters have been refused."""
LIFETIME_S = 85_800.0
"""23 h 50: the exchange cuts at 24 h."""

CHANNELS: base.ChannelsByKind = {
    "perpetual": ("candles", "funding", "mark_price", "last_price"),
    "future": ("candles", "mark_price", "last_price"),
}
_UM = 1
"""`st` of USD-M rows in the all-market stream; COIN-M rows have 2."""


def plan_lanes(
    markets: Sequence[Market],
    channels: Sequence[str],
    base_url: str = WS_URL,
    held: Sequence[Lane] = (),
) -> list[Lane]:
    """The connections for these markets and channels, changing as few of the held as can be.

    Marks come by a stream a pair, or all by one where that saves a connection. Once chosen it stays
    so, unless a stream a pair no longer fits into the connections that there are.
    """
    klines = [_kline_stream(market) for market in markets]
    marks = [_mark_stream(market) for market in markets]
    if not {"candles", "last_price"} & set(channels):
        klines.clear()
    if not {"funding", "mark_price"} & set(channels):
        marks.clear()
    room = URL_BYTES - len(base.endpoint(base_url, PATH + QUERY))
    carried = [lane.topics for lane in held]

    def pack(streams: Sequence[str]) -> list[tuple[str, ...]]:
        return refill(
            carried, streams, lambda s: len(_in_address(s)) + 1, room, STREAMS_PER_CONNECTION
        )

    per_pair = [stream for pair in zip(klines, marks, strict=False) for stream in pair]
    packed = pack(per_pair or [*klines, *marks])
    if marks:
        all_market = pack([ALL_MARKS, *klines])
        chosen = any(ALL_MARKS in topics for topics in carried)
        needed = len(packed) > max(len(held), len(all_market))
        fewer = sum(map(bool, all_market)) < sum(map(bool, packed))
        if chosen or (needed and fewer):
            packed = all_market
    return relane(held, packed, GROUP, lambda id, streams: _lane(id, streams, base_url))


def _kline_stream(market: Market) -> str:
    return f"{market.id.lower()}@kline_1m"


def _mark_stream(market: Market) -> str:
    return f"{market.id.lower()}@markPrice@1s"


def _lane(id: str, streams: tuple[str, ...], base_url: str) -> Lane:
    klines = sum("@kline_" in stream for stream in streams)
    marks = base.MARKS if klines < len(streams) else None
    return Lane(
        id=id,
        url=base.endpoint(base_url, PATH),
        topics=streams,
        silence_s=base.silence_limits(klines, marks),
        doubt_s=base.DOUBT_S if marks is None else None,
        lifetime_s=LIFETIME_S,
    )


def _in_address(stream: str) -> str:
    return quote(stream, safe="@!")


class _Minute(Struct):
    """`k` of a kline event."""

    start_ms: base.Minute = field(name="t")
    symbol: str = field(name="s")
    interval: Literal["1m"] = field(name="i")
    open: base.Price = field(name="o")
    high: base.Price = field(name="h")
    low: base.Price = field(name="l")
    close: base.Price = field(name="c")
    volume: Decimal = field(name="v")
    quote_volume: Decimal = field(name="q")
    trades: base.Count = field(name="n")
    closed: bool = field(name="x")


class KlineEvent(Struct, tag_field="e", tag="kline"):
    """One minute of a pair, forming or closed."""

    event_ms: base.Milliseconds = field(name="E")
    symbol: str = field(name="s")
    minute: _Minute = field(name="k")


class MarkEvent(Struct, tag_field="e", tag="markPriceUpdate"):
    """Mark and index price, and the rate for the settlement at `next_funding_ms`.

    `P`, the estimated settlement price, is a price and no rate: it isn't even read.
    """

    event_ms: base.Milliseconds = field(name="E")
    symbol: str = field(name="s")
    mark_price: base.Price = field(name="p")
    index_price: str = field(name="i", default="")
    rate: str = field(name="r", default="")
    next_funding_ms: base.DueMilliseconds = field(name="T", default=0)


class _Shutdown(Struct, tag_field="e", tag="serverShutdown"):
    pass


class _Row(Struct):
    """As much of a row of the all-market array as tells whether it is ours."""

    symbol: str = field(name="s")
    margin: int = field(name="st", default=_UM)


class _Frame(Struct):
    """A combined stream's message; `data` is None in answers to requests."""

    data: KlineEvent | MarkEvent | _Shutdown | list[Raw] | None = None
    event: str = field(name="e", default="")
    id: int | str | None = None
    code: int | None = None
    error: dict[str, object] | None = None


# Not strict: prices and volumes are strings, and become numbers here.
_FRAME = msgspec.json.Decoder(_Frame, strict=False)
_ROW = msgspec.json.Decoder(_Row, strict=False)
_MARK = msgspec.json.Decoder(MarkEvent, strict=False)


def parse_kline(pair: str, event: KlineEvent) -> Kline:
    """The minute of a kline event."""
    k = event.minute
    if k.symbol != event.symbol:
        raise BadMessage(f"a minute of {k.symbol!r} in an event of {event.symbol!r}")
    return Kline(
        ID,
        pair,
        base.begun(k.start_ms, event.event_ms),
        k.open,
        k.high,
        k.low,
        k.close,
        base.volume(k.volume),
        base.volume(k.quote_volume),
        k.trades,
        k.closed,
        event.event_ms,
    )


def parse_mark(pair: str, event: MarkEvent) -> MarkPrice:
    """The prices of a mark event."""
    index = base.optional_price(event.index_price)
    return MarkPrice(ID, pair, event.event_ms, event.mark_price, index)


def parse_funding(pair: str, event: MarkEvent, interval_hours: float | None) -> FundingRate | None:
    """The funding of a mark event; None where no settlement is due: then its rate means nothing."""
    if event.next_funding_ms <= 0 or not event.rate:
        return None
    rate = base.rate(event.rate)
    return FundingRate(ID, pair, event.event_ms, rate, None, event.next_funding_ms, interval_hours)


class BinanceFutures(SupervisedFeed, cryptofeed.exchanges.BinanceFutures):  # type: ignore[misc]
    """Candles, funding, mark and last prices of Binance USD-M futures; see `SupervisedFeed`."""

    ws_url = WS_URL
    channels_by_kind = CHANNELS
    plan_lanes = staticmethod(plan_lanes)
    websocket_channels: ClassVar[dict[str, str]] = {
        "candles": "kline_1m",
        "funding": "markPrice@1s",
        "mark_price": "markPrice@1s",
        "last_price": "kline_1m",
    }

    @staticmethod
    def topics_of(market: Market, channel: Channel) -> tuple[str, ...]:
        klines = channel in ("candles", "last_price")
        streams = (_kline_stream(market),) if klines else (_mark_stream(market), ALL_MARKS)
        return tuple(f"{GROUP}/{stream}" for stream in streams)

    @staticmethod
    def address_of(lane: Lane) -> str:
        return f"{lane.url}{QUERY}{'/'.join(map(_in_address, lane.topics))}"

    async def message_handler(
        self, msg: bytes | str, conn: FeedConnection, timestamp: float
    ) -> str | None:
        frame = _FRAME.decode(msg)
        data = frame.data
        if isinstance(data, KlineEvent):
            await self._kline(data, timestamp)
            return base.CANDLES
        if isinstance(data, MarkEvent):
            await self._mark(data, timestamp)
            return base.MARKS
        if isinstance(data, list):
            for row in data:
                await self._row(row, timestamp)
            return base.MARKS
        if isinstance(data, _Shutdown) or frame.event == "serverShutdown":
            conn.notice = "the exchange announces a shutdown"
        elif frame.error is not None or frame.code is not None:
            self.bad_messages.add("refused", msg, "the exchange refuses a request")
        elif frame.id is None:
            raise BadMessage("neither data nor an answer")
        return None

    async def _kline(self, event: KlineEvent, timestamp: float) -> None:
        market = self._by_id.get(event.symbol)
        if market is None:
            return
        base.event_ms(event.event_ms, timestamp)
        kline = parse_kline(market.pair, event)
        if "candles" in self.wanted:
            await self.callback("candles", kline, timestamp)
        if "last_price" in self.wanted:
            last = LastPrice(ID, market.pair, kline.event_ms, kline.close)
            await self.callback("last_price", last, timestamp)

    async def _mark(self, event: MarkEvent, timestamp: float) -> None:
        market = self._by_id.get(event.symbol)
        if market is None:
            return
        base.event_ms(event.event_ms, timestamp)
        mark = parse_mark(market.pair, event)
        funding = parse_funding(market.pair, event, self.interval_hours(market))
        if "mark_price" in self.wanted:
            await self.callback("mark_price", mark, timestamp)
        if "funding" in self.wanted and funding is not None:
            await self.callback("funding", funding, timestamp)

    async def _row(self, raw: Raw, timestamp: float) -> None:
        """One row of the all-market array; a bad one costs only itself."""
        try:
            row = _ROW.decode(raw)
            if row.margin == _UM and row.symbol in self._by_id:
                await self._mark(_MARK.decode(raw), timestamp)
        except PARSE_ERRORS as error:
            self.bad_messages.add(type(error).__name__, bytes(raw), error)

    def _know(self, markets: Sequence[Market]) -> None:
        super()._know(markets)
        self._by_id = {market.id: market for market in markets}
