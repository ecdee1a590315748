"""What the watchdog takes for progress, and what for a reason outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from ingest.watchdog import Facts, Progress, duties

MINUTE_MS = 60_000


def facts(
    now_ms: int,
    *,
    commits: int = 0,
    events: int = 0,
    dropped: int = 0,
    data_ms: int | None = None,
    lane: str = "live",
    rows: int = 0,
    store: str = "live",
    writes: int = 0,
    writing: bool = False,
    handshakes: tuple[int, bool] = (1, True),
) -> Facts:
    connection = {"state": lane, "last_data_ms": data_ms}
    status: Mapping[str, Any] = {
        "now_ms": now_ms,
        "exchanges": {"X": {"connections": [connection]}},
        "outbox": {"rows": rows},
        "store": {"state": store},
        "dropped": {"X.bad_message.tick": dropped},
    }
    return Facts(status, commits, events, writes, writing, {"X": handshakes})


def stuck(looks: Sequence[Facts]) -> list[str]:
    """Names of the duties that stand still at the last of these looks."""
    progress = Progress(gap_ms=15_000)
    found: list[str] = []
    for look in looks:
        found = [still.name for still in progress.look(duties(look), look.status["now_ms"])]
    return found


def each_ten_seconds(minutes: int) -> list[int]:
    return list(range(1_000_000, 1_000_000 + minutes * MINUTE_MS + 1, 10_000))


def test_a_service_that_does_its_work_is_never_stuck() -> None:
    looks = [
        facts(t, commits=t, events=t, data_ms=t, rows=5, writes=t) for t in each_ten_seconds(120)
    ]
    assert stuck(looks) == []


def test_a_pipeline_that_commits_nothing_for_half_a_minute_is_stuck() -> None:
    times = each_ten_seconds(1)
    assert stuck([facts(t) for t in times[:4]]) == []
    assert stuck([facts(t) for t in times[:5]]) == ["pipeline"]


def test_data_that_comes_in_but_is_never_folded_is_stuck_after_a_minute() -> None:
    looks = [facts(t, commits=t, data_ms=t - 100) for t in each_ten_seconds(2)]
    assert stuck(looks[:7]) == []
    assert stuck(looks) == ["fold"]


@pytest.mark.parametrize(
    "state",
    [
        {"lane": "live"},  # a market without trades: nothing is proved by silence
        {"lane": "late"},
        {"lane": "disconnected", "handshakes": (1, False)},  # refused: the gate is closed
    ],
)
def test_without_data_from_outside_nothing_is_stuck(state: dict[str, Any]) -> None:
    looks = [facts(t, commits=t, data_ms=900_000, **state) for t in each_ten_seconds(180)]
    assert stuck(looks) == []


def test_messages_that_can_t_be_understood_are_no_reason_for_a_restart() -> None:
    looks = [facts(t, commits=t, data_ms=t, dropped=t) for t in each_ten_seconds(5)]
    assert stuck(looks) == []


def test_a_single_message_before_a_long_silence_is_not_taken_for_a_flow() -> None:
    looks = [facts(t, commits=t, data_ms=1_000_000) for t in each_ten_seconds(10)]
    assert all(stuck(looks[: n + 1]) == [] for n in range(len(looks)))


def test_a_delivery_that_leaves_rows_to_a_live_store_is_stuck_and_one_without_a_store_is_not() -> (
    None
):
    times = each_ten_seconds(11)
    assert stuck([facts(t, commits=t, rows=7) for t in times]) == ["deliver"]
    assert stuck([facts(t, commits=t, rows=7, store="down") for t in times]) == []
    hanging = [facts(t, commits=t, store="down", writing=True, writes=1) for t in times]
    assert stuck(hanging) == ["deliver"]


def test_rows_that_come_after_an_hour_of_rest_get_their_time() -> None:
    times = each_ten_seconds(61)
    looks = [facts(t, commits=t) for t in times[:-1]] + [facts(times[-1], commits=1, rows=7)]
    assert stuck(looks) == []


def test_a_host_that_was_asleep_is_not_taken_for_a_standstill() -> None:
    asleep = [facts(t, data_ms=t, rows=1) for t in (1_000_000, 1_010_000, 9_000_000)]
    assert stuck(asleep) == []


def test_cut_off_with_attempts_is_no_reason_and_without_any_for_an_hour_is() -> None:
    down: dict[str, Any] = {"lane": "disconnected", "data_ms": 900_000}
    trying = [facts(t, commits=t, handshakes=(t, True), **down) for t in each_ten_seconds(180)]
    assert stuck(trying) == []
    idle = [facts(t, commits=t, handshakes=(1, True), **down) for t in each_ten_seconds(61)]
    assert stuck(idle) == ["connect.X"]
