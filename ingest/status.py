"""The service's state as `/status` and `ingest status --json` give it.

Names are those of the configuration: exchanges → connections, and pairs → channels. Ages are in
milliseconds; a channel's age is judged by its own newest event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ingest.freshness import DEADLINE_MS, channel_state, worst
from ingest.hot import HotState
from ingest.supervision import LaneStatus
from marketdata.schema import Last, State

_EVENT_COLUMN = {
    "candles": "candle_event_ms",
    "funding": "funding_event_ms",
    "mark_price": "mark_event_ms",
    "last_price": "price_event_ms",
}
CONNECTED = ("live", "late")


def exchange_status(
    exchange: str,
    lanes: Iterable[LaneStatus],
    channels: Mapping[str, Iterable[str]],
    hot: HotState,
    *,
    now_ms: int,
    since_ms: int,
) -> dict[str, Any]:
    """One exchange: its connections, its pairs, and the worst of both.

    Parameters
    ----------
    channels
        The channels that are collected of each pair.
    since_ms
        When the exchange's pairs were subscribed.
    """
    connections = [lane.as_dict() for lane in lanes]
    up = any(connection["state"] in CONNECTED for connection in connections)
    marks = [_event_ms(hot.get((exchange, pair)), "mark_price") for pair in channels]
    newest_mark_ms = max((mark_ms for mark_ms in marks if mark_ms is not None), default=0)
    marks_live = now_ms - newest_mark_ms <= DEADLINE_MS["mark_price"]
    pairs: dict[str, dict[str, Any]] = {}
    for pair, wanted in channels.items():
        last = hot.get((exchange, pair))
        pairs[pair] = {}
        for channel in wanted:
            event_ms = _event_ms(last, channel)
            state = channel_state(
                channel,
                now_ms=now_ms,
                event_ms=event_ms,
                since_ms=since_ms,
                connected=up,
                siblings_live=marks_live,
            )
            age_ms = None if event_ms is None else max(0, now_ms - event_ms)
            pairs[pair][channel] = {"state": state, "event_ms": event_ms, "age_ms": age_ms}
    states: list[State] = [connection["state"] for connection in connections]
    states += [cell["state"] for cells in pairs.values() for cell in cells.values()]
    return {"state": worst(states), "connections": connections, "pairs": pairs}


def health_fields(status: Mapping[str, Any], now_ms: int) -> dict[str, str | int | float]:
    """The fields of `md:health:{exchange}` out of an exchange's status.

    `state` and `time_ms` of the whole; by connection `{id}.state` and `{id}.age_ms` of its newest
    data; by channel `{channel}.oldest_age_ms` over all pairs.
    """
    fields: dict[str, str | int | float] = {"state": status["state"], "time_ms": now_ms}
    for connection in status["connections"]:
        fields[f"{connection['id']}.state"] = connection["state"]
        if connection["last_data_ms"] is not None:
            fields[f"{connection['id']}.age_ms"] = now_ms - connection["last_data_ms"]
    for cells in status["pairs"].values():
        for channel, cell in cells.items():
            name = f"{channel}.oldest_age_ms"
            if cell["age_ms"] is not None:
                fields[name] = max(int(fields.get(name, 0)), cell["age_ms"])
    return fields


def _event_ms(last: Last | None, channel: str) -> int | None:
    if last is None:
        return None
    event_ms: int | None = getattr(last, _EVENT_COLUMN[channel])
    return event_ms


def is_fresh(status: Mapping[str, Any]) -> bool:
    """Whether everything is as it should be.

    >>> is_fresh({"state": "quiet", "store": {"state": "live"}, "redis": {"state": None}})
    True
    """
    parts = (status["store"]["state"], status["redis"]["state"])
    return status["state"] in ("live", "quiet") and "down" not in parts
