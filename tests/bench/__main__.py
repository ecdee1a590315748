"""`make bench`: every benchmark, one after the other, on an otherwise idle machine."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime

from tests.bench import (
    bench_audit,
    bench_backfill,
    bench_feed,
    bench_load,
    bench_readers,
    bench_service,
    bench_sinks,
)


def main() -> None:
    """Say what this machine is, then measure."""
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}"
    )
    for bench in (
        bench_feed,
        bench_sinks,
        bench_readers,
        bench_service,
        bench_load,
        bench_audit,
        bench_backfill,
    ):
        print(f"\n{bench.__name__}")
        bench.main()


if __name__ == "__main__":
    main()
