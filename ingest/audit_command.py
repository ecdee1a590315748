"""`ingest audit`: the completeness scorecard of what is stored."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ingest.audit import MEASUREMENT_OF, Card, Counts, Day, Finding, Missing, Span
from ingest.audit_store import audit_pairs, subjects
from ingest.kept import kept_markets
from ingest.options import config_option
from marketdata.config import load_config
from marketdata.schema import CANDLE_MS
from marketdata.units import parse_duration_ms
from readers.sources import open_source
from readers.times import to_ms

FOUND: Final = 1
GRACE_MS: Final = 60_000
"""A candle is expected in the store when this long has passed since its close."""
SHOWN: Final = 60
"""Lines of each list; `--json` has all."""


def moment_ms(text: str, now_ms: int) -> int:
    """UTC milliseconds of `2d` (ago), a date or time in ISO 8601, or milliseconds.

    >>> moment_ms("1m", 90_000), moment_ms("1970-01-02", 0), moment_ms("1760000000000", 0)
    (30000, 86400000, 1760000000000)
    """
    try:
        return now_ms - parse_duration_ms(text)
    except ValueError:
        return to_ms(int(text) if text.isdecimal() and len(text) > 8 else text)


class Moment(click.ParamType):  # type: ignore[type-arg]
    """`2d`, `2026-11-01`, `2026-11-01T12:00`, milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return moment_ms(str(value), int(time.time() * 1000))
        except ValueError:
            self.fail(f"{value!r}: neither a duration such as 2d nor a date such as 2026-11-01")


