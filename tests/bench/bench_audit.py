"""A scan for holes over 164 pairs and 30 days, and a whole audit of some of them, on SQLite.

The scan is compared with a bare `SELECT time` over the same rows in the same run.

Run: `python -m tests.bench.bench_audit`
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from ingest.audit import Span
from ingest.audit_store import Subject, audit_pairs, find_holes
from marketdata.schema import CANDLE_MS, MEASUREMENTS, MINUTE_MS
from marketdata.tables import STATEMENTS, upsert
from readers.sources.sqlite import SqliteSource

EXCHANGE = "BINANCE_FUTURES"
PAIRS, DAYS = 164, 30
START_MS = 1_760_000_040_000 // 86_400_000 * 86_400_000
SPAN = Span(START_MS, START_MS + DAYS * 86_400_000)
HOLES_A_PAIR = 3
AUDITED = 8
GOAL_S = 5.0


def pair(n: int) -> str:
    """The n-th pair's name."""
    return f"C{n}/USDT:USDT"


def fill(path: Path) -> None:
    """Candles of every pair with some holes in them; minutes of a few."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=OFF")
        for statement in STATEMENTS:
            connection.execute(statement)
        connection.execute("BEGIN")
        for n in range(PAIRS):
            for measurement, step_ms in (("ohlcv_3m", CANDLE_MS), ("ohlcv_1m", MINUTE_MS)):
                if measurement == "ohlcv_3m" or n < AUDITED:
                    connection.executemany(upsert(MEASUREMENTS[measurement]), rows(n, step_ms))
        connection.execute("COMMIT")


def rows(n: int, step_ms: int) -> list[tuple[object, ...]]:
    """A pair's rows: the same values throughout, three candles gone."""
    gone = {START_MS + (n + 1) * k * 17 * CANDLE_MS for k in range(1, HOLES_A_PAIR + 1)}
    minutes = step_ms // MINUTE_MS
    values = (100.0, 101.0, 99.0, 100.0, 12.5 * minutes, 1_250.0 * minutes, 40 * minutes)
    return [
        (EXCHANGE, pair(n), ms, *values, "stream", 0)
        for ms in range(SPAN.start_ms, SPAN.end_ms, step_ms)
        if ms // CANDLE_MS * CANDLE_MS not in gone
    ]


def seconds(work: Callable[[], int], expected: int) -> float:
    """The best of three runs."""
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        assert work() == expected
        best = min(best, time.perf_counter() - started)
    return best


def main() -> None:
    """Fill a store, then scan it both ways."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "market_data.db"
        fill(path)
        source = SqliteSource(path)
        stored = PAIRS * (DAYS * 480 - HOLES_A_PAIR)

        def bare() -> int:
            with closing(sqlite3.connect(path)) as connection:
                return sum(
                    len(
                        connection.execute(
                            "SELECT time FROM ohlcv_3m WHERE exchange = ? AND symbol = ?",
                            (EXCHANGE, pair(n)),
                        ).fetchall()
                    )
                    for n in range(PAIRS)
                )

        def scan() -> int:
            return sum(
                len(find_holes(source, "candles", EXCHANGE, pair(n), SPAN)) for n in range(PAIRS)
            )

        try:
            limit, ours = seconds(bare, stored), seconds(scan, PAIRS * HOLES_A_PAIR)
            print(f"bare SELECT time    {limit:>8.2f} s  {stored / limit:>12,.0f} rows/s")
            print(f"scan for holes      {ours:>8.2f} s  (goal: at most {GOAL_S})")
            print(f"to the bare SELECT  {limit / ours:>8.2f}")
            wanted = [
                Subject(EXCHANGE, pair(n), ("candles",), None, SPAN.end_ms) for n in range(AUDITED)
            ]
            whole = seconds(lambda: len(list(audit_pairs(source, wanted, SPAN))), AUDITED)
            each = whole / AUDITED
            print(f"whole audit, a pair {each:>8.2f} s  ({PAIRS} pairs: {each * PAIRS:.0f} s)")
        finally:
            source.close()


if __name__ == "__main__":
    main()
