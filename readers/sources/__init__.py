"""Where readers read: the hot cache (Redis) and the two stores (SQLite, InfluxDB)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from marketdata.settings import RedisSettings, SqliteStore, Store

if TYPE_CHECKING:
    from readers.sources.base import HotSource, Source


class Places(Protocol):
    """The part of the settings that readers take."""

    @property
    def store(self) -> Store: ...

    @property
    def redis(self) -> RedisSettings | None: ...


def open_source(settings: Places) -> Source:
    """The store's source; it connects when it is first asked."""
    store = settings.store
    if isinstance(store, SqliteStore):
        from readers.sources.sqlite import SqliteSource

        return SqliteSource(store.path)
    from readers.sources.influx import InfluxSource

    token = store.token.get_secret_value()
    return InfluxSource(store.url, token, store.bucket, store.ticks.bucket)


def open_hot(settings: Places) -> HotSource | None:
    """The hot cache's source, if there is a hot cache."""
    if settings.redis is None:
        return None
    from readers.sources.redis import RedisSource

    return RedisSource(settings.redis.url.get_secret_value())
