"""CPU and memory of the whole service at 164 pairs, on SQLite, with every channel.

Simulator and service are processes of their own, as in production. The figures are the operating
system's: CPU time over wall time from the moment when history is complete, and resident memory.

Run: `python -m tests.bench.bench_service`
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

from ingest.demo import prepare_demo
from ingest.processes import command_of

SECONDS = 60.0
GOAL_CPU = 0.15
GOAL_MIB = 200.0
READY_S = 90.0


def status(port: int) -> dict[str, object] | None:
    """The service's state; None while it doesn't answer."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=2) as answer:
            found: dict[str, object] = json.load(answer)
            return found
    except OSError:
        return None


def is_complete(state: dict[str, object] | None) -> bool:
    """Whether everything is live and no minute is missing."""
    if state is None or state["state"] not in ("live", "quiet"):
        return False
    gaps, minutes = state["gaps"], state["minutes"]
    assert isinstance(gaps, dict)
    assert isinstance(minutes, dict)
    return bool(gaps["open"] == 0 and minutes["repaired"] > 0)


def cpu_s(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Start both, wait for history, measure, stop both."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        demo = prepare_demo(folder, int(time.time() * 1000))
        port = yaml.safe_load(demo.config_path.read_text("utf-8"))["monitor"]["port"]
        commands = [part.command for part in demo.parts]
        commands.append(command_of("ingest", "run", "--config", str(demo.config_path)))
        with (folder / "log").open("wb") as log:
            processes = [subprocess.Popen(c, stdout=log, stderr=log) for c in commands]
            try:
                measure(processes[-1], port)
            finally:
                for process in reversed(processes):
                    process.terminate()
                    process.wait()


def measure(service: subprocess.Popen[bytes], port: int) -> None:
    """Print what the running service costs."""
    deadline = time.monotonic() + READY_S
    while not is_complete(status(port)):
        if time.monotonic() > deadline:
            raise SystemExit(f"the service isn't complete after {READY_S:g} s")
        time.sleep(0.5)
    started, used = time.monotonic(), cpu_s(service.pid)
    most_mib = 0.0
    while time.monotonic() - started < SECONDS:
        time.sleep(1.0)
        most_mib = max(most_mib, rss_mib(service.pid))
    share = (cpu_s(service.pid) - used) / (time.monotonic() - started)
    print(f"service at 164 pairs: {share:.1%} of a core (goal: at most {GOAL_CPU:.0%})")
    print(f"service at 164 pairs: {most_mib:.0f} MiB resident (goal: at most {GOAL_MIB:.0f})")


if __name__ == "__main__":
    main()
