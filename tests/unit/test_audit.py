"""Scoring rows: holes, settlements, bad rows; outliers, and none in a market with fat tails."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.audit import (
    Card,
    Missing,
    Span,
    bad_rows,
    count_days,
    count_settlements,
    find_missing,
    missing_settlements,
    not_sums,
    with_reasons,
)
from ingest.audit_command import moment_ms
from ingest.outliers import APART, flat_among_moving, leaps, spikes
from marketdata.schema import CANDLE_MS, MINUTE_MS, Gap

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NAMES = ("open", "high", "low", "close", "volume", "quote_volume", "trades")


def rows(*tuples, step_ms=CANDLE_MS, start_ms=0, sources=None):
    """Arrays of (open, high, low, close, volume, quote_volume, trades)."""
    columns = np.array(tuples, dtype=float).reshape(-1, len(NAMES)).T
    return {
        "time": start_ms + np.arange(len(tuples)) * step_ms,
        "source": np.array(sources or ["stream"] * len(tuples), dtype=object),
        **dict(zip(NAMES, columns, strict=True)),
    }


SOUND = (10.0, 12.0, 9.0, 11.0, 5.0, 55.0, 4.0)


def changed(**values):
    return tuple(values.get(name, value) for name, value in zip(NAMES, SOUND, strict=True))


@given(st.sets(st.integers(0, 60)), st.integers(0, 60), st.integers(0, 60))
def test_holes_and_rows_together_are_the_span(present, one, other):
    first, last = min(one, other), max(one, other)
    span = Span(first * MINUTE_MS, last * MINUTE_MS)
    times = np.array(sorted(present), dtype=np.int64) * MINUTE_MS
    missing = [
        ms
        for hole in find_missing(times, span, MINUTE_MS)
        for ms in range(hole.start_ms, hole.end_ms, MINUTE_MS)
    ]
    assert missing == [n * MINUTE_MS for n in range(first, last) if n not in present]


def test_days_are_counted_by_source_and_begin_and_end_with_the_span():
    card = Card("X", "A/B:B")
    span = Span(DAY_MS - 2 * CANDLE_MS, DAY_MS + 3 * CANDLE_MS)
    times = DAY_MS + np.array([-2, 0, 1]) * CANDLE_MS
    count_days(card, "candles", span, times, ["stream", "rest", "synthetic"])
    before, after = (card.days[ms].series["candles"] for ms in (0, DAY_MS))
    assert (before.expected, before.stream, before.missing) == (2, 1, 1)
    assert (after.expected, after.rest, after.synthetic, after.missing) == (3, 1, 1, 1)
    assert [(hole.start_ms - DAY_MS, hole.rows) for hole in card.missing] == [
        (-CANDLE_MS, 1), (2 * CANDLE_MS, 1),
    ]  # fmt: skip
    assert not card.clean


def settled(*hours):
    return np.array(hours, dtype=np.int64) * HOUR_MS


@pytest.mark.parametrize(
    ("times", "hours", "end", "missing"),
    [
        ((0, 8, 16, 24), (8, 8, 8, 8), 26, []),
        ((0, 8, 24), (8, 8, 8), 26, [16]),
        ((0, 8, 12, 16), (8, 8, 4, 4), 19, []),
        ((0, 4, 8, 16), (4, 4, 4, 8), 20, []),
        ((0, 4, 16), (4, 4, 4), 18, [8, 12]),
        ((0, 8), (8, 8), 25, [16, 24]),
        ((0, 8), (np.nan, np.nan), 17, [16]),
        ((), (), 25, [8, 16, 24]),
    ],
)
def test_settlements_are_missed_at_the_interval_of_their_time(times, hours, end, missing):
    start = 0 if times else 1
    found = missing_settlements(
        settled(*times), np.array(hours, float), Span(start * HOUR_MS, end * HOUR_MS), 8.0
    )
    instants = []
    for hole in found:
        step = (hole.end_ms - hole.start_ms) // hole.rows
        instants += [hole.start_ms + n * step for n in range(hole.rows)]
    tolerated = {round(ms / HOUR_MS) for ms in instants}
    assert sum(hole.rows for hole in found) == len(missing)
    assert {hole.start_ms // HOUR_MS for hole in found} <= set(missing)
    assert len(tolerated) == len(missing)


def test_without_any_known_interval_no_settlement_is_missed():
    assert missing_settlements(settled(), np.array([]), Span(0, DAY_MS), None) == []


def test_settlements_are_counted_on_their_days():
    card = Card("X", "A/B:B")
    span = Span(0, DAY_MS + 9 * HOUR_MS)
    count_settlements(card, settled(0, 8, 24), np.array([8.0, 8.0, 8.0]), span, 8.0)
    first, second = (card.days[ms].series["settlements"] for ms in (0, DAY_MS))
    assert (first.expected, first.rest, first.missing) == (3, 2, 1)
    assert (second.expected, second.rest, second.missing) == (2, 1, 1)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (changed(high=10.5), "high_too_low"),
        (changed(low=10.5), "low_too_high"),
        (changed(volume=-1.0), "volume_negative"),
        (changed(quote_volume=-1.0), "volume_negative"),
        (changed(volume=np.nan), "not_finite"),
        (changed(close=np.nan), "not_finite"),
        (changed(high=np.inf), "not_finite"),
        (changed(open=0.0, low=0.0), "price_not_positive"),
        (changed(trades=0.0), "flat_with_volume"),
    ],
)
def test_a_bad_row_is_told_by_its_kind(row, kind):
    assert bad_rows("candles", rows(SOUND)) == []
    assert kind in {finding.kind for finding in bad_rows("candles", rows(SOUND, row))}
    assert {finding.time_ms for finding in bad_rows("minutes", rows(SOUND, row))} <= {
        0, CANDLE_MS,
    }  # fmt: skip


def test_an_open_time_off_the_grid_and_a_traded_synthetic_row_are_bad():
    (finding,) = bad_rows("candles", rows(SOUND, start_ms=MINUTE_MS))
    assert (finding.kind, finding.time_ms) == ("misaligned", MINUTE_MS)
    (finding,) = bad_rows("minutes", rows(SOUND, sources=["synthetic"]))
    assert finding.kind == "flat_with_volume"


def test_what_an_exchange_does_not_state_is_not_bad():
    unknown = changed(quote_volume=np.nan, trades=np.nan)
    assert bad_rows("candles", rows(unknown)) == []


def minutes(*some):
    return rows(*some, step_ms=MINUTE_MS)


THREE = (
    (10.0, 10.0, 10.0, 10.0, 0.0, 0.0, 0.0),
    (11.0, 13.0, 10.5, 12.0, 0.1, 1.2, 2.0),
    (12.0, 12.5, 9.0, 9.5, 0.2, 2.0, 3.0),
)
THEIR_SUM = (11.0, 13.0, 9.0, 9.5, 0.3, 3.2, 5.0)


def test_a_candle_is_the_sum_of_its_traded_minutes():
    assert not_sums(rows(THEIR_SUM), minutes(*THREE)) == []
    for n, name in enumerate(NAMES):
        wrong = (*THEIR_SUM[:n], THEIR_SUM[n] + 0.25, *THEIR_SUM[n + 1 :])
        (finding,) = not_sums(rows(wrong), minutes(*THREE))
        assert finding.kind == "not_its_minutes"
        assert finding.detail.startswith(f"{name} ")


def test_a_candle_without_trades_is_flat_at_the_last_close():
    dead = (10.0, 10.0, 10.0, 10.0, 0.0, 0.0, 0.0)
    assert not_sums(rows(dead), minutes(dead, dead, dead)) == []
    assert not_sums(rows(changed(volume=0.0)), minutes(dead, dead, dead))


def test_a_candle_of_which_a_minute_is_missing_is_not_judged():
    assert not_sums(rows(SOUND), minutes(*THREE[:2])) == []
    apart = minutes(*THREE)
    apart["time"][2] += MINUTE_MS
    assert not_sums(rows(SOUND), apart) == []
    assert not_sums(rows(), minutes()) == []


def test_a_hole_has_the_reason_of_the_gap_that_covers_most_of_it():
    def gap(start, end, reason, channel="candles"):
        return Gap("X", "A/B", channel, start, end, reason, "repaired", end)

    gaps = [gap(0, 20, "restart"), gap(20, 90, "silent"), gap(0, 99, "dropped", "funding")]
    holes = [Missing("minutes", 10, 60, 1), Missing("marks", 10, 60, 1)]
    assert [hole.reason for hole in with_reasons(holes, gaps)] == ["silent, repaired", None]


def market(seed, size=20_000, step=0.0008):
    """A random walk of Student's t with three degrees of freedom, and its ranges."""
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.standard_t(3, size) * step))
    wick = close * np.abs(rng.standard_t(3, (2, size))) * step
    return np.maximum(close, close) + wick[0], close - wick[1], close


