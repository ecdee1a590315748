"""What leaves the outbox next: which shelves are passed over for now, and how many rows go at once.

Pure: times and randomness are passed in.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from ingest.backoff import Backoff, Uniform
from ingest.outbox_file import Shelf

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0

PATIENCE_S = 1.0
"""What a shelf that fails alone may take at first; twice as long each time, if that is needed."""
PAUSE_TIMES = 10
"""It rests so many times longer than its failure took: the others have nine tenths of the time."""

PARCEL_S = 0.25
"""What a parcel may take: a new row waits for the one before it, and is under a second old."""
LEAST_ROWS = 100
MOST_ROWS = 5_000


@dataclass(slots=True)
class _Aside:
    """A shelf whose last parcel failed.

    `doubted` until another one was stored after that; if it fails again then, it fails `alone`.
    """

    backoff: Backoff
    due_ms: int
    most_rows: int
    patience_s: float | None = None
    doubted: bool = True
    alone: bool = False


class Shelves:
    """Which shelves have failed, and when each is tried again.

    A shelf whose parcel failed is set aside for a back-off of its own, and the others are tried.
    If it fails again after one of those was stored, the fault is the shelf's and not the store's.

    >>> from ingest.outbox_file import Shelf
    >>> old, new = Shelf(False, 1), Shelf(False, 2)
    >>> shelves = Shelves(uniform=lambda low, high: high)
    >>> shelves.failed(new, rows=400, now_ms=0, took_s=25.0)
    False
    >>> shelves.aside(now_ms=0), shelves.doubted, shelves.most_rows(new)
    ({Shelf(tick=False, shard=2)}, 1, 200)
    >>> shelves.stored(old)
    >>> shelves.doubted, shelves.aside(now_ms=500), shelves.patience_s(new)
    (0, set(), 1.0)
    >>> shelves.failed(new, rows=200, now_ms=500, took_s=1.0)
    True
    >>> shelves.alone, shelves.wait_ms(now_ms=500), shelves.patience_s(new)
    (1, 10000, 2.0)
    """

    def __init__(self, uniform: Uniform = random.uniform) -> None:
        self._uniform = uniform
        self._failed: dict[Shelf, _Aside] = {}

    def aside(self, now_ms: int) -> Collection[Shelf]:
        """Those that aren't tried yet."""
        return {shelf for shelf, aside in self._failed.items() if aside.due_ms > now_ms}

    @property
    def doubted(self) -> int:
        """How many have failed since anything was stored: the store itself may be at fault."""
        return sum(aside.doubted for aside in self._failed.values())

    @property
    def alone(self) -> int:
        """How many fail while others are stored."""
        return sum(aside.alone for aside in self._failed.values())

    def most_rows(self, shelf: Shelf) -> int:
        """How many rows of this shelf are tried at once: fewer with each failure."""
        aside = self._failed.get(shelf)
        return MOST_ROWS if aside is None else aside.most_rows

    def patience_s(self, shelf: Shelf) -> float | None:
        """How long the others may be kept waiting for this one; None where nothing is known."""
        aside = self._failed.get(shelf)
        return None if aside is None else aside.patience_s

    def wait_ms(self, now_ms: int) -> int | None:
        """Nothing waits on other shelves: milliseconds until the first of these is tried again.

        None where none is set aside. Those whose time has come have no rows any more.
        """
        self._failed = {n: aside for n, aside in self._failed.items() if aside.due_ms > now_ms}
        due_ms = min((aside.due_ms for aside in self._failed.values()), default=None)
        return None if due_ms is None else due_ms - now_ms

    def failed(
        self, shelf: Shelf, rows: int, now_ms: int, took_s: float, asked_s: float = 0.0
    ) -> bool:
        """A parcel of `rows` rows wasn't stored, for a reason that may lie in the parcel.

        `asked_s`: it isn't tried again before, since the store has asked for that. True where this
        shows, for the first time, that the shelf fails alone.
        """
        aside = self._failed.get(shelf)
        if aside is None:
            backoff = Backoff(BACKOFF_FIRST_S, BACKOFF_MAX_S, self._upper_half)
            aside = self._failed[shelf] = _Aside(backoff, now_ms, MOST_ROWS)
        shown = not aside.doubted and not aside.alone
        aside.alone = aside.alone or shown
        pause_s = max(aside.backoff.next_s(), asked_s)
        if aside.patience_s is not None:
            pause_s = max(pause_s, PAUSE_TIMES * took_s)
            aside.patience_s *= 2
        aside.due_ms = now_ms + int(1000 * pause_s)
        aside.most_rows = max(LEAST_ROWS, min(aside.most_rows, rows) // 2)
        return shown

    def stored(self, shelf: Shelf) -> None:
        """A parcel was stored: the store works."""
        self._failed.pop(shelf, None)
        for aside in self._failed.values():
            aside.doubted = False
            aside.patience_s = aside.patience_s or PATIENCE_S

    def _upper_half(self, low: float, high: float) -> float:
        """Never at once: a shelf that goes first would come before the others again."""
        return self._uniform((low + high) / 2, high)

    def release(self, now_ms: int) -> None:
        """The store is back: all of them may be tried, the fault may have been its own."""
        for aside in self._failed.values():
            aside.due_ms = min(aside.due_ms, now_ms)


class ParcelSize:
    """How many rows go at once, so that a parcel takes `PARCEL_S`: the throttle of a catch-up.

    A store that is slow gets smaller parcels, between which the newest rows get their turn; one
    that is fast gets larger ones, up to what is fastest.

    >>> size = ParcelSize()
    >>> size.rows
    1000
    >>> for _ in range(3):
    ...     size.took(size.rows, seconds=0.02)
    >>> size.rows
    5000
    >>> size.took(5_000, seconds=2.0)
    >>> size.rows
    625
    >>> size.took(20, seconds=0.01)  # there was no more: it says nothing about a full parcel
    >>> size.rows
    625
    """

    def __init__(self) -> None:
        self.rows = 1_000

    def took(self, rows: int, seconds: float) -> None:
        """A parcel of `rows` rows was taken, stored and settled in so many seconds of the world."""
        if seconds > PARCEL_S:
            fitting = rows * PARCEL_S / seconds
        elif 2 * rows >= self.rows:  # entries are whole, so a full parcel may have a bit less
            fitting = rows * min(2.0, PARCEL_S / max(seconds, 0.001))
        else:
            return
        self.rows = max(LEAST_ROWS, min(MOST_ROWS, int(fitting)))
