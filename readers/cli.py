"""`readers`: market data in the shell, and over HTTP.

Results go to stdout, messages to stderr. Exit codes: 0 well, 1 not fresh, 2 wrong use or a bad
file, 3 what is needed isn't there.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, TypeVar

import click
import orjson
from rich.console import Console
from rich.table import Table

from marketdata.config import load_config
from marketdata.errors import ConfigError, MarketDataError, StaleData, UnknownPair
from readers.client import MarketData
from readers.deadlines import Deadline, MaxAge
from readers.tables import candles_table, funding_table, mark_table
from readers.timeframes import Timeframe
from readers.values import Funding, Mark, Reading

NOT_FRESH, WRONG_USE, NOT_THERE = 1, 2, 3

V = TypeVar("V", bound=Reading)


class _NotThere(click.ClickException):
    """Something outside the platform's error tree is missing."""

    exit_code = NOT_THERE

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"readers: {self.message}", err=True)


class _Commands(click.Group):
    """Turns the platform's errors into one message and an exit code; no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MarketDataError as error:
            click.echo(f"readers: {error}", err=True)
            ctx.exit(_exit_code(error))


def _exit_code(error: MarketDataError) -> int:
    if isinstance(error, StaleData):
        return NOT_FRESH
    return WRONG_USE if isinstance(error, ConfigError | UnknownPair) else NOT_THERE


def _config_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        help="The configuration. Left out: MARKETDATA_CONFIG, then config.yaml.",
    )(command)


def _reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--exchange", callback=_checked, help="Left out: the configuration's first."),
        click.option(
            "--format",
            "layout",
            type=click.Choice(["table", "csv", "json"]),
            default="table",
            show_default=True,
        ),
        click.option("--any-age", is_flag=True, help="Take what is there, however old."),
        _config_option,
    ):
        command = option(command)
    return command


def _timeframe(ctx: click.Context, parameter: click.Parameter, name: str) -> str:
    try:
        Timeframe.parse(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return name


T = TypeVar("T", str, tuple[str, ...], None)


def _checked(ctx: click.Context, parameter: click.Parameter, names: T) -> T:
    """Names that a store can be asked for; the shell may hand over any bytes."""
    for name in names if isinstance(names, tuple) else (names or "",):
        if not name.isprintable():
            raise click.BadParameter(f"{name!r} is no name")
    return names


@click.group(cls=_Commands)
def main() -> None:
    """Look at the data that the service has collected."""


@main.command()
@click.argument("pair", callback=_checked)
@click.option("--timeframe", default="3m", show_default=True, callback=_timeframe)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@_reading_options
def ohlcv(
    pair: str,
    timeframe: str,
    limit: int,
    exchange: str | None,
    layout: str,
    any_age: bool,
    config_path: Path | None,
) -> None:
    """Closed candles of PAIR, the newest last."""
    with MarketData(config_path) as data:
        frame = data.get_ohlcv(pair, timeframe, limit, exchange=exchange, max_age=_age(any_age))
    if layout == "table":
        Console().print(candles_table(frame, f"{pair} {timeframe}"))
        return
    frame["date"] = frame["date"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    if layout == "csv":
        frame.to_csv(sys.stdout, index=False)
    else:
        click.echo(orjson.dumps(frame.to_dict("records")))


@main.command()
@click.argument("pairs", nargs=-1, callback=_checked)
@click.option("--all", "everything", is_flag=True, help="Every pair of the exchange.")
@_reading_options
def funding(
    pairs: tuple[str, ...],
    everything: bool,
    exchange: str | None,
    layout: str,
    any_age: bool,
    config_path: Path | None,
) -> None:
    """What PAIRS pay at their next settlement."""
    if bool(pairs) == everything:
        raise click.UsageError("name pairs, or pass --all")
    max_age = _age(any_age)
    with MarketData(config_path) as data:
        if everything:
            found = data.get_all_funding_rates(exchange, with_source=True, max_age=max_age)
            _show(list(found.values()), layout, funding_table)
            return

        def read(pair: str) -> Funding:
            return data.get_funding_rate(pair, True, exchange=exchange, max_age=max_age)

        _show_fresh(pairs, read, layout, funding_table)


@main.command()
@click.argument("pairs", nargs=-1, required=True, callback=_checked)
@_reading_options
def mark(
    pairs: tuple[str, ...],
    exchange: str | None,
    layout: str,
    any_age: bool,
    config_path: Path | None,
) -> None:
    """Mark and index prices of PAIRS."""
    with MarketData(config_path) as data:

        def read(pair: str) -> Mark:
            return data.get_mark_price(pair, True, exchange=exchange, max_age=_age(any_age))

        _show_fresh(pairs, read, layout, mark_table)


@main.command()
@_config_option
def serve(config_path: Path | None) -> None:
    """Serve the same over HTTP, with a status page, until SIGTERM or Ctrl-C."""
    settings = load_config(config_path)
    try:
        from readers.api.server import run_server
    except ImportError as error:
        raise _NotThere(f"{error.name} is not installed; the extra `api` brings it") from None
    try:
        run_server(settings)
    except OSError as error:
        address = f"{settings.api.host}:{settings.api.port}"
        raise _NotThere(f"{address} can't be bound: {error.strerror}") from None


def _age(any_age: bool) -> MaxAge:
    return None if any_age else Deadline.OF_CHANNEL


def _show_fresh(
    pairs: Sequence[str],
    read: Callable[[str], V],
    layout: str,
    table: Callable[[Sequence[V]], Table],
) -> None:
    """Show what is fresh; the others are told afterwards and lead to an exit code of 1."""
    fresh: list[V] = []
    stale: list[StaleData] = []
    for pair in pairs:
        try:
            fresh.append(read(pair))
        except StaleData as error:
            stale.append(error)
    if fresh:
        _show(fresh, layout, table)
    for late in stale:
        click.echo(f"readers: {late}", err=True)
    if stale:
        sys.exit(NOT_FRESH)


def _show(values: Sequence[V], layout: str, table: Callable[[Sequence[V]], Table]) -> None:
    if layout == "table":
        Console().print(table(values))
    elif layout == "json":
        click.echo(orjson.dumps([asdict(value) for value in values]))
    else:
        rows = [asdict(value) for value in values]
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
