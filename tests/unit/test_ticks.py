from hypothesis import given
from hypothesis import strategies as st

from ingest.ticks import Thinner
from marketdata.schema import MINUTE_MS, FundingRate, MarkPrice


def mark(time_ms, price=1.0, symbol="BTC/USDT:USDT"):
    return MarkPrice("BYBIT", symbol, time_ms, price, None)


@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 9)), min_size=1, max_size=60))
def test_a_window_has_at_most_one_tick_and_it_is_the_newest_that_came_in_time(ticks):
    ticks.sort()
    thinner = Thinner(every_ms=1_000, repeat_ms=0)
    stored = [row for time_ms, price in ticks for row in thinner.put(mark(time_ms, float(price)))]
    stored += thinner.rest()
    newest = {}
    for time_ms, _ in ticks:
        newest[time_ms // 1_000] = time_ms
    assert [row.time for row in stored] == list(newest.values())


def test_an_unchanged_value_is_stored_again_after_a_minute_and_not_before():
    thinner = Thinner(every_ms=1_000)
    stored = [row.time for t in range(0, 180_000, 1_000) for row in thinner.put(mark(t))]
    assert stored == [0, MINUTE_MS, 2 * MINUTE_MS]


def test_a_changed_value_is_stored_in_its_own_window():
    thinner = Thinner(every_ms=1_000)
    stored = [row for t in range(0, 5_000, 500) for row in thinner.put(mark(t, float(t)))]
    assert [row.time for row in stored] == [500, 1_500, 2_500, 3_500]


def test_a_window_that_is_over_does_not_wait_for_the_next_tick():
    thinner = Thinner(every_ms=1_000)
    thinner.put(mark(1_200))
    assert thinner.due(1_999) == []
    assert [row.time for row in thinner.due(2_000)] == [1_200]
    assert thinner.due(9_000) == []


def test_a_late_tick_of_a_stored_window_is_not_stored_again():
    thinner = Thinner(every_ms=1_000)
    thinner.put(mark(1_200))
    thinner.due(2_000)
    thinner.put(mark(1_500, 2.0))
    assert thinner.rest() == []


def test_pairs_and_measurements_do_not_thin_each_other():
    thinner = Thinner(every_ms=1_000)
    thinner.put(mark(100))
    thinner.put(mark(200, symbol="ETH/USDT:USDT"))
    thinner.put(FundingRate("BYBIT", "BTC/USDT:USDT", 300, 0.0001, None, None, 8.0))
    assert len(thinner.rest()) == 3
