"""Redis away, emptied, refusing, hanging: what the publisher does, and what consumers are told."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from structlog.testing import capture_logs

from ingest.clock import Clock
from ingest.hot import HotState
from ingest.publish import Publisher
from ingest.restore import Restorer
from ingest.sinks.base import Settled
from ingest.sinks.redis import RedisSink
from marketdata import keys
from marketdata.errors import StaleData, StoreUnavailable
from marketdata.schema import CANDLE_MS, Batch, MarkPrice, Ohlcv, Row
from tests.servers.forwarder import Forwarder
from tests.servers.redis import RedisServer
from tests.stored import RedisHome, SqliteHome, Watch, last_of, reading
from tests.stores import EXCHANGE, SYMBOL, TIME, RedisStore, ohlcv
from tests.waiting import eventually

ETH = "ETH/USDT:USDT"
PASSWORD = "pass-word-of-old"


class Stored:
    """A store with candles, as the service reads it."""

    def __init__(self) -> None:
        self.candles: list[Ohlcv] = []

    def rows(
        self,
        measurement: str,
        exchange: str,
        symbol: str,
        start_ms: int,
        end_ms: int,
        limit: int | None = None,
    ) -> list[Row]:
        return [row for row in self.candles if row.symbol == symbol and row.time < end_ms]


@dataclass
class Line:
    """Newest values on their way to a Redis, and what its owner looks at."""

    hot: HotState
    publisher: Publisher
    restorer: Restorer
    stored: Stored
    clock: Clock

    def mark(self, symbol: str = SYMBOL, price: float = 1.0) -> None:
        now_ms = self.clock.now_ms()
        self.hot.put(MarkPrice(EXCHANGE, symbol, now_ms, price, None), now_ms)

    async def is_live(self) -> None:
        """Wait until everything that there is has been published."""
        await eventually(lambda: self.publisher.state == "live", 15, "the publisher is live")

    async def is_down(self) -> str:
        await eventually(lambda: self.publisher.state == "down", 15, "the publisher is down")
        assert self.publisher.error is not None
        return self.publisher.error


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a second there takes a moment here."""
    monkeypatch.setattr("ingest.publish.RETRY_S", 0.1)
    monkeypatch.setattr("ingest.restore.PERIOD_S", 0.02)


@asynccontextmanager
async def publishing(url: str, timeout_s: float = 1.0) -> AsyncIterator[Line]:
    """A publisher at work, with the service's parts around it."""
    clock, hot, stored = Clock(), HotState(), Stored()
    sink = RedisSink(url, timeout_s=timeout_s, now_ms=clock.now_ms)
    restorer = Restorer(hot, stored, clock)
    publisher = Publisher(hot, sink, clock, every_s=0.05, streams=sink, on_loss=restorer.start_over)
    tasks = [asyncio.create_task(work) for work in (publisher.run(), restorer.run(publisher))]
    try:
        yield Line(hot, publisher, restorer, stored, clock)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await sink.close()


def keep_all(server: RedisServer) -> None:
    """Restart it, so that from now on it has everything again after a kill."""
    server.options = ["--appendonly", "yes", "--appendfsync", "always"]
    server.stop()
    server.start()


def connect(server: RedisServer) -> redis.Redis:
    return redis.Redis(port=server.port, decode_responses=True)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with connect(redis_server) as client:
        yield client


def entries(client: redis.Redis, stream: str) -> list[dict[str, str]]:
    return [fields for _, fields in client.xrange(stream) or ()]  # type: ignore[misc]


def breaks(client: redis.Redis) -> dict[str, dict[str, str]]:
    """The newest break of each stream."""
    found = [entry for entry in entries(client, keys.STREAM_HEALTH) if entry["kind"] == "break"]
    return {entry["stream"]: entry for entry in found}


def is_shown(client: redis.Redis, symbol: str = SYMBOL, price: float = 1.0) -> bool:
    with suppress(redis.ConnectionError):
        return client.hget(keys.last(EXCHANGE, symbol), "mark_price") == repr(price)
    return False


async def shown(client: redis.Redis, symbol: str = SYMBOL, price: float = 1.0) -> None:
    await eventually(lambda: is_shown(client, symbol, price), 15, f"{symbol} at {price}")


