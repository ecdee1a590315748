"""The simulated market: the same for everyone who asks, exact, and like an exchange's."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.simulator.bars import Bar
from ingest.simulator.binance_streams import BinanceStreams
from ingest.simulator.bybit_streams import BybitStreams
from ingest.simulator.market import AS_OF_MS, HOUR_MS, Market
from ingest.simulator.universe import BINANCE, BYBIT, Contract
from marketdata.errors import UnknownPair

MINUTE_MS = 60_000
DAY_MS = 86_400_000
T0 = AS_OF_MS + 7 * MINUTE_MS

MARKET = Market(seed=3)
BITCOIN = MARKET.contract(BINANCE, "BTCUSDT")
THIN = MARKET.contract(BINANCE, "龙虾USDT")
CONTRACTS = [
    BITCOIN,
    THIN,
    MARKET.contract(BINANCE, "1000PEPEUSDT"),
    MARKET.contract(BYBIT, "BTCUSDT", "spot"),
    MARKET.contract(BYBIT, "SHIB1000USDT"),
]
contracts = st.sampled_from(CONTRACTS)
minutes = st.integers(T0 // MINUTE_MS - 3 * 1_440, T0 // MINUTE_MS + 1_440).map(
    lambda minute: minute * MINUTE_MS
)


# Deterministic


def test_the_same_seed_is_the_same_market_however_it_is_asked() -> None:
    again = Market(seed=3)
    contract = again.contract(BINANCE, "BTCUSDT")
    later_first = [again.kline(contract, T0 + i * MINUTE_MS) for i in (50, 3, 0)]
    assert later_first == [MARKET.kline(BITCOIN, T0 + i * MINUTE_MS) for i in (50, 3, 0)]
    assert again.mark(contract, T0) == MARKET.mark(BITCOIN, T0)
    assert again.funding(contract, T0) == MARKET.funding(BITCOIN, T0)


def test_another_seed_is_another_market() -> None:
    other = Market(seed=4)
    assert other.kline(other.contract(BINANCE, "BTCUSDT"), T0) != MARKET.kline(BITCOIN, T0)


def test_contracts_of_one_asset_keep_together_and_trade_apart() -> None:
    spot = MARKET.contract(BYBIT, "BTCUSDT", "spot")
    linear = MARKET.contract(BYBIT, "BTCUSDT")
    bars = [MARKET.kline(contract, T0) for contract in (BITCOIN, linear, spot)]
    assert len({bar.volume for bar in bars}) == 3
    assert max(bar.close for bar in bars) < min(bar.close for bar in bars) * 1.002


# Listed


def test_there_are_more_pairs_than_a_large_bot_wants() -> None:
    active = [c for c in MARKET.listed(BINANCE, "perpetual") if c.active and c.quote == "USDT"]
    assert len(active) >= 180
    assert len(MARKET.listed(BYBIT, "perpetual")) > 100
    assert len(MARKET.listed(BYBIT, "spot")) > 50


def test_the_names_that_break_naive_clients_are_listed() -> None:
    names = "币安人生USDT BTCUSDC BUSDT 4USDT 1INCHUSDT 1000PEPEUSDT BTCUSDT_261225 BTCUSDT_270326"
    for name in names.split():
        assert MARKET.contract(BINANCE, name).active
    assert MARKET.contract(BINANCE, "XAUUSDT").contract_type == "TRADIFI_PERPETUAL"
    assert MARKET.contract(BINANCE, "OMGUSDT").status == "SETTLING"
    assert MARKET.contract(BINANCE, "BTCUSD_PERP").coin_margined
    assert MARKET.contract(BYBIT, "BTCPERP").settle == "USDC"
    assert MARKET.contract(BYBIT, "BTCUSDT-25DEC26").kind == "future"
    assert MARKET.contract(BYBIT, "BTCUSDT").kind == "perpetual"
    assert MARKET.contract(BYBIT, "BTCUSDT", "spot").settle is None


def test_an_id_is_listed_once_for_each_kind() -> None:
    keys = [(c.exchange, c.kind, c.id) for c in MARKET.contracts]
    assert len(keys) == len(set(keys))


def test_the_quarters_roll_on_the_delivery_day() -> None:
    delivery_ms = 1_798_185_600_000  # 25 December 2026, 08:00 UTC
    before = Market(as_of_ms=delivery_ms - 1)
    after = Market(as_of_ms=delivery_ms)
    assert before.contract(BINANCE, "ETHUSDT_261225").expiry_ms == delivery_ms
    with pytest.raises(UnknownPair):
        after.contract(BINANCE, "ETHUSDT_261225")
    assert after.contract(BINANCE, "ETHUSDT_270326").contract_type == "CURRENT_QUARTER"


def test_intervals_of_one_four_and_eight_hours_occur() -> None:
    assert {c.interval_hours for c in MARKET.listed(BINANCE, "perpetual")} == {1, 4, 8}


# Klines


def recount(contract: Contract, start_ms: int, end_ms: int) -> tuple[Decimal, ...]:
    """Open, high, low, close, volume, quote volume, trades out of the trades' decimal strings."""
    trades = MARKET.traded(contract, start_ms, end_ms)
    prices = [Decimal(contract.price(trade.price)) for trade in trades]
    sizes = [Decimal(contract.quantity(trade.quantity)) for trade in trades]
    quote = sum((p * q for p, q in zip(prices, sizes, strict=True)), Decimal(0))
    volume = sum(sizes, Decimal(0))
    return prices[0], max(prices), min(prices), prices[-1], volume, quote, Decimal(len(trades))


