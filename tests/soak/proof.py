"""Is a store whole, and as the simulator's market has it?"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ingest.simulator.server import Simulator
from marketdata.errors import StoreUnavailable
from marketdata.schema import CANDLE_MS, MINUTE_MS
from marketdata.settings import Settings
from tests.service import assert_true, stored, truth
from tests.waiting import eventually

Where = tuple[str, str]


@dataclass(frozen=True)
class Figures:
    """What the store has; minutes by the way that they came."""

    minutes: Mapping[str, int]
    candles: int
    settlements: int


@dataclass(frozen=True)
class Proof:
    """Holds the rows with start_ms <= time < end_ms of all pairs against the truth."""

    simulator: Simulator
    settings: Settings
    pairs: Mapping[str, Sequence[str]]
    span: tuple[int, int]
    checked: list[Where] = field(default_factory=list)

    def where(self) -> Iterator[Where]:
        for exchange, pairs in self.pairs.items():
            for pair in pairs:
                yield exchange, pair

    async def whole(self, timeout_s: float) -> float:
        """Wait until nothing is missing; how many seconds that took."""
        left, started = list(self.where()), time.monotonic()

        def all_there() -> bool:
            # One pair a look: a store of many is read in a time that the service needs too.
            with suppress(StoreUnavailable):  # it isn't made before the first write
                if left and not self.absent(left[-1]):
                    left.pop()
            return not left

        try:
            await eventually(all_there, timeout_s, "a whole store")
        except AssertionError as error:
            raise AssertionError(f"{error}: {[(w, self.absent(w)) for w in left[-3:]]}") from None
        return time.monotonic() - started

    def absent(self, where: Where) -> dict[str, Any]:
        """What the store lacks of a pair, by measurement; under `gap` those that are open."""
        steps = {"ohlcv_1m": MINUTE_MS, "ohlcv_3m": CANDLE_MS}
        if ":" in where[1]:
            steps["mark_3m"] = CANDLE_MS
        absent: dict[str, Any] = {}
        for measurement, step_ms in steps.items():
            there = {row.time for row in stored(self.settings, measurement, *where, *self.span)}
            if missing := sorted(set(range(*self.span, step_ms)) - there):
                absent[measurement] = missing
        settled = {row.time for row in stored(self.settings, "funding_settled", *where, *self.span)}
        if missing := sorted({time_ms for time_ms, _ in self._settled(where)} - settled):
            absent["funding_settled"] = missing
        gaps = stored(self.settings, "gap", *where, 0, self.span[1])
        if unfinished := [gap for gap in gaps if gap.state == "open"]:
            absent["gap"] = unfinished
        return absent

    async def equal(self) -> Figures:
        """Every candle, minute and settlement is there once and as the market has it."""
        sources: Counter[str] = Counter()
        candles = settlements = 0
        for exchange, pair in self.where():
            rows = await assert_true(self.simulator, self.settings, exchange, pair)
            candles += len(rows)
            minutes = stored(self.settings, "ohlcv_1m", exchange, pair)
            assert [row.time for row in minutes] == sorted({row.time for row in minutes})
            asked = minutes[0].time, minutes[-1].time + MINUTE_MS
            expected = await truth(self.simulator, exchange, pair, *asked, interval="1m")
            for row in minutes:
                assert row[3:9] == expected[row.time][:6], row
            assert {row.revision for row in [*minutes, *rows]} == {0}
            sources.update(row.source for row in minutes)
            settled = stored(self.settings, "funding_settled", exchange, pair, *self.span)
            told = [(row.time, round(row.rate * 1e8)) for row in settled]
            assert told == self._settled((exchange, pair)), (exchange, pair)
            settlements += len(settled)
        return Figures(sources, candles, settlements)

    def _settled(self, where: Where) -> list[tuple[int, int]]:
        exchange, pair = where
        if ":" not in pair:
            return []
        contract = self.simulator.market.contract(exchange, pair.partition(":")[0].replace("/", ""))
        return self.simulator.market.settled(contract, self.span[0], self.span[1] - 1)
