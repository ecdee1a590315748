"""`ingest launch`: the service, the HTTP API and, for the demo, the simulator as one.

Each is a process of its own, as in production; the service is stopped first, so that it drains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ingest.clock import Clock
from ingest.demo import prepare_demo
from ingest.processes import Launcher, Part, command_of
from ingest.watch import line_or_reason, status_or_reason
from marketdata.config import load_config

VIEW_PERIOD_S = 1.0
LINE_PERIOD_S = 5.0
"""How often the state is shown where there is no terminal."""


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
        prepared = prepare_demo(folder, clock.now_ms())
        config_path, extra, notes = prepared.config_path, prepared.parts, prepared.notes
    settings = load_config(config_path)
    config = str(settings.source)
    parts = [
        Part("service", command_of("ingest", "run", "--config", config), folder / "service.log"),
        Part("api", command_of("readers", "serve", "--config", config), folder / "api.log"),
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
