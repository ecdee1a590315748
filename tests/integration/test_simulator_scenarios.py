"""What the exchanges do to everyone at once: connections, maintenance, listings, clocks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import (
    ClientError,
    ClientSession,
    ClientWebSocketResponse,
    ServerDisconnectedError,
    WSMsgType,
    WSServerHandshakeError,
)

from ingest.clock import Clock
from ingest.simulator.faults import (
    Close,
    CloseNew,
    Delist,
    Fault,
    FundingInterval,
    HaltTrading,
    ListNew,
    Maintenance,
    NoEmptyRows,
    Offline,
    RefuseHandshakes,
    Rename,
    Skew,
    Stall,
)
from ingest.simulator.market import AS_OF_MS, HOUR_MS
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE, BYBIT
from tests.simulation import MINUTE_MS, START_MS, Json, first_where, get, receive
from tests.waiting import eventually

MARKS = "/market/stream?streams=btcusdt@markPrice@1s/solusdt@markPrice@1s"
LINEAR = "/v5/public/linear"


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
    async with session.ws_connect(simulator.ws_url + MARKS) as socket:
        await receive(socket)
        yield socket


async def passed(simulator: Simulator, seconds: float) -> None:
    """Until so much of the simulator's time is over."""
    until_ms = simulator.clock.now_ms() + seconds * 1000
    await eventually(lambda: simulator.clock.now_ms() >= until_ms)


async def until_the_end(socket: ClientWebSocketResponse) -> tuple[WSMsgType, object]:
    """What the last frame was, and what it said."""
    while (message := await socket.receive(timeout=5)).type is WSMsgType.TEXT:
        pass
    return message.type, message.data


# Connections


async def test_stalled_connections_stay_open_and_answer_and_new_ones_deliver(
    simulator: Simulator, session: ClientSession, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Stall())
    await passed(simulator, 20)
    await binance.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 7})
    answer = await first_where(binance, lambda m: "id" in m)
    assert len(answer["result"]) == 2
    async with session.ws_connect(simulator.ws_url + MARKS) as fresh:
        await receive(fresh)
        with pytest.raises(TimeoutError):
            await binance.receive(timeout=0.2)
        assert simulator.stats()[BINANCE]["connections"] == 2


async def test_half_open_connections_are_neither_read_nor_answered_nor_closed(
    simulator: Simulator, session: ClientSession, binance: ClientWebSocketResponse
) -> None:
    heard = simulator.stats()[BINANCE]["messages_received"]
    simulator.inject(Stall(half_open=True))
    await binance.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 7})
    await binance.ping()
    async with session.ws_connect(simulator.ws_url + MARKS) as fresh:
        await receive(fresh)
    while True:
        try:
            message = await binance.receive(timeout=0.3)
        except TimeoutError:
            break
        assert message.type is WSMsgType.TEXT, "nothing but what was on its way"
        assert '"id":7' not in message.data
    assert not binance.closed
    assert simulator.stats()[BINANCE]["messages_received"] == heard


async def test_1006_may_end_in_order_too(
    simulator: Simulator, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Close(code=1006, reset=False))
    kind, _ = await until_the_end(binance)
    assert kind is WSMsgType.CLOSED
    assert binance.close_code == 1006
    await eventually(lambda: simulator.stats()[BINANCE]["connections"] == 0)


@pytest.mark.parametrize("path", [MARKS, LINEAR])
async def test_whoever_connects_is_closed_at_once(
    simulator: Simulator, session: ClientSession, path: str
) -> None:
    simulator.inject(CloseNew(code=1000, times=2))
    for _ in range(2):
        async with session.ws_connect(simulator.ws_url + path) as socket:
            assert await until_the_end(socket) == (WSMsgType.CLOSE, 1000)
    async with session.ws_connect(simulator.ws_url + path) as socket:
        await socket.ping()
        assert not socket.closed


