"""Waiting for an effect: poll a condition until a deadline, never sleep and hope."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.standstill import TIME

T = TypeVar("T")

POLL_S = 0.01


async def eventually(
    condition: Callable[[], T | Awaitable[T]], timeout_s: float = 5.0, what: str = "the condition"
) -> T:
    """Return the first truthy answer of `condition` (plain or async); fail after `timeout_s`."""
    deadline = TIME.monotonic() + timeout_s
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value:
            return value
        if TIME.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s} s (last answer: {value!r})")
        await asyncio.sleep(POLL_S)


def eventually_sync(
    condition: Callable[[], T], timeout_s: float = 5.0, what: str = "the condition"
) -> T:
    """Return the first truthy answer of `condition`; fail after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s} s (last answer: {value!r})")
        time.sleep(POLL_S)
