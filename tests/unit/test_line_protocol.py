"""Rows as lines of the line protocol, and which lines a server's refusal means."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.sinks.lineprotocol import LineRenderer
from ingest.sinks.rejections import dropped, unparsable
from marketdata.schema import MEASUREMENTS, FundingRate, Gap, MarkPrice, Row
from tests.stores import EXCHANGE, SYMBOL, TIME, mark, ohlcv, one_of_each


def line(measurement: str, row: Row) -> str:
    (text,) = LineRenderer(MEASUREMENTS[measurement]).lines([row])
    return text


def test_a_candle_has_its_tags_then_its_text_then_its_numbers() -> None:
    assert line("ohlcv_3m", ohlcv()) == (
        "ohlcv_3m,exchange=BINANCE_FUTURES,symbol=BTC/USDT:USDT"
        ' source="stream",open=1.5,high=3.0,low=0.1,close=2.25,volume=0.00001,quote_volume=1e+22,'
        f"trades=12i,revision=0i {TIME}"
    )


def test_a_gap_has_its_channel_as_a_tag() -> None:
    row = Gap(EXCHANGE, SYMBOL, "candles", TIME, TIME + 1, "silent", "open", None)
    assert line("gap", row) == (
        "gap,exchange=BINANCE_FUTURES,symbol=BTC/USDT:USDT,channel=candles"
        f' reason="silent",state="open",until_ms={TIME + 1}i {TIME}'
    )


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, "rate=1.0,predicted_rate=2.0,next_funding_ms=3i,interval_hours=4.0"),
        ({"predicted_rate": None}, "rate=1.0,next_funding_ms=3i,interval_hours=4.0"),
        ({"next_funding_ms": None, "interval_hours": None}, "rate=1.0,predicted_rate=2.0"),
        ({"predicted_rate": None, "next_funding_ms": None, "interval_hours": None}, "rate=1.0"),
    ],
)
def test_absent_fields_are_left_out(changes: dict[str, None], fields: str) -> None:
    row = FundingRate("X", "A/B", 5, 1.0, 2.0, 3, 4.0)._replace(**changes)  # type: ignore[arg-type]
    assert line("funding_rate", row) == f"funding_rate,exchange=X,symbol=A/B {fields} 5"


def test_an_integer_in_a_float_field_stays_a_float_and_a_float_in_an_int_field_is_refused() -> None:
    assert " mark_price=5,index_price=6 " in line("mark_price", mark(mark_price=5, index_price=6))
    with pytest.raises(ValueError, match=re.escape("trades is 12.0, expected int")):
        line("ohlcv_3m", ohlcv(trades=12.0))


@pytest.mark.parametrize(
    ("symbol", "escaped"),
    [
        ("币安人生/USDT:USDT", "币安人生/USDT:USDT"),
        ("A B", r"A\ B"),
        ("A,B=C", r"A\,B\=C"),
        ('"A"', '"A"'),
        ("null", "null"),
        ("100%s", "100%s"),
        ("inf/nan", "inf/nan"),
    ],
)
def test_names_are_escaped(symbol: str, escaped: str) -> None:
    assert line("mark_price", mark(symbol=symbol)).startswith(
        f"mark_price,exchange=BINANCE_FUTURES,symbol={escaped} mark_price="
    )


def test_quotes_in_text_fields_are_escaped() -> None:
    assert r'source="the \"stream\""' in line("ohlcv_3m", ohlcv(source='the "stream"'))


@pytest.mark.parametrize(
    "changes",
    [
        {"mark_price": math.nan},
        {"index_price": math.inf},
        {"mark_price": None},
        {"mark_price": "5.0"},
        {"mark_price": True},
        {"symbol": "A\nB"},
        {"symbol": "A\\"},
        {"exchange": ""},
        {"symbol": ["A"]},
        {"time": None},
        {"time": 1.5},
        {"time": 2**80},
    ],
)
def test_a_bad_row_costs_only_itself_before_and_after_good_ones(changes: dict[str, Any]) -> None:
    renderer = LineRenderer(MEASUREMENTS["mark_price"])
    bad, good = mark(**changes), mark()
    for rows in ([bad, good], [good, bad, good]):
        lines, sound, (rejected,) = renderer.render(rows)
        assert sound == [row for row in rows if row is good]
        assert lines == [line("mark_price", good)] * len(sound)
        assert rejected.row is bad
        assert f"{next(iter(changes))} is " in rejected.reason


def test_every_measurement_can_be_rendered() -> None:
    for name, rows in one_of_each().items():
        lines, sound, rejected = LineRenderer(MEASUREMENTS[name]).render(rows)
        assert (len(lines), sound, rejected) == (len(rows), rows, [])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.sinks.lineprotocol.TEMPLATES_KEPT", 3)
    renderer = LineRenderer(MEASUREMENTS["mark_price"])
    for _ in range(2):
        rows = [mark(symbol=f"P{n}/USDT") for n in range(10)]
        assert renderer.lines(rows) == [line("mark_price", row) for row in rows]
    assert len(renderer._templates) <= 3


finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\\")
)


@given(mark_price=finite, index_price=st.none() | finite, time=st.integers(-(2**62), 2**62))
def test_any_number_reads_back_as_the_same_bits(
    mark_price: float, index_price: float | None, time: int
) -> None:
    text = line("mark_price", MarkPrice("X", "A/B", time, mark_price, index_price))
    _, fields, stamp = text.split(" ")
    read = {name: float(value) for name, _, value in (f.partition("=") for f in fields.split(","))}
    assert int(stamp) == time
    for name, value in (("mark_price", mark_price), ("index_price", index_price)):
        if value is None:
            assert name not in read
        else:
            assert read[name].hex() == value.hex()


@given(symbol=names.filter(bool))
def test_any_name_reads_back_as_itself(symbol: str) -> None:
    text = line("mark_price", mark(symbol=symbol))
    tags = re.split(r"(?<!\\) ", text)[0]
    value = re.split(r"(?<!\\)=", re.split(r"(?<!\\),", tags)[2])[1]
    assert re.sub(r"\\([ ,=])", r"\1", value) == symbol


# What a 400 or a 422 means.


def test_a_400_names_its_lines_even_where_they_hold_quotes_and_the_reason_does_too() -> None:
    lines = ["a v=1 1", "b,s=it's': v=x 1", "c v= 1", "a v=1 1"]
    message = (
        "unable to parse 'b,s=it's': v=x 1': invalid boolean\n"
        "unable to parse 'c v= 1': missing field value: 'v'\n"
        "unable to parse 'not ours': invalid"
    )
    assert unparsable(message, lines) == {1: "invalid boolean", 2: "missing field value: 'v'"}


def test_a_400_that_quotes_a_line_sent_twice_means_both() -> None:
    assert set(unparsable("unable to parse 'x': bad", ["x", "y", "x"])) == {0, 2}


def test_a_400_without_quotes_names_nothing() -> None:
    assert unparsable("max key size exceeded", ["x"]) == {}


CONFLICT = (
    'failure writing points to database: partial write: field type conflict: input field "{}" on'
    ' measurement "{}" is type float, already exists as type integer dropped={}'
)


def test_a_422_of_a_type_conflict_means_the_rows_with_that_field_if_their_number_is_right() -> None:
    points: list[tuple[str, Row]] = [
        ("mark_price", mark()),
        ("ohlcv_3m", ohlcv()),
        ("mark_price", mark(index_price=None)),
        ("mark_price", mark(time=TIME + 1)),
    ]
    assert set(dropped(CONFLICT.format("index_price", "mark_price", 2), points)) == {0, 3}
    assert dropped(CONFLICT.format("index_price", "mark_price", 1), points) == {}
    assert dropped(CONFLICT.format("nothing", "mark_price", 2), points) == {}
    assert dropped(CONFLICT.format("index_price", "unknown", 2), points) == {}


def test_a_422_of_the_retention_means_the_rows_before_its_bound() -> None:
    message = (
        "partial write: dropped 1 points outside retention policy of duration 720h0m0s - oldest"
        " point x at 2025-09-30T00:00:00Z dropped because it violates a Retention Policy Lower"
        " Bound at 2025-10-09T08:53:59.123456789Z, newest point x dropped=1"
    )
    points: list[tuple[str, Row]] = [("mark_price", mark(time=TIME)), ("mark_price", mark(time=0))]
    assert set(dropped(message, points)) == {1}
    assert dropped(message.replace("dropped=1", "dropped=2"), points) == {}
    assert dropped(message.replace("2025-10-09T08:53:59.123456789Z", "some day"), points) == {}


def test_a_422_about_anything_else_names_nothing() -> None:
    assert dropped("input field is too long, 1100000 > 1048576 dropped=1", [("gap", mark())]) == {}
