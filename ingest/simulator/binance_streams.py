"""Which messages each Binance stream sends at a given instant: a function of market and time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import orjson

from ingest.simulator import binance_wire as wire
from ingest.simulator.market import Funding, Market
from ingest.simulator.universe import BINANCE, Contract
from ingest.simulator.venue import PULSE_MS

INTERVALS_MS = {
    "1m": 60_000, "3m": 180_000, "5m": 300_000, "15m": 900_000, "30m": 1_800_000,
    "1h": 3_600_000, "2h": 7_200_000, "4h": 14_400_000, "6h": 21_600_000, "8h": 28_800_000,
    "12h": 43_200_000, "1d": 86_400_000,
}  # fmt: skip

TRADFI_PHASE_MS = 684
"""TradFi marks come in a message of their own, off the whole second."""
_FUNDING_ROLLS_LATE_MS = 3_000
_PER_CONTRACT = re.compile(
    r"([^@!]+)@(kline|markPrice|aggTrade|miniTicker|ticker|bookTicker)(?:_(\w+)|@(1s))?"
)
_ALL_CONTRACTS = re.compile(r"!(markPrice|miniTicker|ticker)@arr(?:@(1s))?")


class Stream(NamedTuple):
    """A stream that exists. `contract` is None for all of them, `every_ms` how often it sends."""

    name: str
    kind: str
    contract: Contract | None
    every_ms: int
    interval: str = ""

    @property
    def public(self) -> bool:
        """Served on `/public`; the others on `/market`."""
        return self.kind == "bookTicker"


class Message(NamedTuple):
    """One message; `contract` where it is about one only, `closing` when it closes a kline."""

    data: bytes
    contract: Contract | None
    closing: bool = False


def shown_funding(market: Market, contract: Contract, at_ms: int) -> Funding | None:
    """What is displayed at `at_ms`: the next settlement appears some seconds after the last one.
    None for contracts without funding."""
    if contract.interval_hours is None or not contract.active:
        return None
    return market.funding(contract, at_ms - _FUNDING_ROLLS_LATE_MS)


class BinanceStreams:
    """The streams of one market.

    Parameters
    ----------
    kline_push_ms
        Cadence of growing klines; a multiple of the pulse (250 ms).
    """

    def __init__(self, market: Market, kline_push_ms: int = PULSE_MS) -> None:
        self._market = market
        self._kline_push_ms = kline_push_ms
        self._parsed = lru_cache(maxsize=8192)(self._parse)
        self._read_listing()

    def _read_listing(self) -> None:
        contracts = self._market.listed(BINANCE, "perpetual", "future")
        self._by_stream_id = {contract.id.lower(): contract for contract in contracts}
        self._traded = [contract for contract in contracts if contract.active]
        self._parsed.cache_clear()
        self._version = self._market.version

    def find(self, name: str) -> Stream | None:
        """None for a name that the exchange accepts but never serves."""
        if self._version != self._market.version:
            self._read_listing()
        return self._parsed(name)

    def _parse(self, name: str) -> Stream | None:
        if parts := _ALL_CONTRACTS.fullmatch(name):
            kind, fast = parts.groups()
            every_ms = 3_000 if kind == "markPrice" and not fast else 1_000
            return Stream(name, f"{kind}Array", None, every_ms)
        parts = _PER_CONTRACT.fullmatch(name)
        contract = self._by_stream_id.get(parts[1]) if parts else None
        if parts is None or contract is None:
            return None
        _, kind, interval, fast = parts.groups()
        if (kind == "kline") != (interval in INTERVALS_MS) or (fast and kind != "markPrice"):
            return None
        every_ms = {
            "kline": self._kline_push_ms,
            "markPrice": 1_000 if fast else 3_000,
            "miniTicker": 2_000,
            "ticker": 2_000,
        }.get(kind, PULSE_MS)
        return Stream(name, kind, contract, every_ms, interval or "")

    def due(self, stream: Stream, at_ms: int) -> Iterator[Message]:
        """The messages of the pulse at `at_ms`, with all that happened before it."""
        contract = stream.contract
        if contract is None:
            yield from self._arrays(stream, at_ms)
        elif contract.silent:
            return
        elif stream.kind == "markPrice":
            if event_ms := _mark_event_ms(contract.tradfi, stream.every_ms, at_ms):
                yield Message(self._mark(contract, event_ms), contract)
        elif at_ms % stream.every_ms == 0:
            yield from self._of_contract(stream, contract, at_ms)

    def _of_contract(self, stream: Stream, contract: Contract, at_ms: int) -> Iterator[Message]:
        market = self._market
        match stream.kind:
            case "kline":
                yield from self._kline(stream, contract, at_ms)
            case "aggTrade":
                for trade in market.traded(contract, at_ms - stream.every_ms, at_ms):
                    yield Message(wire.trade_event(contract, trade, at_ms), contract)
            case "bookTicker" if market.traded(contract, at_ms - stream.every_ms, at_ms):
                last = market.last_price(contract, at_ms)
                yield Message(wire.book_event(contract, last, at_ms), contract)
            case "miniTicker" | "ticker":
                row = self._ticker(stream.kind, contract, at_ms)
                yield Message(orjson.dumps(row), contract)

    def _kline(self, stream: Stream, contract: Contract, at_ms: int) -> Iterator[Message]:
        """Grows when something was traded, closes once; nothing for a bar without trades."""
        interval_ms = INTERVALS_MS[stream.interval]
        closing = at_ms % interval_ms == 0
        open_ms = (at_ms - 1) // interval_ms * interval_ms
        if closing or self._market.has_traded(contract, at_ms - stream.every_ms, at_ms):
            bar = self._market.kline(contract, open_ms, interval_ms, at_ms)
            if bar.trades:
                data = wire.kline_event(contract, stream.interval, bar, at_ms, closing)
                yield Message(data, contract, closing)

    def closed_minute(self, contract: Contract, minute_ms: int, event_ms: int) -> bytes:
        """The message of a minute that closed before, as it is by now."""
        bar = self._market.kline(contract, minute_ms)
        return wire.kline_event(contract, "1m", bar, event_ms, closed=True)

    def _arrays(self, stream: Stream, at_ms: int) -> Iterator[Message]:
        if stream.kind == "markPriceArray":
            for tradfi in (False, True):
                if event_ms := _mark_event_ms(tradfi, stream.every_ms, at_ms):
                    rows = [
                        self._mark(contract, event_ms)
                        for contract in self._by_stream_id.values()
                        if contract.tradfi is tradfi
                    ]
                    yield Message(b"[" + b",".join(rows) + b"]", None)
        elif at_ms % stream.every_ms == 0:
            kind = stream.kind.removesuffix("Array")
            changed = [
                self._ticker(kind, contract, at_ms)
                for contract in self._traded
                if not contract.coin_margined
                and self._market.has_traded(contract, at_ms - stream.every_ms, at_ms)
            ]
            if changed:
                yield Message(orjson.dumps(changed), None)

    def _mark(self, contract: Contract, event_ms: int) -> bytes:
        mark = self._market.mark(contract, event_ms - event_ms % 1_000)
        funding = shown_funding(self._market, contract, event_ms)
        return wire.mark_event(contract, mark, funding, event_ms)

    def _ticker(self, kind: str, contract: Contract, at_ms: int) -> wire.Json:
        shape = wire.mini_ticker if kind == "miniTicker" else wire.ticker
        day = self._market.day(contract, at_ms)
        return shape(contract, day, self._market.last_price(contract, at_ms), at_ms)


def _mark_event_ms(tradfi: bool, every_ms: int, at_ms: int) -> int:
    """Event time of the mark that goes out in the pulse at `at_ms`; 0 when none does."""
    phase_ms = TRADFI_PHASE_MS if tradfi else 0
    second_ms = at_ms - at_ms % 1_000
    if second_ms % every_ms or not at_ms - PULSE_MS < second_ms + phase_ms <= at_ms:
        return 0
    return second_ms + phase_ms
