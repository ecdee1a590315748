"""The ledger of everything that is missing: from the moment it is known until what became of it.

A gap is one contiguous run of missing time of a pair's channel. It is `open` until its last minute
has been found: then it is `lost` if a part of it can't be had any more, `repaired` if anything came
back, `empty` if nothing was traded in it. A hole that begins where an earlier one of the same
reason ended continues it: one run is one row. Every change of a gap is a row for the measurement
`gap`, keyed by its first missing instant, so that the store has the newest state of each.

Several collectors write into the same ledger, each what its own streams have missed. What one that
has ended left open, the others (or itself, started again) take over and bring to its end.

Pure: times are passed in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from marketdata.schema import Gap, GapReason, GapState

Key = tuple[str, str, str]
"""Exchange, pair, channel."""

ABANDONED_MS = 600_000
"""A gap that is open so long after its end is nobody's any more."""

_RANK: dict[str, int] = {"open": 0, "empty": 1, "repaired": 2, "lost": 3}


def abandoned(gaps: Iterable[Gap], now_ms: int) -> list[Gap]:
    """Of the stored gaps those that are open though whoever entered them had time to close them.

    >>> gap = Gap("X", "A/B:B", "candles", 0, 60_000, "silent", "open", None)
    >>> abandoned([gap, gap._replace(state="lost")], 660_001) == [gap]
    True
    >>> abandoned([gap], 660_000)
    []
    """
    return [gap for gap in gaps if gap.state == "open" and gap.until_ms + ABANDONED_MS < now_ms]


def is_covered(times: Iterable[int], start_ms: int, until_ms: int, step_ms: int) -> bool:
    """Whether ticks at these times leave no more than a step of a gap empty; without any it is.

    >>> is_covered([100, 200], 0, 300, 100), is_covered([200], 0, 300, 100)
    (True, False)
    >>> is_covered([], 0, 50, 100)
    False
    """
    inside = [time_ms for time_ms in times if start_ms <= time_ms < until_ms]
    edges = [start_ms, *inside, until_ms]
    return bool(inside) and all(end - start <= step_ms for start, end in pairwise(edges))


@dataclass(slots=True)
class _Run:
    """One gap, and how much of it has been found; `worst` is what the found parts came to."""

    start_ms: int
    until_ms: int
    reason: str
    left: set[int] = field(default_factory=set)
    worst: str = "empty"
    closed_ms: int | None = None


class Ledger:
    """The gaps of all pairs, in units of `step_ms` (a minute for candles).

    `rows()` hands out what has changed since it was last asked.

    >>> ledger = Ledger(step_ms=60_000)
    >>> key = ("X", "A/B:B", "candles")
    >>> ledger.missing(key, [0, 60_000], "disconnected")
    >>> [(gap.time, gap.until_ms, gap.state) for gap in ledger.rows()]
    [(0, 120000, 'open')]
    >>> ledger.found(key, [0], "repaired", now_ms=200_000)
    >>> ledger.found(key, [60_000], "empty", now_ms=201_000)
    >>> [(gap.time, gap.state, gap.closed_ms) for gap in ledger.rows()]
    [(0, 'repaired', 201000)]
    """

    def __init__(self, step_ms: int) -> None:
        self.closed: dict[str, int] = {"repaired": 0, "empty": 0, "lost": 0}
        """Gaps that were closed since the start, by what became of them."""
        self._step_ms = step_ms
        self._open: dict[Key, list[_Run]] = {}
        self._last: dict[Key, _Run] = {}
        self._changed: dict[tuple[Key, int], _Run] = {}

    @property
    def open(self) -> int:
        """How many gaps are open."""
        return sum(len(runs) for runs in self._open.values())

    def load(self, gaps: Iterable[Gap]) -> None:
        """Take over the gaps that the store says are open; those that are known stay."""
        for gap in gaps:
            key = (gap.exchange, gap.symbol, gap.channel)
            known = {run.start_ms for run in self._open.get(key, ())}
            if gap.state == "open" and gap.time not in known:
                run = _Run(gap.time, gap.until_ms, gap.reason)
                run.left.update(range(gap.time, gap.until_ms, self._step_ms))
                self._open.setdefault(key, []).append(run)

    def missing(self, key: Key, times: Iterable[int], reason: GapReason) -> None:
        """These instants are missing; those that are known to be, change nothing."""
        for time_ms in times:
            if self.knows(key, time_ms):
                continue
            run = self._continued(key, time_ms, reason)
            if run is None:
                run = _Run(time_ms, time_ms, reason)
                self._open.setdefault(key, []).append(run)
            run.until_ms = time_ms + self._step_ms
            run.left.add(time_ms)
            run.closed_ms = None
            self._changed[key, run.start_ms] = run

    def knows(self, key: Key, time_ms: int) -> bool:
        """Whether an instant lies in an open gap."""
        return any(run.start_ms <= time_ms < run.until_ms for run in self._open.get(key, ()))

    def found(self, key: Key, times: Iterable[int], state: GapState, now_ms: int) -> None:
        """These instants are no longer missing, for the reason that `state` names."""
        for time_ms in times:
            # Gaps overlap where another collector has entered some of it too.
            for run in list(self._open.get(key, ())):
                if time_ms in run.left:
                    run.left.discard(time_ms)
                    run.worst = max(run.worst, state, key=_RANK.__getitem__)
                    if not run.left:
                        self._close(key, run, now_ms)

    def give_up(self, key: Key, now_ms: int) -> None:
        """Nobody waits for this pair's channel any more: what is missing of it is lost."""
        for run in list(self._open.get(key, ())):
            self.found(key, sorted(run.left), "lost", now_ms)

    def rows(self) -> list[Gap]:
        """The gaps that have changed, as rows to store."""
        rows = [
            Gap(*key, start_ms, run.until_ms, run.reason, self._state(run), run.closed_ms)
            for (key, start_ms), run in self._changed.items()
        ]
        self._changed.clear()
        return rows

    def holes(self, key: Key) -> list[tuple[int, int]]:
        """The open gaps of a pair's channel as (first missing, until)."""
        return [(run.start_ms, run.until_ms) for run in self._open.get(key, ())]

    @staticmethod
    def _state(run: _Run) -> str:
        return "open" if run.left else run.worst

    def _continued(self, key: Key, time_ms: int, reason: str) -> _Run | None:
        """The run that a missing instant continues, open or closed a moment ago."""
        for run in self._open.get(key, ()):
            if run.until_ms == time_ms and run.reason == reason:
                return run
        last = self._last.get(key)
        if last is None or last.until_ms != time_ms or last.reason != reason:
            return None
        self.closed[last.worst] -= 1
        self._open.setdefault(key, []).append(self._last.pop(key))
        return last

    def _close(self, key: Key, run: _Run, now_ms: int) -> None:
        run.closed_ms = now_ms
        self.closed[run.worst] += 1
        self._open[key].remove(run)
        if not self._open[key]:
            del self._open[key]
        self._last[key] = run
        self._changed[key, run.start_ms] = run


