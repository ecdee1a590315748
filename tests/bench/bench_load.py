"""Latency from socket to commit at 5,000 messages a second; memory and CPU at 20,000.

The service is a process of its own, on SQLite, with 200 pairs of Binance on real WebSockets.
Latency counts from the time at which a message was due to be sent (see `tests.bench.flood`), so it
holds what the sender was late, too, until the commit of its row in the outbox. The bare limit is a
program that does nothing but receive the same messages, and write and fsync the probes each 50 ms;
it is what the machine allowed in the same minute. Each is the best of three rounds.

Run: `python -m tests.bench.bench_load`
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from ingest.processes import command_of
from tests.bench.bench_service import cpu_s, rss_mib, status
from tests.bench.flood import IDS
from tests.servers.process import free_port

ROUNDS = 3
LATENCY_RATE, LATENCY_S = 5_000, 20.0
LOAD_RATE, LOAD_S = 20_000, 20.0
LINGER_S = 0.05
GOAL_P99_MS = 250.0
GOAL_MIB = 250.0
READY_S = 60.0
SETTLE_S = 2.0
"""After the last message is due: what isn't committed by then is lost."""


class Figures(NamedTuple):
    """Of one run: latencies in ms, share of a core, most memory, messages sent and dropped."""

    p50_ms: float
    p99_ms: float
    probes: int
    share: float
    mib: float
    sent: int
    dropped: dict[str, int]


@contextmanager
def flooding(rate: int, seconds: float) -> Iterator[int]:
    """The sender as a process; its port."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.flood", str(port), str(rate), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield port
        finally:
            process.kill()


def stats(port: int) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/fapi/v1/stats", timeout=5) as answer:
        told: dict[str, Any] = json.load(answer)
        return told


def write_config(folder: Path, port: int, monitor: int) -> Path:
    exchange = {
        "channels": ["candles", "funding", "mark_price"],
        "pairs": [f"{id.removesuffix('USDT')}/USDT:USDT" for id in IDS],
        "ws_url": f"ws://127.0.0.1:{port}",
        "rest_url": f"http://127.0.0.1:{port}",
    }
    config = {
        "monitor": {"port": monitor},
        "repair": {"lookback": "0s"},
        "exchanges": {"BINANCE_FUTURES": exchange},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    return path


def run_service(rate: int, seconds: float, *, probed: bool) -> Figures:
    """One round of the service."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, flooding(rate, seconds) as port:
        folder, monitor = Path(name), free_port()
        config, notes = write_config(folder, port, monitor), folder / "notes"
        command = command_of("ingest", "run", "--config", str(config))
        if probed:
            command = [sys.executable, "-m", "tests.bench.probed_service", str(config), str(notes)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                figures = observe(process.pid, port)
                dropped = dropped_by(monitor)
            finally:
                process.terminate()
                process.wait()
        told = stats(port)
        committed = orjson.loads(notes.read_bytes()) if probed else []
        p50_ms, p99_ms, probes = latencies(committed, told, rate)
        return figures._replace(
            p50_ms=p50_ms, p99_ms=p99_ms, probes=probes, sent=told["sent"], dropped=dropped
        )


def dropped_by(monitor: int) -> dict[str, int]:
    """What the service has dropped and counted."""
    deadline = time.monotonic() + READY_S
    while (state := status(monitor)) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"no status of the service within {READY_S:g} s")
    dropped = state["dropped"]
    assert isinstance(dropped, dict)
    return dropped


def observe(pid: int, port: int) -> Figures:
    """Watch a receiver until the last message was due."""
    deadline = time.monotonic() + READY_S
    while stats(port)["started_s"] is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"not all streams are asked for after {READY_S:g} s")
        time.sleep(0.2)
    started_s, used_s, most_mib = time.monotonic(), cpu_s(pid), 0.0
    while not stats(port)["done"]:
        time.sleep(0.5)
        most_mib = max(most_mib, rss_mib(pid))
    share = (cpu_s(pid) - used_s) / (time.monotonic() - started_s)
    time.sleep(SETTLE_S)
    return Figures(0.0, 0.0, 0, share, max(most_mib, rss_mib(pid)), 0, {})


