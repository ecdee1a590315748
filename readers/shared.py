"""The one `MarketData` behind the functions of `readers`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from readers.client import MarketData


class _Shared(MarketData):
    """Pickled by name: the functions of a process that unpickles them share one reader too."""

    def __reduce__(self) -> tuple[Callable[[], MarketData], tuple[()]]:
        return shared, ()


@cache
def shared() -> MarketData:
    """The reader that is configured by `MARKETDATA_CONFIG`."""
    return _Shared()
