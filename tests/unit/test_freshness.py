from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.freshness import ClockOffset, Freshness, worst
from ingest.judge import Judge
from ingest.model import Kline
from marketdata.deadlines import DEADLINE_MS
from marketdata.schema import LastPrice

PAIR = "BTC/USDT:USDT"
OTHER = "ETH/USDT:USDT"
T0 = 1_790_000_000_000


class Watched:
    """One exchange of one lane, with short words for what happens to it."""

    def __init__(self, channels=("candles", "funding", "mark_price", "last_price")):
        self.freshness = Freshness(lambda pair, channel: "lane")
        self.freshness.follow({PAIR: channels, OTHER: channels}, T0)
        self.freshness.connection("lane", up=True, now_ms=T0)

    def event(self, channel, at_ms, pair=PAIR, latency_ms=0):
        self.freshness.event(pair, channel, T0 + at_ms, T0 + at_ms + latency_ms)

    def state(self, channel, at_ms, pair=PAIR):
        self.freshness.tick(T0 + at_ms)
        return self.freshness.state(pair, channel)


@pytest.mark.parametrize("channel", DEADLINE_MS)
def test_a_channel_is_live_up_to_its_deadline(channel):
    watched = Watched()
    watched.event(channel, 1_000)
    deadline_ms = DEADLINE_MS[channel]
    assert watched.state(channel, 1_000 + deadline_ms) == "live"
    assert watched.state(channel, 1_001 + deadline_ms) == "late"


def test_a_mark_price_that_comes_each_second_is_late_after_ten():
    watched = Watched()
    watched.event("mark_price", 0)
    assert watched.state("mark_price", 10_001) == "late"


def test_no_trades_is_quiet_only_while_the_same_connection_delivers():
    watched = Watched()
    watched.event("candles", 1_000)
    watched.event("mark_price", 599_000, pair=OTHER)
    assert watched.state("candles", 600_000) == "quiet"
    assert watched.state("last_price", 600_000) == "quiet"
    assert watched.state("candles", 620_000) == "late"


def test_rest_may_confirm_the_silence():
    watched = Watched()
    watched.event("candles", 1_000)
    watched.freshness.confirm_quiet(PAIR, T0 + 560_000)
    assert watched.state("candles", 600_000) == "quiet"
    assert watched.state("candles", 651_000) == "late"


@pytest.mark.parametrize(("close", "state"), [(100.0, "quiet"), (100.5, "late")])
def test_a_last_price_stands_while_klines_end_at_it(close, state):
    watched = Watched()
    judge = Judge("BYBIT", watched.freshness)
    judge.observe(LastPrice("BYBIT", PAIR, T0, 100.0), T0)
    for at_ms in (60_000, 120_000):
        nothing = (Decimal(0), Decimal(0), None, True)
        prices = (100.0, 100.5, 100.0, close)
        judge.observe(Kline("BYBIT", PAIR, T0, *prices, *nothing, T0 + at_ms), T0 + at_ms)
    assert watched.state("last_price", 150_000) == state
    assert watched.state("candles", 150_000) == "live"
    assert watched.state("last_price", 211_000) == "late"


def test_rest_may_show_that_the_stream_has_forgotten_a_pair():
    watched = Watched()
    watched.event("candles", 1_000)
    watched.event("mark_price", 600_000, pair=OTHER)
    watched.freshness.confirm_silent(PAIR)
    assert watched.state("candles", 600_000) == "late"
    watched.event("candles", 601_000)
    assert watched.state("candles", 601_000) == "live"


def test_silence_of_marks_or_funding_is_never_quiet():
    watched = Watched()
    watched.event("candles", 599_000, pair=OTHER)
    watched.event("mark_price", 0)
    watched.event("funding", 0)
    assert watched.state("mark_price", 600_000) == "late"
    assert watched.state("funding", 600_000) == "late"


