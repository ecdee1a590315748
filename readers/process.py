"""What one process reads with: sources, caches and the pairs that it knows."""

from __future__ import annotations

import os
from dataclasses import dataclass

from marketdata.settings import RedisSettings, Store
from readers.book import PairBook
from readers.candles import CandleReader
from readers.newest import Newest
from readers.origins import Origins
from readers.sources import open_hot, open_source


@dataclass(frozen=True, slots=True)
class Places:
    """Where to read, and which exchange is meant where a call names none."""

    store: Store
    redis: RedisSettings | None
    exchange: str | None


class Process:
    """Made when a process first reads. Nothing is connected before it is asked."""

    def __init__(self, places: Places) -> None:
        self.pid = os.getpid()
        self.exchange = places.exchange
        self.origins = Origins(open_source(places), open_hot(places))
        self.book = PairBook(self.origins)
        self.newest = Newest(self.origins)
        self.candles = CandleReader(self.origins)

    @property
    def is_inherited(self) -> bool:
        """Whether it belongs to a parent process."""
        return self.pid != os.getpid()


left_by_parents: list[Process] = []
"""What forks brought along: kept, since closing a connection here could break the parent's."""
