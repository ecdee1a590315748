"""`readers serve`, over a real socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3
import uvicorn

from marketdata.config import load_config
from marketdata.schema import CANDLE_MS, State
from readers.api.app import create_app
from readers.client import MarketData
from tests.stored import (
    BTC,
    ETH,
    EXCHANGE,
    RedisHome,
    SqliteHome,
    Watch,
    candles,
    last_of,
)
from tests.waiting import eventually_sync

CLOSE_MS = 1_760_000_040_000
NOW_MS = CLOSE_MS + 1_000
ROOT = Path(__file__).parents[2]
SPOT = "BTC/USDT"


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Api:
    """A client of a server."""

    def __init__(self, port: int) -> None:
        self._http = urllib3.HTTPConnectionPool("127.0.0.1", port, retries=False, timeout=10)

    def get(self, path: str, **headers: str) -> Answer:
        answer = self._http.request("GET", path, headers=headers)
        return Answer(answer.status, answer.headers, answer.data)

    def post(self, path: str) -> Answer:
        answer = self._http.request("POST", path)
        return Answer(answer.status, answer.headers, answer.data)

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def home(tmp_path: Path) -> SqliteHome:
    home = SqliteHome(tmp_path / "market_data.db")
    home.put({"ohlcv_3m": candles(BTC, CLOSE_MS - 50 * CANDLE_MS, 50)})
    home.put_last(last_of(BTC, NOW_MS), last_of(ETH, NOW_MS), last_of(SPOT, NOW_MS, mark_price=1.0))
    return home


@pytest.fixture
def watch() -> Watch:
    return Watch(NOW_MS)


def write_config(home: SqliteHome, redis_url: str | None = None, **api: Any) -> Path:
    path = home.path.parent / "config.yaml"
    config = {
        "store": {"kind": "sqlite", "path": home.path.name},
        "redis": None if redis_url is None else {"url": redis_url},
        "api": api,
        "exchanges": {EXCHANGE: {"channels": ["candles", "funding", "mark_price"], "pairs": [BTC]}},
    }
    path.write_text(json.dumps(config))
    return path


@contextmanager
def serving(config_path: Path, watch: Watch) -> Iterator[Api]:
    settings = load_config(config_path)
    with MarketData(settings=settings, now_ms=watch) as data:
        app = create_app(settings, data)
        # uvloop, which uvicorn takes where it is installed, keeps a pipe for the process's life.
        config = uvicorn.Config(app, port=0, loop="asyncio", log_level="error", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        eventually_sync(lambda: server.started, what="the server listens")
        api = Api(server.servers[0].sockets[0].getsockname()[1])
        try:
            yield api
        finally:
            api.close()
            server.should_exit = True
            thread.join()


@pytest.fixture
def api(home: SqliteHome, watch: Watch) -> Iterator[Api]:
    with serving(write_config(home), watch) as api:
        yield api


FUNDING = {
    "symbol": "BTCUSDT",
    "pair": BTC,
    "exchange": EXCHANGE,
    "funding_rate": -1.25e-05,
    "predicted_rate": None,
    "mark_price": 61_000.5,
    "index_price": 61_001.25,
    "next_funding_ms": NOW_MS + 3_600_000,
    "interval_hours": 8.0,
    "event_ms": CLOSE_MS,
    "age_ms": 1_000,
    "source": "sqlite",
}


@pytest.mark.parametrize(
    "symbol", ["BTCUSDT", "BTC/USDT:USDT", quote("BTC/USDT:USDT", safe=""), "BTC%2FUSDT:USDT"]
)
def test_a_symbol_may_have_either_form_escaped_or_not(api: Api, symbol: str) -> None:
    answer = api.get(f"/funding/{symbol}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json == FUNDING


def test_mark_and_last_prices_are_given(api: Api) -> None:
    names = {"symbol": "BTCUSDT", "pair": BTC, "exchange": EXCHANGE}
    times = {"event_ms": CLOSE_MS, "age_ms": 1_000, "source": "sqlite"}
    prices = {"mark_price": 61_000.5, "index_price": 61_001.25}
    assert api.get("/mark/BTCUSDT").json == names | prices | times
    assert api.get(f"/last/{BTC}").json == names | {"price": 61_002.0} | times
    assert api.get(f"/mark/{SPOT}").json["mark_price"] == 1.0


def test_candles_are_arrays_of_named_columns(api: Api) -> None:
    rows = candles(BTC, CLOSE_MS - 50 * CANDLE_MS, 50)[-2:]
    assert api.get("/ohlcv/BTCUSDT?limit=2").json == {
        "symbol": "BTCUSDT",
        "pair": BTC,
        "exchange": EXCHANGE,
        "timeframe": "3m",
        "columns": ["time", "open", "high", "low", "close", "volume"],
        "data": [[row.time, *row[3:8]] for row in rows],
        "filled": [],
        "source": "sqlite",
        "state": "live",
    }
    assert len(api.get("/ohlcv/BTCUSDT?timeframe=15m").json["data"]) >= 9


def test_a_batch_has_what_is_known_and_an_error_for_the_rest(api: Api) -> None:
    answer = api.get(f"/funding/batch?symbols=BTCUSDT,{quote(ETH, safe='')},NOPEUSDT").json
    assert answer["data"]["BTCUSDT"] == FUNDING
    assert list(answer["data"]) == ["BTCUSDT", ETH]
    assert list(answer["errors"]) == ["NOPEUSDT"]
    assert answer["errors"]["NOPEUSDT"]["code"] == "unknown_pair"


def test_a_mark_price_that_is_stale_is_left_out_of_funding(api: Api, watch: Watch) -> None:
    watch.now_ms += 60_000
    answer = api.get("/funding/BTCUSDT").json
    assert (answer["funding_rate"], answer["mark_price"], answer["index_price"]) == (
        -1.25e-05,
        None,
        None,
    )


def error_of(answer: Answer, status: int, code: str) -> Any:
    """The error of an answer, in the one shape that all have."""
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json) == ["error"]
    assert list(answer.json["error"]) == ["code", "message", "detail"]
    assert answer.json["error"]["code"] == code
    assert ("Retry-After" in answer.headers) == (status == 503)
    return answer.json["error"]


def test_an_unknown_pair_is_404_with_those_that_come_close(api: Api) -> None:
    for path in ("/funding/BTCUSDC", "/mark/BTC/USDC:USDC", "/ohlcv/BTCUSDC", "/last/BTCUSDC"):
        error = error_of(api.get(path), 404, "unknown_pair")
        assert BTC in error["detail"]["near"]


@pytest.mark.parametrize(
    "path",
    [
        "/ohlcv/BTCUSDT?timeframe=1y",
        "/ohlcv/BTCUSDT?limit=0",
        "/ohlcv/BTCUSDT?limit=5001",
        "/ohlcv/BTCUSDT?limit=many",
        "/mark/BTCUSDT?max_age=old",
        "/mark/BTCUSDT?max_age=-1",
        "/mark/BTCUSDT?max_age=nan",
        "/funding/batch",
        "/funding/batch?symbols=",
        "/funding/batch?symbols=" + ",".join(map(str, range(501))),
    ],
)
def test_a_bad_argument_is_422(api: Api, path: str) -> None:
    error_of(api.get(path), 422, "bad_argument")


def test_what_is_not_there_and_what_is_not_allowed_have_the_same_shape(api: Api) -> None:
    error_of(api.get("/nothing"), 404, "not_found")
    error_of(api.post("/mark/BTCUSDT"), 405, "method_not_allowed")


def test_a_stale_value_is_503_unless_its_age_will_do(api: Api, watch: Watch) -> None:
    watch.now_ms += 600_000
    for path in ("/funding/BTCUSDT", "/mark/BTCUSDT", "/last/BTCUSDT", "/ohlcv/BTCUSDT"):
        error = error_of(api.get(path), 503, "stale_data")
        assert error["detail"]["age_ms"] == 601_000
        assert api.get(f"{path}?max_age=any").status == 200
        assert api.get(f"{path}?max_age=601").status == 200
        error_of(api.get(f"{path}?max_age=600.5"), 503, "stale_data")


def test_no_store_is_503(tmp_path: Path, watch: Watch) -> None:
    with serving(write_config(SqliteHome(tmp_path / "nothing.db")), watch) as api:
        for path in ("/mark/BTCUSDT", "/ohlcv/BTCUSDT", "/funding/batch?symbols=X", "/health", "/"):
            error_of(api.get(path), 503, "store_unavailable")


def test_health_is_200_while_something_fresh_comes(api: Api, watch: Watch) -> None:
    answer = api.get("/health")
    assert (answer.status, answer.json["state"]) == (200, "live")
    marks = answer.json["exchanges"][EXCHANGE]["channels"]["mark_price"]
    assert marks == {"state": "live", "age_ms": 1_000, "pairs": 3, "fresh": 3, "late": {}}
    assert api.get("/funding/health").json["state"] == "live"
    watch.now_ms += 60_000
    detail = error_of(api.get("/health"), 503, "stale_data")["detail"]
    channels = detail["exchanges"][EXCHANGE]["channels"]
    assert (channels["mark_price"]["state"], channels["funding"]["state"]) == ("late", "live")
    assert api.get("/funding/health").status == 200
    watch.now_ms += 60_000
    late = error_of(api.get("/funding/health"), 503, "stale_data")["detail"]["late"]
    assert late == {SPOT: 121_000, BTC: 121_000, ETH: 121_000}


def test_what_is_stale_tells_what_the_service_knows(
    home: SqliteHome, watch: Watch, redis_url: str
) -> None:
    with serving(write_config(home, redis_url), watch) as api:
        watch.now_ms += 600_000
        pairs, channels = (SPOT, BTC, ETH), ("candles", "funding", "mark_price", "last_price")
        down: dict[tuple[str, str], State] = {
            (pair, channel): "venue_down" for pair in pairs for channel in channels
        }
        RedisHome(redis_url).put_health(watch.now_ms, states=down)
        for path in ("/funding/BTCUSDT", "/mark/BTCUSDT", "/last/BTCUSDT", "/ohlcv/BTCUSDT"):
            assert error_of(api.get(path), 503, "stale_data")["detail"]["state"] == "venue_down"
            assert "is venue_down" in api.get(path).json["error"]["message"]
        batch = api.get("/funding/batch?symbols=BTCUSDT").json["errors"]["BTCUSDT"]
        assert batch["detail"]["state"] == "venue_down"
        for path in ("/health", "/funding/health"):
            error = error_of(api.get(path), 503, "stale_data")
            assert error["detail"]["state"] == "venue_down"
            assert error["message"].endswith("venue_down")
        assert '<span class="venue_down">' in api.get("/").body.decode()


def test_an_exchange_in_which_nothing_is_traded_is_healthy(
    home: SqliteHome, watch: Watch, redis_url: str
) -> None:
    path = write_config(home, redis_url)
    path.write_text(path.read_text().replace('["candles", "funding", "mark_price"]', '["candles"]'))
    with serving(path, watch) as api:
        watch.now_ms += 240_000
        pairs = (SPOT, BTC, ETH)
        RedisHome(redis_url).put_health(
            watch.now_ms, states={(pair, "candles"): "quiet" for pair in pairs}
        )
        answer = api.get("/health")
        assert (answer.status, answer.json["state"]) == (200, "quiet")
        assert api.get("/ohlcv/BTCUSDT").json["state"] == "quiet"


def test_the_status_page_shows_every_pair(api: Api) -> None:
    answer = api.get("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    text = answer.body.decode()
    assert all(f"<td>{pair}<" in text for pair in (BTC, ETH, SPOT))
    assert "61,000.5" in text
    assert "-0.001250 %" in text


def test_what_is_shown_on_the_page_is_escaped(api: Api, home: SqliteHome) -> None:
    home.put_last(last_of("<script>/USDT:USDT", NOW_MS))
    assert "<script>" not in api.get("/").body.decode()


def test_metrics_count_requests_by_route_and_reads_by_who_answered(api: Api) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT", "NOPEUSDT"):
        api.get(f"/mark/{symbol}")
    text = api.get("/metrics").body.decode()
    assert 'readers_requests_total{route="/mark/{symbol:path}",status="200"} 2.0' in text
    assert 'readers_requests_total{route="/mark/{symbol:path}",status="404"} 1.0' in text
    assert 'readers_request_seconds_count{route="/mark/{symbol:path}"} 3.0' in text
    assert 'readers_reads_total{outcome="sqlite"}' in text
    assert "NOPEUSDT" not in text


def test_with_a_token_everything_but_health_asks_for_it(home: SqliteHome, watch: Watch) -> None:
    with serving(write_config(home, token="s3cret-of-the-api"), watch) as api:
        for path in ("/mark/BTCUSDT", "/funding/batch?symbols=X", "/metrics", "/"):
            for header in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": "s3cret-of-the-api"},
            ):
                answer = api.get(path, **header)
                error_of(answer, 401, "unauthorized")
                assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert api.get(path, Authorization="Bearer s3cret-of-the-api").status == 200
        assert api.get("/health").status == 200


def run_readers(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from readers.cli import main; main()", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_public_address_without_a_token_is_refused(home: SqliteHome) -> None:
    with run_readers("serve", "--config", write_config(home, host="::")) as process:
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "api.token" in errors
    assert "reachable from outside" in errors


def test_serve_answers_until_sigterm_and_exits_0(home: SqliteHome, free_port: int) -> None:
    now_ms = int(time.time() * 1000)
    home.put_last(last_of(BTC, now_ms))
    with run_readers("serve", "--config", write_config(home, port=free_port)) as process:
        api = Api(free_port)
        try:
            eventually_sync(lambda: _answers(api), 20, "the API answers")
            assert api.get("/mark/BTCUSDT?max_age=any").json["mark_price"] == 61_000.5
            process.send_signal(signal.SIGTERM)
            output, errors = process.communicate(timeout=20)
        finally:
            api.close()
            process.kill()
    assert (process.returncode, output) == (0, "")
    assert "Traceback" not in errors


def test_an_address_that_is_taken_ends_with_3(home: SqliteHome) -> None:
    with serving(write_config(home), Watch(NOW_MS)) as api:
        taken = api._http.port
        assert taken is not None
        with run_readers("serve", "--config", write_config(home, port=taken)) as process:
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert errors.startswith(f"readers: 127.0.0.1:{taken} can't be bound: Address already in use")
    assert len(errors.splitlines()) == 1


def _answers(api: Api) -> bool:
    try:
        return api.get("/health").status in (200, 503)
    except urllib3.exceptions.HTTPError:
        return False
