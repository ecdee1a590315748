"""The service's state as `/status` and `ingest status --json` give it.

Names are those of the configuration: exchanges → connections, and pairs → channels. Ages are in
milliseconds; a channel's age is judged by its own newest event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ingest.freshness import Freshness, worst
from ingest.lanes import LaneStatus
from marketdata.schema import State


def exchange_status(
    lanes: Iterable[LaneStatus], freshness: Freshness, *, now_ms: int
) -> dict[str, Any]:
    """One exchange: its connections, its pairs, how far its clock is ahead, the worst of it."""
    connections = [lane.as_dict() for lane in lanes]
    pairs: dict[str, dict[str, Any]] = {}
    for pair, channels in freshness.channels().items():
        pairs[pair] = {
            channel: {
                "state": freshness.state(pair, channel),
                "since_ms": freshness.since_ms(pair, channel),
                "event_ms": freshness.event_ms(pair, channel),
                "age_ms": freshness.age_ms(pair, channel, now_ms),
            }
            for channel in channels
        }
    states: list[State] = [connection["state"] for connection in connections]
    states += [cell["state"] for cells in pairs.values() for cell in cells.values()]
    return {
        "state": "venue_down" if freshness.venue_down else worst(states),
        "clock_ahead_ms": freshness.offset.ms,
        "connections": connections,
        "pairs": pairs,
    }


def health_fields(status: Mapping[str, Any], now_ms: int) -> dict[str, str | int | float]:
    """The fields of `md:health:{exchange}` out of an exchange's status.

    `state`, `time_ms` and `clock_ahead_ms` of the whole; by connection `{id}.state` and
    `{id}.age_ms` of its newest data; by channel `{channel}.oldest_age_ms` over all pairs; and by
    pair `{symbol}.{channel}`, the state, where that isn't `live`.
    """
    fields: dict[str, str | int | float] = {
        "state": status["state"],
        "time_ms": now_ms,
        "clock_ahead_ms": status["clock_ahead_ms"],
    }
    for connection in status["connections"]:
        fields[f"{connection['id']}.state"] = connection["state"]
        if connection["last_data_ms"] is not None:
            fields[f"{connection['id']}.age_ms"] = now_ms - connection["last_data_ms"]
    for pair, cells in status["pairs"].items():
        for channel, cell in cells.items():
            name = f"{channel}.oldest_age_ms"
            if cell["age_ms"] is not None:
                fields[name] = max(int(fields.get(name, 0)), cell["age_ms"])
            if cell["state"] != "live":
                fields[f"{pair}.{channel}"] = cell["state"]
    return fields


def is_fresh(status: Mapping[str, Any]) -> bool:
    """Whether everything is as it should be.

    >>> up = {"state": "live"}
    >>> is_fresh({"state": "quiet", "store": up, "outbox": up, "redis": {"state": None}})
    True
    """
    parts = [status[part]["state"] for part in ("store", "outbox", "redis")]
    return status["state"] in ("live", "quiet") and "down" not in parts