def printed(contract: Contract, bar: Bar) -> tuple[Decimal, ...]:
    prices = (bar.open, bar.high, bar.low, bar.close)
    return (
        *(Decimal(contract.price(units)) for units in prices),
        Decimal(contract.quantity(bar.volume)),
        Decimal(contract.amount(bar.quote)),
        Decimal(bar.trades),
    )


@given(contract=contracts, open_ms=minutes, interval=st.sampled_from([1, 3, 5]))
@settings(max_examples=60, deadline=None)
def test_a_kline_is_the_exact_sum_of_its_trades(
    contract: Contract, open_ms: int, interval: int
) -> None:
    open_ms -= open_ms % (interval * MINUTE_MS)
    bar = MARKET.kline(contract, open_ms, interval * MINUTE_MS)
    if bar.trades:
        end_ms = open_ms + interval * MINUTE_MS
        assert printed(contract, bar) == recount(contract, open_ms, end_ms)


@given(contract=contracts, open_ms=minutes, seen=st.lists(st.integers(0, 180_000), min_size=2))
@settings(max_examples=60, deadline=None)
def test_a_growing_kline_only_grows_and_ends_as_the_closed_one(
    contract: Contract, open_ms: int, seen: list[int]
) -> None:
    open_ms -= open_ms % 180_000
    growing = [MARKET.kline(contract, open_ms, 180_000, open_ms + at) for at in sorted(seen)]
    traded = [bar for bar in growing if bar.trades]
    for earlier, later in pairwise(traded):
        assert earlier.open == later.open
        assert earlier.high <= later.high
        assert earlier.low >= later.low
        assert earlier.volume <= later.volume
    closed = MARKET.kline(contract, open_ms, 180_000)
    assert MARKET.kline(contract, open_ms, 180_000, open_ms + 180_000) == closed


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda c: c.id)
@pytest.mark.parametrize("interval_ms", [MINUTE_MS, 180_000, HOUR_MS])
def test_history_in_bulk_equals_bar_by_bar(contract: Contract, interval_ms: int) -> None:
    start_ms = T0 - T0 % interval_ms - 40 * interval_ms
    at_ms = T0 + 31_234
    bulk = MARKET.klines(contract, interval_ms, start_ms, at_ms, at_ms)
    assert bulk == [MARKET.kline(contract, bar.open_ms, interval_ms, at_ms) for bar in bulk]
    assert bulk[0].open_ms == start_ms
    assert bulk[-1].open_ms <= at_ms <= bulk[-1].close_ms


