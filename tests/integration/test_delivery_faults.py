"""Each way in which a store fails, and what becomes of the rows: by type, and none lost.

What a real InfluxDB 2.9 can show is shown by one; the rest is played over a real socket.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import ssl
import subprocess
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.clock import Clock
from ingest.delivery import Delivery
from ingest.outbox import Outbox
from ingest.outbox_records import SHARD_MS
from ingest.sinks.base import Rejected, Settled, Sink
from ingest.sinks.influx import InfluxSink
from marketdata.errors import BatchFailed, MarketDataError, StoreRefused, StoreUnavailable
from marketdata.schema import MINUTE_MS, Batch, LastPrice, Row
from tests.servers.influx import InfluxServer, call
from tests.servers.scripted_influx import (
    STORED,
    Answer,
    Behaviour,
    Reset,
    ScriptedInflux,
    Silence,
    Trickle,
)
from tests.stores import TIME, influx_rows, mark, ohlcv
from tests.waiting import eventually

FAST = 200.0
"""Speed of the clock, so that a pause of 30 s takes 0.15 s."""


@pytest.fixture
async def server() -> AsyncIterator[ScriptedInflux]:
    async with ScriptedInflux() as server:
        yield server


@pytest.fixture
async def sink(server: ScriptedInflux) -> AsyncIterator[InfluxSink]:
    sink = InfluxSink(server.url, server.org, server.bucket, server.token, timeout_s=0.5)
    yield sink
    await sink.close()


def candles(count: int, start: int = TIME) -> list[Row]:
    return [ohlcv(time=start + n * 3 * MINUTE_MS) for n in range(count)]


def times(server: ScriptedInflux) -> list[int]:
    return sorted(int(stamp) for _, stamp in server.points)


def said_in_full(error: BaseException) -> str:
    """The error as the most talkative log would show it, causes and all."""
    chain: list[BaseException | None] = [error, error.__cause__]
    return "".join([*traceback.format_exception(error), *map(repr, chain)])


# What each answer means.


async def test_a_400_costs_the_quoted_lines_only_and_the_rest_goes_in_one_request(
    server: ScriptedInflux, sink: InfluxSink
) -> None:
    rows = candles(100)
    bad = {row.time for row in (rows[3], rows[50], rows[99])}

    def judge(lines: Sequence[str]) -> Behaviour:
        quoted = [line for line in lines if int(line.rsplit(" ", 1)[1]) in bad]
        errors = [f"unable to parse '{line}': invalid number" for line in quoted]
        return Answer(400, "\n".join(errors)) if errors else STORED

    server.judge = judge
    settled = await sink.write({"ohlcv_3m": rows})
    assert settled.accepted == 97
    assert {r.row.time for r in settled.rejected} == bad
    assert {r.reason for r in settled.rejected} == {"invalid number"}
    assert [len(lines) for lines in server.requests] == [100, 97]
    assert times(server) == [row.time for row in rows if row.time not in bad]


async def test_a_422_costs_the_rows_that_it_names_and_a_204_covers_the_rest(
    server: ScriptedInflux, sink: InfluxSink
) -> None:
    server.planned.append(
        Answer(
            422,
            'partial write: field type conflict: input field "index_price" on measurement'
            ' "mark_price" is type float, already exists as type integer dropped=2',
            stores=True,
        )
    )
    marks = [mark(), mark(time=TIME + 1), mark(time=TIME + 2, index_price=None)]
    settled = await sink.write({"mark_price": marks, "ohlcv_3m": candles(2)})
    assert settled.accepted == 3
    assert [r.row for r in settled.rejected] == marks[:2]
    assert all("already exists as type integer" in r.reason for r in settled.rejected)
    assert [len(lines) for lines in server.requests] == [5, 3]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "max key size exceeded"),
        (422, "is too long, 1100000 > 1048576"),
        (422, 'field "open" on measurement "ohlcv_3m" is type float'),
    ],
)
async def test_where_the_answer_names_no_line_halving_finds_the_bad_ones(
    server: ScriptedInflux, sink: InfluxSink, status: int, message: str
) -> None:
    rows = candles(64)
    bad = {rows[0].time, rows[41].time}

    def judge(lines: Sequence[str]) -> Behaviour:
        found = bad & {int(line.rsplit(" ", 1)[1]) for line in lines}
        return Answer(status, f"{message} dropped={len(found)}") if found else STORED

    server.judge = judge
    settled = await sink.write({"ohlcv_3m": rows})
    assert settled.accepted == 62
    assert {r.row.time for r in settled.rejected} == bad
    assert all(message in rejected.reason for rejected in settled.rejected)
    assert times(server) == [row.time for row in rows if row.time not in bad]
    assert len(server.requests) < 30


async def test_a_413_is_sent_in_smaller_requests_and_rejects_only_a_line_too_long_alone(
    server: ScriptedInflux, sink: InfluxSink
) -> None:
    def judge(lines: Sequence[str]) -> Behaviour:
        return STORED if sum(map(len, lines)) < 2_000 else Answer(413, "too large")

    server.judge = judge
    rows = [*candles(40), ohlcv(symbol="A" * 3_000)]
    settled = await sink.write({"ohlcv_3m": rows})
    assert settled == Settled(40, (Rejected("ohlcv_3m", rows[-1], "413 too large"),))
    assert times(server) == [row.time for row in rows[:-1]]


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404, 405, 410])
async def test_what_no_retry_can_mend_is_refused_with_the_servers_words(
    server: ScriptedInflux, sink: InfluxSink, status: int
) -> None:
    # The answer may even repeat the token, as a proxy that debugs would.
    headers = {"Location": "http://127.0.0.1:9/elsewhere"} if status == 302 else {}
    server.planned.append(Answer(status, f"no such thing, {server.token}", headers))
    with pytest.raises(StoreRefused, match=f"refuses bucket 'market_data' .* {status} ") as refused:
        await sink.write({"ohlcv_3m": candles(2)})
    assert server.token not in said_in_full(refused.value)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "whole_store"),
    [
        (408, False),
        (429, True),
        (499, False),
        (500, False),
        (502, True),
        (503, True),
        (504, False),
        (507, True),
    ],
)
async def test_what_may_pass_is_unavailable_and_says_whether_another_write_may_succeed(
    server: ScriptedInflux, sink: InfluxSink, status: int, whole_store: bool
) -> None:
    server.planned.append(Answer(status, "come back later"))
    with pytest.raises(StoreUnavailable, match=f"answers {status} come back later") as unavailable:
        await sink.write({"ohlcv_3m": candles(2)})
    assert isinstance(unavailable.value, BatchFailed) is not whole_store
    assert unavailable.value.retry_after_s is None
    assert await sink.write({"ohlcv_3m": candles(2)}) == Settled(2)


async def test_retry_after_is_understood_in_both_forms(
    server: ScriptedInflux, sink: InfluxSink
) -> None:
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    server.planned.extend(
        Answer(503, headers={"Retry-After": value}) for value in ("7", in_a_minute, "soon")
    )
    waits = []
    for _ in range(3):
        with pytest.raises(StoreUnavailable) as unavailable:
            await sink.write({"ohlcv_3m": candles(1)})
        waits.append(unavailable.value.retry_after_s)
    assert waits[0] == 7.0
    assert waits[1] is not None
    assert 50 < waits[1] <= 60
    assert waits[2] is None


@pytest.mark.parametrize(
    "behaviour", [Reset(), Reset(in_body=True), Silence(), Silence(headers=True), Trickle()]
)
async def test_a_connection_that_breaks_stays_silent_or_trickles_fails_that_write_in_time(
    server: ScriptedInflux, sink: InfluxSink, behaviour: Behaviour
) -> None:
    server.planned.append(behaviour)
    with pytest.raises(BatchFailed, match="doesn't answer") as unavailable:
        await sink.write({"ohlcv_3m": candles(1)})
    assert server.token not in said_in_full(unavailable.value)
    assert await sink.write({"ohlcv_3m": candles(1)}) == Settled(1)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid:8086"])
async def test_a_server_that_is_not_there_is_unavailable(url: str) -> None:
    sink = InfluxSink(url, "trading", "market_data", "a-token-that-must-never-show")
    try:
        with pytest.raises(StoreUnavailable, match="doesn't answer") as unavailable:
            await sink.write({"ohlcv_3m": candles(1)})
    finally:
        await sink.close()
    assert not isinstance(unavailable.value, BatchFailed)
    assert "must-never-show" not in said_in_full(unavailable.value)


@pytest.fixture(scope="session")
def self_signed(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl on this machine to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    # fmt: off
    subprocess.run(
        [
            program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True,
    )
    # fmt: on
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


async def test_a_server_with_a_certificate_that_nobody_signed_gets_nothing(
    self_signed: ssl.SSLContext,
) -> None:
    async with ScriptedInflux(self_signed) as server:
        sink = InfluxSink(server.url, server.org, server.bucket, server.token)
        try:
            with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED") as unavailable:
                await sink.write({"ohlcv_3m": candles(1)})
        finally:
            await sink.close()
        assert not isinstance(unavailable.value, BatchFailed)
        assert server.token not in said_in_full(unavailable.value)
        assert server.requests == []


async def test_https_to_a_server_without_it_is_unavailable(server: ScriptedInflux) -> None:
    url = server.url.replace("http://", "https://")
    sink = InfluxSink(url, server.org, server.bucket, server.token)
    try:
        with pytest.raises(StoreUnavailable, match="doesn't answer") as unavailable:
            await sink.write({"ohlcv_3m": candles(1)})
    finally:
        await sink.close()
    assert not isinstance(unavailable.value, BatchFailed)
    assert server.requests == []


async def test_an_answer_that_is_no_http_is_unavailable_and_shows_no_token() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sink = InfluxSink(f"http://127.0.0.1:{port}", "trading", "market_data", "never-show")
    try:
        with pytest.raises(StoreUnavailable) as unavailable:
            await sink.write({"ohlcv_3m": candles(1)})
    finally:
        await sink.close()
        server.close()
        await server.wait_closed()
    assert "never-show" not in said_in_full(unavailable.value)


async def test_a_500_that_stored_after_all_does_no_harm(
    server: ScriptedInflux, sink: InfluxSink
) -> None:
    server.planned.append(Answer(500, "timeout", stores=True))
    with pytest.raises(StoreUnavailable):
        await sink.write({"ohlcv_3m": candles(10)})
    await sink.write({"ohlcv_3m": candles(10)})
    assert times(server) == [row.time for row in candles(10)]


async def test_requests_have_5000_lines_and_milliseconds_on_one_kept_connection(
    server: ScriptedInflux, sink: InfluxSink
) -> None:
    await sink.write({"mark_price": [mark(time=n) for n in range(12_000)]})
    assert [len(lines) for lines in server.requests] == [5_000, 5_000, 2_000]
    assert {query["precision"] for query in server.queries} == {"ms"}
    assert len(server.connections) == 1


async def test_ticks_go_to_the_bucket_of_their_own(server: ScriptedInflux) -> None:
    sink = InfluxSink(server.url, server.org, "candles", server.token, ticks_bucket="ticks")
    try:
        await sink.write({"mark_price": [mark()], "ohlcv_3m": [ohlcv()]})
    finally:
        await sink.close()
    by_bucket = {
        query["bucket"]: {line.partition(",")[0] for line in lines}
        for query, lines in zip(server.queries, server.requests, strict=True)
    }
    assert by_bucket == {"candles": {"ohlcv_3m"}, "ticks": {"mark_price"}}


# The same from a real server.


@asynccontextmanager
async def real_sink(
    server: InfluxServer, bucket: str, token: str = ""
) -> AsyncIterator[InfluxSink]:
    sink = InfluxSink(server.url, server.org, bucket, token or server.token)
    yield sink
    await sink.close()


async def test_a_real_400_costs_only_the_line_that_is_out_of_range(
    shared_influx: InfluxServer,
) -> None:
    bucket = shared_influx.new_bucket()
    rows = candles(50)
    rows[20] = ohlcv(time=rows[20].time, trades=2**63)
    async with real_sink(shared_influx, bucket) as sink:
        settled = await sink.write({"ohlcv_3m": rows})
    (rejected,) = settled.rejected
    assert rejected.row == rows[20]
    assert "value out of range" in rejected.reason
    del rows[20]
    assert list(influx_rows(shared_influx, bucket, "ohlcv_3m")) == rows


async def test_a_real_422_of_a_type_conflict_costs_only_the_rows_with_that_field(
    shared_influx: InfluxServer,
) -> None:
    bucket = shared_influx.new_bucket()
    url = f"{shared_influx.url}/api/v2/write?org={shared_influx.org}&bucket={bucket}&precision=ms"
    assert call("POST", url, body=f"mark_price,exchange=X index_price=1i {TIME}").status == 204
    conflicting = [mark(time=TIME + n) for n in range(3)]
    bare = [mark(time=TIME + n, index_price=None) for n in range(3, 6)]
    async with real_sink(shared_influx, bucket) as sink:
        settled = await sink.write({"mark_price": [*conflicting, *bare], "ohlcv_3m": candles(2)})
    assert settled.accepted == 5
    assert [r.row for r in settled.rejected] == conflicting
    assert all("already exists as type integer" in r.reason for r in settled.rejected)
    assert list(influx_rows(shared_influx, bucket, "ohlcv_3m")) == candles(2)


async def test_a_real_422_of_the_retention_costs_only_the_rows_that_are_too_old(
    shared_influx: InfluxServer,
) -> None:
    bucket = shared_influx.new_bucket(retention_s=7 * 86_400)
    now = int(time.time() * 1000)
    old = [mark(time=now - 10 * 86_400_000 + n) for n in range(3)]
    new = [mark(time=now - n) for n in range(3)]
    async with real_sink(shared_influx, bucket) as sink:
        settled = await sink.write({"mark_price": [*old, *new]})
    assert settled.accepted == 3
    assert [r.row for r in settled.rejected] == old
    assert "Retention Policy Lower Bound" in settled.rejected[0].reason
    found = influx_rows(shared_influx, bucket, "mark_price")
    assert [row.time for row in found] == sorted(row.time for row in new)


async def test_real_rows_with_several_faults_at_once_are_told_apart(
    shared_influx: InfluxServer,
) -> None:
    bucket = shared_influx.new_bucket(retention_s=7 * 86_400)
    now = int(time.time() * 1000)
    url = f"{shared_influx.url}/api/v2/write?org={shared_influx.org}&bucket={bucket}&precision=ms"
    assert call("POST", url, body=f"mark_price,exchange=X index_price=1i {now}").status == 204
    old = mark(time=now - 10 * 86_400_000, index_price=None)
    conflicting = mark(time=now)
    out_of_range = ohlcv(time=now, trades=2**63)
    good: list[Row] = [mark(time=now - n, index_price=None) for n in range(1, 20)]
    good_candle = ohlcv(time=now - 1)
    async with real_sink(shared_influx, bucket) as sink:
        settled = await sink.write(
            {
                "mark_price": [*good[:10], old, conflicting, *good[10:]],
                "ohlcv_3m": [good_candle, out_of_range],
            }
        )
    rejected = {r.row: r.reason for r in settled.rejected}
    assert rejected.keys() == {old, conflicting, out_of_range}
    assert "value out of range" in rejected[out_of_range]
    assert "Retention Policy" in rejected[old]
    assert "field type conflict" in rejected[conflicting]
    assert settled.accepted == len(good) + 1


async def test_a_real_server_refuses_an_unknown_bucket_a_wrong_token_and_a_readers_token(
    shared_influx: InfluxServer,
) -> None:
    bucket = shared_influx.new_bucket()
    readers = shared_influx.new_token(bucket, write=False)
    cases = [("nowhere", "", 404), (bucket, "wrong", 401), (bucket, readers, 403)]
    for name, token, status in cases:
        async with real_sink(shared_influx, name, token) as sink:
            with pytest.raises(StoreRefused, match=f" {status} "):
                await sink.write({"ohlcv_3m": candles(1)})


# Delivery: from the outbox to the store, whatever happens on the way.


@asynccontextmanager
async def delivering(outbox: Outbox, sink: Sink, speed: float = FAST) -> AsyncIterator[Delivery]:
    delivery = Delivery(outbox, sink, Clock(speed))
    task = asyncio.create_task(delivery.run())
    try:
        yield delivery
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    outbox = await Outbox.open(tmp_path / "outbox.db", 2**30)
    yield outbox
    await outbox.close()


async def test_rows_are_on_their_way_as_soon_as_they_are_appended(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    async with delivering(outbox, sink, speed=1.0) as delivery:
        for n in range(3):
            await outbox.append({"ohlcv_3m": [ohlcv(time=TIME + n)]})
            await eventually(lambda n=n: len(server.points) == n + 1)  # type: ignore[misc]
        assert await delivery.drain(5.0)
        await eventually(lambda: delivery.accepted == 3)
        assert (delivery.state, delivery.error) == ("live", None)
        assert delivery.last_success_ms is not None


async def test_an_outage_is_one_warning_and_costs_nothing(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    await server.stop()
    rows = candles(30)
    with capture_logs() as logs:
        async with delivering(outbox, sink) as delivery:
            for row in rows:
                await outbox.append({"ohlcv_3m": [row]})
            await eventually(lambda: delivery.state == "down")
            assert delivery.error is not None
            assert "doesn't answer" in delivery.error
            assert not await delivery.drain(5.0)
            await server.start()
            await eventually(lambda: outbox.depth().rows == 0)
            await eventually(lambda: delivery.state == "live")
            assert delivery.error is None
    assert times(server) == [row.time for row in rows]
    assert [entry["event"] for entry in logs] == ["store_unavailable", "store_live"]


async def test_nothing_is_sent_before_the_time_that_the_store_named(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    server.planned.append(Answer(503, "busy", {"Retry-After": "40"}))
    await outbox.append({"ohlcv_3m": candles(1)})
    async with delivering(outbox, sink):
        await eventually(lambda: server.requests)
        start = time.monotonic()
        await eventually(lambda: server.points)
    assert time.monotonic() - start > 0.8 * 40 / FAST


async def test_a_store_that_refuses_is_one_alarm_and_is_used_again_once_it_was_mended(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    server.judge = lambda lines: Answer(401, "unauthorized access")
    with capture_logs() as logs:
        async with delivering(outbox, sink) as delivery:
            await outbox.append({"ohlcv_3m": candles(3)})
            await eventually(lambda: len(server.requests) >= 3)
            assert delivery.state == "down"
            assert delivery.error is not None
            assert "401 unauthorized access" in delivery.error
            assert outbox.depth().rows == 3
            server.judge = lambda lines: STORED
            await eventually(lambda: outbox.depth().rows == 0 and delivery.state == "live")
    events = [(entry["log_level"], entry["event"]) for entry in logs]
    assert events == [("error", "store_refused"), ("info", "store_live")]


@pytest.mark.parametrize(
    ("failing", "how"),
    [
        ("newest candles", Answer(500, "panic")),
        ("newest candles", Reset()),
        ("newest ticks", Silence()),
        ("old candles", Answer(504)),
    ],
)
async def test_a_shelf_that_fails_is_set_aside_and_the_others_are_stored(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox, failing: str, how: Behaviour
) -> None:
    old = TIME - SHARD_MS
    shelves: dict[str, Batch] = {
        "newest candles": {"ohlcv_3m": candles(20)},
        "newest ticks": {"mark_price": [mark(time=TIME + n) for n in range(20)]},
        "old candles": {"ohlcv_3m": candles(20, old)},
    }
    poison = {(row.time, name) for name, rows in shelves[failing].items() for row in rows}

    def judge(lines: Sequence[str]) -> Behaviour:
        found = {(int(line.rsplit(" ", 1)[1]), line.partition(",")[0]) for line in lines}
        return how if found & poison else STORED

    server.judge = judge
    with capture_logs() as logs:
        async with delivering(outbox, sink) as delivery:
            for batch in shelves.values():
                await outbox.append(batch)
            await eventually(lambda: len(server.points) == 40)
            # New rows go on, while the shelf fails again and again.
            for n in itertools.count(100):
                await outbox.append({"last_price": [LastPrice("X", "A/B", old + n, 1.0)]})
                await eventually(lambda n=n: len(server.points) == 40 + n - 99)  # type: ignore[misc]
                if delivery.aside == 1:
                    break
            await eventually(lambda: delivery.state == "live")
            await eventually(lambda: outbox.depth().rows == 20)
            server.judge = lambda lines: STORED
            await eventually(lambda: outbox.depth().rows == delivery.aside == 0)
    assert [entry["event"] for entry in logs].count("shelf_set_aside") == 1
    assert set(times(server)) >= {time for time, _ in poison}


async def test_where_every_shelf_fails_the_store_is_down_until_one_is_stored(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    server.judge = lambda lines: Answer(500, "no space left on device")
    with capture_logs() as logs:
        async with delivering(outbox, sink) as delivery:
            await outbox.append({"ohlcv_3m": candles(3), "mark_price": [mark()]})
            await eventually(lambda: delivery.state == "down")
            await eventually(lambda: len(server.requests) >= 10)
            assert delivery.error is not None
            assert "no space left" in delivery.error
            assert (delivery.aside, outbox.depth().rows) == (0, 4)
            server.judge = lambda lines: STORED
            await eventually(lambda: outbox.depth().rows == 0 and delivery.state == "live")
    assert [entry["event"] for entry in logs] == ["store_unavailable", "store_live"]


async def test_a_parcel_that_is_too_much_for_the_store_goes_in_smaller_ones(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    server.judge = lambda lines: STORED if len(lines) <= 130 else Silence()
    for start in range(0, 300, 50):
        await outbox.append({"mark_price": [mark(time=TIME + start + n) for n in range(50)]})
    async with delivering(outbox, sink):
        await eventually(lambda: outbox.depth().rows == 0, 20.0)
    assert times(server) == list(range(TIME, TIME + 300))


async def test_rejected_rows_are_in_quarantine_and_the_others_in_the_store(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    def judge(lines: Sequence[str]) -> Behaviour:
        poison = [line for line in lines if line.endswith("7")]
        message = "\n".join(f"unable to parse '{line}': bad luck" for line in poison)
        return Answer(400, message) if poison else STORED

    server.judge = judge
    async with delivering(outbox, sink) as delivery:
        for start in range(0, 200, 20):
            rows = [mark(time=TIME + n) for n in range(start, start + 20)]
            await outbox.append({"mark_price": rows})
        assert await delivery.drain(FAST * 20)
        await eventually(lambda: (delivery.accepted, delivery.rejected) == (180, 20))
    assert outbox.depth().quarantined == 20
    assert times(server) == [t for t in range(TIME, TIME + 200) if t % 10 != 7]


async def test_what_one_run_left_behind_the_next_one_delivers(
    server: ScriptedInflux, sink: InfluxSink, tmp_path: Path
) -> None:
    path = tmp_path / "left.db"
    outbox = await Outbox.open(path, 2**30)
    server.judge = lambda lines: Silence()
    async with delivering(outbox, sink):
        await outbox.append({"ohlcv_3m": candles(5)})
        await eventually(lambda: server.requests)
    await outbox.close()
    server.judge = lambda lines: STORED
    outbox = await Outbox.open(path, 2**30)
    try:
        async with delivering(outbox, sink) as delivery:
            assert await delivery.drain(FAST * 5)
    finally:
        await outbox.close()
    assert times(server) == [row.time for row in candles(5)]


async def test_drain_gives_up_in_time_on_a_store_that_does_not_answer(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox
) -> None:
    server.judge = lambda lines: Silence()
    async with delivering(outbox, sink, speed=1.0) as delivery:
        await outbox.append({"ohlcv_3m": candles(1)})
        assert not await delivery.drain(0.1)
    assert outbox.depth().rows == 1


def every_fault(seed: int) -> Iterator[Behaviour]:
    """A store at its worst: of four answers one is well."""
    dice = random.Random(seed)
    faults: list[Callable[[], Behaviour]] = [
        lambda: Answer(500, "timeout", stores=True),
        lambda: Answer(503, "busy", {"Retry-After": "1"}),
        lambda: Answer(401, "unauthorized"),
        lambda: Answer(404, "bucket not found"),
        lambda: Reset(),
        lambda: Reset(in_body=True),
        lambda: Answer(413, "too large"),
    ]
    while True:
        yield STORED if dice.random() < 0.25 else dice.choice(faults)()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_with_every_fault_in_any_order_the_store_ends_with_the_last_state_of_each_row(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox, seed: int
) -> None:
    faults = every_fault(seed)
    server.judge = lambda lines: next(faults) if len(lines) > 1 else STORED
    dice = random.Random(seed)
    truth: dict[int, Row] = {}
    async with delivering(outbox, sink, speed=2_000.0):
        for revision in range(40):
            times_ = dice.sample(range(60), 10)
            rows = [ohlcv(time=TIME + t, close=dice.random(), revision=revision) for t in times_]
            truth |= {row.time: row for row in rows}
            await outbox.append({"ohlcv_3m": rows})
        server.judge = lambda lines: STORED
        await eventually(lambda: outbox.depth().rows == 0, 20.0)
        assert outbox.depth().quarantined == 0
    async with ScriptedInflux() as plain:
        once = InfluxSink(plain.url, plain.org, plain.bucket, plain.token)
        try:
            await once.write({"ohlcv_3m": list(truth.values())})
        finally:
            await once.close()
        assert server.points == plain.points


async def test_a_real_server_that_is_killed_in_the_middle_ends_with_every_row(
    influx_server: InfluxServer, outbox: Outbox
) -> None:
    bucket = influx_server.new_bucket()
    stop = asyncio.Event()
    rows: list[Row] = []

    async def produce() -> None:
        for n in itertools.count():
            batch = [mark(time=TIME + 10 * n + i) for i in range(10)]
            await outbox.append({"mark_price": batch})
            rows.extend(batch)
            if stop.is_set():
                return

    async with real_sink(influx_server, bucket) as sink, delivering(outbox, sink) as delivery:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce())
            for _ in range(2):
                seen = delivery.accepted
                await eventually(lambda seen=seen: delivery.accepted > seen + 100)  # type: ignore[misc]
                await asyncio.to_thread(influx_server.kill)
                await eventually(lambda: delivery.state == "down")
                await asyncio.to_thread(influx_server.start)
            stop.set()
        await eventually(lambda: outbox.depth().rows == 0, 20.0)
    assert list(influx_rows(influx_server, bucket, "mark_price")) == rows


async def test_errors_of_the_outbox_itself_are_retried_too(
    server: ScriptedInflux, sink: InfluxSink, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[MarketDataError] = [StoreUnavailable("the disk is full")] * 3
    settle = outbox.settle

    async def failing(*arguments: object) -> None:
        if failures:
            raise failures.pop()
        await settle(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(outbox, "settle", failing)
    async with delivering(outbox, sink):
        await outbox.append({"ohlcv_3m": candles(2)})
        await eventually(lambda: outbox.depth().rows == 0)
    assert len(server.requests) == 4
    assert times(server) == [row.time for row in candles(2)]
