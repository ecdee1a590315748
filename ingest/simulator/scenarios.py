"""Named plays of timed faults, for demos and soak runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ingest.simulator.faults import (
    Close,
    ClosingKline,
    Fault,
    Inject,
    Lifetime,
    Notice,
    RefuseHandshakes,
    RestDown,
    RestLimited,
    Silence,
)


class Step(NamedTuple):
    """A fault `at_s` seconds after the start, then again every `every_s`."""

    at_s: float
    fault: Fault
    every_s: float | None = None


SCENARIOS: Mapping[str, tuple[Step, ...]] = {
    "calm": (),
    "flaky": (
        Step(40, ClosingKline(action="drop", times=3), every_s=180),
        Step(60, Close(code=1001), every_s=240),
        Step(90, Inject(text='{"e":"unheardOf"}'), every_s=120),
        Step(110, ClosingKline(action="delay", delay_s=20, times=3), every_s=180),
        Step(130, RestDown(how="unavailable", seconds=15), every_s=300),
        Step(180, Close(code=1006), every_s=300),
        Step(182, RefuseHandshakes(status=503, seconds=5), every_s=300),
        Step(200, RestLimited(status=429, retry_after_s=5, times=3), every_s=300),
    ),
    "rest_down": (Step(30, RestDown(how="unavailable", seconds=300)),),
    "silent_pair": (Step(60, Silence(id="BTCUSDT", seconds=120), every_s=600),),
    "daily_cut": (
        Step(0, Lifetime(age_s=300)),
        Step(240, Notice(cut_after_s=60), every_s=600),
    ),
}
