"""Closes that can't be right: spikes against their neighbours, and against another exchange.

A market may move as far as it likes; what it hardly ever does is to leave and be back in the next
candle. So a close is a spike only when it lies beyond the medians of the candles before and after
it, on the same side, by many times what this market does from candle to candle. Steps, trends, fat
tails, and the bouncing of a thin market between bid and ask are none.

Of two exchanges the ratio of closes is looked at: that of perpetual and spot differs from 1, but
doesn't leap. Pure; arrays are ascending in time, a row a candle.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NEIGHBOURS: Final = 10
"""Candles on each side that a close is held against."""
SPIKE_UNITS: Final = 20.0
"""How many units of its own movement a close must lie beyond both sides. Steps of Student's t with
three degrees of freedom, fatter than any market's, get there once in some 50 million candles."""
SMALLEST_UNIT: Final = 0.001
"""Of the price: what moves less isn't held to a finer measure."""
APART: Final = 0.01
"""How far the ratio of two exchanges may leap for one candle; perpetuals of the same currencies."""
APART_KINDS: Final = 0.02
"""The same between a perpetual and spot, whose basis moves by itself."""
APART_UNITS: Final = 8.0


def _windows(values: Floats) -> tuple[Floats, Floats]:
    """The `NEIGHBOURS` values before and after each one that has so many on both sides."""
    views = np.lib.stride_tricks.sliding_window_view(values, NEIGHBOURS)
    return views[: -NEIGHBOURS - 1], views[NEIGHBOURS + 1 :]


def spikes(high: Floats, low: Floats, close: Floats) -> Flags:
    """Which closes leave the market and are back at once.

    The unit is the largest of: the robust deviation and the mean of the neighbours' steps, the
    median of their ranges, and `SMALLEST_UNIT` of the price. The first and last `NEIGHBOURS` are
    never told.

    >>> close = 100 + np.sin(np.arange(40.0))
    >>> close[20] = 150.0
    >>> np.flatnonzero(spikes(close + 0.5, close - 0.5, close)).tolist()
    [20]
    """
    found = np.zeros(len(close), dtype=bool)
    if len(close) < 2 * NEIGHBOURS + 1:
        return found
    before, after = _windows(close)
    middle = close[NEIGHBOURS:-NEIGHBOURS]
    below, above = _ordered(np.median(before, axis=1), np.median(after, axis=1))
    beyond = np.maximum(middle - above, below - middle)
    # Only what may be one is worth measuring: the unit costs more than all the rest.
    places = np.flatnonzero(beyond > SPIKE_UNITS * SMALLEST_UNIT * np.abs(below))
    if not len(places):
        return found
    steps = np.hstack(
        [np.abs(np.diff(before[places], axis=1)), np.abs(np.diff(after[places], axis=1))]
    )
    ranges = np.hstack([side[places] for side in _windows(high - low)])
    unit = np.maximum.reduce(
        [
            1.4826 * np.median(steps, axis=1),
            _trimmed_mean(steps),
            np.median(ranges, axis=1),
        ]
    )
    found[places[beyond[places] > SPIKE_UNITS * unit] + NEIGHBOURS] = True
    return found


def flat_among_moving(open_: Floats, high: Floats, low: Floats, volume: Floats) -> Flags:
    """Which candles are flat with a full volume though none around them is.

    One trade makes a flat candle, and where the price step is coarse many do. So it takes a volume
    from the neighbours' median up, and neighbours that all move, by ten price steps at the median.
    """
    flat = (high == low) & (open_ == high)
    found = np.zeros(len(flat), dtype=bool)
    for place in np.flatnonzero(flat & (volume > 0)):
        first = max(0, place - NEIGHBOURS)
        near = np.r_[first:place, place + 1 : min(len(flat), place + NEIGHBOURS + 1)]
        if len(near) < NEIGHBOURS or flat[near].any() or volume[place] < np.median(volume[near]):
            continue
        prices = np.unique(np.concatenate([high[near], low[near], open_[near]]))
        step = float(np.min(np.diff(prices)))
        found[place] = float(np.median(high[near] - low[near])) >= 10 * step
    return found


def leaps(ours: Floats, others: Floats, movement: Floats, apart: float) -> Floats:
    """How far two exchanges' ratio of closes leaps for a candle; 0 where it doesn't.

    `ours` and `others` are closes of the same candles, `movement` the larger of their ranges as a
    part of the price. A leap is more than `apart` away from the median of the ratios around it,
    more than `APART_UNITS` times their own deviation, and more than the neighbours' usual range.

    >>> other = np.full(30, 100.0)
    >>> ours = other * 1.003
    >>> ours[15] *= 1.02
    >>> np.flatnonzero(leaps(ours, other, np.full(30, 0.001), APART)).tolist()
    [15]
    """
    found = np.zeros(len(ours))
    if len(ours) < 2 * NEIGHBOURS + 1:
        return found
    ratio = np.log(ours / others)
    before, after = _windows(ratio)
    around = np.hstack([before, after])
    centre = np.median(around, axis=1)
    leap = np.abs(ratio[NEIGHBOURS:-NEIGHBOURS] - centre)
    deviation = 1.4826 * np.median(np.abs(around - centre[:, None]), axis=1)
    usual = np.median(np.hstack(_windows(movement)), axis=1)
    limit = np.maximum.reduce([np.full(len(leap), apart), APART_UNITS * deviation, 2 * usual])
    found[NEIGHBOURS:-NEIGHBOURS] = np.where(leap > limit, leap, 0.0)
    return found


def excursion(close: Floats, place: int) -> float:
    """How far a close is above the median of its neighbours, as a part of that; below is negative.

    >>> excursion(np.array([100.0, 103.0, 100.0]), 1)
    0.03
    """
    first, last = max(0, place - NEIGHBOURS), place + NEIGHBOURS + 1
    near = np.delete(close[first:last], place - first)
    centre = float(np.median(near))
    return (float(close[place]) - centre) / centre


def _ordered(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    return np.minimum(one, other), np.maximum(one, other)


def _trimmed_mean(steps: Floats) -> Floats:
    """The mean without the largest two: a second outlier nearby hides none."""
    kept: Floats = np.sort(steps, axis=1)[:, :-2].mean(axis=1)
    return kept
