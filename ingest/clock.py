"""The clock that is passed in wherever time matters: a test may run an hour in a minute."""

from __future__ import annotations

import asyncio
import time


class Clock:
    """Wall time in UTC milliseconds, optionally running faster than the world.

    `world_s` is the monotonic clock of the world that it goes by, in seconds.

    Parameters
    ----------
    speed
        Seconds of this clock per second of the world; sleeps and timeouts shrink accordingly.
    start_ms
        What the clock shows now; left out, the world's time.
    """

    world_s = staticmethod(time.monotonic)

    def __init__(self, speed: float = 1.0, start_ms: int | None = None) -> None:
        self.speed = speed
        self._world_start = self.world_s()
        # That of the host is asked each time: it is set now and then.
        self._is_hosts = speed == 1.0 and start_ms is None
        self._start_ms = time.time() * 1000 if start_ms is None else float(start_ms)

    def now_ms(self) -> int:
        """UTC milliseconds."""
        if self._is_hosts:
            return int(time.time() * 1000)
        return int(self._start_ms + (self.world_s() - self._world_start) * 1000 * self.speed)

    def monotonic_ms(self) -> int:
        """Milliseconds since some moment: it only runs forward, whoever sets the host's clock."""
        return int((self.world_s() - self._world_start) * 1000 * self.speed)

    async def sleep(self, seconds: float) -> None:
        """Sleep `seconds` of this clock."""
        await asyncio.sleep(max(0.0, seconds) / self.speed)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        """`asyncio.timeout` in seconds of this clock."""
        return asyncio.timeout(seconds / self.speed)
