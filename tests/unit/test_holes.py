import itertools

from hypothesis import given
from hypothesis import strategies as st

from ingest.holes import Hole, find_holes, merge_holes, split_hole, whole_candles
from marketdata.schema import CANDLE_MS, MINUTE_MS

minutes = st.sets(st.integers(0, 400).map(lambda n: n * MINUTE_MS))


def covered(holes):
    return [t for hole in holes for t in range(hole.start_ms, hole.end_ms, MINUTE_MS)]


@given(minutes)
def test_holes_are_exactly_what_is_missing(present):
    holes = find_holes(present, 0, 300 * MINUTE_MS)
    expected = [n * MINUTE_MS for n in range(300) if n * MINUTE_MS not in present]
    assert covered(holes) == expected
    assert all(one.end_ms < other.start_ms for one, other in itertools.pairwise(holes))


@given(minutes, st.integers(3, 120))
def test_merged_and_split_holes_cover_every_missing_minute_in_calls_that_fit(present, max_minutes):
    holes = find_holes(present, 0, 300 * MINUTE_MS)
    calls = [
        part for hole in merge_holes(holes, max_minutes) for part in split_hole(hole, max_minutes)
    ]
    assert set(covered(holes)) <= set(covered(calls))
    assert all(0 < call.minutes <= max_minutes for call in calls)
    assert len(calls) <= sum(len(list(split_hole(hole, max_minutes))) for hole in holes)


def test_split_parts_come_newest_first():
    parts = list(split_hole(Hole(0, 10 * MINUTE_MS), 3))
    assert [part.end_ms for part in parts] == sorted((part.end_ms for part in parts), reverse=True)


@given(st.integers(0, 100), st.integers(1, 50), st.integers(0, 200))
def test_widened_holes_keep_what_was_asked_and_reach_no_minute_that_is_open(start, length, now):
    hole = Hole(start * MINUTE_MS, (start + length) * MINUTE_MS)
    now_ms = hole.end_ms + now * 1_000
    whole = whole_candles(hole, now_ms)
    assert whole.start_ms <= hole.start_ms
    assert whole.start_ms % CANDLE_MS == 0
    assert hole.end_ms <= whole.end_ms <= now_ms
