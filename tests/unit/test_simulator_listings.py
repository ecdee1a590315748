"""Contracts that come, go and change, and minutes without trades: the truth afterwards."""

from __future__ import annotations

import pytest

from ingest.simulator.faults import (
    Delist,
    FaultBoard,
    FundingInterval,
    ListNew,
    Relisting,
    Rename,
    RestDown,
    Skew,
)
from ingest.simulator.halts import Halt
from ingest.simulator.listings import planned
from ingest.simulator.market import AS_OF_MS, HOUR_MS, Market
from ingest.simulator.universe import BINANCE, BYBIT
from marketdata.errors import UnknownPair

MINUTE_MS = 60_000
NOW_MS = AS_OF_MS + 30_000


def after(fault: Relisting, until_ms: int = 2**60) -> Market:
    """A market in which a fault has come true, as far as it has until then."""
    market = Market()
    for change in planned(market, fault, NOW_MS):
        if change.at_ms <= until_ms:
            change.apply()
    return market


def test_without_trades_every_bar_is_flat_however_it_is_asked() -> None:
    market, calm = Market(), Market()
    first = AS_OF_MS // MINUTE_MS
    market.halt(Halt(first, first + 90, BINANCE))
    contract, same = (m.contract(BINANCE, "BTCUSDT") for m in (market, calm))
    other = market.contract(BYBIT, "BTCUSDT")
    start_ms, end_ms = AS_OF_MS - 6 * MINUTE_MS, AS_OF_MS + 96 * MINUTE_MS
    for interval_ms in (MINUTE_MS, 3 * MINUTE_MS):
        bars = market.klines(contract, interval_ms, start_ms, end_ms, end_ms)
        each = [market.kline(contract, bar.open_ms, interval_ms) for bar in bars]
        assert bars == each
        truth = calm.klines(same, interval_ms, start_ms, end_ms, end_ms)
        close = next(bar.close for bar in reversed(bars) if bar.open_ms < AS_OF_MS)
        for bar, usual in zip(bars, truth, strict=True):
            if AS_OF_MS <= bar.open_ms < AS_OF_MS + 90 * MINUTE_MS:
                assert bar[2:] == (close, close, close, close, 0, 0, 0, 0, 0)
            else:
                assert bar == usual
    assert market.last_price(contract, AS_OF_MS + 80 * MINUTE_MS) == close
    assert not market.traded(contract, AS_OF_MS, AS_OF_MS + 90 * MINUTE_MS)
    assert market.mark(contract, AS_OF_MS + 80 * MINUTE_MS) == calm.mark(same, AS_OF_MS + 4_800_000)
    assert market.kline(other, AS_OF_MS).trades, "another exchange trades on"


def test_a_delisted_contract_ends_then_is_gone_and_its_past_stays() -> None:
    fault = Delist(exchange=BINANCE, id="SOLUSDT", gone_after_s=300)
    end_ms = AS_OF_MS + MINUTE_MS
    market, calm = after(fault, end_ms), Market()
    contract = market.contract(BINANCE, "SOLUSDT")
    assert (contract.status, contract.expiry_ms, contract.silent) == ("SETTLING", end_ms, True)
    query = (MINUTE_MS, AS_OF_MS - HOUR_MS, AS_OF_MS + HOUR_MS, AS_OF_MS + HOUR_MS)
    usual = calm.klines(calm.contract(BINANCE, "SOLUSDT"), *query)
    assert market.klines(contract, *query) == [bar for bar in usual if bar.open_ms < end_ms]
    gone = after(fault)
    with pytest.raises(UnknownPair):
        gone.contract(BINANCE, "SOLUSDT")
    assert gone.contract(BYBIT, "SOLUSDT").active


