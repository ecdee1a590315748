"""What readers tell of the state behind a value: by the service's word, by the ledger, by age."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ingest.simulator.faults import Maintenance, Silence
from ingest.simulator.universe import BYBIT
from marketdata import keys
from marketdata.errors import StaleData
from marketdata.schema import CANDLE_MS, Gap, State
from readers import MarketData
from readers.deadlines import QUIET_MS
from readers.values import Mark
from tests.servers.influx import InfluxBucket
from tests.servers.redis import RedisServer
from tests.service import configuration, fast_simulator, running
from tests.stored import (
    BTC,
    ETH,
    EXCHANGE,
    InfluxHome,
    RedisHome,
    SqliteHome,
    Watch,
    candles,
    last_of,
    reading,
)
from tests.waiting import eventually

CLOSE_MS = int(time.time() * 1000) // CANDLE_MS * CANDLE_MS
CHANNELS = ("candles", "funding", "mark_price", "last_price")
ALL_STATES: tuple[State, ...] = ("starting", "quiet", "late", "disconnected", "venue_down")


@pytest.fixture(params=["sqlite", "influxdb"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> SqliteHome | InfluxHome:
    """A store of each kind, with candles up to `CLOSE_MS` and newest values of then."""
    home: SqliteHome | InfluxHome
    if request.param == "sqlite":
        home = SqliteHome(tmp_path / "market_data.db")
    else:
        influx: InfluxBucket = request.getfixturevalue("influx")
        home = InfluxHome(influx, influx.new_bucket())
    home.put({"ohlcv_3m": candles(BTC, CLOSE_MS - 20 * CANDLE_MS, 20)})
    home.put_last(last_of(BTC, CLOSE_MS), last_of(ETH, CLOSE_MS))
    return home


@pytest.fixture
def watch() -> Watch:
    """A time at which everything is older than any deadline."""
    return Watch(CLOSE_MS + 300_000)


@pytest.fixture
def data(home: SqliteHome | InfluxHome, watch: Watch, redis_url: str) -> Iterator[MarketData]:
    with reading(home, watch, redis_url) as data:
        yield data


def reads(data: MarketData, pair: str = BTC) -> dict[str, Callable[[], object]]:
    """A read of each channel."""
    return {
        "candles": partial(data.get_ohlcv, pair, limit=5),
        "funding": partial(data.get_funding_rate, pair),
        "mark_price": partial(data.get_mark_price, pair),
        "last_price": partial(data.get_last_price, pair),
    }


def stale_states(data: MarketData, pair: str = BTC) -> dict[str, str]:
    """The state that each channel's `StaleData` tells."""
    states = {}
    for channel, read in reads(data, pair).items():
        with pytest.raises(StaleData) as stale:
            read()
        states[channel] = stale.value.state
    return states


def gap(start_ms: int, channel: str, reason: str, state: str = "open") -> Gap:
    closed_ms = None if state == "open" else start_ms + 200_000
    return Gap(EXCHANGE, BTC, channel, start_ms, start_ms + 100_000, reason, state, closed_ms)


@pytest.mark.parametrize("state", ALL_STATES)
def test_a_stale_value_tells_the_state_that_the_service_knows(
    data: MarketData, watch: Watch, redis_url: str, state: State
) -> None:
    told = {
        (BTC, channel): state for channel in CHANNELS if (channel, state) != ("candles", "quiet")
    }
    RedisHome(redis_url).put_health(watch.now_ms, states=told)
    found = stale_states(data)
    expected = dict.fromkeys(CHANNELS, state)
    if state == "quiet":
        expected["candles"] = "late"
    assert found == expected


def test_what_the_service_calls_live_is_late_where_it_hasnt_come(
    data: MarketData, watch: Watch, redis_url: str
) -> None:
    RedisHome(redis_url).put_health(watch.now_ms, states={(ETH, "funding"): "disconnected"})
    assert stale_states(data) == dict.fromkeys(CHANNELS, "late")
    watch.now_ms = CLOSE_MS + 5_000
    with pytest.raises(StaleData, match=r"mark price of .* is late") as stale:
        data.get_mark_price(BTC, max_age=2.0)
    assert stale.value.state == "late"


def test_a_last_price_out_of_candles_has_the_state_of_the_candles(
    data: MarketData, watch: Watch, redis_url: str
) -> None:
    RedisHome(redis_url).put_health(watch.now_ms, states={(BTC, "candles"): "disconnected"})
    assert stale_states(data)["last_price"] == "disconnected"


