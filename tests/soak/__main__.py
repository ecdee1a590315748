"""Long faults, by hand: `python -m tests.soak outage --hours 6`; all of them, if none is named.

Each prints what it measured, and ends with 1 where something did not hold. `full_disk` needs root.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import click

from tests.servers.influx import find_influxd
from tests.soak.stores import SCENARIOS, Plan, run

FLAT_MB = 20.0
LIVE_WITHIN_S = 60.0
BAD_S = 60.0


@click.command()
@click.argument("scenarios", nargs=-1, type=click.Choice(list(SCENARIOS)))
@click.option("--hours", default=6.0, help="Of market time, while the store is bad.")
@click.option("--rows-per-s", default=1_000, help="What comes in meanwhile, and afterwards.")
def main(scenarios: tuple[str, ...], hours: float, rows_per_s: int) -> None:
    """A real InfluxDB that fails for hours, under rows at full speed."""
    program = find_influxd()
    if program is None:
        raise click.ClickException("no influxd on this machine: `make influxd` builds one")
    plan = Plan(rows=int(hours * 3600 * rows_per_s), rows_per_s=rows_per_s, bad_s=BAD_S)
    sound = True
    for scenario in scenarios or SCENARIOS:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            try:
                figures = asyncio.run(run(scenario, plan, program, Path(folder)))
            except PermissionError as error:
                click.echo(f"{scenario}: left out, {error}")
                continue
        faults = [
            what
            for what, wrong in (
                ("rows are lost", figures.lost != 0 or figures.dropped != 0),
                ("quarantine differs", figures.quarantined != figures.poisoned),
                ("not live in time", (figures.live_again_s or LIVE_WITHIN_S) >= LIVE_WITHIN_S),
                ("late again after a minute", (figures.late_again_s or 0.0) >= LIVE_WITHIN_S),
                ("memory grows", figures.most_rss_mb - figures.base_rss_mb > FLAT_MB),
            )
            if wrong
        ]
        click.echo(f"{figures}; {', '.join(faults) or 'as it must be'}")
        sound = sound and not faults
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
