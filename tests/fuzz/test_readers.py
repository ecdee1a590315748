"""What callers ask the readers, damaged: one shape of error over HTTP, one message in the shell."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from marketdata.schema import CANDLE_MS
from readers.cli import main
from tests.fuzz.mutation import ODD_TEXTS, damaged_bytes, fuzzed
from tests.integration.test_api import serving, write_config
from tests.stored import BTC, ETH, SqliteHome, Watch, candles, last_of

PATHS = (
    "/funding/BTCUSDT", "/funding/batch", "/funding/health", "/mark/BTC/USDT:USDT", "/last/ETHUSDT",
    "/ohlcv/BTCUSDT", "/health", "/metrics", "/", "/nowhere",
)  # fmt: skip
NAMES = ("symbols", "symbol", "timeframe", "limit", "max_age", "exchange", "")
VALUES = (
    *ODD_TEXTS, "BTCUSDT", "BTC/USDT:USDT", "3m", "5m", "1w", "999999w", "0m", "٣m", "3M", "1",
    "5000", "5001", "any", "1e308", "1e999", "0", "BTCUSDT,ETHUSDT", "," * 600, "BINANCE_FUTURES",
    "BYBIT", ",".join(f"NOPE{n}" for n in range(500)), "X" * 5_000,
)  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> SqliteHome:
    now_ms = int(time.time() * 1000)
    home = SqliteHome(tmp_path / "market_data.db")
    home.put({"ohlcv_3m": candles(BTC, now_ms - now_ms % CANDLE_MS - 50 * CANDLE_MS, 50)})
    home.put_last(last_of(BTC, now_ms), last_of(ETH, now_ms))
    return home


@st.composite
def targets(draw: st.DrawFn) -> str:
    """A path and a query, every byte of which may be anything."""
    path = draw(st.sampled_from(PATHS)).encode()
    if draw(st.booleans()):
        path = b"/" + draw(damaged_bytes(path))[1:]
    query = []
    for _ in range(draw(st.integers(0, 4))):
        value = draw(st.sampled_from(VALUES)).encode("utf-8", "surrogatepass")
        if draw(st.integers(0, 3)) == 0:
            value = draw(damaged_bytes(value))
        query.append(f"{draw(st.sampled_from(NAMES))}={quote_from_bytes(value, safe='')}")
    return f"{quote(path, safe='/:')}{'?' if query else ''}{'&'.join(query)}"


@pytest.fixture
def connection(home: SqliteHome) -> Iterator[http.client.HTTPConnection]:
    with serving(write_config(home), Watch(int(time.time() * 1000))) as api:
        host, port = api._http.host, api._http.port
        connection = http.client.HTTPConnection(host, port, timeout=20)
        try:
            yield connection
        finally:
            connection.close()


def test_whatever_is_asked_over_http_is_answered_in_one_shape(
    connection: http.client.HTTPConnection,
) -> None:
    statuses: set[int] = set()

    @fuzzed(200)
    @given(targets())
    def check(target: str) -> None:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read()
        statuses.add(answer.status)
        assert answer.status in (200, 404, 422, 503), (target, body)
        if answer.status != 200:
            assert list(json.loads(body)) == ["error"]
            assert set(json.loads(body)["error"]) == {"code", "message", "detail"}

    check()
    assert statuses == {200, 404, 422, 503}


COMMANDS = ("ohlcv", "funding", "mark")
OPTIONS = ("--timeframe", "--limit", "--exchange", "--format", "--any-age", "--all", "--config")


@st.composite
def arguments(draw: st.DrawFn) -> list[str]:
    words = [draw(st.sampled_from(COMMANDS)), draw(st.sampled_from(["BTCUSDT", BTC, ETH]))]
    for _ in range(draw(st.integers(1, 4))):
        words.append(draw(st.sampled_from(OPTIONS) | st.sampled_from(VALUES)))
    return [word for word in words if "\0" not in word]  # no shell can pass it


def test_whatever_is_asked_in_the_shell_ends_with_a_code_and_a_message(
    home: SqliteHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARKETDATA_CONFIG", str(write_config(home)))
    codes: set[int] = set()

    @fuzzed(80)
    @given(arguments())
    def check(words: list[str]) -> None:
        result = CliRunner().invoke(main, words, catch_exceptions=False)
        codes.add(result.exit_code)
        assert result.exit_code in (0, 1, 2, 3)
        if result.exit_code:
            assert result.stderr.startswith(("readers: ", "Usage: ", "Error: "))

    check()
    assert {0, 2} <= codes
