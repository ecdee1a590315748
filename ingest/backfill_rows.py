"""What of the history is missing in the store, and the rows that fill it; pure.

A row that the store has stays as it is, also where it came another way: only values that differ
make a new revision of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ingest.candles import CandleBook, synthetic_minute
from ingest.holes import Hole
from ingest.model import Kline
from marketdata.schema import CANDLE_MS, MINUTE_MS, Ohlcv


class Candles(NamedTuple):
    """Rows to write, and the close of the range's last minute (None: nothing was traded yet)."""

    minutes: list[Ohlcv]
    candles: list[Ohlcv]
    close: float | None


def candle_holes(present: Collection[int], start_ms: int, end_ms: int) -> list[Hole]:
    """The missing 3-minute candles of a range as contiguous holes, in time order.

    >>> candle_holes({180_000}, 0, 720_000)
    [Hole(start_ms=0, end_ms=180000), Hole(start_ms=360000, end_ms=720000)]
    """
    holes: list[Hole] = []
    for open_ms in range(start_ms, end_ms, CANDLE_MS):
        if open_ms in present:
            continue
        if holes and holes[-1].end_ms == open_ms:
            holes[-1] = Hole(holes[-1].start_ms, open_ms + CANDLE_MS)
        else:
            holes.append(Hole(open_ms, open_ms + CANDLE_MS))
    return holes


def whole(minutes: Collection[int], candles: Iterable[int]) -> set[int]:
    """The candles that are there with their three minutes, by open time.

    >>> whole({0, 60_000, 120_000, 180_000}, [0, 180_000])
    {0}
    """
    return {
        open_ms
        for open_ms in candles
        if all(t in minutes for t in range(open_ms, open_ms + CANDLE_MS, MINUTE_MS))
    }


def fill(
    where: tuple[str, str],
    span: Hole,
    klines: Mapping[int, Kline],
    minutes: Mapping[int, Ohlcv],
    candles: Mapping[int, Ohlcv],
    close: float | None,
) -> Candles:
    """Rows for a range of whole candles out of what the exchange says and the store has.

    Every minute that isn't stored has been asked for: one that the exchange has no row for either
    is flat at the close before it, and doesn't exist before the first trade.

    Parameters
    ----------
    where
        Exchange and pair.
    minutes, candles
        The stored rows of the range, by open time.
    close
        Of the minute before the range; None where there is none.
    """
    statements: list[Kline] = []
    for time_ms in range(span.start_ms, span.end_ms, MINUTE_MS):
        said, kept = klines.get(time_ms), minutes.get(time_ms)
        if said is not None:
            statements.append(said)
            close = said.close
        elif kept is not None:
            close = kept.close
        elif close is not None:
            statements.append(synthetic_minute(*where, time_ms, close))
    book = CandleBook()
    book.load((row for time_ms, row in minutes.items() if time_ms not in klines), ())
    changes = book.apply(statements)
    return Candles(unlike(changes.minutes, minutes), unlike(changes.candles, candles), close)


def unlike(rows: Sequence[Ohlcv], stored: Mapping[int, Ohlcv]) -> list[Ohlcv]:
    """The rows that are not stored, or with other values; those are the next revision.

    >>> row = Ohlcv("X", "A/B", 0, 1.0, 1.0, 1.0, 1.0, 2.0, None, None, "rest", 0)
    >>> unlike([row], {0: row._replace(source="stream", revision=3)})
    []
    >>> unlike([row], {0: row._replace(volume=9.0, revision=3)})[0].revision
    4
    """
    new = []
    for row in rows:
        known = stored.get(row.time)
        if known is None:
            new.append(row._replace(revision=0))
        elif known != row._replace(source=known.source, revision=known.revision):
            new.append(row._replace(revision=known.revision + 1))
    return new
