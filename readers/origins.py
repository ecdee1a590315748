"""The store and the hot cache of one process: asked, counted, and left alone when they fail."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from marketdata.errors import StoreUnavailable

if TYPE_CHECKING:
    from readers.sources.base import HotSource, Source

PAUSE_S: Final = 1.0
"""How long a source that has failed is not asked again: a host that swallows packets would cost
every read its time-out, one after the other."""

S = TypeVar("S")
T = TypeVar("T")


class Origins:
    """Where this process reads; another process makes its own.

    Parameters
    ----------
    store, hot
        The sources, not yet connected; `hot` is None where no Redis is configured.

    What isn't asked for a caller's data (`counted=False`) doesn't count as a read.
    """

    def __init__(self, store: Source, hot: HotSource | None) -> None:
        self.pid = os.getpid()
        self.store_is_hot = store.hot
        self._store = _Guarded(store)
        self._hot = None if hot is None else _Guarded(hot)
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    def ask_store(self, question: Callable[[Source], T], *, counted: bool = True) -> T:
        """The store's answer. Raises `StoreUnavailable`, `StoreRefused`."""
        try:
            answer = self._store.ask(question)
        except StoreUnavailable:
            if counted:
                self.count("store_failed")
            raise
        if counted:
            self.count(self.store_name)
        return answer

    def ask_hot(self, question: Callable[[HotSource], T], *, counted: bool = True) -> T | None:
        """The hot cache's answer; None where there is no Redis, or it fails."""
        if self._hot is None:
            return None
        try:
            return self._hot.ask(question)
        except StoreUnavailable:
            if counted:
                self.count("redis_failed")
            return None

    @property
    def store_name(self) -> str:
        return self._store.source.name

    def count(self, outcome: str, reads: int = 1) -> None:
        """Count reads that were answered by, or failed at, `outcome`."""
        with self._counting:
            self._counts[outcome] += reads

    def counts(self) -> dict[str, int]:
        """Reads answered by `cache`, `grace`, `redis`, `sqlite`, `influxdb`; failures of
        the store (`store_failed`) and of Redis (`redis_failed`)."""
        with self._counting:
            return dict(self._counts)

    def close(self) -> None:
        """Give back every connection."""
        self._store.source.close()
        if self._hot is not None:
            self._hot.source.close()


class _Guarded(Generic[S]):
    """Asks `source`, but not within a moment of its last failure."""

    def __init__(self, source: S) -> None:
        self.source = source
        self._failure: tuple[float, str] | None = None

    def ask(self, question: Callable[[S], T]) -> T:
        failure = self._failure
        if failure is not None and time.monotonic() < failure[0] + PAUSE_S:
            raise StoreUnavailable(failure[1], retry_after_s=PAUSE_S)
        try:
            answer = question(self.source)
        except StoreUnavailable as error:
            self._failure = (time.monotonic(), str(error))
            raise
        self._failure = None
        return answer
