"""Whatever is asked and when, no window gets more than the exchange allows."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.budget import EDGE_MS, Budgets, Limit, WeightBudget

LIMIT = 20
WINDOW_MS = 10_000

Ask = tuple[int, int]
asks = st.lists(st.tuples(st.integers(0, 5_000), st.integers(1, 5)), max_size=80)
shares = st.sampled_from([0.25, 0.5, 1.0])
at_any_speed = settings(deadline=None)


def grants(budget: WeightBudget, asked: list[Ask]) -> list[Ask]:
    """Ask in a row, each as soon as the budget lets it: (time, weight) of every grant."""
    now_ms, granted = 0, []
    for pause_ms, weight in asked:
        now_ms += pause_ms
        while wait_ms := budget.reserve(weight, now_ms):
            now_ms += wait_ms
        granted.append((now_ms, weight))
    return granted


@at_any_speed
@given(asks, shares, st.data())
def test_no_clock_window_gets_more_than_the_share_though_clocks_differ_and_requests_travel(
    asked: list[Ask], share: float, data: st.DataObject
) -> None:
    spent: Counter[int] = Counter()
    for time_ms, weight in grants(WeightBudget(LIMIT, WINDOW_MS, share), asked):
        counted_ms = time_ms + data.draw(st.integers(-EDGE_MS, EDGE_MS))
        spent[counted_ms // WINDOW_MS] += weight
    assert max(spent.values(), default=0) <= LIMIT * share


@at_any_speed
@given(asks, shares, st.data())
def test_no_stretch_of_a_window_s_length_gets_more_than_the_share_though_requests_travel(
    asked: list[Ask], share: float, data: st.DataObject
) -> None:
    granted = grants(WeightBudget(LIMIT, WINDOW_MS, share, sliding=True), asked)
    counted = [
        (time_ms + data.draw(st.integers(0, EDGE_MS)), weight) for time_ms, weight in granted
    ]
    for start_ms, _ in counted:
        stretch = range(start_ms, start_ms + WINDOW_MS)
        assert sum(weight for time_ms, weight in counted if time_ms in stretch) <= LIMIT * share


@at_any_speed
@given(asks, st.lists(st.integers(0, 4), max_size=80))
def test_what_others_use_at_the_address_is_left_to_them(
    asked: list[Ask], others: list[int]
) -> None:
    """The exchange counts all; the budget hears of it with each answer."""
    budget = WeightBudget(LIMIT, WINDOW_MS)
    now_ms, window, counted = 0, 0, 0
    for (pause_ms, weight), strangers in zip(asked, others, strict=False):
        now_ms += pause_ms
        budget.observe(counted, now_ms)
        while wait_ms := budget.reserve(weight, now_ms):
            now_ms += wait_ms
        if now_ms // WINDOW_MS != window:
            window, counted = now_ms // WINDOW_MS, 0
        counted += weight
        assert counted <= LIMIT
        counted = min(LIMIT, counted + strangers)
        budget.observe(counted, now_ms)


@at_any_speed
@given(asks, st.booleans())
def test_a_wait_is_positive_and_never_longer_than_a_window(asked: list[Ask], sliding: bool) -> None:
    budget = WeightBudget(LIMIT, WINDOW_MS, sliding=sliding)
    now_ms = 0
    for pause_ms, weight in asked:
        now_ms += pause_ms
        assert 0 <= budget.reserve(weight, now_ms) <= WINDOW_MS + EDGE_MS


def test_a_refused_reservation_takes_nothing() -> None:
    budget = WeightBudget(10, WINDOW_MS)
    assert budget.reserve(9, 5_000) == 0
    assert budget.reserve(5, 5_000) > 0
    assert budget.reserve(1, 5_000) == 0


def test_use_counted_in_the_last_window_does_not_count_in_the_next() -> None:
    budget = WeightBudget(10, WINDOW_MS)
    budget.observe(10, now_ms=9_000)
    assert budget.reserve(1, 9_000) == 1_000 + EDGE_MS
    assert budget.reserve(10, WINDOW_MS + EDGE_MS) == 0


def test_a_late_answer_about_the_last_window_does_not_hide_what_others_use_in_this_one() -> None:
    budget = WeightBudget(10, WINDOW_MS)
    budget.observe(10, now_ms=15_000)
    budget.observe(0, now_ms=9_000)
    assert budget.reserve(1, 15_000) > 0


def test_own_use_is_not_taken_for_that_of_others() -> None:
    budget = WeightBudget(10, WINDOW_MS, 0.5)
    assert budget.reserve(4, 0) == 0
    budget.observe(4, now_ms=10)
    assert budget.reserve(1, 20) == 0


@pytest.mark.parametrize("sliding", [True, False])
def test_a_hold_lasts_until_its_end_and_a_shorter_one_does_not_cut_it(sliding: bool) -> None:
    budget = WeightBudget(10, WINDOW_MS, sliding=sliding)
    budget.hold(120_000)
    budget.hold(5_000)
    assert budget.reserve(1, 20_000) == 100_000
    assert budget.reserve(1, 120_000) == 0


def test_a_call_heavier_than_the_share_goes_alone() -> None:
    budget = WeightBudget(10, WINDOW_MS, 0.1)
    assert budget.reserve(1, 0) == 0
    assert budget.reserve(6, 5_000) > 0
    assert budget.reserve(6, WINDOW_MS + EDGE_MS) == 0
    assert budget.reserve(1, WINDOW_MS + EDGE_MS) > 0


def test_a_weight_that_never_fits_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(ValueError, match="never fits"):
        WeightBudget(10, WINDOW_MS, 0.5).reserve(11, 0)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_is_a_part(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        WeightBudget(10, WINDOW_MS, share)


def test_callers_of_one_address_share_its_budget() -> None:
    budgets = Budgets(share=0.5)
    limit = Limit("weight", 10, WINDOW_MS)
    first = budgets.at("https://fapi.binance.com", [limit])["weight"]
    second = budgets.at("https://fapi.binance.com", [limit])["weight"]
    elsewhere = budgets.at("https://fapi.binance.com via 10.0.0.7:3128", [limit])["weight"]
    assert first.reserve(5, 0) == 0
    assert second.reserve(1, 0) > 0
    assert elsewhere.reserve(5, 0) == 0
