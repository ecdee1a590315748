"""Recorded traffic through the whole pipeline, held against an independent resample."""

import asyncio
import json
import os
import sqlite3
from decimal import Decimal
from pathlib import Path

import pandas as pd
import pytest

from ingest.candles import CandleBook
from ingest.model import Kline
from ingest.recording import record_capture
from ingest.replaying import replay_capture
from marketdata.schema import CANDLE_MS, MINUTE_MS
from tests.service import configuration, fast_simulator, truth

RECORDED = Path(os.environ.get("MARKETDATA_RECORDED", "../shared/data")).absolute()
recorded = pytest.mark.skipif(
    not RECORDED.is_dir(), reason="no recorded market data (MARKETDATA_RECORDED names its folder)"
)


def table(store, name):
    with sqlite3.connect(store) as connection:
        rows = pd.read_sql_query(f"select * from {name} order by symbol, time", connection)
    connection.close()
    return rows


def frames(path):
    for line in path.read_text(encoding="utf-8").splitlines():
        _, _, text = line.partition(": ")
        if text.startswith("{"):
            yield json.loads(text)["data"]


@recorded
async def test_real_minutes_and_trades_of_2021_come_out_as_the_exchange_sent_them(tmp_path):
    folder = RECORDED / "binance_futures_capture"
    store = tmp_path / "replay.db"
    counts = await replay_capture(folder, store)
    assert counts["BINANCE_FUTURES"]["ohlcv_1m"] == 4
    assert counts["BINANCE_FUTURES"]["ohlcv_3m"] == 0, "30 seconds hold no whole candle"
    events = list(frames(folder / "BINANCE_FUTURES.ws.1.0"))
    minutes = table(store, "ohlcv_1m").set_index("symbol")
    for k in (e["k"] for e in events if e["e"] == "kline" and e["k"]["x"]):
        row = minutes.loc[f"{k['s'].removesuffix('USDT')}/USDT:USDT"]
        assert row["time"] == k["t"]
        expected = [float(k[name]) for name in "ohlcvq"]
        assert list(row[["open", "high", "low", "close", "volume", "quote_volume"]]) == expected
        assert (row["trades"], row["source"]) == (k["n"], "stream")


@recorded
async def test_the_minute_in_progress_equals_a_resample_of_its_trades(tmp_path):
    folder = RECORDED / "binance_futures_capture"
    store = tmp_path / "replay.db"
    await replay_capture(folder, store)
    events = list(frames(folder / "BINANCE_FUTURES.ws.1.0"))
    trades = pd.DataFrame([e for e in events if e["e"] == "aggTrade"])
    minute_ms = 1_626_992_760_000
    whole = 0
    for _, last in table_last(store).iterrows():
        assert last["minute_ms"] == minute_ms
        symbol = last["symbol"].replace("/", "").removesuffix(":USDT")
        klines = [e["k"] for e in events if e["e"] == "kline" and e["s"] == symbol]
        newest = max((k for k in klines if k["t"] == minute_ms), key=lambda k: k["L"])
        mine = trades[(trades["s"] == symbol) & (trades["T"] >= minute_ms)]
        # A kline may end within an aggregate of several trades, which then counts in part.
        mine = mine[mine["f"] <= newest["L"]]
        prices = mine["p"].astype(float)
        assert last["open"] == prices.iloc[0]
        assert last["high"] == prices.max()
        assert last["low"] == prices.min()
        assert last["close"] == prices.iloc[-1]
        total = float(sum(map(Decimal, mine["q"])))
        ends_whole = mine["l"].iloc[-1] == newest["L"]
        assert last["volume"] == total if ends_whole else last["volume"] < total
        whole += ends_whole
    assert whole >= 2


def table_last(store):
    with sqlite3.connect(store) as connection:
        rows = pd.read_sql_query("select * from last", connection)
    connection.close()
    return rows


@recorded
def test_candles_of_real_minutes_equal_a_resample_by_pandas():
    minutes = pd.read_feather(RECORDED / "freqtrade_history" / "UNITTEST_BTC-1m.feather")
    open_ms = minutes["date"].astype("datetime64[ms, UTC]").astype("int64")
    book = CandleBook(horizon_ms=2**53)
    values = minutes[["open", "high", "low", "close", "volume"]].to_numpy().tolist()
    for time_ms, (open_, high, low, close, volume) in zip(open_ms.tolist(), values, strict=True):
        kline = Kline(
            "X", "UNITTEST/BTC", time_ms, open_, high, low, close,
            Decimal(repr(volume)), None, None, True, time_ms + MINUTE_MS,
        )  # fmt: skip
        book.apply([kline])
    traded = minutes[minutes["volume"] > 0].set_index("date")
    rules = {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    expected = traded.resample("3min").agg(rules).dropna()
    whole = minutes.set_index("date")["open"].resample("3min").count()
    expected = expected[whole.reindex(expected.index) == 3]
    mine = (
        pd.DataFrame([c for c in book.candles.values() if c.volume > 0])
        .set_index("time")
        .sort_index()
    )
    assert list(mine.index) == list(expected.index.astype("datetime64[ms, UTC]").astype("int64"))
    for column in ("open", "high", "low", "close"):
        assert (mine[column].to_numpy() == expected[column].to_numpy()).all()
    assert abs(mine["volume"].to_numpy() - expected["volume"].to_numpy()).max() < 1e-6
    assert len(mine) > 4_000


@pytest.mark.leaks  # aiofile, under cryptofeed's file callback, keeps its kernel context for good
async def test_a_recorded_run_replays_to_the_candles_of_the_market(tmp_path):
    pairs = {
        "BINANCE_FUTURES": ["BTC/USDT:USDT", "币安人生/USDT:USDT"],
        "BYBIT": ["BTC/USDT:USDT", "BTC/USDT"],
    }
    async with fast_simulator() as simulator:
        settings = configuration(simulator, tmp_path, 9, pairs=pairs)
        await record_capture(settings, simulator.clock, tmp_path / "raw", asyncio.Event(), 500.0)
        store = tmp_path / "replay.db"
        counts = await replay_capture(tmp_path / "raw", store)
        assert counts["BINANCE_FUTURES"].get("unused", 0) == 0
        candles = table(store, "ohlcv_3m")
        compared = 0
        for (exchange, pair), rows in candles.groupby(["exchange", "symbol"]):
            start_ms, end_ms = int(rows["time"].min()), int(rows["time"].max()) + CANDLE_MS
            expected = await truth(simulator, exchange, pair, start_ms, end_ms)
            for row in rows.itertuples(index=False):
                assert row[3:9] == expected[row.time][:6]
                compared += 1
    assert {exchange for exchange, _ in candles.groupby("exchange")} == set(pairs)
    assert compared >= 3
