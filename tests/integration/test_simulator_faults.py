"""The simulator's faults, as a client sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from aiohttp import (
    ClientError,
    ClientSession,
    ClientTimeout,
    ClientWebSocketResponse,
    WSMsgType,
    WSServerHandshakeError,
)

from ingest.clock import Clock
from ingest.simulator.faults import (
    Close,
    ClosingKline,
    Inject,
    Lifetime,
    MissingRows,
    NoEmptyRows,
    Notice,
    RefuseHandshakes,
    RestDown,
    RestLimited,
    RestSlow,
    ReviseMinute,
    Silence,
)
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE, BYBIT
from tests.simulation import MINUTE_MS, START_MS, Json, first_where, get, receive
from tests.waiting import eventually

TWO_PAIRS = "btcusdt@markPrice@1s/ethusdt@markPrice@1s"


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """An hour in a minute."""
    async with Simulator(clock=Clock(speed=60, start_ms=START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


@pytest.fixture
async def binance(
    simulator: Simulator, session: ClientSession
) -> AsyncIterator[ClientWebSocketResponse]:
    """A connection with the marks of two pairs."""
    url = f"{simulator.ws_url}/market/stream?streams={TWO_PAIRS}"
    async with session.ws_connect(url) as socket:
        await receive(socket)
        yield socket


# Streams


async def test_one_pair_falls_silent_and_comes_back(
    simulator: Simulator, binance: ClientWebSocketResponse
) -> None:
    number = simulator.inject(Silence(id="BTCUSDT"))
    assert number is not None
    later_ms = simulator.clock.now_ms() + 1_000
    await first_where(binance, lambda m: m["data"]["E"] > later_ms)
    pairs = [(await receive(binance))["data"]["s"] for _ in range(10)]
    assert set(pairs) == {"ETHUSDT"}
    simulator.faults.remove(number)
    await first_where(binance, lambda m: m["data"]["s"] == "BTCUSDT")


async def test_silence_closes_nothing_and_swallows_what_it_is_told_to(
    simulator: Simulator, session: ClientSession, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Silence(control=True))
    async with session.ws_connect(f"{simulator.ws_url}/v5/public/linear") as bybit:
        await bybit.send_json({"op": "ping"})
        await binance.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 1})
        await eventually(lambda: simulator.stats()[BINANCE]["messages_received"] == 1)
        await eventually(lambda: simulator.stats()[BYBIT]["messages_received"] == 1)
        sent = simulator.stats()[BINANCE]["messages_sent"]
        now_ms = simulator.clock.now_ms()
        await eventually(lambda: simulator.clock.now_ms() > now_ms + 10_000)
        assert simulator.stats()[BINANCE]["messages_sent"] == sent
        assert simulator.stats()[BYBIT]["messages_sent"] == 0
        simulator.faults.clear()
        await receive(binance)


@pytest.mark.parametrize("code", [1000, 1001, 1012])
async def test_every_connection_is_closed_with_the_code(
    simulator: Simulator, binance: ClientWebSocketResponse, code: int
) -> None:
    simulator.inject(Close.model_validate({"code": code, "reason": "so"}))
    while (message := await binance.receive(timeout=5)).type is WSMsgType.TEXT:
        pass
    assert (message.type, message.data, message.extra) == (WSMsgType.CLOSE, code, "so")
    await eventually(lambda: simulator.stats()[BINANCE]["connections"] == 0)


async def test_1006_is_a_reset_without_a_farewell(
    simulator: Simulator, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Close(code=1006, exchange="BINANCE_FUTURES"))
    while (message := await binance.receive(timeout=5)).type is WSMsgType.TEXT:
        pass
    assert message.type in (WSMsgType.CLOSED, WSMsgType.ERROR)
    assert binance.close_code == 1006


@pytest.mark.parametrize("path", ["/market/ws", "/v5/public/spot"])
async def test_handshakes_are_refused_as_often_as_asked(
    simulator: Simulator, session: ClientSession, path: str
) -> None:
    simulator.inject(RefuseHandshakes(status=429, retry_after_s=7, times=2))
    for _ in range(2):
        with pytest.raises(WSServerHandshakeError) as refused:
            await session.ws_connect(f"{simulator.ws_url}{path}")
        assert refused.value.status == 429
        assert refused.value.headers is not None
        assert refused.value.headers["Retry-After"] == "7"
    async with session.ws_connect(f"{simulator.ws_url}{path}") as socket:
        assert not socket.closed


async def test_garbage_is_sent_as_it_is(
    simulator: Simulator, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Inject(text='{"half":'))
    texts = [(await binance.receive(timeout=5)).data for _ in range(10)]
    assert '{"half":' in texts


async def test_a_notice_comes_before_the_cut(
    simulator: Simulator, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Notice(cut_after_s=5))
    notice = await first_where(binance, lambda m: m["stream"] == "!serverShutdown")
    assert notice["data"]["e"] == "serverShutdown"
    while (message := await binance.receive(timeout=5)).type is WSMsgType.TEXT:
        pass
    assert (message.type, message.data) == (WSMsgType.CLOSE, 1001)


async def test_connections_end_at_their_age(simulator: Simulator, session: ClientSession) -> None:
    simulator.inject(Lifetime(age_s=30))
    opened_ms = simulator.clock.now_ms()
    async with session.ws_connect(f"{simulator.ws_url}/market/ws") as socket:
        assert (await socket.receive(timeout=5)).data == 1001
        assert 30_000 <= simulator.clock.now_ms() - opened_ms < 60_000


# Closing klines


@pytest.fixture
async def fast() -> AsyncIterator[Simulator]:
    """Five minutes in a second."""
    async with Simulator(clock=Clock(speed=300, start_ms=START_MS)) as simulator:
        yield simulator


async def closings(
    simulator: Simulator, session: ClientSession, exchange: str
) -> AsyncIterator[Json]:
    """Every message about BTCUSDT's minutes, as open time, closed and event time."""
    if exchange == BINANCE:
        url = f"{simulator.ws_url}/market/ws/btcusdt@kline_1m"
        async with session.ws_connect(url) as socket:
            while True:
                message = await receive(socket)
                kline = message["k"]
                yield {"open": kline["t"], "closed": kline["x"], "event": message["E"], **kline}
    async with session.ws_connect(f"{simulator.ws_url}/v5/public/linear") as socket:
        await socket.send_json({"op": "subscribe", "args": ["kline.1.BTCUSDT"]})
        while True:
            message = await receive(socket)
            for item in message.get("data", []):
                yield {
                    "open": item["start"], "closed": item["confirm"], "event": message["ts"],
                    "v": item["volume"],
                }  # fmt: skip


