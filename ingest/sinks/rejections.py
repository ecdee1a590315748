"""Which lines an InfluxDB 2.x means when it refuses some of a request, pure.

400, nothing is stored; the message quotes every line that can't be parsed, a line each:

    unable to parse '<line>': <reason>

422, the rest is stored; the message has the first reason and how many points were dropped:

    … input field "f" on measurement "m" is type integer, already exists as type float dropped=2
    … violates a Retention Policy Lower Bound at 2026-10-21T00:00:00Z dropped=2

Both functions give the position of each line that is at fault, and the server's words for it. An
empty answer means that the message doesn't tell: then the lines have to be told apart by halving.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from marketdata.schema import MEASUREMENTS, Row

REASON_CHARS = 500
"""How much of a message is kept as the reason: a server quotes a bad line at any length."""

_QUOTE = "unable to parse '"
_CONFLICT = re.compile(r'field "(?P<field>[^"]+)" on measurement "(?P<measurement>[^"]+)" is type')
_LOWER_BOUND = re.compile(r"Retention Policy Lower Bound at (?P<time>[^\s,]+)")
_DROPPED = re.compile(r"dropped=(?P<count>\d+)")


def unparsable(message: str, lines: Sequence[str]) -> dict[int, str]:
    """The lines that a 400 quotes. The quote must match in full, so a quote in a name is no trap.

    >>> unparsable("unable to parse 'b v=': missing field value", ["a v=1", "b v="])
    {1: 'missing field value'}
    """
    positions: dict[str, list[int]] = {}
    for position, line in enumerate(lines):
        positions.setdefault(line, []).append(position)
    found = {}
    for entry in message.split("\n"):
        _, _, quoted = entry.partition(_QUOTE)
        end = quoted.find("': ")
        while end >= 0 and quoted[:end] not in positions:
            end = quoted.find("': ", end + 1)
        if end >= 0:
            reason = quoted[end + 3 :][:REASON_CHARS]
            found.update(dict.fromkeys(positions[quoted[:end]], reason))
    return found


def dropped(message: str, points: Sequence[tuple[str, Row]]) -> dict[int, str]:
    """The points (measurement and row) that a 422 is about, if their number is the server's own.

    >>> from marketdata.schema import LastPrice
    >>> rows = [LastPrice("BYBIT", "BTC/USDT", time, 1.0) for time in (0, 1_000)]
    >>> message = "violates a Retention Policy Lower Bound at 1970-01-01T00:00:00.5Z dropped="
    >>> list(dropped(message + "1", [("last_price", row) for row in rows]))
    [0]
    >>> dropped(message + "2", [("last_price", row) for row in rows])
    {}
    """
    count = _DROPPED.search(message)
    if conflict := _CONFLICT.search(message):
        suspects = _with_field(conflict, points)
    elif bound := _LOWER_BOUND.search(message):
        suspects = _older_than(bound["time"], points)
    else:
        return {}
    if count is None or int(count["count"]) != len(suspects):
        return {}
    return dict.fromkeys(suspects, message[:REASON_CHARS])


def _with_field(conflict: re.Match[str], points: Sequence[tuple[str, Row]]) -> list[int]:
    name, field = conflict["measurement"], conflict["field"]
    if name not in MEASUREMENTS or field not in MEASUREMENTS[name].row._fields:
        return []
    column = MEASUREMENTS[name].row._fields.index(field)
    return [
        position
        for position, (measurement, row) in enumerate(points)
        if measurement == name and row[column] is not None
    ]


def _older_than(bound: str, points: Sequence[tuple[str, Row]]) -> list[int]:
    try:
        bound_ms = datetime.fromisoformat(bound).timestamp() * 1000
    except ValueError:
        return []
    return [position for position, (_, row) in enumerate(points) if row.time < bound_ms]
