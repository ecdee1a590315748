"""Marks of a stream become candles, or holes where one may be missing."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from ingest.holes import Hole
from ingest.marks import CLOSE_AFTER_MS, LARGEST_STEP_MS, MarkBook
from marketdata.schema import CANDLE_MS, Mark3m

START_MS = 1_791_382_860_000
SECONDS = range(0, CANDLE_MS, 1_000)


def book() -> MarkBook:
    return MarkBook("X", "A/B:B", START_MS)


def fed(marks: list[tuple[int, float]]) -> MarkBook:
    made = book()
    for offset_ms, price in marks:
        made.feed(START_MS + offset_ms, price)
    made.close(START_MS + CANDLE_MS + CLOSE_AFTER_MS)
    return made


def test_a_candle_with_a_mark_each_second_is_made_of_the_stream() -> None:
    prices = {0: 5.0, 60_000: 9.0, 120_000: 2.0, 179_000: 6.0}
    made = fed([(t, prices.get(t, 5.5)) for t in SECONDS])
    candle = Mark3m("X", "A/B:B", START_MS, 5.0, 9.0, 2.0, 6.0, "stream")
    assert made.take() == ([candle], [])
    assert made.take() == ([], [])


def test_a_mark_at_the_end_belongs_to_the_next_candle() -> None:
    made = fed([*((t, 5.0) for t in SECONDS), (CANDLE_MS, 99.0)])
    assert [candle.high for candle in made.candles] == [5.0]


def test_a_pause_makes_a_hole_wherever_it_is() -> None:
    for at_ms in (0, 90_000, CANDLE_MS - LARGEST_STEP_MS - 1_000):
        pause = range(at_ms, at_ms + LARGEST_STEP_MS + 1_000)
        made = fed([(t, 5.0) for t in SECONDS if t not in pause])
        assert made.take() == ([], [Hole(START_MS, START_MS + CANDLE_MS)]), at_ms


def test_a_pause_that_the_cadence_explains_makes_none() -> None:
    made = fed([(t, 5.0) for t in range(0, CANDLE_MS, 5_000)])
    assert len(made.candles) == 1


def test_an_outage_is_one_hole_of_whole_candles() -> None:
    made = fed([(t, 5.0) for t in SECONDS])
    made.feed(START_MS + 10 * CANDLE_MS + 1, 6.0)
    candles, holes = made.take()
    assert len(candles) == 1
    assert holes == [Hole(START_MS + CANDLE_MS, START_MS + 10 * CANDLE_MS)]


def test_time_alone_closes_a_candle_without_marks_and_only_once() -> None:
    made = book()
    made.close(START_MS + CANDLE_MS + CLOSE_AFTER_MS - 1)
    assert made.take() == ([], [])
    made.close(START_MS + CANDLE_MS + CLOSE_AFTER_MS)
    made.close(START_MS + CANDLE_MS + CLOSE_AFTER_MS)
    assert made.take() == ([], [Hole(START_MS, START_MS + CANDLE_MS)])


def test_a_mark_that_comes_after_its_candle_was_closed_changes_nothing() -> None:
    made = fed([(t, 5.0) for t in SECONDS])
    made.feed(START_MS + 1_000, 99.0)
    made.close(START_MS + 2 * CANDLE_MS + CLOSE_AFTER_MS)
    candles, holes = made.take()
    assert [candle.high for candle in candles] == [5.0]
    assert holes == [Hole(START_MS + CANDLE_MS, START_MS + 2 * CANDLE_MS)]


@given(st.permutations(list(range(12))), st.data())
def test_the_order_of_marks_doesn_t_change_their_candle(
    order: list[int], data: st.DataObject
) -> None:
    price = st.floats(1, 9)
    marks = [(n * 15_000 + 1, data.draw(price)) for n in range(12)]

    def made(some: list[tuple[int, float]]) -> tuple[float, ...]:
        shown = book()
        # Close to each other, so that only the values are at stake.
        for offset_ms, value in some:
            shown.feed(START_MS + offset_ms, value)
        return (shown._first, shown._high, shown._low, shown._last)

    assert made([marks[n] for n in order]) == made(marks)


@given(st.sets(st.integers(0, 179), max_size=12), st.none() | st.integers(0, 99))
def test_a_candle_is_never_taken_for_complete_where_marks_are_far_apart(
    missing: set[int], seed: int | None
) -> None:
    times = [1_000 * second for second in range(180) if second not in missing]
    shuffled = list(times)
    if seed is not None:
        random.Random(seed).shuffle(shuffled)
    made = fed([(t, 5.0) for t in shuffled])
    edges = [0, *times, CANDLE_MS]
    largest = max(b - a for a, b in itertools.pairwise(edges))
    if largest > LARGEST_STEP_MS:
        assert made.candles == []
    assert len(made.candles) + len(made.holes) == 1
    if shuffled == times and largest <= LARGEST_STEP_MS:
        assert len(made.candles) == 1
