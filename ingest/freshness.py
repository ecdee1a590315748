"""What every pair's channel is worth right now: a state machine of one exchange; no clock.

Fed with events, the ups and downs of connections and what REST says, it knows at each tick of the
clock the state of each channel, and tells what has changed. The same code runs live and in replay.

- `live`: the newest event is younger than the channel's deadline.
- `quiet`: nothing comes, and there is proof that nothing happened: the channel is one of trades,
  and its connection delivers other things, or REST has confirmed the silence; a last price also
  stands while the pair's klines end at it.
- `late`: past its deadline without such proof, or REST has shown that something did happen.
- `disconnected`: the connection that carries it is down.
- `venue_down`: the exchange says so, or nothing of it can be reached.

Ages are by the exchange's clock: `ClockOffset` estimates how far it is from ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from marketdata.deadlines import DEADLINE_MS
from marketdata.schema import STATES, GapReason, State

TRADED = ("candles", "last_price")
"""Channels that are rightly silent while nothing is traded."""

STARTING_MS = 15_000
OFFSET_WINDOW_MS = 60_000
WRONG_CLOCK_MS = 30_000
"""A difference that no network explains."""

_DOWN = ("disconnected", "venue_down")

LaneOf = Callable[[str, str], str | None]
"""The connection that carries a pair's channel."""


class Change(NamedTuple):
    """A channel's state has changed; it had been in the old one since `since_ms`.

    `event_ms` is its newest event, None before the first.
    """

    pair: str
    channel: str
    old: State
    new: State
    since_ms: int
    event_ms: int | None


def worst(states: Iterable[State]) -> State:
    """The worst of the parts is the state of the whole; without any part it is `starting`.

    >>> worst(["live", "late", "quiet"])
    'late'
    """
    return max(states, key=STATES.index, default="starting")


@dataclass(slots=True)
class ClockOffset:
    """How far the exchange's clock is ahead of ours, in ms, from its events' times of arrival.

    An event can't arrive before it happened, so the largest difference seen in a while is the one
    with the least of the network in it. Two windows in turn forget what is no longer so.

    >>> offset = ClockOffset()
    >>> offset.event(event_ms=1_000, received_ms=1_080)
    >>> offset.event(event_ms=2_000, received_ms=2_030)
    >>> offset.ms
    -30
    """

    _started_ms: int = 0
    _newest: int | None = None
    _before: int | None = None

    def event(self, event_ms: int, received_ms: int) -> None:
        """Take in an event; times of the exchange's clock and of ours."""
        ahead_ms = event_ms - received_ms
        if received_ms - self._started_ms > OFFSET_WINDOW_MS:
            self._before, self._newest, self._started_ms = self._newest, ahead_ms, received_ms
        elif self._newest is None or ahead_ms > self._newest:
            self._newest = ahead_ms

    @property
    def ms(self) -> int:
        """Exchange's time minus ours; 0 while nothing is known."""
        known = [ahead_ms for ahead_ms in (self._newest, self._before) if ahead_ms is not None]
        return max(known, default=0)

    @property
    def is_wrong(self) -> bool:
        """Whether one of the clocks is wrong."""
        return abs(self.ms) > WRONG_CLOCK_MS


@dataclass(slots=True)
class _Cell:
    """One pair's channel."""

    since_ms: int
    """In its state since then."""
    followed_ms: int
    state: State = "starting"
    event_ms: int | None = None
    quiet_until_ms: int = 0
    """It is confirmed that nothing happened up to then."""
    silent: bool = False
    """REST has shown what the stream didn't bring."""


@dataclass(slots=True)
class _Lane:
    """One connection: up or not since `since_ms`, and its newest data."""

    up: bool = False
    since_ms: int = 0
    data_ms: int = 0


