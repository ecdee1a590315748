"""`ingest run` that notes when the outbox has committed the probes of `flood`.

Run: `python -m tests.bench.probed_service CONFIG NOTES`; on SIGTERM it writes `[[trades, s], …]`.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import orjson

from ingest.cli import main
from ingest.outbox import Outbox
from marketdata.schema import Batch, Ohlcv

notes: list[tuple[int, float]] = []
_append = Outbox.append


async def append(outbox: Outbox, batch: Batch) -> None:
    await _append(outbox, batch)
    committed_s = time.time()
    for row in batch.get("ohlcv_1m", ()):
        if isinstance(row, Ohlcv) and row.trades is not None and row.trades > 1_000:
            notes.append((row.trades, committed_s))


if __name__ == "__main__":
    Outbox.append = append  # type: ignore[method-assign, assignment]
    try:
        main(["run", "--config", sys.argv[1]])
    finally:
        Path(sys.argv[2]).write_bytes(orjson.dumps(notes))