def latencies(
    committed: Sequence[tuple[int, float]], told: dict[str, Any], rate: int
) -> tuple[float, float, int]:
    """Median and 99th percentile in ms, and of how many probes."""
    spent = [at_s - (told["started_s"] + number / rate) for number, at_s in committed]
    if len(spent) < 100:
        return 0.0, 0.0, len(spent)
    hundredths = statistics.quantiles(spent, n=100)
    return hundredths[49] * 1000, hundredths[98] * 1000, len(spent)


def run_bare(rate: int, seconds: float) -> Figures:
    """One round of a program that only receives, and fsyncs the probes."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, flooding(rate, seconds) as port:
        notes = Path(name) / "notes"
        command = [sys.executable, "-m", "tests.bench.bench_load", str(port), str(notes)]
        process = subprocess.Popen(command)
        try:
            figures = observe(process.pid, port)
        finally:
            process.terminate()
            process.wait()
        told = stats(port)
        committed = [orjson.loads(line) for line in notes.read_bytes().splitlines()]
        p50_ms, p99_ms, probes = latencies(committed, told, rate)
        return figures._replace(p50_ms=p50_ms, p99_ms=p99_ms, probes=probes, sent=told["sent"])


async def receive(port: int, notes: Path) -> None:
    """What `run_bare` measures."""
    arrived: list[int] = []

    async def read(streams: Sequence[str]) -> None:
        url = f"ws://127.0.0.1:{port}/market/stream?streams={'/'.join(streams)}"
        async with connect(url, compression=None) as socket:
            while True:
                message = await socket.recv(decode=False)
                if b'"x":true' in message:
                    arrived.append(int(message.partition(b'"n":')[2].partition(b",")[0]))

    streams = [f"{id.lower()}@{kind}" for id in IDS for kind in ("kline_1m", "markPrice@1s")]
    readers = [asyncio.create_task(read(streams[n : n + 200])) for n in range(0, len(streams), 200)]
    with notes.open("wb") as file:
        while not any(reader.done() for reader in readers):
            await asyncio.sleep(LINGER_S)
            some, arrived[:] = [number for number in arrived if number > 1_000], []
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
            now_s = time.time()
            file.writelines(orjson.dumps((number, now_s)) + b"\n" for number in some)
    with suppress(ConnectionClosed):
        await asyncio.gather(*readers)


def main() -> None:
    """Print the figures."""
    ours = min((run_service(LATENCY_RATE, LATENCY_S, probed=True) for _ in range(ROUNDS)), key=p99)
    bare = min((run_bare(LATENCY_RATE, LATENCY_S) for _ in range(ROUNDS)), key=p99)
    print(f"due to committed row, {LATENCY_RATE:,} messages/s, {ours.probes:,} rows")
    print(f"  bare receiver  p50 {bare.p50_ms:>6.1f} ms  p99 {bare.p99_ms:>6.1f} ms")
    print(f"  service        p50 {ours.p50_ms:>6.1f} ms  p99 {ours.p99_ms:>6.1f} ms", end="")
    print(f"  (goal: p99 below {GOAL_P99_MS:g}); dropped: {ours.dropped or 'nothing'}")
    load = min((run_service(LOAD_RATE, LOAD_S, probed=False) for _ in range(ROUNDS)), key=share)
    limit = min((run_bare(LOAD_RATE, LOAD_S) for _ in range(ROUNDS)), key=share)
    print(f"at {LOAD_RATE:,} messages/s, {load.sent:,} of them")
    print(f"  bare receiver  {limit.share:>6.0%} of a core  {limit.mib:>5.0f} MiB")
    print(f"  service        {load.share:>6.0%} of a core  {load.mib:>5.0f} MiB", end="")
    print(f"  (goal: at most {GOAL_MIB:g} MiB); dropped: {load.dropped or 'nothing'}")


def p99(figures: Figures) -> float:
    return figures.p99_ms


def share(figures: Figures) -> float:
    return figures.share


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(receive(int(sys.argv[1]), Path(sys.argv[2])))
    else:
        main()
