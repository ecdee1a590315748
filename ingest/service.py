"""The service: every part, every task, and the order in which they start and end.

Start: outbox, sinks, metadata, plan, then feeds and repair. End (SIGTERM): feeds first, so that
nothing more comes in; what has come is committed to the outbox; the outbox drains for a while.
What the store hasn't taken by then stays on disk for the next start.

Each task handles the errors that it expects, by type. Any other error ends the service: a fresh
start from the outbox is safer than half a service.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from cryptofeed.connection import Connection
from cryptofeed.feedhandler import FeedHandler
from rich.console import Console
from rich.live import Live

from ingest.budget import Budgets
from ingest.capture_writer import CaptureWriter
from ingest.clock import Clock
from ingest.collector import Parts
from ingest.delivery import Delivery
from ingest.display import plan_view, status_line, status_view
from ingest.fleet import Fleet
from ingest.freshness import worst
from ingest.hot import HotState
from ingest.inbox import Inbox
from ingest.monitor import serve_monitor
from ingest.outbox import Outbox
from ingest.pipeline import Pipeline
from ingest.publish import Publisher
from ingest.restore import Restorer
from ingest.sinks import open_sink
from ingest.sinks.base import HotSink, Marker, StreamSink
from ingest.sinks.redis import RedisSink
from ingest.sinks.sqlite import SqliteSink
from ingest.status import health_fields
from ingest.ticks import Thinner
from ingest.watchdog import CountedSink, Facts, Notifier, Progress, duties
from marketdata.errors import ConfigError, StoreRefused, StoreUnavailable
from marketdata.settings import CaptureSettings, Settings
from readers.sources import open_source

log = structlog.get_logger()

DRAIN_S = 10.0
HOT_PERIOD_S = {"sqlite": 1.0, "redis": 0.25}
EXPIRE_PERIOD_S = 600.0
RELOAD_PERIOD_S = 2.0
HEALTH_PERIOD_S = 5.0
VIEW_PERIOD_S = 1.0

Reload = Callable[[], Settings]


class Service:
    """One ingestion service.

    Parameters
    ----------
    reload
        Reads the configuration anew, for SIGHUP and for a changed file; None where it is fixed.
    notifier
        Tells a supervisor what the service is doing; left out: there is none.

    Attributes
    ----------
    started
        Set when every part is at work; `status` can be asked from then on.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        reload: Reload | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        self._settings = settings
        self.started = asyncio.Event()
        self._clock = clock
        self._reload = reload
        self._notifier = notifier or Notifier()
        self._reload_wanted = asyncio.Event()
        self._started_ms = clock.now_ms()
        self._inbox = Inbox()
        self._hot = HotState()
        self._fleet = Fleet(clock)
        self._publishers: dict[str, Publisher] = {}
        self._restorer: Restorer | None = None
        self._capture: CaptureWriter | None = None

    def reconcile_soon(self) -> None:
        """Read the configuration anew and follow its pairs (SIGHUP)."""
        self._reload_wanted.set()

    async def run(self, stop: asyncio.Event, console: Console | None = None) -> None:
        """Collect until `stop` is set, then drain.

        Parameters
        ----------
        console
            Where the plan and, on a terminal, the live view go.

        Raises
        ------
        ConfigError
            None of an exchange's pairs is listed.
        StoreUnavailable
            The outbox or the monitor's address is taken by another process.
        """
        async with AsyncExitStack() as stack:
            await self._open(stack)
            await self._prepare(console)
            monitor = self._settings.monitor
            try:
                runner = await serve_monitor(self.status, monitor.host, monitor.port)
            except OSError as error:
                raise StoreUnavailable(
                    f"the monitor can't listen on {monitor.host}:{monitor.port}: {error.strerror};"
                    " another service may run there: end it, or set monitor.port"
                ) from error
            stack.push_async_callback(runner.cleanup)
            async with asyncio.TaskGroup() as tasks, self._collecting(tasks):
                self.started.set()
                self._notifier.ready()
                looking = [tasks.create_task(self._watch_itself(), name="watchdog")]
                if console is not None and console.is_terminal:
                    looking.append(tasks.create_task(self._show(console), name="view"))
                await stop.wait()
                await _end(looking)
                self._notifier.stopping()
                log.info("stopping")

    async def _open(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        self._outbox = await Outbox.open(
            settings.outbox.path, settings.outbox.max_bytes, self._clock
        )
        stack.push_async_callback(self._outbox.close)
        self._sink = open_sink(settings)
        stack.push_async_callback(self._sink.close)
        stored = open_source(settings)
        stack.callback(stored.close)
        if isinstance(self._sink, SqliteSink):
            # Readers, and our own look at what is stored, need a file to open. What is wrong with
            # it, delivery will say.
            with suppress(StoreUnavailable, StoreRefused):
                await self._sink.write({})
            self._publish("sqlite", self._sink)
        if settings.redis is not None:
            url = settings.redis.url.get_secret_value()
            redis = RedisSink(
                url, settings.redis.views, self._fleet.market, now_ms=self._clock.now_ms
            )
            stack.push_async_callback(redis.close)
            self._restorer = Restorer(self._hot, stored, self._clock)
            self._publish("redis", redis, streams=redis, on_loss=self._restorer.start_over)
        self._counted = CountedSink(self._sink)
        self._delivery = Delivery(self._outbox, self._counted, self._clock)
        self._pipeline = Pipeline(
            self._inbox,
            self._outbox,
            self._hot,
            Thinner(every_ms=settings.store.ticks.every_ms),
            self._clock,
            listeners=[p.put_candles for name, p in self._publishers.items() if name == "redis"],
        )
        if settings.capture is not None:
            await self._capture_to(settings.capture, stack)
        self._parts = Parts(
            clock=self._clock,
            inbox=self._inbox,
            hot=self._hot,
            pipeline=self._pipeline,
            outbox=self._outbox,
            stored=stored,
            budgets=Budgets(settings.repair.weight_share),
            folder=settings.outbox.path.parent,
            lookback_ms=settings.repair.lookback_ms,
            redis_url=None if settings.redis is None else settings.redis.url.get_secret_value(),
            announce=self._announce,
            reached=self._fleet.others_reached,
            capture=self._capture,
        )
        stack.push_async_callback(self._fleet.close)

    async def _capture_to(self, wanted: CaptureSettings, stack: AsyncExitStack) -> None:
        """Keep every raw message, from before the first connection to after the last."""
        capture = self._capture = CaptureWriter(
            wanted.path, self._clock, max_bytes=wanted.max_bytes, segment_ms=wanted.segment_ms
        )
        await capture.start()
        stack.push_async_callback(capture.close)
        Connection.raw_data_callback = capture
        stack.callback(setattr, Connection, "raw_data_callback", None)

    def _publish(
        self,
        name: str,
        sink: HotSink,
        streams: StreamSink | None = None,
        on_loss: Callable[[], None] = lambda: None,
    ) -> None:
        self._publishers[name] = Publisher(
            self._hot,
            sink,
            self._clock,
            every_s=HOT_PERIOD_S[name],
            streams=streams,
            on_loss=on_loss,
        )

    def _announce(self, markers: Sequence[Marker]) -> None:
        redis = self._publishers.get("redis")
        if redis is not None:
            redis.put_markers(markers)

    async def _prepare(self, console: Console | None) -> None:
        """Learn the exchanges' markets, then print what is about to be opened."""
        await self._fleet.prepare(self._settings.exchanges, self._parts)
        if console is not None:
            collectors = self._fleet.collectors
            lanes = {name: c.lanes() for name, c in collectors.items()}
            notes = [note for c in collectors.values() for note in c.notes]
            console.print(plan_view(lanes, notes))

    @asynccontextmanager
    async def _collecting(self, tasks: asyncio.TaskGroup) -> AsyncIterator[None]:
        """Every task between start and end; on the way out they end in the order of the data."""
        handler = FeedHandler(config={"log": {"disabled": True}, "uvloop": False})
        handler.run(start_loop=False, install_signal_handlers=False)
        storing = [
            tasks.create_task(self._delivery.run(), name="delivery"),
            tasks.create_task(self._pipeline.run(), name="pipeline"),
        ]
        serving = [
            tasks.create_task(publisher.run(), name=f"publish.{name}")
            for name, publisher in self._publishers.items()
        ]
        serving.append(tasks.create_task(self._expire(), name="expire"))
        if self._restorer is not None:
            redis = self._publishers["redis"]
            serving.append(tasks.create_task(self._restorer.run(redis), name="restore"))
            serving.append(tasks.create_task(self._tell_health(redis), name="publish.health"))
        self._fleet.start(tasks, handler)
        reloading = tasks.create_task(self._follow_configuration(), name="reload")
        try:
            yield
        finally:
            await _end([reloading])
            await self._fleet.end()
            await _end(storing[1:])
            await self._pipeline.finish()
            # After a defect nobody delivers any more.
            delivering = not storing[0].done()
            if not (delivering and await self._delivery.drain(DRAIN_S)):
                depth = self._outbox.depth()
                log.warning(
                    "outbox_not_drained", rows=depth.rows, kept=str(self._settings.outbox.path)
                )
            await _end(storing[:1] + serving)

    async def _follow_configuration(self) -> None:
        """Follow SIGHUP and changes of the file; a bad file changes nothing."""
        if self._reload is None:
            return
        seen = _changed_ns(self._settings.source)
        while True:
            try:
                async with self._clock.timeout(RELOAD_PERIOD_S):
                    await self._reload_wanted.wait()
            except TimeoutError:
                if _changed_ns(self._settings.source) == seen:
                    continue
            self._reload_wanted.clear()
            seen = _changed_ns(self._settings.source)
            self._notifier.reloading(time.monotonic_ns())
            try:
                settings = self._reload()
                await self._reconcile(settings)
            except ConfigError as error:
                log.error("reload_refused", cause=str(error), kept="the configuration in force")
            self._notifier.ready()

    async def _reconcile(self, settings: Settings) -> None:
        fixed = self._settings.model_dump(exclude={"exchanges"})
        if settings.model_dump(exclude={"exchanges"}) != fixed:
            log.warning("reload_partial", followed="exchanges", rest="needs a restart")
        await self._fleet.follow(settings.exchanges)

    async def _expire(self) -> None:
        """SQLite has no retention of its own: old ticks are deleted here."""
        retention_ms = self._settings.store.ticks.retention_ms
        if not isinstance(self._sink, SqliteSink) or retention_ms is None:
            return
        while True:
            await self._clock.sleep(EXPIRE_PERIOD_S)
            try:
                await self._sink.expire(self._clock.now_ms() - retention_ms)
            except StoreUnavailable as error:
                log.warning("expiry_put_off", cause=str(error), next_try_s=EXPIRE_PERIOD_S)

    async def _tell_health(self, redis: Publisher) -> None:
        """Tell consumers in Redis what each exchange is worth; the keys end with the service."""
        while True:
            now_ms = self._clock.now_ms()
            for name, collector in list(self._fleet.collectors.items()):
                redis.put_health(name, health_fields(collector.status(now_ms), now_ms))
            await self._clock.sleep(HEALTH_PERIOD_S)

    async def _watch_itself(self) -> None:
        """Feed the supervisor's watchdog for as long as everything that can go on does."""
        look_s = self._notifier.look_s
        progress = Progress(gap_ms=round(look_s * self._clock.speed * 1500))
        told: list[str] = []
        while True:
            facts = self._facts()
            still = progress.look(duties(facts), self._clock.monotonic_ms())
            if still:
                self._notifier.stuck("; ".join(duty.text for duty in still))
            else:
                self._notifier.alive(status_line(facts.status))
            names = [duty.name for duty in still]
            if names and names != told:
                log.error("stuck", duties=names, next="no watchdog is fed until they go on")
            elif told and not names:
                log.info("goes_on", duties=told)
            told = names
            await asyncio.sleep(look_s)

    def _facts(self) -> Facts:
        return Facts(
            status=self.status(),
            commits=self._pipeline.turns,
            events=self._pipeline.counts["events"],
            writes=self._counted.turns,
            writing=self._counted.writing,
            handshakes={name: c.handshakes() for name, c in self._fleet.collectors.items()},
        )

    async def _show(self, console: Console) -> None:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(status_view(self.status()), refresh=True)
                await asyncio.sleep(VIEW_PERIOD_S)

    def status(self) -> dict[str, Any]:
        """The whole state, as `/status` gives it."""
        now_ms = self._clock.now_ms()
        exchanges = {name: c.status(now_ms) for name, c in list(self._fleet.collectors.items())}
        depth = self._outbox.depth()
        gaps: Counter[str] = Counter(open=0, repaired=0, empty=0, lost=0)
        minutes: Counter[str] = Counter(repaired=0, synthetic=0, lost=0)
        dropped: Counter[str] = self._outbox.dropped + self._pipeline.dropped
        dropped.update({f"inbox.{channel}": n for channel, n in self._inbox.dropped.items()})
        for name, collector in list(self._fleet.collectors.items()):
            gaps.update(collector.gaps())
            minutes.update(collector.missing())
            dropped.update({f"{name}.{what}": n for what, n in collector.dropped().items()})
        for name, publisher in self._publishers.items():
            dropped[f"publish.{name}"] += publisher.dropped
        redis = self._publishers.get("redis")
        return {
            "state": worst(exchange["state"] for exchange in exchanges.values()),
            "started_ms": self._started_ms,
            "now_ms": now_ms,
            "exchanges": exchanges,
            "store": {
                "kind": self._settings.store.kind,
                "state": self._delivery.state,
                "accepted": self._delivery.accepted,
                "rejected": self._delivery.rejected,
                "aside": self._delivery.aside,
                "error": self._delivery.error,
                "last_success_ms": self._delivery.last_success_ms,
            },
            "inbox": {"events": len(self._inbox)},
            "outbox": {
                "rows": depth.rows,
                "bytes": depth.bytes,
                "oldest_ms": depth.oldest_ms,
                "state": "live" if self._pipeline.error is None else "down",
                "error": self._pipeline.error,
                "since_ms": self._pipeline.down_since_ms,
            },
            "redis": {"state": None if redis is None else redis.state},
            "capture": None if self._capture is None else self._capture.status(),
            "gaps": dict(gaps),
            "minutes": dict(minutes),
            "dropped": {what: count for what, count in dropped.items() if count},
        }


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _changed_ns(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_mtime_ns
    except OSError:
        return 0
