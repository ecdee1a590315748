"""A real InfluxDB that fails for hours of market time, and what becomes of the rows.

While the store is bad, rows go at full speed into an outbox, so that six hours pass in minutes; not
a row less. Then the store is well again and rows come as in life, with a probe each 100 ms that is
looked for in the store: its age is that of live data.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from ingest.clock import Clock
from ingest.delivery import Delivery
from ingest.outbox import Outbox
from ingest.sinks.influx import TIMEOUT_S, InfluxSink
from marketdata.schema import MINUTE_MS, Batch, FundingRate, LastPrice, MarkPrice, Ohlcv, Row
from tests.servers.influx import InfluxServer
from tests.soak.disk import SmallDisk, small_disk
from tests.soak.proxy import Proxy
from tests.waiting import eventually

EXCHANGE = "BINANCE_FUTURES"
PROBE = "PROBE/USDT"
PAIRS = [f"COIN{n}/USDT:USDT" for n in range(164)]
COMMIT_ROWS = 100
WARM_UP_ROWS = 50_000
POISONED_COMMITS = 100
"""In the scenario `poison` one commit of so many has a candle that InfluxDB can't parse."""
FLAP_S = 10.0
LOOK_S = 0.05
LIVE_MS = 1_000
_FIELDS = {
    "mark_price": "mark_price",
    "last_price": "price",
    "funding_rate": "rate",
    "ohlcv_1m": "close",
}


@dataclass(frozen=True)
class Plan:
    """How much, and how long: `rows` while the store is bad, then at `rows_per_s`."""

    rows: int
    rows_per_s: int = 1_000
    bad_s: float = 0.0
    """The store is bad for at least so long, however fast the rows go in."""
    timeout_s: float = TIMEOUT_S
    speed: float = 1.0
    """Of the clock that delivery waits by."""
    drained_s: float = 3_600.0
    live_s: float = 10.0
    """How long life goes on at least after the store's return."""


@dataclass
class Figures:
    """What was measured; times are seconds since the store was well again."""

    scenario: str
    appended: int = 0
    poisoned: int = 0
    stored: int = 0
    quarantined: int = 0
    dropped: int = 0
    backlog: int = 0
    append_rows_per_s: float = 0.0
    drained_s: float = 0.0
    caught_up_rows_per_s: float = 0.0
    """From the first row stored, while new ones come in at the rate of life."""
    live_again_s: float | None = None
    late_again_s: float | None = None
    """When after that the newest probe was last a second old: candles that wait go before ticks."""
    ages_ms: list[int] = field(default_factory=list)
    """Of the newest probe in the store, from when it was first below a second until the end."""
    base_rss_mb: float = 0.0
    least_rss_mb: float = 0.0
    most_rss_mb: float = 0.0

    @property
    def lost(self) -> int:
        return self.appended - self.stored - self.quarantined

    def age_ms(self, share: float) -> int:
        """The age that this share of the looks stayed within."""
        ages = sorted(self.ages_ms)
        return ages[min(len(ages) - 1, int(share * len(ages)))]

    def __str__(self) -> str:
        again = "never" if self.live_again_s is None else f"{self.live_again_s:.1f} s"
        ages = f"p99 {self.age_ms(0.99)}, most {self.age_ms(1)} ms" if self.ages_ms else "none"
        if self.late_again_s is not None:
            ages += f", a second and more until {self.late_again_s:.1f} s"
        return (
            f"{self.scenario}: {self.appended:,} rows appended ({self.append_rows_per_s:,.0f}/s),"
            f" {self.lost} lost, {self.dropped} dropped, {self.quarantined} in quarantine"
            f" ({self.poisoned} poisoned); {self.backlog:,} waited, gone after"
            f" {self.drained_s:.0f} s ({self.caught_up_rows_per_s:,.0f}/s); live again after"
            f" {again}, from then on age {ages}; memory {self.base_rss_mb:.0f} MB,"
            f" {self.least_rss_mb - self.base_rss_mb:+.0f} to"
            f" {self.most_rss_mb - self.base_rss_mb:+.0f}"
        )


class Load:
    """Rows as 164 pairs bring them, each a point of its own: by far the most are ticks."""

    def __init__(self, start_ms: int, rows_per_s: int, *, poison: bool) -> None:
        self.rows = 0
        self.poisoned = 0
        self._start_ms = start_ms
        self._rows_per_s = rows_per_s
        self._poison = poison

    def commit(self) -> Batch:
        """The next `COMMIT_ROWS` rows, in the order of their time."""
        rows: dict[str, list[Row]] = {name: [] for name in _FIELDS}
        for n in range(self.rows, self.rows + COMMIT_ROWS):
            names = EXCHANGE, PAIRS[n % len(PAIRS)], self._start_ms + n * 1000 // self._rows_per_s
            price = 100.0 + n % 997 / 8
            kind = n % COMMIT_ROWS
            if n % (2 * COMMIT_ROWS) == COMMIT_ROWS:  # 5 a second; 164 pairs close 3.6
                rows["ohlcv_1m"].append(_candle(*names, price, n))
            elif kind < 10:
                rows["funding_rate"].append(FundingRate(*names, 1e-4, None, None, 8.0))
            elif kind < 40:
                rows["last_price"].append(LastPrice(*names, price))
            else:
                rows["mark_price"].append(MarkPrice(*names, price, price + 0.5))
        self.rows += COMMIT_ROWS
        if self._poison and self.rows // COMMIT_ROWS % POISONED_COMMITS == 0:
            candle = rows["ohlcv_1m"][0]
            assert isinstance(candle, Ohlcv)
            rows["ohlcv_1m"][0] = candle._replace(trades=2**63)
            self.poisoned += 1
        return rows


