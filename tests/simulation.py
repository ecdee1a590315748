"""What tests of the simulator share: recorded messages, their shapes, and ways to read frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

from ingest.simulator.market import AS_OF_MS
from ingest.simulator.server import Simulator

SAMPLES = json.loads((Path(__file__).with_name("exchange_samples.json")).read_text())
MINUTE_MS = 60_000
START_MS = AS_OF_MS + 50_000
"""Ten seconds before a minute ends: at sixty-fold speed, a sixth of a second."""

Json = dict[str, Any]


def shape(value: object) -> object:
    """Keys and JSON types of a message; a list's is that of its first element."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


async def receive(socket: ClientWebSocketResponse) -> Json:
    """The next frame."""
    message: Json = await socket.receive_json(timeout=5)
    return message


async def first_where(
    socket: ClientWebSocketResponse, wanted: Callable[[Json], object], most: int = 5_000
) -> Json:
    """The first of the next frames that is wanted."""
    for _ in range(most):
        message = await receive(socket)
        if wanted(message):
            return message
    raise AssertionError(f"not among {most} messages")


async def get(session: ClientSession, simulator: Simulator, path: str) -> Any:
    """The JSON of a REST answer."""
    async with session.get(f"{simulator.url}{path}") as response:
        return await response.json()
