"""Whether a connection is alive, judged by what it delivers: no clock, no socket."""

from __future__ import annotations

from ingest.lanes import ANY_DATA, ANY_FRAME, Lane

FIRST_DATA_S = 15.0
PROVEN_S = 3.0
"""Data for so long, and the exchange has accepted us."""
HEALTHY_S = 30.0
"""Data for so long, and the back-off starts anew."""
PAUSE_S = 5.0
STEADY_S = 60.0
"""Data for so long without a pause, and silence is no habit of these markets."""
MOST_PATIENCE = 8
FORGET_S = 600.0
"""So long after the last doubt, and what it told is old."""


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
        self.doubt_s = lane.doubt_s
        self._limits_s = lane.silence_s
        self._kinds = lane.kinds
        self._last_ms: dict[str, int] = {}
        self._flowing_since_ms = opened_ms

    def data(self, kind: str, now_ms: int) -> bool:
        """Data of a kind has come; True if it is the first of this connection."""
        if self.last_ms is None or now_ms - self.last_ms > PAUSE_S * 1000:
            self._flowing_since_ms = now_ms
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
    def steady(self) -> bool:
        """Whether data came without a pause for a while, up to the newest."""
        newest_ms = self._flowing_since_ms if self.last_ms is None else self.last_ms
        return newest_ms - self._flowing_since_ms >= STEADY_S * 1000

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


class Doubt:
    """A lane's doubts about connections that bring nothing, from one connection to the next.

    A connection that has died looks like one to markets where nothing is traded. Only a second one
    can tell, so a doubt costs a handshake, and each one that is settled makes the lane wait twice
    as long, up to `MOST_PATIENCE` times, with the next. Data that flow steadily end that, and so
    do `FORGET_S` without a doubt.

    >>> liveness = Liveness(Lane("a", "ws://x", ("t",), {}, doubt_s=10.0), opened_ms=0)
    >>> doubt = Doubt()
    >>> liveness.data("candles", 1_000), doubt.about(liveness, 11_000)
    (True, None)
    >>> doubt.about(liveness, 11_001)
    'no data for 10 s'
    >>> doubt.settled(12_000)
    >>> doubt.about(liveness, 32_000), doubt.about(liveness, 32_001)
    (None, 'no data for 20 s')
    """

    def __init__(self) -> None:
        self._patience = 1
        self._settled_ms: int | None = None

    def about(self, liveness: Liveness, now_ms: int) -> str | None:
        """What the connection is doubted for; None while it isn't."""
        since_ms = liveness.last_ms
        if liveness.doubt_s is None or since_ms is None:
            return None
        if self._settled_ms is not None:
            flows = liveness.steady and since_ms > self._settled_ms
            if flows or now_ms - self._settled_ms > FORGET_S * 1000:
                self._patience, self._settled_ms = 1, None
            else:
                since_ms = max(since_ms, self._settled_ms)
        limit_s = liveness.doubt_s * self._patience
        return f"no data for {limit_s:g} s" if now_ms - since_ms > limit_s * 1000 else None

    def settled(self, now_ms: int) -> None:
        """A second connection has been held against it; whichever is kept, it is believed."""
        self._patience = min(MOST_PATIENCE, 2 * self._patience)
        self._settled_ms = now_ms