def _candle(exchange: str, pair: str, time_ms: int, price: float, trades: int) -> Ohlcv:
    prices = price, price + 1, price - 1, price + 0.5
    return Ohlcv(exchange, pair, time_ms, *prices, 12.5, 1_250.0, trades, "stream", 0)


class Memory:
    """The resident memory of this process, while `watch` runs."""

    def __init__(self) -> None:
        self.base_mb = self.least_mb = self.most_mb = 0.0

    def start(self) -> None:
        self.base_mb = self.least_mb = self.most_mb = self._now_mb()

    async def watch(self) -> None:
        while True:
            now_mb = self._now_mb()
            self.least_mb = min(self.least_mb, now_mb)
            self.most_mb = max(self.most_mb, now_mb)
            await asyncio.sleep(0.2)

    @staticmethod
    def _now_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Store:
    """The server and what stands before it, as one that can be bad and well again."""

    def __init__(self, server: InfluxServer, proxy: Proxy, disk: SmallDisk | None) -> None:
        self.server = server
        self.proxy = proxy
        self.disk = disk
        self.bucket = server.new_bucket()

    async def count(self) -> int:
        """Every point of the rows that `Load` makes and of the probe."""
        total = 0
        for measurement, column in _FIELDS.items():
            found = await self.ask(f'SELECT count("{column}") FROM "{measurement}"')
            total += 0 if found is None else int(found[1])
        return total

    async def newest_probe_ms(self, since_ms: int) -> int | None:
        found = await self.ask(
            f"SELECT price FROM last_price WHERE symbol = '{PROBE}' AND time >= {since_ms}ms"
            " ORDER BY time DESC LIMIT 1"
        )
        return None if found is None else int(found[0])

    async def ask(self, query: str) -> list[float] | None:
        """The first row of the answer."""
        parameters = {"db": self.bucket, "epoch": "ms", "q": query}
        headers = {"Authorization": f"Token {self.server.token}"}
        timeout = aiohttp.ClientTimeout(total=600)
        async with (
            aiohttp.ClientSession(headers=headers, timeout=timeout) as client,
            client.get(f"{self.server.url}/query", params=parameters) as answer,
        ):
            (result,) = json.loads(await answer.text())["results"]
        assert "error" not in result, result
        series = result.get("series")
        row: list[float] | None = series[0]["values"][0] if series else None
        return row


@asynccontextmanager
async def outage(store: Store) -> AsyncIterator[None]:
    """The server is killed, and started again at the end."""
    await asyncio.to_thread(store.server.kill)
    yield
    await asyncio.to_thread(store.server.start)


@asynccontextmanager
async def busy(store: Store) -> AsyncIterator[None]:
    """503 with Retry-After to every write."""
    store.proxy.mode = "busy"
    yield
    store.proxy.mode = "pass"


@asynccontextmanager
async def hanging(store: Store) -> AsyncIterator[None]:
    """Writes are taken and never answered."""
    store.proxy.mode = "hang"
    yield
    store.proxy.mode = "pass"


@asynccontextmanager
async def flapping(store: Store) -> AsyncIterator[None]:
    """Nobody listens for ten seconds, then somebody does for ten, and so on."""

    async def flap() -> None:
        while True:
            await store.proxy.close()
            await asyncio.sleep(FLAP_S)
            await store.proxy.open()
            await asyncio.sleep(FLAP_S)

    task = asyncio.create_task(flap())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await store.proxy.close()
    await store.proxy.open()


@asynccontextmanager
async def full_disk(store: Store) -> AsyncIterator[None]:
    """The server's data folder has no room left; then it has, and the server is started again.

    It must be: InfluxDB 2.9 goes on answering 500 to every write once it had no room.
    """
    assert store.disk is not None
    await asyncio.to_thread(store.disk.fill)
    yield
    await asyncio.to_thread(store.disk.free)
    await asyncio.to_thread(store.server.kill)
    await asyncio.to_thread(store.server.start)


@asynccontextmanager
async def poison(store: Store) -> AsyncIterator[None]:
    """The server is away as in `outage`; among the rows are some that it can't parse."""
    async with outage(store):
        yield


SCENARIOS: dict[str, Callable[[Store], AbstractAsyncContextManager[None]]] = {
    "outage": outage,
    "busy": busy,
    "hanging": hanging,
    "flapping": flapping,
    "full_disk": full_disk,
    "poison": poison,
}


