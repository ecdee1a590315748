"""Several programs as one: started together, started again when they die, stopped together.

What keeps dying is started again with growing delays; one that says that its configuration is wrong
ends them all. They are stopped in the order given. Each is tied to the launcher (`ingest.tied`): if
that is killed, they end as well, all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from ingest.backoff import Backoff
from ingest.clock import Clock
from marketdata.errors import ServiceUnavailable

log = structlog.get_logger()

STOP_S = 15.0
HEALTHY_S = 30.0
"""A part that has run this long before it died is started again at once."""
HOPELESS = 2
"""Exit code of a part whose configuration is wrong: starting it again can't help."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process: its name, its command, and where its log goes."""

    name: str
    command: Sequence[str]
    log_path: Path


class Launcher:
    """Runs parts until it is stopped.

    `restarts` counts them by part; `running` names those that are up.
    """

    def __init__(self, parts: Sequence[Part], clock: Clock) -> None:
        self.restarts = dict.fromkeys((part.name for part in parts), 0)
        self._parts = parts
        self._clock = clock
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    @property
    def running(self) -> list[str]:
        """The names of the parts that are up."""
        return [name for name, process in self._processes.items() if process.returncode is None]

    async def run(self) -> None:
        """Keep every part running until cancelled, then stop them in the order given.

        Raises
        ------
        ServiceUnavailable
            A part can't run with the configuration that it was given.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                for part in self._parts:
                    tasks.create_task(self._keep(part), name=f"launch.{part.name}")
        finally:
            await self._stop()

    async def _keep(self, part: Part) -> None:
        backoff = Backoff(base_s=0.5, cap_s=30.0)
        while True:
            started_ms = self._clock.now_ms()
            process = self._processes[part.name] = await self._start(part)
            code = await process.wait()
            if code == HOPELESS:
                raise ServiceUnavailable(
                    f"{part.name} can't run as configured (exit code {code}); "
                    f"{part.log_path} says why; the other parts are stopped"
                )
            if self._clock.now_ms() - started_ms > HEALTHY_S * 1000:
                backoff.reset()
            delay_s = backoff.next_s()
            self.restarts[part.name] += 1
            log.error("part_died", part=part.name, code=code, next_try_s=round(delay_s, 1))
            await self._clock.sleep(delay_s)

    async def _start(self, part: Part) -> asyncio.subprocess.Process:
        part.log_path.parent.mkdir(parents=True, exist_ok=True)
        with part.log_path.open("ab") as output:
            # A session of its own: Ctrl-C reaches the launcher, which stops the parts in order.
            return await asyncio.create_subprocess_exec(
                *command_of("ingest.tied", str(os.getpid())),
                *part.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    async def _stop(self) -> None:
        for part in self._parts:
            process = self._processes.get(part.name)
            if process is None or process.returncode is not None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                log.error("part_killed", part=part.name, waited_s=STOP_S)
                process.kill()
                await process.wait()


def command_of(program: str, *arguments: str) -> list[str]:
    """The command line of one of our programs, run by this interpreter.

    >>> command_of("ingest", "run")[1:]
    ['-m', 'ingest', 'run']
    """
    return [sys.executable, "-m", program, *arguments]
