"""Reads the embedded store, read-only, while the service writes to it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import LAST, MEASUREMENTS, Last, Row
from readers.sources.base import row_class, text_columns

if TYPE_CHECKING:
    from readers.sources.base import Columns

_BUSY_TIMEOUT_S: Final = 5.0

# The next symbol is found through the key each time: DISTINCT would read every row.
_SYMBOLS = """
    WITH RECURSIVE found(symbol) AS (
        SELECT min(symbol) FROM {table} WHERE exchange = :exchange
        UNION ALL
        SELECT (
            SELECT min(symbol) FROM {table}
            WHERE exchange = :exchange AND symbol > found.symbol
        )
        FROM found WHERE found.symbol IS NOT NULL
    )
    SELECT symbol FROM found WHERE symbol IS NOT NULL
"""


_FileId = tuple[int, int]


class SqliteSource:
    """The file of the service's SQLite store.

    A connection is borrowed by one thread at a time, so there are as many as threads read at once.
    """

    name = "sqlite"
    hot = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: list[tuple[_FileId, sqlite3.Connection]] = []

    def rows(
        self,
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
        limit: int | None = None,
    ) -> list[Row]:
        make = row_class(measurement)._make
        names = (column.name for column in MEASUREMENTS[measurement].columns)
        order = "time" if limit is None else "time DESC"
        answer = self._ask(
            f"{_select(names, measurement)} ORDER BY {order} LIMIT :limit",
            {
                "exchange": exchange,
                "symbol": symbol,
                "start": start_ms,
                "end": end_ms,
                "limit": -1 if limit is None else limit,
            },
        )
        rows = [make(row) for row in answer]
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
        import numpy as np

        answer = self._ask(
            f"{_select(('time', *names), measurement)} ORDER BY time",
            {"exchange": exchange, "symbol": symbol, "start": start_ms, "end": end_ms},
        )
        texts = text_columns(measurement)
        times = np.fromiter(map(itemgetter(0), answer), np.int64, len(answer))
        return {"time": times} | {
            # None becomes NaN.
            name: np.array(
                list(map(itemgetter(place), answer)), object if name in texts else np.float64
            )
            for place, name in enumerate(names, start=1)
        }

    def pairs(self, exchange: str) -> list[str]:
        tables = ("last", "ohlcv_3m")
        found = (
            self._ask(_SYMBOLS.format(table=table), {"exchange": exchange}) for table in tables
        )
        return sorted({symbol for answer in found for (symbol,) in answer})

    def last(self, exchange: str, symbols: Sequence[str]) -> dict[str, Last]:
        names = _list(column.name for column in LAST.columns)
        answer = self._ask(
            f"SELECT {names} FROM last WHERE exchange = :exchange "
            "AND symbol IN (SELECT value FROM json_each(:symbols))",
            {"exchange": exchange, "symbols": orjson.dumps(list(symbols)).decode()},
        )
        return {last.symbol: last for last in map(Last._make, answer)}

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    def _ask(self, sql: str, arguments: dict[str, object]) -> list[tuple[Any, ...]]:
        try:
            with (
                self._connection() as connection,
                closing(connection.execute(sql, arguments)) as cursor,
            ):
                return cursor.fetchall()
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"SQLite store {self.path} can't be read: {error}") from error
        except sqlite3.DatabaseError as error:
            raise StoreRefused(
                f"SQLite store {self.path} is damaged or no database: {error}"
            ) from error

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection; one that failed, or whose file was replaced, is not kept."""
        file, connection = self._open()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        self._idle.append((file, connection))

    def _open(self) -> tuple[_FileId, sqlite3.Connection]:
        file = self._file_id()
        while self._idle:
            opened, connection = self._idle.pop()
            if opened == file:
                return file, connection
            connection.close()
        return file, sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )

    def _file_id(self) -> _FileId:
        try:
            status = self.path.stat()
        except OSError as error:
            raise StoreUnavailable(
                f"SQLite store {self.path} can't be opened: {error.strerror}; "
                "the service makes it when it first writes"
            ) from error
        return status.st_dev, status.st_ino


def _select(names: Iterable[str], measurement: str) -> str:
    return (
        f"SELECT {_list(names)} FROM {measurement} "
        "WHERE exchange = :exchange AND symbol = :symbol AND time >= :start AND time < :end"
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
