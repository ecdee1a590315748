"""Frames of the exchanges, damaged: a message costs only itself, whatever is in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection

from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.exchanges.base import AHEAD_MS, PARSE_ERRORS, SupervisedFeed
from ingest.exchanges.binance_futures import BinanceFutures
from ingest.exchanges.bybit import Bybit
from ingest.model import Event, Kline
from marketdata.pairs import Market
from marketdata.schema import Channel, FundingRate, LastPrice, MarkPrice
from tests.feeds import (
    RECEIVED_S,
    Recorder,
    binance_kline,
    binance_mark,
    bybit_kline,
    bybit_row,
    bybit_ticker,
    done,
    market,
)
from tests.fuzz.mutation import EXAMPLES, Samples, damaged_json, fuzzed
from tests.fuzz.sound import assert_sound
from tests.recorded import RECORDED
from tests.venue import Venue
from tests.waiting import eventually

SAMPLES = json.loads((Path(__file__).parents[1] / "exchange_samples.json").read_text())
CHANNELS: tuple[Channel, ...] = ("candles", "funding", "mark_price", "last_price")
LATEST_MS = RECEIVED_S * 1000 + AHEAD_MS


def binance_frames() -> list[Any]:
    """Every kind of frame: marks of all and of one, minutes, answers; and recorded ones."""
    frames = [SAMPLES["C1"], SAMPLES["C2"], SAMPLES["C3"], SAMPLES["C4"], *SAMPLES["C5"]]
    frames.append({"e": "serverShutdown", "E": 1791382993000})
    ether = json.dumps(SAMPLES["C4"]).replace("BTC", "ETH").replace("btc", "eth")
    return [*frames, json.loads(ether), *recorded_frames(20)]


def recorded_frames(count: int) -> list[Any]:
    path = RECORDED / "binance_futures_capture" / "BINANCE_FUTURES.ws.1.0"
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    frames = [json.loads(text) for line in lines if (text := line.partition(": ")[2])[:1] == "{"]
    klines = [frame for frame in frames if frame.get("data", {}).get("e") == "kline"]
    return klines[:: max(1, len(klines) // count)]


def bybit_frames() -> list[Any]:
    """Answers, pongs, snapshots and deltas of tickers, minutes; of two pairs."""
    frames = [*SAMPLES["B2"], *SAMPLES["B3"], *SAMPLES["B4"], *SAMPLES["B7"]]
    frames += [SAMPLES[name] for name in ("B5", "B6", "B9", "B10", "B11")]
    frames += [json.loads(json.dumps(frame).replace("BTC", "ETH")) for frame in frames[-6:]]
    return frames


class QuietConnection(FeedConnection):
    """Takes what is written to it."""

    async def write(self, data: str) -> None:
        pass


class Session:
    """A feed of four channels and one of its connections, everything on it asked for."""

    def __init__(self, exchange: str) -> None:
        self.recorder = Recorder()
        make: Callable[..., SupervisedFeed] = {
            "BINANCE_FUTURES": BinanceFutures,
            "BYBIT": Bybit,
        }[exchange]
        self.feed = make(MARKETS[exchange], CHANNELS, self.recorder.on(*CHANNELS), Clock())
        url = "ws://127.0.0.1/v5/public/linear"
        topics = ["tickers.BTCUSDT", "tickers.ETHUSDT", "kline.1.BTCUSDT"]
        self.connection = QuietConnection(url, "fuzz", Clock(), topics=topics)
        done(self.feed.subscribe(self.connection))

    def handle(self, message: bytes) -> Exception | None:
        """What the message is refused with, if it is."""
        try:
            done(self.feed.message_handler(message, self.connection, RECEIVED_S))
        except Exception as error:  # as the reader of a connection does
            return error
        return None

    @property
    def events(self) -> list[Event]:
        return self.recorder.events


MARKETS: dict[str, list[Market]] = {
    "BINANCE_FUTURES": [market(f"{base}/USDT:USDT") for base in ("BTC", "ETH", "币安人生")],
    "BYBIT": [
        market("BTC/USDT:USDT", exchange="BYBIT"),
        market("ETH/USDT:USDT", exchange="BYBIT"),
        market("BTC/USDT", exchange="BYBIT"),
        market("BTC/USDT:USDT-251226", exchange="BYBIT", id="BTC-26DEC25"),
    ],
}
FRAMES = {"BINANCE_FUTURES": Samples(binance_frames()), "BYBIT": Samples(bybit_frames())}


def whole(frames: Samples) -> st.SearchStrategy[bytes]:
    return st.integers(0, len(frames) - 1).map(lambda n: msgspec.json.encode(frames[n]))


@pytest.mark.parametrize("exchange", FRAMES)
def test_every_whole_sample_is_understood(exchange: str) -> None:
    session = Session(exchange)
    for frame in FRAMES[exchange]:
        assert session.handle(msgspec.json.encode(frame)) is None, frame
    assert {type(event) for event in session.events} == {Kline, FundingRate, MarkPrice, LastPrice}


@pytest.mark.parametrize("exchange", FRAMES)
def test_a_damaged_message_is_counted_or_sound_and_leaves_no_trace(exchange: str) -> None:
    frames = FRAMES[exchange]
    refused = 0

    @fuzzed(150)
    @given(st.lists(st.one_of(damaged_json(frames), whole(frames)), min_size=1, max_size=6))
    def check(messages: list[bytes]) -> None:
        nonlocal refused
        session = Session(exchange)
        errors = [session.handle(message) for message in messages]
        for error in errors:
            assert error is None or isinstance(error, (*PARSE_ERRORS, RecursionError))
        for event in session.events:
            assert_sound(event, LATEST_MS)
        # Neither its own pair nor any other learns anything of a message that is refused.
        spared = Session(exchange)
        for message, error in zip(messages, errors, strict=True):
            if error is None:
                spared.handle(message)
        assert spared.events == session.events
        assert spared.feed.dropped == session.feed.dropped
        refused += sum(error is not None for error in errors)

    check()
    assert refused > 100, "damage that nobody notices proves nothing"


CLOSING = {
    "BINANCE_FUTURES": binance_mark("ETHUSDT", p="4321.5"),
    "BYBIT": bybit_ticker("snapshot", round(RECEIVED_S * 1000), "ETHUSDT", markPrice="4321.5"),
}


@pytest.mark.parametrize("exchange", FRAMES)
async def test_no_damaged_message_costs_the_connection_or_goes_uncounted(exchange: str) -> None:
    messages: list[bytes] = []

    @fuzzed(200)
    @given(damaged_json(FRAMES[exchange]))
    def collect(message: bytes) -> None:
        messages.append(message)

    collect()
    expected = Session(exchange)
    bad = sum(expected.handle(message) is not None for message in messages)
    assert bad > 50

    async def script(connection: ServerConnection, number: int) -> None:
        if "bybit" in exchange.lower():
            await connection.recv()
        for message in (*messages, CLOSING[exchange]):
            await connection.send(message)
        await connection.wait_closed()

    clock, recorder = Clock(), Recorder()
    async with Venue(script, clock).running() as venue:
        feed = type(expected.feed)(
            MARKETS[exchange][:2], CHANNELS, recorder.on(*CHANNELS), clock, ws_url=venue.url
        )
        feed.start(asyncio.get_running_loop())
        try:
            last = "ETH/USDT:USDT", 4321.5
            await eventually(
                lambda: last in [(e.symbol, e.mark_price) for e in recorder.of(MarkPrice)],
                30 + EXAMPLES / 500,
                "the message after all damaged ones",
            )
            assert len(venue.handshakes) == 1
            assert sum(feed.dropped.values()) >= bad
        finally:
            await feed.shutdown()


NOW_MS = round(RECEIVED_S * 1000)
FOUND = [
    # Each was taken for sound once, and would have ended the service or hidden what came after it.
    ("BINANCE_FUTURES", binance_kline(event_ms=NOW_MS + 2 * AHEAD_MS), "no time of an event"),
    ("BINANCE_FUTURES", binance_kline(t=60_000 * 10**10), "a minute that begins at"),
    ("BINANCE_FUTURES", binance_kline(i="3m"), "Invalid enum value '3m'"),
    ("BINANCE_FUTURES", binance_kline(s="ETHUSDT"), "in an event of 'BTCUSDT'"),
    ("BINANCE_FUTURES", binance_mark(T="9" * 26), "Expected `int` <="),
    ("BYBIT", bybit_ticker("snapshot", 10**18, markPrice="5"), "no time of an event"),
    ("BYBIT", bybit_ticker("snapshot", NOW_MS, nextFundingTime="9" * 30), "is no price"),
    ("BYBIT", bybit_ticker("snapshot", NOW_MS, nextFundingTime="-5"), "is no price"),
    ("BYBIT", bybit_ticker("snapshot", NOW_MS, fundingIntervalHour="1e308"), "no price"),
    ("BYBIT", bybit_ticker("sanpshot", NOW_MS, markPrice="5"), "a ticker of type"),
    ("BYBIT", bybit_ticker("snapshot", NOW_MS, symbol="ETHUSDT"), "a ticker of 'ETHUSDT'"),
]  # fmt: skip


@pytest.mark.parametrize(("exchange", "message", "reason"), FOUND)
def test_what_was_found(exchange: str, message: bytes, reason: str) -> None:
    session = Session(exchange)
    assert reason in str(session.handle(message))
    assert session.events == []


def test_a_minute_of_another_interval_is_none_of_bybits() -> None:
    session = Session("BYBIT")
    assert session.handle(bybit_kline(bybit_row(interval="3"))) is None
    assert session.events == []
    assert session.feed.dropped == {"bad_message.ValidationError": 1}
