"""Where rows go: the two stores and the hot cache, behind one promise (`sinks.base`)."""

from __future__ import annotations

from ingest.sinks.base import Sink
from marketdata.settings import InfluxStore, Settings


def open_sink(settings: Settings) -> Sink:
    """The sink of the configured store; it connects with the first write."""
    store = settings.store
    if isinstance(store, InfluxStore):
        from ingest.sinks.influx import InfluxSink

        token = store.token.get_secret_value()
        return InfluxSink(
            store.url, store.org, store.bucket, token, ticks_bucket=store.ticks.bucket
        )
    from ingest.sinks.sqlite import SqliteSink

    return SqliteSink(store.path)
