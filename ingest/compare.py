"""What the running service has, against what the exchange's REST says now.

A value that comes by stream is never of the same instant as one that is asked for. So the stream is
looked at before and after the answer, and only what lies outside of what it did in between differs.
What differs is looked at twice before it counts. Comparing is pure; the sampling below it is thin.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from ingest.candles import build_candle, candle_open_ms, synthetic_minute
from ingest.clock import Clock
from ingest.exchanges.rest_base import ExchangeRest
from ingest.model import Kline
from marketdata.errors import BadMessage
from marketdata.pairs import Market
from marketdata.schema import CANDLE_MS, MINUTE_MS, Last, Ohlcv
from readers.sources.base import HotSource, Source

MARK_BPS: Final = 2.0
"""How far a mark may be beyond the stream's own movement around the answer, which grows with the
square root of the seconds to the nearest of the stream's marks, as a price's movement does."""
MINUTE_APART_MS: Final = 60_000
"""Values further apart in time say nothing about each other: ours is late."""
TURN_MS: Final = 120_000
"""Around a settlement stream and REST name the next one at different moments."""
CLOSED_MS: Final = 60_000
"""A candle is compared when this long has passed since its close."""
CANDLES: Final = 10
"""Candles of a pair that are compared at a time: one call of the lowest weight."""
CATCH_UP_S: Final = 5.0
AGAIN_S: Final = 5.0

_COMPARED: Final = ("open", "high", "low", "close", "volume", "quote_volume", "trades")


class Said(NamedTuple):
    """What REST says of a market; None where it says nothing (a dated future has no funding)."""

    time_ms: int
    mark_price: float | None
    funding_rate: float | None
    next_funding_ms: int | None


class Result(NamedTuple):
    """One comparison: `same`, `differs` or `skipped`; sizes of one channel sort by how bad."""

    channel: str
    verdict: str
    symbol: str
    what: str = ""
    ours: str = ""
    theirs: str = ""
    ours_ms: int | None = None
    theirs_ms: int | None = None
    size: float = 0.0


def compare_mark(symbol: str, before: Last | None, after: Last | None, said: Said) -> Result:
    """Hold a mark against the stream's marks before and after it.

    >>> before, after = (Last("X", "A/B:B", mark_price=p, mark_event_ms=t)
    ...                  for p, t in ((100.0, 1_000), (100.1, 3_000)))
    >>> compare_mark("A/B:B", before, after, Said(2_000, 100.05, None, None)).verdict
    'same'
    >>> compare_mark("A/B:B", before, after, Said(2_000, 101.0, None, None)).what
    "79.2 bps outside of the stream's own movement"
    """
    theirs = said.mark_price
    if theirs is None:
        return Result("mark_price", "skipped", symbol)
    known = [last for last in (before, after) if last is not None and last.mark_price]
    if not known:
        return _missing("mark_price", symbol, theirs, said.time_ms)
    marks = [cast("float", last.mark_price) for last in known]
    ours_ms = known[-1].mark_event_ms or 0
    if said.time_ms - ours_ms > MINUTE_APART_MS:
        return _late("mark_price", symbol, marks[-1], theirs, ours_ms, said.time_ms)
    movement = max(marks) - min(marks)
    low, high = min(marks) - movement, max(marks) + movement
    bps = max(low - theirs, theirs - high, 0.0) / theirs * 10_000
    nearest_s = min(abs(said.time_ms - (last.mark_event_ms or 0)) for last in known) / 1000
    if bps <= MARK_BPS * math.sqrt(1 + nearest_s):
        return Result("mark_price", "same", symbol)
    what = f"{bps:.1f} bps outside of the stream's own movement"
    return Result(
        "mark_price", "differs", symbol, what,
        repr(marks[-1]), repr(theirs), ours_ms, said.time_ms, bps,
    )  # fmt: skip


def compare_funding(symbol: str, before: Last | None, after: Last | None, said: Said) -> Result:
    """Hold a funding rate against the stream's: exactly, where both are for the same settlement."""
    theirs = said.funding_rate
    if theirs is None:
        return Result("funding", "skipped", symbol)
    known = [last for last in (before, after) if last is not None and last.funding_rate is not None]
    if not known:
        return _missing("funding", symbol, theirs, said.time_ms)
    last = known[-1]
    ours, ours_ms = cast("float", last.funding_rate), last.funding_event_ms or 0
    if said.time_ms - ours_ms > MINUTE_APART_MS:
        return _late("funding", symbol, ours, theirs, ours_ms, said.time_ms)
    comparable = [one for one in known if one.next_funding_ms == said.next_funding_ms]
    if not comparable:
        turns = [ms for ms in (last.next_funding_ms, said.next_funding_ms) if ms is not None]
        if not turns or min(abs(said.time_ms - ms) for ms in turns) <= TURN_MS:
            return Result("funding", "skipped", symbol)
        return Result(
            "funding", "differs", symbol, "another next settlement",
            str(last.next_funding_ms), str(said.next_funding_ms), ours_ms, said.time_ms, 1.0,
        )  # fmt: skip
    if theirs in [one.funding_rate for one in comparable]:
        return Result("funding", "same", symbol)
    return Result(
        "funding", "differs", symbol, "another rate",
        repr(ours), repr(theirs), ours_ms, said.time_ms, abs(ours - theirs),
    )  # fmt: skip


