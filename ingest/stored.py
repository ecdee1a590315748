"""What the store has of a pair, and over it what is still on its way there."""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from ingest.outbox import Outbox
from marketdata.schema import MEASUREMENTS, Row

R = TypeVar("R", bound=Row)


class StoredRows(Protocol):
    """What is read from the store: `readers.sources.Source` has it."""

    def rows(
        self,
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
        limit: int | None = None,
    ) -> list[Row]: ...


async def rows_so_far(
    kind: type[R],
    stored: StoredRows,
    outbox: Outbox,
    measurement: str,
    exchange: str,
    symbol: str,
    start_ms: int,
    end_ms: int,
) -> list[R]:
    """A pair's rows with start <= time < end, ascending, each in its newest state.

    Raises
    ------
    StoreUnavailable
        The store can't be asked now.
    """
    where = (measurement, exchange, symbol, start_ms, end_ms)
    keys = MEASUREMENTS[measurement].keys
    rows = await asyncio.to_thread(stored.rows, *where) + await outbox.pending(*where)
    newest = {tuple(getattr(row, key) for key in keys): row for row in rows}
    return [row for key in sorted(newest) if isinstance(row := newest[key], kind)]
