"""Backfill of a year of one pair, against the time that the exchange's limits demand.

The bare limit is weight: all calls of the year over what the share allows in a minute. The venue is
a process of its own that costs next to nothing and counts weight as Binance does.

Run: `python -m tests.bench.bench_backfill`
"""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from rich.console import Console

from ingest.backfill_command import Wanted, run_backfill
from ingest.clock import Clock
from marketdata.config import parse_config
from tests.servers.process import free_port

DAY_MS = 86_400_000
DAYS = 365
SHARE = 0.5
WEIGHT_A_MINUTE = 2_400
GOAL = 1.2


def main() -> None:
    """Start the venue, fill a SQLite store, compare."""
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.light_venue", str(port)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as venue,
    ):
        try:
            assert venue.stdout is not None
            venue.stdout.readline()
            measure(Path(folder), f"http://127.0.0.1:{port}")
        finally:
            venue.terminate()


def measure(folder: Path, url: str) -> None:
    """Print how long the year took, and how long its weight takes at the least."""
    document = {
        "store": {"kind": "sqlite", "path": "market_data.db"},
        "outbox": {"path": "outbox.db"},
        "repair": {"weight_share": SHARE},
        "exchanges": {"BINANCE_FUTURES": {"pairs": ["BTC/USDT:USDT"], "rest_url": url}},
    }
    settings = parse_config(json.dumps(document), source="bench", folder=folder, environ={})
    clock = Clock()
    until_ms = clock.now_ms() // DAY_MS * DAY_MS
    wanted = Wanted(until_ms - DAYS * DAY_MS, until_ms)
    console = Console(file=io.StringIO())
    started = time.monotonic()
    asyncio.run(run_backfill(settings, wanted, clock, asyncio.Event(), console))
    took_s = time.monotonic() - started
    # 1,054 pages of minutes and 352 of mark candles at weight 2.
    least_s = (DAYS * 1440 / 499 + DAYS * 480 / 499) * 2 / (WEIGHT_A_MINUTE * SHARE) * 60
    with urllib.request.urlopen(f"{url}/fapi/v1/stats") as answer:  # noqa: S310
        most = json.load(answer)["most_weight"]
    print(f"a year of one pair: {took_s:.0f} s, the limits demand {least_s:.0f} s")
    print(f"ratio {took_s / least_s:.2f} (goal: at most {GOAL})")
    print(f"most weight in a minute: {most} of {WEIGHT_A_MINUTE * SHARE:.0f} allowed")


if __name__ == "__main__":
    main()
