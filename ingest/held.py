"""Rows that the outbox can't take now, because its disk is full: held in memory, bounded. Pure."""

from __future__ import annotations

from collections import Counter

from marketdata.schema import MEASUREMENTS, Batch, Row

MOST_TICKS = 20_000
"""Of each measurement of ticks; the oldest are dropped beyond it, and counted."""
MOST_ROWS = 200_000
"""Of all others together: half a day of 164 pairs. None is dropped; more must not be added."""


class Held:
    """Rows by measurement, in the order in which they came.

    Attributes
    ----------
    dropped
        Ticks that had to make room, by `outbox_unavailable.<measurement>`.

    >>> from marketdata.schema import LastPrice
    >>> held = Held()
    >>> held.add({"last_price": [LastPrice("X", "A/B", n, 1.0) for n in range(MOST_TICKS + 2)]})
    >>> held.thin()
    >>> held.rows, held.dropped["outbox_unavailable.last_price"]
    (20000, 2)
    >>> held.batch["last_price"][0].time, held.is_full
    (2, False)
    """

    def __init__(self) -> None:
        self.batch: dict[str, list[Row]] = {}
        self.dropped: Counter[str] = Counter()

    @property
    def rows(self) -> int:
        return sum(map(len, self.batch.values()))

    @property
    def is_full(self) -> bool:
        """Whether rows that must not be dropped have reached their bound."""
        kept = (len(rows) for name, rows in self.batch.items() if not MEASUREMENTS[name].tick)
        return sum(kept) >= MOST_ROWS

    def add(self, rows: Batch) -> None:
        """Put rows behind those that are there."""
        for measurement, some in rows.items():
            if some:
                self.batch.setdefault(measurement, []).extend(some)

    def thin(self) -> None:
        """Drop the oldest ticks beyond their bound."""
        for measurement, rows in self.batch.items():
            excess = len(rows) - MOST_TICKS
            if MEASUREMENTS[measurement].tick and excess > 0:
                del rows[:excess]
                self.dropped[f"outbox_unavailable.{measurement}"] += excess

    def clear(self) -> None:
        """The outbox has them."""
        self.batch = {}