async def until_minutes(messages: AsyncIterator[Json], minutes: int) -> list[Json]:
    """Messages until one of a minute so many minutes after the first."""
    seen: list[Json] = []
    async for message in messages:
        seen.append(message)
        if message["open"] >= seen[0]["open"] + minutes * MINUTE_MS:
            break
    return seen


async def a_new_minute(messages: AsyncIterator[Json]) -> Json:
    """The first message of a minute that has just begun."""
    before = await anext(messages)
    async for message in messages:
        if message["open"] > before["open"]:
            return message
    raise AssertionError("the stream has ended")


@pytest.mark.parametrize("exchange", [BINANCE, BYBIT])
@pytest.mark.parametrize("action", ["drop", "delay", "duplicate", "reorder"])
async def test_a_closing_kline_is_tampered_with(
    fast: Simulator, session: ClientSession, exchange: str, action: str
) -> None:
    stream = closings(fast, session, exchange)
    first = await a_new_minute(stream)
    fault = {"id": "BTCUSDT", "action": action, "delay_s": 15, "times": 1}
    fast.inject(ClosingKline.model_validate(fault))
    messages = [first, *await until_minutes(stream, 2)]
    first_ms = first["open"]
    closing = [m for m in messages if m["closed"] and m["open"] == first_ms]
    close_ms = first_ms + MINUTE_MS
    if action == "drop":
        assert not closing
    elif action == "delay":
        assert [m["event"] for m in closing] == [close_ms]
        before = messages[: messages.index(closing[0])]
        assert max(m["event"] for m in before) > close_ms + 5_000
    elif action == "duplicate":
        assert len(closing) == 2
        assert closing[0] == closing[1]
    else:
        [late] = closing
        overtaking = messages[messages.index(late) - 1]
        assert overtaking["open"] == close_ms
    following = [m for m in messages if m["closed"] and m["open"] == close_ms]
    assert len(following) == 1, "the fault was for once"


