"""The parts that the other tests stand on: the servers, and the check for leaks."""

from __future__ import annotations

import asyncio
import socket
import threading

import redis

from tests.leaks import ProcessLeaks, TaskLeaks
from tests.servers.influx import InfluxBucket, InfluxServer, call
from tests.servers.redis import RedisServer


def _write(server: InfluxServer, bucket: str, token: str) -> int:
    return call(
        "POST",
        f"{server.url}/api/v2/write?org={server.org}&bucket={bucket}&precision=ms",
        token,
        body=b"mark_price,exchange=X,symbol=Y mark_price=1.0 1700000000000",
    ).status


def _count(server: InfluxServer, bucket: str) -> int:
    answer = call(
        "GET",
        f"{server.url}/query",
        fields={"db": bucket, "q": "SELECT count(mark_price) FROM mark_price"},
    )
    series = answer.json()["results"][0].get("series")
    return int(series[0]["values"][0][1]) if series else 0


def test_redis_is_empty_for_each_test(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_redis_is_empty_for_the_next_test_too(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0


def test_a_killed_redis_comes_back_on_the_same_port(redis_server: RedisServer) -> None:
    redis_server.kill()
    assert not redis_server.is_ready()
    redis_server.start()
    assert redis_server.is_ready()


def test_every_influx_bucket_is_a_new_one(influx: InfluxBucket) -> None:
    assert _count(influx.server, influx.bucket) == 0
    assert _write(influx.server, influx.bucket, influx.token) == 204
    assert _count(influx.server, influx.bucket) == 1
    assert _count(influx.server, influx.new_bucket()) == 0


def test_a_reading_token_does_not_write(influx: InfluxBucket) -> None:
    token = influx.server.new_token(influx.bucket, write=False)
    assert _write(influx.server, influx.bucket, token) in (401, 403)


def test_a_killed_influxdb_comes_back_with_what_was_written(influx_server: InfluxServer) -> None:
    bucket = influx_server.new_bucket()
    assert _write(influx_server, bucket, influx_server.token) == 204
    influx_server.kill()
    assert not influx_server.is_ready()
    influx_server.start()
    assert _count(influx_server, bucket) == 1


async def test_a_task_that_runs_on_is_found() -> None:
    leaks = TaskLeaks()
    forever = asyncio.create_task(asyncio.Event().wait(), name="forever")
    assert any("forever" in leak for leak in await leaks.find(0.1))
    forever.cancel()
    await asyncio.wait([forever])
    assert await leaks.find() == []


def test_a_thread_that_runs_on_is_found() -> None:
    leaks = ProcessLeaks()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="runs-on")
    thread.start()
    assert leaks.find(0.1) == ["thread runs-on"]
    end.set()
    thread.join()
    assert leaks.find() == []


def test_a_socket_that_stays_open_is_found() -> None:
    leaks = ProcessLeaks()
    left, right = socket.socketpair()
    assert len(leaks.find(0.1)) == 2
    left.close()
    right.close()
    assert leaks.find() == []
