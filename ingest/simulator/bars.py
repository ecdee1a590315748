"""Klines out of trades: of one minute as it grows, and of many closed minutes at once."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from ingest.simulator.tape import MINUTE_MS, Ints, Trades


class Bar(NamedTuple):
    """A kline in the contract's units; flat at the previous close where nothing was traded."""

    open_ms: int
    interval_ms: int
    open: int
    high: int
    low: int
    close: int
    volume: int
    quote: int
    trades: int
    taker_volume: int
    taker_quote: int

    @property
    def close_ms(self) -> int:
        """Its last millisecond."""
        return self.open_ms + self.interval_ms - 1


class Trade(NamedTuple):
    """One trade; `id` rises, with a jump at each minute."""

    id: int
    time_ms: int
    price: int
    quantity: int
    buyer: bool


class Minute:
    """The trades of one minute with running totals, so a partial bar is one look-up."""

    def __init__(self, minute: int, trades: Trades, row: int, revised_tick: int) -> None:
        self.minute = minute
        count = int(trades.count[row])
        self.time_ms: list[int] = (trades.offset[row, :count] + minute * MINUTE_MS).tolist()
        self.price: list[int] = trades.price[row, :count].tolist()
        self.quantity: list[int] = trades.quantity[row, :count].tolist()
        self.buyer: list[bool] = trades.buyer[row, :count].tolist()
        if revised_tick and count:
            self._insert(max(self.price) + (revised_tick if count > 1 else 0))
        amounts = [p * q for p, q in zip(self.price, self.quantity, strict=True)]
        self._high = list(accumulate(self.price, max))
        self._low = list(accumulate(self.price, min))
        self._volume = [0, *accumulate(self.quantity)]
        self._quote = [0, *accumulate(amounts)]
        self._taker_volume = [
            0, *accumulate(q * b for q, b in zip(self.quantity, self.buyer, strict=True)),
        ]  # fmt: skip
        self._taker_quote = [
            0, *accumulate(a * b for a, b in zip(amounts, self.buyer, strict=True)),
        ]  # fmt: skip

    def _insert(self, price: int) -> None:
        self.time_ms.insert(1, self.time_ms[0])
        self.price.insert(1, price)
        self.quantity.insert(1, self.quantity[0])
        self.buyer.insert(1, False)

    def before(self, at_ms: int) -> int:
        """How many trades were made before `at_ms`."""
        return bisect_left(self.time_ms, at_ms)

    def trades(self, start: int, stop: int) -> list[Trade]:
        return [
            Trade(
                self.minute * 1000 + number,
                self.time_ms[number],
                self.price[number],
                self.quantity[number],
                self.buyer[number],
            )
            for number in range(start, stop)
        ]

    def bar(self, count: int) -> Bar:
        """Of the first `count` trades; all zero without any."""
        open_ms = self.minute * MINUTE_MS
        if not count:
            return Bar(open_ms, MINUTE_MS, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        return Bar(
            open_ms,
            MINUTE_MS,
            self.price[0],
            self._high[count - 1],
            self._low[count - 1],
            self.price[count - 1],
            self._volume[count],
            self._quote[count],
            count,
            self._taker_volume[count],
            self._taker_quote[count],
        )


def closed_bars(trades: Trades, interval_ms: int, first_ms: int) -> list[Bar]:
    """Consecutive whole bars of whole minutes, in one go of arrays; zero prices where nothing was
    traded."""
    each = interval_ms // MINUTE_MS
    bars = len(trades.count) // each
    columns = [column.reshape(bars, each) for column in _minute_columns(trades)]
    open_, high, low, close, *sums = columns
    traded = columns[6] > 0
    row = np.arange(bars)
    first_traded = traded.argmax(axis=1)
    last_traded = each - 1 - traded[:, ::-1].argmax(axis=1)
    folded = [
        row * interval_ms + first_ms,
        np.full(bars, interval_ms),
        open_[row, first_traded],
        np.where(traded, high, 0).max(axis=1),
        np.where(traded, low, np.iinfo(np.int64).max).min(axis=1),
        close[row, last_traded],
        *(column.sum(axis=1) for column in sums),
    ]
    return list(map(Bar._make, zip(*(column.tolist() for column in folded), strict=True)))


def _minute_columns(trades: Trades) -> list[Ints]:
    """Open, high, low, close, volume, quote, trades, taker volume, taker quote of each minute."""
    real = np.arange(trades.price.shape[1]) < trades.count[:, None]
    row = np.arange(len(trades.count))
    last = np.maximum(trades.count - 1, 0)
    quantity = trades.quantity * real
    amount = trades.price * quantity
    return [
        trades.price[:, 0],
        (trades.price * real).max(axis=1),
        np.where(real, trades.price, np.iinfo(np.int64).max).min(axis=1),
        trades.price[row, last],
        quantity.sum(axis=1),
        amount.sum(axis=1),
        trades.count,
        (quantity * trades.buyer).sum(axis=1),
        (amount * trades.buyer).sum(axis=1),
    ]


def merge(bars: Iterable[Bar]) -> Bar | None:
    """One bar of consecutive ones that all have trades."""
    found = list(bars)
    if not found:
        return None
    first = found[0]
    return Bar(
        first.open_ms,
        first.interval_ms,
        first.open,
        max(bar.high for bar in found),
        min(bar.low for bar in found),
        found[-1].close,
        sum(bar.volume for bar in found),
        sum(bar.quote for bar in found),
        sum(bar.trades for bar in found),
        sum(bar.taker_volume for bar in found),
        sum(bar.taker_quote for bar in found),
    )
