"""The sentinel with lanes and an exchange that do what a test says."""

from types import SimpleNamespace
from typing import cast

from ingest.clock import Clock
from ingest.exchanges.rest_base import ExchangeRest
from ingest.lanes import LaneStatus
from ingest.sentinel import Sentinel
from marketdata.errors import ExchangeRefused, ExchangeUnavailable, RateLimited
from marketdata.schema import MarkPrice, State

T0 = 1_790_000_000_000
PAIRS = ("BTC/USDT:USDT", "ETH/USDT:USDT")


class StandingClock(Clock):
    def __init__(self):
        super().__init__(speed=1_000.0)
        self.time_ms = T0

    def now_ms(self):
        return self.time_ms


class Lanes:
    def __init__(self):
        self.state: State = "live"
        self.rotated = []

    def lane_of(self, pair, channel):
        return "market-1"

    def lane_statuses(self):
        return [LaneStatus("market-1", self.state, T0, T0, 2, 0, 0, None)]

    def rotate(self, lane_id, cause):
        self.rotated.append((lane_id, cause))


class Rest:
    error: Exception | None = None

    def __init__(self):
        self.client = SimpleNamespace(answered_ms=0, is_held=False)

    async def server_ms(self):
        if self.error is not None:
            raise self.error
        return T0


class Watched:
    def __init__(self, *, others=True):
        self.clock, self.lanes, self.rest = StandingClock(), Lanes(), Rest()
        rest = cast(ExchangeRest, self.rest)
        self.looks = 0
        self.sentinel = Sentinel(
            "X", rest, lambda: self.lanes, lambda: others, self._look_at_markets, self.clock
        )
        self.sentinel.freshness.follow({pair: ["mark_price"] for pair in PAIRS}, T0)

    def _look_at_markets(self):
        self.looks += 1

    def after(self, seconds, *pairs):
        """Let time pass, with a mark of these pairs each second."""
        for _ in range(seconds):
            self.clock.time_ms += 1_000
            for pair in pairs:
                mark = MarkPrice("X", pair, self.clock.time_ms, 5.0, None)
                self.sentinel.judge.observe(mark, self.clock.time_ms)
            self.sentinel.look()

    def state(self, pair=PAIRS[0]):
        return self.sentinel.freshness.state(pair, "mark_price")

    async def probed(self):
        await self.sentinel._ask()
        self.sentinel.look()


def test_a_connection_that_forgets_one_pair_is_replaced_once_and_not_each_second():
    watched = Watched()
    watched.after(5, *PAIRS)
    watched.after(60, PAIRS[0])
    assert watched.state(PAIRS[1]) == "late"
    assert [lane for lane, _ in watched.lanes.rotated] == ["market-1"]
    assert PAIRS[1] in watched.lanes.rotated[0][1]
    assert watched.looks == 1, "it may have been delisted"


def test_a_connection_that_brings_nothing_is_left_to_its_supervisor():
    watched = Watched()
    watched.after(5, *PAIRS)
    watched.after(60)
    assert watched.lanes.rotated == []
    assert watched.looks == 0


async def test_without_connections_and_rest_the_venue_is_down_and_comes_back_with_data():
    watched = Watched()
    watched.after(5, *PAIRS)
    watched.lanes.state = "disconnected"
    watched.rest.error = ExchangeUnavailable("503")
    watched.after(30)
    assert watched.state() == "disconnected"
    await watched.probed()
    assert watched.state() == "venue_down"
    watched.lanes.state = "live"
    watched.after(1, *PAIRS)
    assert watched.state() == "live"
    gaps = watched.sentinel.judge.outages.rows()
    assert {(gap.symbol, gap.channel) for gap in gaps} == {(pair, "mark_price") for pair in PAIRS}


async def test_an_exchange_whose_rest_answers_is_not_down():
    watched = Watched()
    watched.after(5, *PAIRS)
    watched.lanes.state = "disconnected"
    watched.after(30)
    for error in (None, ExchangeRefused("404")):
        watched.rest.error = error
        await watched.probed()
        assert watched.state() == "disconnected"


async def test_when_no_exchange_can_be_reached_it_is_our_network():
    watched = Watched(others=False)
    watched.after(5, *PAIRS)
    watched.lanes.state = "disconnected"
    watched.rest.error = ExchangeUnavailable("unreachable")
    watched.after(30)
    await watched.probed()
    assert watched.state() == "disconnected"
    assert not watched.sentinel.reached


async def test_an_exchange_that_says_so_itself_is_down_whatever_the_others_do():
    watched = Watched(others=False)
    watched.after(5, *PAIRS)
    watched.lanes.state = "disconnected"
    watched.rest.error = ExchangeUnavailable("503: system maintenance")
    watched.after(30)
    watched.rest.client.answered_ms = watched.clock.now_ms()
    await watched.probed()
    assert watched.state() == "venue_down"
    assert watched.sentinel.reached


async def test_an_exchange_that_refuses_us_is_not_down():
    watched = Watched()
    watched.after(5, *PAIRS)
    watched.lanes.state = "disconnected"
    watched.rest.error = RateLimited("418", retry_after_s=120)
    watched.rest.client.is_held = True
    watched.after(30)
    await watched.probed()
    assert watched.state() == "disconnected"
    assert watched.sentinel.reached


def test_an_exchange_without_a_connection_counts_as_reached_only_once_it_answers():
    watched = Watched()
    watched.after(5, *PAIRS)
    assert watched.sentinel.reached
    watched.lanes.state = "disconnected"
    watched.after(1)
    assert not watched.sentinel.reached
