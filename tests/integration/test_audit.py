"""`ingest audit` on stores that are clean, and on stores that were damaged by hand."""

import io
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pyarrow import csv

from ingest.candles import build_candle
from ingest.cli import main
from ingest.model import Kline
from marketdata.schema import MINUTE_MS, FundingSettled, Gap, Mark3m, Ohlcv
from tests.stored import InfluxHome, SqliteHome

BINANCE, BYBIT = "BINANCE_FUTURES", "BYBIT"
BTC, ETH, SPOT = "BTC/USDT:USDT", "ETH/USDT:USDT", "BTC/USDT"
HOUR_MS = 3_600_000
START_MS = 1_793_491_200_000 // 86_400_000 * 86_400_000
HOURS = 30
END_MS = START_MS + HOURS * HOUR_MS


def walk(seed, scale=0.0006):
    """Prices of Student's t with three degrees of freedom: tails fatter than a market's."""
    steps = np.random.default_rng(seed).standard_t(3, HOURS * 60) * scale
    return 60_000 * np.exp(np.cumsum(steps))


def minutes(exchange, pair, closes, seed=5, source="stream"):
    rng = np.random.default_rng(seed)
    rows, before = [], float(closes[0])
    for n, close in enumerate(closes):
        open_, close = round(before, 1), round(float(close), 1)
        wick = abs(rng.normal(0, 8))
        rows.append(
            Kline(
                exchange, pair, START_MS + n * MINUTE_MS, open_,
                round(max(open_, close) + wick, 1), round(min(open_, close) - wick, 1), close,
                Decimal(str(round(rng.exponential(3) + 0.001, 3))),
                Decimal(str(round(rng.exponential(9_000) + 1, 2))),
                int(rng.integers(1, 90)), True, 0, source,
            )
        )  # fmt: skip
        before = close
    return rows


def row(kline):
    return Ohlcv(
        kline.exchange, kline.symbol, kline.minute_ms,
        kline.open, kline.high, kline.low, kline.close,
        float(kline.volume), float(kline.quote_volume), kline.trades, kline.source, 0,
    )  # fmt: skip


def whole(exchange, pair, closes, seed=5):
    """A pair without a fault: minutes, candles, marks, settlements."""
    klines = minutes(exchange, pair, closes, seed)
    candles = [build_candle(klines[n : n + 3]) for n in range(0, len(klines), 3)]
    batch: dict[str, list[Any]] = {
        "ohlcv_1m": [row(kline) for kline in klines],
        "ohlcv_3m": candles,
    }
    if ":" in pair:
        batch["mark_3m"] = [Mark3m(*candle[:7], "stream") for candle in candles]
        batch["funding_settled"] = [
            FundingSettled(exchange, pair, START_MS + n * HOUR_MS, 1e-4, 8.0, None)
            for n in range(0, HOURS + 1, 8)
        ]
    return batch


def clean_store():
    closes = walk(1)
    noise = np.random.default_rng(2).normal(0, 0.0002, len(closes))
    return {
        (BINANCE, BTC): whole(BINANCE, BTC, closes),
        (BINANCE, ETH): whole(BINANCE, ETH, walk(3) / 20),
        (BYBIT, BTC): whole(BYBIT, BTC, closes * (1 + noise), 6),
        (BYBIT, SPOT): whole(BYBIT, SPOT, closes * (1.004 + noise[::-1]), 7),
    }


def change(rows, n, **values):
    rows[n] = rows[n]._replace(**values)


def put(home, store):
    batch: dict[str, list[Any]] = {}
    for of_pair in store.values():
        for measurement, rows in of_pair.items():
            batch.setdefault(measurement, []).extend(rows)
    home.put(batch)


def configuration(tmp_path, home):
    store = {key: str(value) if key == "path" else value for key, value in home.store.items()}
    path = tmp_path / "config.yaml"
    exchanges = {BINANCE: {"pairs": [BTC, ETH]}, BYBIT: {"pairs": [BTC, SPOT]}}
    path.write_text(json.dumps({"store": store, "exchanges": exchanges}))
    return path


def run(path, *arguments, code):
    done = CliRunner(env={"COLUMNS": "200"}).invoke(
        main,
        [
            "audit", "--config", str(path), "--since", str(START_MS), "--until", str(END_MS),
            *arguments,
        ],
    )  # fmt: skip
    assert done.exit_code == code, (done.output, done.exception)
    return done


def scored(path, *arguments, code=1):
    return json.loads(run(path, "--json", *arguments, code=code).stdout)