def compare_candles(
    symbol: str, ours: Sequence[Ohlcv], theirs: Sequence[Kline], start_ms: int, end_ms: int
) -> list[Result]:
    """Hold the candles that open in [start_ms, end_ms) against those that REST's minutes make.

    `theirs` begins a candle earlier, for the close that a minute without a row takes over. Candles
    before the first that is stored are not missing: the pair wasn't collected yet.
    """
    stored = {candle.time: candle for candle in ours}
    minutes = {kline.minute_ms: kline for kline in theirs}
    for minute_ms in range(start_ms - CANDLE_MS, end_ms, MINUTE_MS):
        before = minutes.get(minute_ms - MINUTE_MS)
        if minute_ms not in minutes and before is not None:
            made = synthetic_minute(before.exchange, symbol, minute_ms, before.close)
            minutes[minute_ms] = made
    first_ms = min(stored, default=start_ms)
    results = []
    for open_ms in range(max(start_ms, first_ms), end_ms, CANDLE_MS):
        parts = [minutes.get(ms) for ms in range(open_ms, open_ms + CANDLE_MS, MINUTE_MS)]
        whole = [part for part in parts if part is not None]
        if len(whole) < len(parts):
            results.append(Result("candles", "skipped", symbol))
        elif open_ms not in stored:
            theirs_text = _candle_text(build_candle(whole), _COMPARED[:5])
            results.append(_missing("candles", symbol, theirs_text, open_ms))
        else:
            results.append(_compare_candle(symbol, stored[open_ms], build_candle(whole)))
    return results


def _compare_candle(symbol: str, ours: Ohlcv, theirs: Ohlcv) -> Result:
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in _COMPARED}
    # What one of them doesn't state can't differ.
    wrong = [
        name
        for name, (one, other) in pairs.items()
        if one is not None and other is not None and one != other
    ]
    if not wrong:
        return Result("candles", "same", symbol)
    size = max(abs(pairs[n][0] - pairs[n][1]) / (abs(pairs[n][1]) or 1.0) for n in wrong)
    return Result(
        "candles", "differs", symbol, f"another {', '.join(wrong)}",
        _candle_text(ours, wrong), _candle_text(theirs, wrong), ours.time, theirs.time, size,
    )  # fmt: skip


