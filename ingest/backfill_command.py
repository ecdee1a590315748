"""`ingest backfill`: the command, and the parts that it puts together.

It may run beside the service: its outbox and its progress file are its own, beside those of the
service, and the sink is of the same class.
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any

import click
import structlog
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

from ingest.backfill import MEASUREMENTS, Backfill, Job, Tally, estimate_s, plan
from ingest.backfill_progress import Progress
from ingest.backoff import Backoff
from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.delivery import Delivery
from ingest.discovery import Discovery
from ingest.exchanges import EXCHANGES
from ingest.exchanges.rest_base import ExchangeRest
from ingest.logs import configure_logging
from ingest.options import config_option, log_option
from ingest.outbox import Outbox
from ingest.selection import select
from ingest.sinks import open_sink
from marketdata.config import load_config
from marketdata.errors import TransientError, UnknownPair
from marketdata.pairs import Catalogue, Market
from marketdata.settings import Settings
from readers.sources import open_source
from readers.times import to_ms

log = structlog.get_logger()

OUTBOX_NAME = "backfill_outbox.db"
PROGRESS_NAME = "backfill.db"
DRAIN_S = 10.0
POLL_S = 0.2
VIEW_S = 1.0
LINE_S = 30.0
"""How often progress is told where there is no terminal."""
NOT_WELL = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to bring; empty sequences mean all that the configuration names."""

    since_ms: int
    until_ms: int
    pairs: Sequence[str] = ()
    exchanges: Sequence[str] = ()
    measurements: Sequence[str] = MEASUREMENTS


@dataclass(slots=True)
class Outcome:
    """How a backfill ended: `whole` unless it was stopped or something was refused."""

    tally: Tally
    stopped: bool = False

    @property
    def whole(self) -> bool:
        return not self.stopped and not self.tally.refused


async def run_backfill(
    settings: Settings, wanted: Wanted, clock: Clock, stop: asyncio.Event, console: Console
) -> Outcome:
    """Bring what is wanted, until it is there or `stop` is set.

    Parameters
    ----------
    console
        Where the estimate and the progress go.

    Raises
    ------
    UnknownPair
        None of the exchanges lists a pair that was asked for by name.
    ConfigError
        None of an exchange's configured pairs is listed.
    StoreRefused
        Another backfill runs on the same files, or the store takes nothing as things are.
    """
    folder = settings.outbox.path.parent
    async with AsyncExitStack() as stack:
        outbox = await Outbox.open(folder / OUTBOX_NAME, settings.outbox.max_bytes, clock)
        stack.push_async_callback(outbox.close)
        progress = await Progress.open(folder / PROGRESS_NAME)
        stack.push_async_callback(progress.close)
        sink = open_sink(settings)
        stack.push_async_callback(sink.close)
        stored = open_source(settings)
        stack.callback(stored.close)
        with suppress(TransientError):  # the file of an embedded store has to be there to be read
            await sink.write({})
        delivery = Delivery(outbox, sink, clock)
        await stack.enter_async_context(_running(delivery))
        rests = [
            await stack.enter_async_context(_rest(exchange, settings, clock))
            for exchange in wanted.exchanges or settings.exchanges
        ]

        async def work() -> Tally:
            # First what the last run left, so that the store says what is there.
            await _emptied(outbox, clock)
            markets = await _markets(settings, wanted, rests, clock, console)
            jobs = [
                job
                for rest in rests
                for job in await plan(
                    rest, markets[rest.exchange], wanted.measurements,
                    wanted.since_ms, wanted.until_ms, stored, progress, clock,
                )
            ]  # fmt: skip
            expected_s = estimate_s(jobs, settings.repair.weight_share)
            for line in plan_lines(jobs, expected_s):
                console.print(line)
            backfill = Backfill(jobs, stored, outbox, progress, clock)
            async with _shown(backfill.tally, expected_s, clock, console):
                await backfill.run()
            await _emptied(outbox, clock)
            return backfill.tally

        working = asyncio.create_task(work(), name="backfill")
        stopping = asyncio.create_task(stop.wait(), name="backfill.stop")
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return Outcome(working.result())
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
        await delivery.drain(DRAIN_S)
        return Outcome(Tally(), stopped=True)


