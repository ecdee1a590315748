"""Time that stands still while the machine doesn't let a test's event loop run.

On a hurried clock two seconds in which a host has something better to do are a minute of the market
without data, and every deadline has passed. `LOOP_FACTORIES` are for pytest-asyncio: loops whose
sleeps and timeouts go by `TIME`, which leaves such moments out.
"""

from __future__ import annotations

import asyncio
import selectors
import threading
import time
from collections.abc import Callable

NOTICED_S = 0.05
"""Shorter ones count as time."""


class Time:
    """The world's monotonic clock, without the moments of standstill.

    While a loop runs, what its thread neither spent computing nor asked to wait was standstill;
    each reading looks, so that none is ever shown.

    >>> shown = Time()
    >>> shown.begin()
    >>> before_s = shown.monotonic()
    >>> time.sleep(0.2)
    >>> shown.monotonic() - before_s < 0.1
    True
    >>> shown.end()
    """

    def __init__(self) -> None:
        self._stood_s = 0.0
        self._thread: threading.Thread | None = None
        self._looked_s = 0.0
        self._computed_s = 0.0

    def monotonic(self) -> float:
        if self._thread is None:
            return time.monotonic() - self._stood_s
        if self._thread is threading.current_thread():
            self.look()
            return self._looked_s - self._stood_s
        # Another thread can't tell, and had better be late than show what is taken back.
        return min(time.monotonic(), self._looked_s + NOTICED_S) - self._stood_s

    def look(self, waited_s: float = 0.0) -> None:
        """Leave out what has passed since the last look, but for a wait and for computing."""
        now_s, computed_s = time.monotonic(), time.thread_time()
        lost_s = now_s - self._looked_s - (computed_s - self._computed_s) - waited_s
        if lost_s > NOTICED_S:
            self._stood_s += lost_s
        self._looked_s, self._computed_s = now_s, computed_s

    def begin(self) -> None:
        """A loop runs from now on, in this thread."""
        self._looked_s, self._computed_s = time.monotonic(), time.thread_time()
        self._thread = threading.current_thread()

    def end(self) -> None:
        """It runs no longer."""
        self._thread = None


TIME = Time()


class _Selector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        TIME.look()
        begun_s = time.monotonic()
        ready = super().select(timeout)
        took_s = time.monotonic() - begun_s
        TIME.look(waited_s=took_s if timeout is None else min(took_s, max(0.0, timeout)))
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector())

    def time(self) -> float:
        return TIME.monotonic()

    def run_forever(self) -> None:
        TIME.begin()
        try:
            super().run_forever()
        finally:
            TIME.end()


LOOP_FACTORIES: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"standstill": _Loop}
