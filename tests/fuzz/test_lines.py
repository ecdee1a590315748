"""Rows as lines of InfluxDB's protocol: read back as themselves, or rejected with a reason.

The reader here follows the protocol's description alone:
https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sinks.lineprotocol import LineRenderer
from marketdata.schema import MEASUREMENTS, Column, Measurement, Row
from tests.fuzz.mutation import fuzzed, odd_values
from tests.stores import InfluxStore

NAMES = (
    "BYBIT",
    "BTC/USDT:USDT",
    "币安人生/USDT:USDT",
    "A B",
    "A,B=C",
    '"',
    "%s",
    "100%",
    "null",
    "#",
    "t",
)
MILLISECONDS = st.integers(1_500_000_000_000, 1_900_000_000_000)


@dataclass(frozen=True)
class Point:
    """One line, read."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, float | int | str]
    time: int


def read_line(line: str) -> Point:
    """Read a line strictly; ValueError or IndexError for what is none."""
    if "\n" in line or line.startswith("#"):
        raise ValueError("no single line")
    head, at = _until(line, 0, " ")
    measurement, *tags = _split(head, ",")
    pairs = [_split(tag, "=") for tag in tags]
    fields: dict[str, float | int | str] = {}
    while True:
        name, at = _until(line, at + 1, "=")
        if name in fields:
            raise ValueError(f"{name} twice")
        if line[at + 1] == '"':
            fields[name], at = _string(line, at + 2)
        else:
            text, at = _until(line, at + 1, ", ")
            fields[name] = int(text[:-1]) if text.endswith("i") else _number(text)
        if line[at] == " ":
            break
        if line[at] != ",":
            raise ValueError(f"{line[at]!r} after a field")
    tagged = {_bare(name): _bare(value) for name, value in pairs}
    if len(tagged) != len(pairs):
        raise ValueError("a tag twice")
    return Point(_bare(measurement), tagged, fields, int(line[at + 1 :]))


def _until(line: str, start: int, ends: str) -> tuple[str, int]:
    """What is before the first of `ends` that isn't escaped, and where that is."""
    at = start
    while line[at] not in ends:
        at += 2 if line[at] == "\\" else 1
    return line[start:at], at


def _split(text: str, separator: str) -> list[str]:
    parts, at = [], -1
    text += separator
    while at < len(text) - 1:
        part, at = _until(text, at + 1, separator)
        parts.append(part)
    return parts


def _bare(text: str) -> str:
    for special in ",= ":
        text = text.replace(f"\\{special}", special)
    if not text:
        raise ValueError("an empty name")
    return text


def _string(line: str, start: int) -> tuple[str, int]:
    text, at = "", start
    while line[at] != '"':
        if line[at] == "\\" and line[at + 1] in '"\\':
            at += 1
        text += line[at]
        at += 1
    return text, at + 1


def _number(text: str) -> float:
    number = float(text)
    if not isfinite(number) or text.strip("0123456789.eE+-"):
        raise ValueError(f"{text} is no number")
    return number


def meant(measurement: Measurement, row: Row) -> Point:
    """What the line of a row has to say."""
    values: dict[str, Any] = dict(zip(row._fields, row, strict=True))
    fields = {
        column.name: float(values[column.name]) if column.kind == "float" else values[column.name]
        for column in measurement.fields
        if values[column.name] is not None
    }
    tags = {tag: values[tag] for tag in measurement.tags}
    return Point(measurement.name, tags, fields, values["time"])


def values_of(column: Column) -> st.SearchStrategy[Any]:
    """Values that a column may have."""
    if column.name == "time":
        return MILLISECONDS
    kinds: dict[str, st.SearchStrategy[Any]] = {
        "float": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
        "int": st.integers(-(2**63), 2**63 - 1),
        "str": st.sampled_from(NAMES)
        | st.text(
            st.characters(exclude_categories=["C", "Z"], exclude_characters="\\"), min_size=1
        ),
    }
    return kinds[column.kind] | st.none() if column.nullable else kinds[column.kind]


@st.composite
def rows(draw: st.DrawFn, *, odd: bool) -> tuple[Measurement, list[Row]]:
    """Rows of a measurement; if `odd`, some of their values are of any type."""
    measurement = draw(st.sampled_from(list(MEASUREMENTS.values())))
    make = measurement.row._make
    found = []
    for _ in range(draw(st.integers(1, 4))):
        values = [draw(values_of(column)) for column in measurement.columns]
        for _ in range(draw(st.integers(0, 2)) if odd else 0):
            values[draw(st.integers(0, len(values) - 1))] = draw(odd_values())
        found.append(make(values))
    return measurement, found  # type: ignore[return-value]


@fuzzed(60)
@given(rows(odd=True))
def test_any_row_reads_back_as_itself_or_is_rejected_with_a_reason(
    case: tuple[Measurement, Sequence[Row]],
) -> None:
    measurement, given_rows = case
    lines, sound, rejected = LineRenderer(measurement).render(given_rows)
    assert len(sound) + len(rejected) == len(given_rows)
    for line, row in zip(lines, sound, strict=True):
        point = read_line(line)
        assert point == meant(measurement, row)
        kinds = {name: type(value) for name, value in point.fields.items()}
        assert kinds == {
            name: type(value) for name, value in meant(measurement, row).fields.items()
        }
    for refused in rejected:
        assert refused.row in given_rows or refused.row != refused.row  # NaN
        assert " is " in refused.reason


async def test_what_is_rendered_is_in_a_real_influxdb_as_it_was(
    request: pytest.FixtureRequest,
) -> None:
    batch: dict[str, dict[tuple[object, ...], Row]] = {}

    @fuzzed(40)
    @given(rows(odd=False))
    def collect(case: tuple[Measurement, list[Row]]) -> None:
        measurement, some = case
        for row in some:
            key = tuple(getattr(row, name) for name in measurement.keys)
            batch.setdefault(measurement.name, {})[key] = row

    collect()
    store = InfluxStore(request.getfixturevalue("shared_influx"))
    sink = store.sink()
    try:
        settled = await sink.write({name: list(some.values()) for name, some in batch.items()})
    finally:
        await sink.close()
    assert settled.rejected == ()
    assert settled.accepted == sum(map(len, batch.values())) > 20
    for name, some in batch.items():
        measurement = MEASUREMENTS[name]
        expected = sorted(str(meant(measurement, row)) for row in some.values())
        found = list(store.rows(name))
        assert sorted(str(meant(measurement, row)) for row in found) == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        "m",
        "m,a v=1 1",
        "m v=1",
        "m v=nan 1",
        'm v="a 1',
        "m v=1,v=2 1",
        "m,a=b,a=c v=1 1",
        "#m v=1 1",
    ],
)
def test_the_reader_of_this_test_refuses_what_is_no_line(line: str) -> None:
    with pytest.raises((ValueError, IndexError)):
        read_line(line)
