"""`ingest launch`: the service, the HTTP API and, for the demo, the simulator as one.

Each part is a process of its own, as in production; what dies is started again, with growing delays
when it keeps dying. Ctrl-C or SIGTERM stops them all, the service first, so that it drains.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ingest.backoff import Backoff
from ingest.clock import Clock
from ingest.watch import line_or_reason, status_or_reason
from marketdata.config import load_config
from marketdata.errors import ServiceUnavailable

log = structlog.get_logger()

STOP_S = 15.0
VIEW_PERIOD_S = 1.0
LINE_PERIOD_S = 5.0
"""How often the state is shown where there is no terminal."""
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
    environ: Mapping[str, str]


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
                *part.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | part.environ,
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


async def launch_all(
    stop: asyncio.Event, config_path: Path | None, folder: Path, *, demo: bool, console: Console
) -> None:
    """Run the service, the API and, for a demo, the simulator, until `stop` is set.

    On a terminal the service's state is shown live; elsewhere only what runs where.
    """
    clock = Clock()
    notes: Sequence[str] = ()
    extra: Sequence[Part] = ()
    if demo:
        from ingest.demo import prepare_demo

        prepared = prepare_demo(folder, clock.now_ms())
        config_path, extra, notes = prepared.config_path, prepared.parts, prepared.notes
    settings = load_config(config_path)
    config = str(settings.source)
    parts = [
        Part("service", command_of("ingest", "run", "--config", config), folder / "service.log", {}),
        Part("api", command_of("readers", "serve", "--config", config), folder / "api.log", {}),
        *extra,
    ]
    launcher = Launcher(parts, clock)
    url = f"http://{settings.monitor.host}:{settings.monitor.port}"
    lines = [
        f"HTTP API at http://{settings.api.host}:{settings.api.port}/ , metrics at {url}/metrics",
        *notes,
        f"in another shell: .venv/bin/readers ohlcv BTC/USDT:USDT --config {config}",
        f"logs in {folder}; Ctrl-C stops everything",
    ]
    console.print(*lines, sep="\n", soft_wrap=True)
    running = asyncio.create_task(launcher.run(), name="launch")
    showing = asyncio.create_task(_show(launcher, url, lines, console), name="launch.view")
    stopping = asyncio.create_task(stop.wait(), name="launch.stop")
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (showing, stopping, running):
            task.cancel()
        await asyncio.gather(showing, stopping, running, return_exceptions=True)
        console.print("everything is stopped")
    if not running.cancelled():
        running.result()


async def _show(launcher: Launcher, url: str, lines: Sequence[str], console: Console) -> None:
    if not console.is_terminal:
        while True:
            await asyncio.sleep(LINE_PERIOD_S)
            console.print(await line_or_reason(url), soft_wrap=True)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            view = await status_or_reason(url)
            restarts = {name: n for name, n in launcher.restarts.items() if n}
            parts = f"running: {', '.join(launcher.running)}"
            parts += f"   restarted: {restarts}" if restarts else ""
            live.update(Group(view, Text(parts), *map(Text, lines)), refresh=True)
            await asyncio.sleep(VIEW_PERIOD_S)
