"""SQLite's tables, made from the schema: the text of statements, nothing that runs them.

Names in them come from the schema alone; values are always parameters.

One table a measurement, tags and fields as columns in the order of the row class, so that a row is
the parameters of its own statement. WITHOUT ROWID keeps a pair's rows next to each other in time,
which is how they are read. SQLite turns an integer into a float in a REAL column, as InfluxDB does
with its field types.

>>> print(create(MEASUREMENTS["last_price"]))
CREATE TABLE IF NOT EXISTS last_price (
    exchange TEXT NOT NULL,
    symbol TEXT NOT NULL,
    time INTEGER NOT NULL,
    price REAL NOT NULL,
    PRIMARY KEY (exchange, symbol, time)
) WITHOUT ROWID
"""

from __future__ import annotations

from marketdata.schema import LAST, MEASUREMENTS, Measurement

SCHEMA_VERSION = 1
"""`PRAGMA user_version` of a store that has these tables."""

_TYPES = {"float": "REAL", "int": "INTEGER", "str": "TEXT"}


def create(measurement: Measurement) -> str:
    """The table of a measurement."""
    columns = [
        f"    {column.name} {_TYPES[column.kind]}{'' if column.nullable else ' NOT NULL'},\n"
        for column in measurement.columns
    ]
    return (
        f"CREATE TABLE IF NOT EXISTS {measurement.name} (\n{''.join(columns)}"
        f"    PRIMARY KEY ({', '.join(measurement.keys)})\n) WITHOUT ROWID"
    )


def upsert(measurement: Measurement) -> str:
    """The statement that writes one row, given in column order; every column is replaced.

    >>> print(upsert(MEASUREMENTS["last_price"]))
    INSERT INTO last_price (exchange, symbol, time, price) VALUES (?, ?, ?, ?)
    ON CONFLICT (exchange, symbol, time) DO UPDATE SET price = excluded.price
    """
    names = ", ".join(column.name for column in measurement.columns)
    values = ", ".join("?" * len(measurement.columns))
    keys = ", ".join(measurement.keys)
    updates = ", ".join(f"{column.name} = excluded.{column.name}" for column in measurement.fields)
    return (
        f"INSERT INTO {measurement.name} ({names}) VALUES ({values})\n"
        f"ON CONFLICT ({keys}) DO UPDATE SET {updates}"
    )


def next_pair(measurement: Measurement) -> str:
    """The (exchange, symbol) that comes after the one given: one step along the primary key."""
    return (
        f"SELECT exchange, symbol FROM {measurement.name}"
        " WHERE (exchange, symbol) > (?, ?) ORDER BY exchange, symbol LIMIT 1"
    )


def expire(measurement: Measurement) -> str:
    """Delete a pair's oldest rows: exchange, symbol, first time to be kept, how many at most."""
    pair = f"FROM {measurement.name} WHERE exchange = ?1 AND symbol = ?2"
    return f"DELETE {pair} AND time IN (SELECT time {pair} AND time < ?3 ORDER BY time LIMIT ?4)"


STATEMENTS: tuple[str, ...] = tuple(create(table) for table in (*MEASUREMENTS.values(), LAST))
"""Every table of the store, `last` among them."""