async def test_a_handshake_may_be_refused_by_a_reset(
    simulator: Simulator, session: ClientSession
) -> None:
    simulator.inject(RefuseHandshakes(status=None))
    with pytest.raises(ClientError):
        await session.ws_connect(simulator.ws_url + LINEAR)
    # aiohttp asks a second time by itself after a reset.
    assert simulator.stats()[BYBIT]["handshakes_refused"] in (1, 2)


async def test_without_a_network_nothing_goes_in_or_out_until_it_is_back(
    simulator: Simulator, session: ClientSession, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Offline(seconds=60))
    await until_the_end(binance)
    assert binance.close_code == 1006
    for url in (f"{simulator.url}/fapi/v1/time", f"{simulator.url}/v5/market/time"):
        with pytest.raises((ServerDisconnectedError, ClientError)):
            await session.get(url)
    with pytest.raises(ClientError):
        await session.ws_connect(simulator.ws_url + MARKS)
    stats = await get(session, simulator, "/sim/stats")
    assert stats[BINANCE]["handshakes_refused"] > 0
    assert stats[BINANCE]["rest_refused"] > 0
    await passed(simulator, 60)
    async with session.ws_connect(simulator.ws_url + MARKS) as socket:
        await receive(socket)
    assert await get(session, simulator, "/fapi/v1/time")


async def test_the_busiest_minute_is_counted(simulator: Simulator, session: ClientSession) -> None:
    for _ in range(5):
        await get(session, simulator, "/fapi/v1/time")
    await passed(simulator, 61)
    await get(session, simulator, "/fapi/v1/time")
    stats = simulator.stats()[BINANCE]
    assert (stats["rest_last_minute"], stats["most_rest_in_a_minute"]) == (1, 5)


# Maintenance


@pytest.mark.parametrize("body", ["json", "html"])
async def test_under_maintenance_all_is_closed_but_the_status(
    simulator: Simulator, session: ClientSession, binance: ClientWebSocketResponse, body: str
) -> None:
    async def said(path: str) -> Json:
        async with session.get(simulator.url + path) as response:
            assert response.status == 503
            if body == "html":
                assert "<html>" in await response.text()
                return {}
            answer: Json = await response.json()
            return answer

    async def statuses() -> tuple[int, list[str]]:
        own = await get(session, simulator, "/sapi/v1/system/status")
        rows = (await get(session, simulator, "/v5/system/status"))["result"]["list"]
        return own["status"], [row["state"] for row in rows]

    assert await statuses() == (0, [])
    number = simulator.inject(Maintenance.model_validate({"body": body}))
    assert number is not None
    assert await until_the_end(binance) == (WSMsgType.CLOSE, 1012)
    with pytest.raises(WSServerHandshakeError) as refused:
        await session.ws_connect(simulator.ws_url + LINEAR)
    assert refused.value.status == 503
    ours, bybits = await said("/fapi/v1/time"), await said("/v5/market/time")
    if body == "json":
        assert ours == {"code": -1, "msg": "system maintenance"}
        assert bybits["retCode"] == 10_016
    assert await statuses() == (1, ["ongoing"])
    simulator.faults.remove(number)
    assert (await get(session, simulator, "/v5/market/time"))["retCode"] == 0


# A dead market


async def test_in_a_dead_market_marks_flow_and_rows_are_flat_or_none(
    simulator: Simulator, session: ClientSession
) -> None:
    simulator.inject(HaltTrading(minutes=30))
    minute_ms = AS_OF_MS + MINUTE_MS
    streams = "btcusdt@markPrice@1s/btcusdt@kline_1m"
    async with session.ws_connect(f"{simulator.ws_url}/market/stream?streams={streams}") as socket:
        await first_where(socket, lambda m: m["data"]["E"] >= minute_ms + 1_000)
        kinds = [(await receive(socket))["data"]["e"] for _ in range(240)]
    assert set(kinds) == {"markPriceUpdate"}
    path = f"/fapi/v1/klines?symbol=BTCUSDT&interval=1m&startTime={minute_ms}"
    rows = await get(session, simulator, path)
    assert len(rows) >= 4
    assert {(row[1], row[2], row[5], row[8]) for row in rows} == {
        (rows[0][4], rows[0][4], "0.000", 0)
    }
    simulator.inject(NoEmptyRows())
    assert await get(session, simulator, path) == []


