"""The configuration that is right: defaults, the sample, secrets, paths, where it is looked for."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from ingest.simulator.universe import universe
from ingest.sinks.views import PRESETS
from marketdata.config import load_config, parse_config
from marketdata.errors import ConfigError
from marketdata.fields import VIEWS
from marketdata.settings import (
    CaptureSettings,
    InfluxStore,
    RedisPairs,
    Section,
    Settings,
    SqliteStore,
    TopPairs,
    names,
    sections,
)

ROOT = Path(__file__).parents[2]
SAMPLE = (ROOT / "config.yaml").read_text()
EXCHANGES = "exchanges: {BYBIT: {pairs: [BTC/USDT]}}\n"
INFLUX = """
store: {kind: influxdb, url: "http://127.0.0.1:8086", org: trading, bucket: candles, token: t0ken}
"""


def parse(text: str, **environ: str) -> Settings:
    return parse_config(text, source="config.yaml", folder=Path("/srv/md"), environ=environ)


def commented_out(text: str) -> str:
    """The settings of the sample that need a server, as if their `#` were gone."""
    blocks = re.findall(r"^#(?:store|redis|capture):\n(?:#  .*\n)+", text, re.MULTILINE)
    assert len(blocks) == 3
    return re.sub(r"^#", "", "".join(blocks), flags=re.MULTILINE)


def test_one_exchange_with_pairs_is_a_whole_configuration() -> None:
    settings = parse(EXCHANGES)
    assert settings.store == SqliteStore(path=Path("/srv/md/var/market_data.db"))
    assert settings.store.ticks.every_ms == 10_000
    assert settings.store.ticks.retention_ms == 7 * 86_400_000
    assert settings.redis is None
    assert settings.outbox.path == Path("/srv/md/var/outbox.db")
    assert settings.outbox.max_bytes == 4 * 1024**3
    assert (settings.api.host, settings.api.port, settings.api.token) == ("127.0.0.1", 8888, None)
    assert (settings.monitor.host, settings.monitor.port) == ("127.0.0.1", 9108)
    assert (settings.repair.lookback_ms, settings.repair.weight_share) == (2 * 86_400_000, 0.5)
    assert settings.exchanges["BYBIT"].channels == (
        "candles",
        "funding",
        "mark_price",
        "last_price",
    )


def test_ticks_on_influxdb_come_each_second_and_stay_for_ever_in_the_candles_bucket() -> None:
    store = parse(INFLUX + EXCHANGES).store
    assert isinstance(store, InfluxStore)
    assert (store.ticks.every_ms, store.ticks.retention_ms, store.ticks.bucket) == (
        1000,
        None,
        None,
    )


def test_an_empty_section_is_left_out() -> None:
    assert parse("redis:\nstore:\noutbox:\napi: {token: }\n" + EXCHANGES) == parse(EXCHANGES)


def test_ticks_may_be_kept_for_ever() -> None:
    text = "store: {kind: sqlite, ticks: {retention: forever}}\n" + EXCHANGES
    assert parse(text).store.ticks.retention_ms is None


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("[BTC/USDT, 币安人生/USDT:USDT]", ("BTC/USDT", "币安人生/USDT:USDT")),
        ("[ETH/USDT:USDT-261225]", ("ETH/USDT:USDT-261225",)),
        ("{quote: USDT, top: 120}", TopPairs(quote="USDT", top=120)),
        (
            "{redis: ['bot:pairs'], fallback: [BTC/USDT]}",
            RedisPairs(redis=("bot:pairs",), fallback=("BTC/USDT",)),
        ),
    ],
)
def test_pairs_are_a_list_or_by_volume_or_from_redis(pairs: str, expected: object) -> None:
    assert parse(f"exchanges: {{BYBIT: {{pairs: {pairs}}}}}").exchanges["BYBIT"].pairs == expected


def test_addresses_of_an_exchange_may_be_replaced() -> None:
    settings = parse(
        "exchanges: {BYBIT: {pairs: [BTC/USDT], ws_url: 'ws://127.0.0.1:9000/',"
        " rest_url: 'http://127.0.0.1:9001', http_proxy: 'http://me:pass@proxy:3128'}}"
    )
    bybit = settings.exchanges["BYBIT"]
    assert (bybit.ws_url, bybit.rest_url) == ("ws://127.0.0.1:9000", "http://127.0.0.1:9001")
    assert bybit.http_proxy is not None
    assert bybit.http_proxy.get_secret_value() == "http://me:pass@proxy:3128"


@pytest.mark.parametrize("url", ["redis://h:6379/0", "rediss://:p@h", "unix:///run/redis.sock"])
def test_redis_is_reached_over_tcp_tls_or_a_socket(url: str) -> None:
    redis = parse(f"redis: {{url: '{url}'}}\n{EXCHANGES}").redis
    assert redis is not None
    assert redis.url.get_secret_value() == url


def test_the_views_are_those_that_the_service_can_show() -> None:
    assert set(VIEWS) == set(PRESETS)


def test_secrets_come_out_of_the_environment() -> None:
    store = parse(INFLUX.replace("t0ken", "${TOKEN}") + EXCHANGES, TOKEN="from-outside").store
    assert isinstance(store, InfluxStore)
    assert store.token.get_secret_value() == "from-outside"


def test_secrets_come_out_of_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-a-file\n")
    config = tmp_path / "config.yaml"
    config.write_text(INFLUX.replace("t0ken", "{file: token}") + EXCHANGES)
    store = load_config(config, {}).store
    assert isinstance(store, InfluxStore)
    assert store.token.get_secret_value() == "from-a-file"


def test_other_values_come_out_of_the_environment_too() -> None:
    text = "api: {port: ${PORT}}\nstore: {kind: sqlite, path: '${DIR}/x.db'}\n" + EXCHANGES
    settings = parse(text, PORT="9999", DIR="/data")
    assert settings.api.port == 9999
    assert isinstance(settings.store, SqliteStore)
    assert settings.store.path == Path("/data/x.db")


def test_no_form_of_the_settings_shows_a_secret() -> None:
    settings = parse(
        INFLUX
        + "redis: {url: 'redis://:s3cret@h/0'}\napi: {host: 0.0.0.0, token: s3cret}\n"
        + "exchanges: {BYBIT: {pairs: [BTC/USDT], http_proxy: 'http://me:s3cret@p:1'}}\n"
    )
    for form in (repr(settings), str(settings), settings.model_dump_json()):
        assert "s3cret" not in form
        assert "t0ken" not in form


def test_settings_survive_pickling() -> None:
    settings = parse(INFLUX + EXCHANGES)
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(EXCHANGES).api.port = 1  # type: ignore[misc]


def test_the_file_is_named_by_the_caller_then_the_environment_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, port in (("named", 1), ("environment", 2), ("config", 3)):
        (tmp_path / f"{name}.yaml").write_text(f"api: {{port: {port}}}\n{EXCHANGES}")
    environ = {"MARKETDATA_CONFIG": str(tmp_path / "environment.yaml")}
    assert load_config(Path("named.yaml"), environ).api.port == 1
    assert load_config(None, environ).api.port == 2
    found = load_config(None, {})
    assert found.api.port == 3
    assert found.source == Path("config.yaml")
    assert found.outbox.path == tmp_path / "var/outbox.db"


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*--config, MARKETDATA_CONFIG") as raised:
        load_config(tmp_path / "none.yaml", {})
    assert str(tmp_path / "none.yaml") in str(raised.value)


def test_the_sample_runs_as_it_is_with_164_pairs() -> None:
    settings = parse(SAMPLE)
    lists = [exchange.pairs for exchange in settings.exchanges.values()]
    assert sum(len(pairs) for pairs in lists if isinstance(pairs, tuple)) == 164
    assert list(settings.exchanges) == ["BINANCE_FUTURES", "BYBIT"]


def test_the_sample_shows_the_defaults() -> None:
    sample = parse(SAMPLE)
    assert sample.model_copy(update={"exchanges": {}}) == parse(EXCHANGES).model_copy(
        update={"exchanges": {}}
    )


def test_the_parts_of_the_sample_that_are_commented_out_are_right() -> None:
    settings = parse(commented_out(SAMPLE) + EXCHANGES, INFLUXDB_TOKEN="t")
    assert isinstance(settings.store, InfluxStore)
    assert settings.store.ticks.bucket == "market_data_ticks"
    assert settings.redis is not None
    assert settings.capture == CaptureSettings(path=Path("/srv/md/var/capture"))


@pytest.mark.parametrize(("path", "section"), list(sections()))
def test_the_sample_shows_every_setting(path: tuple[str, ...], section: type[Section]) -> None:
    missing = [name for name in names(section) if not re.search(rf"\b{name}\b: ?", SAMPLE)]
    assert not missing, f"{'.'.join(path)}: {missing}"


@pytest.mark.parametrize("exchange", ["BINANCE_FUTURES", "BYBIT"])
def test_the_simulated_exchanges_list_every_pair_of_the_sample(exchange: str) -> None:
    listed = {
        f"{contract.base}/{contract.quote}" + (f":{contract.settle}" if contract.settle else "")
        for contract in universe(as_of_ms=1_795_000_000_000)
        if contract.exchange == exchange and contract.active and contract.kind != "future"
    }
    pairs = parse(SAMPLE).exchanges[exchange].pairs
    assert isinstance(pairs, tuple)
    assert set(pairs) <= listed


def test_a_file_with_every_setting_in_short_form_is_understood() -> None:
    settings = parse(
        """
