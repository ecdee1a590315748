"""What the Binance futures feed makes of the exchange's messages."""

from __future__ import annotations

import random
from decimal import Decimal
from typing import Any

import orjson
import pytest
from cryptofeed.symbols import Symbols

from ingest.clock import Clock
from ingest.exchanges.binance_futures import BinanceFutures
from ingest.model import Kline
from marketdata.errors import BadMessage
from marketdata.schema import Channel, FundingRate, LastPrice, MarkPrice
from tests.feeds import (
    MINUTE_MS,
    RECEIVED_S,
    Recorder,
    binance_kline,
    binance_mark,
    binance_mark_row,
    dumps,
    market,
    unopened,
)

BTC = "BTC/USDT:USDT"
MARKETS = [
    market(BTC),
    market("XAU/USDT:USDT", hours=4.0),
    market("币安人生/USDT:USDT", hours=4.0),
    market("OMG/USDT:USDT"),
    market("BTC/USDT:USDT-261225", id="BTCUSDT_261225"),
]
ALL: tuple[Channel, ...] = ("candles", "funding", "mark_price", "last_price")


def feed(recorder: Recorder, *channels: Channel) -> BinanceFutures:
    wanted = channels or ALL
    return BinanceFutures(MARKETS, wanted, recorder.on(*wanted), Clock())


async def events_of(message: bytes | str, *channels: Channel) -> Recorder:
    recorder = Recorder()
    await feed(recorder, *channels).message_handler(message, unopened(), RECEIVED_S)
    return recorder


async def test_a_forming_kline_is_a_minute_in_base_units_with_its_trades() -> None:
    recorder = await events_of(binance_kline(), "candles")
    assert recorder.events == [
        Kline(
            exchange="BINANCE_FUTURES",
            symbol=BTC,
            minute_ms=MINUTE_MS,
            open=83084.9,
            high=83091.7,
            low=83051.2,
            close=83091.6,
            volume=Decimal("13.551"),
            quote_volume=Decimal("1125714.73960"),
            trades=1027,
            closed=False,
            event_ms=MINUTE_MS + 12_723,
        )
    ]
    assert recorder.received_s == [RECEIVED_S]


async def test_the_last_kline_of_a_minute_is_closed() -> None:
    recorder = await events_of(binance_kline(x=True), "candles")
    assert [kline.closed for kline in recorder.of(Kline)] == [True]


async def test_the_last_price_is_the_close_of_the_kline_at_the_events_time() -> None:
    recorder = await events_of(binance_kline(), "last_price")
    price = LastPrice("BINANCE_FUTURES", BTC, MINUTE_MS + 12_723, 83091.6)
    assert recorder.events == [price]


async def test_a_mark_price_message_is_marks_and_the_rate_of_the_next_settlement() -> None:
    recorder = await events_of(binance_mark())
    at_ms = 1791382993000
    assert recorder.events == [
        MarkPrice("BINANCE_FUTURES", BTC, at_ms, 83084.3, 83123.65891304),
        FundingRate("BINANCE_FUTURES", BTC, at_ms, 0.00000078, None, 1791388800000, 8.0),
    ]


async def test_the_estimated_settlement_price_is_never_a_predicted_rate() -> None:
    recorder = await events_of(binance_mark(P="0.0001"), "funding")
    assert [funding.predicted_rate for funding in recorder.of(FundingRate)] == [None]


@pytest.mark.parametrize("dead", [{"T": 0, "r": "0.00000000"}, {"r": ""}])
async def test_a_contract_without_a_settlement_ahead_has_marks_and_no_funding(
    dead: dict[str, Any],
) -> None:
    recorder = await events_of(binance_mark(**dead))
    assert [type(event) for event in recorder.events] == [MarkPrice]


@pytest.mark.parametrize("index", [{"i": ""}, {"i": "0.00000000"}])
async def test_a_missing_index_price_is_none(index: dict[str, Any]) -> None:
    recorder = await events_of(binance_mark(**index), "mark_price")
    assert [mark.index_price for mark in recorder.of(MarkPrice)] == [None]


