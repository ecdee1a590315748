"""What is wrong, since when, and what is being done: a `/status` answer in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ingest.freshness import WRONG_CLOCK_MS

Json = Mapping[str, Any]

_WRONG = ("late", "disconnected", "venue_down")
_NAMED = 3

_DOING = {
    "late": "its connection is replaced, missing minutes are fetched by REST",
    "disconnected": "the connection is opened again, at most ten tries a minute",
    "venue_down": "asked each 15 s whether it is back; then everything missing is fetched",
}


class Trouble(NamedTuple):
    """One thing that is wrong; `since_ms` is None where it isn't known."""

    what: str
    since_ms: int | None
    doing: str


def troubles(status: Json) -> list[Trouble]:
    """Everything that is wrong, the worst first.

    >>> pair = {"mark_price": {"state": "late", "since_ms": 5, "event_ms": 1, "age_ms": 9}}
    >>> exchange = {"state": "late", "clock_ahead_ms": 0, "connections": [],
    ...             "pairs": {"A/B:B": pair}}
    >>> store = {"kind": "sqlite", "state": "live", "error": None, "aside": 0,
    ...          "last_success_ms": 1}
    >>> (trouble,) = troubles({"exchanges": {"X": exchange}, "store": store,
    ...                        "outbox": {"rows": 0, "oldest_ms": None, "state": "live"},
    ...                        "redis": {"state": None}, "gaps": {"open": 0}})
    >>> trouble.what, trouble.since_ms
    ('X: mark_price of 1 pair is late (A/B:B)', 5)
    """
    found = [*_store(status)]
    for name, exchange in status["exchanges"].items():
        found += _exchange(name, exchange)
    if status["gaps"]["open"]:
        count = status["gaps"]["open"]
        what = "1 gap is open" if count == 1 else f"{count:,} gaps are open"
        found.append(Trouble(what, None, "fetched by REST, newest first, within the weight budget"))
    return found


def _store(status: Json) -> Iterator[Trouble]:
    store, outbox = status["store"], status["outbox"]
    if outbox["state"] == "down":
        doing = "tried each second; rows wait in memory, ticks beyond its bound are dropped"
        yield Trouble(f"nothing can be kept: {outbox['error']}", outbox["since_ms"], doing)
    if store["state"] == "down":
        what = f"the store ({store['kind']}) takes nothing: {store['error']}"
        doing = f"{outbox['rows']:,} rows wait on disk, nothing is lost; tried again for ever"
        yield Trouble(what, store["last_success_ms"] or outbox["oldest_ms"], doing)
    elif store["aside"]:
        what = f"the store ({store['kind']}) fails on some rows, and takes the others"
        doing = "those are set aside and tried again for ever; the log says why (shelf_set_aside)"
        yield Trouble(what, outbox["oldest_ms"], doing)
    if status["redis"]["state"] == "down":
        yield Trouble("Redis is away", None, "tried each second; the store has everything")


def _exchange(name: str, exchange: Json) -> Iterator[Trouble]:
    if exchange["state"] == "venue_down":
        since = [cell["since_ms"] for _, _, cell in _cells(exchange)]
        yield Trouble(f"{name} is down", min(since, default=None), _DOING["venue_down"])
        return
    ahead_ms = exchange["clock_ahead_ms"]
    if abs(ahead_ms) > WRONG_CLOCK_MS:
        what = f"{name}'s clock and this host's differ by {ahead_ms / 1000:,.0f} s"
        yield Trouble(what, None, "ages are corrected; set this host's clock")
    for lane in exchange["connections"]:
        if lane["state"] in _WRONG:
            what = f"{name}: connection {lane['id']} is {lane['state']}: {lane['last_error']}"
            yield Trouble(what, lane["last_data_ms"], _DOING[lane["state"]])
    alike: dict[tuple[str, str], list[tuple[str, int]]] = {}
    for pair, channel, cell in _cells(exchange):
        if cell["state"] in _WRONG:
            alike.setdefault((channel, cell["state"]), []).append((pair, cell["since_ms"]))
    for (channel, state), pairs in alike.items():
        some = ", ".join(pair for pair, _ in pairs[:_NAMED])
        more = ", …" if len(pairs) > _NAMED else ""
        noun = "pair" if len(pairs) == 1 else "pairs"
        what = f"{name}: {channel} of {len(pairs)} {noun} is {state} ({some}{more})"
        yield Trouble(what, min(since_ms for _, since_ms in pairs), _DOING[state])


def _cells(exchange: Json) -> Iterator[tuple[str, str, Json]]:
    for pair, cells in exchange["pairs"].items():
        for channel, cell in cells.items():
            yield pair, channel, cell
