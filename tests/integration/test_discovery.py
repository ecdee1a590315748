"""Pairs found while running: names in a real Redis, volumes and listings of the simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import orjson
import pytest
import redis
from structlog.testing import capture_logs

from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.discovery import EMPTY_FOR_MS, VOLUMES_AGAIN_MS, VOLUMES_EVERY_MS, Discovery
from ingest.exchanges import EXCHANGES
from ingest.exchanges.rest_base import ExchangeRest
from ingest.selection import select
from ingest.simulator.faults import Delist, ListNew, RestDown
from ingest.simulator.market import AS_OF_MS
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE
from marketdata.errors import ExchangeUnavailable
from marketdata.pairs import Catalogue
from marketdata.settings import RedisPairs, TopPairs
from tests.servers.redis import RedisServer
from tests.waiting import eventually

BTC, ETH, SOL, DOGE = (f"{base}/USDT:USDT" for base in ("BTC", "ETH", "SOL", "DOGE"))
UNIVERSE, ACTIVE = "quantum:universe:active", "quantum:ai:active_symbols"
WANTED = RedisPairs(redis=(UNIVERSE, ACTIVE, "quantum:position:*"), fallback=(DOGE,))


class SteppedClock(Clock):
    """A clock whose time is set by the test; what is waited for waits on the world's."""

    def __init__(self) -> None:
        super().__init__()
        self.ms = AS_OF_MS

    def now_ms(self) -> int:
        return self.ms


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """An hour in a minute, at the end of a minute."""
    async with Simulator(clock=Clock(speed=60, start_ms=AS_OF_MS + 50_000)) as simulator:
        yield simulator


@pytest.fixture
async def rest(simulator: Simulator) -> AsyncIterator[ExchangeRest]:
    rest = EXCHANGES[BINANCE].rest(Budgets(), simulator.clock, simulator.url, None)
    yield rest
    await rest.close()


@pytest.fixture
async def catalogue(rest: ExchangeRest) -> Catalogue:
    return await listed(rest)