# Listings


async def symbols(session: ClientSession, simulator: Simulator, exchange: str) -> dict[str, Json]:
    """Every perpetual that an exchange lists, by id."""
    if exchange == BINANCE:
        rows = (await get(session, simulator, "/fapi/v1/exchangeInfo"))["symbols"]
        return {row["symbol"]: row for row in rows}
    rows, cursor = [], ""
    while True:
        path = f"/v5/market/instruments-info?category=linear&cursor={cursor}"
        result = (await get(session, simulator, path))["result"]
        rows += result["list"]
        cursor = result["nextPageCursor"]
        if not cursor:
            return {row["symbol"]: row for row in rows}


@pytest.mark.parametrize(("exchange", "ending"), [(BINANCE, "SETTLING"), (BYBIT, "Delivering")])
async def test_contracts_come_go_and_are_renamed_while_the_exchange_runs(
    simulator: Simulator, session: ClientSession, exchange: str, ending: str
) -> None:
    faults: tuple[Fault, ...] = (
        Delist.model_validate({"exchange": exchange, "id": "SOLUSDT", "gone_after_s": 120}),
        ListNew.model_validate({"exchange": exchange, "base": "NEW"}),
        Rename.model_validate({"exchange": exchange, "id": "EOSUSDT", "base": "VAULTA"}),
    )
    for fault in faults:
        simulator.inject(fault)
    before = await symbols(session, simulator, exchange)
    assert "NEWUSDT" not in before
    change_ms = AS_OF_MS + MINUTE_MS
    await eventually(lambda: simulator.clock.now_ms() > change_ms + 1_000)
    now = await symbols(session, simulator, exchange)
    assert simulator.clock.now_ms() < change_ms + 120_000, "the machine is too slow to look in time"
    assert now["SOLUSDT"]["status"] == ending
    assert "EOSUSDT" not in now
    assert now["VAULTAUSDT"]["status"] == now["NEWUSDT"]["status"] == before["SOLUSDT"]["status"]
    await eventually(lambda: simulator.clock.now_ms() > change_ms + 121_000)
    assert "SOLUSDT" not in await symbols(session, simulator, exchange)


async def test_a_delisted_contracts_own_streams_are_silent_and_a_new_ones_speak(
    simulator: Simulator, session: ClientSession, binance: ClientWebSocketResponse
) -> None:
    simulator.inject(Delist(exchange=BINANCE, id="SOLUSDT"))
    simulator.inject(ListNew(exchange=BINANCE, base="NEW"))
    end_ms = AS_OF_MS + MINUTE_MS
    seen: list[Json] = []
    while not seen or seen[-1]["E"] < end_ms + 30_000:
        seen.append((await receive(binance))["data"])
    assert max(mark["E"] for mark in seen if mark["s"] == "SOLUSDT") < end_ms
    await binance.send_json({"method": "SUBSCRIBE", "params": ["newusdt@markPrice@1s"], "id": 1})
    await first_where(binance, lambda m: m.get("data", {}).get("s") == "NEWUSDT")
    async with session.ws_connect(f"{simulator.ws_url}/market/ws/!markPrice@arr@1s") as every:
        while len(marks := await every.receive_json(timeout=5)) < 100:
            pass  # those of shares and metals come in a frame of their own
        rows: dict[str, Json] = {row["s"]: row for row in marks}
    assert rows["SOLUSDT"]["T"] == 0
    assert rows["NEWUSDT"]["T"] > 0