async def test_a_changed_interval_counts_from_the_next_event_on() -> None:
    recorder = Recorder()
    binance = feed(recorder, "funding")
    await binance.message_handler(binance_mark(), unopened(), RECEIVED_S)
    binance.set_intervals({BTC: 1.0})
    await binance.message_handler(binance_mark(), unopened(), RECEIVED_S)
    assert [funding.interval_hours for funding in recorder.of(FundingRate)] == [8.0, 1.0]


def all_marks(*rows: object) -> bytes:
    return dumps({"stream": "!markPrice@arr@1s", "data": rows})


async def test_the_all_market_array_gives_our_pairs_and_leaves_out_the_rest() -> None:
    recorder = await events_of(
        all_marks(
            binance_mark_row(),
            binance_mark_row("币安人生USDT", p="0.47620000", r="0.00005000"),
            binance_mark_row("OMGUSDT", T=0, r="0.00000000"),
            binance_mark_row("BTCUSDT_261225", p="83650.10000000", T=0),
            binance_mark_row("UNKNOWNUSDT"),
            binance_mark_row("BTCUSDT", st=2, p="1"),
        )
    )
    marks = [mark.symbol for mark in recorder.of(MarkPrice)]
    assert marks == [BTC, "币安人生/USDT:USDT", "OMG/USDT:USDT", "BTC/USDT:USDT-261225"]
    assert [funding.symbol for funding in recorder.of(FundingRate)] == marks[:2]
    assert recorder.of(MarkPrice)[0].mark_price == 83084.3


async def test_a_row_without_a_margin_type_is_usd_margined() -> None:
    row = binance_mark_row()
    del row["st"]
    recorder = await events_of(all_marks(row), "mark_price")
    assert len(recorder.events) == 1


async def test_the_tradfi_frame_has_a_time_of_its_own() -> None:
    recorder = await events_of(all_marks(binance_mark_row("XAUUSDT", E=1791382992684)), "funding")
    (funding,) = recorder.of(FundingRate)
    assert (funding.symbol, funding.time) == ("XAU/USDT:USDT", 1791382992684)
    assert funding.interval_hours == 4.0


async def test_a_bad_row_of_the_array_costs_only_itself() -> None:
    recorder = Recorder()
    binance = feed(recorder, "mark_price")
    rows = [binance_mark_row("XAUUSDT", p="NaN"), binance_mark_row(), {"s": "BTCUSDT"}]
    kind = await binance.message_handler(all_marks(*rows), unopened(), RECEIVED_S)
    assert kind == "marks"
    assert [mark.symbol for mark in recorder.of(MarkPrice)] == [BTC]
    assert binance.dropped == {"bad_message.ValidationError": 2}


@pytest.mark.parametrize(
    "message",
    [
        b"pong",
        b"[]",
        b"\xff\xfe",
        b"{}",
        binance_kline(o="0"),
        binance_kline(c="-1"),
        binance_kline(h="NaN"),
        binance_kline(l="Infinity"),
        binance_kline(v="NaN"),
        binance_kline(q="-0.1"),
        binance_kline(v="1E+400"),
        binance_kline(n=-1),
        binance_kline(t=MINUTE_MS + 1),
        binance_kline(x="perhaps"),
        binance_kline(event_ms=-1),
        binance_mark(p=""),
        binance_mark(r="Infinity"),
        binance_mark(i="-5"),
        b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1,"s":"BTCUSDT"}}',
    ],
)
async def test_what_makes_no_sense_is_an_error_and_no_event(message: bytes) -> None:
    recorder = Recorder()
    binance = feed(recorder)
    with pytest.raises((ValueError, ArithmeticError, BadMessage)):
        await binance.message_handler(message, unopened(), RECEIVED_S)
    assert recorder.events == []


async def test_answers_and_errors_are_neither_data_nor_a_reason_to_leave() -> None:
    binance, connection = feed(Recorder()), unopened()
    answers = [
        {"result": None, "id": 1},
        {"error": {"code": 4, "msg": "Too many subscriptions"}},
        {"code": 2, "msg": "Invalid request: unknown method"},
    ]
    for answer in answers:
        assert await binance.message_handler(dumps(answer), connection, RECEIVED_S) is None
    assert binance.dropped == {"bad_message.refused": 2}
    assert connection.notice is None


