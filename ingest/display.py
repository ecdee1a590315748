"""The service's state for people: tables of a `/status` answer, and of a connection plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ingest.lanes import Lane
from ingest.trouble import troubles

Json = Mapping[str, Any]

_COLOURS = {
    "live": "green", "quiet": "green", "starting": "cyan",
    "late": "yellow", "disconnected": "red", "venue_down": "red", "down": "red",
}  # fmt: skip
_MOST_TROUBLES = 12


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_COLOURS.get(state, ""))


def age_text(age_ms: int | None) -> str:
    """An age as a person reads it.

    >>> age_text(None), age_text(350), age_text(59_400), age_text(7_380_000)
    ('–', '350 ms', '59 s', '2 h 3 min')
    """
    if age_ms is None:
        return "–"
    if age_ms < 1_000:
        return f"{age_ms} ms"
    if age_ms < 60_000:
        return f"{age_ms // 1_000} s"
    minutes = age_ms // 60_000
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def status_view(status: Json) -> RenderableType:
    """Everything that an operator wants to see at once, the worst first."""
    now_ms = status["now_ms"]
    head = Text.assemble(
        state_text(status["state"]),
        f"  {datetime.fromtimestamp(now_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC",
        f"  up {age_text(now_ms - status['started_ms'])}",
    )
    return Group(head, _wrong(status), _exchanges(status), _pairs(status), _delivery(status))


def status_line(status: Json) -> str:
    """The state in one line, for where there is no terminal."""
    pairs = sum(len(exchange["pairs"]) for exchange in status["exchanges"].values())
    lanes = [lane for exchange in status["exchanges"].values() for lane in exchange["connections"]]
    live = sum(lane["state"] == "live" for lane in lanes)
    store, outbox, gaps = status["store"], status["outbox"], status["gaps"]
    return (
        f"{status['state']}: {pairs} pairs, {live} of {len(lanes)} connections live, "
        f"{store['accepted']:,} rows stored, {outbox['rows']:,} waiting, "
        f"{gaps['open']:,} gaps open, {status['minutes']['repaired']:,} minutes fetched by REST"
    )


def _exchanges(status: Json) -> Table:
    table = Table(title="connections", title_justify="left", expand=False)
    for column in ("exchange", "connection", "state", "streams", "open", "last data", "reconnects"):
        table.add_column(column)
    now_ms = status["now_ms"]
    for name, exchange in status["exchanges"].items():
        for connection in exchange["connections"]:
            opened_ms, data_ms = connection["opened_ms"], connection["last_data_ms"]
            table.add_row(
                name,
                connection["id"],
                state_text(connection["state"]),
                str(connection["streams"]),
                age_text(opened_ms and now_ms - opened_ms),
                age_text(data_ms and now_ms - data_ms),
                str(connection["reconnects"]),
            )
    return table


def _pairs(status: Json) -> Table:
    table = Table(title="pairs", title_justify="left", expand=False)
    for column in ("exchange", "channel", "pairs", "states", "oldest"):
        table.add_column(column)
    for name, exchange in status["exchanges"].items():
        channels: dict[str, list[Json]] = {}
        for pair in exchange["pairs"].values():
            for channel, cell in pair.items():
                channels.setdefault(channel, []).append(cell)
        for channel, cells in channels.items():
            counts = Counter(cell["state"] for cell in cells)
            states = Text("  ").join(
                Text.assemble(f"{count} ", state_text(state)) for state, count in counts.items()
            )
            oldest = max((cell["age_ms"] for cell in cells if cell["age_ms"]), default=None)
            table.add_row(name, channel, str(len(cells)), states, age_text(oldest))
    return table


def _wrong(status: Json) -> RenderableType:
    """What is wrong, since when, and what is being done about it."""
    found = troubles(status)
    if not found:
        return Text("nothing is wrong", style="green")
    table = Table(title="what is wrong", title_justify="left", expand=False)
    for column in ("what", "since", "what is being done"):
        table.add_column(column, overflow="fold")
    now_ms = status["now_ms"]
    for trouble in found[:_MOST_TROUBLES]:
        since = "" if trouble.since_ms is None else age_text(now_ms - trouble.since_ms)
        table.add_row(trouble.what, since, trouble.doing)
    if len(found) > _MOST_TROUBLES:
        table.add_row(f"… {len(found) - _MOST_TROUBLES} more", "", "")
    return table


def _delivery(status: Json) -> Table:
    table = Table(title="store", title_justify="left", expand=False)
    for column in ("part", "state", "figures"):
        table.add_column(column)
    store, outbox, gaps = status["store"], status["outbox"], status["gaps"]
    written = f"{store['accepted']:,} rows accepted, {store['rejected']:,} rejected"
    table.add_row(store["kind"], state_text(store["state"]), written)
    waiting = outbox["oldest_ms"] and status["now_ms"] - outbox["oldest_ms"]
    figures = f"{outbox['rows']:,} rows waiting, oldest {age_text(waiting)}"
    table.add_row("outbox", Text(""), figures)
    if status["redis"]["state"] is not None:
        table.add_row("redis", state_text(status["redis"]["state"]), "")
    table.add_row("gaps", Text(""), ", ".join(f"{n:,} {state}" for state, n in gaps.items()))
    minutes = status["minutes"]
    figures = ", ".join(f"{n:,} {what}" for what, n in minutes.items())
    table.add_row("missing minutes", Text(""), figures)
    for what, count in status["dropped"].items():
        table.add_row("dropped", Text(""), f"{what}: {count:,}")
    return table


def plan_view(lanes: Mapping[str, Sequence[Lane]], notes: Sequence[str]) -> RenderableType:
    """The connections that are about to be opened."""
    table = Table(title="connection plan", title_justify="left")
    for column in ("exchange", "connection", "streams", "address"):
        table.add_column(column, overflow="ellipsis", no_wrap=True, max_width=60)
    for exchange, planned in lanes.items():
        for lane in planned:
            table.add_row(exchange, lane.id, str(lane.streams), lane.url)
    return Group(table, *notes)