@pytest.fixture
def bot(redis_url: str) -> Iterator[redis.Redis]:
    """What another program writes with."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def discovery(rest: ExchangeRest, redis_url: str, clock: SteppedClock) -> Discovery:
    return Discovery(BINANCE, WANTED, rest, redis_url, clock)


async def listed(rest: ExchangeRest) -> Catalogue:
    return rest.markets(await rest.catalogue())


async def after_the_minute(simulator: Simulator, rest: ExchangeRest) -> Catalogue:
    """What is listed once the changes that were asked for have come true."""
    next_minute_ms = (simulator.clock.now_ms() // 60_000 + 1) * 60_000
    await eventually(lambda: simulator.clock.now_ms() > next_minute_ms + 1_000)
    return await listed(rest)


# Redis


async def test_the_first_key_that_names_a_pair_counts_whatever_its_form(
    discovery: Discovery, catalogue: Catalogue, bot: redis.Redis
) -> None:
    assert await discovery.wanted(catalogue) == (DOGE,), "nothing is named yet"
    bot.set("quantum:position:SOLUSDT", "long")
    bot.set("quantum:position:eth", "short")
    bot.set("quantum:other:BTCUSDT", "x")
    assert await discovery.wanted(catalogue) == [SOL, ETH]
    bot.sadd(ACTIVE, "BTC/USDT:USDT", "ETHUSDT")
    assert await discovery.wanted(catalogue) == [BTC, ETH]
    bot.rpush(UNIVERSE, "SOLUSDT", "BTC", "SOL/USDT")
    assert await discovery.wanted(catalogue) == [SOL, BTC]


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        (["ETHUSDT", "BTCUSDT"], [ETH, BTC]),
        ([{"symbol": "ETHUSDT", "score": 0.9}, {"symbol": "BTC/USDT:USDT"}], [ETH, BTC]),
        ({"majors": ["BTC"], "memes": [{"symbol": "DOGEUSDT"}], "at": 1}, [BTC, DOGE]),
        ("BTCUSDT", [BTC]),
    ],
)
async def test_a_json_text_may_have_several_forms(
    discovery: Discovery,
    catalogue: Catalogue,
    bot: redis.Redis,
    value: object,
    pairs: Sequence[str],
) -> None:
    bot.set(UNIVERSE, orjson.dumps(value))
    assert await discovery.wanted(catalogue) == pairs


async def test_junk_is_told_once_and_a_key_of_junk_is_passed_over(
    discovery: Discovery, catalogue: Catalogue, bot: redis.Redis
) -> None:
    bot.set(UNIVERSE, b'["NOPEUSDT", 7, null, {"a": 1}, "\xff\xfe')
    bot.hset(ACTIVE, "BTCUSDT", "1")
    bot.set("quantum:position:ETHUSDT", "x")
    bot.set(b"quantum:position:\xff\xfe", "x")
    with capture_logs() as logs:
        for _ in range(3):
            assert await discovery.wanted(catalogue) == [ETH]
    told = [line["found"] for line in logs if line["event"] == "unusable_name"]
    assert len(told) == len(set(told)) == discovery.unusable == 3
    bot.set(UNIVERSE, orjson.dumps(["SOLUSDT", "NOPEUSDT", 7, None, "x" * 500, ""]))
    assert await discovery.wanted(catalogue) == [SOL]


async def test_without_redis_what_was_known_stays_and_before_that_the_fallback(
    rest: ExchangeRest, catalogue: Catalogue, redis_server: RedisServer, clock: SteppedClock
) -> None:
    def named(name: str) -> None:
        with redis.Redis.from_url(redis_server.url) as bot:
            bot.sadd(UNIVERSE, name)

    discovery = Discovery(BINANCE, WANTED, rest, redis_server.url, clock)
    redis_server.stop()
    assert await discovery.wanted(catalogue) == (DOGE,)
    redis_server.start()
    named("BTCUSDT")
    assert await discovery.wanted(catalogue) == [BTC]
    redis_server.kill()
    with capture_logs() as logs:
        for _ in range(3):
            assert await discovery.wanted(catalogue) == [BTC]
    assert [line["event"] for line in logs] == ["pairs_from_before"]
    redis_server.start()
    named("ETHUSDT")
    assert await discovery.wanted(catalogue) == [ETH]


async def test_keys_that_are_filled_anew_change_nothing_and_keys_that_stay_empty_do(
    discovery: Discovery, catalogue: Catalogue, bot: redis.Redis, clock: SteppedClock
) -> None:
    bot.sadd(UNIVERSE, "BTCUSDT")
    assert await discovery.wanted(catalogue) == [BTC]
    bot.delete(UNIVERSE)
    assert await discovery.wanted(catalogue) == [BTC]
    bot.sadd(UNIVERSE, "ETHUSDT")
    assert await discovery.wanted(catalogue) == [ETH]
    bot.delete(UNIVERSE)
    assert await discovery.wanted(catalogue) == [ETH]
    clock.ms += EMPTY_FOR_MS - 1
    assert await discovery.wanted(catalogue) == [ETH]
    clock.ms += 1
    assert await discovery.wanted(catalogue) == (DOGE,)


# Volumes


async def test_volumes_are_read_every_ten_minutes_and_kept_while_rest_is_away(
    simulator: Simulator, rest: ExchangeRest, catalogue: Catalogue, clock: SteppedClock
) -> None:
    discovery = Discovery(BINANCE, TopPairs(quote="USDT", top=5), rest, None, clock)
    number = simulator.inject(RestDown())
    assert number is not None
    with pytest.raises(ExchangeUnavailable):
        await discovery.wanted(catalogue)
    simulator.faults.remove(number)
    chosen = await discovery.wanted(catalogue)
    assert len(chosen) == 5
    path = "/fapi/v1/ticker/24hr"
    asked = rest.client.requests[path]
    clock.ms += VOLUMES_EVERY_MS - 1
    assert await discovery.wanted(catalogue) == chosen
    assert rest.client.requests[path] == asked
    number = simulator.inject(RestDown())
    assert number is not None
    clock.ms += 1
    assert await discovery.wanted(catalogue) == chosen
    assert rest.client.requests[path] == asked + 1
    simulator.faults.remove(number)
    clock.ms += VOLUMES_AGAIN_MS
    assert await discovery.wanted(catalogue) == chosen
    assert rest.client.requests[path] == asked + 2


async def test_a_delisted_pair_makes_room_for_the_next_largest(
    simulator: Simulator, rest: ExchangeRest, catalogue: Catalogue, clock: SteppedClock
) -> None:
    discovery = Discovery(BINANCE, TopPairs(quote="USDT", top=5), rest, None, clock)
    before = await discovery.wanted(catalogue)
    dead = catalogue.find(before[0])
    simulator.inject(Delist(exchange=BINANCE, id=dead.id, gone_after_s=3_600))
    now = await after_the_minute(simulator, rest)
    assert not now.find(dead.pair).active
    after = await discovery.wanted(now)
    assert after[:4] == before[1:]
    assert len(after) == 5


# Listings


async def test_a_pair_that_is_listed_later_is_taken_at_the_next_look(
    simulator: Simulator, rest: ExchangeRest, catalogue: Catalogue, clock: SteppedClock
) -> None:
    discovery = Discovery(BINANCE, (BTC, "NEW/USDT:USDT"), rest, None, clock)
    early = select(BINANCE, await discovery.wanted(catalogue), catalogue)
    assert list(early.markets) == [BTC]
    assert "NEW/USDT:USDT" in early.left_out[0]
    simulator.inject(ListNew(exchange=BINANCE, base="NEW"))
    now = await after_the_minute(simulator, rest)
    late = select(BINANCE, await discovery.wanted(now), now)
    assert list(late.markets) == [BTC, "NEW/USDT:USDT"]
    assert late.left_out == []


async def test_a_name_in_redis_is_taken_once_the_exchange_lists_it(
    simulator: Simulator, rest: ExchangeRest, discovery: Discovery, catalogue: Catalogue,
    bot: redis.Redis,
) -> None:  # fmt: skip
    bot.sadd(UNIVERSE, "BTCUSDT", "NEWUSDT")
    assert await discovery.wanted(catalogue) == [BTC]
    simulator.inject(ListNew(exchange=BINANCE, base="NEW"))
    now = await after_the_minute(simulator, rest)
    assert sorted(await discovery.wanted(now)) == [BTC, "NEW/USDT:USDT"]
