"""Lanes: what a connection is planned to carry, and how a plan changes. Pure.

A plan that changes is stable: what stays subscribed stays where it is, so that a change of a few
pairs costs the connections of the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from marketdata.schema import State

ANY_DATA = "data"
ANY_FRAME = "frames"
"""Whatever comes, answers to our own pings too: a peer that is there at all."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A planned connection.

    Parameters
    ----------
    id
        Unique among the lanes of an exchange: `{group}-{number}`.
    silence_s
        For each kind of data how long none may come before the connection is replaced; the kind
        `data` is all of them together, `frames` is everything that comes.
    doubt_s
        Where silence proves nothing, since nothing may be traded: after how long without data the
        connection is held against a second one (see `liveness.Doubt`).
    lifetime_s
        When the exchange cuts connections of a certain age: how old it may become before that.
    """

    id: str
    url: str
    topics: tuple[str, ...]
    silence_s: Mapping[str, float]
    doubt_s: float | None = None
    lifetime_s: float | None = None

    @property
    def streams(self) -> int:
        return len(self.topics)

    @property
    def group(self) -> str:
        """Topics are unique within a group: the same one may name another market in the next."""
        return self.id.rpartition("-")[0]

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of data that must come, each for itself."""
        return frozenset(self.silence_s) - {ANY_DATA, ANY_FRAME}


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """What a lane is worth now; `last_error` is how its last connection failed.

    `reconnects` counts the connections that had to be replaced, `rotations` those that were left
    for a new one while they still delivered, or might have.
    """

    id: str
    state: State
    opened_ms: int | None
    last_data_ms: int | None
    streams: int
    reconnects: int
    rotations: int
    last_error: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def refill(
    held: Sequence[tuple[str, ...]],
    topics: Iterable[str],
    cost: Callable[[str], int],
    room: int,
    most: int,
) -> list[tuple[str, ...]]:
    """Fill topics into connections: at most `most` each, and `room` in cost.

    Parameters
    ----------
    held
        What the connections carry now; the answer begins with the same connections, in order.
        Topics that stay keep theirs, which may leave one empty. New ones go where there is room,
        first into connections that change anyway, and only then into further ones.

    >>> refill([], ["aa", "b", "ccc", "d"], cost=len, room=4, most=2)
    [('aa', 'b'), ('ccc', 'd')]
    >>> refill([("aa",), ("b", "c")], ["aa", "c", "x", "y"], cost=len, room=4, most=2)
    [('aa', 'y'), ('c', 'x')]
    """
    wanted = dict.fromkeys(topics)
    kept: list[list[str]] = []
    for some in held:
        kept.append([topic for topic in some if topic in wanted])
        for topic in some:
            wanted.pop(topic, None)
    left = [room - sum(map(cost, some)) for some in kept]
    order = [n for n, some in enumerate(held) if len(kept[n]) != len(some)]
    order += [n for n, some in enumerate(held) if len(kept[n]) == len(some)]
    at = 0
    for topic in wanted:
        # Once a connection is full it is left behind for good, so this stays linear.
        while at < len(order) and (cost(topic) > left[order[at]] or len(kept[order[at]]) >= most):
            at += 1
        if at == len(order):
            order.append(len(kept))
            kept.append([])
            left.append(room)
        kept[order[at]].append(topic)
        left[order[at]] -= cost(topic)
    return [tuple(some) for some in kept]


def relane(
    held: Sequence[Lane],
    packed: Sequence[tuple[str, ...]],
    group: str,
    make: Callable[[str, tuple[str, ...]], Lane],
) -> list[Lane]:
    """The lanes of a refilled plan.

    They are the very same where nothing changes, and there is none where nothing is left.

    Parameters
    ----------
    packed
        As `refill` gives it: first what the held lanes carry, then further ones.
    make
        A lane of an id and topics.

    >>> make = lambda id, topics: Lane(id, "ws://x", topics, {})
    >>> held = [make("x-1", ("a",)), make("x-2", ("b",)), make("x-3", ("c",))]
    >>> lanes = relane(held, [("a",), (), ("d",), ("e",)], "x", make)
    >>> [(lane.id, lane.topics) for lane in lanes], lanes[0] is held[0]
    ([('x-1', ('a',)), ('x-3', ('d',)), ('x-2', ('e',))], True)
    """
    lanes = []
    for lane, topics in zip(held, packed, strict=False):
        if topics == lane.topics:
            lanes.append(lane)
        elif topics:
            lanes.append(make(lane.id, topics))
    used = {lane.id for lane in lanes}
    number = 0
    for topics in packed[len(held) :]:
        number += 1
        while f"{group}-{number}" in used:
            number += 1
        lanes.append(make(f"{group}-{number}", topics))
    return lanes


def change_order(held: Sequence[Lane], planned: Sequence[Lane]) -> list[Lane]:
    """The planned lanes that change, in the order in which they are to.

    Those that only gain come first and those that only lose last: where a topic moves, or one
    takes the place of many, nothing is given up before it comes in another way.

    >>> lane = lambda id, *topics: Lane(id, "ws://x", topics, {})
    >>> held = [lane("x-1", "all", "a"), lane("x-2", "b"), lane("x-3", "c")]
    >>> planned = [lane("x-1", "a", "d"), lane("x-2", "b", "e"), lane("x-3", "c")]
    >>> [lane.id for lane in change_order(held, planned)]
    ['x-2', 'x-1']
    """
    before = {lane.id: frozenset(lane.topics) for lane in held}
    none: frozenset[str] = frozenset()

    def step(lane: Lane) -> tuple[bool, bool]:
        had, has = before.get(lane.id, none), frozenset(lane.topics)
        return not has - had, bool(had - has)

    return sorted((lane for lane in planned if lane not in held), key=step)
