"""A real InfluxDB away, busy, hanging, flapping, full or poisoned, under rows at full speed.

The short version of `python -m tests.soak`, which does the same for hours.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.stores import SCENARIOS, Plan, run

ROWS = 30_000


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_store_that_fails_costs_no_row_and_live_rows_go_first_on_its_return(
    scenario: str, influx_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.soak.stores.FLAP_S", 0.3)
    monkeypatch.setattr("tests.soak.stores.WARM_UP_ROWS", 1_000)
    plan = Plan(ROWS, bad_s=1.5, timeout_s=0.5, speed=10.0, drained_s=60.0, live_s=1.0)
    try:
        figures = await run(scenario, plan, influx_program, tmp_path)
    except PermissionError as error:
        pytest.skip(str(error))
    print(f"measured: {figures}")
    assert figures.appended > ROWS
    assert (figures.lost, figures.dropped) == (0, 0)
    assert figures.quarantined == figures.poisoned
    assert (figures.poisoned > 0) is (scenario == "poison")
    assert figures.live_again_s is not None
    assert figures.live_again_s < 60
