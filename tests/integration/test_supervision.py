"""Feeds over real sockets against exchanges that behave as badly as they do.

The clock runs faster than the world, so that deadlines pass within fractions of a second.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import operator
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import orjson
import pytest
from cryptofeed.connection import Connection
from cryptofeed.feedhandler import FeedHandler
from cryptofeed.raw_data_collection import AsyncFileCallback
from websockets.asyncio.server import ServerConnection

from ingest.backoff import Gate
from ingest.clock import Clock
from ingest.connection import FeedConnection
from ingest.exchanges.base import SupervisedFeed
from ingest.exchanges.binance_futures import BinanceFutures
from ingest.exchanges.bybit import Bybit
from ingest.lanes import LaneStatus
from ingest.model import Kline
from ingest.supervision import LaneSupervisor
from marketdata.errors import ExchangeUnavailable
from marketdata.schema import LastPrice, MarkPrice
from tests.feeds import (
    Recorder,
    binance_kline,
    binance_mark,
    bybit_kline,
    bybit_ticker,
    dumps,
    market,
)
from tests.venue import Script, Venue, repeat, reset, stay_silent, stop_reading
from tests.waiting import eventually

BTC = market("BTC/USDT:USDT")
ACK = dumps({"result": None, "id": 1})


@pytest.fixture
def clock() -> Clock:
    return Clock(speed=20)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes take real time: on a busy machine, longer than ten seconds of a fast clock."""
    monkeypatch.setattr("ingest.connection.HANDSHAKE_S", 1_000.0)


@asynccontextmanager
async def running(feed: SupervisedFeed) -> AsyncIterator[SupervisedFeed]:
    feed.start(asyncio.get_running_loop())
    try:
        yield feed
    finally:
        await feed.shutdown()


@asynccontextmanager
async def collecting(
    script: Script, clock: Clock, *, pairs: int = 1, http_proxy: str | None = None
) -> AsyncIterator[tuple[Venue, BinanceFutures, Recorder]]:
    """A venue and a Binance feed that collects marks from it."""
    recorder = Recorder()
    async with Venue(script, clock).running() as venue:
        feed = BinanceFutures(
            [BTC, *(market(f"C{n}/USDT:USDT") for n in range(1, pairs))],
            ["candles", "mark_price"],
            recorder.on("candles", "mark_price"),
            clock,
            ws_url=venue.url,
            http_proxy=http_proxy,
        )
        async with running(feed):
            yield venue, feed, recorder


async def deliver(connection: ServerConnection, number: int) -> None:
    await repeat(connection, binance_mark(), binance_kline())


def first(fault: Callable[[ServerConnection], object]) -> Script:
    """A script whose first connection has a fault after some data; the others deliver."""

    async def script(connection: ServerConnection, number: int) -> None:
        if number == 1:
            await connection.send(binance_mark(), text=True)
            outcome = fault(connection)
            if asyncio.iscoroutine(outcome):
                await outcome
        else:
            await deliver(connection, number)

    return script


def status(feed: SupervisedFeed) -> LaneStatus:
    return feed.lane_statuses()[0]


async def is_live_again(feed: SupervisedFeed) -> LaneStatus:
    def live() -> bool:
        return status(feed).reconnects == 1 and status(feed).state == "live"

    await eventually(live, what="a second connection with data")
    return status(feed)


async def test_what_the_exchange_sends_arrives_at_the_callbacks(clock: Clock) -> None:
    async with collecting(deliver, clock) as (venue, feed, recorder):
        assert status(feed).state == "starting"
        await feed.wait_for_data()
        await eventually(lambda: recorder.of(MarkPrice) and recorder.of(Kline))
        lane = status(feed)
    assert venue.paths == ["/market/stream?streams=btcusdt@kline_1m/btcusdt@markPrice@1s"]
    assert (lane.id, lane.state, lane.streams, lane.reconnects) == ("market-1", "live", 2, 0)
    assert lane.last_error is None
    assert lane.opened_ms is not None
    assert lane.last_data_ms is not None
    assert lane.opened_ms <= lane.last_data_ms <= clock.now_ms()
    assert abs(recorder.received_s[-1] * 1000 - lane.last_data_ms) < 10_000


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (lambda connection: connection.close(1000), "1000"),
        (lambda connection: connection.close(1001, "maintenance"), "1001"),
        (lambda connection: connection.close(1008, "Invalid request"), "1008"),
        (reset, "no close frame"),
        (stay_silent, "for 10 s"),
        (stop_reading, "for 10 s"),
        (lambda connection: repeat(connection, ACK), "for 10 s"),
    ],
    ids=["normal close", "going away", "policy", "reset", "silence", "half-open", "acks, no data"],
)
async def test_a_connection_that_ends_or_goes_silent_is_replaced_within_fifteen_seconds(
    fault: Callable[[ServerConnection], object], cause: str
) -> None:
    # Slower than elsewhere: what the machine takes for itself counts ten times here.
    clock = Clock(speed=10)
    async with collecting(first(fault), clock) as (venue, feed, _):
        lane = await is_live_again(feed)
        assert lane.last_error is not None
        assert cause in lane.last_error
    assert venue.handshakes[1] - venue.handshakes[0] < 15_000 + 2_000