# Emptied, replaced.


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_an_emptied_redis_gets_everything_again_also_what_hasnt_changed(
    redis_server: RedisServer, client: redis.Redis, how: str
) -> None:
    rows = [ohlcv(time=TIME + n * CANDLE_MS) for n in range(3)]
    async with publishing(redis_server.url) as line:
        started_ms = line.clock.now_ms()
        line.mark(SYMBOL)
        line.mark(ETH, 2.0)
        line.publisher.put_candles(rows[2:])
        line.publisher.put_health(EXCHANGE, {"state": "live", "time_ms": started_ms})
        await shown(client, ETH, 2.0)
        await eventually(lambda: entries(client, keys.STREAM_OHLCV_3M), 5)
        line.stored.candles = rows
        if how == "flushed":
            client.flushall()
        else:
            redis_server.kill()
            redis_server.start()
        await shown(client, SYMBOL)
        await shown(client, ETH, 2.0)
        await eventually(lambda: RedisStore(redis_server.url).rows("ohlcv_3m") == rows, 15)
        await eventually(lambda: len(breaks(client)) == 3, 15)
        # What had been announced is not announced again.
        assert entries(client, keys.STREAM_OHLCV_3M) == []
        assert entries(client, keys.STREAM_PRICE) == []
        for stream, entry in breaks(client).items():
            assert set(entry) == {"kind", "stream", "since_ms", "until_ms", "dropped"}
            assert entry["stream"] == stream
            assert started_ms - 5_000 < int(entry["since_ms"]) < int(entry["until_ms"])
        line.mark(SYMBOL, 3.0)
        await eventually(lambda: len(entries(client, keys.STREAM_PRICE)) == 1, 5)


