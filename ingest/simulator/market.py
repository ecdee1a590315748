"""The market that the simulated exchanges show, and the truth that tests compare with.

A pure function of seed, contract and time: any past or future minute can be asked, nothing is
stored but bounded caches. The exceptions are what tests do to it: `revise` for exchanges that
correct a minute, `halt` for times without trades, `relist` for contracts that come, go and change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import NamedTuple

from ingest.simulator.bars import Bar, Minute, Trade, closed_bars, merge
from ingest.simulator.halts import Halt, Halts
from ingest.simulator.tape import MINUTE_MS, Marks, Tape, Trades
from ingest.simulator.universe import Contract, Kind, universe
from marketdata.errors import UnknownPair

HOUR_MS = 3_600_000
AS_OF_MS = 1_795_132_800_000
"""20 November 2026: when the default universe is listed."""
_BLOCK_MINUTES = 10
_BLOCK_HOURS = 4


class Mark(NamedTuple):
    """Mark and index price at one second, in units of 1e-8."""

    price: int
    index_price: int


class MarkBar(NamedTuple):
    """A kline of the mark prices of each second, in units of 1e-8."""

    open_ms: int
    open: int
    high: int
    low: int
    close: int


class Funding(NamedTuple):
    """The running estimate (units of 1e-8) for the settlement at `next_ms`."""

    rate: int
    next_ms: int
    interval_hours: int


class Day(NamedTuple):
    """The last 24 full hours; `hour_open` is the price when the last of them began."""

    open: int
    high: int
    low: int
    volume: int
    quote: int
    trades: int
    hour_open: int


class Market:
    """Every contract's trades, klines, marks and funding at any time.

    Parameters
    ----------
    seed
        Another seed is another market.
    contracts
        What is listed; left out, `universe(as_of_ms)`.

    >>> market = Market(seed=1)
    >>> bitcoin = market.contract("BINANCE_FUTURES", "BTCUSDT")
    >>> bar = market.kline(bitcoin, 1_795_132_740_000)
    >>> minutes = [market.kline(bitcoin, 1_795_132_740_000 + i * 60_000) for i in range(3)]
    >>> candle = market.kline(bitcoin, 1_795_132_740_000, 180_000)
    >>> candle.volume == sum(minute.volume for minute in minutes), candle.open == bar.open
    (True, True)
    """

    def __init__(
        self,
        seed: int = 7,
        contracts: Sequence[Contract] | None = None,
        *,
        as_of_ms: int = AS_OF_MS,
    ) -> None:
        self.seed = seed
        self.version = 0
        """Rises with each change of the contracts."""
        self.contracts: tuple[Contract, ...] = ()
        self.relist(universe(as_of_ms) if contracts is None else contracts)
        self._halts = Halts()
        self._tape = cache(partial(Tape, seed))
        self._revised: set[tuple[Contract, int]] = set()
        self._trades = lru_cache(maxsize=1024)(self._load_trades)
        self._marks = lru_cache(maxsize=1024)(self._load_marks)
        self._minute = lru_cache(maxsize=1024)(self._load_minute)
        self._day = lru_cache(maxsize=1024)(self._load_day)
        self._hours = lru_cache(maxsize=4096)(self._load_hours)
        self._funding = lru_cache(maxsize=1024)(self._load_funding)

    def contract(self, exchange: str, id: str, kind: Kind | None = None) -> Contract:
        """By its byte-exact id; `kind` where a perpetual and a spot pair share one (left out: the
        perpetual). Raises `UnknownPair`."""
        for contract in self._by_id.get((exchange, id), ()):
            if kind is None or contract.kind == kind:
                return contract
        raise UnknownPair(id, exchange)

    def relist(self, contracts: Sequence[Contract]) -> None:
        """List these from now on; a contract that is none of the ones before is another one."""
        self.contracts = tuple(contracts)
        self._by_id: dict[tuple[str, str], list[Contract]] = {}
        for contract in self.contracts:
            self._by_id.setdefault((contract.exchange, contract.id), []).append(contract)
        self.version += 1

    def halt(self, halt: Halt) -> None:
        """Let there be no trades in these minutes."""
        self._halts.add(halt)
        for kept in (self._trades, self._minute, self._hours, self._day):
            kept.cache_clear()

    def listed(self, exchange: str, *kinds: Kind) -> list[Contract]:
        """The contracts of an exchange, in order of activity."""
        return [c for c in self.contracts if c.exchange == exchange and c.kind in kinds]

    def kline(
        self,
        contract: Contract,
        open_ms: int,
        interval_ms: int = MINUTE_MS,
        at_ms: int | None = None,
    ) -> Bar:
        """The bar that opens at `open_ms`, of the trades before `at_ms` (left out: all of them)."""
        first = open_ms // MINUTE_MS
        end_ms = open_ms + interval_ms
        if at_ms is None or at_ms >= end_ms:
            at_ms = end_ms
        whole = (at_ms - open_ms) // MINUTE_MS
        parts = self._whole_minutes(contract, first, whole)
        if whole * MINUTE_MS < interval_ms:
            minute = self._minute(contract, first + whole)
            parts.append(minute.bar(minute.before(at_ms)))
        merged = merge(bar for bar in parts if bar.trades)
        if merged is None:
            close = self._close_before(contract, first)
            return Bar(open_ms, interval_ms, close, close, close, close, 0, 0, 0, 0, 0)
        return merged._replace(open_ms=open_ms, interval_ms=interval_ms)

    def klines(
        self, contract: Contract, interval_ms: int, start_ms: int, end_ms: int, at_ms: int
    ) -> list[Bar]:
        """Ascending bars with start <= open < end that had opened by `at_ms`; the newest may be
        partial. None from before the listing or after the delivery."""
        first_ms = -(-max(start_ms, contract.listed_ms) // interval_ms) * interval_ms
        end_ms = min(end_ms, at_ms + 1, contract.expiry_ms or end_ms)
        bars = -(-(end_ms - first_ms) // interval_ms)
        if bars <= 0:
            return []
        closed = min(bars, max(0, (at_ms - first_ms) // interval_ms))
        found = self._closed_bars(contract, interval_ms, first_ms, closed)
        if closed < bars:
            found.append(self.kline(contract, first_ms + closed * interval_ms, interval_ms, at_ms))
        return found

    def traded(self, contract: Contract, start_ms: int, end_ms: int) -> list[Trade]:
        """Trades with start <= time < end, ascending; meant for spans of seconds."""
        found: list[Trade] = []
        for minute in range(start_ms // MINUTE_MS, (end_ms - 1) // MINUTE_MS + 1):
            tape = self._minute(contract, minute)
            found += tape.trades(tape.before(start_ms), tape.before(end_ms))
        return found

    def has_traded(self, contract: Contract, start_ms: int, end_ms: int) -> bool:
        """Whether there is a trade with start <= time < end, within one minute."""
        minute = self._minute(contract, start_ms // MINUTE_MS)
        return minute.before(end_ms) > minute.before(start_ms)

    def last_price(self, contract: Contract, at_ms: int) -> int:
        """Price of the last trade before `at_ms`."""
        minute = self._minute(contract, at_ms // MINUTE_MS)
        count = minute.before(at_ms)
        return minute.price[count - 1] if count else self._close_before(contract, minute.minute)

    def mark(self, contract: Contract, second_ms: int) -> Mark:
        """Mark and index price at a whole second."""
        minute, offset = divmod(second_ms, MINUTE_MS)
        phase = self._phase(contract)
        block, row = divmod(minute + phase, _BLOCK_MINUTES)
        marks = self._marks(contract, block * _BLOCK_MINUTES - phase)
        second = offset // 1000
        return Mark(int(marks.mark[row, second]), int(marks.index[row, second]))

    def mark_klines(
        self, contract: Contract, interval_ms: int, start_ms: int, end_ms: int, at_ms: int
    ) -> list[MarkBar]:
        """Ascending, like `klines`."""
        first_ms = -(-max(start_ms, contract.listed_ms) // interval_ms) * interval_ms
        end_ms = min(end_ms, at_ms + 1, contract.expiry_ms or end_ms)
        bars = -(-(end_ms - first_ms) // interval_ms)
        if bars <= 0:
            return []
        minutes = interval_ms // MINUTE_MS
        marks = self._tape(contract).marks(first_ms // MINUTE_MS, bars * minutes).mark
        seconds = marks.reshape(bars, minutes * 60)
        found = []
        for number, bar in enumerate(seconds):
            open_ms = first_ms + number * interval_ms
            seen = bar[: max(1, (at_ms - open_ms) // 1000 + 1)]
            prices = (seen[0], seen.max(), seen.min(), seen[-1])
            found.append(MarkBar(open_ms, *map(int, prices)))
        return found

    def funding(self, contract: Contract, at_ms: int) -> Funding:
        """What is shown for the upcoming settlement: the last settled rate just after one, moving
        once a minute to the rate that will be settled."""
        return self._funding(contract, at_ms // MINUTE_MS)

    def settled(self, contract: Contract, start_ms: int, end_ms: int) -> list[tuple[int, int]]:
        """Ascending `(settlement_ms, rate)` with start <= settlement <= end."""
        found = []
        start_ms = max(start_ms, contract.listed_ms)
        for until_ms, hours in contract.all_intervals():
            interval_ms = hours * HOUR_MS
            numbers = range(-(-start_ms // interval_ms), min(end_ms, until_ms) // interval_ms + 1)
            found += [(n * interval_ms, self._rate(contract, n - 1, hours)) for n in numbers]
            start_ms = max(start_ms, until_ms + 1)
        return found

    def day(self, contract: Contract, at_ms: int) -> Day:
        """Statistics of the last 24 full hours."""
        return self._day(contract, at_ms // HOUR_MS)

    def revise(self, contract: Contract, minute_ms: int) -> Bar:
        """Book one more trade in a minute, as an exchange that corrects itself; opening and closing
        price stay. Returns the minute as it now is. Raises ValueError for one without trades."""
        if not self.kline(contract, minute_ms).trades:
            raise ValueError(
                f"{contract.id} has no trade in the minute {minute_ms}: none to correct"
            )
        self._revised.add((contract, minute_ms // MINUTE_MS))
        self._minute.cache_clear()
        self._hours.cache_clear()
        self._day.cache_clear()
        return self.kline(contract, minute_ms)

    def _phase(self, contract: Contract) -> int:
        # Blocks of different contracts begin at different minutes, so the work is spread evenly.
        return self._tape(contract).phase % _BLOCK_MINUTES

    def _load_trades(self, contract: Contract, first_minute: int) -> Trades:
        return self._made(contract, first_minute, _BLOCK_MINUTES)

    def _made(self, contract: Contract, first_minute: int, minutes: int) -> Trades:
        trades = self._tape(contract).trades(first_minute, minutes)
        if not self._halts.touch(contract, first_minute, minutes):
            return trades
        open_ = self._halts.traded(contract, first_minute, minutes)
        return replace(trades, count=trades.count * open_)

    def _load_marks(self, contract: Contract, first_minute: int) -> Marks:
        return self._tape(contract).marks(first_minute, _BLOCK_MINUTES)

    def _load_minute(self, contract: Contract, minute: int) -> Minute:
        phase = self._phase(contract)
        block, row = divmod(minute + phase, _BLOCK_MINUTES)
        trades = self._trades(contract, block * _BLOCK_MINUTES - phase)
        revised = contract.tick if (contract, minute) in self._revised else 0
        return Minute(minute, trades, row, revised)

    def _load_funding(self, contract: Contract, minute: int) -> Funding:
        intervals = contract.all_intervals()
        hours = next(hours for until_ms, hours in intervals if minute * MINUTE_MS < until_ms)
        number, since = divmod(minute, hours * 60)
        last_ms = number * hours * HOUR_MS
        settled = self.settled(contract, last_ms, last_ms)
        before = settled[0][1] if settled else self._rate(contract, number - 1, hours)
        after = self._rate(contract, number, hours)
        share = since / (hours * 60 - 1)
        wobble = self._tape(contract).wobble(minute) * share * (1 - share) * 8_000 * hours / 8
        rate = round(before + (after - before) * share + wobble)
        return Funding(rate, (number + 1) * hours * HOUR_MS, hours)

    def _rate(self, contract: Contract, settlement: int, hours: int) -> int:
        return self._tape(contract).rate(settlement, hours)

    def _load_day(self, contract: Contract, hour: int) -> Day:
        hours = [
            self._hours(contract, number // _BLOCK_HOURS)[number % _BLOCK_HOURS]
            for number in range(hour - 24, hour)
        ]
        bar = merge(bar for bar in hours if bar.trades)
        if bar is None:
            close = self._close_before(contract, hour * 60)
            return Day(close, close, close, 0, 0, 0, close)
        return Day(bar.open, bar.high, bar.low, bar.volume, bar.quote, bar.trades, hours[-1].open)

    def _load_hours(self, contract: Contract, block: int) -> list[Bar]:
        first_ms = block * _BLOCK_HOURS * HOUR_MS
        return self._closed_bars(contract, HOUR_MS, first_ms, _BLOCK_HOURS)

    def _whole_minutes(self, contract: Contract, first: int, minutes: int) -> list[Bar]:
        if minutes > 15:
            return self._closed_bars(contract, MINUTE_MS, first * MINUTE_MS, minutes)
        found = (self._minute(contract, first + number) for number in range(minutes))
        return [minute.bar(len(minute.price)) for minute in found]

    def _close_before(self, contract: Contract, minute: int) -> int:
        if contract.trades_per_minute:
            minute = self._halts.before(contract, minute)
            for back in range(minute - 1, minute - 62, -1):
                if prices := self._minute(contract, back).price:
                    return prices[-1]
        return round(contract.anchor * 10.0**contract.price_digits)

    def _closed_bars(
        self, contract: Contract, interval_ms: int, first_ms: int, bars: int
    ) -> list[Bar]:
        """Whole bars, made in one go of arrays."""
        if not bars:
            return []
        first, each = first_ms // MINUTE_MS, interval_ms // MINUTE_MS
        found = closed_bars(self._made(contract, first, bars * each), interval_ms, first_ms)
        if self._tape(contract).thin or self._halts.touch(contract, first, bars * each):
            self._fill_flat(contract, found)
        self._apply_revisions(contract, found)
        return found

    def _fill_flat(self, contract: Contract, bars: list[Bar]) -> None:
        close = self._close_before(contract, bars[0].open_ms // MINUTE_MS)
        for number, bar in enumerate(bars):
            if bar.trades:
                close = bar.close
            else:
                bars[number] = bar._replace(open=close, high=close, low=close, close=close)

    def _apply_revisions(self, contract: Contract, bars: list[Bar]) -> None:
        interval_ms, first_ms = bars[0].interval_ms, bars[0].open_ms
        for revised, minute in self._revised:
            number, _ = divmod(minute * MINUTE_MS - first_ms, interval_ms)
            if revised is contract and 0 <= number < len(bars):
                bar = bars[number]
                extra = self._minute(contract, minute)
                bars[number] = bar._replace(
                    high=max(bar.high, extra.price[1]),
                    volume=bar.volume + extra.quantity[1],
                    quote=bar.quote + extra.price[1] * extra.quantity[1],
                    trades=bar.trades + 1,
                )