async def test_a_peer_that_is_gone_without_a_word_is_noticed_where_trades_are_rare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(speed=10)
    monkeypatch.setattr("ingest.exchanges.base.DOUBT_S", 80.0)  # as where pauses are known

    async def script(connection: ServerConnection, number: int) -> None:
        await connection.send(bybit_kline(), text=True)
        if number == 1:
            await stop_reading(connection)
        async for message in connection:
            pong = {"success": True, "ret_msg": "pong", "op": orjson.loads(message)["op"]}
            await connection.send(dumps(pong), text=True)

    async with Venue(script, clock).running() as venue:
        spot = [market("BTC/USDT", exchange="BYBIT")]
        feed = Bybit(spot, ["candles"], Recorder().on("candles"), clock, ws_url=venue.url)
        async with running(feed):
            lane = await is_live_again(feed)
            assert lane.last_error == "no frames for 12 s"
            until_ms = clock.now_ms() + 40_000
            await eventually(lambda: clock.now_ms() > until_ms)
            assert status(feed).reconnects == 1
    assert venue.handshakes[1] - venue.handshakes[0] < 15_000 + 2_000


async def test_a_protocol_ping_without_an_answer_ends_a_connection_too(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.connection.PING_INTERVAL_S", 0.1)
    monkeypatch.setattr("ingest.connection.CLOSE_S", 0.1)
    monkeypatch.setattr(BinanceFutures, "ping_timeout_s", 0.2)

    async def script(connection: ServerConnection, number: int) -> None:
        await connection.send(binance_kline(), text=True)
        await (stop_reading(connection) if number == 1 else stay_silent(connection))

    async with Venue(script, clock).running() as venue:
        recorder = Recorder()
        feed = BinanceFutures([BTC], ["candles"], recorder.on("candles"), clock, ws_url=venue.url)
        async with running(feed):
            assert "ping timeout" in ((await is_live_again(feed)).last_error or "")


class Steppable(Clock):
    """A clock that somebody sets."""

    step_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.step_ms


@pytest.mark.parametrize("step_ms", [-3_600_000, 3_600_000])
async def test_a_host_clock_that_is_set_changes_no_judgement(step_ms: int) -> None:
    clock = Steppable(speed=20)
    silent = asyncio.Event()

    async def script(connection: ServerConnection, number: int) -> None:
        while number > 1 or not silent.is_set():
            await connection.send(binance_mark(), text=True)
            await asyncio.sleep(0.005)
        await stay_silent(connection)

    async with collecting(script, clock) as (venue, feed, recorder):
        await feed.wait_for_data()
        clock.step_ms = step_ms
        count = len(recorder.events)
        await eventually(lambda: len(recorder.events) > count + 100)
        assert (status(feed).state, status(feed).reconnects) == ("live", 0)
        assert abs((status(feed).last_data_ms or 0) - clock.now_ms()) < 10_000
        silent.set()
        assert (await is_live_again(feed)).last_error == "no data for 10 s"
    assert len(venue.handshakes) == 2


@pytest.mark.parametrize("trouble", [403, 418, 429, 503, "closes at once", "closes after data"])
async def test_five_minutes_of_trouble_see_ten_handshakes_a_minute_at_most(
    trouble: int | str,
) -> None:
    clock = Clock(speed=200)
    well = asyncio.Event()

    async def script(connection: ServerConnection, number: int) -> None:
        if well.is_set():
            await deliver(connection, number)
        if trouble == "closes after data":
            await connection.send(binance_mark(), text=True)

    async with Venue(script, clock).running() as venue:
        if isinstance(trouble, int):
            venue.refuse = (trouble, {})
        recorder = Recorder()
        feed = BinanceFutures(
            [market(f"C{n}/USDT:USDT") for n in range(450)],
            ["candles", "mark_price"],
            recorder.on("candles", "mark_price"),
            clock,
            ws_url=venue.url,
        )
        async with running(feed):
            began_ms = clock.now_ms()
            await eventually(lambda: clock.now_ms() - began_ms > 300_000)
            assert {lane.state for lane in feed.lane_statuses()} <= {"disconnected", "starting"}
            well.set()
            venue.refuse = None
            await eventually(lambda: {lane.state for lane in feed.lane_statuses()} == {"live"})
    assert len(venue.handshakes) > 5
    for start, eleventh in zip(venue.handshakes, venue.handshakes[10:], strict=False):
        # The server sees a handshake a few milliseconds after its start: 200 times as many here.
        assert eleventh - start > 50_000


async def test_a_connection_that_never_delivers_is_replaced_after_fifteen_seconds(
    clock: Clock,
) -> None:
    async def script(connection: ServerConnection, number: int) -> None:
        await (stay_silent(connection) if number == 1 else deliver(connection, number))

    async with collecting(script, clock) as (venue, feed, _):
        lane = await is_live_again(feed)
    assert lane.last_error == "no data within 15 s"
    assert venue.handshakes[1] - venue.handshakes[0] >= 15_000


async def test_a_handshake_without_an_answer_is_given_up_after_ten_seconds(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    attempts: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.append(writer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    feed = BinanceFutures(
        [BTC], ["candles"], Recorder().on("candles"), clock, ws_url=f"ws://{host}:{port}"
    )
    async with server, running(feed):
        await eventually(lambda: len(attempts) >= 2)
        assert "no handshake within 10 s" in (status(feed).last_error or "")
        assert status(feed).state == "disconnected"
        for writer in attempts:
            writer.close()


async def test_lanes_start_one_after_another() -> None:
    async with collecting(deliver, Clock(speed=4), pairs=450) as (venue, feed, _):
        await feed.wait_for_data()
    assert len(venue.handshakes) == 3
    assert all(later - start > 200 for start, later in itertools.pairwise(venue.handshakes))


@pytest.mark.parametrize(
    ("status_code", "headers", "least_s"),
    [
        (429, {"Retry-After": "180"}, 180),
        (429, {"Retry-After": "5"}, 120),
        (418, {}, 120),
        (403, {}, 120),
    ],
)
async def test_a_refusal_keeps_every_lane_of_the_exchange_away(
    status_code: int, headers: dict[str, str], least_s: int
) -> None:
    clock = Clock(speed=100)
    recorder = Recorder()
    async with Venue(deliver, clock).running() as venue:
        venue.refuse = (status_code, headers)
        feed = BinanceFutures(
            [market(f"C{n}/USDT:USDT") for n in range(450)],
            ["candles"],
            recorder.on("candles"),
            clock,
            ws_url=venue.url,
        )
        async with running(feed):
            await eventually(lambda: venue.handshakes)
            venue.refuse = None
            await feed.wait_for_data()
            refused = [lane for lane in feed.lane_statuses() if lane.last_error is not None]
    assert refused
    assert f"HTTP {status_code}" in (refused[0].last_error or "")
    # Lanes that were on their way already may be refused too; after that, nobody comes.
    waits = [later - start for start, later in itertools.pairwise(venue.handshakes)]
    assert max(waits) > least_s * 1000 - 20_000
    assert len(venue.handshakes) <= 6


async def test_a_retry_after_is_obeyed_whatever_the_status() -> None:
    clock = Clock(speed=100)
    async with Venue(deliver, clock).running() as venue:
        venue.refuse = (503, {"Retry-After": "90"})
        feed = BinanceFutures([BTC], ["candles"], Recorder().on("candles"), clock, ws_url=venue.url)
        async with running(feed):
            await eventually(lambda: venue.handshakes)
            venue.refuse = None
            await feed.wait_for_data()
    assert venue.handshakes[1] - venue.handshakes[0] >= 85_000


async def test_one_bad_message_costs_only_itself_and_the_first_is_kept(clock: Clock) -> None:
    garbage = b'{"stream":"x","data":{"e":"kline","E":"' + b"x" * 10_000

    async def mixed(connection: ServerConnection, number: int) -> None:
        await repeat(connection, garbage, binance_mark(p="NaN"), binance_mark(), b"pong")

    async with collecting(mixed, clock) as (venue, feed, recorder):
        await eventually(lambda: len(recorder.of(MarkPrice)) > 20)
        counts, kept = feed.bad_messages.counts, feed.bad_messages.first
    assert len(venue.handshakes) == 1
    assert counts["DecodeError"] > 20
    assert counts["ValidationError"] > 20
    assert kept["DecodeError"] == garbage[:500].decode()


async def test_an_announced_shutdown_leads_to_a_new_connection_without_a_failure(
    clock: Clock,
) -> None:
    notice = dumps({"stream": "!serverShutdown", "data": {"e": "serverShutdown", "E": 1}})

    async def script(connection: ServerConnection, number: int) -> None:
        if number == 1:
            until_ms = clock.now_ms() + 31_000
            while clock.now_ms() < until_ms:
                await connection.send(binance_mark(), text=True)
                await asyncio.sleep(0.005)
            await connection.send(notice, text=True)
        await deliver(connection, number)

    async with collecting(script, clock) as (_, feed, _):
        await eventually(lambda: status(feed).rotations == 1)
        assert status(feed).reconnects == 0
        assert status(feed).last_error is None


async def test_a_connection_is_left_before_the_exchange_would_cut_it(clock: Clock) -> None:
    async with Venue(deliver, clock).running() as venue:
        feed = BinanceFutures(
            [BTC], ["mark_price"], Recorder().on("mark_price"), clock, ws_url=venue.url
        )
        lane = replace(feed.lanes[0], lifetime_s=40.0)
        supervisor = LaneSupervisor(feed, lane, Gate(), clock, uniform=lambda low, high: low)
        task = asyncio.create_task(supervisor.run())
        await eventually(lambda: len(venue.handshakes) == 2)
        task.cancel()
        await asyncio.wait({task})
    assert 40_000 <= venue.handshakes[1] - venue.handshakes[0] < 60_000
    assert supervisor.status().last_error is None


async def test_two_exchanges_run_in_one_feed_handler_and_come_and_go_while_it_runs(
    clock: Clock,
) -> None:
    async def talk_bybit(connection: ServerConnection, number: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bybit_venue.listen(connection))
            tasks.create_task(
                repeat(connection, bybit_kline(), bybit_ticker("snapshot", lastPrice="5"))
            )

    recorder, later = Recorder(), Recorder()
    spot = market("BTC/USDT", exchange="BYBIT")
    bybit_venue = Venue(talk_bybit, clock)
    async with Venue(deliver, clock).running() as binance_venue, bybit_venue.running():
        handler = FeedHandler(config={"log": {"disabled": True}, "uvloop": False})
        binance = BinanceFutures(
            [BTC], ["candles"], recorder.on("candles"), clock, ws_url=binance_venue.url
        )
        handler.add_feed(binance)
        handler.run(start_loop=False, install_signal_handlers=False)
        await eventually(lambda: recorder.events)

        bybit = Bybit([spot], ["last_price"], later.on("last_price"), clock, ws_url=bybit_venue.url)
        handler.add_feed(bybit)
        await eventually(lambda: later.events)
        assert {event.symbol for event in later.of(LastPrice)} == {"BTC/USDT"}
        assert bybit_venue.paths == ["/v5/public/spot"]

        handler.feeds.remove(binance)
        await binance.shutdown()
        assert not binance_venue.open or await eventually(lambda: not binance_venue.open)
        count = len(later.events)
        await eventually(lambda: len(later.events) > count)
        await handler.stop_async()
        await eventually(lambda: not bybit_venue.open)


async def test_bybit_is_pinged_in_its_own_way_and_pongs_are_no_data() -> None:
    clock = Clock(speed=60)

    async def pong_only(connection: ServerConnection, number: int) -> None:
        async for message in connection:
            request = orjson.loads(message)
            pings.append(request)
            answer = {"success": True, "ret_msg": "pong", "conn_id": "x", "op": request["op"]}
            await connection.send(orjson.dumps(answer), text=True)
            if number > 1 and request["op"] == "subscribe":
                await connection.send(bybit_kline(), text=True)

    pings: list[dict[str, object]] = []
    async with Venue(pong_only, clock).running() as venue:
        feed = Bybit(
            [market("BTC/USDT:USDT", exchange="BYBIT")],
            ["candles"],
            Recorder().on("candles"),
            clock,
            ws_url=venue.url,
        )
        async with running(feed):
            await eventually(lambda: status(feed).last_error == "no data within 15 s")
            await eventually(lambda: sum(ping["op"] == "ping" for ping in pings) >= 3)
    assert {"req_id": "1", "op": "subscribe", "args": ["kline.1.BTCUSDT"]} in pings


async def test_a_defect_costs_a_lane_one_connection(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = itertools.count()

    async def fail_once(connection: FeedConnection) -> None:
        if next(attempts) == 0:
            raise RuntimeError("a defect")

    monkeypatch.setattr(BinanceFutures, "subscribe", staticmethod(fail_once))
    async with collecting(deliver, clock) as (_, feed, _):
        assert "a defect" in ((await is_live_again(feed)).last_error or "")


async def test_shutdown_ends_a_feed_in_any_state(clock: Clock) -> None:
    for script in (deliver, first(stay_silent), first(reset)):
        async with collecting(script, clock) as (venue, _, _):
            await eventually(partial(len, venue.handshakes))
        await eventually(partial(operator.not_, venue.open))
    nowhere = BinanceFutures(
        [BTC], ["candles"], Recorder().on("candles"), clock, ws_url="ws://127.0.0.1:9"
    )
    async with running(nowhere):
        await eventually(lambda: status(nowhere).last_error is not None)
    never_started = BinanceFutures([BTC], ["candles"], Recorder().on("candles"), clock)
    await never_started.shutdown()


async def test_connections_leave_nothing_behind_for_the_end_of_the_process() -> None:
    async def close(connection: ServerConnection, number: int) -> None:
        pass

    async with collecting(close, Clock(speed=600)) as (venue, _, _):
        registered = atexit._ncallbacks()
        await eventually(lambda: len(venue.handshakes) > 10)
        assert atexit._ncallbacks() == registered


async def test_raw_capture_has_every_frame_in_cryptofeeds_format(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = AsyncFileCallback(str(tmp_path))
    atexit.unregister(capture.__del__)
    monkeypatch.setattr(Connection, "raw_data_callback", capture)
    async with collecting(deliver, clock) as (venue, _, recorder):
        await eventually(lambda: len(recorder.events) > 10)
    capture.stop()
    lines = (tmp_path / "BINANCE_FUTURES.ws.market-1.0").read_text().splitlines()
    assert lines[0].startswith(f"{venue.url}/market/stream?streams=")
    assert " <-> " in lines[0]
    received_s, _, text = lines[1].partition(": ")
    assert float(received_s) == pytest.approx(recorder.received_s[0], abs=0.001)
    assert text.encode() == binance_mark()


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[str]]]:
    """An HTTP proxy: its URL, and what it was asked for."""
    requests: list[str] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        requests.append(head.split(" HTTP/")[0])
        host, _, port = head.split()[1].rpartition(":")
        there = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    async with server:
        yield f"http://{host}:{port}", requests


async def test_a_configured_proxy_is_used(clock: Clock) -> None:
    async with (
        proxy() as (url, requests),
        collecting(deliver, clock, http_proxy=url) as (venue, feed, _),
    ):
        await feed.wait_for_data()
        assert requests == [f"CONNECT {venue.url.removeprefix('ws://')}"]


async def test_the_environments_proxy_is_not_used(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "ws_proxy", "all_proxy", "socks_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with collecting(deliver, clock) as (_, feed, _):
        await feed.wait_for_data()


async def test_a_proxys_password_is_in_no_error() -> None:
    connection = FeedConnection(
        "ws://127.0.0.1:9", "x", Clock(), http_proxy="ftp://me:secret@127.0.0.1:9"
    )
    with pytest.raises(ExchangeUnavailable) as caught:
        async with connection.connect():
            pass
    assert "secret" not in str(caught.value)
