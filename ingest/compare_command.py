"""`ingest compare`: stream against REST, once or for as long as one likes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

import click
import structlog
from rich.console import Console

from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.compare import Ours, Sampler
from ingest.compare_report import SUFFIXES, Report
from ingest.exchanges import EXCHANGES
from ingest.logs import configure_logging
from ingest.options import config_option, log_option
from ingest.selection import select
from marketdata.config import load_config
from marketdata.errors import MarketDataError, ServiceUnavailable, TransientError
from marketdata.pairs import Catalogue, Market
from marketdata.settings import ExchangeSettings, Settings
from marketdata.units import parse_duration_ms
from readers.sources import open_hot, open_source

log = structlog.get_logger()

DIFFERENT: Final = 1
ROUND_S: Final = 10.0
PAIRS_A_ROUND: Final = 10
"""Pairs whose candles are compared in one round of `--watch`, in turns."""
COLLECTED_WITHIN_MS: Final = 3_600_000
"""A stored pair is one that is collected when it is so close to the newest of its exchange."""


class Duration(click.ParamType):  # type: ignore[type-arg]
    """`90s`, `1h`, `1d`; seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_duration_ms(str(value)) / 1000
        except ValueError as error:
            self.fail(f"{value!r}: {error}")


@click.command()
@config_option
@log_option
@click.option("--watch", is_flag=True, help="Sample until Ctrl-C, within the budget.")
@click.option("--for", "seconds", type=Duration(), help="Sample so long: 1h, 1d.")
@click.option("--pair", "pairs", multiple=True, help="Only this pair; may be repeated.")
@click.option("--exchange", "exchanges", multiple=True, help="Only this exchange; likewise.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the report: FILE.md or FILE.json.",
)
@click.option(
    "--share",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.1,
    show_default=True,
    help="Share of the exchange's request limit.",
)
def compare(
    config_path: Path | None,
    log_level: str,
    watch: bool,
    seconds: float | None,
    pairs: tuple[str, ...],
    exchanges: tuple[str, ...],
    report_path: Path | None,
    share: float,
) -> None:
    """Hold the stream against REST; exit 0 all the same, 1 something differs, 3 none to ask."""
    from ingest.cli import run_until_stopped

    configure_logging(log_level)
    settings = load_config(config_path)
    unknown = set(exchanges) - settings.exchanges.keys()
    if unknown:
        raise click.UsageError(f"{', '.join(sorted(unknown))}: not in the configuration")
    if report_path is not None and report_path.suffix not in SUFFIXES:
        raise click.UsageError(f"--report {report_path}: ends neither in .md nor in .json")
    clock = Clock()
    report = Report(clock.now_ms())

    def keep() -> None:
        if report_path is not None:
            report.write(report_path)

    comparison = Comparison(settings, clock, share, report, pairs, exchanges, keep)
    run_until_stopped(
        lambda stop: comparison.run(stop, watch=watch or seconds is not None, seconds=seconds)
    )
    keep()
    report.show(Console())
    sys.exit(DIFFERENT if report.differing else 0)


class Comparison:
    """A run over all exchanges; what it finds goes into `report`, `kept` is called each round."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        share: float,
        report: Report,
        pairs: Sequence[str] = (),
        exchanges: Sequence[str] = (),
        kept: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._report = report
        self._pairs = pairs
        self._exchanges = exchanges or tuple(settings.exchanges)
        self._kept = kept
        self._budgets = Budgets(share)
        self._last_failure: MarketDataError | None = None

    async def run(
        self, stop: asyncio.Event, *, watch: bool = False, seconds: float | None = None
    ) -> None:
        """Compare once, or until `stop` or the time is over.

        Raises
        ------
        ExchangeUnavailable, StoreUnavailable
            An exchange or the store can't be reached; when watching, only if nothing at all could
            be compared.
        UnknownPair, ConfigError
            No such pair.
        """
        ours = Ours(open_source(self._settings), open_hot(self._settings))
        work = asyncio.create_task(self._all(ours, watch), name="compare")
        stopped = asyncio.create_task(stop.wait(), name="compare.stop")
        try:
            wait_s = None if seconds is None else seconds / self._clock.speed
            await asyncio.wait({work, stopped}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, stopped):
                task.cancel()
            await asyncio.wait({work, stopped})
            ours.close()
            self._report.ended_ms = self._clock.now_ms()
        if not work.cancelled():
            work.result()
        if not self._report.compared:
            raise self._last_failure or ServiceUnavailable(
                "nothing was compared: no closed candle, mark or funding on both sides"
            )

    async def _all(self, ours: Ours, watch: bool) -> None:
        async with asyncio.TaskGroup() as tasks:
            for exchange in self._exchanges:
                tasks.create_task(self._one(exchange, ours, watch), name=f"compare.{exchange}")

    async def _one(self, exchange: str, ours: Ours, watch: bool) -> None:
        settings = self._settings.exchanges[exchange]
        proxy = settings.http_proxy
        rest = EXCHANGES[exchange].rest(
            self._budgets,
            self._clock,
            settings.rest_url,
            None if proxy is None else proxy.get_secret_value(),
        )
        sampler = Sampler(rest, ours, self._clock)
        try:
            catalogue = rest.markets(await rest.catalogue())
            markets = await self._markets(exchange, settings, catalogue, ours)
            if not markets:
                return
            channels = {
                market.pair: EXCHANGES[exchange].channels_of(market, settings.channels)
                for market in markets
            }
            turns = cycle(market for market in markets if "candles" in channels[market.pair])
            some = sum("candles" in of_pair for of_pair in channels.values())
            while True:
                due = islice(turns, min(some, PAIRS_A_ROUND) if watch else some)
                try:
                    self._report.add(exchange, await sampler.values(markets, channels))
                    for market in due:
                        self._report.add(exchange, await sampler.candles(market))
                except TransientError as error:
                    if not watch:
                        raise
                    self._last_failure = error
                    self._report.failures[exchange] += 1
                    log.warning("compare_failed", exchange=exchange, cause=str(error))
                self._report.rounds += 1
                if not watch:
                    return
                self._report.ended_ms = self._clock.now_ms()
                self._kept()
                await self._clock.sleep(ROUND_S)
        finally:
            await rest.close()

    async def _markets(
        self, exchange: str, settings: ExchangeSettings, catalogue: Catalogue, ours: Ours
    ) -> list[Market]:
        """The listed markets that are collected, of those that are asked for."""
        if isinstance(settings.pairs, tuple):
            collected: Sequence[str] = settings.pairs
        else:
            collected = await asyncio.to_thread(_collected, exchange, ours)
        wanted = [pair for pair in collected if not self._pairs or pair in self._pairs]
        if not wanted:
            return []
        selection = select(exchange, wanted, catalogue)
        for note in selection.left_out:
            log.warning("pair_left_out", exchange=exchange, reason=note)
        return list(selection.markets.values())


def _collected(exchange: str, ours: Ours) -> list[str]:
    """The stored pairs that keep up with the newest, where the configuration names none."""
    stored = ours.store.pairs(exchange)
    last = ours.last(exchange, stored)
    newest = {
        pair: max(one.mark_event_ms or 0, one.price_event_ms or 0, one.candle_event_ms or 0)
        for pair, one in last.items()
    }
    latest_ms = max(newest.values(), default=0)
    return [pair for pair in stored if newest.get(pair, 0) > latest_ms - COLLECTED_WITHIN_MS]
