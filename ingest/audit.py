"""What a pair's stored rows are worth: what should be there, what is, what is missing, what is bad.

Pure: rows come as arrays, ascending in time; nothing is asked of anyone. Four series are judged:
candles (`ohlcv_3m`), minutes (`ohlcv_1m`), marks (`mark_3m`) and settlements (`funding_settled`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np

from ingest.outliers import Floats, Ints, flat_among_moving, spikes
from marketdata.schema import CANDLE_MS, MINUTE_MS, Gap

DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
CLOSE_TO: Final = 1e-9
"""A stored volume is a rounded sum: relative difference to the sum of rounded ones."""
SHOWN_BAD: Final = 1_000
"""Findings kept of one kind and series; the counts are always of all."""

MEASUREMENT_OF: Final = {
    "candles": "ohlcv_3m",
    "minutes": "ohlcv_1m",
    "marks": "mark_3m",
    "settlements": "funding_settled",
}
STEP_OF: Final = {"candles": CANDLE_MS, "minutes": MINUTE_MS, "marks": CANDLE_MS}
CHANNEL_OF: Final = {
    "candles": "candles",
    "minutes": "candles",
    "marks": "mark_price",
    "settlements": "funding",
}
"""The channel under which the ledger knows a series' holes."""

Arrays = Mapping[str, Any]


class Span(NamedTuple):
    """start_ms <= time < end_ms."""

    start_ms: int
    end_ms: int


class Missing(NamedTuple):
    """A hole: `rows` rows of a series whose times lie in [start_ms, end_ms), and why, if known."""

    series: str
    start_ms: int
    end_ms: int
    rows: int
    reason: str | None = None


class Finding(NamedTuple):
    """A row that can't be right."""

    series: str
    time_ms: int
    kind: str
    detail: str


@dataclass(slots=True)
class Counts:
    """Rows of a series: those that should be there, by the source that they came by, and not."""

    expected: int = 0
    stream: int = 0
    rest: int = 0
    synthetic: int = 0
    missing: int = 0

    def add(self, other: Counts) -> None:
        """Add another's rows to these."""
        self.expected += other.expected
        self.stream += other.stream
        self.rest += other.rest
        self.synthetic += other.synthetic
        self.missing += other.missing


@dataclass(slots=True)
class Day:
    """One pair's UTC day."""

    day_ms: int
    series: dict[str, Counts] = field(default_factory=dict)
    bad: int = 0
    outliers: int = 0


@dataclass(slots=True)
class Card:
    """One pair: its days, holes and findings; `starts` is when each series begins."""

    exchange: str
    symbol: str
    starts: dict[str, int] = field(default_factory=dict)
    days: dict[int, Day] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    bad: list[Finding] = field(default_factory=list)
    outliers: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.missing or self.bad or self.outliers)

    def total(self, series: str) -> Counts:
        """A series' counts over all days."""
        total = Counts()
        for day in self.days.values():
            total.add(day.series.get(series, Counts()))
        return total

    @property
    def badness(self) -> tuple[int, int, int]:
        """Sorts the worst pair last: missing rows, then bad ones, then outliers."""
        missing = sum(hole.rows for hole in self.missing)
        bad = sum(day.bad for day in self.days.values())
        return missing, bad, sum(day.outliers for day in self.days.values())

    def day(self, time_ms: int) -> Day:
        """The day that holds an instant."""
        day_ms = time_ms - time_ms % DAY_MS
        return self.days.setdefault(day_ms, Day(day_ms))

    def add_missing(self, holes: Sequence[Missing]) -> None:
        """Take in holes."""
        self.missing.extend(holes)

    def add_bad(self, findings: Sequence[Finding]) -> None:
        """Take in bad rows, and count them on their days."""
        self.bad.extend(findings[:SHOWN_BAD])
        for finding in findings:
            self.day(finding.time_ms).bad += 1

    def add_outliers(self, findings: Sequence[Finding]) -> None:
        """Take in outliers, and count them on their days."""
        self.outliers.extend(findings[:SHOWN_BAD])
        for finding in findings:
            self.day(finding.time_ms).outliers += 1

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "exchange": self.exchange,
            "symbol": self.symbol,
            "clean": self.clean,
            "starts": self.starts,
            "totals": {name: asdict(self.total(name)) for name in MEASUREMENT_OF},
            "days": [asdict(day) for _, day in sorted(self.days.items())],
            "missing": [hole._asdict() for hole in self.missing],
            "bad": [finding._asdict() for finding in self.bad],
            "outliers": [finding._asdict() for finding in self.outliers],
        }


def find_missing(times: Ints, span: Span, step_ms: int) -> list[Span]:
    """The holes of a span whose ends are multiples of the step, in time order, in one pass.

    >>> find_missing(np.array([0, 60_000, 240_000]), Span(0, 360_000), 60_000)
    [Span(start_ms=120000, end_ms=240000), Span(start_ms=300000, end_ms=360000)]
    """
    inside = times[(times >= span.start_ms) & (times < span.end_ms)]
    inside = inside[inside % step_ms == 0]
    edges = np.concatenate(([span.start_ms - step_ms], inside, [span.end_ms]))
    places = np.flatnonzero(np.diff(edges) > step_ms)
    return [Span(int(edges[n]) + step_ms, int(edges[n + 1])) for n in places]


