"""`ingest run` in a process of its own, on the clock of whoever started it: made to be killed.

`python -m tests.service_process CONFIG SPEED START_MS WORLD_START_S`; it writes what it uses of the
machine into `samples` beside the configuration, one line a minute of that clock.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import ingest.connection
from ingest.cli import run_until_stopped
from ingest.clock import Clock
from ingest.logs import configure_logging
from ingest.service import Service
from marketdata.config import load_config

END_S = 30.0
MEMORY_S = 10.0
KERNEL_CPU_S = 1
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class SharedClock(Clock):
    """A clock that shows the same in every process of this host."""

    world_s = staticmethod(time.monotonic)  # whatever tests have made of that of others

    def __init__(self, speed: float, start_ms: float, world_start_s: float | None = None) -> None:
        super().__init__(speed, int(start_ms))
        if world_start_s is not None:
            self._world_start = world_start_s

    @property
    def arguments(self) -> list[str]:
        """What another process makes the same clock of."""
        return [repr(value) for value in (self.speed, self._start_ms, self._world_start)]


class ServiceProcess:
    """One service, started anew as often as it is ended; `codes` are its exit codes."""

    def __init__(self, config: Path, clock: SharedClock) -> None:
        self.codes: list[int] = []
        self._config = config
        self._log = config.with_name("service.log")
        self._clock = clock
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.service_process",
                str(self._config), *self._clock.arguments,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def log(self) -> str:
        """What it has written to its standard output and error."""
        return self._log.read_text("utf-8", errors="replace")

    async def end(self, how: str) -> int:
        """End it and return its exit code.

        `kill`, `term` and `int` are the signals. With `kernel` the kernel sends SIGKILL because of
        a limit that we set (RLIMIT_CPU), as it does when memory runs out. `memory` leaves it no
        address space; what that doesn't end within ten seconds the kernel is to kill, and what uses
        no processor any more either gets SIGKILL as from a watchdog: without memory for another
        thread Python's own end may wait for ever.
        """
        assert self._process is not None
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}.get(how)
        if self._process.returncode is None:
            if number is not None:
                self._process.send_signal(number)
            elif how == "memory":
                resource.prlimit(self.pid, resource.RLIMIT_AS, (2**20, 2**20))
                try:
                    async with asyncio.timeout(MEMORY_S):
                        await self._process.wait()
                except TimeoutError:
                    self._have_the_kernel_kill()
                with suppress(TimeoutError):
                    async with asyncio.timeout(MEMORY_S):
                        await self._process.wait()
                if self._process.returncode is None:
                    self._process.kill()
            else:
                self._have_the_kernel_kill()
        try:
            async with asyncio.timeout(END_S):
                code = await self._process.wait()
        except TimeoutError:
            self._process.send_signal(signal.SIGUSR1)
            await asyncio.sleep(1.0)
            raise AssertionError(f"{how}: not ended within {END_S:g} s\n{self.log()}") from None
        self.codes.append(code)
        return code

    def _have_the_kernel_kill(self) -> None:
        resource.prlimit(self.pid, resource.RLIMIT_CPU, (KERNEL_CPU_S, KERNEL_CPU_S))

    async def __aenter__(self) -> ServiceProcess:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


def main() -> None:
    path, speed, start_ms, world_start_s = sys.argv[1:]
    clock = SharedClock(float(speed), float(start_ms), float(world_start_s))
    # Handshakes take real time: on a busy machine, longer than ten seconds of a fast clock.
    ingest.connection.HANDSHAKE_S = 1_000.0
    configure_logging("info")
    faulthandler.register(signal.SIGUSR1)
    settings = load_config(Path(path))
    samples = Path(path).with_name("samples")

    async def work(stop: asyncio.Event) -> None:
        service = Service(settings, clock)
        sampling = asyncio.create_task(_sample(service, clock, samples))
        try:
            await service.run(stop)
        finally:
            sampling.cancel()

    run_until_stopped(work)


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * PAGE_BYTES / 1e6


async def _sample(service: Service, clock: Clock, path: Path) -> None:
    """Memory, descriptors, threads, tasks and what waits in each queue."""
    await service.started.wait()
    while True:
        books = service._pipeline.books.values()
        sample = {
            "time_ms": clock.now_ms(),
            "rss_mb": _rss_mb(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
            "tasks": len(asyncio.all_tasks()),
            "inbox": len(service._inbox),
            "outbox_rows": service._outbox.depth().rows,
            "publish": sum(len(p._candles) + len(p._markers) for p in service._publishers.values()),
            "minutes_in_books": sum(len(book.minutes) for book in books),
            "open_gaps": service.status()["gaps"]["open"],
        }
        with path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(sample) + "\n")
        await clock.sleep(60.0)


if __name__ == "__main__":
    main()
