"""A day of the market: does a service's use of memory, descriptors, tasks and queues stay flat?

By hand: `python -m tests.soak.day --hours 24 --speed 60`. Prints what each sample measures: its
median in the first and the last quarter, the most, and the slope an hour of market time.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import yaml

from ingest.candles import candle_open_ms
from ingest.demo import prepare_demo
from marketdata.config import load_config
from marketdata.schema import CANDLE_MS
from tests.service_process import ServiceProcess, SharedClock
from tests.soak.kill import PAIRS, shared_simulator, sqlite_store, write_config
from tests.soak.proof import Proof
from tests.waiting import eventually

HOUR_MS = 3_600_000
WARM_UP_MS = 2 * HOUR_MS
"""An hour fills the books, another the caches."""
WHOLE_S = 120.0

Samples = Sequence[dict[str, float]]


def many_pairs(now_ms: int) -> dict[str, list[str]]:
    """The demo's 164 pairs."""
    with tempfile.TemporaryDirectory() as folder:
        text = prepare_demo(Path(folder), now_ms).config_path.read_text("utf-8")
    return {name: some["pairs"] for name, some in yaml.safe_load(text)["exchanges"].items()}


async def day(folder: Path, hours: float, speed: float, *, many: bool) -> Samples:
    """What a service used, sampled each minute; at the end its store is whole and true."""
    async with shared_simulator(speed) as simulator:
        clock = simulator.clock
        assert isinstance(clock, SharedClock)
        pairs = many_pairs(clock.now_ms()) if many else PAIRS
        config = write_config(folder, simulator, sqlite_store(folder), pairs)
        began_ms = clock.now_ms()
        async with ServiceProcess(config, clock) as service:
            await service.start()
            end_ms = began_ms + round(hours * HOUR_MS)
            await eventually(
                lambda: clock.now_ms() >= end_ms, hours * 3600 / speed + 60, "the day's end"
            )
            span = candle_open_ms(began_ms), candle_open_ms(end_ms) - CANDLE_MS
            proof = Proof(simulator, load_config(config), pairs, span)
            await proof.whole(WHOLE_S)
            assert await service.end("term") == 0, service.log()[-3000:]
            click.echo(await proof.equal())
    return [json.loads(line) for line in (folder / "samples").read_text("utf-8").splitlines()]


def slope(samples: Samples, what: str) -> float:
    """How much more it is each hour."""
    hours = [sample["time_ms"] / HOUR_MS for sample in samples]
    return statistics.linear_regression(hours, [sample[what] for sample in samples]).slope


@click.command()
@click.option("--hours", default=24.0, help="Of market time.")
@click.option("--speed", default=60.0)
@click.option("--many", is_flag=True, help="164 pairs instead of four.")
@click.option("--folder", type=click.Path(path_type=Path), help="Left out: a temporary one.")
def main(hours: float, speed: float, *, many: bool, folder: Path | None) -> None:
    """Sample a service for a day of the market."""
    if folder is None:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            samples = asyncio.run(day(Path(name), hours, speed, many=many))
    else:
        samples = asyncio.run(day(folder, hours, speed, many=many))
    warm_ms = samples[0]["time_ms"] + min(WARM_UP_MS, hours * HOUR_MS / 4)
    warm = [sample for sample in samples if sample["time_ms"] >= warm_ms]
    quarter = max(1, len(warm) // 4)
    click.echo(f"{len(samples)} samples, {len(warm)} of them after the warm-up")
    for what in samples[0].keys() - {"time_ms"}:
        first = statistics.median(sample[what] for sample in warm[:quarter])
        last = statistics.median(sample[what] for sample in warm[-quarter:])
        most = max(sample[what] for sample in warm)
        each_hour = slope(warm, what)
        click.echo(
            f"{what}: {first:.1f} then {last:.1f}, most {most:.1f}, {each_hour:+.3f} an hour"
        )


if __name__ == "__main__":
    main()
