"""When lanes try again: back-off, the shared gate, and Retry-After."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from ingest.backoff import Backoff, Gate, retry_after_s


def highest(low: float, high: float) -> float:
    return high


@given(st.integers(0, 10_000), st.integers(1, 200))
def test_no_pause_is_longer_than_the_cap_or_than_the_doubled_ceiling(
    seed: int, attempts: int
) -> None:
    backoff = Backoff(base_s=1.0, cap_s=60.0, uniform=random.Random(seed).uniform)
    for attempt in range(attempts):
        assert 0.0 <= backoff.next_s() <= min(60.0, 2.0**attempt)


def test_lanes_that_fail_together_come_back_apart() -> None:
    pauses = set()
    for seed in range(20):
        backoff = Backoff(uniform=random.Random(seed).uniform)
        for _ in range(6):
            pause_s = backoff.next_s()
        pauses.add(pause_s)
    assert len(pauses) == 20
    assert max(pauses) - min(pauses) > 10


def test_a_reset_starts_with_short_pauses_again() -> None:
    backoff = Backoff(uniform=highest)
    for _ in range(10):
        backoff.next_s()
    backoff.reset()
    assert [backoff.next_s() for _ in range(3)] == [1.0, 2.0, 4.0]


def pass_gate(gate: Gate, now_ms: int) -> int:
    """Wait for the gate and go through; the time of the passage."""
    while (wait_ms := gate.wait_ms(now_ms)) > 0:
        now_ms += wait_ms
    gate.start(now_ms)
    return now_ms


def test_handshakes_that_lead_to_data_are_only_spaced() -> None:
    gate, now_ms = Gate(), 1_000_000
    starts = []
    for _ in range(100):
        now_ms = pass_gate(gate, now_ms)
        starts.append(now_ms)
        gate.proved(now_ms)
    assert all(later - start == 250 for start, later in itertools.pairwise(starts))


def test_handshakes_that_lead_nowhere_are_at_most_ten_a_minute() -> None:
    gate, now_ms = Gate(), 1_000_000
    starts = []
    for _ in range(100):
        now_ms = pass_gate(gate, now_ms)
        starts.append(now_ms)
    assert all(later - start >= 60_000 for start, later in zip(starts, starts[10:], strict=False))


def test_one_proven_connection_makes_room_for_another() -> None:
    gate = Gate()
    starts = [pass_gate(gate, 0) for _ in range(10)]
    assert gate.wait_ms(5_000) == Gate.WINDOW_MS - 5_000
    gate.proved(starts[3])
    assert gate.wait_ms(5_000) == 0


def test_connections_that_end_after_their_first_data_are_at_most_ten_a_minute() -> None:
    gate, now_ms = Gate(), 1_000_000
    starts = []
    for _ in range(100):
        now_ms = pass_gate(gate, now_ms)
        starts.append(now_ms)
        gate.proved(now_ms)
        gate.failed(now_ms)
    assert all(later - start >= 60_000 for start, later in zip(starts, starts[10:], strict=False))


def test_a_closed_gate_lets_nobody_through_and_never_opens_early() -> None:
    gate = Gate()
    gate.close(until_ms=120_000)
    gate.close(until_ms=60_000)
    assert gate.wait_ms(0) == 120_000
    assert gate.wait_ms(120_000) == 0


def test_retry_after_is_read_in_both_forms_and_never_negative() -> None:
    assert retry_after_s(" 259200 ", now_ms=0) == 259_200.0
    assert retry_after_s("Fri, 20 Nov 2026 00:00:30 GMT", now_ms=1_795_132_800_000) == 30.0
    assert retry_after_s("Fri, 20 Nov 2020 00:00:30 GMT", now_ms=1_795_132_800_000) == 0.0
    assert retry_after_s("a while", now_ms=0) is None
