"""The service's own `/health`, `/status` and `/metrics`.

Nothing is counted twice: metrics are read off the same status that people see, when they are asked.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ingest.status import is_fresh
from marketdata.schema import STATES

Status = Callable[[], Mapping[str, Any]]


class StatusMetrics(Collector):
    """The status as Prometheus metrics; states are one gauge a state, as 0 or 1 or a count.

    To be asked in the event loop: it counts the loop's tasks.
    """

    def __init__(self, status: Status) -> None:
        self._status = status

    def describe(self) -> Iterator[Metric]:
        """Nothing up front: asking would need a running service."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Every metric of the service."""
        status = self._status()
        up = GaugeMetricFamily("ingest_fresh", "1 when everything is live or quiet")
        up.add_metric([], float(is_fresh(status)))
        yield up
        yield from _exchange_metrics(status)
        yield from _store_metrics(status)
        tasks = GaugeMetricFamily("ingest_tasks", "Tasks of the event loop")
        tasks.add_metric([], len(asyncio.all_tasks()))
        yield tasks


def _exchange_metrics(status: Mapping[str, Any]) -> Iterator[Metric]:
    clocks = GaugeMetricFamily(
        "ingest_clock_ahead_ms", "The exchange's clock less ours", labels=["exchange"]
    )
    channels = GaugeMetricFamily(
        "ingest_channels", "Pairs' channels by state", labels=["exchange", "channel", "state"]
    )
    ages = GaugeMetricFamily(
        "ingest_oldest_event_age_ms",
        "Age of the oldest newest event",
        labels=["exchange", "channel"],
    )
    connections = GaugeMetricFamily(
        "ingest_connections", "Connections by state", labels=["exchange", "state"]
    )
    reconnects = CounterMetricFamily(
        "ingest_reconnects", "Connections that were replaced", labels=["exchange"]
    )
    for name, exchange in status["exchanges"].items():
        clocks.add_metric([name], exchange["clock_ahead_ms"])
        states: Counter[tuple[str, str]] = Counter()
        oldest: dict[str, int] = {}
        for pair in exchange["pairs"].values():
            for channel, cell in pair.items():
                states[channel, cell["state"]] += 1
                oldest[channel] = max(oldest.get(channel, 0), cell["age_ms"] or 0)
        for channel, age_ms in oldest.items():
            ages.add_metric([name, channel], age_ms)
            for state in STATES:
                channels.add_metric([name, channel, state], states[channel, state])
        up = Counter(connection["state"] for connection in exchange["connections"])
        for state in STATES:
            connections.add_metric([name, state], up[state])
        total = sum(connection["reconnects"] for connection in exchange["connections"])
        reconnects.add_metric([name], total)
    yield from (clocks, channels, ages, connections, reconnects)


def _store_metrics(status: Mapping[str, Any]) -> Iterator[Metric]:
    store, outbox = status["store"], status["outbox"]
    rows = CounterMetricFamily("ingest_rows", "Rows settled by the store", labels=["outcome"])
    rows.add_metric(["accepted"], store["accepted"])
    rows.add_metric(["rejected"], store["rejected"])
    yield rows
    up = GaugeMetricFamily("ingest_sink_up", "1 while the sink takes data", labels=["sink"])
    up.add_metric([store["kind"]], float(store["state"] == "live"))
    up.add_metric(["outbox"], float(outbox["state"] == "live"))
    if status["redis"]["state"] is not None:
        up.add_metric(["redis"], float(status["redis"]["state"] == "live"))
    yield up
    aside = GaugeMetricFamily("ingest_shelves_aside", "Shelves that fail while others are stored")
    aside.add_metric([], store["aside"])
    yield aside
    inbox = GaugeMetricFamily("ingest_inbox_events", "Events that aren't folded yet")
    inbox.add_metric([], status["inbox"]["events"])
    yield inbox
    waiting = GaugeMetricFamily("ingest_outbox_rows", "Rows that the store doesn't have yet")
    waiting.add_metric([], outbox["rows"])
    yield waiting
    size = GaugeMetricFamily("ingest_outbox_bytes", "Size of the rows in the outbox")
    size.add_metric([], outbox["bytes"])
    yield size
    gaps = GaugeMetricFamily("ingest_gaps", "Gaps of all channels by state", labels=["state"])
    for state, count in status["gaps"].items():
        gaps.add_metric([state], count)
    yield gaps
    minutes = CounterMetricFamily(
        "ingest_minutes", "Minutes fetched by REST, by what became of them", labels=["outcome"]
    )
    for outcome, count in status["minutes"].items():
        minutes.add_metric([outcome], count)
    yield minutes
    dropped = CounterMetricFamily("ingest_dropped", "What was dropped, by reason", labels=["what"])
    for what, count in status["dropped"].items():
        dropped.add_metric([what], count)
    yield dropped


def monitor_app(status: Status) -> web.Application:
    """The monitor's routes: GET /health (200 fresh, 503 not), /status (JSON), /metrics."""
    registry = CollectorRegistry()
    registry.register(StatusMetrics(status))
    ProcessCollector(registry=registry)

    async def health(_: web.Request) -> web.Response:
        now = status()
        body = orjson.dumps({"state": now["state"], "fresh": is_fresh(now)})
        code = 200 if is_fresh(now) else 503
        return web.Response(body=body, status=code, content_type="application/json")

    async def whole(_: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(status()), content_type="application/json")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.add_routes(
        [web.get("/health", health), web.get("/status", whole), web.get("/metrics", metrics)]
    )
    return app


async def serve_monitor(status: Status, host: str, port: int) -> web.AppRunner:
    """Bind the monitor; the caller cleans the runner up.

    Raises
    ------
    OSError
        The address is taken.
    """
    runner = web.AppRunner(monitor_app(status), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
