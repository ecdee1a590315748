"""A service that is killed at random moments, over and over; then a last run that is left alone.

By hand: `python -m tests.soak.kill --rounds 20 --store influxdb`. After it the store has every
minute, candle, mark candle and settlement, each once and as the simulator's market has it.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ingest.candles import candle_open_ms
from ingest.simulator.market import Market
from ingest.simulator.server import Simulator
from marketdata.config import load_config
from marketdata.schema import CANDLE_MS, MINUTE_MS
from marketdata.settings import Settings
from tests.servers.influx import InfluxServer, find_influxd
from tests.servers.process import free_port
from tests.service_process import ServiceProcess, SharedClock
from tests.soak.proof import Figures, Proof

SPEED = 40.0
PAIRS = {
    "BINANCE_FUTURES": ["BTC/USDT:USDT", "B/USDT:USDT"],
    "BYBIT": ["BTC/USDT:USDT", "BTC/USDT"],
}
BEFORE_SETTLEMENT_MS = 4 * MINUTE_MS
START_MS = 1_795_132_800_000 - BEFORE_SETTLEMENT_MS
"""Four minutes before funding is settled, on 20 November 2026."""
PAST_MS = 30 * MINUTE_MS
LIFE_S = 7.0
"""The longest that a service lives, in real time; a third of that is its start."""
WHOLE_S = 60.0
ENDINGS = ("kill", "kill", "term", "kill", "int", "kill", "memory", "kill", "kernel")


def shared_simulator(speed: float = SPEED, start_ms: float = START_MS, **options: Any) -> Simulator:
    """A simulator whose clock other processes can have too."""
    clock = SharedClock(speed, start_ms)
    market = Market(as_of_ms=clock.now_ms())
    return Simulator(market=market, clock=clock, kline_push_ms=1_000, **options)


def write_config(
    folder: Path,
    simulator: Simulator,
    store: Mapping[str, object],
    pairs: Mapping[str, Sequence[str]] = PAIRS,
    **more: object,
) -> Path:
    """The configuration of a service against the simulator."""
    folder.mkdir(parents=True, exist_ok=True)
    urls = {"ws_url": simulator.ws_url, "rest_url": simulator.url}
    document = {
        "store": store,
        "outbox": {"path": "outbox.db"},
        "monitor": {"port": free_port()},
        "repair": {"lookback": "6h"},
        "exchanges": {name: {"pairs": some, **urls} for name, some in pairs.items()},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(document | more), "utf-8")
    return path


async def kill_rounds(service: ServiceProcess, endings: Sequence[str], seed: int) -> None:
    """Start the service and end it, as often and in the ways named, at moments drawn by lot."""
    lot = random.Random(seed)
    for how in endings:
        await service.start()
        await asyncio.sleep(lot.uniform(0.0, LIFE_S))
        code = await service.end(how)
        if how in ("kill", "kernel"):
            assert code == -9, f"it ended by itself, with {code}: {service.log()[-3000:]}"


async def last_run(service: ServiceProcess, simulator: Simulator, settings: Settings) -> Figures:
    """One run that is left alone until the store is whole, and then ended as a supervisor does."""
    await service.start()
    span = candle_open_ms(START_MS - PAST_MS), candle_open_ms(simulator.clock.now_ms()) + CANDLE_MS
    proof = Proof(simulator, settings, PAIRS, span)
    await proof.whole(WHOLE_S)
    assert await service.end("term") == 0, "the last run drains and ends"
    return await proof.equal()


def sqlite_store(folder: Path) -> dict[str, object]:
    return {"kind": "sqlite", "path": str(folder / "market_data.db"), "ticks": {"every": "1s"}}


def influx_store(url: str, org: str, bucket: str, token: str) -> dict[str, object]:
    return {
        "kind": "influxdb", "url": url, "org": org, "bucket": bucket, "token": token,
        "ticks": {"every": "1s"},
    }  # fmt: skip


async def killed(
    folder: Path, store: Mapping[str, object], endings: Sequence[str], seed: int
) -> tuple[Counter[int], Figures]:
    """A service's life of so many endings: its exit codes, and what the store has after it."""
    async with shared_simulator() as simulator:
        config = write_config(folder, simulator, store)
        clock = simulator.clock
        assert isinstance(clock, SharedClock)
        async with ServiceProcess(config, clock) as service:
            await kill_rounds(service, endings, seed)
            figures = await last_run(service, simulator, load_config(config))
            return Counter(service.codes), figures


@click.command()
@click.option("--rounds", default=20)
@click.option("--store", "kind", type=click.Choice(["sqlite", "influxdb"]), default="sqlite")
@click.option("--ending", help="Always end it so; left out, in many ways, mostly SIGKILL.")
@click.option("--seed", default=1)
def main(rounds: int, kind: str, ending: str | None, seed: int) -> None:
    """Kill a service at random moments and look whether anything is lost."""
    ways = ENDINGS if ending is None else (ending,)
    endings = [ways[n % len(ways)] for n in range(rounds)]
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        if kind == "sqlite":
            click.echo(asyncio.run(killed(folder, sqlite_store(folder), endings, seed)))
            return
        program = find_influxd()
        if program is None:
            raise click.ClickException("no influxd on this machine: `make influxd` builds one")
        server = InfluxServer(program, folder / "influx")
        server.start()
        try:
            store = influx_store(server.url, server.org, server.new_bucket(), server.token)
            click.echo(asyncio.run(killed(folder, store, endings, seed)))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
