"""REST answers, damaged: right rows or an error of the tree, and an end in any case."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.backoff import LONGEST_S, retry_after_s
from ingest.budget import Budgets
from ingest.clock import Clock
from ingest.exchanges.binance_futures_rest import BinanceFuturesRest, parse_klines
from ingest.exchanges.bybit_rest import BAN_S, BybitRest, parse_settlements, refusal
from ingest.exchanges.rest_base import DAY_MS, ExchangeRest
from ingest.rest import Answer
from marketdata.errors import BadMessage, ExchangeUnavailable, MarketDataError, RateLimited
from marketdata.pairs import Catalogue, binance_futures_markets
from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.feeds import market
from tests.fuzz.mutation import Samples, damaged_json, fuzzed
from tests.fuzz.sound import assert_sound

SAMPLES = json.loads((Path(__file__).parents[1] / "exchange_samples.json").read_text())
NOW_MS = 1_791_383_400_000
START_MS = 1_791_382_860_000
"""A whole number of 3-minute candles, nine minutes ago."""
MOST_CALLS = 50


def minutes(step_ms: int, prices: int, *, text: bool) -> list[list[object]]:
    times = range(START_MS, NOW_MS, step_ms)
    return [[str(time) if text else time, *(["17.5"] * prices)] for time in times]


def binance_answers() -> Samples:
    klines = [
        [*row, row[0] + 59_999, "302.75", 17, "1", "2", "0"]  # type: ignore[operator]
        for row in minutes(MINUTE_MS, 5, text=False)
    ]
    marks = minutes(CANDLE_MS, 4, text=False)
    settled = [
        {"symbol": "BTCUSDT", "fundingTime": START_MS + n * MINUTE_MS, "fundingRate": "-0.0001"}
        for n in range(5)
    ]
    time = {"serverTime": NOW_MS}
    volumes = [{"symbol": "BTCUSDT", "quoteVolume": "5.5"}]
    return Samples([klines, marks, settled, time, volumes, SAMPLES["C7"], SAMPLES["C10"]])


def bybit_answers() -> Samples:
    history = [
        {"symbol": "BTCUSDT", "fundingRate": "0.0001", "fundingRateTimestamp": str(START_MS)}
    ]
    lists: list[list[Any]] = [
        minutes(MINUTE_MS, 6, text=True),
        minutes(CANDLE_MS, 4, text=True),
        history,
        SAMPLES["B15"]["result"]["list"],
        [{"symbol": "BTCUSDT", "turnover24h": "7"}],
    ]
    answers = [{"retCode": 0, "result": {"list": rows}, "time": NOW_MS} for rows in lists]
    return Samples([*answers, SAMPLES["B17"], SAMPLES["B15"] | {"time": NOW_MS}])


class OneAnswer:
    """A client that is told the same whatever it asks; an endless questioner is found out."""

    def __init__(self, body: object, exchange: str, headers: Mapping[str, str]) -> None:
        self.answer = Answer(body, headers, NOW_MS - 50, NOW_MS)
        self.calls = 0
        self._exchange = exchange

    async def get(self, *_: object, **__: object) -> Answer:
        self.calls += 1
        assert self.calls <= MOST_CALLS, "asked for ever"
        error = refusal(self.answer) if self._exchange == "BYBIT" else None
        if error is not None:
            raise error
        return self.answer


class Now(Clock):
    """Stands where the samples end."""

    def now_ms(self) -> int:
        return NOW_MS


CLIENTS: dict[str, Callable[..., Any]] = {
    "BINANCE_FUTURES": BinanceFuturesRest,
    "BYBIT": BybitRest,
}
ANSWERS = {"BINANCE_FUTURES": binance_answers(), "BYBIT": bybit_answers()}
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "X-Bapi-Limit-Reset-Timestamp": st.sampled_from(["", "1", "9" * 30, "9" * 5_000, "٣", "-1"])
    },
)


async def rows_of(pages: AsyncIterator[Any]) -> list[Any]:
    return [row async for page in pages for row in getattr(page, "rows", page)]


async def ask(rest: ExchangeRest, exchange: str) -> int:
    """Make every call; how many were understood. Anything but rows and our own errors is raised."""
    pair = market("BTC/USDT:USDT", exchange=exchange)
    span = START_MS, NOW_MS
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: rows_of(rest.minutes(pair, *span)),
        lambda: rows_of(rest.mark_candles(pair, *span)),
        lambda: rows_of(rest.settlements(pair, *span)),
        rest.server_ms,
        rest.intervals,
        rest.volumes,
        rest.catalogue,
    ]
    understood = 0
    for call in calls:
        rest.client.calls = 0  # type: ignore[attr-defined]
        try:
            found = await call()
            if call == rest.catalogue:
                found = rest.markets(found)
        except MarketDataError:
            continue
        understood += 1
        assert_right(found, exchange)
    return understood


def assert_right(found: Any, exchange: str) -> None:
    if isinstance(found, list):
        for row in found:
            assert_sound(row, NOW_MS)
            assert (row.exchange, row.symbol) == (exchange, "BTC/USDT:USDT")
            opened_ms = getattr(row, "minute_ms", None) or row.time
            assert START_MS <= opened_ms < NOW_MS, "of another time than was asked for"
    elif isinstance(found, dict) and "symbols" not in found and "linear" not in found:
        assert all(0 <= number < float("inf") for number in found.values())
    elif isinstance(found, Catalogue):
        for known in found.markets:
            assert known.pair.isprintable()
            assert not set(known.pair) & set(" \\")
    elif isinstance(found, int):
        assert 0 < found < NOW_MS + DAY_MS


@pytest.mark.parametrize("exchange", ANSWERS)
async def test_every_whole_answer_is_understood_by_somebody(exchange: str) -> None:
    for body in ANSWERS[exchange]:
        rest = CLIENTS[exchange](Budgets(), Now())
        rest.client = OneAnswer(body, exchange, {})
        limited = isinstance(body, dict) and body.get("retCode") == 10_006
        assert bool(await ask(rest, exchange)) is not limited


@pytest.mark.parametrize("exchange", ANSWERS)
def test_a_damaged_answer_gives_right_rows_or_an_error(exchange: str) -> None:
    bad = 0

    @fuzzed(250)
    @given(damaged_json(ANSWERS[exchange]), HEADERS)
    def check(raw: bytes, headers: dict[str, str]) -> None:
        nonlocal bad
        try:
            body = orjson.loads(raw)  # as the client does
        except orjson.JSONDecodeError:
            bad += 1
            return
        rest = CLIENTS[exchange](Budgets(), Now())
        rest.client = OneAnswer(body, exchange, headers)
        bad += not asyncio.run(ask(rest, exchange))

    check()
    assert bad > 20, "damage that nobody notices proves nothing"


@pytest.mark.parametrize("exchange", ANSWERS)
async def test_full_pages_that_repeat_themselves_are_refused_and_not_asked_for_ever(
    exchange: str,
) -> None:
    rest = CLIENTS[exchange](Budgets(), Now())
    if exchange == "BYBIT":
        row: dict[str, object] = {"fundingRate": "0.1", "fundingRateTimestamp": str(START_MS)}
        body: object = {"retCode": 0, "result": {"list": [row] * 200}, "time": NOW_MS}
    else:
        body = [{"fundingTime": START_MS + n * 500, "fundingRate": "0.1"} for n in range(1_000)]
    rest.client = OneAnswer(body, exchange, {})
    with pytest.raises(BadMessage, match="has a row of"):
        await rows_of(
            rest.settlements(market("BTC/USDT:USDT", exchange=exchange), START_MS, NOW_MS)
        )


BINANCE_ROW = [START_MS, "1", "1", "1", "1", "1", START_MS + 59_999, "1", 1]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, -MINUTE_MS),
        (0, True),
        (1, "1e400"),
        (1, "1e-400"),
        (2, "sNaN"),
        (4, "9" * 5_000),
        (5, "1E+999999"),
        (8, -4),
        (8, True),
        (8, 2**63),
    ],
)
def test_a_number_that_no_store_takes_makes_a_bad_minute(place: int, value: object) -> None:
    row: list[object] = [*BINANCE_ROW]
    row[place] = value
    pair = market("BTC/USDT:USDT")
    assert parse_klines([BINANCE_ROW], pair, NOW_MS)
    with pytest.raises(BadMessage) as raised:
        parse_klines([row], pair, NOW_MS)
    assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize("text", ["9" * 30, "9" * 5_000, "-1", "²"])
def test_a_time_that_is_none_makes_a_bad_settlement(text: str) -> None:
    rate: dict[str, object] = {"fundingRate": "0.1", "fundingRateTimestamp": text}
    with pytest.raises(BadMessage):
        parse_settlements([rate], market("BTC/USDT:USDT", exchange="BYBIT"))


@pytest.mark.parametrize("code", [[], {}, "10006", 1.5])
def test_a_code_that_is_no_number_is_no_refusal(code: object) -> None:
    assert isinstance(refusal(Answer({"retCode": code}, {}, 0, 0)), ExchangeUnavailable)


@pytest.mark.parametrize("reset", ["9" * 15, "9" * 5_000, "soon", "²"])
def test_a_limit_is_never_waited_for_longer_than_a_ban_lasts(reset: str) -> None:
    headers = {"X-Bapi-Limit-Reset-Timestamp": reset}
    limited = refusal(Answer({"retCode": 10_006, "time": NOW_MS}, headers, 0, NOW_MS))
    assert isinstance(limited, RateLimited)
    assert limited.retry_after_s is not None
    assert limited.retry_after_s <= BAN_S


@pytest.mark.parametrize("header", ["9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_nobody_is_banned_for_years(header: str) -> None:
    assert retry_after_s(header, NOW_MS) == LONGEST_S


DATED = {
    "symbol": "X_1", "pair": "X", "contractType": "CURRENT_QUARTER", "baseAsset": "A",
    "quoteAsset": "B", "marginAsset": "B",
}  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        5,
        DATED | {"deliveryDate": 10**18},
        DATED | {"deliveryDate": "9" * 5_000},
        DATED | {"contractType": "PERPETUAL", "baseAsset": "A\nB"},
        DATED | {"contractType": "PERPETUAL", "symbol": "A\\"},
    ],
)
def test_a_market_that_makes_no_sense_is_set_aside(row: object) -> None:
    catalogue = binance_futures_markets({"symbols": [row]})
    assert catalogue.markets == ()
    assert len(catalogue.quarantined) == 1
