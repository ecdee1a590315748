"""Keeping the connections to an exchange alive: one supervisor for each lane.

A supervisor opens its lane's connection, reads it, replaces it when it ends or stays silent, and
never gives up. However a connection ends, only the next attempt's time depends on it. A connection
that still delivers is rotated instead: the new one is opened beside it, and the old one is left
only when the new one brings what the lane must bring. So is one that may have died, or may have
nothing to deliver: whichever it was, nothing is lost. Both deliver meanwhile, so the same minute or
tick may come twice; candles are merged and ticks thinned by the exchange's time, so that changes
nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog

from ingest.backoff import Backoff, Gate, Uniform
from ingest.clock import Clock
from ingest.lanes import Lane, LaneStatus, change_order
from ingest.liveness import Doubt
from ingest.logs import OncePerOutage
from ingest.opening import End, LaneFeed, Leaving, Opening
from marketdata.schema import State

log = structlog.get_logger()

ROTATION_S = 15.0
"""How long a new connection may take to bring its data before the old one is kept."""
OVERLAP_S = 2.0
"""How long the old one is read on after that: its frames may have been longer on their way."""
CHANGE_S = 45.0
"""How long a changed lane is waited for before the next one is changed."""


class LaneSupervisor:
    """Owns one lane's connections and every task around them; `run` ends only by cancellation.

    Parameters
    ----------
    gate
        Shared by all lanes of the exchange.

    Attributes
    ----------
    lane
        What is to be carried; the connection in use may still carry what was before.
    delivering
        Set once the lane has delivered data.
    in_force
        Set while what is to be carried comes.
    """

    def __init__(
        self,
        feed: LaneFeed,
        lane: Lane,
        gate: Gate,
        clock: Clock,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.lane = lane
        self.delivering = asyncio.Event()
        self.in_force = asyncio.Event()
        self._feed = feed
        self._gate = gate
        self._clock = clock
        self._uniform = uniform
        self._backoff = Backoff(uniform=uniform)
        self._doubt = Doubt()
        self._news = asyncio.Event()
        self._current: Opening | None = None
        self._asked: str | None = None
        self._opened_ms: int | None = None
        self._last_data_ms: int | None = None
        self._reconnects = 0
        self._rotations = 0
        self._last_error: str | None = None
        self._outage = OncePerOutage(log)

    async def run(self) -> None:
        """Keep the lane open."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._pass_gate()
                opening = self._open(tasks)
                await self._take(opening)
                while opening.end is None:
                    opening = await self._stay(tasks, opening)
                self._current = None
                await self._clock.sleep(self._lose(opening, opening.end.cause))

    def change(self, lane: Lane) -> None:
        """Carry other topics from now on; a connection that is open is rotated."""
        self.lane = lane
        self.in_force.clear()
        self._news.set()

    def rotate(self, cause: str) -> None:
        """Replace the connection that is open, if one is, without a hole."""
        self._asked = cause
        self._news.set()

    def status(self) -> LaneStatus:
        """What the lane is worth now."""
        current_ms = self._current.last_data_ms if self._current is not None else None
        return LaneStatus(
            id=self.lane.id,
            state=self._state(),
            opened_ms=self._opened_ms,
            last_data_ms=current_ms or self._last_data_ms,
            streams=self.lane.streams,
            reconnects=self._reconnects,
            rotations=self._rotations,
            last_error=self._last_error,
        )

    def _state(self) -> State:
        liveness = self._current.liveness if self._current is not None else None
        if liveness is None:
            never_tried = self._opened_ms is None and self._last_error is None
            return "starting" if never_tried else "disconnected"
        if liveness.overdue(self._clock.monotonic_ms()) is not None:
            return "late"
        return "starting" if liveness.first_ms is None else "live"

    def _open(self, tasks: asyncio.TaskGroup) -> Opening:
        opening = Opening(
            self._feed, self.lane, self._clock, self._uniform, self._doubt, self._hear
        )
        self._gate.start(opening.started_ms)
        opening.start(tasks)
        return opening

    def _hear(self, opening: Opening) -> None:
        """Something about a connection has changed."""
        self._news.set()
        if opening.end is None and opening.proven:
            self._gate.proved(opening.started_ms)
        if opening.delivers:
            self.delivering.set()
        if opening is self._current and opening.complete and opening.lane == self.lane:
            self.in_force.set()

    async def _take(self, opening: Opening) -> None:
        """Make it the lane's connection, in place of one that was lost."""
        await self._until(lambda: opening.liveness is not None or opening.end is not None)
        if opening.liveness is not None and self._opened_ms is not None:
            self._reconnects += 1
        self._use(opening)

    def _use(self, opening: Opening) -> None:
        self._asked = None
        self._current = opening
        self._opened_ms = opening.opened_ms or self._opened_ms
        self._hear(opening)

    async def _stay(self, tasks: asyncio.TaskGroup, current: Opening) -> Opening:
        """Until the connection ends or another takes its place; the one that counts from then."""
        await self._until(lambda: current.end is not None or self._leaving(current) is not None)
        leaving = self._leaving(current)
        if current.end is not None or leaving is None:
            return current
        return await self._rotate(tasks, current, leaving)

    def _leaving(self, current: Opening) -> Leaving | None:
        if current.lane != self.lane:
            return Leaving("its topics change")
        return current.leaving or (Leaving(self._asked) if self._asked is not None else None)

    async def _rotate(self, tasks: asyncio.TaskGroup, old: Opening, leaving: Leaving) -> Opening:
        """Open another connection, and leave the old one once the new one is as good."""
        await self._pass_gate(old)
        if old.end is not None:
            return old
        new = self._open(tasks)

        def over() -> bool:
            return new.end is not None or old.end is not None

        await self._until(lambda: new.complete or over(), ROTATION_S)
        if new.complete or new.as_good_as(old):
            await self._until(over, OVERLAP_S)
        elif leaving.doubted and new.is_silent and not over():
            self._believe(old)
            new.leave(End(f"as silent as the other for {ROTATION_S:g} s"))
            return old
        elif not over():
            new.leave(End(f"not all of its data within {ROTATION_S:g} s"))
        if old.end is not None:
            self._lose(old, old.end.cause)
            await self._take(new)
            return new
        if new.end is not None:
            pause_s = self._settle(new)
            self._say("rotation_failed", new.end.cause, pause_s, reason=leaving.cause)
            await self._until(lambda: old.end is not None, pause_s)
            return old
        self._use(new)
        if new.lane == self.lane:
            self.in_force.set()
        if leaving.doubted:
            self._doubt.settled(self._clock.monotonic_ms())
        if leaving.planned:
            self._rotations += 1
            self._settle(old)
            log.info("lane_left", exchange=self._feed.id, lane=self.lane.id, cause=leaving.cause)
        else:
            self._reconnects += 1
            self._lose(old, leaving.cause)
        old.leave(End(leaving.cause))
        return new

    def _believe(self, doubted: Opening) -> None:
        """A second connection brings nothing either: it is the market that is silent."""
        self._doubt.settled(self._clock.monotonic_ms())
        doubted.leaving = None
        log.info("markets_silent", exchange=self._feed.id, lane=self.lane.id)

    def _lose(self, opening: Opening, cause: str) -> float:
        """A connection had to be given up; seconds until the next attempt."""
        pause_s = self._settle(opening)
        self._last_data_ms = opening.last_data_ms or self._last_data_ms
        self._last_error = cause
        self._say("lane_down", cause, pause_s)
        return pause_s

    def _settle(self, opening: Opening) -> float:
        """Draw the conclusions of a connection that is over; seconds until the next attempt."""
        if opening.liveness is not None and opening.liveness.healthy:
            self._backoff.reset()
            self._outage.over()
        else:
            self._gate.failed(opening.started_ms)
        end = opening.end
        if end is None:
            return 0.0
        wait_s = end.retry_after_s or 0.0
        if end.refused:
            self._gate.close(self._clock.monotonic_ms() + round(wait_s * 1000))
        return max(self._backoff.next_s(), wait_s)

    def _say(self, event: str, cause: str, pause_s: float, **more: str) -> None:
        self._outage.failed(
            event,
            exchange=self._feed.id,
            lane=self.lane.id,
            cause=cause,
            next_try_s=round(pause_s, 1),
            **more,
        )

    async def _pass_gate(self, old: Opening | None = None) -> None:
        # Asked again each second: a handshake that proves itself meanwhile makes room.
        while (wait_ms := self._gate.wait_ms(self._clock.monotonic_ms())) > 0:
            if old is not None and old.end is not None:
                return
            await self._clock.sleep(min(wait_ms, 1000) / 1000)

    async def _until(self, condition: Callable[[], bool], patience_s: float | None = None) -> bool:
        """Wait for news until the condition holds; False when patience ends before."""
        limit_s = None if patience_s is None else patience_s / self._clock.speed
        try:
            async with asyncio.timeout(limit_s):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True


