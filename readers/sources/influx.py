"""Reads InfluxDB 2.x by InfluxQL: JSON for hot reads, chunked CSV into Arrow for bulk.

Every query has a time bound, and values travel as bound parameters. JSON shows errors; CSV hides
them behind an empty or a short answer, so the server first counts the rows of a bulk read, in JSON.
The counts also cut the range into pieces, of which some are read at once, and each is compared with
its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict, cast
from urllib.parse import urlsplit

import orjson
import urllib3

from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import LAST, MEASUREMENTS, Column, Last, Row
from readers.sources.base import row_class, text_columns

if TYPE_CHECKING:
    import pyarrow as pa

    from readers.sources.base import Columns

_HOT_TIMEOUT: Final = urllib3.Timeout(connect=1.0, read=10.0)
_BULK_TIMEOUT: Final = urllib3.Timeout(connect=1.0, read=60.0)
_CONNECTIONS: Final = 8
_CHUNK_ROWS: Final = 10_000
_BULK_TRIES: Final = 2
"""Rows that are written between the count and the answer make the two differ once, not twice."""
_SPAN: Final = "30d"
"""Rows are counted in spans of it: all of InfluxDB's time has 7,117 of them, and a careful server
allows 10,000 (`influxql-max-select-buckets`)."""
_PIECE_ROWS: Final = 50_000
_AT_ONCE: Final = 2
"""The server makes an answer with one core and a bit of another; more at once gain little."""
_LAST_WINDOW: Final = "1d"
"""How far back `last` looks; what was silent for longer has no newest values."""
_REFUSALS: Final = frozenset({400, 401, 403, 404})

_CASTS: Final = {"float": float, "int": int, "str": str}
_LAST_COLUMNS: Final = {
    "mark_price": {
        "time": "mark_event_ms",
        "mark_price": "mark_price",
        "index_price": "index_price",
    },
    "funding_rate": {
        "time": "funding_event_ms",
        "rate": "funding_rate",
        "predicted_rate": "predicted_rate",
        "next_funding_ms": "next_funding_ms",
        "interval_hours": "interval_hours",
    },
    "last_price": {"time": "price_event_ms", "price": "price"},
}
"""Which column of a tick is which of `Last`."""

_LAST_MS: Final = 9_223_372_036_853
_LAST_BY_NAME: Final = {column.name: column for column in LAST.columns}

_Value = float | int | str | None


class _Series(TypedDict, total=False):
    name: str
    tags: dict[str, str]
    columns: list[str]
    values: list[list[_Value]]


class _Piece(NamedTuple):
    """A part of a bulk read: start_ms <= time < end_ms, and how many rows are counted in it."""

    start_ms: int
    end_ms: int
    rows: int


class InfluxSource:
    """The buckets of an InfluxDB 2.x: one of candles and settlements, one of ticks."""

    name = "influxdb"
    hot = False

    def __init__(self, url: str, token: str, bucket: str, ticks_bucket: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.bucket = bucket
        self.ticks_bucket = ticks_bucket or bucket
        self._headers = {"Authorization": f"Token {token}"}
        self._path = f"{urlsplit(self.url).path}/query"
        # A kept connection that has died meanwhile is noticed before it is used again.
        self._http = urllib3.connection_from_url(self.url, maxsize=_CONNECTIONS, retries=False)

    def rows(
        self,
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
        limit: int | None = None,
    ) -> list[Row]:
        columns = MEASUREMENTS[measurement].columns[2:]
        names = [column.name for column in columns if column.name != "time"]
        order = "time" if limit is None else f"time DESC LIMIT {limit}"
        [series] = self._json(
            measurement,
            f"{_select(names, measurement)} {_within(start_ms, end_ms)} ORDER BY {order}",
            {"exchange": exchange, "symbol": symbol},
        )
        if not series:
            return []
        places = [(series[0]["columns"].index(column.name), column) for column in columns]
        make = row_class(measurement)._make
        rows = [
            make((exchange, symbol, *(_cast(values[place], column) for place, column in places)))
            for values in series[0]["values"]
        ]
        return rows if limit is None else rows[::-1]

    def columns(
        self,
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
        names: Sequence[str],
    ) -> Columns:
        # A row is found by the fields that are asked for: one of them must never be absent.
        always = next(c.name for c in MEASUREMENTS[measurement].fields if not c.nullable)
        pair = {"exchange": exchange, "symbol": symbol}
        select = _select(dict.fromkeys((always, *names)), measurement)
        texts = text_columns(measurement)

        def read(piece: _Piece) -> pa.Table:
            query = f"{select} {_within(piece.start_ms, piece.end_ms)}"
            return _parse(self._csv(measurement, query, pair), names, texts)

        for _ in range(_BULK_TRIES):
            counts = self._counts(measurement, always, pair, start_ms, end_ms)
            pieces = _pieces(counts, start_ms, end_ms)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                tables = list(pool.map(read, pieces))
            sent = [table.num_rows for table in tables]
            counted = [piece.rows for piece in pieces]
            if sent == counted:
                return _joined(tables, ("time", *names))
        raise StoreUnavailable(
            f"InfluxDB {self.url} sent {sum(sent)} of {sum(counted)} rows of {measurement} "
            f"({exchange} {symbol}), {_BULK_TRIES} times"
        )

    def pairs(self, exchange: str) -> list[str]:
        found: set[str] = set()
        for measurement, others in (("ohlcv_3m", ("ohlcv_1m",)), ("mark_price", _LAST_COLUMNS)):
            measurements = ", ".join(dict.fromkeys((measurement, *others)))
            query = (
                f"SHOW TAG VALUES FROM {measurements} WITH KEY = symbol WHERE exchange = $exchange"
            )
            [answer] = self._json(measurement, query, {"exchange": exchange})
            found.update(str(symbol) for series in answer for _, symbol in series["values"])
        return sorted(found)

    def last(self, exchange: str, symbols: Sequence[str]) -> dict[str, Last]:
        one = " AND symbol = $symbol" if len(symbols) == 1 else ""
        query = ";".join(
            f"SELECT {', '.join(list(columns)[1:])} FROM {measurement} "
            f"WHERE exchange = $exchange{one} AND time > now() - {_LAST_WINDOW} "
            "GROUP BY symbol ORDER BY time DESC LIMIT 1"
            for measurement, columns in _LAST_COLUMNS.items()
        )
        pair = {"exchange": exchange, "symbol": symbols[0]} if one else {"exchange": exchange}
        found: dict[str, dict[str, Any]] = {}
        answers = self._json("mark_price", query, pair)
        for columns, answer in zip(_LAST_COLUMNS.values(), answers, strict=True):
            for series in answer:
                values = found.setdefault(series["tags"]["symbol"], {})
                values.update(_last_values(columns, series))
        return {
            symbol: Last(exchange, symbol, **found[symbol]) for symbol in symbols if symbol in found
        }

    def close(self) -> None:
        self._http.close()

    def _counts(
        self, measurement: str, always: str, pair: Mapping[str, str], start_ms: int, end_ms: int
    ) -> list[tuple[int, int]]:
        """When each span that has rows begins, and how many it has."""
        query = (
            f"{_select([f'count({always})'], measurement)} {_within(start_ms, end_ms)} "
            f"GROUP BY time({_SPAN}) fill(none)"
        )
        [answer] = self._json(measurement, query, pair)
        return [
            cast("tuple[int, int]", tuple(row)) for series in answer for row in series["values"]
        ]

    def _json(self, measurement: str, query: str, values: Mapping[str, str]) -> list[list[_Series]]:
        """The series of each statement of `query`."""
        body = self._get(measurement, query, values, "application/json", _HOT_TIMEOUT)
        answers: list[list[_Series]] = []
        for result in orjson.loads(body)["results"]:
            if "error" in result:
                raise StoreRefused(f"InfluxDB {self.url} refuses a query: {result['error']}")
            answers.append(result.get("series", []))
        return answers

    def _csv(self, measurement: str, query: str, values: Mapping[str, str]) -> bytes:
        return self._get(measurement, query, values, "application/csv", _BULK_TIMEOUT)

    def _get(
        self,
        measurement: str,
        query: str,
        values: Mapping[str, str],
        accept: str,
        timeout: urllib3.Timeout,
    ) -> bytes:
        bucket = self.ticks_bucket if MEASUREMENTS[measurement].tick else self.bucket
        database, _, policy = bucket.partition("/")
        fields = {
            "db": database,
            "q": query,
            "params": orjson.dumps(values).decode(),
            "epoch": "ms",
        }
        if policy:
            fields["rp"] = policy
        if accept == "application/csv":
            fields |= {"chunked": "true", "chunk_size": str(_CHUNK_ROWS)}
        try:
            response = self._http.request(
                "GET",
                self._path,
                fields=fields,
                # Unpacking costs more than a LAN saves: bulk reads take twice as long with gzip.
                headers={**self._headers, "Accept": accept, "Accept-Encoding": "identity"},
                timeout=timeout,
            )
        except urllib3.exceptions.HTTPError as error:
            raise StoreUnavailable(f"InfluxDB {self.url} can't be read: {error}") from error
        if response.status == 200:
            return response.data
        reason = response.data[:300].decode(errors="replace").strip()
        message = f"InfluxDB {self.url} answers {response.status} for bucket {bucket}: {reason}"
        raise (StoreRefused if response.status in _REFUSALS else StoreUnavailable)(message)


def _select(names: Iterable[str], measurement: str) -> str:
    return f"SELECT {', '.join(names)} FROM {measurement} WHERE exchange = $exchange AND symbol = $symbol"  # noqa: E501


def _within(start_ms: int, end_ms: int) -> str:
    # The server counts in nanoseconds, and a time beyond its range wraps around without a word.
    return f"AND time >= {max(start_ms, -_LAST_MS)}ms AND time < {min(end_ms, _LAST_MS)}ms"


def _cast(value: _Value, column: Column) -> _Value:
    """JSON writes 1.0 as 1: the schema says what it is."""
    return None if value is None else _CASTS[column.kind](value)


def _last_values(columns: Mapping[str, str], series: _Series) -> dict[str, _Value]:
    """A tick's values under the names that they have in `Last`."""
    tick = dict(zip(series["columns"], series["values"][0], strict=True))
    return {new: _cast(tick[name], _LAST_BY_NAME[new]) for name, new in columns.items()}


