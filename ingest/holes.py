"""Which minutes are missing, and in which calls they are fetched; pure, in minutes' open times.

A hole is a half-open range [start_ms, end_ms) of missing minutes. It is fetched in whole 3-minute
candles, so that each candle that it touches is summed from the exchange's exact decimals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from marketdata.schema import CANDLE_MS, MINUTE_MS


class Hole(NamedTuple):
    """Missing minutes of one pair: start_ms <= open time < end_ms."""

    start_ms: int
    end_ms: int

    @property
    def minutes(self) -> int:
        return (self.end_ms - self.start_ms) // MINUTE_MS


def find_holes(present: Collection[int], start_ms: int, end_ms: int) -> list[Hole]:
    """The missing minutes of a range as contiguous holes, in time order.

    >>> find_holes({0, 60_000, 180_000}, 0, 300_000)
    [Hole(start_ms=120000, end_ms=180000), Hole(start_ms=240000, end_ms=300000)]
    """
    holes: list[Hole] = []
    for minute_ms in range(start_ms, end_ms, MINUTE_MS):
        if minute_ms in present:
            continue
        if holes and holes[-1].end_ms == minute_ms:
            holes[-1] = Hole(holes[-1].start_ms, minute_ms + MINUTE_MS)
        else:
            holes.append(Hole(minute_ms, minute_ms + MINUTE_MS))
    return holes


def whole_candles(hole: Hole, now_ms: int) -> Hole:
    """A hole widened to whole candles, as far as their minutes are closed.

    >>> whole_candles(Hole(240_000, 300_000), now_ms=420_000)
    Hole(start_ms=180000, end_ms=360000)
    >>> whole_candles(Hole(240_000, 300_000), now_ms=310_000)
    Hole(start_ms=180000, end_ms=300000)
    """
    start_ms = hole.start_ms - hole.start_ms % CANDLE_MS
    end_ms = hole.end_ms + -hole.end_ms % CANDLE_MS
    return Hole(start_ms, max(hole.end_ms, min(end_ms, now_ms - now_ms % MINUTE_MS)))


def merge_holes(holes: Collection[Hole], max_minutes: int) -> list[Hole]:
    """Holes joined where one call covers both, in time order: the fewest calls that cover them.

    >>> merge_holes([Hole(0, 60_000), Hole(120_000, 180_000)], max_minutes=3)
    [Hole(start_ms=0, end_ms=180000)]
    >>> merge_holes([Hole(0, 60_000), Hole(240_000, 300_000)], max_minutes=3)
    [Hole(start_ms=0, end_ms=60000), Hole(start_ms=240000, end_ms=300000)]
    """
    merged: list[Hole] = []
    for hole in sorted(holes):
        if merged and hole.end_ms - merged[-1].start_ms <= max_minutes * MINUTE_MS:
            merged[-1] = Hole(merged[-1].start_ms, max(merged[-1].end_ms, hole.end_ms))
        else:
            merged.append(hole)
    return merged


def split_hole(hole: Hole, max_minutes: int) -> Iterator[Hole]:
    """Cut a hole into calls of at most `max_minutes`, the newest first.

    >>> [part.minutes for part in split_hole(Hole(0, 7 * 60_000), max_minutes=3)]
    [3, 3, 1]
    """
    end_ms = hole.end_ms
    while end_ms > hole.start_ms:
        start_ms = max(hole.start_ms, end_ms - max_minutes * MINUTE_MS)
        yield Hole(start_ms, end_ms)
        end_ms = start_ms
