"""When a pair's funding history is asked, and from where on it may have a hole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.settlements import ASK_AFTER_MS, SPREAD_MS, Schedule, first_missing
from marketdata.schema import FundingSettled

HOUR_MS = 3_600_000
PAIR = "BTC/USDT:USDT"


def settled(hour: float, interval: float | None = 8.0) -> FundingSettled:
    return FundingSettled("X", PAIR, int(hour * HOUR_MS), 0.0001, interval, None)


def schedule(last: float | None = 0, interval: int | None = 8, now: float = 0) -> Schedule:
    made = Schedule()
    last_ms = None if last is None else int(last * HOUR_MS)
    interval_ms = None if interval is None else interval * HOUR_MS
    made.add(PAIR, last_ms, interval_ms, int(now * HOUR_MS))
    return made


def settlement_waited_for(made: Schedule) -> int | None:
    at_ms = made.due_ms(PAIR)
    return None if at_ms is None else (at_ms - ASK_AFTER_MS[0] - SPREAD_MS) // HOUR_MS + 1


def test_a_settlement_is_asked_for_three_times_until_its_row_is_there() -> None:
    made = schedule()
    first_ms = made.due_ms(PAIR)
    assert first_ms is not None
    place_ms = first_ms - 8 * HOUR_MS - ASK_AFTER_MS[0]
    assert 0 <= place_ms < SPREAD_MS
    asked = []
    for _ in ASK_AFTER_MS:
        due_ms = made.due_ms(PAIR)
        assert due_ms is not None
        assert made.due(due_ms - 1) == []
        assert made.due(due_ms) == [PAIR]
        asked.append(due_ms - 8 * HOUR_MS - place_ms)
        given_up = made.answered(PAIR, last_ms=0, now_ms=due_ms)
    assert asked == list(ASK_AFTER_MS)
    assert given_up == 8 * HOUR_MS
    assert settlement_waited_for(made) == 16


def test_a_row_that_is_there_ends_the_asking() -> None:
    made = schedule()
    assert made.answered(PAIR, last_ms=8 * HOUR_MS, now_ms=8 * HOUR_MS + 90_000) is None
    assert settlement_waited_for(made) == 16


def test_an_interval_that_becomes_shorter_during_the_day_is_followed() -> None:
    made = schedule()
    made.see(PAIR, 4 * HOUR_MS, now_ms=HOUR_MS)
    assert settlement_waited_for(made) == 4
    made.answered(PAIR, last_ms=4 * HOUR_MS, now_ms=4 * HOUR_MS + 90_000)
    made.see(PAIR, 8 * HOUR_MS, now_ms=4 * HOUR_MS + 91_000)
    assert settlement_waited_for(made) == 8


def test_a_settlement_that_is_put_off_is_waited_for_at_its_new_time() -> None:
    made = schedule(interval=4)
    made.see(PAIR, 8 * HOUR_MS, now_ms=HOUR_MS)
    assert settlement_waited_for(made) == 8


def test_the_stream_s_next_settlement_doesn_t_hide_the_one_just_made() -> None:
    made = schedule()
    made.see(PAIR, 16 * HOUR_MS, now_ms=8 * HOUR_MS + 5_000)
    assert settlement_waited_for(made) == 8


def test_a_settlement_that_is_known_is_not_waited_for_again() -> None:
    made = schedule(last=8)
    made.see(PAIR, 8 * HOUR_MS, now_ms=8 * HOUR_MS + 1_000)
    assert settlement_waited_for(made) == 16


def test_without_stream_and_interval_nothing_is_due() -> None:
    made = schedule(last=None, interval=None)
    assert made.due(10**15) == []
    made.see(PAIR, 8 * HOUR_MS, now_ms=0)
    assert settlement_waited_for(made) == 8


def test_after_a_long_stop_only_what_may_still_come_is_waited_for() -> None:
    assert settlement_waited_for(schedule(last=0, now=24 * 30 + 1)) == 24 * 30 + 8
    assert settlement_waited_for(schedule(last=0, now=24 * 30 + 0.01)) == 24 * 30


def test_pairs_that_settle_together_are_spread_over_a_minute() -> None:
    made = Schedule()
    for n in range(100):
        made.add(f"P{n}", 0, 8 * HOUR_MS, 0)
    times = sorted(made.due_ms(f"P{n}") or 0 for n in range(100))
    assert times[-1] - times[0] > SPREAD_MS / 2
    assert len(set(times)) > 90
    assert made.due(times[49]) == sorted(made.due(times[49]), key=lambda p: (made.due_ms(p), p))


def test_a_pair_that_is_removed_is_never_due() -> None:
    made = schedule()
    made.remove(PAIR)
    assert made.due(10**15) == []


@given(st.lists(st.integers(1, 8), min_size=2, max_size=30), st.data())
def test_a_settlement_that_is_taken_away_is_found_missing(
    distances: list[int], data: st.DataObject
) -> None:
    rows, hour = [], 0
    for distance in distances:
        hour += distance
        rows.append(settled(hour, distance))
    start_ms, end_ms = 1, hour * HOUR_MS + 1
    assert first_missing(rows, start_ms, end_ms, 8.0) is None
    n = data.draw(st.integers(0, len(rows) - 1))
    taken = rows.pop(n)
    at_ms = first_missing(rows, start_ms, end_ms, float(distances[-1]))
    assert at_ms is not None
    assert at_ms <= taken.time


@pytest.mark.parametrize("interval", [None, 4.0])
def test_where_the_interval_is_unknown_or_over_history_is_asked(interval: float | None) -> None:
    assert first_missing([settled(8)], 1, 13 * HOUR_MS, interval) == 8 * HOUR_MS + 1
