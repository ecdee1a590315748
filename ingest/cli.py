"""`ingest`: the service's commands.

Results go to stdout, logs and progress to stderr. Exit codes: 0 well, 1 the answer is no (not
fresh), 2 wrong use or a bad file, 3 what is needed isn't there.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from importlib import import_module
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ingest.clock import Clock
from ingest.logs import configure_logging
from ingest.options import config_option, log_option
from marketdata.config import load_config
from marketdata.errors import ConfigError, MarketDataError
from marketdata.settings import Settings
from readers.times import to_ms

NOT_WELL, WRONG_USE, NOT_THERE = 1, 2, 3
STATUS_TIMEOUT_S = 5.0
MILLISECONDS_DIGITS = 12
_TIMES = "UTC, such as 2026-11-20T10:00, or milliseconds"

_errors = Console(stderr=True, highlight=False)


_ELSEWHERE = {
    "audit": "ingest.audit_command",
    "backfill": "ingest.backfill_command",
    "compare": "ingest.compare_command",
    "outbox": "ingest.outbox_command",
    "setup": "ingest.setup_command",
    "simulate": "ingest.simulator.command",
}


class _Commands(click.Group):
    """Turns the platform's errors into one message and an exit code; no traceback.

    Commands with a module of their own are imported when they are asked for: the service stays
    small without them.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(_ELSEWHERE[cmd_name]), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            click.echo(f"ingest: {error}", err=True)
            ctx.exit(WRONG_USE)
        except MarketDataError as error:
            click.echo(f"ingest: {error}", err=True)
            ctx.exit(NOT_THERE)


def run_until_stopped(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run `work` with an event that SIGTERM and SIGINT set."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await work(stop)

    try:
        asyncio.run(main())
    except BaseExceptionGroup as group:
        # A task's error comes wrapped in the groups of its owners; one message is enough.
        expected, others = group.split(MarketDataError)
        if expected is None or others is not None:
            raise
        raise _first(expected) from None


def _first(group: BaseExceptionGroup[MarketDataError]) -> MarketDataError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


@click.group(cls=_Commands)
def main() -> None:
    """Market data of many exchanges, collected once for everyone."""


@main.command()
@config_option
@log_option
def run(config_path: Path | None, log_level: str) -> None:
    """Collect, in the foreground; SIGTERM drains and ends, SIGHUP reads the configuration anew."""
    from ingest.service import Service
    from ingest.watchdog import Notifier

    configure_logging(log_level)
    settings = load_config(config_path)

    async def work(stop: asyncio.Event) -> None:
        service = Service(
            settings,
            Clock(),
            reload=lambda: load_config(config_path),
            notifier=Notifier.from_environ(os.environ),
        )
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reconcile_soon)
        await service.run(stop, console=_errors)

    run_until_stopped(work)


@main.command()
@config_option
def check(config_path: Path | None) -> None:
    """Validate the configuration and print the connection plan; touches nothing."""
    from ingest.display import plan_view
    from ingest.plan import plan_without_connecting

    settings = load_config(config_path)
    lanes, notes = plan_without_connecting(settings)
    Console().print(plan_view(lanes, notes))


@main.command()
@config_option
@click.option("--watch", is_flag=True, help="Show it live until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole state as JSON.")
def status(config_path: Path | None, watch: bool, as_json: bool) -> None:
    """Show every connection and pair; exit 0 all fresh, 1 something isn't, 3 no service there."""
    from ingest.display import status_view
    from ingest.status import is_fresh
    from ingest.watch import fetch_status, watch_status

    settings = load_config(config_path)
    if watch:
        watch_status(_monitor_url(settings), Console())
        return
    state = asyncio.run(fetch_status(_monitor_url(settings), STATUS_TIMEOUT_S))
    if as_json:
        click.echo(json.dumps(state, ensure_ascii=False))
    else:
        Console().print(status_view(state))
    sys.exit(0 if is_fresh(state) else NOT_WELL)


@main.command()
@config_option
@log_option
@click.option("--demo", is_flag=True, help="With the simulator, offline, on defaults of its own.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("var/demo"),
    show_default=True,
    help="Where the demo keeps its data, and where logs go.",
)
def launch(config_path: Path | None, log_level: str, demo: bool, folder: Path) -> None:
    """Run service and API as one (with --demo the simulator too), with a live view."""
    from ingest.launch import launch_all

    configure_logging(log_level)
    run_until_stopped(
        lambda stop: launch_all(stop, config_path, folder, demo=demo, console=Console())
    )


@main.command()
@config_option
@log_option
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder for the capture.",
)
@click.option("--for", "seconds", type=float, help="Seconds; left out: until SIGTERM or Ctrl-C.")
def record(config_path: Path | None, log_level: str, into: Path, seconds: float | None) -> None:
    """Capture the exchanges' raw messages in cryptofeed's format; stores nothing else."""
    from ingest.recording import record_capture

    configure_logging(log_level)
    settings = load_config(config_path)
    run_until_stopped(lambda stop: record_capture(settings, Clock(), into, stop, seconds))


def _time(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """A time of the command line, as UTC milliseconds."""
    if text is None:
        return None
    try:
        return int(text) if text.isdecimal() and len(text) >= MILLISECONDS_DIGITS else to_ms(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}; valid: {_TIMES}") from None


@main.command()
@log_option
@click.argument("capture", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option(
    "--into",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The SQLite store that the result goes into.",
)
@click.option("--since", callback=_time, help=f"Of the capture's time: {_TIMES}.")
@click.option("--until", callback=_time, help="The first moment that is left out.")
def replay(log_level: str, capture: Path, into: Path, since: int | None, until: int | None) -> None:
    """Send a capture's bytes through the whole pipeline, at the times of their arrival."""
    from ingest.replaying import replay_capture

    configure_logging(log_level)
    replayed = asyncio.run(replay_capture(capture, into, since_ms=since, until_ms=until))
    for exchange, counts in replayed.items():
        figures = ", ".join(f"{what} {count:,}" for what, count in counts.items())
        click.echo(f"{exchange}: {figures}")


def _monitor_url(settings: Settings) -> str:
    return f"http://{settings.monitor.host}:{settings.monitor.port}"