def test_all_funding_rates_tell_the_state_of_the_newest(
    data: MarketData, watch: Watch, redis_url: str
) -> None:
    told: dict[tuple[str, str], State] = {
        (BTC, "funding"): "venue_down",
        (ETH, "funding"): "venue_down",
    }
    RedisHome(redis_url).put_health(watch.now_ms, states=told)
    with pytest.raises(StaleData, match="every funding rate of BINANCE_FUTURES is venue_down"):
        data.get_all_funding_rates()


def test_a_value_that_never_came_tells_the_state_too(
    home: SqliteHome | InfluxHome, data: MarketData, watch: Watch, redis_url: str
) -> None:
    home.put({"ohlcv_3m": candles("SOL/USDT:USDT", CLOSE_MS - 5 * CANDLE_MS, 1)})
    told: dict[tuple[str, str], State] = {("SOL/USDT:USDT", "funding"): "starting"}
    RedisHome(redis_url).put_health(watch.now_ms, states=told)
    with pytest.raises(StaleData) as stale:
        data.get_funding_rate("SOL/USDT:USDT")
    assert (stale.value.age_ms, stale.value.state) == (None, "starting")


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("disconnected", "disconnected"),
        ("venue_down", "venue_down"),
        ("silent", "late"),
        ("restart", "late"),
    ],
)
def test_without_the_service_an_open_gap_tells_why(
    home: SqliteHome | InfluxHome, watch: Watch, reason: str, state: str
) -> None:
    start_ms = CLOSE_MS - CLOSE_MS % 60_000
    home.put({"gap": [gap(start_ms, channel, reason) for channel in ("candles", "mark_price")]})
    with reading(home, watch) as data:
        expected = {"candles": state, "mark_price": state, "last_price": state, "funding": "late"}
        assert stale_states(data) == expected
        assert data.get_ohlcv(BTC, max_age=None).attrs["state"] == state


def test_gaps_that_are_closed_or_older_than_the_newest_value_tell_nothing(
    home: SqliteHome | InfluxHome, watch: Watch
) -> None:
    home.put(
        {
            "gap": [
                gap(CLOSE_MS - 600_000, "mark_price", "venue_down"),
                gap(CLOSE_MS, "mark_price", "disconnected", "lost"),
                gap(CLOSE_MS, "candles", "disconnected", "repaired"),
            ]
        }
    )
    with reading(home, watch) as data:
        assert stale_states(data) == dict.fromkeys(CHANNELS, "late")


def test_a_health_hash_past_its_lifetime_is_as_if_there_were_none(
    home: SqliteHome | InfluxHome, data: MarketData, watch: Watch, redis_url: str
) -> None:
    home.put({"gap": [gap(CLOSE_MS, "mark_price", "disconnected")]})
    told: dict[tuple[str, str], State] = {(BTC, channel): "venue_down" for channel in CHANNELS}
    written_ms = watch.now_ms
    RedisHome(redis_url).put_health(written_ms, clock_ahead_ms=-300_000, states=told)
    watch.now_ms = written_ms + keys.HEALTH_TTL_MS - 1
    assert data.get_mark_price(BTC, True, max_age=60).age_ms == keys.HEALTH_TTL_MS + 999
    watch.now_ms += 1
    assert stale_states(data)["mark_price"] == "disconnected"


def test_candles_of_a_quiet_pair_are_not_stale(
    data: MarketData, watch: Watch, redis_url: str
) -> None:
    with pytest.raises(StaleData):
        data.get_ohlcv(BTC)
    watch.now_ms += 1_000
    RedisHome(redis_url).put_health(watch.now_ms, states={(BTC, "candles"): "quiet"})
    frame = data.get_ohlcv(BTC, limit=5)
    assert (len(frame), frame.attrs["state"]) == (5, "quiet")
    with pytest.raises(StaleData) as stale:
        data.get_ohlcv(BTC, limit=5, max_age=60)
    assert stale.value.state == "quiet"


def test_candles_are_late_where_quiet_minutes_should_long_have_been_stored(
    data: MarketData, watch: Watch, redis_url: str
) -> None:
    watch.now_ms = CLOSE_MS + 210_000 + QUIET_MS
    RedisHome(redis_url).put_health(watch.now_ms, states={(BTC, "candles"): "quiet"})
    assert data.get_ohlcv(BTC).attrs["state"] == "quiet"
    watch.now_ms += 1
    with pytest.raises(StaleData) as stale:
        data.get_ohlcv(BTC)
    assert stale.value.state == "late"


def test_candles_tell_their_state_however_they_come(
    data: MarketData, watch: Watch, redis_url: str
) -> None:
    watch.now_ms = CLOSE_MS + 5_000
    assert data.get_ohlcv(BTC, limit=5).attrs["state"] == "live"
    RedisHome(redis_url).put_health(watch.now_ms, states={(BTC, "candles"): "disconnected"})
    watch.now_ms += 1_000
    frame = data.get_ohlcv(BTC, limit=5)
    assert (frame.attrs["source"], frame.attrs["state"]) == ("cache", "disconnected")
    assert data.get_ohlcv(BTC, limit=4).attrs["state"] == "disconnected"


