"""Market data for people: tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from rich.table import Table

from readers.values import Funding, Mark

if TYPE_CHECKING:
    import pandas as pd


def number(value: float | None) -> str:
    """A price or volume, with the digits that it has.

    >>> number(93005.6), number(1e-05), number(None), number(3.0)
    ('93,005.6', '0.00001', '–', '3')
    """
    if value is None:
        return "–"
    text = f"{Decimal(repr(value)):,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(rate: float | None) -> str:
    """A rate as a percentage.

    >>> percent(0.0001), percent(-1.25e-05), percent(None)
    ('0.010000 %', '-0.001250 %', '–')
    """
    return "–" if rate is None else f"{rate * 100:.6f} %"


def age(age_ms: int) -> str:
    """How old something is.

    >>> age(350), age(59_400), age(7_380_000)
    ('0.3 s', '59.4 s', '2 h 3 min')
    """
    if age_ms < 60_000:
        return f"{age_ms / 1000:.1f} s"
    minutes = age_ms // 60_000
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def candles_table(frame: pd.DataFrame, title: str) -> Table:
    """Candles, ascending; made-up ones are dim."""
    told = f"{title} · from {frame.attrs['source']} · {frame.attrs['state']}"
    table = Table(title=told, title_justify="left")
    table.add_column("open time, UTC")
    for name in ("open", "high", "low", "close", "volume"):
        table.add_column(name, justify="right")
    filled = set(frame.attrs["filled"])
    for date, *values in frame.itertuples(index=False):
        style = "dim" if int(date.timestamp() * 1000) in filled else None
        table.add_row(f"{date:%Y-%m-%d %H:%M}", *map(number, values), style=style)
    return table


def funding_table(values: Sequence[Funding]) -> Table:
    """Funding rates, a pair a row."""
    table = Table()
    table.add_column("pair")
    for name in ("rate", "predicted", "next settlement, UTC", "every", "age"):
        table.add_column(name, justify="right")
    table.add_column("from")
    for value in values:
        interval = "–" if value.interval_hours is None else f"{value.interval_hours:g} h"
        table.add_row(
            value.pair,
            percent(value.rate),
            percent(value.predicted_rate),
            _time(value.next_funding_ms),
            interval,
            age(value.age_ms),
            value.source,
        )
    return table


def mark_table(values: Sequence[Mark]) -> Table:
    """Mark and index prices, a pair a row."""
    table = Table()
    table.add_column("pair")
    for name in ("mark", "index", "age"):
        table.add_column(name, justify="right")
    table.add_column("from")
    for value in values:
        table.add_row(
            value.pair,
            number(value.price),
            number(value.index_price),
            age(value.age_ms),
            value.source,
        )
    return table


def _time(time_ms: int | None) -> str:
    if time_ms is None:
        return "–"
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M}"
