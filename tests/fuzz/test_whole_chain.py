"""From frames to stored candles: whatever is lost, doubled or late, a repair makes it the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.backends import InboxBackend
from ingest.clock import Clock
from ingest.exchanges import EXCHANGES, binance_futures_rest, bybit_rest
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.model import Kline
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.ticks import Thinner
from marketdata.pairs import Market
from marketdata.schema import CANDLE_MS, MINUTE_MS, Batch, Channel, Ohlcv
from tests.feeds import binance_kline, bybit_kline, bybit_row, done, market, unopened
from tests.fuzz.mutation import fuzzed

START_MS = 1_791_382_860_000
"""The start of a candle."""
PAIR = "BTC/USDT:USDT"


@dataclass(frozen=True)
class Minute:
    """What happened in one minute, as the exchange writes it."""

    number: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    trades: int

    @property
    def start_ms(self) -> int:
        return START_MS + self.number * MINUTE_MS

    @property
    def quote_volume(self) -> Decimal:
        return self.volume * self.close


@st.composite
def markets(draw: st.DrawFn) -> list[Minute]:
    """Some minutes of a market, some of them without a trade."""
    prices = st.decimals("0.0001", 100_000, places=4)
    minutes: list[Minute] = []
    for number in range(3 * draw(st.integers(1, 4))):
        if minutes and draw(st.integers(0, 3)) == 0:
            price, nothing = minutes[-1].close, Decimal(0)
            minutes.append(Minute(number, price, price, price, price, nothing, 0))
            continue
        low, first, last, high = sorted(draw(st.tuples(prices, prices, prices, prices)))
        volume = draw(st.decimals("0.00000001", 10**9, places=8))
        minutes.append(Minute(number, first, high, low, last, volume, draw(st.integers(1, 10**6))))
    return minutes


def truth(minutes: Sequence[Minute], *, counts: bool) -> dict[int, tuple[object, ...]]:
    """Three minutes of the market each, by what a candle is, not by how ours are made."""
    candles: dict[int, tuple[object, ...]] = {}
    for n in range(0, len(minutes), 3):
        three = minutes[n : n + 3]
        traded = [minute for minute in three if minute.volume] or [three[-1]]
        candles[three[0].start_ms] = (
            float(traded[0].open),
            float(max(minute.high for minute in traded)),
            float(min(minute.low for minute in traded)),
            float(traded[-1].close),
            float(sum(minute.volume for minute in three)),
            float(sum(minute.quote_volume for minute in three)),
            sum(minute.trades for minute in three) if counts else None,
        )
    return candles


def binance_frame(minute: Minute, event_ms: int, *, closed: bool) -> bytes:
    return binance_kline(
        event_ms=event_ms, t=minute.start_ms, x=closed, o=str(minute.open), h=str(minute.high),
        l=str(minute.low), c=str(minute.close), v=str(minute.volume), q=str(minute.quote_volume),
        n=minute.trades,
    )  # fmt: skip


def bybit_frame(minute: Minute, event_ms: int, *, closed: bool) -> bytes:
    row = bybit_row(
        start=minute.start_ms, confirm=closed, open=str(minute.open), high=str(minute.high),
        low=str(minute.low), close=str(minute.close), volume=str(minute.volume),
        turnover=str(minute.quote_volume),
    )  # fmt: skip
    return bybit_kline(row, ts=event_ms)


def binance_answer(minutes: Sequence[Minute], pair: Market, server_ms: int) -> list[Kline]:
    rows: list[list[object]] = [
        [m.start_ms, *map(str, (m.open, m.high, m.low, m.close, m.volume)), 0, str(m.quote_volume),
         m.trades]
        for m in minutes
    ]  # fmt: skip
    return binance_futures_rest.parse_klines(rows, pair, server_ms)


def bybit_answer(minutes: Sequence[Minute], pair: Market, server_ms: int) -> list[Kline]:
    rows = [
        [
            str(value)
            for value in (m.start_ms, m.open, m.high, m.low, m.close, m.volume, m.quote_volume)
        ]
        for m in reversed(minutes)
    ]
    return bybit_rest.parse_klines(rows, pair, server_ms)


FRAME: dict[str, Callable[..., bytes]] = {"BINANCE_FUTURES": binance_frame, "BYBIT": bybit_frame}
ANSWER: dict[str, Callable[..., list[Kline]]] = {
    "BINANCE_FUTURES": binance_answer,
    "BYBIT": bybit_answer,
}


class Stored:
    """An outbox whose rows are in the store at once; the later state of a row replaces it."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, Any]] = {"ohlcv_1m": {}, "ohlcv_3m": {}}

    async def append(self, batch: Batch) -> None:
        for measurement, rows in batch.items():
            for row in rows:
                assert isinstance(row, Ohlcv)
                known = self.rows[measurement].get(row.time)
                assert known is None or row.revision >= known.revision, "a revision went back"
                self.rows[measurement][row.time] = row

    def of(self, measurement: str) -> list[Ohlcv]:
        return list(self.rows[measurement].values())