store:
  kind: influxdb
  url: http://127.0.0.1:8086
  org: trading
  bucket: market_data
  token: ${INFLUXDB_TOKEN}
  ticks: {every: 1s, retention: 30d, bucket: market_data_ticks}   # a comment with ${NOBODY}
redis: {url: redis://127.0.0.1:6379/0, views: [quantum]}
outbox: {path: var/outbox.db, max_bytes: 4GiB}
api: {host: 127.0.0.1, port: 8888, token: ${API_TOKEN}}
monitor: {host: 127.0.0.1, port: 9108}
repair: {lookback: 2d, weight_share: 0.5}
exchanges:
  BINANCE_FUTURES:
    channels: [candles, funding, mark_price]
    pairs: [BTC/USDT:USDT, 币安人生/USDT:USDT]
    ws_url: wss://127.0.0.1:9001
    rest_url: https://127.0.0.1:9002
    http_proxy: http://127.0.0.1:3128
""",
        INFLUXDB_TOKEN="one",
        API_TOKEN="two",
    )
    assert isinstance(settings.store, InfluxStore)
    assert settings.store.token.get_secret_value() == "one"
    assert settings.store.ticks.retention_ms == 30 * 86_400_000
    assert settings.api.token is not None
    assert settings.api.token.get_secret_value() == "two"
    assert settings.exchanges["BINANCE_FUTURES"].channels == ("candles", "funding", "mark_price")