@pytest.mark.parametrize(
    "notice",
    [
        {"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": 1791382993000}},
        {"e": "serverShutdown", "E": 1791382993000},
    ],
)
async def test_an_announced_shutdown_is_noted_on_the_connection(notice: dict[str, object]) -> None:
    connection = unopened()
    assert await feed(Recorder()).message_handler(dumps(notice), connection, RECEIVED_S) is None
    assert connection.notice == "the exchange announces a shutdown"


async def test_prices_are_the_floats_nearest_to_their_strings() -> None:
    chance = random.Random(7)
    recorder = Recorder()
    binance = feed(recorder, "mark_price")
    texts = [f"{chance.uniform(0, 10 ** chance.randint(-6, 7)):.8f}" for _ in range(2_000)]
    texts = [text for text in texts if float(text) > 0]
    for text in texts:
        await binance.message_handler(binance_mark(p=text), unopened(), RECEIVED_S)
    assert [mark.mark_price for mark in recorder.of(MarkPrice)] == [float(text) for text in texts]


async def test_a_capture_of_2021_is_understood() -> None:
    recorder = await events_of(
        '{"stream":"btcusdt@kline_1m","data":{"e":"kline","E":1626992741212,"s":"BTCUSDT","k":{'
        '"t":1626992700000,"T":1626992759999,"s":"BTCUSDT","i":"1m","f":1,"L":2,"o":"1.5","c":"2",'
        '"h":"2","l":"1.5","v":"3","n":2,"x":false,"q":"5.25","V":"1","Q":"2","B":"0"}}}',
        "candles",
    )
    assert [kline.volume for kline in recorder.of(Kline)] == [Decimal(3)]


def test_constructing_a_feed_asks_the_exchange_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("a REST call")

    Symbols.clear()
    monkeypatch.setattr("requests.get", no_network)
    binance = feed(Recorder())
    assert binance.normalized_symbols == [market.pair for market in MARKETS]
    assert set(binance._feed_config) == set(ALL)
    assert orjson.dumps(binance._feed_config)


async def test_frames_of_new_pairs_are_understood_at_once_and_those_of_gone_ones_ignored() -> None:
    recorder = Recorder()
    binance = feed(recorder)
    await binance.follow([market("ETH/USDT:USDT", hours=4.0)])
    assert await binance.message_handler(binance_mark("ETHUSDT"), unopened(), RECEIVED_S) == "marks"
    gone = (binance_mark(), binance_kline(), all_marks(binance_mark_row()))
    for message in gone:
        assert await binance.message_handler(message, unopened(), RECEIVED_S) is not None
    assert {event.symbol for event in recorder.events} == {"ETH/USDT:USDT"}
    assert [funding.interval_hours for funding in recorder.of(FundingRate)] == [4.0]
    assert binance.dropped == {}
    assert binance.std_symbol_to_exchange_symbol("ETH/USDT:USDT") == ("perpetual", "ETHUSDT")
    assert binance.exchange_symbol_to_std_symbol(("perpetual", "ETHUSDT")) == "ETH/USDT:USDT"
    assert binance._feed_config == {channel: ["ETH/USDT:USDT"] for channel in ALL}


async def test_a_pairs_channels_are_told_with_the_lane_that_carries_them() -> None:
    many = [market(f"C{n}/USDT:USDT") for n in range(210)]
    binance = BinanceFutures(many, ALL, Recorder().on(*ALL), Clock())
    assert binance.lane_of("C0/USDT:USDT", "candles") == "market-1"
    assert binance.lane_of("C209/USDT:USDT", "candles") == "market-2"
    assert binance.lane_of("C209/USDT:USDT", "last_price") == "market-2"
    assert binance.lane_of("C209/USDT:USDT", "mark_price") == "market-1"
    assert binance.lane_of("C210/USDT:USDT", "mark_price") is None
    await binance.follow(many[:209])
    assert binance.lane_of("C209/USDT:USDT", "candles") is None
    assert feed(Recorder()).lane_of("BTC/USDT:USDT-261225", "funding") is None
