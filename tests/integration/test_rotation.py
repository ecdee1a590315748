"""Connections that are left while they still deliver, and what is lost thereby: nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import orjson
import pytest
from structlog.testing import capture_logs
from websockets.asyncio.server import ServerConnection, broadcast

from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.exchanges import EXCHANGES, binance_futures
from ingest.exchanges.base import SupervisedFeed
from ingest.exchanges.binance_futures import BinanceFutures
from ingest.exchanges.bybit import Bybit
from ingest.lanes import LaneStatus
from ingest.model import Kline
from ingest.simulator.faults import Lifetime, Notice, RefuseHandshakes
from ingest.simulator.server import Simulator
from marketdata.pairs import Market
from marketdata.schema import MINUTE_MS, MarkPrice
from tests.feeds import Recorder, binance_kline, binance_mark, bybit_kline, dumps, market
from tests.venue import Venue, stay_silent
from tests.waiting import eventually

BTC = market("BTC/USDT:USDT")
FIRST_MS = 1_791_382_993_000

Greeting = Callable[[ServerConnection], Awaitable[None]]


@pytest.fixture
def clock() -> Clock:
    return Clock(speed=20)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes take real time: on a busy machine, longer than ten seconds of a fast clock."""
    monkeypatch.setattr("ingest.connection.HANDSHAKE_S", 1_000.0)


@asynccontextmanager
async def running(feed: SupervisedFeed) -> AsyncIterator[None]:
    feed.start(asyncio.get_running_loop())
    try:
        await feed.wait_for_data()
        yield
    finally:
        await feed.shutdown()


def status(feed: SupervisedFeed, number: int = 0) -> LaneStatus:
    return feed.lane_statuses()[number]


