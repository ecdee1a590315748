"""Timeframes, aggregation and filling, against what an exchange and Freqtrade would say."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marketdata.schema import CANDLE_MS, MINUTE_MS, Ohlcv
from readers import frames
from readers.timeframes import Timeframe

HOUR_MS = 3_600_000
START_MS = 1_700_006_400_000  # 2023-11-15 00:00 UTC
DTYPES = {
    "date": "datetime64[ms, UTC]",
    "open": "float64",
    "high": "float64",
    "low": "float64",
    "close": "float64",
    "volume": "float64",
}


def candle(
    time: int,
    open_: float = 1.0,
    high: float = 1.0,
    low: float = 1.0,
    close: float = 1.0,
    volume: float = 1.0,
) -> Ohlcv:
    return Ohlcv("X", "A/B:B", time, open_, high, low, close, volume, None, None, "stream", 0)


def build(rows: list[Ohlcv], timeframe: str) -> pd.DataFrame:
    return frames.to_frame(frames.build(frames.from_rows(rows), Timeframe.parse(timeframe)), "test")


def quiet(time: int, price: float) -> Ohlcv:
    return candle(time, price, price, price, price, 0.0)


@pytest.mark.parametrize(
    ("name", "minutes", "base"),
    [
        ("1m", 1, "ohlcv_1m"),
        ("3m", 3, "ohlcv_3m"),
        ("5m", 5, "ohlcv_1m"),
        ("7m", 7, "ohlcv_1m"),
        ("15m", 15, "ohlcv_3m"),
        ("1h", 60, "ohlcv_3m"),
        ("4h", 240, "ohlcv_3m"),
        ("1d", 1_440, "ohlcv_3m"),
        ("1w", 10_080, "ohlcv_3m"),
    ],
)
def test_a_timeframe_comes_from_the_3m_candles_where_they_divide_it(
    name: str, minutes: int, base: str
) -> None:
    timeframe = Timeframe.parse(name)
    assert (timeframe.step_ms, timeframe.base) == (minutes * MINUTE_MS, base)


@pytest.mark.parametrize("name", ["", "3", "m", "0m", "-3m", "1.5h", "3M", "1y", "3 m", "３m\n"])
def test_what_is_no_timeframe_is_told_with_what_is(name: str) -> None:
    with pytest.raises(ValueError, match="valid: a number and one of m, h, d, w"):
        Timeframe.parse(name)


def test_weeks_begin_on_monday_and_days_at_midnight() -> None:
    wednesday_ms = START_MS + 5 * HOUR_MS
    assert (
        pd.Timestamp(Timeframe.parse("1w").floor_ms(wednesday_ms), unit="ms").day_name() == "Monday"
    )
    assert Timeframe.parse("1d").floor_ms(wednesday_ms) == START_MS
    assert Timeframe.parse("1d").ceil_ms(wednesday_ms) == START_MS + 24 * HOUR_MS
    assert Timeframe.parse("1d").ceil_ms(START_MS) == START_MS


def test_an_empty_frame_has_the_same_columns_and_dtypes_as_a_full_one() -> None:
    for frame in (build([], "3m"), build([], "1h"), build([candle(START_MS)], "3m")):
        assert frame.dtypes.astype(str).to_dict() == DTYPES
        assert isinstance(frame.index, pd.RangeIndex)
        assert frame.attrs == {"filled": [], "source": "test"}


def test_candles_of_the_base_length_come_through_unchanged() -> None:
    rows = [candle(START_MS + n * CANDLE_MS, 1.1, 2.2, 0.3, 1.4, 0.1 * n) for n in range(5)]
    frame = build(rows, "3m")
    assert frame[list(frames.OHLCV)].to_numpy().tolist() == [list(row[3:8]) for row in rows]
    assert frame["date"].astype("int64").tolist() == [row.time for row in rows]


def test_a_candle_is_given_only_when_it_is_closed() -> None:
    rows = [candle(START_MS + n * CANDLE_MS) for n in range(29)]
    assert len(build(rows, "1h")) == 1
    rows += [candle(START_MS + n * CANDLE_MS) for n in range(29, 40)]
    assert len(build(rows, "1h")) == 2


def test_a_hole_is_filled_flat_and_marked() -> None:
    rows = [candle(START_MS, close=1.5), candle(START_MS + 3 * CANDLE_MS, 2.0, 2.0, 2.0, 2.0)]
    frame = build(rows, "3m")
    assert frame["close"].tolist() == [1.5, 1.5, 1.5, 2.0]
    assert frame["open"].tolist() == [1.0, 1.5, 1.5, 2.0]
    assert frame["high"].tolist() == frame["low"].tolist() == frame["open"].tolist()
    assert frame["volume"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert frame.attrs["filled"] == [START_MS + CANDLE_MS, START_MS + 2 * CANDLE_MS]


def test_an_aggregated_candle_with_a_missing_part_is_marked_too() -> None:
    rows = [candle(START_MS + n * CANDLE_MS) for n in range(40) if n not in (3, *range(20, 40))]
    rows.append(candle(START_MS + 3 * HOUR_MS - CANDLE_MS))
    frame = build(rows, "1h")
    assert frame["volume"].tolist() == [19.0, 0.0, 1.0]
    assert frame.attrs["filled"] == [START_MS, START_MS + HOUR_MS, START_MS + 2 * HOUR_MS]


def test_a_candle_without_trades_takes_no_part_in_open_high_and_low() -> None:
    rows = [quiet(START_MS, 9.0), candle(START_MS + CANDLE_MS, 2.0, 4.0, 1.0, 3.0, 1.0)]
    rows += [quiet(START_MS + n * CANDLE_MS, 3.0) for n in range(2, 5)]
    [row] = build(rows, "15m")[list(frames.OHLCV)].to_numpy().tolist()
    assert row == [2.0, 4.0, 1.0, 3.0, 1.0]


def test_without_any_trade_a_candle_is_flat() -> None:
    rows = [quiet(START_MS + n * CANDLE_MS, 9.0) for n in range(5)]
    [row] = build(rows, "15m")[list(frames.OHLCV)].to_numpy().tolist()
    assert row == [9.0, 9.0, 9.0, 9.0, 0.0]


def test_volumes_are_summed_in_decimal() -> None:
    rows = [candle(START_MS + n * MINUTE_MS, volume=0.1) for n in range(5)]
    assert build(rows[:3] + rows[3:], "5m")["volume"].tolist() == [0.5]
    assert build(
        [candle(START_MS + n * MINUTE_MS, volume=v) for n, v in enumerate((0.1, 0.2))], "2m"
    )["volume"].tolist() == [0.3]


def test_the_tail_keeps_only_the_marks_of_its_own_candles() -> None:
    rows = [candle(START_MS + n * CANDLE_MS) for n in (0, 2, 4, 5)]
    built = frames.build(frames.from_rows(rows), Timeframe.parse("3m"))
    assert built.tail(3).filled.tolist() == [START_MS + 3 * CANDLE_MS]
    assert built.tail(10) is built


@st.composite
def base_rows(draw: st.DrawFn) -> list[Ohlcv]:
    present = sorted(draw(st.sets(st.integers(0, 120), min_size=1)))
    start_ms = START_MS + draw(st.integers(0, 59)) * CANDLE_MS
    rows = []
    price = 100
    for n in present:
        if draw(st.booleans()):
            open_, high, low, price = (draw(st.integers(90, 110)) for _ in range(4))
            high, low = max(open_, high, low, price), min(open_, high, low, price)
            volume = draw(st.integers(1, 10**6)) / 1000
        else:
            open_ = high = low = price
            volume = 0.0
        rows.append(candle(start_ms + n * CANDLE_MS, open_, high, low, price, volume))
    return rows


@given(rows=base_rows(), name=st.sampled_from(["3m", "6m", "15m", "1h", "7h", "1d", "1w"]))
def test_any_candles_aggregate_as_a_loop_over_their_trades_would(
    rows: list[Ohlcv], name: str
) -> None:
    timeframe = Timeframe.parse(name)
    expected = _by_loop(rows, timeframe)
    built = frames.build(frames.from_rows(rows), timeframe)
    assert built.time.tolist() == [time for time, *_ in expected]
    assert built.values.T.tolist() == [values for _, values, _ in expected]
    assert built.filled.tolist() == [time for time, _, whole in expected if not whole]


def _by_loop(rows: list[Ohlcv], timeframe: Timeframe) -> list[tuple[int, list[float], bool]]:
    """The same, one candle at a time."""
    closed_ms = rows[-1].time + CANDLE_MS
    time = timeframe.floor_ms(rows[0].time)
    out: list[tuple[int, list[float], bool]] = []
    while time + timeframe.step_ms <= closed_ms:
        inside = [row for row in rows if time <= row.time < time + timeframe.step_ms]
        whole = len(inside) == timeframe.step_ms // CANDLE_MS
        traded = [row for row in inside if row.volume > 0] or inside
        if traded:
            volume = float(sum((Decimal(repr(row.volume)) for row in inside), Decimal()))
            values = [
                traded[0].open,
                max(row.high for row in traded),
                min(row.low for row in traded),
                inside[-1].close,
                volume,
            ]
        else:
            close = out[-1][1][3]
            values = [close, close, close, close, 0.0]
        out.append((time, values, whole))
        time += timeframe.step_ms
    # Nothing is filled behind the last candle that anything is known of.
    while out and not any(out[-1][0] <= row.time < out[-1][0] + timeframe.step_ms for row in rows):
        out.pop()
    return out


def test_a_year_of_candles_is_built_whole() -> None:
    times = START_MS + np.arange(175_200) * CANDLE_MS
    columns = {name: np.ones(len(times)) for name in frames.OHLCV}
    base = frames.from_columns({"time": times, **columns})
    assert len(frames.build(base, Timeframe.parse("3m"))) == 175_200
    assert len(frames.build(base, Timeframe.parse("1d"))) == 365
