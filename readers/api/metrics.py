"""The API's own metrics: what it was asked, and who answered its reads."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from readers.client import MarketData

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


class _Reads(Collector):
    """The counts of a `MarketData`, when they are asked for."""

    def __init__(self, data: MarketData) -> None:
        self._data = data

    def collect(self) -> Iterator[Metric]:
        reads = CounterMetricFamily(
            "readers_reads", "Reads by who answered them, or failed to", labels=["outcome"]
        )
        for outcome, count in self._data.counts().items():
            reads.add_metric([outcome], count)
        yield reads


class Metrics:
    """A registry of one app's metrics."""

    def __init__(self, data: MarketData) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Reads(data))
        self.requests = Counter(
            "readers_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "readers_request_seconds",
            "Time from a request to its answer",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """Middleware that counts and times requests, by route rather than by path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)