def plan_lines(jobs: Sequence[Job], expected_s: float) -> list[str]:
    """What is about to be asked, by exchange and measurement, and how long the limits make that."""
    calls: Counter[tuple[str, str]] = Counter()
    weights: Counter[tuple[str, str]] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for job in jobs:
        where = (job.market.exchange, job.measurement)
        pairs[where] += 1
        calls[where] += job.calls
        weights[where] += job.calls * job.cost.weight
    lines = [
        f"{exchange} {name}: {pairs[exchange, name]:,} pairs, {count:,} calls, "
        f"weight {weights[exchange, name]:,}"
        for (exchange, name), count in calls.items()
    ]
    if not lines:
        return ["nothing left to do: everything asked for is done"]
    return [
        *lines,
        f"about {duration(expected_s)} under the rate budget, less for what the store has already",
    ]


def duration(seconds: float) -> str:
    """A time span as a person reads it.

    >>> duration(42.0), duration(150.0), duration(9_000.0)
    ('42 s', '3 min', '2 h 30 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = ceil(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def progress_line(tally: Tally, left_s: float) -> str:
    """Where a backfill is, in one line.

    >>> tally = Tally(planned=10, over=4, at_ms={"X": 1_704_067_200_000})
    >>> progress_line(tally, 90.0)
    '40 %, 0 rows, X at 2024-01-01, 2 min left'
    """
    percent = 100 * tally.over // max(1, tally.planned)
    rows = sum(tally.rows.values())
    places = [f"{exchange} at {_day(at_ms)}" for exchange, at_ms in sorted(tally.at_ms.items())]
    return ", ".join([f"{percent} %", f"{rows:,} rows", *places, f"{duration(left_s)} left"])


def _day(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d}"


@asynccontextmanager
async def _running(delivery: Delivery) -> AsyncIterator[None]:
    task = asyncio.create_task(delivery.run(), name="delivery")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _rest(exchange: str, settings: Settings, clock: Clock) -> AsyncIterator[ExchangeRest]:
    own = settings.exchanges[exchange]
    proxy = None if own.http_proxy is None else own.http_proxy.get_secret_value()
    budgets = Budgets(settings.repair.weight_share)
    rest = EXCHANGES[exchange].rest(budgets, clock, own.rest_url, proxy)
    try:
        yield rest
    finally:
        await rest.close()


async def _emptied(outbox: Outbox, clock: Clock) -> None:
    while outbox.depth().rows:
        await clock.sleep(POLL_S)


async def _markets(
    settings: Settings,
    wanted: Wanted,
    rests: Sequence[ExchangeRest],
    clock: Clock,
    console: Console,
) -> dict[str, list[Market]]:
    """The markets to bring, by exchange. Pairs asked for by name need not be traded any more."""
    catalogues = {rest.exchange: await _catalogue(rest, clock) for rest in rests}
    found: dict[str, list[Market]] = {}
    for rest in rests:
        catalogue = catalogues[rest.exchange]
        if wanted.pairs:
            listed = [catalogue.by_pair[pair] for pair in wanted.pairs if pair in catalogue.by_pair]
            found[rest.exchange] = listed
            continue
        url = None if settings.redis is None else settings.redis.url.get_secret_value()
        pairs = settings.exchanges[rest.exchange].pairs
        discovery = Discovery(rest.exchange, pairs, rest, url, clock)
        selection = select(rest.exchange, await discovery.wanted(catalogue), catalogue)
        found[rest.exchange] = list(selection.markets.values())
        for note in selection.left_out:
            console.print(note)
    known = {market.pair for markets in found.values() for market in markets}
    for pair in wanted.pairs:
        if pair not in known:
            near = [name for catalogue in catalogues.values() for name in catalogue.near(pair)]
            raise UnknownPair(pair, " and ".join(catalogues), tuple(dict.fromkeys(near)))
    return found


async def _catalogue(rest: ExchangeRest, clock: Clock) -> Catalogue:
    backoff = Backoff(base_s=1.0, cap_s=60.0)
    while True:
        try:
            markets = rest.markets(await rest.catalogue())
            return markets.with_intervals(await rest.intervals(), rest.interval_hours)
        except TransientError as error:
            delay_s = max(error.retry_after_s or 0.0, backoff.next_s())
            log.warning("no_metadata", exchange=rest.exchange, cause=str(error), next_try_s=delay_s)
            await clock.sleep(delay_s)


@asynccontextmanager
async def _shown(
    tally: Tally, expected_s: float, clock: Clock, console: Console
) -> AsyncIterator[None]:
    """Show the progress while the body runs: a bar on a terminal, lines elsewhere."""
    task = asyncio.create_task(_show(tally, expected_s, clock, console), name="backfill.view")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _show(tally: Tally, expected_s: float, clock: Clock, console: Console) -> None:
    since_ms = clock.now_ms()

    def line() -> str:
        gone_s = (clock.now_ms() - since_ms) / 1000
        share = tally.over / max(1, tally.planned)
        left_s = expected_s if not tally.over else gone_s / share * (1 - share)
        return progress_line(tally, left_s)

    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_S)
            console.print(line())
    with Bar(
        BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"), console=console
    ) as bar:
        task = bar.add_task("", total=max(1, tally.planned))
        while True:
            bar.update(task, completed=tally.over, description=line())
            await asyncio.sleep(VIEW_S)


def _time(context: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """A time of the command line, as UTC milliseconds."""
    if text is None:
        return None
    try:
        return to_ms(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@config_option
@log_option
@click.option("--since", callback=_time, required=True, help="UTC, such as 2024-01-01.")
@click.option("--until", callback=_time, help="The first moment that is left out; left out: now.")
@click.option("--pair", "pairs", multiple=True, help="Only this pair; may be given again.")
@click.option("--exchange", "exchanges", multiple=True, help="Only this one; may be given again.")
@click.option(
    "--measurement",
    "measurements",
    type=click.Choice(MEASUREMENTS),
    multiple=True,
    help="Only this; may be given again. Left out: all three.",
)
def backfill(
    config_path: Path | None,
    log_level: str,
    since: int,
    until: int | None,
    pairs: tuple[str, ...],
    exchanges: tuple[str, ...],
    measurements: tuple[str, ...],
) -> None:
    """Bring history by REST under the rate budget; goes on where it stopped. Exit 1: refused."""
    from ingest.cli import run_until_stopped

    configure_logging(log_level)
    settings = load_config(config_path)
    unknown = [name for name in exchanges if name not in settings.exchanges]
    if unknown:
        valid = ", ".join(settings.exchanges)
        raise click.BadParameter(f"{', '.join(unknown)}; configured: {valid}")
    clock = Clock()
    until_ms = clock.now_ms() if until is None else until
    if until_ms <= since:
        raise click.BadParameter("--until lies before --since")
    wanted = Wanted(since, until_ms, pairs, exchanges, measurements or MEASUREMENTS)
    ended: list[Outcome] = []

    async def work(stop: asyncio.Event) -> None:
        console = Console(stderr=True, highlight=False)
        ended.append(await run_backfill(settings, wanted, clock, stop, console))

    run_until_stopped(work)
    sys.exit(_report(ended[0]))


def _report(outcome: Outcome) -> int:
    """Say how it ended; the exit code."""
    if outcome.stopped:
        click.echo("stopped; the same command goes on from here", err=True)
        return 0
    rows: Any = outcome.tally.rows
    figures = ", ".join(f"{name} {count:,}" for name, count in sorted(rows.items()) if count)
    click.echo(f"rows written: {figures or 'none'}")
    for (exchange, pair, name), words in outcome.tally.refused.items():
        click.echo(f"{exchange} {pair} {name} was refused: {words}", err=True)
    return 0 if outcome.whole else NOT_WELL