@click.command()
@config_option
@click.option("--since", "since_ms", type=Moment(), required=True, help="2d, 2026-11-01 …")
@click.option("--until", "until_ms", type=Moment(), help="Left out: what has closed by now.")
@click.option("--pair", "pairs", multiple=True, help="Only this pair; may be repeated.")
@click.option("--exchange", "exchanges", multiple=True, help="Only this exchange; likewise.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def audit(
    config_path: Path | None,
    since_ms: int,
    until_ms: int | None,
    pairs: tuple[str, ...],
    exchanges: tuple[str, ...],
    as_json: bool,
) -> None:
    """Score what is stored; exit 0 all there and sound, 1 something isn't, 3 no store there."""
    settings = load_config(config_path)
    unknown = set(exchanges) - settings.exchanges.keys()
    if unknown:
        raise click.UsageError(f"{', '.join(sorted(unknown))}: not in the configuration")
    end_ms = int(time.time() * 1000) - GRACE_MS if until_ms is None else until_ms
    span = Span(-(-since_ms // CANDLE_MS) * CANDLE_MS, end_ms // CANDLE_MS * CANDLE_MS)
    if span.start_ms >= span.end_ms:
        raise click.UsageError("between --since and --until no candle has closed")
    source = open_source(settings)
    try:
        wanted = [
            subject
            for exchange, of_exchange in settings.exchanges.items()
            if not exchanges or exchange in exchanges
            for subject in subjects(
                source, exchange, of_exchange, kept_markets(settings, exchange), span
            )
        ]
        known = {subject.symbol for subject in wanted}
        if set(pairs) - known:
            missing = ", ".join(sorted(set(pairs) - known))
            raise click.UsageError(f"{missing}: neither stored in this time nor configured")
        cards = audit_pairs(source, _with_counterparts(wanted, pairs), span)
        progress = Console(stderr=True)
        done = [
            card
            for card in track(
                cards, "audit", len(wanted), console=progress,
                disable=not progress.is_terminal, transient=True,
            )
            if not pairs or card.symbol in pairs
        ]  # fmt: skip
    finally:
        source.close()
    done.sort(key=lambda card: card.badness, reverse=True)
    if as_json:
        click.echo(json.dumps(_as_json(done, span), ensure_ascii=False))
    else:
        show(done, span, Console())
    sys.exit(0 if all(card.clean for card in done) else FOUND)


def _with_counterparts(wanted: Sequence[Any], pairs: Sequence[str]) -> list[Any]:
    """The pairs that are asked for, and those that their outliers are held against."""
    if not pairs:
        return list(wanted)
    currencies = {pair.partition(":")[0] for pair in pairs}
    return [subject for subject in wanted if subject.currencies in currencies]


def totals(cards: Iterable[Card]) -> dict[str, Counts]:
    """Counts of each series over all pairs."""
    found = {series: Counts() for series in MEASUREMENT_OF}
    for card in cards:
        for series, counts in found.items():
            counts.add(card.total(series))
    return found


def show(cards: Sequence[Card], span: Span, console: Console) -> None:
    """Totals, then pairs and days, then what was found; the worst first."""
    bad = sum(card.badness[1] for card in cards)
    outliers = sum(card.badness[2] for card in cards)
    clean = sum(card.clean for card in cards)
    console.print(
        f"{_time(span.start_ms)} to {_time(span.end_ms)} UTC: {len(cards)} pairs, {clean} clean, "
        f"{bad:,} bad rows, {outliers:,} outliers",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_totals_table(cards))
    console.print(_pairs_table(cards))
    days = [(card, day) for card in cards for day in card.days.values()]
    if len(days) > SHOWN:
        days = [(card, day) for card, day in days if any(_day_badness(day))]
    days.sort(key=lambda item: _day_badness(item[1]), reverse=True)
    if days:
        console.print(_days_table(days[:SHOWN]))
        _more(console, len(days))
    holes = [(card, hole) for card in cards for hole in card.missing]
    for card, hole in holes[:SHOWN]:
        console.print(_hole_line(card, hole), highlight=False, soft_wrap=True)
    _more(console, len(holes))
    findings = [(card, finding) for card in cards for finding in (*card.bad, *card.outliers)]
    for card, finding in findings[:SHOWN]:
        console.print(_finding_line(card, finding), highlight=False, soft_wrap=True)
    _more(console, len(findings))


def _more(console: Console, count: int) -> None:
    if count > SHOWN:
        console.print(f"… and {count - SHOWN:,} more; --json has all", style="dim")


def _totals_table(cards: Sequence[Card]) -> Table:
    table = Table(title="totals", title_justify="left")
    table.add_column("series")
    for name in ("expected", "stream", "repaired", "synthetic", "missing"):
        table.add_column(name, justify="right")
    for series, counts in totals(cards).items():
        table.add_row(series, *_cells(counts))
    return table


def _pairs_table(cards: Sequence[Card]) -> Table:
    table = Table(title="pairs, the worst first", title_justify="left")
    table.add_column("exchange")
    table.add_column("pair")
    _add_score_columns(table)
    for card in cards[:SHOWN]:
        series = {name: card.total(name) for name in MEASUREMENT_OF}
        table.add_row(card.exchange, card.symbol, *_score(series, *card.badness[1:]))
    if len(cards) > SHOWN:
        table.caption = f"and {len(cards) - SHOWN} more; --json has all"
    return table


def _days_table(days: Iterable[tuple[Card, Day]]) -> Table:
    table = Table(title="days, the worst first", title_justify="left")
    for name in ("day", "exchange", "pair"):
        table.add_column(name)
    _add_score_columns(table)
    for card, day in days:
        series = {name: day.series.get(name, Counts()) for name in MEASUREMENT_OF}
        cells = _score(series, day.bad, day.outliers)
        table.add_row(_time(day.day_ms)[:10], card.exchange, card.symbol, *cells)
    return table


def _add_score_columns(table: Table) -> None:
    for name in (
        "expected", "stream", "repaired", "synthetic", "missing",
        "minutes", "marks", "settlements", "bad", "outliers",
    ):  # fmt: skip
        table.add_column(name, justify="right")


def _score(series: dict[str, Counts], bad: int, outliers: int) -> list[str]:
    """The candles' counts, then what is missing of the other series, then what is wrong."""
    missing = [_red(series[name].missing) for name in ("minutes", "marks", "settlements")]
    return [*_cells(series["candles"]), *missing, _red(bad), _red(outliers)]


def _cells(counts: Counts) -> list[str]:
    *there, missing = asdict(counts).values()
    return [*(f"{count:,}" for count in there), _red(missing)]


def _red(count: int) -> str:
    return f"[red]{count:,}[/]" if count else "0"


def _day_badness(day: Day) -> tuple[int, int, int]:
    return sum(counts.missing for counts in day.series.values()), day.bad, day.outliers


def _hole_line(card: Card, hole: Missing) -> str:
    why = hole.reason or "no reason known"
    return (
        f"missing  {card.exchange} {card.symbol} {hole.series}: {hole.rows:,}, "
        f"{_time(hole.start_ms)} to {_time(hole.end_ms)} ({why})"
    )


def _finding_line(card: Card, found: Finding) -> str:
    return (
        f"{found.kind}  {card.exchange} {card.symbol} {found.series} {_time(found.time_ms)}: "
        f"{found.detail}"
    )


def _as_json(cards: Sequence[Card], span: Span) -> dict[str, Any]:
    return {
        "since_ms": span.start_ms,
        "until_ms": span.end_ms,
        "clean": all(card.clean for card in cards),
        "totals": {series: asdict(counts) for series, counts in totals(cards).items()},
        "pairs": [card.as_json() for card in cards],
    }


def _time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