def _candle_text(candle: Ohlcv, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {getattr(candle, name)!r}" for name in names)


def _missing(channel: str, symbol: str, theirs: object, theirs_ms: int) -> Result:
    return Result(
        channel, "differs", symbol, "missing", "nothing", str(theirs), None, theirs_ms, float("inf")
    )


def _late(
    channel: str, symbol: str, ours: float, theirs: float, ours_ms: int, theirs_ms: int
) -> Result:
    late_ms = theirs_ms - ours_ms
    return Result(
        channel, "differs", symbol, f"late by {late_ms / 1000:.0f} s",
        repr(ours), repr(theirs), ours_ms, theirs_ms, float(late_ms),
    )  # fmt: skip


# --- sampling: what is asked, in which order


async def said_of(rest: ExchangeRest, markets: Sequence[Market]) -> dict[str, Said]:
    """What REST says now of the marks and funding of these markets, by pair; one call for all."""
    contracts = {market.id: market.pair for market in markets if market.kind != "spot"}
    if not contracts:
        return {}
    rows = await _ASKED[rest.exchange](rest)
    return {
        contracts[market_id]: said for market_id, said in rows.items() if market_id in contracts
    }


async def _binance_premiums(rest: ExchangeRest) -> dict[str, Said]:
    """`premiumIndex` of all symbols: weight 10."""
    answer = await rest.client.get("/fapi/v1/premiumIndex", weight=10)
    if not isinstance(answer.body, list):
        raise BadMessage(f"{rest.exchange} premiumIndex is {answer.body!r:.100}, expected a list")
    said = {}
    for row in answer.body:
        match row:
            case {
                "symbol": str(market_id),
                "markPrice": str(mark),
                "lastFundingRate": str(rate),
                "nextFundingTime": int(next_ms),
                "time": int(time_ms),
            }:
                said[market_id] = _said(time_ms, mark, rate, next_ms)
            case _:
                raise BadMessage(f"{rest.exchange} premiumIndex has {row!r:.200}")
    return said


async def _bybit_tickers(rest: ExchangeRest) -> dict[str, Said]:
    """`tickers` of the category linear."""
    answer = await rest.client.get("/v5/market/tickers", {"category": "linear"})
    match answer.body:
        case {"time": int(time_ms), "result": {"list": list(rows)}}:
            said = {}
            for row in rows:
                match row:
                    case {"symbol": str(market_id), "markPrice": str(mark)}:
                        rate = str(row.get("fundingRate") or "")
                        next_ms = int(row.get("nextFundingTime") or 0)
                        said[market_id] = _said(time_ms, mark, rate, next_ms)
            return said
        case _:
            raise BadMessage(f"{rest.exchange} tickers are {answer.body!r:.100}, expected a list")


def _said(time_ms: int, mark: str, rate: str, next_ms: int) -> Said:
    # A settling or dated contract has no next settlement: its rate means nothing.
    funded = bool(rate) and next_ms > 0
    return Said(
        time_ms, float(mark) if mark else None, float(rate) if funded else None, next_ms or None
    )


_ASKED: Final = {"BINANCE_FUTURES": _binance_premiums, "BYBIT": _bybit_tickers}


@dataclass(frozen=True, slots=True)
class Ours:
    """What the running service shows: the hot cache where there is one, then the store."""

    store: Source
    hot: HotSource | None

    def last(self, exchange: str, symbols: Sequence[str]) -> dict[str, Last]:
        """Newest values by pair."""
        found = {} if self.hot is None else self.hot.last(exchange, symbols)
        others = [symbol for symbol in symbols if symbol not in found]
        return found | (self.store.last(exchange, others) if others else {})

    def candles(self, exchange: str, symbol: str, start_ms: int, end_ms: int) -> list[Ohlcv]:
        """The closed candles of a range, of the cache where it has them, otherwise of the store."""
        rows = self.store.rows("ohlcv_3m", exchange, symbol, start_ms, end_ms)
        found = {row.time: cast("Ohlcv", row) for row in rows}
        if self.hot is not None:
            newest = self.hot.candles(exchange, symbol, 2 * CANDLES)
            found |= {row.time: row for row in newest if start_ms <= row.time < end_ms}
        return [found[time_ms] for time_ms in sorted(found)]

    def close(self) -> None:
        """Give back every connection."""
        self.store.close()
        if self.hot is not None:
            self.hot.close()


@dataclass(frozen=True, slots=True)
class Sampler:
    """Compares markets of one exchange; raises what its REST client and its sources raise."""

    rest: ExchangeRest
    ours: Ours
    clock: Clock

    async def values(
        self, markets: Sequence[Market], channels_of: Mapping[str, Sequence[str]]
    ) -> list[Result]:
        """Marks and funding of all of them; what differs is looked at once more."""
        results = await self._values(markets, channels_of)
        doubtful = {result.symbol for result in results if result.verdict == "differs"}
        if not doubtful:
            return results
        await self.clock.sleep(AGAIN_S)
        again = await self._values([m for m in markets if m.pair in doubtful], channels_of)
        return [result for result in results if result.symbol not in doubtful] + again

    async def candles(self, market: Market) -> list[Result]:
        """The newest closed candles of a pair; what differs is looked at once more."""
        results = await self._candles(market)
        if all(result.verdict != "differs" for result in results):
            return results
        await self.clock.sleep(AGAIN_S)
        return await self._candles(market)

    async def _values(
        self, markets: Sequence[Market], channels_of: Mapping[str, Sequence[str]]
    ) -> list[Result]:
        exchange, pairs = self.rest.exchange, [market.pair for market in markets]
        before = await asyncio.to_thread(self.ours.last, exchange, pairs)
        said = await said_of(self.rest, markets)
        after = await self._caught_up(exchange, said)
        checks: dict[str, Any] = {"mark_price": compare_mark, "funding": compare_funding}
        return [
            check(pair, before.get(pair), after.get(pair), of_pair)
            for pair, of_pair in said.items()
            for channel, check in checks.items()
            if channel in channels_of[pair]
        ]

    async def _caught_up(self, exchange: str, said: Mapping[str, Said]) -> dict[str, Last]:
        """Our values when they have passed the answer's time, or after `CATCH_UP_S`."""
        deadline_ms = self.clock.now_ms() + CATCH_UP_S * 1000
        while True:
            after = await asyncio.to_thread(self.ours.last, exchange, list(said))
            behind = any(
                (after[pair].mark_event_ms or 0) < of_pair.time_ms if pair in after else True
                for pair, of_pair in said.items()
            )
            if not behind or self.clock.now_ms() >= deadline_ms:
                return after
            await self.clock.sleep(0.5)

    async def _candles(self, market: Market) -> list[Result]:
        end_ms = candle_open_ms(self.clock.now_ms() - CLOSED_MS)
        start_ms = end_ms - CANDLES * CANDLE_MS
        theirs: list[Kline] = []
        async for page in self.rest.minutes(market, start_ms - CANDLE_MS, end_ms):
            theirs.extend(page.rows)
        ours = await asyncio.to_thread(
            self.ours.candles, market.exchange, market.pair, start_ms, end_ms
        )
        return compare_candles(market.pair, ours, theirs, start_ms, end_ms)