def test_ages_are_by_the_exchanges_clock(data: MarketData, watch: Watch, redis_url: str) -> None:
    RedisHome(redis_url).put_health(watch.now_ms, clock_ahead_ms=-299_000)
    assert data.get_mark_price(BTC, with_source=True).age_ms == 2_000
    assert data.readings(Mark)[ETH].age_ms == 2_000
    assert data.get_ohlcv(BTC, limit=5).attrs["state"] == "live"
    watch.now_ms += 2_000
    RedisHome(redis_url).put_health(watch.now_ms, clock_ahead_ms=300_000)
    with pytest.raises(StaleData) as stale:
        data.get_mark_price(BTC)
    assert stale.value.age_ms == 603_000
    watch.now_ms += 2_000
    RedisHome(redis_url).put_health(watch.now_ms, clock_ahead_ms=-600_000)
    assert data.get_mark_price(BTC, with_source=True).age_ms == 0


def test_with_a_clock_behind_the_newest_candle_is_still_found(
    home: SqliteHome | InfluxHome, data: MarketData, watch: Watch, redis_url: str
) -> None:
    watch.now_ms = CLOSE_MS - 600_000
    RedisHome(redis_url).put_health(watch.now_ms, clock_ahead_ms=601_000)
    frame = data.get_ohlcv(BTC, limit=3)
    assert frame["date"].astype("int64").tolist()[-1] == CLOSE_MS - CANDLE_MS
    home.put({"ohlcv_3m": candles(BTC, CLOSE_MS, 1)})
    watch.now_ms += CANDLE_MS
    RedisHome(redis_url).put_health(watch.now_ms, clock_ahead_ms=601_000)
    frame = data.get_ohlcv(BTC, limit=3)
    assert frame["date"].astype("int64").tolist()[-1] == CLOSE_MS


def test_states_are_asked_for_once_a_second_and_count_as_no_reads(
    data: MarketData, watch: Watch, redis_url: str
) -> None:
    RedisHome(redis_url).put_health(watch.now_ms, clock_ahead_ms=-299_000)
    data.get_mark_price(BTC)
    RedisHome(redis_url).put_health(watch.now_ms)
    data.get_funding_rate(BTC)
    reads_before = sum(data.counts().values())
    watch.now_ms += 1_000
    with pytest.raises(StaleData):
        data.get_mark_price(BTC)
    assert sum(data.counts().values()) == reads_before + 1


def test_with_redis_gone_the_last_word_of_the_service_counts_for_its_lifetime(
    tmp_path: Path, watch: Watch, redis_server: RedisServer
) -> None:
    home = SqliteHome(tmp_path / "market_data.db")
    home.put_last(last_of(BTC, CLOSE_MS))
    written_ms = watch.now_ms
    told: dict[tuple[str, str], State] = {(BTC, "mark_price"): "venue_down"}
    RedisHome(redis_server.url).put_health(written_ms, states=told)
    with reading(home, watch, redis_server.url) as data:
        assert data.state_of(data.readings(Mark)[BTC]) == "venue_down"
        redis_server.stop()
        watch.now_ms = written_ms + keys.HEALTH_TTL_MS - 1
        assert data.state_of(data.readings(Mark)[BTC]) == "venue_down"
        watch.now_ms += 1
        assert data.state_of(data.readings(Mark)[BTC]) == "late"


async def test_a_reader_beside_a_running_service_tells_what_happens_to_it(
    tmp_path: Path, free_port: int, redis_url: str
) -> None:
    async with fast_simulator() as simulator:
        settings = configuration(
            simulator, tmp_path, free_port, extra={"redis": {"url": redis_url}}
        )
        async with running(settings, simulator.clock):
            with MarketData(settings=settings, now_ms=simulator.clock.now_ms) as data:
                price = partial(data.get_mark_price, BTC)
                await becomes("live", price)
                assert (await asyncio.to_thread(data.get_ohlcv, BTC)).attrs["state"] == "live"
                simulator.inject(Silence(exchange=EXCHANGE, id="BTCUSDT", seconds=600))
                simulator.inject(Maintenance(exchange=BYBIT, seconds=600))
                await becomes("late", price)
                await becomes("venue_down", partial(data.get_mark_price, BTC, exchange=BYBIT))


async def becomes(expected, read):
    """Wait until a read tells a state: `live`, or that of its `StaleData`."""

    def state():
        try:
            read()
        except StaleData as stale:
            return stale.state
        return "live"

    async def is_so():
        return await asyncio.to_thread(state) == expected

    await eventually(is_so, 20, expected)