@pytest.mark.parametrize("seed", range(10))
def test_a_random_walk_with_fat_tails_has_no_spike(seed):
    assert not spikes(*market(seed)).any()


def test_steps_trends_and_a_thin_market_have_no_spike():
    step = np.where(np.arange(100) < 50, 100.0, 130.0)
    trend = 100 * np.exp(np.arange(100) * 0.01)
    bounce = np.where(np.arange(100) % 3 == 0, 100.0, 100.9)
    dead = np.full(100, 100.0)
    dead[50] = 101.0
    for close in (step, trend, bounce, dead):
        assert not spikes(close, close, close).any()


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 10.0])
def test_a_close_that_leaves_and_is_back_is_a_spike(factor):
    high, low, close = market(3, 2_000)
    for places in ([700], [700, 701]):
        wrong = close.copy()
        wrong[places] *= factor
        found = spikes(np.maximum(high, wrong), np.minimum(low, wrong), wrong)
        assert np.flatnonzero(found).tolist() == places


def test_one_exchange_that_leaps_is_found_and_a_basis_is_not():
    high, low, close = market(5, 2_000)
    other = close * (1.01 + np.random.default_rng(6).normal(0, 0.0003, len(close)))
    movement = (high - low) / close
    assert not leaps(close, other, movement, APART).any()
    wrong = close.copy()
    wrong[900] *= 1.03
    assert np.flatnonzero(leaps(wrong, other, movement, APART)).tolist() == [900]


def test_a_flat_candle_with_full_volume_is_told_only_where_all_others_move():
    _, _, close = market(8, 200)
    open_, high, low = close.copy(), close + 0.5, close - 0.5
    volume = np.random.default_rng(1).exponential(10, 200)
    for array in (open_, high, low):
        array[100] = close[100]
    volume[100] = 100.0
    assert np.flatnonzero(flat_among_moving(open_, high, low, volume)).tolist() == [100]
    volume[100] = 0.01
    assert not flat_among_moving(open_, high, low, volume).any()
    flat = np.full(50, 3.0)
    assert not flat_among_moving(flat, flat, flat, np.full(50, 5.0)).any()


def test_times_are_durations_dates_or_milliseconds():
    assert moment_ms("2d", 3 * DAY_MS) == DAY_MS
    assert moment_ms("1970-01-02T00:00", 0) == DAY_MS
    with pytest.raises(ValueError, match="not understood"):
        moment_ms("yesterday", 0)
