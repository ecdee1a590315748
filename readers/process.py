"""What one process reads with: sources, caches and the pairs that it knows."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from marketdata.config import load_config
from marketdata.settings import RedisSettings, Settings, Store
from readers.book import PairBook
from readers.candles import CandleReader
from readers.newest import Newest
from readers.origins import Origins
from readers.sources import open_hot, open_source
from readers.states import States


@dataclass(frozen=True, slots=True)
class Places:
    """Where to read, and which exchange is meant where a call names none."""

    store: Store
    redis: RedisSettings | None
    exchange: str | None


def choose_places(
    config: str | Path | None,
    settings: Settings | None,
    store: Store | Mapping[str, Any] | None,
    redis: str | None,
    exchange: str | None,
) -> Places:
    """What the arguments of `MarketData` come to; reads the file where they don't name a store."""
    if store is not None:
        parsed: Store = TypeAdapter(Store).validate_python(store)
        places = Places(parsed, None, None)
    else:
        known = settings or load_config(None if config is None else Path(config))
        places = Places(known.store, known.redis, next(iter(known.exchanges)))
    return replace(
        places,
        redis=places.redis if redis is None else RedisSettings(url=redis),
        exchange=exchange or places.exchange,
    )


class Process:
    """Made when a process first reads. Nothing is connected before it is asked."""

    def __init__(self, places: Places) -> None:
        self.pid = os.getpid()
        self.exchange = places.exchange
        self.origins = Origins(open_source(places), open_hot(places))
        self.book = PairBook(self.origins)
        self.states = States(self.origins)
        self.newest = Newest(self.origins, self.states)
        self.candles = CandleReader(self.origins, self.states)

    @property
    def is_inherited(self) -> bool:
        """Whether it belongs to a parent process."""
        return self.pid != os.getpid()


left_by_parents: list[Process] = []
"""What forks brought along: kept, since closing a connection here could break the parent's."""
