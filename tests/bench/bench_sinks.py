"""Points to an InfluxDB that costs nothing, rows through the outbox, and catching up.

The bare limit of the sink is one f-string a line, joined and encoded, without escaping, types or
absent fields. Ours is `InfluxSink.write` in batches of 5,000 with the HTTP request cut off behind
influxdb-client. The bare limit of the outbox is a file that is appended to and fsynced. Catching up
is a backlog on its way to a real InfluxDB, while rows come in as in life: a thousand a second.

Run: `python -m tests.bench.bench_sinks`
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import orjson

from ingest.outbox import Outbox
from ingest.sinks.influx import InfluxSink
from marketdata.schema import MarkPrice, Ohlcv, Row
from tests.servers.influx import find_influxd
from tests.soak.stores import Plan, run

PAIRS = 164
BATCH_ROWS = 5_000
ROWS = 50_000
ROUNDS = 5
COMMIT_ROWS = 100
COMMITS = 100
GOAL_POINTS = 400_000
GOAL_OUTBOX_ROWS = 100_000
BACKLOG_ROWS = 300_000
GOAL_CATCH_UP = 20

START_MS = 1_760_000_040_000


def marks(count: int) -> list[MarkPrice]:
    """Marks with eight decimals, as Binance's."""
    dice = random.Random(1)
    names = [f"COIN{n}/USDT:USDT" for n in range(PAIRS)]
    return [
        MarkPrice(
            "BINANCE_FUTURES",
            names[n % PAIRS],
            START_MS + n,
            round(dice.uniform(0.1, 60_000), 8),
            round(dice.uniform(0.1, 60_000), 8),
        )
        for n in range(count)
    ]


def candles(count: int) -> list[Ohlcv]:
    """Full candles with the decimals of a middling pair."""
    dice = random.Random(1)
    names = [f"COIN{n}/USDT:USDT" for n in range(PAIRS)]
    return [
        Ohlcv(
            "BINANCE_FUTURES",
            names[n % PAIRS],
            START_MS + n * 180_000,
            round(dice.uniform(0.1, 60_000), 2),
            round(dice.uniform(0.1, 60_000), 2),
            round(dice.uniform(0.1, 60_000), 2),
            round(dice.uniform(0.1, 60_000), 2),
            round(dice.uniform(0.1, 60_000), 3),
            round(dice.uniform(0.1, 60_000), 5),
            n,
            "stream",
            0,
        )
        for n in range(count)
    ]


def bare_mark(row: MarkPrice) -> str:
    return (
        f"mark_price,exchange={row[0]},symbol={row[1]}"
        f" mark_price={row[3]},index_price={row[4]} {row[2]}"
    )


def bare_candle(row: Ohlcv) -> str:
    return (
        f"ohlcv_3m,exchange={row[0]},symbol={row[1]} open={row[3]},high={row[4]},low={row[5]},"
        f'close={row[6]},volume={row[7]},quote_volume={row[8]},trades={row[9]}i,source="{row[10]}",'
        f"revision={row[11]}i {row[2]}"
    )


