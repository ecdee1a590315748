"""The service's watch over itself, and what it tells its supervisor (systemd's sd_notify).

The supervisor's watchdog isn't fed by a timer but by progress: only while every duty that has
something to do moves on. What comes from outside is no reason to be restarted, since a restart
couldn't help: an exchange or a store that is away, a full disk, a market without trades.

| duty | has something to do | moves with | may rest for |
|---|---|---|---|
| `pipeline` | always | a commit (at least one a second), or a try that the disk refuses | 30 s |
| `fold` | while connections bring data | an event, or a message that is counted as dropped | 60 s |
| `deliver` | rows wait for a live store, or a write is under way | a write begins or ends | 600 s |
| `connect.<exchange>` | no connection is up, and one may be tried | a handshake begins | 1 h |

The loop itself is a duty too: while it hangs, nobody feeds.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ingest.sinks.base import Settled, Sink
from marketdata.schema import Batch

LOOK_S = 5.0
"""How often it looks where no supervisor names a time."""
LOOKS = 3
"""How often within the time that a supervisor names."""
FLOWING_MS = 30_000
"""Connections bring data if the newest is younger."""


class Duty(NamedTuple):
    """Something that has to go on while it is `busy`; `turns` is another number when it has."""

    name: str
    busy: bool
    turns: int
    limit_ms: int


class Still(NamedTuple):
    """A duty that has not gone on for so long."""

    name: str
    still_ms: int

    @property
    def text(self) -> str:
        return f"{self.name}: no progress for {self.still_ms // 1000} s"


class Progress:
    """Which duties have stood still for too long. Pure: times are those of a monotonic clock.

    Parameters
    ----------
    gap_ms
        What passes between two looks counts for at most this: while the loop, or the host, was held
        for longer, nothing could have gone on.

    >>> progress = Progress(gap_ms=20_000)
    >>> for now_ms in (0, 20_000, 999_000):
    ...     print([still.text for still in progress.look([Duty("fold", True, 7, 30_000)], now_ms)])
    []
    []
    ['fold: no progress for 40 s']
    >>> progress.look([Duty("fold", True, 8, 30_000)], now_ms=999_500)
    []
    """

    def __init__(self, gap_ms: int) -> None:
        self._gap_ms = gap_ms
        self._looked_ms: int | None = None
        self._stood: dict[str, tuple[int, int]] = {}

    def look(self, duties: Iterable[Duty], now_ms: int) -> list[Still]:
        """What stands still."""
        looked_ms, self._looked_ms = self._looked_ms, now_ms
        passed_ms = 0 if looked_ms is None else min(now_ms - looked_ms, self._gap_ms)
        still = []
        for duty in duties:
            turns, stood_ms = self._stood.get(duty.name, (duty.turns, 0))
            stood_ms = stood_ms + passed_ms if duty.busy and turns == duty.turns else 0
            self._stood[duty.name] = duty.turns, stood_ms
            if stood_ms > duty.limit_ms:
                still.append(Still(duty.name, stood_ms))
        return still


class Facts(NamedTuple):
    """What one look at the service shows; the counters only have to differ when they move on.

    `handshakes` has, by exchange, how many were started and whether another one may start now.
    """

    status: Mapping[str, Any]
    commits: int
    events: int
    writes: int
    writing: bool
    handshakes: Mapping[str, tuple[int, bool]]


def duties(facts: Facts) -> Iterator[Duty]:
    """The service's duties, as the module's table has them."""
    status = facts.status
    exchanges = status["exchanges"]
    brought_ms = [
        lane["last_data_ms"] or 0
        for exchange in exchanges.values()
        for lane in exchange["connections"]
    ]
    flowing = status["now_ms"] - max(brought_ms, default=0) < FLOWING_MS
    taken = facts.events + sum(status["dropped"].values())
    waiting = status["outbox"]["rows"] > 0 and status["store"]["state"] == "live"
    yield Duty("pipeline", True, facts.commits, 30_000)
    yield Duty("fold", flowing, taken, 60_000)
    yield Duty("deliver", waiting or facts.writing, facts.writes, 600_000)
    for name, (started, may_start) in facts.handshakes.items():
        lanes = exchanges.get(name, {"connections": []})["connections"]
        down = bool(lanes) and all(lane["state"] == "disconnected" for lane in lanes)
        yield Duty(f"connect.{name}", down and may_start, started, 3_600_000)


class CountedSink:
    """A sink that counts its writes, so that one that hangs can be seen: `turns`, `writing`."""

    def __init__(self, sink: Sink) -> None:
        self.name = sink.name
        self.turns = 0
        self.writing = False
        self._sink = sink

    async def write(self, batch: Batch) -> Settled:
        self.turns += 1
        self.writing = True
        try:
            return await self._sink.write(batch)
        finally:
            self.turns += 1
            self.writing = False

    async def close(self) -> None:
        await self._sink.close()


class Notifier:
    """Tells the supervisor what the service is doing; without one, nothing.

    Parameters
    ----------
    address
        A socket's path, or an abstract name behind `@`; None: nobody listens.
    watchdog_s
        Within this time the supervisor wants to be told `alive`; None: it doesn't.
    """

    def __init__(self, address: str | None = None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Notifier:
        """The one that NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID describe.

        >>> Notifier.from_environ({"WATCHDOG_USEC": "60000000"}).look_s
        20.0
        >>> Notifier.from_environ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}).look_s
        5.0
        """
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        wanted = environ.get("WATCHDOG_USEC", "")
        watchdog_s = int(wanted) / 1e6 if mine and wanted.isdecimal() and int(wanted) else None
        return cls(environ.get("NOTIFY_SOCKET"), watchdog_s)

    @property
    def look_s(self) -> float:
        """How often the service has to be looked at, in seconds of the world."""
        return LOOK_S if self._watchdog_s is None else self._watchdog_s / LOOKS

    def ready(self) -> None:
        """Everything is at work."""
        self._send("READY=1")

    def reloading(self, monotonic_ns: int) -> None:
        """The configuration is read anew; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns // 1000}")

    def stopping(self) -> None:
        """It is about to end."""
        self._send("STOPPING=1\nSTATUS=draining")

    def alive(self, status: str) -> None:
        """All goes on; one line for people says how."""
        self._send(f"WATCHDOG=1\nSTATUS={status}")

    def stuck(self, why: str) -> None:
        """Something doesn't go on: the watchdog gets nothing."""
        self._send(f"STATUS=stuck: {why}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as opened:
            opened.setblocking(False)
            try:
                opened.sendto(message.encode(), address)
            except OSError:
                # A supervisor that doesn't listen draws its own conclusions.
                return
