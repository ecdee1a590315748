"""Fixtures for every test: real servers on loopback, and a check for what tests leave behind.

A server that can't be had on this machine skips the tests that need it; in CI (CI=true) that is a
failure. One server per run, emptied (Redis) or with a bucket of its own (InfluxDB) for each test;
`redis_server` and `influx_server` are the test's own, to be stopped and killed.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.leaks import ProcessLeaks, TaskLeaks
from tests.servers.influx import InfluxBucket, InfluxServer, find_influxd
from tests.servers.process import free_port as find_free_port
from tests.servers.redis import RedisServer, find_redis_server
from tests.standstill import LOOP_FACTORIES, TIME

HURRIED = {
    "test_chaos",
    "test_incident",
    "test_kill",
    "test_outages",
    "test_repair",
    "test_scenarios",
    "test_service",
    "test_service_on_influxdb",
    "test_two_collectors",
}
"""Whole services on a hurried clock: never two at a time, since each wants a core of its own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in HURRIED:
            item.add_marker(pytest.mark.xdist_group("hurried"))
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            # First of all, so that it looks after every other fixture has been closed.
            item.fixturenames.insert(0, "no_task_leaks")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOP_FACTORIES


@pytest.fixture(autouse=True, scope="session")
def standstill() -> Iterator[None]:
    """The service's clocks go by the time of the loops that it runs in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ingest.clock.Clock.world_s", TIME.monotonic)
        yield


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves threads or file descriptors behind."""
    leaks = ProcessLeaks()
    yield
    if request.node.get_closest_marker("leaks") is None:
        left = leaks.find()
        if left:
            pytest.fail(f"left behind: {', '.join(left)}", pytrace=False)


@pytest.fixture
async def no_task_leaks() -> AsyncIterator[None]:
    """Fail an async test that leaves tasks running; each gets this by itself."""
    leaks = TaskLeaks()
    yield
    left = await leaks.find()
    if left:
        pytest.fail(f"left running: {', '.join(left)}", pytrace=False)


@pytest.fixture
def free_port() -> int:
    return find_free_port()


def _required(program: Path | None, name: str, how: str) -> Path:
    if program is not None:
        return program
    message = f"no {name} on this machine ({how})"
    if os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def redis_program() -> Path:
    return _required(find_redis_server(), "redis-server", "`make test` fetches one")


@pytest.fixture(scope="session")
def influx_program() -> Path:
    return _required(find_influxd(), "influxd", "`make influxd` builds one")


@pytest.fixture(scope="session")
def shared_redis(
    redis_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    server = RedisServer(redis_program, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(shared_redis: RedisServer) -> str:
    """The URL of an empty Redis."""
    shared_redis.flush()
    return shared_redis.url


@pytest.fixture
def redis_server(redis_program: Path, tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, running: `url`, `stop()`, `kill()`, `pause()`, `start()`."""
    server = RedisServer(redis_program, tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def shared_influx(
    influx_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InfluxServer]:
    server = InfluxServer(influx_program, tmp_path_factory.mktemp("influx"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def influx(shared_influx: InfluxServer) -> InfluxBucket:
    """A bucket of the test's own: `url`, `org`, `token`, `bucket`, `new_bucket()`."""
    return InfluxBucket(shared_influx, shared_influx.new_bucket())


@pytest.fixture
def influx_server(influx_program: Path, tmp_path: Path) -> Iterator[InfluxServer]:
    """An InfluxDB of the test's own, running: `stop()`, `kill()`, `start()` keep its data."""
    server = InfluxServer(influx_program, tmp_path / "influx")
    server.start()
    yield server
    server.stop()
