"""A year of one pair out of InfluxDB, and 200 candles out of the process's cache.

The year is read three ways from the same server in the same run: by `get_history`; by the bare
recipe (chunked InfluxQL CSV into Arrow, which checks nothing and hands out no frame of ours); and
by influxdb-client's `query_data_frame` on a lean Flux query.

Run: `python -m tests.bench.bench_readers`
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import urllib3
from influxdb_client.client.influxdb_client import InfluxDBClient
from pyarrow import csv

from ingest.setup_influx import shard_s
from ingest.sinks.influx import InfluxSink
from marketdata.schema import CANDLE_MS, Ohlcv
from readers import MarketData
from readers.frames import OHLCV
from tests.servers.influx import ORG, TOKEN, InfluxServer, find_influxd

EXCHANGE, PAIR = "BINANCE_FUTURES", "BTC/USDT:USDT"
ROWS = 175_200
START_MS = 1_735_689_600_000 // CANDLE_MS * CANDLE_MS
END_MS = START_MS + ROWS * CANDLE_MS
ROUNDS = 10
CACHED_READS = 2_000
GOAL_CLIENT, GOAL_BARE, GOAL_CACHED_MS = 8.0, 0.8, 0.2


def year() -> list[Ohlcv]:
    """A random walk: as hard to compress as prices are."""
    walk = 60_000 + np.cumsum(np.random.default_rng(1).normal(0, 10, ROWS + 1)).round(1)
    rows = []
    for n, (open_, close) in enumerate(zip(walk[:-1].tolist(), walk[1:].tolist(), strict=True)):
        high, low = max(open_, close) + 3.3, min(open_, close) - 2.7
        rows.append(
            Ohlcv(
                EXCHANGE,
                PAIR,
                START_MS + n * CANDLE_MS,
                open_,
                round(high, 1),
                round(low, 1),
                close,
                round(12.345 + n % 97 / 8, 3),
                round(740_000.5 + n % 89, 2),
                1_000 + n % 83,
                "stream",
                0,
            )
        )
    return rows


def bare(url: str, bucket: str) -> int:
    """The fastest way that is known, without any check."""
    answer = urllib3.request(
        "GET",
        f"{url}/query",
        fields={
            "db": bucket,
            "q": f"SELECT {','.join(OHLCV)} FROM ohlcv_3m WHERE exchange = $e AND symbol = $s "
            f"AND time >= {START_MS}ms AND time < {END_MS}ms",
            "params": f'{{"e": "{EXCHANGE}", "s": "{PAIR}"}}',
            "epoch": "ms",
            "chunked": "true",
            "chunk_size": "10000",
        },
        headers={
            "Authorization": f"Token {TOKEN}",
            "Accept": "application/csv",
            "Accept-Encoding": "identity",
        },
    )
    types = {"time": pa.int64(), **dict.fromkeys(OHLCV, pa.float64())}
    options = csv.ConvertOptions(column_types=types, include_columns=list(types))
    return int(csv.read_csv(pa.BufferReader(answer.data), convert_options=options).num_rows)


def by_client(client: InfluxDBClient, bucket: str) -> int:
    frame = client.query_api().query_data_frame(
        f'from(bucket: "{bucket}") |> range(start: {START_MS // 1000}, stop: {END_MS // 1000})'
        ' |> filter(fn: (r) => r._measurement == "ohlcv_3m")'
        f' |> filter(fn: (r) => r.exchange == "{EXCHANGE}" and r.symbol == "{PAIR}")'
        ' |> filter(fn: (r) => r._field == "open" or r._field == "high" or r._field == "low"'
        ' or r._field == "close" or r._field == "volume")'
        ' |> pivot(rowKey: ["_time"], columnKey: ["_field"], valueColumn: "_value")'
        ' |> keep(columns: ["_time", "open", "high", "low", "close", "volume"])'
    )
    return len(frame)


def rates(*reads: Callable[[], int]) -> list[float]:
    """Rows a second of each, in its best round.

    In turns, to and fro: noise meets all of them, and what one leaves to the server to clean up.
    """
    best = dict.fromkeys(reads, float("inf"))
    for turn in range(ROUNDS):
        for read in reads[:: -1 if turn % 2 else 1]:
            started = time.perf_counter()
            assert read() == ROWS
            best[read] = min(best[read], time.perf_counter() - started)
    return [ROWS / seconds for seconds in best.values()]


def read_year(server: InfluxServer) -> None:
    """Print the three rates and their ratios, for a bucket as `ingest setup` makes it."""
    bucket = server.new_bucket(shard_s=shard_s(retention_s=0))

    async def write() -> None:
        sink = InfluxSink(server.url, ORG, bucket, TOKEN)
        await sink.write({"ohlcv_3m": year()})
        await sink.close()

    asyncio.run(write())
    store = {
        "kind": "influxdb", "url": server.url, "org": ORG, "bucket": bucket, "token": TOKEN,
    }  # fmt: skip
    with (
        MarketData(store=store, exchange=EXCHANGE) as data,
        InfluxDBClient(server.url, TOKEN, org=ORG, timeout=60_000) as client,
    ):
        ours, limit, theirs = rates(
            lambda: len(data.get_history(PAIR, "3m", START_MS, END_MS)),
            lambda: bare(server.url, bucket),
            lambda: by_client(client, bucket),
        )
        print(f"query_data_frame    {theirs:>12,.0f} rows/s")
        print(f"the bare recipe     {limit:>12,.0f} rows/s")
        print(f"get_history         {ours:>12,.0f} rows/s")
        print(f"to query_data_frame {ours / theirs:>12.1f}  (goal: at least {GOAL_CLIENT})")
        print(f"to the bare recipe  {ours / limit:>12.2f}  (goal: at least {GOAL_BARE})")
        print_cached(data)


def print_cached(data: MarketData) -> None:
    """Print how long 200 candles take out of the process's cache."""
    seconds = []
    for _ in range(CACHED_READS):
        started = time.perf_counter()
        data.get_ohlcv(PAIR, "3m", 200, max_age=None)
        seconds.append(time.perf_counter() - started)
    median_ms = statistics.median(seconds) * 1000
    print(f"get_ohlcv, cached   {median_ms:>12.3f} ms  (goal: below {GOAL_CACHED_MS})")


def main() -> None:
    """Start a server, fill it, read."""
    program = find_influxd()
    if program is None:
        print("readers: no influxd on this machine, left out (`make influxd` builds one)")
        return
    with tempfile.TemporaryDirectory() as folder:
        server = InfluxServer(program, Path(folder))
        server.start()
        try:
            read_year(server)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