def count_days(card: Card, series: str, span: Span, times: Ints, sources: Sequence[str]) -> None:
    """Count a series of steady step by day: expected, by source, missing; and note its holes."""
    step_ms = STEP_OF[series]
    on_grid = (times >= span.start_ms) & (times < span.end_ms) & (times % step_ms == 0)
    days, source = times[on_grid] // DAY_MS, np.asarray(sources, dtype=object)[on_grid]
    first = span.start_ms // DAY_MS
    many = max(0, -(-span.end_ms // DAY_MS) - first)
    by_source = {
        name: np.bincount((days - first)[source == name], minlength=many)
        for name in ("stream", "rest", "synthetic")
    }
    for n in range(many):
        start_ms, end_ms = (first + n) * DAY_MS, (first + n + 1) * DAY_MS
        expected = (min(end_ms, span.end_ms) - max(start_ms, span.start_ms)) // step_ms
        counts = Counts(expected, *(int(by_source[name][n]) for name in by_source))
        counts.missing = expected - counts.stream - counts.rest - counts.synthetic
        card.day(start_ms).series[series] = counts
    card.add_missing(
        [
            Missing(series, hole.start_ms, hole.end_ms, (hole.end_ms - hole.start_ms) // step_ms)
            for hole in find_missing(times, span, step_ms)
        ]
    )


def missing_settlements(
    times: Ints, hours: Floats, span: Span, otherwise: float | None
) -> list[Missing]:
    """Settlements that are missing, at the interval that the pair had at the time.

    Parameters
    ----------
    times, hours
        Settlements and their `interval_hours` (NaN where unknown), among them the last one before
        the span, where there is one.
    otherwise
        The interval where no row says one; None where nothing is known, and nothing is missed then.

    Between two settlements the longer of their intervals may lie, since a change takes effect at
    one of them. Without a row before the first, they are expected at the interval's multiples.

    >>> hour = 3_600_000
    >>> missing_settlements(np.array([0, 8, 12, 24]) * hour, np.array([8.0, 8.0, 4.0, 4.0]),
    ...                     Span(0, 25 * hour), None)
    [Missing(series='settlements', start_ms=57600000, end_ms=86400000, rows=2, reason=None)]
    """
    steps = [int(value * HOUR_MS) if value > 0 else 0 for value in hours]
    fallback = int(otherwise * HOUR_MS) if otherwise else 0
    known = next((step for step in reversed(steps) if step), fallback)
    if not known:
        return []
    steps = [step or known for step in steps]
    points = [(int(time), step) for time, step in zip(times, steps, strict=True)]
    if not points or points[0][0] >= span.start_ms:
        step = points[0][1] if points else known
        points.insert(0, ((span.start_ms - 1) // step * step, step))
    end_step = fallback or points[-1][1]
    # A little beyond the end, so that one that is due at the end itself isn't missed yet.
    points.append((span.end_ms + (-span.end_ms % end_step), end_step))
    found: list[Missing] = []
    for (one, step), (other, other_step) in pairwise(points):
        if other - one <= max(step, other_step) + MINUTE_MS:
            continue
        fine = min(step, other_step)
        first = max(one // fine * fine + fine, -(-span.start_ms // fine) * fine)
        last = min(other, span.end_ms)
        count = len(range(first, last, fine))
        if count:
            found.append(Missing("settlements", first, min(last, first + count * fine), count))
    return found


def count_settlements(
    card: Card, times: Ints, hours: Floats, span: Span, otherwise: float | None
) -> None:
    """Count settlements by day, and note the missing ones."""
    for time_ms in times[(times >= span.start_ms) & (times < span.end_ms)]:
        counts = card.day(int(time_ms)).series.setdefault("settlements", Counts())
        counts.rest += 1
        counts.expected += 1
    holes = missing_settlements(times, hours, span, otherwise)
    for hole in holes:
        step_ms = (hole.end_ms - hole.start_ms) // hole.rows
        for n in range(hole.rows):
            day = card.day(hole.start_ms + n * step_ms)
            counts = day.series.setdefault("settlements", Counts())
            counts.missing += 1
            counts.expected += 1
    card.add_missing(holes)


def with_reasons(holes: Sequence[Missing], gaps: Sequence[Gap]) -> list[Missing]:
    """The holes with what the ledger says of the gap that covers most of each.

    >>> gap = Gap("X", "A/B", "candles", 0, 180_000, "silent", "open", None)
    >>> with_reasons([Missing("minutes", 60_000, 120_000, 1)], [gap])[0].reason
    'silent, open'
    """
    explained = []
    for hole in holes:
        shared = [
            (min(gap.until_ms, hole.end_ms) - max(gap.time, hole.start_ms), gap)
            for gap in gaps
            if gap.channel == CHANNEL_OF[hole.series]
        ]
        most, gap = max(shared, key=lambda item: item[0], default=(0, None))
        reason = f"{gap.reason}, {gap.state}" if gap is not None and most > 0 else None
        explained.append(hole._replace(reason=reason))
    return explained


def bad_rows(series: str, rows: Arrays) -> list[Finding]:
    """Rows whose own values contradict each other, in time order.

    `rows` has `time`, `open`, `high`, `low`, `close`, and for candles and minutes `volume`,
    `quote_volume`, `trades` and `source` too.
    """
    time, step_ms = rows["time"], STEP_OF[series]
    open_, high, low, close = (rows[name] for name in ("open", "high", "low", "close"))
    prices = np.vstack([open_, high, low, close])
    finite = np.isfinite(prices).all(axis=0)
    faults: dict[str, Any] = {
        "misaligned": time % step_ms != 0,
        "not_finite": ~finite,
        "price_not_positive": (prices <= 0).any(axis=0),
        "high_too_low": high < np.maximum(open_, close),
        "low_too_high": low > np.minimum(open_, close),
    }
    if "volume" in rows:
        volume, quote, trades = (rows[name] for name in ("volume", "quote_volume", "trades"))
        faults["not_finite"] |= ~np.isfinite(volume) | np.isinf(quote)
        faults["volume_negative"] = (volume < 0) | (quote < 0) | (trades < 0)
        untraded = (trades == 0) | (rows["source"] == "synthetic")
        faults["flat_with_volume"] = untraded & (volume > 0)
        if series == "candles":
            faults["flat_with_volume"] |= flat_among_moving(open_, high, low, volume)
    found = [
        Finding(series, int(time[place]), kind, _values(rows, int(place)))
        for kind, flags in faults.items()
        for place in np.flatnonzero(flags)
    ]
    return sorted(found, key=lambda finding: finding.time_ms)


def not_sums(candles: Arrays, minutes: Arrays) -> list[Finding]:
    """Candles that aren't what their three minutes make, where all three are stored.

    A minute without trades takes no part in open, high and low; with none in all three the candle
    is flat at the last close.
    """
    time = minutes["time"]
    first = np.atleast_1d(np.searchsorted(time, candles["time"]))
    whole = np.flatnonzero(first + 2 < len(time))
    starts = first[whole]
    opens = candles["time"][whole]
    there = time[starts[:, None] + np.arange(3)] == opens[:, None] + _MINUTES_MS
    there = there.all(axis=1)
    whole, starts = whole[there], starts[there]
    places = starts[:, None] + np.arange(3)
    part = {name: minutes[name][places] for name in _SUMMED}
    traded = np.where(np.isnan(part["trades"]), part["volume"] > 0, part["trades"] > 0)
    rows = np.arange(len(places))
    last_close = part["close"][:, 2]
    some = traded.any(axis=1)
    made = {
        "open": np.where(some, part["open"][rows, traded.argmax(axis=1)], last_close),
        "high": np.where(some, np.where(traded, part["high"], -np.inf).max(axis=1), last_close),
        "low": np.where(some, np.where(traded, part["low"], np.inf).min(axis=1), last_close),
        "close": np.where(
            some, part["close"][rows, 2 - traded[:, ::-1].argmax(axis=1)], last_close
        ),
    }
    wrong = {name: made[name] != candles[name][whole] for name in made}
    for name in ("volume", "quote_volume", "trades"):
        made[name] = part[name].sum(axis=1)
        stored = candles[name][whole]
        # What a candle or one of its minutes doesn't state can't be wrong.
        known = ~np.isnan(made[name]) & ~np.isnan(stored)
        wrong[name] = known & ~np.isclose(made[name], stored, rtol=CLOSE_TO, atol=0)
    any_wrong = np.logical_or.reduce(list(wrong.values())) if len(whole) else np.zeros(0, bool)
    return [
        Finding(
            "candles",
            int(candles["time"][whole[n]]),
            "not_its_minutes",
            ", ".join(
                f"{name} {candles[name][whole[n]]:.12g}, minutes make {made[name][n]:.12g}"
                for name in wrong
                if wrong[name][n]
            ),
        )
        for n in np.flatnonzero(any_wrong)
    ]


def spike_findings(rows: Arrays) -> list[Finding]:
    """Candles whose close is far from the candles before and after it."""
    sound = np.flatnonzero(np.isfinite(rows["close"]) & (rows["close"] > 0))
    high, low, close = (rows[name][sound] for name in ("high", "low", "close"))
    found = sound[np.flatnonzero(spikes(high, low, close))]
    return [
        Finding("candles", int(rows["time"][place]), "spike", _values(rows, int(place)))
        for place in found
    ]


_MINUTES_MS: Final = np.arange(3) * MINUTE_MS
_SUMMED: Final = ("open", "high", "low", "close", "volume", "quote_volume", "trades")


def _values(rows: Arrays, place: int) -> str:
    names = [name for name in ("open", "high", "low", "close", "volume") if name in rows]
    return ", ".join(f"{name} {rows[name][place]:.12g}" for name in names)
