"""What a pair's channel, a connection, an exchange is worth right now; no clock.

States, best to worst: `live`, `quiet` (nothing comes, and there is proof that nothing happened),
`starting`, `late` (past its deadline), `disconnected`, `venue_down`.
"""

from __future__ import annotations

from collections.abc import Iterable

from marketdata.schema import State

DEADLINE_MS: dict[str, int] = {
    "candles": 90_000,
    "funding": 120_000,
    "mark_price": 10_000,
    "last_price": 90_000,
}
"""How old a channel's newest event may be: a mark price comes each second, a pair's funding is
repeated at least once a minute, a trade may let a minute pass."""

TRADED = ("candles", "last_price")
"""Channels that are rightly silent while nothing is traded."""

STARTING_MS = 15_000

_WORSE: tuple[State, ...] = ("live", "quiet", "starting", "late", "disconnected", "venue_down")


def worst(states: Iterable[State]) -> State:
    """The worst of the parts is the state of the whole; without any part it is `starting`.

    >>> worst(["live", "late", "quiet"])
    'late'
    """
    return max(states, key=_WORSE.index, default="starting")


def channel_state(
    channel: str,
    *,
    now_ms: int,
    event_ms: int | None,
    since_ms: int,
    connected: bool,
    siblings_live: bool,
) -> State:
    """State of one pair's channel.

    Parameters
    ----------
    event_ms
        Time of its newest event, None before the first.
    since_ms
        When the pair was subscribed: before the first event it is `starting`, for a while.
    connected
        Whether the connection that carries it is up.
    siblings_live
        Whether marks of the same exchange flow: proof that silence means that nothing was traded.

    >>> def state(channel, event_ms, **facts):
    ...     facts = {"since_ms": 0, "connected": True, "siblings_live": True} | facts
    ...     return channel_state(channel, now_ms=200_000, event_ms=event_ms, **facts)
    >>> state("mark_price", 195_000), state("mark_price", 150_000), state("candles", 100_000)
    ('live', 'late', 'quiet')
    >>> state("candles", 100_000, siblings_live=False), state("funding", None, connected=False)
    ('late', 'disconnected')
    """
    if event_ms is not None and now_ms - event_ms <= DEADLINE_MS[channel]:
        return "live"
    if not connected:
        return "disconnected" if event_ms or now_ms - since_ms > STARTING_MS else "starting"
    if channel in TRADED and siblings_live:
        return "quiet"
    if event_ms is None and now_ms - since_ms <= max(STARTING_MS, DEADLINE_MS[channel]):
        return "starting"
    return "late"
