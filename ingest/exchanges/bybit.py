"""Bybit v5 public streams: `kline.1` and `tickers` of linear contracts and of spot.

A linear ticker is a snapshot and then deltas that leave out what hasn't changed, so it is merged,
per connection. Subscriptions are answered batch by batch, and one bad topic has its whole batch
refused. What each field means, and how we know: docs/mapping.md.

Source: https://bybit-exchange.github.io/docs/v5/ws/connect (and websocket/public/kline, ticker)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, partial
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import cryptofeed.exchanges
import msgspec
import structlog
from msgspec import Raw, Struct

from ingest.connection import FeedConnection
from ingest.exchanges import base
from ingest.exchanges.base import PARSE_ERRORS, SupervisedFeed
from ingest.exchanges.bybit_ticker import ID, Ticker, TickerUpdate
from ingest.lanes import Lane, refill, relane
from ingest.model import Kline
from marketdata.errors import BadMessage
from marketdata.pairs import Market, MarketKind
from marketdata.schema import Channel

log = structlog.get_logger()

WS_URL = "wss://stream.bybit.com"

Category = Literal["linear", "spot"]
CATEGORY: Mapping[MarketKind, Category] = {
    "perpetual": "linear",
    "future": "linear",
    "spot": "spot",
}
CHANNELS: base.ChannelsByKind = {
    "perpetual": ("candles", "funding", "mark_price", "last_price"),
    "future": ("candles", "mark_price", "last_price"),
    "spot": ("candles", "last_price"),
}
BATCH: Mapping[Category, int] = {"linear": 100, "spot": 10}
"""Topics a request. Spot refuses more than ten."""
ARGS_CHARS = 21_000
"""The most that all topics of a connection may be long together."""
TOPICS_PER_CONNECTION = 400
"""The exchange sets no such limit; with one, a cut costs fewer pairs."""
PING_S = 5.0
"""20 would keep a connection open; with fewer, a peer that is gone is noticed soon."""
PONG_S = 12.0
"""How long nothing at all may come, two answers to our pings included."""


def plan_lanes(
    markets: Sequence[Market],
    channels: Sequence[str],
    base_url: str = WS_URL,
    held: Sequence[Lane] = (),
) -> list[Lane]:
    """The connections for these markets and channels, changing as few of the held as can be.

    Linear and spot have an address each.
    """
    lanes = []
    for category in BATCH:
        ours = [lane for lane in held if lane.group == category]
        topics = [
            topic
            for market in markets
            if CATEGORY[market.kind] == category
            for topic in _topics(market, channels)
        ]
        packed = refill(
            [lane.topics for lane in ours],
            topics,
            lambda topic: len(topic) + 3,
            ARGS_CHARS,
            TOPICS_PER_CONNECTION,
        )
        lanes += relane(ours, packed, category, partial(_lane, category, base_url))
    return lanes


def _lane(category: Category, base_url: str, id: str, topics: tuple[str, ...]) -> Lane:
    klines = sum(topic.startswith("kline.") for topic in topics)
    # A linear ticker moves ten times a second; a spot pair's only when it is traded.
    steady = base.TICKERS if category == "linear" and klines < len(topics) else None
    return Lane(
        id=id,
        url=base.endpoint(base_url, f"/v5/public/{category}"),
        topics=topics,
        silence_s=base.silence_limits(klines, steady, PONG_S),
        doubt_s=base.DOUBT_S if steady is None else None,
    )


def _topics(market: Market, channels: Sequence[str]) -> list[str]:
    wanted = base.wanted(market, channels, CHANNELS)
    return list(dict.fromkeys(_topic(market, channel) for channel in wanted))


def _topic(market: Market, channel: str) -> str:
    return f"{'kline.1' if channel == 'candles' else 'tickers'}.{market.id}"


class KlineRow(Struct):
    """One element of a kline message's `data`; `confirm` is its own, not the message's."""

    start: base.Minute
    interval: Literal["1"]
    open: base.Price
    high: base.Price
    low: base.Price
    close: base.Price
    volume: Decimal
    turnover: Decimal
    confirm: bool


class _Message(Struct):
    """Every message: data have a `topic`, answers an `op`."""

    topic: str = ""
    type: str = ""
    ts: int = 0
    data: Raw = Raw(b"")
    op: str = ""
    success: bool = False
    ret_msg: str | None = None
    req_id: str | None = None


# Not strict: prices and volumes are strings, and become numbers here.
_MESSAGE = msgspec.json.Decoder(_Message, strict=False)
_ROWS = msgspec.json.Decoder(list[Raw])
_KLINE = msgspec.json.Decoder(KlineRow, strict=False)
_TICKER = msgspec.json.Decoder(TickerUpdate, strict=False)


def parse_kline(pair: str, row: KlineRow, event_ms: int) -> Kline:
    """A minute; the exchange doesn't count its trades."""
    return Kline(
        ID,
        pair,
        base.begun(row.start, event_ms),
        row.open,
        row.high,
        row.low,
        row.close,
        base.volume(row.volume),
        base.volume(row.turnover),
        None,
        row.confirm,
        event_ms,
    )


@dataclass(slots=True)
class _Session:
    """What one connection has been told and asked; it ends with the connection."""

    category: Category
    tickers: dict[str, Ticker] = field(default_factory=dict)
    asked: dict[str, tuple[str, ...]] = field(default_factory=dict)
    requests: int = 0

    def answered(self, request: str | None) -> tuple[str, ...]:
        """The topics of the request that an answer belongs to.

        Some answers lack the number, or have an empty one: they belong to the oldest request.
        """
        if request not in self.asked:
            request = next(iter(self.asked), None)
        return () if request is None else self.asked.pop(request)