class After(Clock):
    """Stands shortly after the last minute."""

    def now_ms(self) -> int:
        return START_MS + 12 * MINUTE_MS + 30_000


class Chain:
    """Feed, inbox and pipeline of one pair."""

    def __init__(self, exchange: str) -> None:
        self.exchange = exchange
        self.stored = Stored()
        inbox, clock = Inbox(), After()
        channels: list[Channel] = ["candles"]
        self.market = market(PAIR, exchange=exchange)
        self.pipeline = Pipeline(
            inbox, cast(Outbox, self.stored), HotState(), Thinner(1_000), clock
        )
        self.feed = EXCHANGES[exchange].feed(
            [self.market], channels, {"candles": InboxBackend(inbox)}, clock
        )
        self.connection = unopened("ws://127.0.0.1/v5/public/linear")
        self.now_ms = clock.now_ms()

    def receive(self, frame: bytes) -> None:
        done(self.feed.message_handler(frame, self.connection, self.now_ms / 1000))

    def repair(self, minutes: Sequence[Minute]) -> None:
        """What the exchange says over REST, on top of what is stored."""
        statements = ANSWER[self.exchange](minutes, self.market, self.now_ms)
        stored = self.stored.of("ohlcv_1m"), self.stored.of("ohlcv_3m")
        done(self.pipeline.repair((self.exchange, PAIR), statements, *stored))

    def candles(self) -> dict[int, tuple[object, ...]]:
        return {row.time: row[3:10] for row in self.stored.of("ohlcv_3m")}


@pytest.mark.parametrize("exchange", FRAME)
def test_any_loss_order_and_doubling_of_frames_and_a_repair_give_the_truth(exchange: str) -> None:
    @fuzzed(30)
    @given(markets(), st.data())
    def check(minutes: list[Minute], data: st.DataObject) -> None:
        frames = []
        for minute in minutes:
            end_ms = minute.start_ms + MINUTE_MS
            frame = FRAME[exchange](minute, end_ms, closed=True)
            fate = data.draw(st.sampled_from(["comes", "lost", "twice", "forming", "wrong"]))
            if fate == "forming":
                frame = FRAME[exchange](minute, end_ms - 500, closed=False)
            elif fate == "wrong":  # the exchange corrects it later
                other = minutes[data.draw(st.integers(0, len(minutes) - 1))]
                mistaken = Minute(minute.number, *list(vars(other).values())[1:])
                frame = FRAME[exchange](mistaken, end_ms, closed=True)
            frames += {"lost": [], "twice": [frame, frame]}.get(fate, [frame])
        chain = Chain(exchange)
        for frame in data.draw(st.permutations(frames)):
            chain.receive(frame)
            if data.draw(st.booleans()):
                done(chain.pipeline.step())
        done(chain.pipeline.finish())
        restarted = data.draw(st.booleans())
        if restarted:
            chain.pipeline.books.clear()
        chain.repair(minutes)
        repaired = chain.candles()
        assert repaired == truth(minutes, counts=exchange == "BINANCE_FUTURES")
        revisions = {row.time: row.revision for row in chain.stored.of("ohlcv_3m")}
        # What comes late, or comes again, was said before REST was: it changes nothing.
        for frame in data.draw(st.permutations(frames)):
            chain.receive(frame)
        done(chain.pipeline.finish())
        chain.repair(minutes)
        assert chain.candles() == repaired
        assert {row.time: row.revision for row in chain.stored.of("ohlcv_3m")} == revisions
        assert all(time_ms % CANDLE_MS == 0 for time_ms in repaired)

    check()
