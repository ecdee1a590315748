"""The simulated exchanges' sockets: shapes, rules and limits as the exchanges have them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from aiohttp import ClientSession, WSMsgType, WSServerHandshakeError

from ingest.clock import Clock
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE, BYBIT
from tests.simulation import MINUTE_MS, SAMPLES, START_MS, Json, first_where, receive, shape


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """An hour in a minute."""
    async with Simulator(clock=Clock(speed=60, start_ms=START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def slow() -> AsyncIterator[Simulator]:
    """A clock on which a test takes next to no time, to reach the limits by time."""
    async with Simulator(clock=Clock(speed=0.05, start_ms=START_MS)) as simulator:
        yield simulator


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


# Binance, streams


@pytest.mark.parametrize(
    ("stream", "sample"),
    [
        ("btcusdt@markPrice@1s", "C3"),
        ("btcusdt@kline_1m", "C4"),
        ("!markPrice@arr@1s", "C2"),
    ],
)
async def test_binance_streams_have_the_sample_s_shape(
    simulator: Simulator, session: ClientSession, stream: str, sample: str
) -> None:
    async with session.ws_connect(f"{simulator.ws_url}/market/stream?streams={stream}") as socket:
        message = await first_where(
            socket, lambda m: stream[0] != "!" or m["data"][0]["s"] == "BTCUSDT"
        )
    assert shape(message) == shape(SAMPLES[sample])


async def test_raw_paths_have_no_envelope(simulator: Simulator, session: ClientSession) -> None:
    async with session.ws_connect(f"{simulator.ws_url}/market/ws/ethusdt@markPrice@1s") as socket:
        assert shape(await receive(socket)) == shape(SAMPLES["C3"]["data"])


async def test_all_marks_come_as_two_frames_a_second(
    simulator: Simulator, session: ClientSession
) -> None:
    url = f"{simulator.ws_url}/market/ws/!markPrice@arr@1s"
    async with session.ws_connect(url, max_msg_size=0) as socket:
        frames = [await socket.receive_json(timeout=5) for _ in range(6)]
    tradfi = [frame for frame in frames if frame[0]["s"] == "XAUUSDT"]
    crypto = [frame for frame in frames if frame[0]["s"] == "BTCUSDT"]
    assert len(tradfi) == len(crypto) == 3
    assert all(row["E"] % 1000 == 684 for row in tradfi[0])
    assert all(row["E"] % 1000 == 0 for row in crypto[0])
    rows = {row["s"]: row for row in crypto[0]}
    assert rows["BTCUSD_PERP"]["st"] == 2
    for dead in ("OMGUSDT", "BTCUSDT_261225"):
        assert (rows[dead]["T"], rows[dead]["r"], rows[dead]["st"]) == (0, "0.00000000", 1)
    assert rows["币安人生USDT"]["T"] > 0


async def test_a_closed_minute_is_the_truth_and_comes_once(
    session: ClientSession,
) -> None:
    path = "/market/stream?streams=btcusdt@kline_1m/btcusdt@kline_3m"
    closed: list[Json] = []
    async with (
        Simulator(clock=Clock(speed=300, start_ms=START_MS)) as simulator,
        session.ws_connect(simulator.ws_url + path) as socket,
    ):
        while len(closed) < 5:
            message = await receive(socket)
            if message["data"]["k"]["x"]:
                closed.append(message["data"]["k"])
    keys = [(kline["i"], kline["t"]) for kline in closed]
    assert len(set(keys)) == len(keys)
    contract = simulator.market.contract(BINANCE, "BTCUSDT")
    for kline in closed:
        interval_ms = 180_000 if kline["i"] == "3m" else MINUTE_MS
        bar = simulator.market.kline(contract, kline["t"], interval_ms)
        assert kline["v"] == contract.quantity(bar.volume)
        assert kline["q"] == contract.amount(bar.quote)
        assert (kline["c"], kline["n"]) == (contract.price(bar.close), bar.trades)
        assert kline["L"] - kline["f"] + 1 == kline["n"]


async def test_the_old_paths_acknowledge_and_stay_silent(
    simulator: Simulator, session: ClientSession
) -> None:
    async with session.ws_connect(
        f"{simulator.ws_url}/stream?streams=btcusdt@kline_1m/btcusdt@markPrice@1s"
    ) as socket:
        subscribe = {"method": "SUBSCRIBE", "params": ["!markPrice@arr@1s"], "id": 1}
        await socket.send_json(subscribe)
        assert await receive(socket) == {"result": None, "id": 1}
        await socket.send_json({**subscribe, "params": ["btcusdt@bookTicker"], "id": 2})
        assert await receive(socket) == {"result": None, "id": 2}
        for _ in range(20):
            assert (await receive(socket))["stream"] == "btcusdt@bookTicker"


async def test_anything_can_be_subscribed_but_only_lower_case_delivers(
    simulator: Simulator, session: ClientSession
) -> None:
    async with session.ws_connect(f"{simulator.ws_url}/market/stream") as socket:
        served = "币安人生usdt@markPrice@1s"
        names = ["BTCUSDT@markPrice@1s", "nope@kline_1m", "btcusdt@kline_1s", served]
        await socket.send_json({"method": "SUBSCRIBE", "params": names, "id": 7})
        assert await receive(socket) == {"result": None, "id": 7}
        await socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 8})
        listed = await first_where(socket, lambda m: "id" in m)
        assert listed == {"result": names, "id": 8}
        for _ in range(3):
            assert (await receive(socket))["stream"] == served
        await socket.send_json({"method": "UNSUBSCRIBE", "params": names, "id": 9})
        await first_where(socket, lambda m: m.get("id") == 9)
        await socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 10})
        assert await receive(socket) == {"result": [], "id": 10}


@pytest.mark.parametrize(("text", "code"), [("{nope", 3), ('{"method":"SUBSCRIVE","id":1}', 2)])
async def test_bad_requests_are_told_and_cost_nothing(
    simulator: Simulator, session: ClientSession, text: str, code: int
) -> None:
    async with session.ws_connect(f"{simulator.ws_url}/market/ws") as socket:
        await socket.send_str(text)
        assert (await receive(socket))["code"] == code
        await socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 1})
        assert await receive(socket) == {"result": [], "id": 1}


async def test_one_stream_too_many_loses_the_connection(
    simulator: Simulator, session: ClientSession
) -> None:
    async with session.ws_connect(f"{simulator.ws_url}/market/ws") as socket:
        for first in range(0, 1_024, 256):
            names = [f"s{number}@kline_1m" for number in range(first, first + 256)]
            await socket.send_json({"method": "SUBSCRIBE", "params": names, "id": first})
            assert await receive(socket) == {"result": None, "id": first}
        await socket.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@kline_1m"], "id": 1})
        assert await receive(socket) == SAMPLES["C5"][4]
        closing = await socket.receive(timeout=5)
        assert (closing.type, closing.data, closing.extra) == (
            WSMsgType.CLOSE, 1008, "Invalid request",
        )  # fmt: skip


async def test_a_burst_of_messages_loses_the_connection(
    slow: Simulator, session: ClientSession
) -> None:
    async with session.ws_connect(f"{slow.ws_url}/market/ws") as socket:
        for number in range(40):
            await socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": number})
        answers = 0
        while (message := await socket.receive(timeout=5)).type is WSMsgType.TEXT:
            answers += 1
        assert answers == 15
        assert (message.data, message.extra) == (1008, "Too many requests")


async def test_an_address_that_is_too_long_is_refused(
    simulator: Simulator, session: ClientSession
) -> None:
    streams = "/".join(f"s{number}usdt@kline_1m" for number in range(520))
    with pytest.raises(WSServerHandshakeError) as refused:
        await session.ws_connect(f"{simulator.ws_url}/market/stream?streams={streams}")
    assert refused.value.status == 414


async def test_too_many_handshakes_in_five_minutes_are_refused(
    slow: Simulator, session: ClientSession
) -> None:
    for _ in range(300):
        async with session.ws_connect(f"{slow.ws_url}/market/ws"):
            pass
    with pytest.raises(WSServerHandshakeError) as refused:
        await session.ws_connect(f"{slow.ws_url}/market/ws")
    assert refused.value.status == 429
    assert slow.stats()[BINANCE]["handshakes_refused"] == 1


async def test_the_server_pings_with_the_time(session: ClientSession) -> None:
    async with (
        Simulator(clock=Clock(speed=1_000)) as simulator,
        session.ws_connect(f"{simulator.ws_url}/market/ws", autoping=False) as socket,
    ):
        ping = await socket.receive(timeout=5)
        assert ping.type is WSMsgType.PING
        assert abs(int(ping.data) - simulator.clock.now_ms()) < 600_000


async def test_who_never_answers_a_ping_is_cut_off(session: ClientSession) -> None:
    async with (
        Simulator(clock=Clock(speed=2_000)) as simulator,
        session.ws_connect(f"{simulator.ws_url}/market/ws", autoping=False) as socket,
    ):
        pings = 0
        while (message := await socket.receive(timeout=5)).type is WSMsgType.PING:
            pings += 1
        assert message.type in (WSMsgType.CLOSED, WSMsgType.ERROR)
        assert 2 <= pings <= 4


# Bybit


@pytest.mark.parametrize(
    ("category", "ack", "pong", "ticker"),
    [("spot", 0, 0, SAMPLES["B5"]), ("linear", 1, 1, SAMPLES["B6"])],
)
async def test_bybit_frames_have_the_sample_s_shape(
    slow: Simulator, session: ClientSession, category: str, ack: int, pong: int, ticker: Json
) -> None:
    async with session.ws_connect(f"{slow.ws_url}/v5/public/{category}") as socket:
        args = ["tickers.BTCUSDT", "kline.1.BTCUSDT"]
        await socket.send_json({"req_id": "10001", "op": "subscribe", "args": args})
        answer = await receive(socket)
        assert shape(answer) == shape(SAMPLES["B2"][ack])
        assert answer["ret_msg"] == SAMPLES["B2"][ack]["ret_msg"]
        assert shape(await receive(socket)) == shape(ticker)
        assert shape(await receive(socket)) == shape(SAMPLES["B10"])
        await socket.send_json({"op": "ping"})
        answer = await first_where(socket, lambda m: m.get("op") == "ping")
        assert shape(answer) == shape(SAMPLES["B3"][pong])


async def test_dated_futures_have_empty_funding(
    simulator: Simulator, session: ClientSession
) -> None:
    async with session.ws_connect(f"{simulator.ws_url}/v5/public/linear") as socket:
        await socket.send_json({"op": "subscribe", "args": ["tickers.BTCUSDT-25DEC26"]})
        ticker = await first_where(socket, lambda m: "data" in m)
    assert shape(ticker) == shape(SAMPLES["B9"])
    assert ticker["data"]["fundingRate"] == ticker["data"]["nextFundingTime"] == ""


async def test_bybit_closes_every_minute_as_the_truth(session: ClientSession) -> None:
    confirmed: list[Json] = []
    both = False
    async with (
        Simulator(clock=Clock(speed=300, start_ms=START_MS)) as simulator,
        session.ws_connect(f"{simulator.ws_url}/v5/public/linear") as socket,
    ):
        await socket.send_json({"op": "subscribe", "args": ["kline.1.BTCUSDT"]})
        while len(confirmed) < 5:
            items = (await receive(socket)).get("data", [])
            both = both or len(items) == 2
            confirmed += [item for item in items if item["confirm"]]
    contract = simulator.market.contract(BYBIT, "BTCUSDT")
    opens = [item["start"] for item in confirmed]
    assert opens == [opens[0] + i * MINUTE_MS for i in range(5)]
    for item in confirmed:
        bar = simulator.market.kline(contract, item["start"])
        assert item["volume"] == contract.quantity(bar.volume)
        assert Decimal(item["high"]) == Decimal(contract.price(bar.high))
    assert both, "one of four closing frames opens the next bar too"


@pytest.mark.parametrize(
    ("category", "args", "words"),
    [
        ("spot", [f"kline.{minutes}.BTCUSDT" for minutes in range(11)], "args size >10"),
        ("linear", ["tickers.BTCUSDT", "tickers.NOPEUSDT"], "Invalid symbol :[tickers.NOPEUSDT]"),
        ("linear", ["kline.7.BTCUSDT"], "error:handler not found,topic:kline.7.BTCUSDT"),
        ("linear", ["kline.1.ETHUSDT"], "error:already subscribed,topic:kline.1.ETHUSDT"),
    ],
)  # fmt: skip
async def test_one_bad_topic_costs_the_whole_request(
    simulator: Simulator, session: ClientSession, category: str, args: list[str], words: str
) -> None:
    async with session.ws_connect(f"{simulator.ws_url}/v5/public/{category}") as socket:
        await socket.send_json({"req_id": "a", "op": "subscribe", "args": ["kline.1.ETHUSDT"]})
        await socket.send_json({"req_id": "b", "op": "subscribe", "args": args})
        refusal = await first_where(socket, lambda m: m.get("req_id") == "b")
        assert (refusal["success"], refusal["ret_msg"]) == (False, words)
        await socket.send_json({"op": "ping"})
        await first_where(socket, lambda m: m.get("op") == "ping")
        for _ in range(5):
            assert (await receive(socket)).get("topic") == "kline.1.ETHUSDT"


async def test_a_client_that_says_nothing_is_cut_off(session: ClientSession) -> None:
    async with (
        Simulator(clock=Clock(speed=600), bybit_idle_s=60) as simulator,
        session.ws_connect(f"{simulator.ws_url}/v5/public/linear") as socket,
    ):
        await socket.send_json({"op": "ping"})
        while (message := await socket.receive(timeout=5)).type is WSMsgType.TEXT:
            pass
        assert message.type is WSMsgType.CLOSE
