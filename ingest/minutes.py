"""Which closed minutes haven't come: found out once a second, and entered into the ledger. Pure.

The same code runs live, where the repairer fetches what it finds, and in replay, where the ledger
then shows what live has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ingest.candles import CandleBook, is_traded
from ingest.freshness import Freshness
from ingest.gaps import Ledger
from ingest.holes import Hole, find_holes
from ingest.hot import PairKey
from marketdata.schema import CANDLE_MS, MINUTE_MS, GapReason, GapState

GRACE_MS = 4_000
"""A minute is missing when this long has passed since its close."""


@dataclass(slots=True)
class _Watched:
    """Every minute before `complete_ms` is there or given up; `done` holds later ones that needn't
    be in the candle book: repaired long after, or lost."""

    complete_ms: int
    done: set[int] = field(default_factory=set)


class MinuteWatch:
    """The minutes of one exchange's pairs.

    Parameters
    ----------
    books
        The candle books that closed minutes arrive in.
    """

    def __init__(
        self, exchange: str, books: Mapping[PairKey, CandleBook], freshness: Freshness
    ) -> None:
        self.ledger = Ledger(step_ms=MINUTE_MS)
        self._exchange = exchange
        self._books = books
        self._freshness = freshness
        self._watched: dict[str, _Watched] = {}
        self._dropped_ms = 0

    def follow(self, pair: str, since_ms: int) -> None:
        """Watch a pair's minutes from `since_ms` on."""
        self._watched[pair] = _Watched(since_ms)

    def rewind(self, pair: str, since_ms: int) -> None:
        """Watch from this minute on, if that is earlier: it isn't there yet after all."""
        watched = self._watched.get(pair)
        if watched is not None:
            watched.complete_ms = min(watched.complete_ms, since_ms)

    def forget(self, pair: str, now_ms: int) -> None:
        """Watch it no longer; what is missing of it is lost."""
        self._watched.pop(pair, None)
        self.ledger.give_up(self._key(pair), now_ms)

    def dropped(self, now_ms: int) -> None:
        """A message was lost on our side a moment ago, of whichever pair."""
        self._dropped_ms = now_ms

    def look(self, pair: str, now_ms: int) -> list[Hole]:
        """The minutes that should have closed by now and haven't come.

        A pair that is quiet, with proof, is looked at once a candle instead of once a minute.
        """
        watched = self._watched[pair]
        quiet = self._freshness.state(pair, "candles") == "quiet"
        step_ms = CANDLE_MS if quiet else MINUTE_MS
        # Minutes close by the exchange's clock.
        exchange_ms = now_ms + self._freshness.offset.ms
        due_ms = (exchange_ms - GRACE_MS) // step_ms * step_ms
        minutes = self._books[self._exchange, pair].minutes
        start_ms = complete_ms = watched.complete_ms
        while complete_ms < due_ms and (complete_ms in minutes or complete_ms in watched.done):
            watched.done.discard(complete_ms)
            complete_ms += MINUTE_MS
        watched.complete_ms = complete_ms
        if self.ledger.holes(self._key(pair)):
            # What was missing may have come by stream after all, late.
            there = [t for t in range(start_ms, due_ms, MINUTE_MS) if t in minutes]
            traded = [t for t in there if is_traded(minutes[t])]
            self.found(pair, traded, "repaired", now_ms)
            self.found(pair, there, "empty", now_ms)
        if complete_ms >= due_ms:
            return []
        holes = find_holes(minutes.keys() | watched.done, complete_ms, due_ms)
        for hole in holes:
            self._enter(pair, hole)
        return holes

    def settle(self, pair: str, times: Iterable[int]) -> None:
        """These minutes are dealt with, whether or not the book keeps them."""
        watched = self._watched.get(pair)
        if watched is not None:
            watched.done.update(t for t in times if t >= watched.complete_ms)

    def missing(self, pair: str, hole: Hole, reason: GapReason) -> None:
        """Enter a hole into the ledger."""
        times = range(hole.start_ms, hole.end_ms, MINUTE_MS)
        self.ledger.missing(self._key(pair), times, reason)

    def found(self, pair: str, times: Iterable[int], state: GapState, now_ms: int) -> None:
        """Enter what became of missing minutes."""
        self.ledger.found(self._key(pair), times, state, now_ms)

    def _enter(self, pair: str, hole: Hole) -> None:
        # Minute by minute: a hole that grows may do so for another reason than it began.
        for minute_ms in range(hole.start_ms, hole.end_ms, MINUTE_MS):
            if not self.ledger.knows(self._key(pair), minute_ms):
                self.ledger.missing(self._key(pair), [minute_ms], self._reason(pair, minute_ms))

    def _reason(self, pair: str, minute_ms: int) -> GapReason:
        reason = self._freshness.reason(pair, "candles", minute_ms)
        lost_meanwhile = minute_ms <= self._dropped_ms < minute_ms + MINUTE_MS + 2 * GRACE_MS
        return "dropped" if reason == "silent" and lost_meanwhile else reason

    def _key(self, pair: str) -> tuple[str, str, str]:
        return self._exchange, pair, "candles"
