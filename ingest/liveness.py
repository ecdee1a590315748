"""Whether a connection is alive, judged by what it delivers: no clock, no socket."""

from __future__ import annotations

from ingest.lanes import ANY_DATA, ANY_FRAME, Lane

FIRST_DATA_S = 15.0
PROVEN_S = 3.0
"""Data for so long, and the exchange has accepted us."""
HEALTHY_S = 30.0
"""Data for so long, and the back-off starts anew."""


class Liveness:
    """Judges one connection by the data that it delivers.

    Only data counts: an exchange that answers pings and acknowledges subscriptions may still have
    forgotten them. That nothing at all comes tells only sooner that the peer is gone. Times are
    milliseconds of a clock that nobody sets.

    >>> lane = Lane("a", "ws://x", ("t",), {"data": 90.0, "marks": 10.0})
    >>> liveness = Liveness(lane, opened_ms=0)
    >>> liveness.overdue(15_001)
    'no data within 15 s'
    >>> liveness.data("candles", 1_000), liveness.complete
    (True, False)
    >>> liveness.overdue(10_001)
    'no marks for 10 s'
    >>> liveness.data("marks", 11_000), liveness.complete
    (False, True)
    """

    def __init__(self, lane: Lane, opened_ms: int) -> None:
        self.opened_ms = opened_ms
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self._limits_s = lane.silence_s
        self._kinds = lane.kinds
        self._last_ms: dict[str, int] = {}

    def data(self, kind: str, now_ms: int) -> bool:
        """Data of a kind has come; True if it is the first of this connection."""
        last_ms = self._last_ms
        last_ms[kind] = last_ms[ANY_DATA] = last_ms[ANY_FRAME] = self.last_ms = now_ms
        if self.first_ms is not None:
            return False
        self.first_ms = now_ms
        return True

    def frame(self, now_ms: int) -> None:
        """Something has come that isn't data."""
        self._last_ms[ANY_FRAME] = now_ms

    def overdue(self, now_ms: int) -> str | None:
        """What should have come and hasn't; None while all is well."""
        if self.first_ms is None:
            late = now_ms - self.opened_ms > FIRST_DATA_S * 1000
            return f"no data within {FIRST_DATA_S:g} s" if late else None
        for kind, limit_s in self._limits_s.items():
            if now_ms - self._last_ms.get(kind, self.opened_ms) > limit_s * 1000:
                return f"no {kind} for {limit_s:g} s"
        return None

    def silent(self, now_ms: int) -> bool:
        """Whether nothing comes any more, as against one kind of data only."""
        if self.first_ms is None:
            return self.overdue(now_ms) is not None
        return any(
            now_ms - self._last_ms[kind] > self._limits_s[kind] * 1000
            for kind in (ANY_DATA, ANY_FRAME)
            if kind in self._limits_s
        )

    @property
    def complete(self) -> bool:
        """Whether every kind of data that the lane must bring has come."""
        return self.first_ms is not None and self._kinds <= self._last_ms.keys()

    def as_good_as(self, other: Liveness) -> bool:
        """Whether it has brought every kind that the other has brought since this one opened.

        Where a market stands still, an old connection has nothing to show either.
        """
        if self.first_ms is None:
            return False
        lately = {kind for kind, last_ms in other._last_ms.items() if last_ms > self.opened_ms}
        return self._kinds & lately <= self._last_ms.keys()

    @property
    def proven(self) -> bool:
        """Whether it has delivered for more than a moment."""
        return self._delivered_ms >= PROVEN_S * 1000

    @property
    def healthy(self) -> bool:
        """Whether it has delivered long enough to believe in it."""
        return self._delivered_ms >= HEALTHY_S * 1000

    @property
    def _delivered_ms(self) -> int:
        if self.first_ms is None or self.last_ms is None:
            return 0
        return self.last_ms - self.first_ms
