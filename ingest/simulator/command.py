"""`ingest simulate`: run the simulator in the foreground."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

import click
import structlog

from ingest.clock import Clock
from ingest.simulator.market import Market
from ingest.simulator.scenarios import SCENARIOS
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE, BYBIT


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8900, show_default=True, help="Port; 0 takes a free one.")
@click.option("--seed", default=7, show_default=True, help="Another seed is another market.")
@click.option("--speed", default=1.0, show_default=True, help="Seconds of the market per second.")
@click.option(
    "--scenario",
    type=click.Choice(list(SCENARIOS)),
    default="calm",
    show_default=True,
    help="Faults that happen by themselves.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    show_default=True,
)
def simulate(host: str, port: int, seed: int, speed: float, scenario: str, log_level: str) -> None:
    """Serve simulated exchanges: REST and WebSocket of BINANCE_FUTURES and BYBIT on one port."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    clock = Clock(speed)
    market = Market(seed, as_of_ms=clock.now_ms())
    simulator = Simulator(host, port, market, clock, scenario=scenario)
    try:
        asyncio.run(_serve(simulator, scenario))
    except OSError as fault:
        click.echo(
            f"can't listen on {host}:{port}: {fault.strerror}; take another --port", err=True
        )
        sys.exit(3)


async def _serve(simulator: Simulator, scenario: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with simulator:
        click.echo(_greeting(simulator, scenario))
        running = asyncio.ensure_future(simulator.run())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        stopping.cancel()


def _greeting(simulator: Simulator, scenario: str) -> str:
    lines = ["# for config.yaml:", "exchanges:"]
    for exchange in (BINANCE, BYBIT):
        lines += [
            f"  {exchange}:",
            f"    ws_url: {simulator.ws_url}",
            f"    rest_url: {simulator.url}",
        ]
    lines += [
        f"# scenario {scenario}; faults and truth under {simulator.url}/sim; Ctrl-C stops it",
    ]
    return "\n".join(lines)