class Outages:
    """Gaps of ticks: a channel's run without any, from its last event to its next one.

    >>> outages = Outages()
    >>> key = ("X", "A/B:B", "funding")
    >>> outages.begin(key, 1_000, "silent", now_ms=130_000)
    >>> [(gap.state, gap.until_ms) for gap in outages.rows()]
    [('open', 130000)]
    >>> outages.resume(key, 140_000)
    >>> outages.settle(key, 1_000, "lost", now_ms=150_000)
    >>> [(gap.state, gap.until_ms, gap.closed_ms) for gap in outages.rows()]
    [('lost', 140000, 150000)]
    """

    def __init__(self) -> None:
        self.closed: dict[str, int] = {"repaired": 0, "empty": 0, "lost": 0}
        self._gaps: dict[tuple[Key, int], Gap] = {}
        self._running: dict[Key, int] = {}
        self._changed: set[tuple[Key, int]] = set()

    @property
    def open(self) -> int:
        """How many are not settled."""
        return len(self._gaps)

    def load(self, gaps: Iterable[Gap]) -> None:
        """Take over the gaps that the store says are open; those that are known stay."""
        for gap in gaps:
            if gap.state == "open":
                self._gaps.setdefault(((gap.exchange, gap.symbol, gap.channel), gap.time), gap)

    def begin(self, key: Key, start_ms: int, reason: GapReason, now_ms: int) -> None:
        """Nothing has come since `start_ms`; a run that is known to be, goes on."""
        if key in self._running:
            return
        self._running[key] = start_ms
        self._gaps[key, start_ms] = Gap(*key, start_ms, now_ms, reason, "open", None)
        self._changed.add((key, start_ms))

    def resume(self, key: Key, until_ms: int) -> None:
        """Something has come again, at `until_ms`."""
        start_ms = self._running.pop(key, None)
        if start_ms is not None:
            gap = self._gaps[key, start_ms]
            self._gaps[key, start_ms] = gap._replace(until_ms=max(until_ms, start_ms + 1))
            self._changed.add((key, start_ms))

    def ended(self) -> list[tuple[Key, Gap]]:
        """Gaps that are over and of which it isn't known yet what became of them."""
        return [
            (key, gap)
            for (key, start_ms), gap in self._gaps.items()
            if gap.state == "open" and self._running.get(key) != start_ms
        ]

    def settle(self, key: Key, start_ms: int, state: GapState, now_ms: int) -> None:
        """What became of a gap that is over; one that is settled already stays as it is."""
        gap = self._gaps.get((key, start_ms))
        if gap is None or gap.state != "open":
            return
        self._gaps[key, start_ms] = gap._replace(state=state, closed_ms=now_ms)
        self._changed.add((key, start_ms))
        self.closed[state] += 1

    def keep(self, keys: Collection[Key], now_ms: int) -> None:
        """Only these are waited for from now on: what is missing of others is lost."""
        for (key, start_ms), gap in list(self._gaps.items()):
            if key not in keys and gap.state == "open":
                self._running.pop(key, None)
                self.settle(key, start_ms, "lost", now_ms)

    def rows(self) -> list[Gap]:
        """The gaps that have changed, as rows to store."""
        rows = [self._gaps[changed] for changed in sorted(self._changed)]
        self._changed.clear()
        for gap in rows:
            if gap.state != "open":
                del self._gaps[(gap.exchange, gap.symbol, gap.channel), gap.time]
        return rows