class Freshness:
    """The states of one exchange's channels.

    Parameters
    ----------
    lane_of
        Says which connection carries a pair's channel.

    >>> freshness = Freshness(lambda pair, channel: "lane")
    >>> freshness.follow({"A/B:B": ["mark_price"]}, now_ms=0)
    >>> freshness.connection("lane", up=True, now_ms=0)
    >>> freshness.event("A/B:B", "mark_price", event_ms=1_000, received_ms=1_000)
    >>> [(change.new, change.since_ms) for change in freshness.tick(2_000)]
    [('live', 0)]
    >>> [change.new for change in freshness.tick(11_001)]
    ['late']
    """

    def __init__(self, lane_of: LaneOf) -> None:
        self.offset = ClockOffset()
        self.venue_down = False
        self._lane_of = lane_of
        self._cells: dict[tuple[str, str], _Cell] = {}
        self._lanes: dict[str, _Lane] = {}

    def follow(self, channels: Mapping[str, Iterable[str]], now_ms: int) -> None:
        """Judge these pairs' channels from now on, and no others."""
        wanted = [(pair, channel) for pair, some in channels.items() for channel in some]
        known = self._cells
        self._cells = {
            key: known.get(key) or _Cell(since_ms=now_ms, followed_ms=now_ms) for key in wanted
        }

    def event(self, pair: str, channel: str, event_ms: int, received_ms: int) -> None:
        """An event has come; runs a thousand times a second."""
        cell = self._cells.get((pair, channel))
        if cell is None:
            return
        if cell.event_ms is None or event_ms > cell.event_ms:
            cell.event_ms = event_ms
        cell.silent = False
        self.offset.event(event_ms, received_ms)
        lane = self._lanes.get(self._lane_of(pair, channel) or "")
        if lane is not None:
            lane.data_ms = received_ms

    def connection(self, lane: str, *, up: bool, now_ms: int) -> None:
        """Whether a connection is up; told at least when that changes."""
        known = self._lanes.setdefault(lane, _Lane(since_ms=now_ms))
        if known.up != up:
            known.up, known.since_ms = up, now_ms

    @property
    def all_down_since_ms(self) -> int | None:
        """Since when no connection at all is up; None while one is."""
        if not self._lanes or any(lane.up for lane in self._lanes.values()):
            return None
        return max(lane.since_ms for lane in self._lanes.values())

    def delivers(self, pair: str, channel: str, now_ms: int) -> bool:
        """Whether the connection that carries a pair's channel brings other things."""
        lane = self._lanes.get(self._lane_of(pair, channel) or "")
        return lane is not None and lane.up and now_ms - lane.data_ms <= DEADLINE_MS["mark_price"]

    def reason(self, pair: str, channel: str, start_ms: int) -> GapReason:
        """Why what began at `start_ms` didn't come by stream."""
        if self.venue_down:
            return "venue_down"
        lane = self._lanes.get(self._lane_of(pair, channel) or "")
        whole_time_up = lane is not None and lane.up and lane.since_ms <= start_ms
        return "silent" if whole_time_up else "disconnected"

    def confirm_quiet(self, pair: str, until_ms: int) -> None:
        """REST says that nothing was traded up to `until_ms`."""
        for channel in TRADED:
            cell = self._cells.get((pair, channel))
            if cell is not None:
                cell.quiet_until_ms = max(cell.quiet_until_ms, until_ms)
                cell.silent = False

    def confirm_price(self, pair: str, until_ms: int) -> None:
        """A kline says that the newest last price still was the last one at `until_ms`."""
        cell = self._cells.get((pair, "last_price"))
        if cell is not None:
            cell.quiet_until_ms = max(cell.quiet_until_ms, until_ms)

    def confirm_silent(self, pair: str) -> None:
        """REST has a trade that the stream, though connected, didn't bring."""
        for channel in TRADED:
            cell = self._cells.get((pair, channel))
            if cell is not None:
                cell.silent = True

    def tick(self, now_ms: int) -> list[Change]:
        """Judge everything; what has changed since the last time."""
        changes = []
        for (pair, channel), cell in self._cells.items():
            state = self._judge(pair, channel, cell, now_ms)
            if state != cell.state:
                changes.append(
                    Change(pair, channel, cell.state, state, cell.since_ms, cell.event_ms)
                )
                cell.state, cell.since_ms = state, now_ms
        return changes

    def state(self, pair: str, channel: str) -> State:
        """The state at the last tick; `starting` for what isn't followed."""
        cell = self._cells.get((pair, channel))
        return "starting" if cell is None else cell.state

    def since_ms(self, pair: str, channel: str) -> int:
        """Since when it is in that state."""
        return self._cells[pair, channel].since_ms

    def event_ms(self, pair: str, channel: str) -> int | None:
        """Time of the newest event."""
        cell = self._cells.get((pair, channel))
        return None if cell is None else cell.event_ms

    def age_ms(self, pair: str, channel: str, now_ms: int) -> int | None:
        """Age of the newest event by the exchange's clock."""
        event_ms = self.event_ms(pair, channel)
        return None if event_ms is None else max(0, now_ms + self.offset.ms - event_ms)

    def channels(self) -> Mapping[str, list[str]]:
        """What is judged: channels by pair."""
        found: dict[str, list[str]] = {}
        for pair, channel in self._cells:
            found.setdefault(pair, []).append(channel)
        return found

    def _judge(self, pair: str, channel: str, cell: _Cell, now_ms: int) -> State:
        deadline_ms = DEADLINE_MS[channel]
        age_ms = None if cell.event_ms is None else now_ms + self.offset.ms - cell.event_ms
        if age_ms is not None and age_ms <= deadline_ms and not cell.silent:
            return "live"
        lane = self._lanes.get(self._lane_of(pair, channel) or "")
        starting = cell.event_ms is None and now_ms - cell.followed_ms <= STARTING_MS
        if self.venue_down:
            return "venue_down"
        if lane is None or not lane.up:
            return "starting" if starting else "disconnected"
        if starting:
            return "starting"
        if cell.state in _DOWN and now_ms - lane.since_ms <= STARTING_MS:
            return "disconnected"  # its connection is back, but not yet its data
        if channel not in TRADED or cell.silent:
            return "late"
        confirmed = now_ms + self.offset.ms - cell.quiet_until_ms <= deadline_ms
        return "quiet" if confirmed or self.delivers(pair, channel, now_ms) else "late"
