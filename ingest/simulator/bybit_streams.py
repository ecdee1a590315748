"""Which messages each Bybit topic sends at a given instant: a function of market and time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from ingest.simulator import bybit_wire as wire
from ingest.simulator.market import Funding, Market
from ingest.simulator.universe import BYBIT, Contract, Kind

Category = Literal["linear", "spot"]

INTERVALS_MS = {
    "1": 60_000, "3": 180_000, "5": 300_000, "15": 900_000, "30": 1_800_000, "60": 3_600_000,
    "120": 7_200_000, "240": 14_400_000, "360": 21_600_000, "720": 43_200_000, "D": 86_400_000,
}  # fmt: skip

_KLINE_PUSH_MS = 1_000
_FUNDING_ROLLS_LATE_MS = 5_000
_TOPIC = re.compile(r"(tickers)\.([^.]+)|(kline)\.(\w+)\.([^.]+)")


class Topic(NamedTuple):
    """A topic that exists; `interval` of a kline."""

    name: str
    contract: Contract
    interval: str


class Message(NamedTuple):
    """One message; `closing` when it closes a kline."""

    data: wire.Json
    closing: bool = False


class UnknownTopic(Exception):
    """Refused, with the exchange's words."""


class BybitStreams:
    """The topics of one category. Linear tickers are a snapshot, then only what has changed."""

    def __init__(self, market: Market, category: Category, ticker_push_ms: int = 1_000) -> None:
        self._market = market
        self._kinds = contract_kinds(category)
        self._spot = category == "spot"
        self._ticker_push_ms = ticker_push_ms
        self._shown: dict[str, tuple[int, wire.Json]] = {}
        self._found: dict[str, Topic] = {}
        self._version = 0
        self._listed: dict[str, Contract] = {}

    @property
    def contracts(self) -> dict[str, Contract]:
        """Those that are listed now, by id."""
        if self._version != self._market.version:
            listed = self._market.listed(BYBIT, *self._kinds)
            self._listed = {contract.id: contract for contract in listed}
            self._found.clear()
            self._version = self._market.version
        return self._listed

    def find(self, name: str) -> Topic:
        """Raises `UnknownTopic`."""
        if self._version != self._market.version or name not in self._found:
            self._found[name] = self._parse(name)
        return self._found[name]

    def _parse(self, name: str) -> Topic:
        parts = _TOPIC.fullmatch(name)
        interval = (parts[4] or "") if parts else ""
        if parts is None or (interval and interval not in INTERVALS_MS):
            raise UnknownTopic(f"error:handler not found,topic:{name}")
        contract = self.contracts.get(parts[2] or parts[5])
        if contract is None:
            raise UnknownTopic(f"Invalid symbol :[{name}]")
        return Topic(name, contract, interval)

    def first(self, topic: Topic, at_ms: int) -> Message:
        """What a new subscriber gets at once."""
        if topic.interval:
            at_ms -= at_ms % _KLINE_PUSH_MS
            interval_ms = INTERVALS_MS[topic.interval]
            open_ms = at_ms // interval_ms * interval_ms
            return Message(self._kline_frame(topic, [(open_ms, False)], at_ms))
        at_ms -= at_ms % self._ticker_push_ms
        return Message(self._ticker_frame(topic, "snapshot", self._ticker(topic, at_ms), at_ms))

    def due(self, topic: Topic, at_ms: int) -> Iterator[Message]:
        """The messages of the pulse at `at_ms`, with all that happened before it."""
        if topic.contract.silent:
            return
        if topic.interval:
            if at_ms % _KLINE_PUSH_MS == 0:
                yield from self._klines(topic, at_ms)
        elif at_ms % self._ticker_push_ms == 0:
            yield from self._tickers(topic, at_ms)

    def _klines(self, topic: Topic, at_ms: int) -> Iterator[Message]:
        """Grows when something was traded; closes with or without trades. Sometimes the frame that
        closes a bar opens the next one too."""
        interval_ms = INTERVALS_MS[topic.interval]
        open_ms = (at_ms - 1) // interval_ms * interval_ms
        if at_ms % interval_ms == 0:
            bars = [(open_ms, True)]
            if at_ms // interval_ms % 4 == 0:
                bars.append((at_ms, False))
            yield Message(self._kline_frame(topic, bars, at_ms), closing=True)
        elif self._market.has_traded(topic.contract, at_ms - _KLINE_PUSH_MS, at_ms):
            yield Message(self._kline_frame(topic, [(open_ms, False)], at_ms))

    def closed_bar(self, topic: Topic, open_ms: int, at_ms: int) -> wire.Json:
        """The message of a bar that closed before, as it is by now."""
        return self._kline_frame(topic, [(open_ms, True)], at_ms)

    def _kline_frame(self, topic: Topic, bars: list[tuple[int, bool]], at_ms: int) -> wire.Json:
        interval_ms = INTERVALS_MS[topic.interval]
        items = [
            wire.kline_item(
                topic.contract,
                self._market.kline(topic.contract, open_ms, interval_ms, at_ms),
                confirm,
                min(at_ms, open_ms + interval_ms - 1) if confirm else at_ms,
            )
            for open_ms, confirm in bars
        ]
        return {"topic": topic.name, "data": items, "ts": at_ms, "type": "snapshot"}

    def _tickers(self, topic: Topic, at_ms: int) -> Iterator[Message]:
        before = self._ticker(topic, at_ms - self._ticker_push_ms)
        now = self._ticker(topic, at_ms)
        changed = {name: value for name, value in now.items() if value != before[name]}
        if not changed:
            return
        if self._spot:
            yield Message(self._ticker_frame(topic, "snapshot", now, at_ms))
            return
        book: wire.Json = {
            name: changed.pop(name) for name in ("bid1Price", "bid1Size") if name in changed
        }
        for part in (book, changed):
            if part:
                yield Message(self._ticker_frame(topic, "delta", part, at_ms))

    def _ticker_frame(self, topic: Topic, type: str, fields: wire.Json, at_ms: int) -> wire.Json:
        return {
            "topic": topic.name,
            "type": type,
            "data": {"symbol": topic.contract.id, **fields},
            "cs": at_ms,
            "ts": at_ms,
        }

    def _ticker(self, topic: Topic, at_ms: int) -> wire.Json:
        shown = self._shown.get(topic.name)
        if shown is None or shown[0] != at_ms:
            shown = at_ms, self.ticker(topic.contract, at_ms)
            self._shown[topic.name] = shown
        return shown[1]

    def ticker(self, contract: Contract, at_ms: int) -> wire.Json:
        """Every field of a ticker."""
        day = self._market.day(contract, at_ms)
        last = self._market.last_price(contract, at_ms)
        if self._spot:
            return wire.spot_ticker(contract, day, last)
        mark = self._market.mark(contract, at_ms)
        return wire.linear_ticker(contract, day, last, mark, self._shown_funding(contract, at_ms))

    def _shown_funding(self, contract: Contract, at_ms: int) -> Funding | None:
        if contract.interval_hours is None:
            return None
        return self._market.funding(contract, at_ms - _FUNDING_ROLLS_LATE_MS)


def contract_kinds(category: Category) -> tuple[Kind, ...]:
    """The kinds of contracts in a category."""
    return ("spot",) if category == "spot" else ("perpetual", "future")
