"""Minutes in, closed 3-minute candles out; no clock, no socket.

A `CandleBook` holds the recent minutes of one pair. Whatever order they come in, and however often,
the same minutes give the same candles:

- of two statements about a minute that differ, the one with the later exchange time counts; one
  that the exchange made always beats a synthetic one; equal values change nothing, so the row
  keeps the `source` that it came by first;
- a 3-minute candle is made when its three minutes are there, and again when one of them changes;
- minutes without trades take no part in open, high and low; with none in all three the candle is
  flat at the previous close;
- volumes are summed as decimals and rounded once, so that the sum is what the exchange prints.

Several collectors may write the same store, each with a book of its own. What the store has is
merged into the book, and what then differs from the store is written:

- rows with the same values are one: the better `source` stays (`stream`, `rest`, `synthetic`), and
  the higher `revision`;
- a minute that the book has only from the store, or made up itself, follows the store;
- otherwise what the exchange has said to this book counts as the later statement, since a row
  doesn't tell when it was made, and its revision is above both. `disputed` names such minutes, so
  that the exchange is asked before: what it hasn't said anew stays in the store as it is. The
  minutes of a newer candle that they don't give are disputed too: rows come one after another, and
  those of a correction may have been read in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from ingest.model import Kline
from marketdata.schema import CANDLE_MS, MINUTE_MS, Ohlcv

ZERO = Decimal(0)
EXACT_DIGITS = 15
"""Every decimal of so many digits survives being a float."""

_SOURCES = ("synthetic", "rest", "stream")


class Changes(NamedTuple):
    """Rows that are new or changed: minutes for `ohlcv_1m`, candles for `ohlcv_3m`."""

    minutes: list[Ohlcv]
    candles: list[Ohlcv]


def candle_open_ms(time_ms: int) -> int:
    """Open time of the 3-minute candle that holds an instant.

    >>> candle_open_ms(1_700_000_099_999) % CANDLE_MS
    0
    """
    return time_ms - time_ms % CANDLE_MS


def _minutes_of(candle_ms: int) -> range:
    return range(candle_ms, candle_ms + CANDLE_MS, MINUTE_MS)


def synthetic_minute(exchange: str, symbol: str, minute_ms: int, close: float) -> Kline:
    """A minute for which the exchange confirms that it has no row: flat, nothing traded."""
    return Kline(
        exchange, symbol, minute_ms, close, close, close, close,
        ZERO, ZERO, 0, True, minute_ms + MINUTE_MS, "synthetic",
    )  # fmt: skip


def is_traded(minute: Kline | Ohlcv) -> bool:
    """Whether anything was traded in a minute."""
    return minute.trades > 0 if minute.trades is not None else minute.volume > 0


def _row(minute: Kline, revision: int) -> Ohlcv:
    quote = None if minute.quote_volume is None else float(minute.quote_volume)
    return Ohlcv(
        minute.exchange, minute.symbol, minute.minute_ms,
        minute.open, minute.high, minute.low, minute.close,
        float(minute.volume), quote, minute.trades, minute.source, revision,
    )  # fmt: skip


def _same_values(one: Ohlcv, other: Ohlcv) -> bool:
    return one._replace(source="", revision=0) == other._replace(source="", revision=0)


def following(row: Ohlcv, *others: Ohlcv) -> Ohlcv:
    """A row as it follows others of its key: theirs where the values are the same, else the next.

    >>> row = Ohlcv("X", "A/B", 0, 1.0, 1.0, 1.0, 1.0, 2.0, None, None, "rest", 0)
    >>> same, unlike = row._replace(source="stream"), row._replace(volume=9.0, revision=3)
    >>> following(row, same) == same
    True
    >>> following(row, same, unlike).revision
    4
    """
    same = [other for other in others if _same_values(other, row)]
    revision = max((other.revision + (other not in same) for other in others), default=0)
    source = max((row.source, *(other.source for other in same)), key=_SOURCES.index)
    return row._replace(source=source, revision=max(row.revision, revision))


def is_exact(row: Ohlcv) -> bool:
    """Whether a stored minute's volumes are as the exchange printed them, fit to be summed.

    >>> row = Ohlcv("X", "A/B", 0, 1.0, 1.0, 1.0, 1.0, 0.1, 83084.9, None, "rest", 0)
    >>> is_exact(row), is_exact(row._replace(volume=0.1 + 0.2))
    (True, False)
    """
    volumes = [value for value in (row.volume, row.quote_volume) if value is not None]
    digits = [Decimal(repr(value)).normalize().as_tuple().digits for value in volumes]
    return all(len(some) <= EXACT_DIGITS for some in digits)


def _rank(minute: Kline) -> tuple[bool, int, Decimal, int, float, float, float, float]:
    # Ties in exchange time are broken by how much had been traded, then by value: any rule will
    # do as long as it doesn't depend on the order of arrival.
    return (
        minute.source != "synthetic", minute.event_ms, minute.volume, minute.trades or 0,
        minute.open, minute.high, minute.low, minute.close,
    )  # fmt: skip


def build_candle(minutes: Sequence[Kline], revision: int = 0) -> Ohlcv:
    """Make a 3-minute candle of its three minutes, in time order.

    >>> def minute(n, price, volume, source="stream"):
    ...     return Kline("X", "A/B", n * MINUTE_MS, price, price + 1, price - 1, price,
    ...                  Decimal(volume), None, None, True, n * MINUTE_MS, source)
    >>> candle = build_candle([minute(0, 5.0, "0.1"), minute(1, 9.0, "0"), minute(2, 6.0, "0.2")])
    >>> candle.open, candle.high, candle.low, candle.close, candle.volume
    (5.0, 7.0, 4.0, 6.0, 0.3)
    """
    first, last = minutes[0], minutes[-1]
    traded = [minute for minute in minutes if is_traded(minute)]
    if traded:
        prices = (
            traded[0].open,
            max(minute.high for minute in traded),
            min(minute.low for minute in traded),
            traded[-1].close,
        )
    else:
        prices = (last.close,) * 4
    quotes = [minute.quote_volume for minute in minutes if minute.quote_volume is not None]
    counts = [minute.trades for minute in minutes if minute.trades is not None]
    sources = {minute.source for minute in minutes}
    return Ohlcv(
        first.exchange, first.symbol, first.minute_ms, *prices,
        float(sum((minute.volume for minute in minutes), ZERO)),
        float(sum(quotes, ZERO)) if len(quotes) == len(minutes) else None,
        sum(counts) if len(counts) == len(minutes) else None,
        sources.pop() if len(sources) == 1 else "rest",
        revision,
    )  # fmt: skip


def _stored_minute(row: Ohlcv) -> Kline:
    # A stored row has no event time; zero lets any later statement of the exchange count.
    quote = None if row.quote_volume is None else Decimal(repr(row.quote_volume))
    return Kline(
        row.exchange, row.symbol, row.time, row.open, row.high, row.low, row.close,
        Decimal(repr(row.volume)), quote, row.trades, True, 0, row.source,
    )  # fmt: skip


@dataclass(slots=True)
class CandleBook:
    """The recent minutes and candles of one pair.

    `minutes` holds the last `horizon_ms`; older ones are dropped by `prune` and, when a repair
    needs them, put back by `load` from what is stored.
    """

    horizon_ms: int = 60 * MINUTE_MS
    minutes: dict[int, Kline] = field(default_factory=dict)
    revisions: dict[int, int] = field(default_factory=dict)
    candles: dict[int, Ohlcv] = field(default_factory=dict)

    def load(self, minutes: Iterable[Ohlcv], candles: Iterable[Ohlcv]) -> None:
        """Put back stored rows; what the book knows already stays."""
        for row in minutes:
            if row.time not in self.minutes:
                self.minutes[row.time] = _stored_minute(row)
                self.revisions[row.time] = row.revision
        for row in candles:
            self.candles.setdefault(row.time, row)

    def apply(self, statements: Iterable[Kline]) -> Changes:
        """Take in closed minutes; return the rows that are new or changed.

        A minute older than the horizon is taken as well: the caller decides whether its
        neighbours have been loaded.
        """
        touched: dict[int, None] = {}
        for statement in statements:
            self._take(statement, touched)
        opens = dict.fromkeys(sorted(candle_open_ms(minute_ms) for minute_ms in touched))
        return Changes(
            [_row(self.minutes[t], self.revisions[t]) for t in sorted(touched)],
            [candle for open_ms in opens if (candle := self._candle(open_ms)) is not None],
        )

    def merge(
        self, statements: Iterable[Kline], minutes: Iterable[Ohlcv], candles: Iterable[Ohlcv]
    ) -> Changes:
        """Take in closed minutes where the store has these rows; return what it has to be told.

        A stored minute whose volumes may have been rounded isn't taken into the book.
        """
        stored = {row.time: row for row in minutes}
        made = {row.time: row for row in candles}
        said = list(statements)
        unsure = self.disputed(stored.values(), made.values())
        unsure -= {kline.minute_ms for kline in said}
        for row in stored.values():
            if self._is_taken(row):
                self.minutes[row.time] = _stored_minute(row)
                self.revisions[row.time] = row.revision
        touched: dict[int, None] = {}
        for statement in said:
            self._take(statement, touched)
        for time_ms in (self.minutes.keys() & stored.keys()) - unsure:
            self._follow(stored[time_ms], touched)
        opens = {candle_open_ms(time_ms) for time_ms in (*touched, *stored)} | made.keys()
        opens -= {candle_open_ms(time_ms) for time_ms in unsure} & made.keys()
        return Changes(
            [_row(self.minutes[t], self.revisions[t]) for t in sorted(touched)],
            [c for t in sorted(opens) if (c := self._candle(t, made.get(t))) is not None],
        )

    def disputed(self, minutes: Iterable[Ohlcv], candles: Iterable[Ohlcv]) -> set[int]:
        """Open times of minutes that the exchange has told this book otherwise than these rows."""
        stored = {row.time: row for row in minutes}
        unlike = {
            row.time
            for row in stored.values()
            if row.source != "synthetic"
            and (known := self.minutes.get(row.time)) is not None
            and not _same_values(_row(known, 0), row)
            and not self._yields_to(row)
        }
        taken = {t: _stored_minute(row) for t, row in stored.items() if self._is_taken(row)}
        merged = self.minutes | taken
        for row in candles:
            mine, times = self.candles.get(row.time), _minutes_of(row.time)
            is_news = mine is None or mine.revision < row.revision
            if is_news and all(time_ms in merged for time_ms in times):
                made = build_candle([merged[time_ms] for time_ms in times])
                unlike.update(() if _same_values(made, row) else times)
        return unlike

    def close_before(self, minute_ms: int) -> float | None:
        """The close of the minute before, or None where it isn't known."""
        before = self.minutes.get(minute_ms - MINUTE_MS)
        return None if before is None else before.close

    def prune(self, newest_ms: int) -> None:
        """Forget what is older than the horizon."""
        oldest = candle_open_ms(newest_ms - self.horizon_ms)
        for known in (self.minutes, self.revisions, self.candles):
            for time_ms in [t for t in known if t < oldest]:
                del known[time_ms]

    def _is_taken(self, row: Ohlcv) -> bool:
        """Whether a stored minute is taken into the book."""
        return self._yields_to(row) and is_exact(row)

    def _yields_to(self, row: Ohlcv) -> bool:
        """Whether a stored minute takes the place of what the book has."""
        known = self.minutes.get(row.time)
        if known is None:
            return True
        if _same_values(_row(known, 0), row):
            return False
        if known.source == "synthetic":
            return row.source != "synthetic" or row.revision >= self.revisions[row.time]
        from_store = known.event_ms == 0
        return from_store and row.source != "synthetic" and row.revision > self.revisions[row.time]

    def _follow(self, row: Ohlcv, touched: dict[int, None]) -> None:
        """Count on from a stored minute; it is written where the store has it otherwise."""
        known = self.minutes[row.time]
        mine = following(_row(known, self.revisions[row.time]), row)
        self.minutes[row.time] = known._replace(source=mine.source)
        self.revisions[row.time] = mine.revision
        touched.pop(row.time, None)
        if mine != row:
            touched[row.time] = None

    def _take(self, statement: Kline, touched: dict[int, None]) -> None:
        time_ms = statement.minute_ms
        known = self.minutes.get(time_ms)
        if statement.source == "synthetic":
            close = self.close_before(time_ms)
            if close is not None:
                statement = synthetic_minute(statement.exchange, statement.symbol, time_ms, close)
        if known is None:
            self.minutes[time_ms] = statement
            self.revisions[time_ms] = 0
        elif _same_values(_row(known, 0), _row(statement, 0)):
            event_ms = max(known.event_ms, statement.event_ms)
            real = statement if known.source == "synthetic" else known
            merged = statement._replace(source=real.source, event_ms=event_ms)
            self.minutes[time_ms] = merged
            if merged.source == known.source:
                return
        elif _rank(statement) > _rank(known):
            self.minutes[time_ms] = statement
            self.revisions[time_ms] += 1
        else:
            return
        touched[time_ms] = None
        self._flatten_after(time_ms, touched)

    def _flatten_after(self, time_ms: int, touched: dict[int, None]) -> None:
        """Synthetic minutes follow the close before them when that one becomes known or changes."""
        close = self.minutes[time_ms].close
        following = self.minutes.get(time_ms := time_ms + MINUTE_MS)
        while following is not None and following.source == "synthetic":
            if following.close == close:
                return
            self.minutes[time_ms] = synthetic_minute(
                following.exchange, following.symbol, time_ms, close
            )
            self.revisions[time_ms] += 1
            touched[time_ms] = None
            following = self.minutes.get(time_ms := time_ms + MINUTE_MS)

    def _candle(self, open_ms: int, stored: Ohlcv | None = None) -> Ohlcv | None:
        """Make a candle anew; None where it can't be made, or is as it was."""
        times = _minutes_of(open_ms)
        known = self.candles.get(open_ms)
        if any(time_ms not in self.minutes for time_ms in times):
            if known is None and stored is not None:
                self.candles[open_ms] = stored
            return None
        before = [row for row in (known, stored) if row is not None]
        candle = following(build_candle([self.minutes[time_ms] for time_ms in times]), *before)
        self.candles[open_ms] = candle
        return None if before and candle == before[-1] else candle
