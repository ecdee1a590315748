"""What the exchanges answer over REST, as captured, becomes minutes and intervals."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ingest.exchanges import binance_futures_rest, bybit_rest
from ingest.exchanges.binance_futures_rest import klines_weight, page_rows, parse_intervals
from ingest.exchanges.rest_base import (
    HOUR_MS,
    Settled,
    interval_between,
    next_minute,
    settlement_rows,
)
from ingest.rest import Answer
from marketdata.errors import (
    BadMessage,
    ExchangeRefused,
    ExchangeUnavailable,
    MarketDataError,
    RateLimited,
)
from marketdata.pairs import Market

MINUTE_MS = 1_791_382_920_000

BINANCE_ROWS: list[object] = [
    [
        MINUTE_MS,
        "83137.90",
        "83155.70",
        "83082.90",
        "83084.90",
        "102.437",
        MINUTE_MS + 59_999,
        "8514292.61220",
        4409,
        "49.832",
        "4141805.93340",
        "0",
    ],
    [
        MINUTE_MS + 60_000,
        "83084.90",
        "83086.20",
        "83051.20",
        "83078.00",
        "10.541",
        MINUTE_MS + 119_999,
        "875630.54300",
        801,
        "4.063",
        "337524.14620",
        "0",
    ],
]
BYBIT_ROWS: list[object] = [
    [str(MINUTE_MS + 60_000), "17071", "17073", "17027", "17055.5", "268.611", "15.74462667"],
    [str(MINUTE_MS), "17071.5", "17071.5", "17061", "17071", "4.177", "0.24469757"],
]


def market(exchange: str) -> Market:
    return Market(
        exchange=exchange,
        kind="perpetual",
        id="BTCUSDT",
        pair="BTC/USDT:USDT",
        base="BTC",
        quote="USDT",
        settle="USDT",
        expiry_ms=None,
        active=True,
        listed_ms=None,
        interval_hours=8.0,
    )


BINANCE = market("BINANCE_FUTURES")
BYBIT = market("BYBIT")


def test_a_binance_minute_has_exact_volumes_and_the_server_s_time() -> None:
    (minute,) = binance_futures_rest.parse_klines(BINANCE_ROWS, BINANCE, MINUTE_MS + 119_999)
    assert minute.minute_ms == MINUTE_MS
    assert (minute.open, minute.high, minute.low, minute.close) == (
        83137.90,
        83155.70,
        83082.90,
        83084.90,
    )
    assert (minute.volume, minute.quote_volume) == (Decimal("102.437"), Decimal("8514292.61220"))
    assert minute.trades == 4409
    assert (minute.event_ms, minute.source, minute.closed) == (MINUTE_MS + 119_999, "rest", True)
    assert (minute.exchange, minute.symbol) == ("BINANCE_FUTURES", "BTC/USDT:USDT")


def test_bybit_minutes_come_newest_first_and_leave_oldest_first_without_trades() -> None:
    minutes = bybit_rest.parse_klines(BYBIT_ROWS, BYBIT, MINUTE_MS + 120_000)
    assert [minute.minute_ms for minute in minutes] == [MINUTE_MS, MINUTE_MS + 60_000]
    assert minutes[0].volume == Decimal("4.177")
    assert minutes[0].quote_volume == Decimal("0.24469757")
    assert {minute.trades for minute in minutes} == {None}


@pytest.mark.parametrize(
    ("server_ms", "count"),
    [(MINUTE_MS + 59_999, 0), (MINUTE_MS + 60_000, 1), (MINUTE_MS + 119_999, 1)],
)
def test_the_open_minute_is_left_out_until_the_server_s_clock_is_past_it(
    server_ms: int, count: int
) -> None:
    assert len(binance_futures_rest.parse_klines(BINANCE_ROWS, BINANCE, server_ms)) == count
    assert len(bybit_rest.parse_klines(BYBIT_ROWS, BYBIT, server_ms)) == count


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        [MINUTE_MS, "1", "1", "1", "1", "1"],
        [str(MINUTE_MS), "1", "1", "1", "1", "1", 0, "1", 1],
        [MINUTE_MS + 1, "1", "1", "1", "1", "1", 0, "1", 1],
        [MINUTE_MS, "NaN", "1", "1", "1", "1", 0, "1", 1],
        [MINUTE_MS, "", "1", "1", "1", "1", 0, "1", 1],
        [MINUTE_MS, "0", "1", "1", "1", "1", 0, "1", 1],
        [MINUTE_MS, 1.0, "1", "1", "1", "1", 0, "1", 1],
        [MINUTE_MS, "1", "1", "1", "1", "-1", 0, "1", 1],
        [MINUTE_MS, "1", "1", "1", "1", "1", 0, "Infinity", 1],
        [MINUTE_MS, "1", "1", "1", "1", "1", 0, "1", "many"],
    ],
)
def test_a_binance_row_that_is_no_minute_is_a_bad_message(row: object) -> None:
    with pytest.raises(BadMessage, match="BINANCE_FUTURES BTCUSDT"):
        binance_futures_rest.parse_klines([*BINANCE_ROWS, row], BINANCE, MINUTE_MS)


@pytest.mark.parametrize(
    "row",
    [
        [MINUTE_MS, "1", "1", "1", "1", "1", "1"],
        [str(MINUTE_MS), "1", "1", "1", "1"],
        [str(MINUTE_MS), "1", "1", "1", "1", "", "1"],
        ["soon", "1", "1", "1", "1", "1", "1"],
    ],
)
def test_a_bybit_row_that_is_no_minute_is_a_bad_message(row: object) -> None:
    with pytest.raises(BadMessage, match="BYBIT BTCUSDT"):
        bybit_rest.parse_klines([row], BYBIT, MINUTE_MS)


def test_an_answer_that_is_no_list_is_a_bad_message() -> None:
    with pytest.raises(BadMessage, match="expected a list"):
        binance_futures_rest.parse_klines({"code": 0}, BINANCE, MINUTE_MS)


def test_funding_intervals_are_hours_by_id() -> None:
    rows = [
        {"symbol": "币安人生USDT", "fundingIntervalHours": 4, "updateTime": 1760955417544},
        {"symbol": "BTCUSDT", "fundingIntervalHours": 8, "updateTime": None},
    ]
    assert parse_intervals(rows) == {"币安人生USDT": 4.0, "BTCUSDT": 8.0}


@pytest.mark.parametrize("rows", [{}, [{"symbol": "BTCUSDT"}], [{"fundingIntervalHours": 4}]])
def test_funding_intervals_without_hours_are_a_bad_message(rows: object) -> None:
    with pytest.raises(BadMessage, match="fundingInfo"):
        parse_intervals(rows)


def weight_as_documented(rows: int) -> int:
    """Bands exclude their top: [1,100) 1, [100,500) 2, [500,1000] 5, above 10."""
    return 1 if rows < 100 else 2 if rows < 500 else 5 if rows <= 1000 else 10


def weight_as_measured(rows: int) -> int:
    """Bands include their top: 100 costs 1, 500 costs 2, 1000 costs 5."""
    return 1 if rows <= 100 else 2 if rows <= 500 else 5 if rows <= 1000 else 10


@pytest.mark.parametrize("rows", [1, 99, 100, 101, 499, 500, 501, 1000, 1001, 1500])
def test_no_klines_call_weighs_more_than_it_is_counted_for(rows: int) -> None:
    assert klines_weight(rows) >= max(weight_as_documented(rows), weight_as_measured(rows))


@pytest.mark.parametrize(("minutes", "weight"), [(1, 1), (99, 1), (499, 2), (598, 3), (2_880, 12)])
def test_a_range_costs_as_little_weight_as_can_be(minutes: int, weight: int) -> None:
    spent = 0
    while minutes:
        rows = page_rows(minutes)
        spent, minutes = spent + klines_weight(rows), minutes - rows
    assert spent == weight


@pytest.mark.parametrize(("time_ms", "minute_ms"), [(0, 0), (1, 60_000), (60_000, 60_000)])
def test_a_range_starts_with_the_first_whole_minute(time_ms: int, minute_ms: int) -> None:
    assert next_minute(time_ms) == minute_ms


def bybit_answer(code: object, **headers: str) -> Answer:
    body = {"retCode": code, "retMsg": "Too many visits!", "result": {}, "time": 1672738134824}
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return Answer(body, named, 1672738134800, 1672738134850)


@pytest.mark.parametrize(
    ("answer", "error", "retry_after_s"),
    [
        (bybit_answer(10006, X_Bapi_Limit_Reset_Timestamp="1672738136324"), RateLimited, 1.5),
        (bybit_answer(10006), RateLimited, 5.0),
        (bybit_answer(10018), RateLimited, 600.0),
        (bybit_answer(10016), ExchangeUnavailable, None),
        (bybit_answer(None), ExchangeUnavailable, None),
        (bybit_answer(10001), ExchangeRefused, None),
    ],
)
def test_bybit_s_codes_in_an_http_200_are_errors_by_type(
    answer: Answer, error: type[MarketDataError], retry_after_s: float | None
) -> None:
    refusal = bybit_rest.refusal(answer)
    assert type(refusal) is error
    assert getattr(refusal, "retry_after_s", None) == retry_after_s
    assert "Too many visits!" in str(refusal)


def test_bybit_s_code_0_is_no_error() -> None:
    assert bybit_rest.refusal(bybit_answer(0)) is None


CANDLE_MS = 1_791_382_860_000
SETTLED_MS = 1_791_360_000_000


def test_mark_candles_of_both_exchanges_are_closed_ones_ascending() -> None:
    prices = ["83137.9", "83155.7", "83082.9", "83084.9"]
    later = CANDLE_MS + 180_000
    binance = [[CANDLE_MS, *prices, "0"], [later, *prices, "0"]]
    bybit = [[str(later), *prices], [str(CANDLE_MS), *prices]]
    for server_ms, opens in ((later + 179_999, [CANDLE_MS]), (later + 180_000, [CANDLE_MS, later])):
        for candles in (
            binance_futures_rest.parse_mark_candles(binance, BINANCE, server_ms),
            bybit_rest.parse_mark_candles(bybit, BYBIT, server_ms),
        ):
            assert [candle.time for candle in candles] == opens
            assert candles[0][3:] == (83137.9, 83155.7, 83082.9, 83084.9, "rest")


@pytest.mark.parametrize(
    "row",
    [
        None,
        [str(CANDLE_MS), "1", "1", "1", "1"],
        [CANDLE_MS + 60_000, "1", "1", "1", "1"],
        [CANDLE_MS, "1", "1", "1"],
        [CANDLE_MS, "1", "1", "0", "1"],
        [CANDLE_MS, "1", "1", "1", "NaN"],
    ],
)
def test_a_binance_row_that_is_no_mark_candle_is_a_bad_message(row: object) -> None:
    with pytest.raises(BadMessage, match="BINANCE_FUTURES BTCUSDT"):
        binance_futures_rest.parse_mark_candles([row], BINANCE, CANDLE_MS)


@pytest.mark.parametrize(
    "row", [None, [CANDLE_MS, "1", "1", "1", "1"], [str(CANDLE_MS), "1", "1", "1", "1", "1"]]
)
def test_a_bybit_row_that_is_no_mark_candle_is_a_bad_message(row: object) -> None:
    with pytest.raises(BadMessage, match="BYBIT BTCUSDT"):
        bybit_rest.parse_mark_candles([row], BYBIT, CANDLE_MS)


def test_mark_candles_that_are_no_list_are_a_bad_message() -> None:
    with pytest.raises(BadMessage, match="expected a list"):
        binance_futures_rest.parse_mark_candles({}, BINANCE, CANDLE_MS)


def test_binance_settlements_are_floored_to_the_minute_and_say_which_one_is_special() -> None:
    rows = [
        {"fundingTime": SETTLED_MS + 7, "fundingRate": "0.0004", "rateType": "Special"},
        {"fundingTime": SETTLED_MS + 2, "fundingRate": "-0.00003657", "rateType": "Regular"},
        {"fundingTime": SETTLED_MS - 8 * HOUR_MS, "fundingRate": "0.0001", "markPrice": ""},
    ]
    rates = binance_futures_rest.parse_settlements(rows, BINANCE)
    assert rates == [
        Settled(SETTLED_MS - 8 * HOUR_MS, 0.0001),
        Settled(SETTLED_MS, -0.00003657),
        Settled(SETTLED_MS, 0.0004, special=True),
    ]
    (row,) = settlement_rows(rates, BINANCE, SETTLED_MS)
    assert (row.time, row.rate, row.interval_hours) == (SETTLED_MS, -0.00003657, 8.0)
    assert row.special_rate == 0.0004


def test_bybit_settlements_come_newest_first_and_leave_oldest_first() -> None:
    rows: list[object] = [
        {"symbol": "BTCUSDT", "fundingRate": "0.0001", "fundingRateTimestamp": str(SETTLED_MS)},
        {"symbol": "BTCUSDT", "fundingRate": "-1e-5", "fundingRateTimestamp": str(SETTLED_MS - 1)},
    ]
    rates = bybit_rest.parse_settlements(rows, BYBIT)
    assert rates == [Settled(SETTLED_MS - 60_000, -1e-5), Settled(SETTLED_MS, 0.0001)]


@pytest.mark.parametrize(
    "row",
    [
        None,
        {"fundingRate": "0.0001"},
        {"fundingTime": str(SETTLED_MS), "fundingRate": "0.0001"},
        {"fundingTime": SETTLED_MS, "fundingRate": ""},
        {"fundingTime": SETTLED_MS, "fundingRate": "Infinity"},
        {"fundingTime": SETTLED_MS, "fundingRate": 0.0001},
        {"fundingTime": 0, "fundingRate": "0.0001"},
    ],
)
def test_a_binance_row_that_is_no_settlement_is_a_bad_message(row: object) -> None:
    with pytest.raises(BadMessage, match="BINANCE_FUTURES BTCUSDT"):
        binance_futures_rest.parse_settlements([row], BINANCE)


@pytest.mark.parametrize(
    "row",
    [
        None,
        {"fundingRateTimestamp": SETTLED_MS, "fundingRate": "0.0001"},
        {"fundingRateTimestamp": "soon", "fundingRate": "0.0001"},
        {"fundingRateTimestamp": str(SETTLED_MS), "fundingRate": ""},
    ],
)
def test_a_bybit_row_that_is_no_settlement_is_a_bad_message(row: object) -> None:
    with pytest.raises(BadMessage, match="BYBIT BTCUSDT"):
        bybit_rest.parse_settlements([row], BYBIT)


def test_a_special_rate_without_a_regular_one_is_left_out() -> None:
    assert settlement_rows([Settled(SETTLED_MS, 0.1, special=True)], BINANCE, 0) == []


@pytest.mark.parametrize(
    ("distance_hours", "hours"), [(4, 4.0), (1, 1.0), (8, 8.0), (16, 8.0), (0, 8.0)]
)
def test_the_interval_is_the_distance_unless_a_settlement_is_missing_between(
    distance_hours: int, hours: float
) -> None:
    before_ms = SETTLED_MS - distance_hours * HOUR_MS
    assert interval_between(before_ms, SETTLED_MS, BINANCE) == hours


def test_an_interval_changes_with_the_settlements() -> None:
    hours = (0, 8, 12, 16)
    rates = [Settled(SETTLED_MS + n * HOUR_MS, 0.0001) for n in hours]
    rows = settlement_rows(rates, BINANCE, 0, before_ms=SETTLED_MS - 8 * HOUR_MS)
    assert [row.interval_hours for row in rows] == [8.0, 8.0, 4.0, 4.0]
