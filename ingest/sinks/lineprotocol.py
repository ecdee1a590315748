"""Rows as lines of InfluxDB's line protocol, pure and fast.

    ohlcv_3m,exchange=BYBIT,symbol=BTC/USDT source="stream",open=1.5,…,trades=12i 1700000000000

Everything textual (tags and string fields) repeats from row to row. So each combination of texts,
and of the numbers' types, has one format string, made once; looking it up by the types pins them (a
float field stays a float, even where the row holds an integer), leaves absent fields out, and
notices a value of the wrong type without looking at each. The numbers of all rows become text in
one call of orjson, whose shortest floats cost a fifth of `repr`. Times are in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import orjson

from ingest.sinks.base import Rejected, fault
from marketdata.schema import Measurement, Row

TEMPLATES_KEPT = 65_536
"""Kept per measurement before all are forgotten: a bound that real pairs don't come near."""

_TAG_ESCAPES = str.maketrans({" ": r"\ ", ",": r"\,", "=": r"\="})
_STRING_ESCAPES = str.maketrans({'"': r"\""})


class LineRenderer:
    r"""Renders the rows of one measurement.

    >>> from marketdata.schema import MEASUREMENTS, FundingRate
    >>> renderer = LineRenderer(MEASUREMENTS["funding_rate"])
    >>> print(*renderer.lines([FundingRate("BYBIT", "A B/USDT:USDT", 1000, 1e-05, None, 7, None)]))
    funding_rate,exchange=BYBIT,symbol=A\ B/USDT:USDT rate=0.00001,next_funding_ms=7i 1000
    """

    def __init__(self, measurement: Measurement) -> None:
        self.measurement = measurement
        columns = measurement.columns
        texts = [n for n, column in enumerate(columns) if column.kind == "str"]
        numbers = [
            n
            for n, column in enumerate(columns)
            if column.kind != "str" and column.name not in measurement.keys
        ]
        time = next(n for n, column in enumerate(columns) if column.name == "time")
        self._texts = itemgetter(*texts)
        self._text_names = [columns[n].name for n in texts]
        self._numbers = itemgetter(*numbers, time)
        self._number_columns = [columns[n] for n in numbers]
        self._templates: dict[tuple[object, object], str] = {}

    def render(self, rows: Sequence[Row]) -> tuple[list[str], Sequence[Row], list[Rejected]]:
        """Lines, the rows that they stand for, and the rows that no store would take."""
        try:
            return self.lines(rows), rows, []
        except (TypeError, ValueError):
            name = self.measurement.name
            reasons = [(row, fault(self.measurement, row)) for row in rows]
            sound = [row for row, why in reasons if why is None]
            rejected = [Rejected(name, row, why) for row, why in reasons if why is not None]
            return self.lines(sound), sound, rejected

    def lines(self, rows: Sequence[Row]) -> list[str]:
        """One line a row; TypeError or ValueError if there is a `fault` in any."""
        known = self._templates
        templates: list[str] = []
        values: list[float | int | None] = []
        for row in rows:
            numbers = self._numbers(row)
            kind = self._texts(row), tuple(map(type, numbers))
            templates.append(known.get(kind) or self._learn(row, *kind))
            values += numbers
        encoded = orjson.dumps(values)
        if encoded.count(b"null") != values.count(None):
            raise ValueError("a number is not finite")  # orjson writes null for those as well
        texts_of_values = iter(encoded[1:-1].decode().split(","))
        by_row = zip(*[texts_of_values] * (len(self._number_columns) + 1), strict=False)
        return [template % numbers for template, numbers in zip(templates, by_row, strict=False)]

    def _learn(self, row: Row, texts: tuple[str, ...], types: tuple[type, ...]) -> str:
        """The format string of rows with these texts, and numbers of these types."""
        reason = fault(self.measurement, row)
        if reason is not None:
            raise ValueError(reason)
        if len(self._templates) >= TEMPLATES_KEPT:
            self._templates.clear()
        template = self._head(texts).replace("%", "%%") + self._fields(types) + " %s"
        self._templates[texts, types] = template
        return template

    def _head(self, texts: tuple[str, ...]) -> str:
        values = dict(zip(self._text_names, texts, strict=True))
        tags = "".join(
            f",{name}={values.pop(name).translate(_TAG_ESCAPES)}" for name in self.measurement.tags
        )
        strings = "".join(
            f'{name}="{value.translate(_STRING_ESCAPES)}",' for name, value in values.items()
        )
        return f"{self.measurement.name}{tags} {strings}"

    def _fields(self, types: tuple[type, ...]) -> str:
        template = comma = ""
        for column, kind in zip(self._number_columns, types[:-1], strict=True):
            if kind is type(None):
                template += "%.0s"  # takes the value and prints nothing
                continue
            template += f"{comma}{column.name}=%s{'i' if column.kind == 'int' else ''}"
            comma = ","
        return template
