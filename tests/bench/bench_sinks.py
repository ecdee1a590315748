"""Points through the InfluxDB sink to a server that costs nothing, and rows through the outbox.

The bare limit of the sink is one f-string a line, joined and encoded, without escaping, types or
absent fields. Ours is `InfluxSink.write` in batches of 5,000 with the HTTP request cut off behind
influxdb-client. The bare limit of the outbox is a file that is appended to and fsynced.

Run: `python -m tests.bench.bench_sinks`
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from ingest.outbox import Outbox
from ingest.sinks.influx import InfluxSink
from marketdata.schema import MarkPrice, Ohlcv, Row

PAIRS = 164
BATCH_ROWS = 5_000
ROWS = 50_000
ROUNDS = 5
COMMIT_ROWS = 100
COMMITS = 300
GOAL_POINTS = 400_000

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


def bare_points_per_s(rows: Sequence[Row], line: Callable[..., str]) -> float:
    best_s = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for start in range(0, len(rows), BATCH_ROWS):
            "\n".join([line(row) for row in rows[start : start + BATCH_ROWS]]).encode()
        best_s = min(best_s, time.process_time() - started)
    return len(rows) / best_s


async def sink_points_per_s(measurement: str, rows: Sequence[Row]) -> float:
    sink = NullSink()
    best_s = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        for start in range(0, len(rows), BATCH_ROWS):
            settled = await sink.write({measurement: rows[start : start + BATCH_ROWS]})
            assert not settled.rejected
        best_s = min(best_s, time.process_time() - started)
    assert sink.sent_bytes > ROUNDS * len(rows) * 50
    await sink.close()
    return len(rows) / best_s


def bare_commits(folder: Path, rows: Sequence[Row]) -> float:
    """Rows a second into a file that is fsynced after each batch."""
    with (folder / "bare").open("wb") as file:
        started = time.perf_counter()
        for start in range(0, len(rows), COMMIT_ROWS):
            file.write(orjson.dumps(list(map(tuple, rows[start : start + COMMIT_ROWS]))))
            file.flush()
            os.fsync(file.fileno())
        return len(rows) / (time.perf_counter() - started)


async def outbox_commits(folder: Path, rows: Sequence[Row]) -> float:
    """Rows a second into an outbox, one append after the other."""
    outbox = await Outbox.open(folder / "outbox.db", 2**30)
    started = time.perf_counter()
    for start in range(0, len(rows), COMMIT_ROWS):
        await outbox.append({"mark_price": rows[start : start + COMMIT_ROWS]})
    spent_s = time.perf_counter() - started
    assert outbox.depth().rows == len(rows)
    await outbox.close()
    return len(rows) / spent_s


def main() -> None:
    print("Points to a null InfluxDB, per core-second:")
    cases: list[tuple[str, Sequence[Row], Callable[..., str]]] = [
        ("mark_price", marks(ROWS), bare_mark),
        ("ohlcv_3m", candles(ROWS), bare_candle),
    ]
    for name, rows, line in cases:
        bare = bare_points_per_s(rows, line)
        ours = asyncio.run(sink_points_per_s(name, rows))
        goal = f" (goal {GOAL_POINTS:,})" if name == "mark_price" else ""
        print(f"  {name:10} {ours:9,.0f}{goal}, one bare f-string {bare:9,.0f}: {ours / bare:.2f}")
    rows = marks(COMMITS * COMMIT_ROWS)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        limit = bare_commits(Path(folder), rows)
        kept = asyncio.run(outbox_commits(Path(folder), rows))
    print(f"Rows to disk a second, {COMMIT_ROWS} a commit, each fsynced:")
    print(f"  outbox     {kept:9,.0f}, a bare file {limit:9,.0f}: {kept / limit:.2f}")


if __name__ == "__main__":
    main()
