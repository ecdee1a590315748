"""What the store has of a pair, and over it what is still on its way there."""

from __future__ import annotations

import asyncio
from typing import Protocol, TypeVar

from ingest.clock import Clock
from ingest.outbox import Outbox
from marketdata.errors import StoreRefused, StoreUnavailable
from marketdata.schema import MEASUREMENTS, Row

ANSWER_S = 10.0
AWAY_S = 60.0
"""How long a store that didn't answer isn't asked again."""

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
    # In this order: a row that is delivered meanwhile is seen twice rather than not at all.
    pending = await outbox.pending(*where)
    rows = await asyncio.to_thread(stored.rows, *where) + pending
    newest = {tuple(getattr(row, key) for key in keys): row for row in rows}
    return [row for key in sorted(newest) if isinstance(row := newest[key], kind)]


class StoreFirst:
    """Asks the store before the exchange is asked: another collector may have written it already.

    A store that is away isn't waited for: then nothing is known, and the exchange is asked.
    """

    def __init__(self, stored: StoredRows, outbox: Outbox, clock: Clock) -> None:
        self._stored = stored
        self._outbox = outbox
        self._clock = clock
        self._not_before_ms = 0

    async def rows(
        self,
        kind: type[R],
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
    ) -> list[R]:
        """A pair's rows with start <= time < end, ascending; none if the store doesn't answer."""
        where = (measurement, exchange, symbol, start_ms, end_ms)
        if self._clock.monotonic_ms() < self._not_before_ms:
            return []
        try:
            async with self._clock.timeout(ANSWER_S):
                return await rows_so_far(kind, self._stored, self._outbox, *where)
        except (StoreUnavailable, StoreRefused, TimeoutError):
            self._not_before_ms = self._clock.monotonic_ms() + int(AWAY_S * 1000)
            return []