async def run(scenario: str, plan: Plan, program: Path, folder: Path) -> Figures:
    """Play the scenario in an empty folder, and measure.

    Raises
    ------
    PermissionError
        `full_disk` needs to mount one, and may not.
    """
    figures = Figures(scenario)
    async with AsyncExitStack() as stack:
        disk = None
        if scenario == "full_disk":
            disk = stack.enter_context(small_disk(folder / "influxd"))
        server = InfluxServer(program, folder / "influxd")
        stack.push_async_callback(asyncio.to_thread, server.stop)
        await asyncio.to_thread(server.start)
        proxy = await stack.enter_async_context(Proxy(server.url))
        store = Store(server, proxy, disk)
        through_proxy = scenario in ("busy", "hanging", "flapping")
        url = proxy.url if through_proxy else server.url
        sink = InfluxSink(url, server.org, store.bucket, server.token, timeout_s=plan.timeout_s)
        stack.push_async_callback(sink.close)
        outbox = await Outbox.open(folder / "outbox.db", 2**40)
        stack.push_async_callback(outbox.close)
        delivery = Delivery(outbox, sink, Clock(plan.speed))
        memory = Memory()
        start_ms = int(time.time() * 1000) - plan.rows * 1000 // plan.rows_per_s
        load = Load(start_ms, plan.rows_per_s, poison=scenario == "poison")
        tasks = [asyncio.create_task(delivery.run()), asyncio.create_task(memory.watch())]
        stack.push_async_callback(_end, tasks)

        for _ in range(min(plan.rows, WARM_UP_ROWS) // COMMIT_ROWS):
            await outbox.append(load.commit())
        await eventually(lambda: outbox.depth().rows == 0, 60.0, "the warm-up is stored")
        memory.start()

        begun_s = time.monotonic()
        before = load.rows
        async with SCENARIOS[scenario](store):
            while load.rows - before < plan.rows:
                await outbox.append(load.commit())
            figures.append_rows_per_s = plan.rows / (time.monotonic() - begun_s)
            await asyncio.sleep(max(0.0, plan.bad_s - (time.monotonic() - begun_s)))
        probes = await _live(figures, plan, store, outbox, delivery, load)

        figures.appended = load.rows + probes
        figures.poisoned = load.poisoned
        figures.quarantined = outbox.depth().quarantined
        figures.dropped = outbox.dropped.total()
        figures.stored = await store.count()
        figures.base_rss_mb = memory.base_mb
        figures.least_rss_mb, figures.most_rss_mb = memory.least_mb, memory.most_mb
    return figures


async def _live(
    figures: Figures, plan: Plan, store: Store, outbox: Outbox, delivery: Delivery, load: Load
) -> int:
    """Life after the store's return, until the backlog is gone: how many probes were put in."""
    returned_s = time.monotonic()
    figures.backlog = outbox.depth().rows
    accepted = delivery.accepted
    probes: list[int] = []
    living = asyncio.create_task(_produce(plan, outbox, load, probes))
    looking = asyncio.create_task(_look(figures, store, returned_s))
    try:
        await eventually(lambda: delivery.accepted > accepted, 120.0, "a row is stored")
        begun_s = time.monotonic()
        await eventually(
            lambda: outbox.depth().rows < 5 * plan.rows_per_s and delivery.state == "live",
            plan.drained_s,
            "the backlog is gone",
        )
        figures.drained_s = time.monotonic() - returned_s
        figures.caught_up_rows_per_s = (delivery.accepted - accepted) / (time.monotonic() - begun_s)
        await asyncio.sleep(max(0.0, plan.live_s - figures.drained_s))
    finally:
        await _end([living, looking])
    await eventually(lambda: outbox.depth().rows == 0, 120.0, "every row is settled")
    return len(probes)


async def _produce(plan: Plan, outbox: Outbox, load: Load, probes: list[int]) -> None:
    """Rows as in life, a commit of 100 each with a probe among them."""
    due_s = time.monotonic()
    while True:
        now_ms = int(time.time() * 1000)
        batch = {**load.commit()}
        batch["last_price"] = [*batch["last_price"], LastPrice(EXCHANGE, PROBE, now_ms, 1.0)]
        probes.append(now_ms)
        # To its end, also when this is cancelled, or the row would be there and not be counted.
        await asyncio.shield(outbox.append(batch))
        due_s += COMMIT_ROWS / plan.rows_per_s
        await asyncio.sleep(max(0.002, due_s - time.monotonic()))


async def _look(figures: Figures, store: Store, returned_s: float) -> None:
    """See the newest probe in the store, again and again."""
    while True:
        since_ms = int(time.time() * 1000) - MINUTE_MS
        newest_ms = await store.newest_probe_ms(since_ms)
        age_ms = None if newest_ms is None else int(time.time() * 1000) - newest_ms
        if figures.live_again_s is None and age_ms is not None and age_ms < LIVE_MS:
            figures.live_again_s = time.monotonic() - returned_s
        if figures.live_again_s is not None:
            figures.ages_ms.append(MINUTE_MS if age_ms is None else age_ms)
            if figures.ages_ms[-1] >= LIVE_MS:
                figures.late_again_s = time.monotonic() - returned_s
        await asyncio.sleep(LOOK_S)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
