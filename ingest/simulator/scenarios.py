"""Named plays of timed faults, for demos, soak runs and the reliability figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple, get_args

from ingest.simulator.faults import (
    Close,
    CloseNew,
    ClosingKline,
    Delist,
    Exchange,
    Fault,
    FundingInterval,
    HaltTrading,
    Inject,
    Lifetime,
    ListNew,
    Maintenance,
    NoEmptyRows,
    Notice,
    Offline,
    RefuseHandshakes,
    Rename,
    RestDown,
    RestLimited,
    ReviseMinute,
    Silence,
    Skew,
    Stall,
)

FIVE_MINUTES_S = 300.0
HOUR_S = 3_600.0
EXCHANGES: tuple[Exchange, ...] = get_args(Exchange)


class Step(NamedTuple):
    """A fault `at_s` seconds after the start, then again every `every_s`."""

    at_s: float
    fault: Fault
    every_s: float | None = None


def _astray() -> Iterator[Step]:
    """BTCUSDT's closing klines, one way after the other, over and over."""
    for at_s, action in ((30, "drop"), (90, "delay"), (150, "duplicate"), (210, "reorder")):
        for exchange in EXCHANGES:
            fault = {"exchange": exchange, "id": "BTCUSDT", "action": action}
            once = {"market": "perpetual", "delay_s": 20, "times": 1}
            yield Step(at_s, ClosingKline.model_validate(fault | once), FIVE_MINUTES_S)
    for exchange in EXCHANGES:
        yield Step(270, ReviseMinute(exchange=exchange, id="BTCUSDT"), FIVE_MINUTES_S)


def _refusing(status: Literal[403, 418, 429] | None) -> tuple[Step, ...]:
    """Connections end, and new ones are refused for five minutes."""
    refusal = RefuseHandshakes(status=status, seconds=FIVE_MINUTES_S)
    steps = (Step(60, refusal), Step(60, Close(code=1006)))
    if status is None:
        return steps
    return (*steps, Step(60, RestLimited(status=status, seconds=FIVE_MINUTES_S)))


SCENARIOS: Mapping[str, tuple[Step, ...]] = {
    "calm": (),
    "flaky": (
        Step(40, ClosingKline(action="drop", times=3), every_s=180),
        Step(60, Close(code=1001), every_s=240),
        Step(90, Inject(text='{"e":"unheardOf"}'), every_s=120),
        Step(110, ClosingKline(action="delay", delay_s=20, times=3), every_s=180),
        Step(130, RestDown(how="unavailable", seconds=15), every_s=300),
        Step(180, Close(code=1006), every_s=300),
        Step(182, RefuseHandshakes(status=503, seconds=5), every_s=300),
        Step(200, RestLimited(status=429, retry_after_s=5, times=3), every_s=300),
    ),
    "rest_down": (Step(30, RestDown(how="unavailable", seconds=300)),),
    "astray": tuple(_astray()),
    "silent_pair": (Step(60, Silence(id="BTCUSDT", seconds=120), every_s=600),),
    "silent_connection": (Step(60, Stall(), every_s=300),),
    "half_open": (Step(60, Stall(half_open=True), every_s=300),),
    "closes": (
        Step(60, Close(code=1000), every_s=300),
        Step(120, Close(code=1001), every_s=300),
        Step(180, Close(code=1006, reset=False), every_s=300),
        Step(240, Close(code=1006), every_s=300),
    ),
    "closes_at_once": (
        Step(60, CloseNew(code=1000, seconds=FIVE_MINUTES_S)),
        Step(60, Close(code=1000)),
    ),
    "refuses": _refusing(None),
    "answers_403": _refusing(403),
    "answers_418": _refusing(418),
    "answers_429": _refusing(429),
    "offline": (Step(60, Offline(seconds=HOUR_S)),),
    "daily_cut": (
        Step(0, Lifetime(age_s=300)),
        Step(240, Notice(cut_after_s=60), every_s=600),
    ),
    "dead_market": (Step(30, HaltTrading(minutes=60)),),
    "dead_market_no_rows": (Step(0, NoEmptyRows()), Step(30, HaltTrading(minutes=60))),
    "maintenance": (Step(60, Maintenance(seconds=1_800)),),
    "listings": (
        Step(60, Delist(exchange="BINANCE_FUTURES", id="SOLUSDT", gone_after_s=300)),
        Step(60, ListNew(exchange="BINANCE_FUTURES", base="NEWCOIN")),
        Step(60, Rename(exchange="BINANCE_FUTURES", id="EOSUSDT", base="VAULTA")),
        Step(60, Delist(exchange="BYBIT", id="SOLUSDT", market="perpetual", gone_after_s=300)),
        Step(60, ListNew(exchange="BYBIT", base="NEWCOIN")),
        Step(60, Rename(exchange="BYBIT", id="EOSUSDT", base="VAULTA")),
    ),
    "funding_interval": (
        Step(60, FundingInterval(exchange="BINANCE_FUTURES", id="BTCUSDT", hours=4)),
        Step(60, FundingInterval(exchange="BYBIT", id="BTCUSDT", hours=4)),
    ),
    "skewed": (
        Step(0, Skew(exchange="BINANCE_FUTURES", skew_ms=300_000)),
        Step(0, Skew(exchange="BYBIT", skew_ms=-120_000)),
    ),
}