def test_a_minute_without_trades_is_flat_at_the_last_close_and_shapes_no_candle() -> None:
    bars = MARKET.klines(THIN, MINUTE_MS, T0 - DAY_MS, T0, T0)
    empty = [(before, bar) for before, bar in pairwise(bars) if not bar.trades]
    assert len(empty) > 300
    for before, bar in empty:
        assert bar.open == bar.high == bar.low == bar.close == before.close
        assert bar.volume == bar.quote == 0
    three = MARKET.klines(THIN, 180_000, bars[2].open_ms, T0, T0)
    for candle in three:
        inside = [b for b in bars if candle.open_ms <= b.open_ms < candle.open_ms + 180_000]
        traded = [b for b in inside if b.trades] or inside
        assert candle.open == traded[0].open
        assert candle.high == max(b.high for b in traded)
        assert candle.volume == sum(b.volume for b in inside)


def test_prices_are_on_the_tick_and_trades_in_order() -> None:
    trades = MARKET.traded(BITCOIN, T0, T0 + 10 * MINUTE_MS)
    assert len(trades) > 100
    assert all(trade.price % BITCOIN.tick == 0 and trade.quantity > 0 for trade in trades)
    assert [t.time_ms for t in trades] == sorted(t.time_ms for t in trades)
    assert [t.id for t in trades] == sorted({t.id for t in trades})


def test_nothing_before_the_listing_nor_after_the_delivery() -> None:
    settled = MARKET.contract(BINANCE, "OMGUSDT")
    assert settled.expiry_ms is not None
    assert MARKET.klines(settled, MINUTE_MS, T0 - HOUR_MS, T0, T0) == []
    last = MARKET.klines(settled, MINUTE_MS, settled.expiry_ms - HOUR_MS, T0, T0)
    assert len(last) == 60
    first = MARKET.klines(BITCOIN, MINUTE_MS, 0, BITCOIN.listed_ms + 2 * MINUTE_MS, T0)
    assert [bar.open_ms - BITCOIN.listed_ms for bar in first] == [0, MINUTE_MS]


def test_the_day_s_statistics_are_those_of_its_hours() -> None:
    day = MARKET.day(BITCOIN, T0)
    end_ms = T0 - T0 % HOUR_MS
    hours = MARKET.klines(BITCOIN, HOUR_MS, end_ms - DAY_MS, end_ms, end_ms)[:24]
    assert day.volume == sum(hour.volume for hour in hours)
    assert (day.open, day.high) == (hours[0].open, max(hour.high for hour in hours))


@pytest.mark.parametrize("contract", [BITCOIN, MARKET.contract(BINANCE, "ADAUSDT")])
def test_a_revised_minute_changes_wherever_it_is_asked(contract: Contract) -> None:
    market = Market(seed=3)
    contract = market.contract(contract.exchange, contract.id)
    before = market.kline(contract, T0)
    candle = market.kline(contract, T0 - T0 % 180_000, 180_000)
    after = market.revise(contract, T0)
    assert after.trades == before.trades + 1
    assert after.volume > before.volume
    assert after.high == before.high + contract.tick
    assert (after.open, after.close) == (before.open, before.close)
    assert market.klines(contract, MINUTE_MS, T0, T0 + 1, T0 + DAY_MS) == [after]
    revised = market.kline(contract, candle.open_ms, 180_000)
    assert revised.volume - candle.volume == after.volume - before.volume


def test_a_minute_without_trades_can_not_be_revised() -> None:
    empty = next(b for b in MARKET.klines(THIN, MINUTE_MS, T0 - DAY_MS, T0, T0) if not b.trades)
    with pytest.raises(ValueError, match="no trade in the minute"):
        MARKET.revise(THIN, empty.open_ms)


# Marks and funding


def test_a_mark_kline_is_made_of_the_marks_of_its_seconds() -> None:
    open_ms = T0 - T0 % 180_000
    [bar] = MARKET.mark_klines(BITCOIN, 180_000, open_ms, open_ms + 1, T0 + DAY_MS)
    marks = [MARKET.mark(BITCOIN, bar.open_ms + 1000 * second).price for second in range(180)]
    assert bar[1:] == (marks[0], max(marks), min(marks), marks[-1])
    now_ms = open_ms + 61_500
    [growing] = MARKET.mark_klines(BITCOIN, 180_000, open_ms, now_ms, now_ms)
    assert growing[1:] == (marks[0], max(marks[:62]), min(marks[:62]), marks[61])


