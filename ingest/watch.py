"""A running service's state, seen from another process through its monitor."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import aiohttp
import orjson
from rich.console import Console, RenderableType
from rich.live import Live

from ingest.display import status_line, status_view
from marketdata.errors import ServiceUnavailable

PERIOD_S = 1.0


async def fetch_status(url: str, timeout_s: float) -> dict[str, Any]:
    """The `/status` of the service whose monitor is at `url`.

    Raises
    ------
    ServiceUnavailable
        Nobody answers there.
    """
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/status") as answer,
        ):
            answer.raise_for_status()
            state: dict[str, Any] = orjson.loads(await answer.read())
            return state
    except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError) as error:
        raise ServiceUnavailable(
            f"no service answers at {url}/status ({type(error).__name__}); "
            "start one with `ingest run`, or set `monitor` to where it runs"
        ) from error


def watch_status(url: str, console: Console) -> None:
    """Show the state live until Ctrl-C; an absent service is shown as such and waited for."""

    async def watch() -> None:
        with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
            while True:
                live.update(await status_or_reason(url), refresh=True)
                await asyncio.sleep(PERIOD_S)

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(watch())


async def status_or_reason(url: str) -> RenderableType:
    """The state as a view, or why there is none."""
    try:
        return status_view(await fetch_status(url, timeout_s=PERIOD_S))
    except ServiceUnavailable as error:
        return str(error)


async def line_or_reason(url: str) -> str:
    """The state in one line, or why there is none."""
    try:
        return status_line(await fetch_status(url, timeout_s=PERIOD_S))
    except ServiceUnavailable as error:
        return str(error)
