"""The simulated exchanges' REST: shapes, order, weights and errors as the exchanges have them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from aiohttp import ClientSession
from yarl import URL

from ingest.clock import Clock
from ingest.simulator.server import Simulator
from ingest.simulator.universe import BINANCE, BYBIT
from tests.simulation import MINUTE_MS, SAMPLES, START_MS, Json, get, shape


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


# Binance


@pytest.mark.parametrize(
    ("path", "sample"),
    [
        ("premiumIndex?symbol=BTCUSDT", SAMPLES["C6"][0]),
        ("premiumIndex", SAMPLES["C6"]),
        ("fundingInfo", SAMPLES["C7"][2:]),
        ("fundingRate?symbol=BTCUSDT", SAMPLES["C8"]),
        ("klines?symbol=BTCUSDT&interval=3m", SAMPLES["C9"]),
    ],
)
async def test_binance_answers_have_the_sample_s_shape(
    simulator: Simulator, session: ClientSession, path: str, sample: object
) -> None:
    assert shape(await get(session, simulator, f"/fapi/v1/{path}")) == shape(sample)


async def test_exchange_info_has_at_least_the_sample_s_fields(
    simulator: Simulator, session: ClientSession
) -> None:
    info = await get(session, simulator, "/fapi/v1/exchangeInfo")
    rows = {row["symbol"]: row for row in info["symbols"]}
    for sample in SAMPLES["C10"]["symbols"]:
        row = rows[sample["symbol"]]
        assert sample.keys() <= row.keys()
        assert row["deliveryDate"] == sample["deliveryDate"]
        assert (row["contractType"], row["pair"]) == (sample["contractType"], sample["pair"])
        price_filter = {f["filterType"]: f for f in row["filters"]}["PRICE_FILTER"]
        assert price_filter["tickSize"] == "0.10"
    assert info["rateLimits"] == SAMPLES["C10"]["rateLimits"]
    assert rows["币安人生USDT"]["baseAsset"] == "币安人生"


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("", 500),
        ("&limit=3", 3),
        ("&startTime={start}", 31),
        ("&startTime={start}&limit=4", 4),
        ("&startTime={start}&endTime={end}", 11),
        ("&endTime={end}&limit=4", 4),
        ("&startTime={later}", 0),
    ],
)
async def test_klines_are_ascending_and_cut_as_asked(
    slow: Simulator, session: ClientSession, query: str, rows: int
) -> None:
    open_ms = START_MS - START_MS % MINUTE_MS
    start_ms, end_ms = open_ms - 30 * MINUTE_MS, open_ms - 20 * MINUTE_MS
    query = query.format(start=start_ms, end=end_ms, later=open_ms + MINUTE_MS)
    found = await get(session, slow, f"/fapi/v1/klines?symbol=ethusdt&interval=1m{query}")
    first_ms, last_ms = open_ms - (rows - 1) * MINUTE_MS, open_ms
    if "startTime" in query:
        first_ms, last_ms = start_ms, start_ms + (rows - 1) * MINUTE_MS
    elif "endTime" in query:
        first_ms, last_ms = end_ms - (rows - 1) * MINUTE_MS, end_ms
    assert [row[0] for row in found] == list(range(first_ms, last_ms + 1, MINUTE_MS))


async def test_weight_is_counted_by_rows_even_when_refused(
    slow: Simulator, session: ClientSession
) -> None:
    used = 0
    for query, weight, status in (
        ("symbol=BTCUSDT&interval=1m&limit=100", 1, 200),
        ("symbol=BTCUSDT&interval=1m&limit=499", 2, 200),
        ("symbol=BTCUSDT&interval=1m", 5, 200),
        ("symbol=BTCUSDT&interval=1m&limit=1500", 10, 200),
        ("symbol=BTCUSDT&interval=1m&limit=1501", 10, 400),
    ):
        async with session.get(f"{slow.url}/fapi/v1/klines?{query}") as response:
            assert response.status == status
            used += weight
            assert response.headers["X-MBX-USED-WEIGHT-1M"] == str(used)
    async with session.get(f"{slow.url}/fapi/v1/fundingInfo") as response:
        assert "X-MBX-USED-WEIGHT-1M" not in response.headers


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("symbol=NOPE&interval=1m", SAMPLES["C11"][0]),
        ("symbol=BTCUSDT&interval=1m&limit=1501", SAMPLES["C11"][1]),
        ("symbol=BTCUSDT&interval=1s", SAMPLES["C11"][2]),
    ],
)
async def test_binance_errors_have_their_codes(
    simulator: Simulator, session: ClientSession, query: str, error: Json
) -> None:
    assert await get(session, simulator, f"/fapi/v1/klines?{query}") == error


async def test_over_the_limit_comes_429_and_then_418(
    slow: Simulator, session: ClientSession
) -> None:
    slow.binance_rest.weight.limit = 20
    seen = []
    for _ in range(8):
        url = f"{slow.url}/fapi/v1/klines?symbol=BTCUSDT&interval=1m&limit=1500"
        async with session.get(url) as response:
            seen.append((response.status, response.headers.get("Retry-After")))
            body = await response.json()
    assert [status for status, _ in seen] == [200] * 2 + [429] * 5 + [418]
    assert seen[2][1] in ("9", "10")
    assert seen[-1][1] == "120"
    assert body["code"] == -1003
    assert "banned until" in body["msg"]


async def test_settled_rates_are_stamped_some_milliseconds_late(
    simulator: Simulator, session: ClientSession
) -> None:
    path = "/fapi/v1/fundingRate?symbol=SUIUSDT&limit=50"
    rows = await get(session, simulator, path)
    late = [row["fundingTime"] % (4 * 3_600_000) for row in rows]
    assert all(0 <= ms <= 15 for ms in late)
    assert len(set(late)) > 3
    contract = simulator.market.contract(BINANCE, "SUIUSDT")
    truth = simulator.market.settled(contract, 0, simulator.clock.now_ms())[-50:]
    assert [round(Decimal(row["fundingRate"]) * 10**8) for row in rows] == [r for _, r in truth]


# Bybit


@pytest.mark.parametrize(
    ("path", "sample"),
    [
        ("kline?category=linear&symbol=BTCUSDT&interval=1", "B12"),
        ("mark-price-kline?category=linear&symbol=BTCUSDT&interval=1", "B13"),
        ("funding/history?category=linear&symbol=BTCUSDT", "B14"),
        ("instruments-info?category=linear&limit=1", "B15"),
        ("tickers?category=linear&symbol=BTCUSDT", "B16"),
    ],
)
async def test_bybit_answers_have_the_sample_s_shape(
    simulator: Simulator, session: ClientSession, path: str, sample: str
) -> None:
    answer = await get(session, simulator, f"/v5/market/{path}")
    assert shape(answer) == shape(SAMPLES[sample])


async def test_bybit_klines_are_newest_first_with_the_open_bar(
    simulator: Simulator, session: ClientSession
) -> None:
    path = "/v5/market/kline?category=spot&symbol=BTCUSDT&interval=1"
    answer = await get(session, simulator, path)
    rows = answer["result"]["list"]
    opens = [int(row[0]) for row in rows]
    assert opens == sorted(opens, reverse=True)
    assert len(opens) == 200
    assert opens[0] + 2 * MINUTE_MS > simulator.clock.now_ms()


async def test_linear_instruments_come_in_pages_and_spot_ones_in_one(
    simulator: Simulator, session: ClientSession
) -> None:
    ids: list[str] = []
    cursor, pages = "", 0
    while pages == 0 or cursor:
        path = f"/v5/market/instruments-info?category=linear&limit=1000&cursor={cursor}"
        async with session.get(URL(f"{simulator.url}{path}", encoded=True)) as response:
            result = (await response.json())["result"]
        ids += [row["symbol"] for row in result["list"]]
        cursor = result["nextPageCursor"]
        pages += 1
        assert "&" not in cursor
    assert pages > 2
    assert ids == [c.id for c in simulator.market.listed(BYBIT, "perpetual", "future")]
    spot = await get(session, simulator, "/v5/market/instruments-info?category=spot&limit=1")
    assert len(spot["result"]["list"]) == len(simulator.market.listed(BYBIT, "spot"))


async def test_a_cursor_that_was_encoded_twice_is_refused(
    simulator: Simulator, session: ClientSession
) -> None:
    path = "/v5/market/instruments-info?category=linear&limit=5"
    cursor = (await get(session, simulator, path))["result"]["nextPageCursor"]
    async with session.get(f"{simulator.url}{path}", params={"cursor": cursor}) as response:
        assert (await response.json())["retCode"] == 10_001


@pytest.mark.parametrize(
    "path",
    [
        "funding/history?category=linear&symbol=BTCUSDT&startTime=1",
        "kline?category=linear&symbol=NOPE&interval=1",
        "kline?symbol=BTCUSDT&interval=1",
        "kline?category=linear&symbol=BTCUSDT&interval=1m",
    ],
)
async def test_bybit_errors_are_http_200_with_a_code(
    simulator: Simulator, session: ClientSession, path: str
) -> None:
    async with session.get(f"{simulator.url}/v5/market/{path}") as response:
        assert response.status == 200
        assert (await response.json())["retCode"] == 10_001


async def test_bybit_shuts_out_an_address_that_asks_too_much(
    slow: Simulator, session: ClientSession
) -> None:
    statuses = []
    for _ in range(602):
        async with session.get(f"{slow.url}/v5/market/time") as response:
            statuses.append(response.status)
            text = await response.text()
    assert statuses == [200] * 600 + [403] * 2
    assert text == "access too frequent"
