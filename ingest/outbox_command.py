"""`ingest outbox`: what waits and what the store has refused; refused rows are sent again.

Both commands use a connection of their own, beside the service's or without one. `show` only reads.
`retry` marks rows in one transaction; the outbox itself takes them up, with the next parcel that is
settled, or at its next start.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingest.database import LOCKED_S, errors_by_type, lenient_text
from ingest.display import age_text
from ingest.options import config_option
from ingest.outbox_records import BrokenRecord, Quarantined
from ingest.outbox_schema import TABLES, VERSION
from marketdata.config import load_config
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import MEASUREMENTS

NOTHING: Final = 1
SHOWN: Final = 20

Json = dict[str, Any]


@click.group()
def outbox() -> None:
    """What the store doesn't have yet, and what it has refused."""


@outbox.command()
@config_option
@click.option("--limit", type=click.IntRange(min=0), default=SHOWN, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def show(config_path: Path | None, limit: int, as_json: bool) -> None:
    """Show what waits, and the newest of what was refused; also while the service runs."""
    path = load_config(config_path).outbox.path
    state = look(path, limit)
    if as_json:
        click.echo(json.dumps(state, ensure_ascii=False))
    else:
        _print(state, int(time.time() * 1000), Console())


@outbox.command()
@config_option
@click.option(
    "--measurement", type=click.Choice(tuple(MEASUREMENTS)), help="Only rows of this measurement."
)
@click.option("--reason", help="Only rows with this text in the store's words.")
@click.option("--all", "everything", is_flag=True, help="Every row in quarantine.")
def retry(
    config_path: Path | None, measurement: str | None, reason: str | None, everything: bool
) -> None:
    """Send refused rows again, after their cause is gone; exit 1 where none is meant."""
    if everything == (measurement is not None or reason is not None):
        raise click.UsageError("name what to send: --measurement, --reason or both; or --all")
    marked = mark(load_config(config_path).outbox.path, measurement, reason)
    click.echo(
        f"{marked:,} rows will be sent again: within seconds where a service runs and its store"
        " takes data, else at its next start"
        if marked
        else "no such row in quarantine"
    )
    sys.exit(0 if marked else NOTHING)


def look(path: Path, limit: int) -> Json:
    """The outbox's state: what waits by measurement, the quarantine, newest first, and damage."""
    with _opened(path, "ro") as connection:
        run = connection.execute
        version = _version(connection)
        waiting = {
            name: {"rows": rows, "bytes": size, "oldest_ms": oldest_ms}
            for name, rows, size, oldest_ms in run(
                "SELECT measurement, sum(rows), sum(length(payload)), min(created_ms) FROM entries"
                " GROUP BY measurement ORDER BY measurement"
            )
        }
        refused = dict(
            run("SELECT measurement, count(*) FROM quarantine GROUP BY measurement ORDER BY 1")
        )
        sealed = version > 1
        columns = ", ".join(Quarantined._fields if sealed else Quarantined._fields[:-1])
        newest = [
            {**_refused(values if sealed else Quarantined.sealed(*values)), "retry": bool(marked)}
            for marked, *values in run(
                f"SELECT {'retry' if sealed else '0'}, {columns} FROM quarantine"
                " ORDER BY id DESC LIMIT ?",
                (limit,),
            )
        ]
        broken = run("SELECT count(*) FROM broken").fetchone()[0] if sealed else 0
    damaged = sorted(
        str(found)
        for found in path.parent.glob(f"{path.name}.damaged-*")
        if not found.name.endswith(("-wal", "-shm"))
    )
    return {
        "path": str(path),
        "waiting": waiting,
        "quarantine": {"rows": refused, "newest": newest},
        "broken": broken,
        "damaged_files": damaged,
    }


def mark(path: Path, measurement: str | None = None, reason: str | None = None) -> int:
    """Mark the rows in quarantine that are meant; how many those are."""
    with _opened(path, "rw") as connection:
        version = _version(connection)
        if version != VERSION:
            raise StoreRefused(
                f"outbox {path} has schema version {version}: start the service once, it brings"
                f" the file to {VERSION}"
            )
        found = connection.execute(
            "UPDATE quarantine SET retry = 1 WHERE (?1 IS NULL OR measurement = ?1)"
            " AND (?2 IS NULL OR instr(reason, ?2))",
            (measurement, reason),
        )
        return found.rowcount


@contextmanager
def _opened(path: Path, mode: str) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise StoreUnavailable(f"outbox {path} isn't there: no service has run with it yet")
    with errors_by_type("outbox", path):
        where = f"{path.resolve().as_uri()}?mode={mode}"
        with closing(
            sqlite3.connect(where, timeout=LOCKED_S, isolation_level=None, uri=True)
        ) as connection:
            connection.text_factory = lenient_text
            yield connection


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version not in TABLES:
        raise StoreRefused(f"its schema version is {version}; this program knows {VERSION}")
    return int(version)


def _refused(values: Any) -> Json:
    record = Quarantined(*values)
    try:
        row = record.decode()._asdict()
    except BrokenRecord:
        row = None
    return {
        "rejected_ms": record.rejected_ms,
        "measurement": record.measurement,
        "row": row,
        "reason": record.reason,
    }


def _print(state: Json, now_ms: int, console: Console) -> None:
    table = Table(title="waiting for the store", title_justify="left")
    table.add_column("measurement")
    for name in ("rows", "bytes", "oldest"):
        table.add_column(name, justify="right")
    for name, of in state["waiting"].items():
        oldest = age_text(max(0, now_ms - of["oldest_ms"]))
        table.add_row(name, f"{of['rows']:,}", f"{of['bytes']:,}", oldest)
    console.print(table)
    refused = state["quarantine"]["rows"]
    counts = ", ".join(f"{name} {rows:,}" for name, rows in refused.items()) or "nothing"
    _say(console, f"in quarantine: {counts}")
    if state["quarantine"]["newest"]:
        console.print(_quarantine_table(state["quarantine"]["newest"]))
    if state["broken"]:
        _say(console, f"broken: {state['broken']:,} records, kept as bytes in the table broken")
    for path in state["damaged_files"]:
        _say(console, f"damaged, what could be read was taken over: {path}")


def _quarantine_table(newest: list[Json]) -> Table:
    table = Table(title="quarantine, newest first", title_justify="left")
    for name in ("refused", "measurement", "exchange", "pair", "time", "the store's words"):
        table.add_column(name, overflow="fold")
    for refused in newest:
        row = refused["row"] or {"exchange": "?", "symbol": "?", "time": None}
        words = refused["reason"] + (" (to be sent again)" if refused["retry"] else "")
        table.add_row(
            _time(refused["rejected_ms"]),
            refused["measurement"],
            str(row["exchange"]),
            str(row["symbol"]),
            _time(row["time"]),
            Text(words),  # brackets in them are no markup
        )
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _time(time_ms: Any) -> str:
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (TypeError, ValueError, OverflowError, OSError):
        return str(time_ms)
