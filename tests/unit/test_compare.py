"""Comparing what came by stream with what REST says."""

import json
from decimal import Decimal

import pytest

from ingest.candles import build_candle
from ingest.compare import Result, Said, compare_candles, compare_funding, compare_mark
from ingest.compare_report import WORST, Report
from ingest.model import Kline
from marketdata.schema import CANDLE_MS, MINUTE_MS, Last

NOW_MS = 1_760_000_040_000
NEXT_MS = NOW_MS + 3_600_000
PAIR = "BTC/USDT:USDT"


def last(event_ms=NOW_MS, *, mark=100.0, rate=1e-4, next_ms=NEXT_MS):
    return Last(
        "X", PAIR, mark_price=mark, mark_event_ms=event_ms, funding_rate=rate,
        next_funding_ms=next_ms, funding_event_ms=event_ms,
    )  # fmt: skip


def said(*, mark=100.0, rate=1e-4, next_ms=NEXT_MS, time_ms=NOW_MS):
    return Said(time_ms, mark, rate, next_ms)


@pytest.mark.parametrize(
    ("before", "after", "theirs", "verdict"),
    [
        (100.0, 100.0, 100.01, "same"),
        (100.0, 100.0, 100.05, "differs"),
        (100.0, 101.0, 100.4, "same"),
        (100.0, 101.0, 101.9, "same"),
        (100.0, 101.0, 102.5, "differs"),
        (100.0, 100.0, None, "skipped"),
    ],
)
def test_a_mark_differs_beyond_the_streams_own_movement(before, after, theirs, verdict):
    result = compare_mark(PAIR, last(mark=before), last(mark=after), said(mark=theirs))
    assert result.verdict == verdict


def test_a_mark_of_another_time_may_have_moved_meanwhile():
    earlier = last(NOW_MS - 24_000)
    assert compare_mark(PAIR, earlier, earlier, said(mark=100.09)).verdict == "same"
    assert compare_mark(PAIR, earlier, earlier, said(mark=100.11)).verdict == "differs"


def test_a_stream_that_has_nothing_or_is_late_differs():
    assert compare_mark(PAIR, None, None, said()).what == "missing"
    assert compare_funding(PAIR, None, None, said()).what == "missing"
    old = last(NOW_MS - 61_000)
    assert compare_mark(PAIR, old, old, said()).what == "late by 61 s"
    assert compare_funding(PAIR, old, old, said()).what == "late by 61 s"


def test_funding_is_compared_exactly_with_the_stream_before_and_after():
    assert (
        compare_funding(PAIR, last(rate=1e-4), last(rate=2e-4), said(rate=1e-4)).verdict == "same"
    )
    assert (
        compare_funding(PAIR, last(rate=1e-4), last(rate=2e-4), said(rate=2e-4)).verdict == "same"
    )
    other = compare_funding(PAIR, last(rate=1e-4), last(rate=2e-4), said(rate=1.5e-4))
    assert (other.verdict, other.what) == ("differs", "another rate")


def test_another_next_settlement_differs_unless_one_is_about_to_happen():
    later = said(next_ms=NEXT_MS + 3_600_000)
    assert compare_funding(PAIR, last(), last(), later).what == "another next settlement"
    turn = last(NEXT_MS, next_ms=NEXT_MS)
    later = said(next_ms=NEXT_MS + 3_600_000, time_ms=NEXT_MS + 5_000)
    assert compare_funding(PAIR, turn, turn, later).verdict == "skipped"


def kline(n, price, volume="1.5"):
    return Kline(
        "X", PAIR, NOW_MS + n * MINUTE_MS, price, price + 1, price - 1, price,
        Decimal(volume), None, None, True, 0, "rest",
    )  # fmt: skip


KLINES = [kline(n, 100.0 + n) for n in range(-3, 6)]
CANDLES = [build_candle(KLINES[n : n + 3]) for n in (3, 6)]
END_MS = NOW_MS + 2 * CANDLE_MS


def candles(ours, theirs=KLINES):
    return compare_candles(PAIR, ours, theirs, NOW_MS, END_MS)


def test_equal_candles_are_the_same_and_another_value_is_named():
    assert [result.verdict for result in candles(CANDLES)] == ["same", "same"]
    changed = CANDLES[1]._replace(volume=4.0, source="stream", revision=3)
    assert candles([CANDLES[0], CANDLES[1]._replace(source="stream")])[1].verdict == "same"
    result = candles([CANDLES[0], changed])[1]
    assert (result.what, result.ours, result.theirs) == (
        "another volume", "volume 4.0", "volume 4.5",
    )  # fmt: skip
    assert (result.ours_ms, result.theirs_ms) == (NOW_MS + CANDLE_MS,) * 2


def test_a_missing_candle_differs_unless_the_pair_was_not_collected_yet():
    assert [result.what for result in candles(CANDLES[:1])] == ["", "missing"]
    assert [result.verdict for result in candles(CANDLES[1:])] == ["same"]
    assert {result.what for result in candles([])} == {"missing"}


def test_minutes_that_rest_has_no_row_for_are_flat():
    gone = [one for one in KLINES if one.minute_ms != NOW_MS + MINUTE_MS]
    flat = kline(1, 100.0, "0")._replace(open=100.0, high=100.0, low=100.0, trades=0)
    stored = build_candle([KLINES[3], flat, KLINES[5]])
    assert [result.verdict for result in candles([stored, CANDLES[1]], gone)] == ["same", "same"]


def test_without_any_minute_to_start_from_a_candle_is_not_judged():
    assert [result.verdict for result in candles(CANDLES, KLINES[6:])] == ["skipped", "same"]


def test_a_report_keeps_counts_and_the_worst(tmp_path):
    report = Report(NOW_MS, NOW_MS + 60_000, rounds=1)
    report.add("X", [Result("funding", "same", PAIR), Result("funding", "skipped", PAIR)])
    report.add(
        "X",
        [
            Result("mark_price", "differs", PAIR, f"no {n}", "1", "2", NOW_MS, None, float(n))
            for n in range(WORST + 5)
        ],
    )
    assert (report.compared, report.differing) == (WORST + 6, WORST + 5)
    report.write(tmp_path / "deep" / "report.json")
    document = json.loads((tmp_path / "deep" / "report.json").read_text())
    by_channel = {channel["channel"]: channel for channel in document["channels"]}
    assert by_channel["funding"]["skipped"] == 1
    worst = by_channel["mark_price"]["worst"]
    assert (len(worst), worst[0]["what"]) == (WORST, f"no {WORST + 4}")
    report.write(tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert f"| X | {PAIR} | mark_price | no {WORST + 4} | 1 | 2 |" in text
    assert [path.name for path in tmp_path.glob("*.tmp")] == []
