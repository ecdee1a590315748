"""What a test leaves behind: tasks, threads and file descriptors that were not there before."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from pathlib import Path

from tests.waiting import eventually, eventually_sync

SETTLE_S = 10.0
"""How long what has been closed may take to be gone."""

_FOR_THE_PROCESS = ("_run_safe_shutdown_loop", "pydantic", "asyncio_")
"""Threads that libraries start once and keep (the first is pycares')."""

_FOLDER = Path("/proc/self/fd")


def open_files() -> dict[int, str]:
    """Sockets, pipes, event queues and files, by descriptor; nothing where there's no /proc."""
    found = {}
    if _FOLDER.exists():
        for entry in os.listdir(_FOLDER):
            with contextlib.suppress(OSError):
                target = os.readlink(_FOLDER / entry)
                if not target.startswith(("/dev/", "/proc/")):
                    found[int(entry)] = target
    return found


class ProcessLeaks:
    """Threads and descriptors that appeared since this object was made."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._files = open_files()

    def _new_threads(self) -> list[str]:
        return [
            thread.name
            for thread in threading.enumerate()
            if thread not in self._threads
            and not any(name in thread.name for name in _FOR_THE_PROCESS)
        ]

    def _new_files(self) -> list[str]:
        return [
            target for number, target in open_files().items() if self._files.get(number) != target
        ]

    def find(self, settle_s: float = SETTLE_S) -> list[str]:
        """Descriptions of what is left after `settle_s`; empty as soon as all is gone."""

        def all_gone() -> bool:
            if not self._new_threads() and not self._new_files():
                return True
            gc.collect()
            return not self._new_threads() and not self._new_files()

        with contextlib.suppress(AssertionError):
            eventually_sync(all_gone, settle_s)
        return [f"thread {name}" for name in self._new_threads()] + [
            f"descriptor {target}" for target in self._new_files()
        ]


class TaskLeaks:
    """Tasks of the running loop that appeared since this object was made."""

    def __init__(self) -> None:
        self._tasks = asyncio.all_tasks()

    def _new(self) -> list[asyncio.Task[object]]:
        here = asyncio.current_task()
        return [t for t in asyncio.all_tasks() if t not in self._tasks and t is not here]

    async def find(self, settle_s: float = SETTLE_S) -> list[str]:
        """Descriptions of what still runs after `settle_s`; empty as soon as nothing does."""
        with contextlib.suppress(AssertionError):
            await eventually(lambda: not self._new(), settle_s)
        return [f"task {task.get_name()} ({task.get_coro()!r})" for task in self._new()]