class Lanes:
    """All lanes of a feed; `run` ends only by cancellation, and every connection with it.

    Attributes
    ----------
    planned
        What is to be carried, in the order of the plan.
    """

    def __init__(self, feed: LaneFeed, planned: Sequence[Lane], gate: Gate, clock: Clock) -> None:
        self.planned = list(planned)
        self._feed = feed
        self._gate = gate
        self._clock = clock
        self._supervisors = {lane.id: self._supervisor(lane) for lane in planned}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._changing = asyncio.Lock()

    async def run(self) -> None:
        """Keep every lane open."""
        async with asyncio.TaskGroup() as self._group:
            for supervisor in self._supervisors.values():
                self._start(supervisor)
            # Lanes come and go; there may be none for a while.
            await asyncio.Event().wait()

    async def follow(self, planned: Sequence[Lane]) -> None:
        """Carry out another plan, one lane after the other.

        Returns when all of it is in force, or has been tried for `CHANGE_S` a lane; what isn't yet
        is tried on. Lanes with nothing left are closed last.
        """
        async with self._changing:
            held = [supervisor.lane for supervisor in self._supervisors.values()]
            self.planned = list(planned)
            for lane in change_order(held, planned):
                supervisor = self._supervisors.get(lane.id)
                if supervisor is None:
                    supervisor = self._supervisors[lane.id] = self._supervisor(lane)
                    self._start(supervisor)
                else:
                    supervisor.change(lane)
                if self._group is not None:
                    await self._wait_for(supervisor)
            ids = [lane.id for lane in planned]
            for gone in self._supervisors.keys() - set(ids):
                await self._close(gone)
            self._supervisors = {lane_id: self._supervisors[lane_id] for lane_id in ids}

    def rotate(self, lane_id: str, cause: str) -> None:
        """Replace a lane's connection without a hole; an unknown lane is none to replace."""
        supervisor = self._supervisors.get(lane_id)
        if supervisor is not None:
            supervisor.rotate(cause)

    def statuses(self) -> list[LaneStatus]:
        """Every lane, those that are about to be closed too."""
        return [supervisor.status() for supervisor in self._supervisors.values()]

    async def wait_for_data(self) -> None:
        """Until every lane has delivered something."""
        for supervisor in list(self._supervisors.values()):
            await supervisor.delivering.wait()

    def _supervisor(self, lane: Lane) -> LaneSupervisor:
        return LaneSupervisor(self._feed, lane, self._gate, self._clock)

    def _start(self, supervisor: LaneSupervisor) -> None:
        if self._group is not None:
            lane_id = supervisor.lane.id
            name = f"{self._feed.id} {lane_id}"
            self._tasks[lane_id] = self._group.create_task(supervisor.run(), name=name)

    async def _wait_for(self, supervisor: LaneSupervisor) -> None:
        try:
            async with self._clock.timeout(CHANGE_S):
                await supervisor.in_force.wait()
        except TimeoutError:
            log.warning(
                "lane_change_late",
                exchange=self._feed.id,
                lane=supervisor.lane.id,
                waited_s=CHANGE_S,
            )

    async def _close(self, lane_id: str) -> None:
        del self._supervisors[lane_id]
        task = self._tasks.pop(lane_id, None)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            log.info("lane_left", exchange=self._feed.id, lane=lane_id, cause="nothing is left")
