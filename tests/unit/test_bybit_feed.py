"""What the Bybit feed makes of the exchange's messages, and how it subscribes."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import pytest

from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.exchanges.bybit import Bybit
from ingest.model import Kline
from marketdata.errors import BadMessage
from marketdata.schema import Channel, FundingRate, LastPrice, MarkPrice
from tests.feeds import (
    MINUTE_MS,
    RECEIVED_S,
    Recorder,
    bybit_kline,
    bybit_row,
    bybit_ticker,
    dumps,
    market,
    unopened,
)

BTC, SPOT, DATED = "BTC/USDT:USDT", "BTC/USDT", "BTC/USDT:USDT-261225"
MARKETS = [
    market(BTC, exchange="BYBIT"),
    market(SPOT, exchange="BYBIT"),
    market(DATED, exchange="BYBIT", id="BTCUSDT-25DEC26"),
]
ALL: tuple[Channel, ...] = ("candles", "funding", "mark_price", "last_price")
LINEAR_URL = "ws://127.0.0.1/v5/public/linear"
SPOT_URL = "ws://127.0.0.1/v5/public/spot"
TS = 1760325052630
SNAPSHOT = {
    "lastPrice": "66666.60",
    "markPrice": "66666.50",
    "indexPrice": "115418.19",
    "fundingIntervalHour": "8",
    "nextFundingTime": "1760342400000",
    "fundingRate": "-0.005",
    "bid1Price": "66666.60",
}


class Session:
    """A feed and one connection of it."""

    def __init__(self, *channels: Channel, url: str = LINEAR_URL) -> None:
        self.recorder = Recorder()
        wanted = channels or ALL
        self.feed = Bybit(MARKETS, wanted, self.recorder.on(*wanted), Clock())
        self.connection = unopened(url)

    async def handle(self, *messages: bytes) -> list[Any]:
        """The events that the messages give."""
        self.recorder.events.clear()
        for message in messages:
            await self.feed.message_handler(message, self.connection, RECEIVED_S)
        return list(self.recorder.events)


async def test_a_kline_element_is_a_minute_without_a_count_of_trades() -> None:
    assert await Session("candles").handle(bybit_kline()) == [
        Kline(
            exchange="BYBIT",
            symbol=BTC,
            minute_ms=MINUTE_MS,
            open=63967.7,
            high=64050.9,
            low=63960.5,
            close=64043.6,
            volume=Decimal("188.079"),
            quote_volume=Decimal("12037252.1038"),
            trades=None,
            closed=False,
            event_ms=MINUTE_MS + 39_440,
        )
    ]


async def test_each_element_of_a_kline_message_has_its_own_confirmation() -> None:
    rows = (bybit_row(confirm=True), bybit_row(start=MINUTE_MS + 60_000))
    klines = await Session("candles").handle(bybit_kline(*rows))
    assert [(kline.minute_ms, kline.closed) for kline in klines] == [
        (MINUTE_MS, True),
        (MINUTE_MS + 60_000, False),
    ]


async def test_a_bad_element_of_a_kline_message_costs_only_itself() -> None:
    session = Session("candles")
    rows = (bybit_row(open=""), bybit_row(volume="NaN"), bybit_row(confirm=True), "x")
    assert [kline.closed for kline in await session.handle(bybit_kline(*rows))] == [True]
    assert session.feed.dropped == {
        "bad_message.ValidationError": 2,
        "bad_message.BadMessage": 1,
    }


async def test_the_same_id_is_another_pair_on_spot() -> None:
    (linear,) = await Session("candles").handle(bybit_kline())
    (spot,) = await Session("candles", url=SPOT_URL).handle(bybit_kline())
    assert (linear.symbol, spot.symbol) == (BTC, SPOT)


async def test_a_ticker_snapshot_gives_funding_marks_and_last_price() -> None:
    assert await Session().handle(bybit_ticker("snapshot", TS, **SNAPSHOT)) == [
        FundingRate("BYBIT", BTC, TS, -0.005, None, 1760342400000, 8.0),
        MarkPrice("BYBIT", BTC, TS, 66666.5, 115418.19),
        LastPrice("BYBIT", BTC, TS, 66666.6),
    ]


async def test_a_delta_gives_what_it_changes_completed_by_what_it_leaves_out() -> None:
    session = Session()
    await session.handle(bybit_ticker("snapshot", TS, **SNAPSHOT))
    assert await session.handle(bybit_ticker("delta", TS + 100, bid1Price="1")) == []
    assert await session.handle(bybit_ticker("delta", TS + 200, markPrice="66667.1")) == [
        MarkPrice("BYBIT", BTC, TS + 200, 66667.1, 115418.19)
    ]
    assert await session.handle(bybit_ticker("delta", TS + 300, fundingRate="0.0002")) == [
        FundingRate("BYBIT", BTC, TS + 300, 0.0002, None, 1760342400000, 8.0)
    ]
    assert await session.handle(bybit_ticker("delta", TS + 400, lastPrice="5")) == [
        LastPrice("BYBIT", BTC, TS + 400, 5.0)
    ]


async def test_what_a_delta_leaves_out_is_said_again_after_a_while_with_the_deltas_time() -> None:
    session = Session("funding", "mark_price")
    await session.handle(bybit_ticker("snapshot", TS, **SNAPSHOT))
    quiet = [bybit_ticker("delta", TS + n, bid1Price="1") for n in range(100, 5_000, 100)]
    assert await session.handle(*quiet) == []
    events = await session.handle(bybit_ticker("delta", TS + 5_000, bid1Price="1"))
    assert [(type(event), event.time) for event in events] == [
        (FundingRate, TS + 5_000),
        (MarkPrice, TS + 5_000),
    ]


async def test_a_delta_before_any_snapshot_says_nothing() -> None:
    assert await Session().handle(bybit_ticker("delta", TS, markPrice="5", lastPrice="5")) == []


async def test_nothing_is_remembered_from_one_connection_to_the_next() -> None:
    session = Session()
    await session.handle(bybit_ticker("snapshot", TS, **SNAPSHOT))
    session.connection = unopened(LINEAR_URL)
    assert await session.handle(bybit_ticker("delta", TS + 100, markPrice="5")) == []


async def test_a_second_snapshot_replaces_all_of_the_first() -> None:
    session = Session("mark_price")
    await session.handle(bybit_ticker("snapshot", TS, **SNAPSHOT))
    (mark,) = await session.handle(bybit_ticker("snapshot", TS + 100, markPrice="5"))
    assert (mark.mark_price, mark.index_price) == (5.0, None)


async def test_an_empty_text_is_no_value() -> None:
    session = Session()
    snapshot = SNAPSHOT | {"fundingRate": "", "nextFundingTime": "", "indexPrice": ""}
    events = await session.handle(bybit_ticker("snapshot", TS, **snapshot))
    assert [type(event) for event in events] == [MarkPrice, LastPrice]
    assert events[0].index_price is None


async def test_a_rate_that_becomes_empty_is_not_said_again() -> None:
    session = Session("funding")
    await session.handle(bybit_ticker("snapshot", TS, **SNAPSHOT))
    later = bybit_ticker("delta", TS + 60_000, fundingRate="")
    assert await session.handle(later) == []


async def test_an_interval_that_the_ticker_lacks_comes_from_the_metadata() -> None:
    session = Session("funding")
    snapshot = SNAPSHOT | {"fundingIntervalHour": ""}
    session.feed.set_intervals({BTC: 4.0})
    (funding,) = await session.handle(bybit_ticker("snapshot", TS, **snapshot))
    assert funding.interval_hours == 4.0


async def test_a_dated_contract_has_marks_and_no_funding() -> None:
    snapshot = SNAPSHOT | {"fundingRate": "", "nextFundingTime": ""}
    message = bybit_ticker("snapshot", TS, id="BTCUSDT-25DEC26", **snapshot)
    events = await Session().handle(message)
    assert [(type(event), event.symbol) for event in events] == [
        (MarkPrice, DATED),
        (LastPrice, DATED),
    ]


async def test_spot_has_a_last_price_only() -> None:
    session = Session(url=SPOT_URL)
    message = bybit_ticker("snapshot", TS, lastPrice="21109.77", usdIndexPrice="21120.24")
    assert await session.handle(message) == [LastPrice("BYBIT", SPOT, TS, 21109.77)]


async def test_a_bad_delta_leaves_no_trace() -> None:
    session = Session("mark_price")
    await session.handle(bybit_ticker("snapshot", TS, **SNAPSHOT))
    with pytest.raises(ValueError, match="could not convert"):
        await session.handle(bybit_ticker("delta", TS + 100, indexPrice="7", markPrice="x"))
    (mark,) = await session.handle(bybit_ticker("delta", TS + 200, markPrice="5"))
    assert mark.index_price == 115418.19


@pytest.mark.parametrize(
    "message",
    [
        {"success": True, "ret_msg": "pong", "conn_id": "0970e817", "op": "ping"},
        {"success": True, "ret_msg": "pong", "conn_id": "465772b1", "req_id": "", "op": "ping"},
        {"args": ["1672916271846"], "op": "pong"},
        {"success": True, "ret_msg": "", "conn_id": "x", "req_id": "1", "op": "subscribe"},
    ],
)
async def test_pongs_and_acknowledgements_are_no_data(message: dict[str, object]) -> None:
    session = Session()
    kind = await session.feed.message_handler(dumps(message), session.connection, RECEIVED_S)
    assert kind is None
    assert session.feed.dropped == {}


@pytest.mark.parametrize(
    "message",
    [
        b"pong",
        b"{}",
        b"17",
        dumps({"op": "auth", "success": False}),
        dumps({"topic": "kline.5.BTCUSDT", "ts": TS, "type": "snapshot", "data": []}),
        bybit_kline(ts=-1),
        bybit_ticker("snapshot", 0, **SNAPSHOT),
        bybit_ticker("snapshot", TS, markPrice="-1"),
        bybit_ticker("snapshot", TS, fundingRate="NaN"),
    ],
)
async def test_what_makes_no_sense_is_an_error_and_no_event(message: bytes) -> None:
    session = Session()
    with pytest.raises((ValueError, BadMessage)):
        await session.handle(message)
    assert session.recorder.events == []


class Unsent(FeedConnection):
    """A connection that keeps what is written to it."""

    def __init__(self, url: str, topics: list[str]) -> None:
        super().__init__(url, "test", Clock(), topics=topics)
        self.requests: list[dict[str, Any]] = []

    async def write(self, data: str) -> None:
        self.requests.append(orjson.loads(data))


def answer(request: dict[str, Any], *, refused: str = "", req_id: str | None = None) -> bytes:
    number = request["req_id"] if req_id is None else req_id
    return dumps({"success": not refused, "ret_msg": refused, "op": "subscribe", "req_id": number})


@pytest.mark.parametrize(("url", "size"), [(SPOT_URL, 10), (LINEAR_URL, 100)])
async def test_subscriptions_go_in_batches_of_what_the_exchange_takes(url: str, size: int) -> None:
    topics = [f"kline.1.C{n}USDT" for n in range(105)]
    connection = Unsent(url, topics)
    await Session().feed.subscribe(connection)
    sizes = [len(request["args"]) for request in connection.requests]
    assert max(sizes) == size
    assert [topic for request in connection.requests for topic in request["args"]] == topics
    assert len({request["req_id"] for request in connection.requests}) == len(sizes)


@pytest.mark.parametrize("numbered", [True, False])
async def test_one_bad_topic_costs_only_itself(numbered: bool) -> None:
    feed = Session().feed
    topics = [f"kline.1.C{n}USDT" for n in range(9)] + ["kline.1.NOPE", "kline.1.LASTUSDT"]
    connection = Unsent(SPOT_URL, topics)
    await feed.subscribe(connection)
    subscribed: set[str] = set()
    answered = 0
    while answered < len(connection.requests):
        request = connection.requests[answered]
        answered += 1
        bad = "kline.1.NOPE" in request["args"]
        if not bad:
            subscribed |= set(request["args"])
        refused = "Invalid symbol :[kline.1.NOPE]" if bad else ""
        message = answer(request, refused=refused, req_id=None if numbered else "")
        await feed.message_handler(message, connection, RECEIVED_S)
    assert subscribed == set(topics) - {"kline.1.NOPE"}
    assert feed.refused_topics == {"spot/kline.1.NOPE": "Invalid symbol :[kline.1.NOPE]"}
    assert feed.dropped == {"refused_topics": 1}


async def test_a_topic_that_was_refused_is_asked_for_alone_and_may_be_granted_later() -> None:
    feed = Session().feed
    feed.refused_topics["linear/tickers.NEW"] = "Invalid symbol"
    connection = Unsent(LINEAR_URL, ["tickers.NEW", "tickers.OLD"])
    await feed.subscribe(connection)
    assert [request["args"] for request in connection.requests] == [
        ["tickers.OLD"],
        ["tickers.NEW"],
    ]
    for request in connection.requests:
        await feed.message_handler(answer(request), connection, RECEIVED_S)
    assert feed.refused_topics == {}


async def test_a_topic_that_is_subscribed_already_is_not_refused() -> None:
    feed = Session().feed
    connection = Unsent(LINEAR_URL, ["tickers.A"])
    await feed.subscribe(connection)
    told = answer(connection.requests[0], refused="error:already subscribed,topic:tickers.A")
    await feed.message_handler(told, connection, RECEIVED_S)
    assert feed.refused_topics == {}


async def test_a_renamed_pair_goes_on_under_its_new_name_on_the_same_connection() -> None:
    session = Session("mark_price")
    await session.handle(bybit_ticker("snapshot", TS, **SNAPSHOT))
    lanes = session.feed.lanes
    await session.feed.follow([market("BIT/USDT:USDT", exchange="BYBIT", id="BTCUSDT")])
    (mark,) = await session.handle(bybit_ticker("delta", TS + 100, markPrice="5"))
    assert (mark.symbol, mark.mark_price, mark.index_price) == ("BIT/USDT:USDT", 5.0, 115418.19)
    assert session.feed.lane_of("BIT/USDT:USDT", "mark_price") == "linear-1"
    assert lanes[0].url == session.feed.lanes[0].url


async def test_gone_pairs_are_ignored_and_what_was_refused_of_them_is_forgotten() -> None:
    session = Session()
    session.feed.refused_topics.update({"linear/tickers.NEW": "no", "spot/tickers.BTCUSDT": "no"})
    await session.feed.follow(MARKETS[1:])
    assert session.feed.refused_topics == {"spot/tickers.BTCUSDT": "no"}
    frames = (bybit_kline(), bybit_ticker("snapshot", TS, **SNAPSHOT))
    assert await session.handle(*frames) == []
    assert session.feed.dropped == {"refused_topics": 1}


async def test_a_connection_has_subscribed_when_every_request_is_answered() -> None:
    feed = Session().feed
    connection = Unsent(SPOT_URL, [f"kline.1.C{n}USDT" for n in range(11)])
    assert not feed.subscribed(connection)
    await feed.subscribe(connection)
    for request in connection.requests:
        assert not feed.subscribed(connection)
        await feed.message_handler(answer(request), connection, RECEIVED_S)
    assert feed.subscribed(connection)


async def test_pairs_with_the_same_id_have_lanes_of_their_own_kind() -> None:
    feed = Session().feed
    assert feed.lane_of(BTC, "candles") == feed.lane_of(DATED, "mark_price") == "linear-1"
    assert feed.lane_of(SPOT, "candles") == "spot-1"
    assert feed.lane_of(SPOT, "mark_price") is None