class NullSink(InfluxSink):
    """All of the sink and the client, but what would be sent is dropped."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:9", "trading", "market_data", "token")
        self.sent_bytes = 0
        # In the place of the HTTP request: what calls it is all there.
        self._connected().api_client.rest_client.POST = self._drop  # type: ignore[method-assign, assignment]

    async def _drop(self, url: str, **request: object) -> object:
        body = request["body"]
        assert isinstance(body, bytes)
        self.sent_bytes += len(body)
        return _NoContent()


class _NoContent:
    status = 204

    def getheaders(self) -> dict[str, str]:
        return {}


def bare_lines(rows: Sequence[Row], line: Callable[..., str]) -> float:
    """Seconds of the processor for the rows as lines, joined and encoded."""
    started = time.process_time()
    for start in range(0, len(rows), BATCH_ROWS):
        "\n".join([line(row) for row in rows[start : start + BATCH_ROWS]]).encode()
    return time.process_time() - started


async def sink_lines(measurement: str, rows: Sequence[Row]) -> float:
    """The same through the sink and the client."""
    sink = NullSink()
    started = time.process_time()
    for start in range(0, len(rows), BATCH_ROWS):
        settled = await sink.write({measurement: rows[start : start + BATCH_ROWS]})
        assert not settled.rejected
    spent_s = time.process_time() - started
    assert sink.sent_bytes > len(rows) * 50
    await sink.close()
    return spent_s


def bare_commits(folder: Path, rows: Sequence[Row]) -> float:
    """Seconds until the rows are in a file that is fsynced after each batch."""
    with (folder / "bare").open("wb") as file:
        started = time.perf_counter()
        for start in range(0, len(rows), COMMIT_ROWS):
            file.write(orjson.dumps(list(map(tuple, rows[start : start + COMMIT_ROWS]))))
            file.flush()
            os.fsync(file.fileno())
        return time.perf_counter() - started


async def outbox_commits(folder: Path, rows: Sequence[Row]) -> float:
    """Seconds until the rows are in an outbox, one append after the other."""
    outbox = await Outbox.open(folder / "outbox.db", 2**30)
    started = time.perf_counter()
    for start in range(0, len(rows), COMMIT_ROWS):
        await outbox.append({"mark_price": rows[start : start + COMMIT_ROWS]})
    spent_s = time.perf_counter() - started
    await outbox.close()
    return spent_s


def best_rates(
    rows: int, bare: Callable[[], float], ours: Callable[[], float]
) -> tuple[float, float]:
    """Rows a second, each the best of several rounds, in turn: the machine changes under both."""
    rounds = [(bare(), ours()) for _ in range(ROUNDS)]
    return rows / min(b for b, _ in rounds), rows / min(o for _, o in rounds)


def main() -> None:
    """Print the rates and their ratios."""
    cases: list[tuple[str, Sequence[Row], Callable[..., str]]] = [
        ("mark_price", marks(ROWS), bare_mark),
        ("ohlcv_3m", candles(ROWS), bare_candle),
    ]
    for name, rows, line in cases:
        bare, ours = best_rates(
            len(rows),
            partial(bare_lines, rows, line),
            lambda name=name, rows=rows: asyncio.run(sink_lines(name, rows)),  # type: ignore[misc]
        )
        goal = f"  (goal: {GOAL_POINTS:,})" if name == "mark_price" else ""
        print(f"{name:10} bare f-strings  {bare:>10,.0f} points/core-s")
        print(f"{name:10} to no InfluxDB  {ours:>10,.0f} points/core-s{goal}")
        print(f"ratio                      {ours / bare:>10.2f}")
    rows = marks(COMMITS * COMMIT_ROWS)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        bare, ours = best_rates(
            len(rows),
            partial(bare_commits, Path(folder), rows),
            lambda: asyncio.run(outbox_commits(Path(folder), rows)),
        )
    print(f"bare file, fsynced         {bare:>10,.0f} rows/s, {COMMIT_ROWS} a commit")
    print(
        f"outbox                     {ours:>10,.0f} rows/s, {COMMIT_ROWS} a commit"
        f"  (goal: {GOAL_OUTBOX_ROWS:,})"
    )
    print(f"ratio                      {ours / bare:>10.2f}")
    print_catch_up()


def print_catch_up() -> None:
    """After an outage, with a real server: how many times faster than life."""
    program = find_influxd()
    if program is None:
        print("catching up: left out, no influxd on this machine")
        return
    plan = Plan(BACKLOG_ROWS)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        figures = asyncio.run(run("outage", plan, program, Path(folder)))
    ratio = figures.caught_up_rows_per_s / plan.rows_per_s
    print(f"life                       {plan.rows_per_s:>10,} rows/s")
    print(f"catching up, to InfluxDB   {figures.caught_up_rows_per_s:>10,.0f} rows/s meanwhile")
    print(f"ratio                      {ratio:>10.1f}  (goal: {GOAL_CATCH_UP})")


if __name__ == "__main__":
    main()