def test_marks_stay_near_the_trades() -> None:
    for contract in CONTRACTS:
        for minute in range(0, 600, 60):
            at_ms = T0 + minute * MINUTE_MS
            mark = MARKET.mark(contract, at_ms)
            last = MARKET.last_price(contract, at_ms) * 10 ** (8 - contract.price_digits)
            assert abs(mark.price / last - 1) < 0.01
            assert mark.price != mark.index_price


@pytest.mark.parametrize("id", ["BTCUSDT", "ADAUSDT", "SUIUSDT", "TRBUSDT"])
def test_the_last_estimate_is_what_is_settled(id: str) -> None:
    contract = MARKET.contract(BINANCE, id)
    settlements = MARKET.settled(contract, T0 - DAY_MS, T0)
    assert contract.interval_hours is not None
    assert len(settlements) == 24 // contract.interval_hours
    for settled_ms, rate in settlements:
        shown = MARKET.funding(contract, settled_ms - 1)
        assert (shown.rate, shown.next_ms) == (rate, settled_ms)
        rolled = MARKET.funding(contract, settled_ms)
        assert (rolled.rate, rolled.next_ms) == (
            rate,
            settled_ms + contract.interval_hours * HOUR_MS,
        )


def test_the_estimate_moves_once_a_minute() -> None:
    rates = [MARKET.funding(BITCOIN, T0 + i * 10_000).rate for i in range(60)]
    assert 5 <= len(set(rates)) <= 11


# Streams


def test_a_kline_stream_closes_each_traded_minute_once_and_no_empty_one() -> None:
    streams = BinanceStreams(MARKET)
    stream = streams.find(f"{THIN.id.lower()}@kline_1m")
    assert stream is not None
    start_ms, end_ms = T0, T0 + 30 * MINUTE_MS
    pulses = range(start_ms + 250, end_ms + 1, 250)
    messages = [message for at_ms in pulses for message in streams.due(stream, at_ms)]
    traded = [b for b in MARKET.klines(THIN, MINUTE_MS, start_ms, end_ms, end_ms - 1) if b.trades]
    closing = [message.data for message in messages if message.closing]
    assert len(closing) == len(traded) > 3
    assert all(f'"t":{bar.open_ms},'.encode() in d for bar, d in zip(traded, closing, strict=True))
    assert len(messages) < 30 * 4


def test_linear_tickers_are_a_snapshot_and_what_changed_since() -> None:
    streams = BybitStreams(MARKET, "linear")
    topic = streams.find("tickers.BTCUSDT")
    merged = dict(_data(streams.first(topic, T0).data))
    for at_ms in range(T0 + 1_000, T0 + 61_000, 1_000):
        for message in streams.due(topic, at_ms):
            delta = dict(_data(message.data))
            del delta["symbol"]
            assert all(merged[name] != value for name, value in delta.items())
            merged |= delta
    assert merged == {"symbol": "BTCUSDT", **streams.ticker(topic.contract, T0 + 60_000)}


def test_the_cadence_of_pushes_is_a_setting() -> None:
    pulses = range(T0 + 250, T0 + 30_001, 250)
    slower = BinanceStreams(MARKET, kline_push_ms=1_000)
    stream = slower.find("btcusdt@kline_1m")
    assert stream is not None
    pushed = {at_ms for at_ms in pulses for _ in slower.due(stream, at_ms)}
    assert len(pushed) > 10
    assert all(at_ms % 1_000 == 0 for at_ms in pushed)
    faster = BybitStreams(MARKET, "linear", ticker_push_ms=250)
    topic = faster.find("tickers.BTCUSDT")
    pushed = {at_ms for at_ms in pulses for _ in faster.due(topic, at_ms)}
    assert {at_ms % 1_000 for at_ms in pushed} == {0, 250, 500, 750}


def _data(message: dict[str, object]) -> dict[str, object]:
    data = message["data"]
    assert isinstance(data, dict)
    return data
