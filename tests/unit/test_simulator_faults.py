"""The simulator's limits and faults: pure state, told the time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from ingest.simulator.faults import (
    FAULT,
    ClosingKline,
    Fault,
    FaultBoard,
    RefuseHandshakes,
    RestDown,
    Silence,
)
from ingest.simulator.limits import BlockingWindow, MinuteWeight
from ingest.simulator.market import Market
from ingest.simulator.scenarios import SCENARIOS
from ingest.simulator.universe import BINANCE, BYBIT

DOCS = Path(__file__).parents[2] / "docs" / "simulator.md"
MARKET = Market(seed=3)


def test_those_who_go_on_after_a_429_are_banned_and_longer_each_time() -> None:
    weight = MinuteWeight(limit=10)

    def until_banned(now_ms: int) -> int:
        for _ in range(20):
            verdict = weight.charge(10, now_ms)
            if verdict.status == 418:
                return verdict.retry_after_s
        raise AssertionError("never banned")

    assert weight.charge(10, 0).status == 200
    assert weight.charge(1, 20_000)[:2] == (429, 40)
    assert until_banned(21_000) == 120
    assert weight.charge(1, 140_999).status == 418
    assert weight.charge(1, 141_000).status == 200
    assert until_banned(150_000) == 240


def test_one_request_too_many_shuts_an_address_out_for_ten_minutes() -> None:
    window = BlockingWindow(limit=3, window_ms=5_000)
    assert [window.admit(0) for _ in range(4)] == [True, True, True, False]
    assert not window.admit(599_999)
    assert window.admit(600_000)


@pytest.mark.parametrize(
    ("fault", "still"),
    [
        (RestDown(), lambda board: board.take(RestDown, BYBIT, 10_000)),
        (RestDown(seconds=5), lambda board: board.take(RestDown, BYBIT, 4_999)),
        (RestDown(times=2), lambda board: board.take(RestDown, BYBIT, 0)),
        (RestDown(exchange=BYBIT), lambda board: board.take(RestDown, BYBIT, 0)),
    ],
)
def test_a_fault_is_in_force_until_it_ends(
    fault: RestDown, still: Callable[[FaultBoard], object]
) -> None:
    board = FaultBoard()
    number = board.add(fault, 0)
    assert still(board)
    if fault.seconds is not None:
        assert board.take(RestDown, BYBIT, 5_000) is None
    elif fault.times is not None:
        assert still(board)
        assert not still(board)
    elif fault.exchange is not None:
        assert board.take(RestDown, BINANCE, 0) is None
    else:
        assert board.remove(number)
        assert not still(board)


def test_a_fault_hits_only_what_it_names() -> None:
    board = FaultBoard()
    board.add(Silence(id="BTCUSDT", market="spot", stream="kline"), 0)
    spot = MARKET.contract(BYBIT, "BTCUSDT", "spot")
    linear = MARKET.contract(BYBIT, "BTCUSDT")
    assert board.silenced(BYBIT, spot, "spot:kline.1.BTCUSDT", 0)
    assert not board.silenced(BYBIT, spot, "spot:tickers.BTCUSDT", 0)
    assert not board.silenced(BYBIT, linear, "linear:kline.1.BTCUSDT", 0)
    assert board.take_on(ClosingKline, BYBIT, spot, 0) is None
    assert board.take(RefuseHandshakes, BYBIT, 0) is None


@pytest.mark.parametrize(
    "body",
    [
        '{"kind": "rest_dawn"}',
        '{"kind": "rest_down", "how": "sideways"}',
        '{"kind": "rest_down", "sconds": 5}',
        '{"kind": "silence", "seconds": -1}',
        '{"kind": "closing_kline"}',
        "[]",
    ],
)
def test_a_fault_that_nobody_knows_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        FAULT.validate_json(body)


@pytest.mark.parametrize("kind", get_args(get_args(Fault)[0]), ids=lambda kind: kind.__name__)
def test_every_fault_and_its_fields_are_in_the_docs(kind: type[BaseModel]) -> None:
    text = DOCS.read_text()
    assert f"`{kind.model_fields['kind'].default}`" in text
    for name in kind.model_fields:
        assert f"`{name}`" in text or f'"{name}"' in text


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_is_in_the_docs(scenario: str) -> None:
    assert f"`{scenario}`" in DOCS.read_text()