@pytest.mark.parametrize("exchange", [BINANCE, BYBIT])
async def test_a_revised_minute_is_streamed_again_and_so_in_rest_and_truth(
    fast: Simulator, session: ClientSession, exchange: str
) -> None:
    messages = closings(fast, session, exchange)
    async for closed in messages:
        if closed["closed"]:
            break
    fault = {"exchange": exchange, "id": "BTCUSDT", "minute_ms": closed["open"]}
    fast.inject(ReviseMinute.model_validate(fault))
    async for revised in messages:
        if revised["open"] == closed["open"]:
            break
    assert revised["closed"]
    assert Decimal(revised["v"]) > Decimal(closed["v"])
    path = f"/sim/truth/{exchange}/BTCUSDT/klines?interval=1m"
    truth = {row[0]: row[5] for row in (await get(session, fast, path))["rows"]}
    assert truth[closed["open"]] == revised["v"]
    if exchange == BINANCE:
        query = f"symbol=BTCUSDT&interval=1m&startTime={closed['open']}&limit=1"
        [row] = await get(session, fast, f"/fapi/v1/klines?{query}")
        assert row[5] == revised["v"]


# REST


async def test_rest_is_down_in_three_ways(simulator: Simulator, session: ClientSession) -> None:
    url = f"{simulator.url}/fapi/v1/time"
    simulator.inject(RestDown(how="unavailable", times=1))
    async with session.get(url) as response:
        assert response.status == 503
    simulator.inject(RestDown(how="reset"))
    with pytest.raises(ClientError):
        await session.get(url)
    simulator.faults.clear()
    simulator.inject(RestDown(how="hang"))
    with pytest.raises(TimeoutError):
        await session.get(url, timeout=ClientTimeout(total=0.3))
    simulator.faults.clear()
    async with session.get(url) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("path", "status", "retry_after_s", "told"),
    [
        ("/fapi/v1/time", 429, 3, 429),
        ("/fapi/v1/time", 418, None, 418),
        ("/v5/market/time", 403, None, 403),
        ("/v5/market/time", 429, None, 200),
    ],
)
async def test_rest_says_that_it_had_enough(
    simulator: Simulator,
    session: ClientSession,
    path: str,
    status: int,
    retry_after_s: int | None,
    told: int,
) -> None:
    fault = {"status": status, "retry_after_s": retry_after_s}
    simulator.inject(RestLimited.model_validate(fault))
    async with session.get(f"{simulator.url}{path}") as response:
        assert response.status == told
        header = response.headers.get("Retry-After")
        assert header == (None if retry_after_s is None else str(retry_after_s))
        if told == 200:
            assert (await response.json())["retCode"] == 10_006


async def test_a_slow_answer_is_late_by_the_simulator_s_clock(
    simulator: Simulator, session: ClientSession
) -> None:
    simulator.inject(RestSlow(delay_s=20))
    asked_ms = simulator.clock.now_ms()
    answer = await get(session, simulator, "/fapi/v1/time")
    assert answer["serverTime"] >= asked_ms + 20_000


@pytest.mark.parametrize(
    "path",
    [
        "/fapi/v1/klines?symbol=BTCUSDT&interval=1m&startTime={start}&endTime={end}",
        "/v5/market/kline?category=linear&symbol=BTCUSDT&interval=1&start={start}&end={end}",
    ],
)
async def test_rows_of_a_minute_are_missing(
    simulator: Simulator, session: ClientSession, path: str
) -> None:
    first = START_MS // MINUTE_MS * MINUTE_MS - 10 * MINUTE_MS
    hole = first + 4 * MINUTE_MS
    simulator.inject(MissingRows(id="BTCUSDT", start_ms=hole, end_ms=hole + MINUTE_MS))
    answer = await get(session, simulator, path.format(start=first, end=first + 8 * MINUTE_MS))
    rows = answer if isinstance(answer, list) else answer["result"]["list"]
    assert len(rows) == 8
    assert hole not in {int(row[0]) for row in rows}


async def test_minutes_without_trades_are_flat_rows_or_none(
    simulator: Simulator, session: ClientSession
) -> None:
    path = "/fapi/v1/klines?symbol=龙虾USDT&interval=1m&limit=100"
    flat = await get(session, simulator, path)
    assert len(flat) == 100
    simulator.inject(NoEmptyRows())
    traded = await get(session, simulator, path)
    assert 0 < len(traded) < 100
    assert all(row[8] > 0 for row in traded)