def _pieces(counts: Iterable[tuple[int, int]], start_ms: int, end_ms: int) -> list[_Piece]:
    """A range in pieces of at most `_PIECE_ROWS` rows, or of one span: ascending, without holes.

    >>> [piece.rows for piece in _pieces([(0, 30_000), (30, 20_000), (60, 10)], 5, 90)]
    [50000, 10]
    >>> _pieces([(0, 30_000), (60, 20_001)], 5, 90)
    [_Piece(start_ms=5, end_ms=60, rows=30000), _Piece(start_ms=60, end_ms=90, rows=20001)]
    >>> _pieces([], 5, 90)
    [_Piece(start_ms=5, end_ms=90, rows=0)]
    """
    pieces, rows = [], 0
    for span_ms, count in counts:
        if rows and rows + count > _PIECE_ROWS:
            pieces.append(_Piece(start_ms, span_ms, rows))
            start_ms, rows = span_ms, 0
        rows += count
    return [*pieces, _Piece(start_ms, end_ms, rows)]


def _joined(tables: Sequence[pa.Table], names: Iterable[str]) -> Columns:
    import pyarrow as pa

    table = pa.concat_tables(tables)
    return {name: table.column(name).to_numpy() for name in names}


def _parse(body: bytes, names: Sequence[str], texts: Set[str]) -> pa.Table:
    """A CSV answer with types that don't depend on what is in it; an empty body has no rows."""
    import pyarrow as pa
    from pyarrow import csv

    kinds = {name: pa.string() if name in texts else pa.float64() for name in names}
    types = {"time": pa.int64(), **kinds}
    if not body:
        return pa.table({name: pa.array([], kind) for name, kind in types.items()})
    options = csv.ConvertOptions(column_types=types, include_columns=list(types))
    return csv.read_csv(pa.BufferReader(body), convert_options=options)