async def test_a_topic_of_a_contract_that_is_gone_is_silent_and_refused(
    simulator: Simulator, session: ClientSession
) -> None:
    async with session.ws_connect(simulator.ws_url + LINEAR) as socket:
        await socket.send_json({"op": "subscribe", "args": ["tickers.SOLUSDT", "tickers.ETHUSDT"]})
        simulator.inject(Delist(exchange=BYBIT, id="SOLUSDT", market="perpetual", gone_after_s=1))
        end_ms = AS_OF_MS + MINUTE_MS
        seen: list[Json] = []
        while not seen or seen[-1].get("ts", 0) < end_ms + 20_000:
            seen.append(await receive(socket))
        assert max(m["ts"] for m in seen if m.get("topic") == "tickers.SOLUSDT") < end_ms
        await socket.send_json({"op": "subscribe", "args": ["kline.1.SOLUSDT"], "req_id": "1"})
        answer = await first_where(socket, lambda m: m.get("req_id") == "1")
        assert not answer["success"]


async def test_a_funding_interval_changes_with_the_next_settlement(
    session: ClientSession,
) -> None:
    settlement_ms = (AS_OF_MS // (8 * HOUR_MS) + 1) * 8 * HOUR_MS
    clock = Clock(speed=60, start_ms=settlement_ms - 40_000)
    async with Simulator(clock=clock) as simulator:
        for exchange in (BINANCE, BYBIT):
            fault = {"exchange": exchange, "id": "BTCUSDT", "hours": 4}
            simulator.inject(FundingInterval.model_validate(fault))
        intervals = await get(session, simulator, "/fapi/v1/fundingInfo")
        assert {r["fundingIntervalHours"] for r in intervals if r["symbol"] == "BTCUSDT"} == {8}
        async with session.ws_connect(simulator.ws_url + MARKS) as socket:
            mark = await first_where(socket, lambda m: m["data"]["s"] == "BTCUSDT")
            assert mark["data"]["T"] == settlement_ms
            await first_where(
                socket,
                lambda m: (
                    (m["data"]["s"], m["data"]["T"]) == ("BTCUSDT", settlement_ms + 4 * HOUR_MS)
                ),
            )
        intervals = await get(session, simulator, "/fapi/v1/fundingInfo")
        assert {r["fundingIntervalHours"] for r in intervals if r["symbol"] == "BTCUSDT"} == {4}
        row = (await symbols(session, simulator, BYBIT))["BTCUSDT"]
        assert row["fundingInterval"] == 240


# Clocks


@pytest.mark.parametrize("skew_ms", [300_000, -120_000])
async def test_an_exchange_with_a_wrong_clock_is_consistent_in_itself(
    simulator: Simulator, session: ClientSession, skew_ms: int
) -> None:
    simulator.inject(Skew(exchange=BINANCE, skew_ms=skew_ms))

    def is_skewed(time_ms: int) -> bool:
        return abs(time_ms - simulator.clock.now_ms() - skew_ms) < 30_000

    assert is_skewed((await get(session, simulator, "/fapi/v1/time"))["serverTime"])
    bybits = await get(session, simulator, "/v5/market/time")
    assert abs(bybits["time"] - simulator.clock.now_ms()) < 30_000
    streams = "btcusdt@kline_1m/btcusdt@markPrice@1s"
    async with session.ws_connect(f"{simulator.ws_url}/market/stream?streams={streams}") as socket:
        mark = await first_where(socket, lambda m: m["data"]["e"] == "markPriceUpdate")
        assert is_skewed(mark["data"]["E"])
        closed = await first_where(socket, lambda m: m["data"].get("k", {}).get("x"))
    kline = closed["data"]["k"]
    assert is_skewed(kline["T"])
    truth = f"/sim/truth/{BINANCE}/BTCUSDT/klines?interval=1m&start={kline['t']}&end={kline['T']}"
    [row] = (await get(session, simulator, truth))["rows"]
    assert (row[4], row[5]) == (kline["c"], kline["v"])