def assert_no_second_is_missing(recorder: Recorder, pair: str) -> None:
    seconds = {mark.time // 1000 for mark in recorder.of(MarkPrice) if mark.symbol == pair}
    assert len(seconds) > 10
    assert sorted(seconds) == list(range(min(seconds), max(seconds) + 1))


class Broadcast:
    """A venue that tells all of its listeners the same marks, a second apart.

    `greet` is what happens on every connection but the first before it listens.
    """

    def __init__(self, clock: Clock) -> None:
        self.listeners: list[ServerConnection] = []
        self.greet: Greeting | None = None
        self.klines = True
        self.venue = Venue(self._talk, clock)

    @asynccontextmanager
    async def collected(
        self, clock: Clock, pairs: int = 1
    ) -> AsyncIterator[tuple[BinanceFutures, Recorder]]:
        recorder = Recorder()
        async with self.venue.running():
            feed = BinanceFutures(
                [BTC, *(market(f"C{n}/USDT:USDT") for n in range(1, pairs))],
                ["candles", "mark_price"],
                recorder.on("candles", "mark_price"),
                clock,
                ws_url=self.venue.url,
            )
            telling = asyncio.create_task(self._tell())
            try:
                async with running(feed):
                    yield feed, recorder
            finally:
                telling.cancel()
                await asyncio.wait({telling})

    async def _talk(self, connection: ServerConnection, number: int) -> None:
        if number > 1 and self.greet is not None:
            await self.greet(connection)
        self.listeners.append(connection)
        try:
            await connection.wait_closed()
        finally:
            self.listeners.remove(connection)

    async def _tell(self) -> None:
        event_ms = FIRST_MS
        while True:
            event_ms += 1_000
            broadcast(self.listeners, binance_mark(E=event_ms).decode())
            if self.klines:
                broadcast(self.listeners, binance_kline(event_ms=event_ms).decode())
            await asyncio.sleep(0.005)


async def test_the_old_connection_is_read_until_the_new_one_delivers(clock: Clock) -> None:
    there = Broadcast(clock)
    opened, may_deliver = asyncio.Event(), asyncio.Event()

    async def greet(connection: ServerConnection) -> None:
        opened.set()
        await may_deliver.wait()

    there.greet = greet
    async with there.collected(clock) as (feed, recorder):
        await eventually(lambda: len(recorder.of(MarkPrice)) > 20)
        with capture_logs() as logs:
            feed.rotate("market-1", "a look at it")
            await opened.wait()
            count = len(recorder.events)
            await eventually(lambda: len(recorder.events) > count + 10)
            assert status(feed).rotations == 0
            may_deliver.set()
            await eventually(lambda: status(feed).rotations == 1)
            await eventually(lambda: len(there.listeners) == 1)
        assert (status(feed).state, status(feed).reconnects) == ("live", 0)
        assert status(feed).last_error is None
        count = len(recorder.events)
        await eventually(lambda: len(recorder.events) > count + 10)
    assert len(there.venue.handshakes) == 2
    events = [(entry["event"], entry.get("cause")) for entry in logs]
    assert events == [("lane_up", None), ("lane_left", "a look at it")]
    assert_no_second_is_missing(recorder, BTC.pair)


async def close(connection: ServerConnection) -> None:
    await connection.close(1008, "not now")


@pytest.mark.parametrize(
    ("greet", "cause"),
    [(stay_silent, "within 15 s"), (close, "1008")],
    ids=["brings nothing", "is closed at once"],
)
async def test_a_rotation_that_fails_keeps_the_old_connection_and_is_tried_again(
    greet: Greeting, cause: str, clock: Clock
) -> None:
    there = Broadcast(clock)
    there.greet = greet
    async with there.collected(clock) as (feed, recorder):
        first = there.listeners[0]
        with capture_logs() as logs:
            feed.rotate("market-1", "a look at it")
            await eventually(lambda: len(there.venue.handshakes) >= 3)
            assert there.listeners == [first]
            assert (status(feed).state, status(feed).reconnects) == ("live", 0)
            there.greet = None
            await eventually(lambda: status(feed).rotations == 1)
            await eventually(lambda: first not in there.listeners)
        assert status(feed).reconnects == 0
    failures = [entry for entry in logs if entry["event"] == "rotation_failed"]
    assert cause in failures[0]["cause"]
    assert failures[0]["reason"] == "a look at it"
    assert_no_second_is_missing(recorder, BTC.pair)


async def test_a_new_connection_that_lacks_a_kind_of_data_is_not_good_enough(clock: Clock) -> None:
    there = Broadcast(clock)

    async def marks_only(connection: ServerConnection) -> None:
        while True:
            await connection.send(binance_mark(E=FIRST_MS), text=True)
            await asyncio.sleep(0.005)

    there.greet = marks_only
    async with there.collected(clock, pairs=10) as (feed, _):
        first = there.listeners[0]
        feed.rotate("market-1", "a look at it")
        await eventually(lambda: len(there.venue.handshakes) >= 3)
        assert there.listeners == [first]
        # Where the market stands still, the old one has no klines to show either.
        there.klines = False
        await eventually(lambda: status(feed).rotations == 1, timeout_s=10)


async def test_a_refused_rotation_costs_nothing(clock: Clock) -> None:
    there = Broadcast(clock)
    async with there.collected(clock) as (feed, recorder):
        there.venue.refuse = (429, {})
        feed.rotate("market-1", "a look at it")
        await eventually(lambda: len(there.venue.handshakes) == 2)
        refused_ms = clock.now_ms()
        there.venue.refuse = None
        await eventually(lambda: status(feed).rotations == 1, timeout_s=15)
    assert there.venue.handshakes[2] - refused_ms > 100_000
    assert len(there.venue.handshakes) == 3
    assert_no_second_is_missing(recorder, BTC.pair)


async def test_the_new_connection_takes_over_when_the_old_one_ends_before_it_is_left(
    clock: Clock,
) -> None:
    there = Broadcast(clock)
    opened, may_deliver = asyncio.Event(), asyncio.Event()

    async def greet(connection: ServerConnection) -> None:
        opened.set()
        await may_deliver.wait()

    there.greet = greet
    async with there.collected(clock) as (feed, _):
        feed.rotate("market-1", "a look at it")
        await opened.wait()
        await there.listeners[0].close(1001)
        await eventually(lambda: status(feed).reconnects == 1)
        may_deliver.set()
        await eventually(lambda: status(feed).state == "live")
        assert "1001" in (status(feed).last_error or "")
        assert status(feed).rotations == 0
        assert len(there.venue.handshakes) == 2


async def test_one_kind_of_data_that_stays_away_is_replaced_beside_what_still_comes(
    clock: Clock,
) -> None:
    there = Broadcast(clock)
    async with there.collected(clock, pairs=10) as (feed, recorder):
        there.klines = False
        await eventually(lambda: status(feed).reconnects == 1, timeout_s=15)
        assert status(feed).last_error == "no candles for 90 s"
    assert_no_second_is_missing(recorder, BTC.pair)


class Spot:
    """A venue of spot markets that answers whatever is asked; which connection brings data?

    `greeted` get some when they subscribe, `flowing` get some all the time. Numbers count
    handshakes.
    """

    def __init__(self, clock: Clock) -> None:
        self.greeted: Callable[[int], bool] = lambda number: True
        self.flowing: Callable[[int], bool] = lambda number: True
        self.listeners: dict[int, ServerConnection] = {}
        self.venue = Venue(self._talk, clock)

    @asynccontextmanager
    async def collected(self, clock: Clock) -> AsyncIterator[Bybit]:
        async with self.venue.running():
            feed = Bybit(
                [market("BTC/USDT", exchange="BYBIT")],
                ["candles", "last_price"],
                Recorder().on("candles", "last_price"),
                clock,
                ws_url=self.venue.url,
            )
            telling = asyncio.create_task(self._tell())
            try:
                async with running(feed):
                    yield feed
            finally:
                telling.cancel()
                await asyncio.wait({telling})

    async def _talk(self, connection: ServerConnection, number: int) -> None:
        self.listeners[number] = connection
        try:
            async for message in connection:
                answer = {"success": True, "ret_msg": "pong"} | orjson.loads(message)
                await connection.send(dumps(answer), text=True)
                if answer["op"] == "subscribe" and self.greeted(number):
                    await connection.send(bybit_kline(), text=True)
        finally:
            del self.listeners[number]

    async def _tell(self) -> None:
        while True:
            told = [one for number, one in self.listeners.items() if self.flowing(number)]
            broadcast(told, bybit_kline().decode())
            await asyncio.sleep(0.005)


async def test_a_connection_gone_silent_that_answers_pings_is_replaced_within_fifteen_seconds() -> (
    None
):
    # Slower than elsewhere: what the machine takes for itself counts ten times here.
    clock = Clock(speed=10)
    there = Spot(clock)
    async with there.collected(clock) as feed:
        silent_ms = clock.now_ms()
        there.flowing = lambda number: number > 1
        await eventually(lambda: status(feed).rotations == 1)
        assert there.venue.handshakes[1] - silent_ms < 15_000
        assert (status(feed).state, status(feed).reconnects) == ("live", 0)
        await eventually(lambda: list(there.listeners) == [2])


@pytest.mark.parametrize("greeted", [True, False], ids=["greeted", "not greeted"])
async def test_markets_that_stand_still_cost_few_connections_and_are_never_late(
    greeted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.exchanges.bybit.PONG_S", 1_000.0)  # at this speed, 0.4 s of ours
    clock = Clock(speed=30)
    there = Spot(clock)
    there.greeted = lambda number: greeted or number == 1
    there.flowing = lambda number: False
    states = set()
    with capture_logs() as logs:
        async with there.collected(clock) as feed:
            began_ms = clock.now_ms()

            def over() -> bool:
                states.add(status(feed).state)
                return clock.now_ms() - began_ms > 110_000

            await eventually(over, timeout_s=20)
            assert states == {"live"}
            assert (status(feed).reconnects, status(feed).last_error) == (0, None)
            if greeted:
                assert status(feed).rotations >= 1
            else:
                assert 1 in there.listeners, "no other connection has shown more"
                assert status(feed).rotations == 0
            there.flowing = lambda number: True
            flowing_ms = clock.now_ms()
            await eventually(lambda: (status(feed).last_data_ms or 0) > flowing_ms)
    assert 3 <= len(there.venue.handshakes) <= 4
    waits = [b - a for a, b in itertools.pairwise(there.venue.handshakes)]
    assert waits == sorted(waits)
    assert not [entry for entry in logs if entry["log_level"] == "warning"]


@asynccontextmanager
async def simulated(
    exchange: str, clock: Clock, choose: Callable[[list[Market]], list[Market]]
) -> AsyncIterator[tuple[Simulator, SupervisedFeed, Recorder, list[Market]]]:
    """A simulator, a feed of the chosen markets with every channel, and all of its markets."""
    adapter = EXCHANGES[exchange]
    async with Simulator(clock=clock) as simulator:
        rest = adapter.rest(Budgets(), clock, simulator.url, None)
        try:
            catalogue = rest.markets(await rest.catalogue())
        finally:
            await rest.close()
        markets = [one for one in catalogue.markets if one.active]
        recorder = Recorder()
        feed = adapter.feed(
            choose(markets),
            adapter.channels,
            recorder.on(*adapter.channels),
            clock,
            ws_url=simulator.ws_url,
        )
        async with running(feed):
            yield simulator, feed, recorder, markets


def perpetuals(count: int) -> Callable[[list[Market]], list[Market]]:
    return lambda markets: [one for one in markets if one.kind == "perpetual"][:count]


async def test_two_daily_cuts_and_a_shutdown_notice_cost_no_mark_and_no_minute(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binance_futures, "LIFETIME_S", 60.0)
    monkeypatch.setattr("ingest.opening.LIFETIME_JITTER_S", 10.0)
    async with simulated("BINANCE_FUTURES", clock, perpetuals(4)) as (simulator, feed, recorder, _):
        simulator.inject(Lifetime(age_s=90))
        await eventually(lambda: status(feed).rotations == 2, timeout_s=15)
        simulator.inject(Notice(cut_after_s=30))
        await eventually(lambda: status(feed).rotations == 3, timeout_s=15)
        assert status(feed).reconnects == 0
        pairs = [one.pair for one in feed.markets]
    for pair in pairs:
        assert_no_second_is_missing(recorder, pair)
        closed = {k.minute_ms for k in recorder.of(Kline) if k.symbol == pair and k.closed}
        assert sorted(closed) == list(range(min(closed), max(closed) + 1, MINUTE_MS))


async def test_followed_pairs_come_and_go_and_those_that_stay_lose_nothing(clock: Clock) -> None:
    async with simulated("BINANCE_FUTURES", clock, perpetuals(3)) as (_, feed, recorder, markets):
        first, second, third, fourth = (one.pair for one in perpetuals(4)(markets))
        await eventually(lambda: len(recorder.of(MarkPrice)) > 30)
        await feed.follow(perpetuals(4)(markets)[1:])
        assert feed.normalized_symbols == [second, third, fourth]
        assert (status(feed).rotations, status(feed).reconnects) == (1, 0)
        recorder.events.clear()
        shown = {second, third, fourth}
        await eventually(lambda: {mark.symbol for mark in recorder.of(MarkPrice)} == shown)
        assert feed.lane_of(fourth, "funding") == "market-1"
        assert feed.lane_of(first, "funding") is None
        assert feed.dropped == {}


async def test_marks_by_pair_become_all_market_marks_without_a_missing_second(clock: Clock) -> None:
    async with simulated("BINANCE_FUTURES", clock, perpetuals(100)) as (_, feed, recorder, markets):
        first, last = perpetuals(101)(markets)[0].pair, perpetuals(101)(markets)[-1].pair
        await eventually(lambda: len({mark.time for mark in recorder.of(MarkPrice)}) > 10)
        assert status(feed).streams == 200
        await feed.follow(perpetuals(101)(markets))
        assert (status(feed).streams, status(feed).rotations) == (102, 1)
        await eventually(lambda: last in {mark.symbol for mark in recorder.of(MarkPrice)})
        count = len(recorder.events)
        await eventually(lambda: len(recorder.events) > count + 3_000)
    assert_no_second_is_missing(recorder, first)


async def test_what_does_not_change_is_not_touched(clock: Clock) -> None:
    def linear(markets: list[Market]) -> list[Market]:
        return [one for one in markets if one.kind == "perpetual"][:3]

    async with simulated("BYBIT", clock, linear) as (simulator, feed, _, markets):
        spot = [one for one in markets if one.kind == "spot"][:3]
        (client,) = simulator.bybit.clients
        await feed.follow([*linear(markets), *spot[:1]])
        assert feed.lane_of(spot[0].pair, "last_price") == "spot-1"
        assert feed.lane_of(spot[0].pair, "funding") is None
        await feed.follow([*linear(markets), *spot])
        assert [(one.id, one.rotations) for one in feed.lane_statuses()] == [
            ("linear-1", 0),
            ("spot-1", 1),
        ]
        await feed.follow(linear(markets))
        assert [one.id for one in feed.lane_statuses()] == ["linear-1"]
        await eventually(lambda: simulator.bybit.clients == {client})
        await feed.follow([])
        assert feed.lane_statuses() == []
        await feed.follow(linear(markets))
        assert status(feed).state == "live"


async def test_pairs_that_are_followed_while_the_exchange_refuses_come_when_it_opens(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.supervision.CHANGE_S", 5.0)
    async with simulated("BINANCE_FUTURES", clock, perpetuals(3)) as (
        simulator,
        feed,
        recorder,
        markets,
    ):
        simulator.inject(RefuseHandshakes(status=503, seconds=30))
        await feed.follow(perpetuals(4)(markets))
        assert (status(feed).state, status(feed).rotations) == ("live", 0)
        await eventually(lambda: status(feed).rotations == 1, timeout_s=10)
        new = perpetuals(4)(markets)[-1].pair
        await eventually(lambda: new in {mark.symbol for mark in recorder.of(MarkPrice)})
        assert status(feed).reconnects == 0
    for one in perpetuals(3)(markets):
        assert_no_second_is_missing(recorder, one.pair)


async def test_a_feed_that_does_not_run_yet_starts_with_what_it_follows(clock: Clock) -> None:
    async def script(connection: ServerConnection, number: int) -> None:
        await stay_silent(connection)

    there = Venue(script, clock)
    async with there.running():
        recorder = Recorder()
        feed = BinanceFutures([BTC], ["candles"], recorder.on("candles"), clock, ws_url=there.url)
        await feed.follow([market("ETH/USDT:USDT")])
        feed.start(asyncio.get_running_loop())
        await eventually(lambda: there.paths)
        await feed.shutdown()
    assert there.paths == ["/market/stream?streams=ethusdt@kline_1m"]
