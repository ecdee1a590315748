"""`readers` in the shell: what it prints, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from marketdata.schema import CANDLE_MS, Ohlcv
from readers.cli import main
from tests.stored import BTC, ETH, EXCHANGE, SqliteHome, candles, last_of


@pytest.fixture
def now_ms() -> int:
    """The shell has no other clock than the world's."""
    return int(time.time() * 1000)


@pytest.fixture
def rows(now_ms: int) -> list[Ohlcv]:
    return candles(BTC, now_ms - now_ms % CANDLE_MS - 50 * CANDLE_MS, 50)


@pytest.fixture
def home(tmp_path: Path, now_ms: int, rows: list[Ohlcv]) -> SqliteHome:
    """Candles with a hole, and newest values of which one pair's are an hour old."""
    home = SqliteHome(tmp_path / "market_data.db")
    home.put({"ohlcv_3m": rows[:40] + rows[41:]})
    home.put_last(last_of(BTC, now_ms), last_of(ETH, now_ms - 3_600_000))
    return home


@pytest.fixture
def config(home: SqliteHome) -> Path:
    path = home.path.parent / "config.yaml"
    path.write_text(
        f"store: {{kind: sqlite, path: {home.path.name}}}\n"
        f"exchanges: {{{EXCHANGE}: {{pairs: [{BTC!r}, {ETH!r}]}}}}\n"
    )
    return path


def run(config: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--config", str(config)], catch_exceptions=False)


def test_candles_are_a_table_for_people(config: Path) -> None:
    result = run(config, "ohlcv", "BTCUSDT", "--limit", "12")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "BTCUSDT 3m · from sqlite" in result.stdout
    assert result.stdout.count("│ 20") == 12
    assert "149.1" in result.stdout


def test_candles_are_exact_as_csv_and_as_json(config: Path, rows: list[Ohlcv]) -> None:
    expected = [list(row[3:8]) for row in rows[-3:]]
    text = run(config, "ohlcv", BTC, "--limit", "3", "--format", "csv").stdout
    header, *lines = csv.reader(io.StringIO(text))
    assert header == ["date", "open", "high", "low", "close", "volume"]
    assert [[float(value) for value in line[1:]] for line in lines] == expected
    records = json.loads(run(config, "ohlcv", BTC, "--limit", "3", "--format", "json").stdout)
    assert [list(record.values())[1:] for record in records] == expected
    last_open = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(rows[-1].time / 1000))
    assert records[-1]["date"] == lines[-1][0] == last_open


def test_any_timeframe_may_be_asked_for(config: Path) -> None:
    result = run(config, "ohlcv", BTC, "--timeframe", "15m", "--limit", "5", "--format", "json")
    assert len(json.loads(result.stdout)) == 5
    wrong = run(config, "ohlcv", BTC, "--timeframe", "1y")
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    assert "valid: a number and one of m, h, d, w" in wrong.stderr


def test_funding_and_marks_tell_what_is_known(config: Path) -> None:
    table = run(config, "funding", "BTCUSDT").stdout
    assert "-0.001250 %" in table
    assert "8 h" in table
    assert "sqlite" in table
    [funding] = json.loads(run(config, "funding", BTC, "--format", "json").stdout)
    assert (funding["pair"], funding["rate"], funding["predicted_rate"]) == (BTC, -1.25e-05, None)
    assert "61,000.5" in run(config, "mark", BTC).stdout
    text = run(config, "mark", BTC, "--format", "csv").stdout
    [row] = csv.DictReader(io.StringIO(text))
    assert (row["price"], row["index_price"], row["exchange"]) == ("61000.5", "61001.25", EXCHANGE)


def test_all_funding_rates_are_those_that_are_fresh(config: Path) -> None:
    fresh = json.loads(run(config, "funding", "--all", "--format", "json").stdout)
    assert [funding["pair"] for funding in fresh] == [BTC]
    every = run(config, "funding", "--all", "--any-age", "--format", "json").stdout
    assert [funding["pair"] for funding in json.loads(every)] == [BTC, ETH]


def test_what_is_stale_ends_with_1_after_what_is_fresh(config: Path) -> None:
    result = run(config, "mark", BTC, ETH)
    assert result.exit_code == 1
    assert "61,000.5" in result.stdout
    assert f"the mark price of {EXCHANGE} {ETH} is late" in result.stderr
    assert run(config, "mark", BTC, ETH, "--any-age").exit_code == 0
    assert run(config, "ohlcv", ETH, "--any-age").exit_code == 0
    nothing = run(config, "ohlcv", ETH)
    assert (nothing.exit_code, nothing.stdout) == (1, "")


def test_an_unknown_pair_is_wrong_use_and_names_those_that_come_close(config: Path) -> None:
    result = run(config, "ohlcv", "BTCUSDC")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"readers: {EXCHANGE} has no pair 'BTCUSDC'; close to it: {BTC}\n"


@pytest.mark.parametrize("arguments", [("funding",), ("funding", BTC, "--all"), ("mark",)])
def test_asking_for_nothing_is_wrong_use(config: Path, arguments: tuple[str, ...]) -> None:
    result = run(config, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_bad_file_is_told_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("store: {kind: postgres}\nexchanges: {}\n")
    for broken in (path, tmp_path / "nothing.yaml"):
        result = run(broken, "ohlcv", BTC)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"readers: {broken} can't be used:\n  ")


def test_a_store_that_is_not_there_ends_with_3(config: Path, home: SqliteHome) -> None:
    home.path.unlink()
    for command in ("ohlcv", "funding", "mark"):
        result = run(config, command, BTC)
        assert (result.exit_code, result.stdout) == (3, "")
        assert "market_data.db can't be opened: No such file" in result.stderr