@pytest.mark.parametrize("exchange", [BINANCE, BYBIT])
def test_a_new_contract_has_no_past(exchange: str) -> None:
    market = after(ListNew.model_validate({"exchange": exchange, "base": "NEW", "price": 2.5}))
    contract = market.contract(exchange, "NEWUSDT")
    hour = (MINUTE_MS, AS_OF_MS - HOUR_MS, AS_OF_MS + HOUR_MS, AS_OF_MS + HOUR_MS)
    bars = market.klines(contract, *hour)
    assert bars[0].open_ms == contract.listed_ms == AS_OF_MS + MINUTE_MS
    assert all(bar.trades for bar in bars)
    assert market.day(contract, AS_OF_MS).trades == 0
    assert market.settled(contract, 0, AS_OF_MS) == []
    assert market.funding(contract, AS_OF_MS + HOUR_MS).interval_hours == 4


def test_a_renamed_contract_follows_the_same_price() -> None:
    market = after(Rename(exchange=BINANCE, id="EOSUSDT", base="VAULTA"))
    with pytest.raises(UnknownPair):
        market.contract(BINANCE, "EOSUSDT")
    contract = market.contract(BINANCE, "VAULTAUSDT")
    old = Market().contract(BINANCE, "EOSUSDT")
    at_ms = AS_OF_MS + HOUR_MS
    new_price, old_price = (Market().last_price(c, at_ms) for c in (contract, old))
    assert new_price == pytest.approx(old_price, rel=0.01)


@pytest.mark.parametrize(
    "fault",
    [
        ListNew(exchange=BINANCE, base="BTC"),
        Rename(exchange=BINANCE, id="EOSUSDT", base="BTC"),
        Delist(exchange=BINANCE, id="NOPEUSDT"),
    ],
)
def test_what_can_not_change_is_told_and_changes_nothing(fault: Relisting) -> None:
    market = Market()
    version = market.version
    with pytest.raises((ValueError, UnknownPair)):
        list(planned(market, fault, NOW_MS))
    assert market.version == version
    contract = market.contract(BINANCE, "EOSUSDT")
    assert market.kline(contract, AS_OF_MS + 10 * MINUTE_MS).trades, "nothing was halted"


@pytest.mark.parametrize("hours", [1, 2, 4])
def test_an_interval_changes_with_a_settlement_and_only_the_future(hours: int) -> None:
    fault = FundingInterval.model_validate({"exchange": BINANCE, "id": "BTCUSDT", "hours": hours})
    [change] = planned(Market(), fault, NOW_MS)
    market, calm = after(fault), Market()
    contract, same = market.contract(BINANCE, "BTCUSDT"), calm.contract(BINANCE, "BTCUSDT")
    settled_ms = change.at_ms
    assert settled_ms == (NOW_MS // (8 * HOUR_MS) + 1) * 8 * HOUR_MS
    before = (settled_ms - 48 * HOUR_MS, settled_ms)
    assert market.settled(contract, *before) == calm.settled(same, *before)
    times = [time for time, _ in market.settled(contract, settled_ms + 1, settled_ms + 8 * HOUR_MS)]
    assert times == [settled_ms + n * hours * HOUR_MS for n in range(1, 8 // hours + 1)]
    last = market.funding(contract, settled_ms - MINUTE_MS)
    assert last == calm.funding(same, settled_ms - MINUTE_MS)
    first = market.funding(contract, settled_ms)
    assert (first.next_ms, first.interval_hours) == (settled_ms + hours * HOUR_MS, hours)
    assert first.rate == pytest.approx(dict(market.settled(contract, *before))[settled_ms], abs=50)
    ends = market.funding(contract, first.next_ms - MINUTE_MS)
    assert (first.next_ms, ends.rate) in market.settled(contract, *(first.next_ms,) * 2)


def test_a_fault_ends_by_the_simulators_clock_when_the_exchanges_is_wrong() -> None:
    board = FaultBoard()
    board.add(Skew(exchange=BYBIT, skew_ms=-600_000), 0)
    board.add(RestDown(seconds=10), 0)
    assert board.skew_ms(BYBIT) == -600_000
    assert board.take(RestDown, BYBIT, 9_999 - 600_000)
    assert board.take(RestDown, BINANCE, 9_999)
    assert board.take(RestDown, BYBIT, 10_000 - 600_000) is None