def test_a_connection_that_is_down_and_a_venue_that_is_down_are_told_apart():
    watched = Watched()
    watched.event("mark_price", 0)
    watched.freshness.connection("lane", up=False, now_ms=T0 + 1_000)
    assert watched.state("mark_price", 60_000) == "disconnected"
    assert watched.state("candles", 60_000) == "disconnected"
    assert watched.freshness.all_down_since_ms == T0 + 1_000
    watched.freshness.venue_down = True
    assert watched.state("mark_price", 60_000) == "venue_down"
    watched.freshness.venue_down = False
    watched.freshness.connection("lane", up=True, now_ms=T0 + 61_000)
    watched.event("mark_price", 61_000)
    assert watched.state("mark_price", 61_000) == "live"
    assert watched.freshness.all_down_since_ms is None


def test_a_new_subscription_is_given_time():
    watched = Watched()
    assert watched.state("mark_price", 15_000) == "starting"
    assert watched.state("mark_price", 15_001) == "late"


def test_changes_are_told_once_with_the_time_in_the_old_state():
    watched = Watched(channels=["mark_price"])
    watched.event("mark_price", 1_000)
    (change, *others) = watched.freshness.tick(T0 + 2_000)
    assert (change.pair, change.old, change.new, change.since_ms) == (PAIR, "starting", "live", T0)
    assert others == []
    assert watched.freshness.tick(T0 + 3_000) == []


def test_ages_are_by_the_exchanges_clock():
    watched = Watched()
    # Its clock is five minutes behind ours; the network takes 80 ms and more.
    for n, latency_ms in enumerate((200, 80, 300)):
        event_ms = T0 - 300_000 + n * 1_000
        watched.freshness.event(PAIR, "mark_price", event_ms, T0 + n * 1_000 + latency_ms)
    assert watched.freshness.offset.ms == -300_080
    assert watched.freshness.offset.is_wrong
    assert watched.state("mark_price", 3_000) == "live"
    assert watched.state("mark_price", 13_000) == "late"


@given(st.integers(-(10**6), 10**6), st.lists(st.integers(0, 5_000), min_size=1, max_size=50))
def test_the_offset_is_never_off_by_more_than_the_least_latency(ahead_ms, latencies_ms):
    offset = ClockOffset()
    for n, latency_ms in enumerate(latencies_ms):
        offset.event(T0 + n * 100 + ahead_ms, T0 + n * 100 + latency_ms)
    assert offset.ms == ahead_ms - min(latencies_ms)


def test_an_offset_that_is_over_is_forgotten():
    offset = ClockOffset()
    offset.event(T0 + 600_000, T0)
    for n in range(1, 200):
        offset.event(T0 + n * 1_000, T0 + n * 1_000 + 50)
    assert offset.ms == -50


@given(
    st.lists(
        st.tuples(
            st.integers(0, 400),
            st.sampled_from(["event", "other", "up", "down", "venue", "venue_up", "tick"]),
        ),
        max_size=60,
    )
)
def test_live_always_means_a_young_event_and_quiet_always_has_proof(steps):
    watched = Watched()
    newest = None
    delivered = None
    up = True
    now = 0
    for wait_s, what in steps:
        now += wait_s * 100
        if what == "event":
            watched.event("candles", now)
            newest = delivered = now
        elif what == "other":
            watched.event("mark_price", now, pair=OTHER)
            delivered = now
        elif what in ("up", "down"):
            up = what == "up"
            watched.freshness.connection("lane", up=up, now_ms=T0 + now)
        elif what.startswith("venue"):
            watched.freshness.venue_down = what == "venue"
        state = watched.state("candles", now)
        if state == "live":
            assert newest is not None
            assert now - newest <= DEADLINE_MS["candles"]
        if state == "quiet":
            assert up
            assert delivered is not None
            assert now - delivered <= DEADLINE_MS["mark_price"]
        if newest is not None and now - newest <= DEADLINE_MS["candles"]:
            assert state == "live"


def test_the_worst_of_the_parts_is_the_state_of_the_whole():
    assert worst(["quiet", "live"]) == "quiet"
    assert worst(["live", "venue_down", "late"]) == "venue_down"
    assert worst([]) == "starting"
