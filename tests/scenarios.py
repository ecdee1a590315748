"""What tests of whole scenarios share: a clock to hurry with, and questions to a store."""

from typing import Any

from ingest.clock import Clock
from ingest.simulator.market import Market
from ingest.simulator.server import Simulator
from marketdata.schema import CANDLE_MS
from tests.service import MARKET_STARTS_MS, SPEED, configuration, stored
from tests.waiting import eventually


class HurryingClock(Clock):
    """A clock whose speed may change, and that may leap as that of a suspended machine does."""

    def hurry(self, speed):
        """Run at another speed from now on; sleeps that have begun keep theirs."""
        self._rebase(self.now_ms(), self.monotonic_ms(), speed)

    def leap(self, to_ms):
        """Show this time now."""
        now_ms = self.now_ms()
        self._rebase(to_ms, self.monotonic_ms() + to_ms - now_ms, self.speed)

    async def reach(self, time_ms):
        await eventually(lambda: self.now_ms() >= time_ms, 60, "the clock")

    def _rebase(self, now_ms, monotonic_ms, speed):
        self.speed = speed
        self._start_ms = float(now_ms - monotonic_ms)
        self._world_start = self.world_s() - monotonic_ms / 1000 / speed


def hurrying_simulator(speed=SPEED, start_ms=MARKET_STARTS_MS, **options):
    clock = HurryingClock(speed, start_ms)
    return Simulator(market=Market(as_of_ms=clock.now_ms()), clock=clock, **options)


class Scene:
    """One service's store and status, asked for what a scenario is about."""

    def __init__(self, simulator, folder, port, pairs, extra=None):
        self.simulator = simulator
        self.clock = simulator.clock
        self.pairs = pairs
        self.settings = configuration(simulator, folder, port, pairs=pairs, extra=extra)
        self.service: Any = None

    def where(self):
        return [(exchange, pair) for exchange, some in self.pairs.items() for pair in some]

    def rows(self, measurement, where, since_ms=0, until_ms=2**53):
        exchange, pair = where
        return stored(self.settings, measurement, exchange, pair, since_ms, until_ms)

    def exchange(self, name):
        return self.service.status()["exchanges"][name]

    def state(self, where, channel):
        return self.exchange(where[0])["pairs"][where[1]][channel]["state"]

    def states(self, channel):
        return {self.state(where, channel) for where in self.where() if self._has(where, channel)}

    def _has(self, where, channel):
        return channel in self.exchange(where[0])["pairs"][where[1]]

    def lanes(self, exchange):
        return {lane["id"]: lane for lane in self.exchange(exchange)["connections"]}

    def gaps(self, where, since_ms=0, until_ms=2**53):
        """Channel, reason and state of a pair's gaps that begin then."""
        return {
            (gap.channel, gap.reason, gap.state)
            for gap in self.rows("gap", where)
            if since_ms <= gap.time < until_ms
        }

    def missing(self, measurement, since_ms, until_ms, among=None):
        """The open times of whole candles or minutes that the store lacks, by pair."""
        step_ms = {"ohlcv_1m": 60_000}.get(measurement, CANDLE_MS)
        first_ms, end_ms = -(-since_ms // step_ms) * step_ms, until_ms // step_ms * step_ms
        wanted = set(range(first_ms, end_ms, step_ms))
        found = {}
        for where in self.where() if among is None else among:
            there = {row.time for row in self.rows(measurement, where, first_ms, end_ms)}
            if not wanted <= there:
                found[where] = sorted(wanted - there)
        return found

    async def whole(self, since_ms, until_ms, timeout_s=60, measurement="ohlcv_3m"):
        left = self.where()

        def all_there():
            # One pair a look: a store of many is read in a time that the service needs too.
            if left and not self.missing(measurement, since_ms, until_ms, left[-1:]):
                left.pop()
            return not left

        await eventually(all_there, timeout_s, f"every row of {measurement}")

    async def settled(self, timeout_s=60):
        """Until no gap is open, in the store's ledger too, and everything is fresh."""
        left = self.where()

        def no_gap_open():
            status = self.service.status()
            if status["gaps"]["open"] or status["state"] not in ("live", "quiet"):
                return False
            # Of a ledger that has closed its gaps, the last rows may still be on their way.
            if left and "open" not in {gap.state for gap in self.rows("gap", left[-1])}:
                left.pop()
            return not left

        await eventually(no_gap_open, timeout_s, "no open gap")

    def assert_every_second_has_its_mark(self, where, since_ms, until_ms):
        times = [row.time // 1000 for row in self.rows("mark_price", where, since_ms, until_ms)]
        assert len(times) == len(set(times)), where
        absent = set(range(since_ms // 1000 + 1, until_ms // 1000)) - set(times)
        assert not absent, (where, sorted(absent))


def measured(what, value):
    """Keep a figure for docs/reliability.md: `pytest -rP` shows it."""
    print(f"measured: {what}: {value}")