class Bybit(SupervisedFeed, cryptofeed.exchanges.Bybit):  # type: ignore[misc]
    """Candles, funding, mark and last prices of Bybit; see `SupervisedFeed`."""

    ws_url = WS_URL
    channels_by_kind = CHANNELS
    plan_lanes = staticmethod(plan_lanes)
    # Whether Bybit answers protocol pings isn't known; data that stays away tells earlier anyway.
    ping_timeout_s = None
    merges = True
    websocket_channels: ClassVar[dict[str, str]] = {
        "candles": "kline.1",
        "funding": "tickers",
        "mark_price": "tickers",
        "last_price": "tickers",
    }

    @staticmethod
    def topics_of(market: Market, channel: Channel) -> tuple[str, ...]:
        return (f"{CATEGORY[market.kind]}/{_topic(market, channel)}",)

    async def subscribe(self, connection: FeedConnection) -> None:
        """Ask for every topic; those that were refused before go alone, after all others."""
        session = self._sessions[connection] = _Session(_category(connection))
        known: list[str] = []
        doubtful: list[str] = []
        for topic in connection.subscription:
            refused = f"{session.category}/{topic}" in self.refused_topics
            (doubtful if refused else known).append(topic)
        size = BATCH[session.category]
        for start in range(0, len(known), size):
            await self._ask(connection, session, tuple(known[start : start + size]))
        for topic in doubtful:
            await self._ask(connection, session, (topic,))

    def subscribed(self, connection: FeedConnection) -> bool:
        session = self._sessions.get(connection)
        return session is not None and not session.asked

    async def keep_alive(self, connection: FeedConnection) -> None:
        """The exchange cuts a connection on which no ping of its own kind comes."""
        while True:
            await self.clock.sleep(PING_S)
            await connection.write('{"req_id":"ping","op":"ping"}')

    async def message_handler(
        self, msg: bytes | str, conn: FeedConnection, timestamp: float
    ) -> str | None:
        message = _MESSAGE.decode(msg)
        session = self._sessions.get(conn)
        if session is None:
            session = self._sessions[conn] = _Session(_category(conn))
        kind, _, name = message.topic.partition(".")
        if kind == "tickers":
            await self._ticker(name, message, session, timestamp)
            return base.TICKERS
        if kind == "kline" and name.startswith("1."):
            await self._klines(name[2:], message, session, timestamp)
            return base.CANDLES
        if message.op == "subscribe":
            await self._answer(message, conn, session)
        elif message.op not in ("ping", "pong"):
            raise BadMessage("nothing that was asked for")
        return None

    async def _klines(
        self, market_id: str, message: _Message, session: _Session, timestamp: float
    ) -> None:
        market = self._by_id.get((session.category, market_id))
        if market is None or "candles" not in self.wanted:
            return
        event_ms = base.event_ms(message.ts, timestamp)
        for raw in _ROWS.decode(message.data):
            try:
                kline = parse_kline(market.pair, _KLINE.decode(raw), event_ms)
            except PARSE_ERRORS as error:
                self.bad_messages.add(type(error).__name__, bytes(raw), error)
            else:
                await self.callback("candles", kline, timestamp)

    async def _ticker(
        self, market_id: str, message: _Message, session: _Session, timestamp: float
    ) -> None:
        market = self._by_id.get((session.category, market_id))
        if market is None:
            return
        ticker = session.tickers.get(market_id)
        if ticker is None:
            channels = base.wanted(market, tuple(self.wanted), CHANNELS)
            ticker = session.tickers[market_id] = Ticker(channels)
        update = _TICKER.decode(message.data)
        if update.symbol != market_id:
            raise BadMessage(f"a ticker of {update.symbol!r} under {message.topic!r}")
        hours = self.interval_hours(market)
        event_ms = base.event_ms(message.ts, timestamp)
        for channel, tick in ticker.apply(market.pair, message.type, update, event_ms, hours):
            await self.callback(channel, tick, timestamp)

    async def _ask(
        self, connection: FeedConnection, session: _Session, topics: tuple[str, ...]
    ) -> None:
        session.requests += 1
        request = str(session.requests)
        session.asked[request] = topics
        message = {"req_id": request, "op": "subscribe", "args": topics}
        await connection.write(msgspec.json.encode(message).decode())

    async def _answer(
        self, message: _Message, connection: FeedConnection, session: _Session
    ) -> None:
        topics, reason = session.answered(message.req_id), message.ret_msg or "no reason given"
        if not message.success and len(topics) > 1:
            # One bad topic has the whole batch refused, and which one it was is not told.
            for topic in topics:
                await self._ask(connection, session, (topic,))
        elif message.success or "already subscribed" in reason:
            for topic in topics:
                self.refused_topics.pop(f"{session.category}/{topic}", None)
        else:
            for topic in topics:
                self._refuse(f"{session.category}/{topic}", reason)

    def _refuse(self, topic: str, reason: str) -> None:
        if topic not in self.refused_topics:
            log.warning("topic_refused", exchange=self.id, topic=topic, cause=reason)
        self.refused_topics[topic] = reason

    def _know(self, markets: Sequence[Market]) -> None:
        super()._know(markets)
        self._by_id = {(CATEGORY[market.kind], market.id): market for market in markets}
        ours = {
            topic
            for m in markets
            for channel in self.wanted
            for topic in self.topics_of(m, channel)
        }
        self.refused_topics = {t: why for t, why in self.refused_topics.items() if t in ours}

    @cached_property
    def _sessions(self) -> WeakKeyDictionary[FeedConnection, _Session]:
        return WeakKeyDictionary()


def _category(connection: FeedConnection) -> Category:
    return "spot" if connection.address.endswith("/spot") else "linear"