def kinds(card):
    return {
        (finding["series"], finding["kind"], (finding["time_ms"] - START_MS) // MINUTE_MS)
        for finding in (*card["bad"], *card["outliers"])
    }


def holes(card):
    return {
        (hole["series"], (hole["start_ms"] - START_MS) // MINUTE_MS, hole["rows"], hole["reason"])
        for hole in card["missing"]
    }


def by_pair(score):
    return {(card["exchange"], card["symbol"]): card for card in score["pairs"]}


@pytest.fixture(scope="module", autouse=True)
def _arrow_is_loaded():
    """Arrow opens a pipe with the first CSV that it reads, and keeps it."""
    csv.read_csv(io.BytesIO(b"a\n1\n"))


@pytest.fixture(params=["sqlite", "influxdb"])
def home(request, tmp_path):
    if request.param == "sqlite":
        return SqliteHome(tmp_path / "market_data.db")
    influx = request.getfixturevalue("influx")
    return InfluxHome(influx, influx.new_bucket())


def test_a_clean_store_gives_no_finding_at_all(home, tmp_path):
    put(home, clean_store())
    score = scored(configuration(tmp_path, home), code=0)
    assert score["clean"]
    for card in score["pairs"]:
        assert (card["missing"], card["bad"], card["outliers"]) == ([], [], [])
    candles = score["totals"]["candles"]
    assert candles == {
        "expected": 4 * HOURS * 20, "stream": 4 * HOURS * 20,
        "rest": 0, "synthetic": 0, "missing": 0,
    }  # fmt: skip


def test_every_hole_bad_row_and_outlier_put_there_by_hand_is_found(home, tmp_path):
    store = clean_store()
    btc, eth = store[BINANCE, BTC], store[BINANCE, ETH]
    candles, of_minutes = btc["ohlcv_3m"], btc["ohlcv_1m"]
    change(candles, 30, high=candles[30].low)
    change(candles, 60, low=candles[60].high + 1)
    change(candles, 90, volume=-1.0)
    change(candles, 120, open=-5.0)
    flat = dict.fromkeys(("open", "high", "low", "close"), candles[150].close)
    change(candles, 150, **flat, volume=500.0)
    change(candles, 180, volume=candles[180].volume * 2)
    change(of_minutes, 700, volume=7.0, trades=0)
    change(of_minutes, 800, time=of_minutes[800].time + 1_000)
    spike = eth["ohlcv_3m"][300].close * 1.5
    change(eth["ohlcv_3m"], 300, close=spike, high=spike)
    other = store[BYBIT, BTC]["ohlcv_3m"]
    apart = other[400].close * 1.03
    change(other, 400, close=apart, high=max(other[400].high, apart))
    del candles[500:520]
    del of_minutes[1_502:1_504]
    del btc["mark_3m"][100:103]
    del btc["funding_settled"][2]
    btc["gap"] = [
        Gap(BINANCE, BTC, "candles", START_MS + 1_500 * MINUTE_MS, START_MS + 1_560 * MINUTE_MS,
            "disconnected", "lost", END_MS)
    ]  # fmt: skip
    put(home, store)
    cards = by_pair(scored(configuration(tmp_path, home)))
    found = kinds(cards[BINANCE, BTC])
    assert {
        ("candles", "high_too_low", 90), ("candles", "low_too_high", 180),
        ("candles", "volume_negative", 270), ("candles", "price_not_positive", 360),
        ("candles", "flat_with_volume", 450), ("candles", "not_its_minutes", 540),
        ("minutes", "flat_with_volume", 700), ("minutes", "misaligned", 800),
    } <= found  # fmt: skip
    touched = {90, 180, 270, 360, 450, 540, 700, 699, 800}
    assert {minute for _, _, minute in found} <= touched
    assert holes(cards[BINANCE, BTC]) == {
        ("candles", 1_500, 20, "disconnected, lost"),
        ("minutes", 1_502, 2, "disconnected, lost"),
        ("minutes", 800, 1, None),
        ("marks", 300, 3, None),
        ("settlements", 960, 1, None),
    }
    assert ("candles", "spike", 900) in kinds(cards[BINANCE, ETH])
    assert ("candles", "apart", 1_200) in kinds(cards[BYBIT, BTC])
    assert not cards[BYBIT, BTC]["missing"]
    assert cards[BYBIT, SPOT]["clean"]


def test_a_configured_pair_without_any_row_is_missing_as_a_whole(tmp_path):
    home, store = SqliteHome(tmp_path / "market_data.db"), clean_store()
    del store[BINANCE, ETH]
    put(home, store)
    path = configuration(tmp_path, home)
    card = by_pair(scored(path))[BINANCE, ETH]
    assert card["totals"]["candles"]["missing"] == HOURS * 20
    assert card["totals"]["minutes"]["missing"] == HOURS * 60
    shown = run(path, code=1).stdout
    assert shown.index("totals") < shown.index("pairs, the worst first")
    assert shown.index(ETH) < shown.index(SPOT)
    assert "missing  BINANCE_FUTURES ETH/USDT:USDT candles: 600" in shown


def test_pairs_and_exchanges_can_be_chosen(tmp_path):
    home, store = SqliteHome(tmp_path / "market_data.db"), clean_store()
    del store[BINANCE, ETH]["ohlcv_3m"][5]
    put(home, store)
    path = configuration(tmp_path, home)
    assert by_pair(scored(path, "--pair", BTC, code=0)).keys() == {(BINANCE, BTC), (BYBIT, BTC)}
    assert by_pair(scored(path, "--exchange", BYBIT, code=0)).keys() == {
        (BYBIT, BTC),
        (BYBIT, SPOT),
    }
    assert "neither stored" in run(path, "--pair", "NO/PE", code=2).stderr
    assert "not in the configuration" in run(path, "--exchange", "OKX", code=2).stderr


def test_a_store_that_is_not_there_is_exit_code_3(tmp_path):
    path = configuration(tmp_path, SqliteHome(tmp_path / "nothing.db"))
    assert "nothing.db can't be opened" in run(path, code=3).stderr


def test_a_pair_that_is_no_longer_collected_is_expected_to_its_last_candle(tmp_path):
    home, store = SqliteHome(tmp_path / "market_data.db"), clean_store()
    gone = whole(BINANCE, "OLD/USDT:USDT", walk(9))
    for measurement, rows in gone.items():
        gone[measurement] = [row for row in rows if row.time < START_MS + 20 * HOUR_MS]
    store[BINANCE, "OLD/USDT:USDT"] = gone
    put(home, store)
    card = by_pair(scored(configuration(tmp_path, home), code=0))[BINANCE, "OLD/USDT:USDT"]
    assert card["totals"]["candles"]["expected"] == 400
