"""The status page: one plain table, made on the server, reloaded by the browser."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from readers.tables import age, number, percent
from readers.values import Funding, Mark

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="5">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Market data</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; }
table { border-collapse: collapse; margin-bottom: 2rem; }
th, td { padding: .15rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
.live { color: #08702c; } .quiet { color: #5c6b00; }
.starting, .late, .disconnected, .venue_down { color: #b00020; }
</style></head><body>
"""


def status_page(
    health: Mapping[str, Any],
    marks: Mapping[str, Mapping[str, Mark]],
    fundings: Mapping[str, Mapping[str, Funding]],
) -> str:
    """Every exchange with its pairs, by name."""
    parts = [_HEAD, f"<h1>Market data: {_state(health['state'])}</h1>"]
    for name, exchange in health["exchanges"].items():
        parts.append(f"<h2>{escape(name)}: {_state(exchange['state'])}</h2>")
        parts.append("<table><tr><th>pair<th>mark price<th>age<th>funding rate<th>age</tr>")
        pairs = sorted({*marks[name], *fundings[name]})
        parts += [_row(pair, marks[name].get(pair), fundings[name].get(pair)) for pair in pairs]
        parts.append("</table>")
    parts.append("</body></html>")
    return "\n".join(parts)


def _row(pair: str, mark: Mark | None, funding: Funding | None) -> str:
    cells = [f"<td>{escape(pair)}"]
    cells.append(f"<td>{number(mark.price) if mark else '–'}{_age(mark)}")
    cells.append(f"<td>{percent(funding.rate) if funding else '–'}{_age(funding)}")
    return f"<tr>{''.join(cells)}</tr>"


def _age(reading: Mark | Funding | None) -> str:
    if reading is None:
        return "<td>–"
    state = "live" if reading.age_ms <= reading.deadline_ms else "late"
    return f'<td class="{state}">{age(reading.age_ms)}'


def _state(state: str) -> str:
    return f'<span class="{escape(state)}">{escape(state)}</span>'