async def test_a_value_that_got_too_old_in_the_meantime_is_not_shown_as_fresh(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    async with publishing(redis_server.url) as line:
        now_ms = line.clock.now_ms()
        for symbol, age_ms in ((SYMBOL, 60_000), (ETH, keys.LAST_TTL_MS)):
            mark = MarkPrice(EXCHANGE, symbol, now_ms - age_ms, 1.0, None)
            line.hot.put(mark, now_ms - age_ms)
        await shown(client)
        assert client.pttl(keys.last(EXCHANGE, SYMBOL)) <= keys.LAST_TTL_MS - 60_000
        assert client.exists(keys.last(EXCHANGE, ETH)) == 0


async def test_a_redis_that_was_away_and_kept_its_data_has_no_break_of_candles(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    keep_all(redis_server)
    async with publishing(redis_server.url) as line:
        line.mark()
        line.publisher.put_candles([ohlcv()])
        await shown(client)
        before_ms = line.clock.now_ms()
        redis_server.kill()
        await line.is_down()
        line.mark(price=2.0)
        line.publisher.put_candles([ohlcv(time=TIME + CANDLE_MS)])
        line.mark(price=3.0)
        redis_server.start()
        await shown(client, price=3.0)
        await eventually(lambda: len(entries(client, keys.STREAM_OHLCV_3M)) == 2, 15)
        await eventually(lambda: breaks(client), 15)
        told = breaks(client)
        assert set(told) == {keys.STREAM_PRICE}
        span = told[keys.STREAM_PRICE]
        assert int(span["since_ms"]) <= before_ms + 1_000 < int(span["until_ms"]) + 1_000
        assert span["dropped"] == "0"
        prices = [entry["mark_price"] for entry in entries(client, keys.STREAM_PRICE)]
        assert prices == ["1.0", "3.0"]


async def test_prices_that_were_skipped_are_told_also_where_it_was_a_candle_that_failed(
    redis_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_all(redis_server)
    write = RedisSink.write

    async def killed(sink: RedisSink, batch: Batch) -> Settled:
        redis_server.kill()
        return await write(sink, batch)

    async with publishing(redis_server.url) as line:
        line.mark()
        await shown(client)
        with monkeypatch.context() as patch:
            patch.setattr(RedisSink, "write", killed)
            line.publisher.put_candles([ohlcv()])
            await line.is_down()
        line.mark(price=2.0)
        line.mark(price=3.0)
        # Nothing else runs meanwhile: the next attempt finds Redis there again.
        redis_server.start()
        await shown(client, price=3.0)
        await eventually(lambda: breaks(client), 15)
        assert set(breaks(client)) == {keys.STREAM_PRICE}
        assert len(entries(client, keys.STREAM_OHLCV_3M)) == 1


async def test_what_no_queue_could_hold_is_counted_told_and_put_back_from_the_store(
    redis_server: RedisServer, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.publish.QUEUED", 5)
    rows = [ohlcv(time=TIME + n * CANDLE_MS) for n in range(8)]
    async with publishing(redis_server.url) as line:
        line.mark()
        await shown(client)
        client.replicaof("127.0.0.1", 1)
        await line.is_down()
        line.publisher.put_candles(rows)
        line.publisher.put_markers([{"kind": "state", "n": n} for n in range(7)])
        line.stored.candles = rows
        assert line.publisher.dropped == 3 + 2
        client.replicaof("NO", "ONE")
        await eventually(lambda: len(breaks(client)) == 3, 15)
        dropped = {stream: entry["dropped"] for stream, entry in breaks(client).items()}
        assert dropped == {
            keys.STREAM_OHLCV_3M: "3",
            keys.STREAM_PRICE: "0",
            keys.STREAM_HEALTH: "4",  # the two breaks take their places as well
        }
        await eventually(lambda: RedisStore(redis_server.url).rows("ohlcv_3m") == rows, 15)
        announced = [entry["data"] for entry in entries(client, keys.STREAM_OHLCV_3M)]
        assert [int(data[1:14]) for data in announced] == [row.time for row in rows[3:]]
        states = [e["n"] for e in entries(client, keys.STREAM_HEALTH) if e["kind"] == "state"]
        assert states == ["4", "5", "6"]


async def test_what_one_key_refuses_keeps_nothing_else_back(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    candles = keys.candles(EXCHANGE, SYMBOL)
    client.set(candles, "somebody else's")
    async with publishing(redis_server.url) as line:
        line.publisher.put_candles([ohlcv(), ohlcv(symbol=ETH)])
        error = await line.is_down()
        assert "WRONGTYPE" in error
        assert candles in error
        line.mark(price=2.0)
        await shown(client, price=2.0)
        line.publisher.put_markers([{"kind": "state", "state": "late"}])
        await eventually(lambda: entries(client, keys.STREAM_HEALTH), 5)
        assert client.zcard(keys.candles(EXCHANGE, ETH)) == 1
        assert breaks(client) == {}
        client.delete(candles)
        await line.is_live()
        assert client.zcard(candles) == 1
        assert len(entries(client, keys.STREAM_OHLCV_3M)) == 2


# Each way to fail.


@dataclass(frozen=True)
class Fault:
    """How a Redis fails, is mended, and what is said of it."""

    name: str
    begin: Callable[[RedisServer, redis.Redis], object]
    end: Callable[[RedisServer, redis.Redis], object]
    says: str
    level: str = "warning"


def hang(server: RedisServer, client: redis.Redis) -> None:
    server.pause()


def wake(server: RedisServer, client: redis.Redis) -> None:
    server.resume()


def lock(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("requirepass", "another-pass-word")
    client.client_kill_filter(_type="normal", skipme=True)


def unlock(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("requirepass", PASSWORD)
    client.client_kill_filter(_type="normal", skipme=True)


def lose_the_disk(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("save", "1 1")
    client.config_set("dir", "/proc")
    _save(client, "err")


def find_the_disk(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("save", "")
    client.config_set("dir", str(server.folder))
    _save(client, "ok")


def _save(client: redis.Redis, outcome: str) -> None:
    deadline = time.monotonic() + 15
    while client.info("persistence")["rdb_last_bgsave_status"] != outcome:
        assert time.monotonic() < deadline, f"no background save with {outcome}"
        with suppress(redis.ResponseError):
            client.bgsave()
        time.sleep(0.05)


FAULTS = [
    Fault(
        "maxmemory",
        lambda server, client: client.config_set("maxmemory", 1),
        lambda server, client: client.config_set("maxmemory", 0),
        "maxmemory",
    ),
    Fault(
        "replica",
        lambda server, client: client.replicaof("127.0.0.1", 1),
        lambda server, client: client.replicaof("NO", "ONE"),
        "read only replica",
    ),
    Fault("password", lock, unlock, "password|[Aa]uthentic", "error"),
    Fault("disk", lose_the_disk, find_the_disk, "MISCONF"),
    Fault("hanging", hang, wake, "no answer within 1 s"),
    Fault(
        "killed",
        lambda server, client: server.kill(),
        lambda server, client: server.start(),
        "refused|[Cc]onnect|closed",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_every_fault_is_told_once_and_values_resume_by_themselves(
    redis_program: Path, tmp_path: Path, fault: Fault
) -> None:
    server = Guarded(redis_program, tmp_path / "redis")
    server.start()
    client = redis.Redis(port=server.port, password=PASSWORD, decode_responses=True)
    url = f"redis://:{PASSWORD}@127.0.0.1:{server.port}/0"
    try:
        with capture_logs() as logs:
            async with publishing(url) as line:
                line.mark()
                await shown(client)
                await asyncio.to_thread(fault.begin, server, client)
                error = await line.is_down()
                line.mark(price=2.0)
                # Several attempts later it is told no more than once.
                attempts_ms = line.clock.now_ms()
                await eventually(lambda: line.clock.now_ms() > attempts_ms + 400)
                await asyncio.to_thread(fault.end, server, client)
                await line.is_live()
                await shown(client, price=2.0)
                line.mark(price=3.0)
                await shown(client, price=3.0)
    finally:
        client.close()
        server.stop()
    assert_told_once(logs, fault)
    assert PASSWORD not in error + repr(logs)


def assert_told_once(logs: list[MutableMapping[str, Any]], fault: Fault) -> None:
    stopped = [entry for entry in logs if entry["event"] == "publishing_stopped"]
    if fault.level == "error" and stopped[0]["log_level"] == "warning":
        stopped.pop(0)  # a connection that was cut, before the next was refused
    assert [entry["log_level"] for entry in stopped] == [fault.level]
    assert re.search(fault.says, stopped[0]["cause"]), stopped[0]["cause"]
    assert len([entry for entry in logs if entry["event"] == "publishing_resumed"]) == 1


async def test_a_redis_that_loads_its_data_is_waited_for_and_what_it_lost_is_told(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    rows = [ohlcv(), ohlcv(time=TIME + CANDLE_MS)]
    redis_server.options = ["--key-load-delay", "500"]
    redis_server.options += ["--loading-process-events-interval-bytes", "1024"]
    with capture_logs() as logs:
        async with publishing(redis_server.url) as line:
            line.mark()
            line.publisher.put_candles(rows[:1])
            await eventually(lambda: entries(client, keys.STREAM_OHLCV_3M), 5)
            with client.pipeline() as pipeline:
                for n in range(3_000):
                    pipeline.set(f"filler:{n}", "x" * 100)
                pipeline.execute()
            client.save()
            line.stored.candles = rows
            line.publisher.put_candles(rows[1:])
            await eventually(lambda: len(entries(client, keys.STREAM_OHLCV_3M)) == 2, 5)
            redis_server.kill()
            await line.is_down()
            starting = asyncio.create_task(asyncio.to_thread(redis_server.start))
            await eventually(lambda: "loading the dataset" in (line.publisher.error or ""), 15)
            await starting
            await eventually(lambda: RedisStore(redis_server.url).rows("ohlcv_3m") == rows, 15)
            await eventually(lambda: len(breaks(client)) == 3, 15)
            assert len(entries(client, keys.STREAM_OHLCV_3M)) == 1
            await line.is_live()
    events = [entry["event"] for entry in logs]
    assert events == ["publishing_stopped", "publishing_resumed"]


class Guarded(RedisServer):
    """A Redis with a password, whose configuration may be changed while it runs."""

    def __init__(self, program: Path, folder: Path) -> None:
        free = ["--enable-protected-configs", "yes", "--enable-debug-command", "yes"]
        super().__init__(program, folder, ["--requirepass", PASSWORD, *free])

    def is_ready(self) -> bool:
        with (
            suppress(redis.ConnectionError),
            redis.Redis(port=self.port, password=PASSWORD) as client,
        ):
            return bool(client.ping())
        return False


async def test_a_slow_redis_is_no_fault(redis_server: RedisServer, client: redis.Redis) -> None:
    async with Forwarder(redis_server.port).listening() as forwarder:
        forwarder.delay_s = 0.3
        with capture_logs() as logs:
            async with publishing(forwarder.url, timeout_s=5.0) as line:
                for price in (1.0, 2.0):
                    line.mark(price=price)
                    await shown(client, price=price)
    assert logs == []


@pytest.fixture
def replica(
    redis_program: Path, redis_server: RedisServer, tmp_path: Path
) -> Iterator[RedisServer]:
    """A second Redis that follows `redis_server` until it is promoted."""
    follow = ["--replicaof", "127.0.0.1", str(redis_server.port)]
    server = RedisServer(redis_program, tmp_path / "replica", follow)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def test_a_publisher_follows_the_address_to_a_promoted_replica(
    redis_server: RedisServer, replica: RedisServer
) -> None:
    with connect(redis_server) as old, connect(replica) as new, capture_logs() as logs:
        async with (
            Forwarder(redis_server.port).listening() as forwarder,
            publishing(forwarder.url) as line,
        ):
            line.mark()
            line.publisher.put_candles([ohlcv()])
            await eventually(lambda: len(entries(new, keys.STREAM_OHLCV_3M)) == 1, 15)
            await shown(new)
            # First the address changes, as it may: to what is a replica still.
            forwarder.target_port = replica.port
            forwarder.cut()
            await line.is_down()
            # The replica has all that was confirmed; if not, every stream has a break.
            old.set("newest", 1)
            assert old.wait(1, 15_000) == 1
            redis_server.kill()
            line.mark(price=2.0)
            line.publisher.put_candles([ohlcv(), ohlcv(time=TIME + CANDLE_MS)])
            new.replicaof("NO", "ONE")
            await shown(new, price=2.0)
            await eventually(lambda: len(entries(new, keys.STREAM_OHLCV_3M)) == 2, 15)
            await eventually(lambda: breaks(new), 15)
            assert set(breaks(new)) == {keys.STREAM_PRICE}
            await line.is_live()
    events = [entry["event"] for entry in logs]
    assert events == ["publishing_stopped", "publishing_resumed"]


async def test_a_replica_that_lacked_the_newest_gets_it_and_consumers_are_told(
    redis_server: RedisServer, replica: RedisServer
) -> None:
    rows = [ohlcv(), ohlcv(time=TIME + CANDLE_MS)]
    with connect(redis_server) as old, connect(replica) as new:
        async with (
            Forwarder(redis_server.port).listening() as forwarder,
            publishing(forwarder.url) as line,
        ):
            line.mark()
            line.publisher.put_candles(rows[:1])
            await eventually(lambda: len(entries(new, keys.STREAM_OHLCV_3M)) == 1, 15)
            # It is promoted while the old one still takes writes.
            new.replicaof("NO", "ONE")
            line.publisher.put_candles(rows[1:])
            await eventually(lambda: len(entries(old, keys.STREAM_OHLCV_3M)) == 2, 15)
            # What comes after it is there: so the publisher has heard, and won't send it again.
            line.mark(price=2.0)
            await shown(old, price=2.0)
            line.stored.candles = rows
            forwarder.target_port = replica.port
            redis_server.kill()
            forwarder.cut()
            await eventually(lambda: RedisStore(replica.url).rows("ohlcv_3m") == rows, 15)
            await eventually(lambda: len(breaks(new)) == 3, 15)
            assert len(entries(new, keys.STREAM_OHLCV_3M)) == 1


async def test_what_was_written_since_the_last_probe_is_missed_as_well(
    redis_server: RedisServer, replica: RedisServer
) -> None:
    with connect(replica) as new:
        async with Forwarder(redis_server.port).listening() as forwarder:
            sink = RedisSink(forwarder.url)
            await sink.probe()
            await eventually(lambda: new.keys(keys.writer("*")), 15)
            new.replicaof("NO", "ONE")
            await sink.write({"ohlcv_3m": [ohlcv()]})
            forwarder.target_port = replica.port
            redis_server.kill()
            forwarder.cut()
            with pytest.raises(StoreUnavailable):
                await sink.probe()
            assert sink.losses == 0
            await sink.probe()
            assert sink.losses == 1
            await sink.close()


async def test_a_collector_that_starts_tells_since_when_nobody_fed_the_streams(
    redis_server: RedisServer, client: redis.Redis
) -> None:
    async with publishing(redis_server.url) as line:
        line.mark()
        await shown(client)
        line.publisher.put_candles([ohlcv()])
        await eventually(lambda: entries(client, keys.STREAM_OHLCV_3M), 5)
    assert breaks(client) == {}
    async with publishing(redis_server.url) as line:
        await eventually(lambda: len(breaks(client)) == 2, 5)
        found = breaks(client)
        for stream in (keys.STREAM_PRICE, keys.STREAM_OHLCV_3M):
            newest: Any = client.xrevrange(stream, count=1)
            assert int(found[stream]["since_ms"]) <= int(newest[0][0].partition("-")[0])
            assert found[stream]["dropped"] == "0"


# Those who read.


async def test_who_follows_the_stream_as_documented_has_every_candle(
    redis_server: RedisServer, client: redis.Redis, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "schema.md").read_text()
    (text,) = re.findall(r"```python\n(def follow.*?)```", page, re.DOTALL)
    example: dict[str, Any] = {"json": json, "datetime": datetime, "UTC": UTC}
    exec(text, example)  # noqa: S102
    now_ms = int(time.time() * 1000) // CANDLE_MS * CANDLE_MS
    rows = [ohlcv(time=now_ms - n * CANDLE_MS, close=float(n)) for n in range(6, 0, -1)]
    home = SqliteHome(tmp_path / "market_data.db")
    taken: dict[float, list[float]] = {}

    def take(pair: str, candle: list[float]) -> None:
        taken[candle[0]] = candle

    await asyncio.to_thread(home.put, {"ohlcv_3m": rows})
    stop = threading.Event()
    with reading(home, Watch(now_ms + 5_000)) as data:
        following = asyncio.create_task(
            asyncio.to_thread(
                example["follow"], client, data, [SYMBOL], take, lambda: not stop.is_set()
            )
        )
        try:
            async with publishing(redis_server.url) as line:
                line.publisher.put_candles(rows[:2])
                await eventually(lambda: len(taken) == 2, 10)
                # The next two are lost with the Redis that had them.
                with connect(redis_server) as other:
                    other.flushall()
                line.publisher.put_candles(rows[4:])
                await eventually(lambda: len(taken) == 6, 10)
        finally:
            stop.set()
            await following
    assert [candle[:6] for candle in sorted(taken.values())] == [list(row[2:8]) for row in rows]


def test_after_an_outage_no_old_hash_is_taken_for_fresh(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    now_ms = int(time.time() * 1000)
    watch, hot = Watch(now_ms), RedisHome(redis_server.url)
    home = SqliteHome(tmp_path / "market_data.db")
    hot.put_last(last_of(SYMBOL, now_ms))
    home.put_last(last_of(SYMBOL, now_ms))
    with reading(home, watch, redis_server.url) as data:
        assert data.get_mark_price(SYMBOL, with_source=True).source == "redis"
        # Redis hangs; when it is back its keys are as they were, and only marks have come since.
        redis_server.pause()
        watch.now_ms += 130_000
        redis_server.resume()
        hot.put_last(last_of(SYMBOL, watch.now_ms, funding_event_ms=now_ms - 1_000))
        assert data.get_mark_price(SYMBOL, with_source=True).age_ms == 1_000
        with pytest.raises(StaleData) as stale:
            data.get_funding_rate(SYMBOL)
        assert stale.value.age_ms == 131_000
        # What the store has is newer than the hash.
        home.put_last(last_of(SYMBOL, watch.now_ms))
        watch.now_ms += 1_000
        funding = data.get_funding_rate(SYMBOL, with_source=True)
        assert (funding.source, funding.age_ms) == ("sqlite", 2_000)


def test_candles_that_begin_in_the_middle_are_taken_only_as_far_as_they_are_whole(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    step_ms = 5 * CANDLE_MS
    close_ms = int(time.time() * 1000) // step_ms * step_ms
    rows = [
        ohlcv(time=close_ms - n * CANDLE_MS, open=float(n), low=0.1, high=99.0)
        for n in range(20, 0, -1)
    ]
    home, hot = SqliteHome(tmp_path / "market_data.db"), RedisHome(redis_server.url)
    home.put({"ohlcv_3m": rows})
    hot.put({"ohlcv_3m": rows[-8:]})
    with reading(home, Watch(close_ms + 1_000), redis_server.url) as data:
        for timeframe, limit, source in (
            ("3m", 8, "redis"),
            ("3m", 9, "sqlite"),
            ("15m", 1, "redis"),
            ("15m", 2, "sqlite"),
        ):
            frame = data.get_ohlcv(SYMBOL, timeframe, limit=limit)
            assert frame.attrs["source"] == source, (timeframe, limit)
            assert frame.attrs["filled"] == []
            assert len(frame) == limit
        whole = data.get_ohlcv(SYMBOL, "15m", limit=2)
        assert whole["open"].tolist() == [10.0, 5.0]
