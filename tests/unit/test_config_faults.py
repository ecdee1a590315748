"""A bad configuration: every fault names key, line, what was found and what is valid."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from marketdata.config import load_config, parse_config
from marketdata.errors import ConfigError, Fault

SECRET = "hunter2-hunter2"
ENVIRON = {"SECRET": SECRET, "BLANKS": f" {SECRET} "}
EXCHANGES = "exchanges: {BYBIT: {pairs: [BTC/USDT]}}\n"
INFLUX = """store:
  kind: influxdb
  url: http://127.0.0.1:8086
  org: trading
  bucket: candles
  token: ${SECRET}
"""


class Broken(NamedTuple):
    """A broken text, and what its first fault says."""

    name: str
    text: str
    key: str
    line: int | None
    found: str
    valid: str


BROKEN = [
    Broken("nothing", "", "exchanges", 1, "nothing", "BINANCE_FUTURES, BYBIT"),
    Broken("a_list", "- BYBIT\n", "the file", 1, "a list of 1", "store, redis, outbox"),
    Broken("broken_yaml", "api: {port: 1\nexchanges:\n", "the file", 2, "broken YAML", "YAML"),
    Broken("a_tab", "api:\n\tport: 1\n", "the file", 2, "broken YAML", "YAML"),
    Broken("two_documents", "api:\n---\napi:\n", "the file", 2, "broken YAML", "YAML"),
    Broken("control_character", "api:\n  host: \x07\n", "the file", 2, "a character", "printable"),
    Broken("levels", "[" * 5000, "the file", 1, "hundreds of levels", "a few levels"),
    Broken(
        "unknown_section", f"redsi: {{}}\n{EXCHANGES}",
        "redsi", 1, "a setting that doesn't exist", "redis, or one of: store, redis",
    ),
    Broken(
        "unknown_setting", f"repair:\n  look_back: 2d\n{EXCHANGES}",
        "repair.look_back", 2, "doesn't exist", "lookback, or one of: lookback, weight_share",
    ),
    Broken(
        "the_same_key_twice", f"api: {{}}\nmonitor: {{}}\napi: {{}}\n{EXCHANGES}",
        "api", 3, "a second time (first on line 1)", "each key once",
    ),
    Broken(
        "unknown_store", f"store:\n  kind: postgres\n{EXCHANGES}",
        "store.kind", 2, "'postgres'", "one of: sqlite, influxdb",
    ),
    Broken(
        "store_without_kind", f"store: {{path: x.db}}\n{EXCHANGES}",
        "store.kind", 1, "nothing", "one of: sqlite, influxdb",
    ),
    Broken(
        "setting_of_the_other_store", f"store:\n  kind: sqlite\n  url: http://h\n{EXCHANGES}",
        "store.url", 3, "doesn't exist", "kind, path, ticks",
    ),
    Broken(
        "influxdb_without_token", INFLUX.replace("token: ${SECRET}", "") + EXCHANGES,
        "store.token", 1, "nothing", "${NAME} from the environment",
    ),
    Broken(
        "missing_variable", INFLUX.replace("SECRET", "NO_SUCH_TOKEN") + EXCHANGES,
        "store.token", 6, "${NO_SUCH_TOKEN}, which the environment doesn't have", "NO_SUCH_TOKEN=",
    ),
    Broken(
        "secret_with_blanks", INFLUX.replace("SECRET", "BLANKS") + EXCHANGES,
        "store.token", 6, "'${BLANKS}' out of the environment", "text in quotes",
    ),
    Broken(
        "secret_as_number", INFLUX.replace("${SECRET}", "12345678") + EXCHANGES,
        "store.token", 6, "no text (not shown)", "text in quotes",
    ),
    Broken(
        "secret_of_a_missing_file", INFLUX.replace("${SECRET}", "{file: nowhere}") + EXCHANGES,
        "store.token", 6, "the file /srv/nowhere, which can't be read", "{file: path}",
    ),
    Broken(
        "secret_that_looks_like_a_tag", INFLUX.replace("${SECRET}", f"!{SECRET} x") + EXCHANGES,
        "store.token", 6, "a tag", "in quotes",
    ),
    Broken(
        "secret_that_looks_like_an_alias", INFLUX.replace("${SECRET}", f"*{SECRET}") + EXCHANGES,
        "the file", 6, "broken YAML", "YAML",
    ),
    Broken(
        "secret_without_a_blank", f"api:\n  token:{SECRET}:\n{EXCHANGES}",
        "api.token…", 2, "doesn't exist", "host, port, token",
    ),
    Broken(
        "variable_in_the_wrong_place", f"store: {{kind: '${{SECRET}}'}}\n{EXCHANGES}",
        "store.kind", 1, "'${SECRET}' out of the environment", "one of: sqlite, influxdb",
    ),
    Broken(
        "credentials_in_a_plain_url",
        INFLUX.replace("//127", f"//me:{SECRET}@127") + EXCHANGES,
        "store.url", 3, "a URL with a user or a password", "http:// or https://",
    ),
    Broken(
        "scheme_of_influxdb", INFLUX.replace("http:", "influx:") + EXCHANGES,
        "store.url", 3, "influx:// as the scheme", "http:// or https://",
    ),
    Broken(
        "scheme_of_redis", f"redis:\n  url: http://:{SECRET}@h/0\n{EXCHANGES}",
        "redis.url", 2, "http:// as the scheme", "redis:// or rediss:// or unix://",
    ),
    Broken(
        "redis_without_url", f"redis: {{views: []}}\n{EXCHANGES}",
        "redis.url", 1, "nothing", "redis://",
    ),
    Broken(
        "unknown_view", f"redis:\n  url: redis://h\n  views:\n  - quantumm\n{EXCHANGES}",
        "redis.views[0]", 4, "'quantumm'", "quantum, bybit_spot, coindcx_futures",
    ),
    Broken(
        "expiring_ticks_among_candles", INFLUX + "  ticks: {retention: 30d}\n" + EXCHANGES,
        "store.ticks.retention", 7, "ticks that expire", "forever",
    ),
    Broken(
        "one_bucket_for_both", INFLUX + "  ticks: {bucket: candles}\n" + EXCHANGES,
        "store.ticks", 7, "the candles' bucket", "another bucket",
    ),
    Broken(
        "duration_without_unit", f"repair: {{lookback: 2}}\n{EXCHANGES}",
        "repair.lookback", 1, "2", "a duration from 0s to 30d",
    ),
    Broken(
        "duration_out_of_range",
        f"store:\n  kind: sqlite\n  ticks:\n    every: 5m\n{EXCHANGES}",
        "store.ticks.every", 4, "'5m'", "from 100ms to 60s",
    ),
    Broken(
        "size_in_words", f"outbox:\n  max_bytes: a lot\n{EXCHANGES}",
        "outbox.max_bytes", 2, "'a lot'", "512MiB, 4GiB",
    ),
    Broken(
        "share_in_percent", f"repair:\n  weight_share: 50\n{EXCHANGES}",
        "repair.weight_share", 2, "50", "above 0, at most 1",
    ),
    Broken(
        "port_out_of_range", f"monitor: {{port: 65536}}\n{EXCHANGES}",
        "monitor.port", 1, "65536", "from 1 to 65535",
    ),
    Broken("port_as_yes", f"api: {{port: yes}}\n{EXCHANGES}", "api.port", 1, "true", "1 to 65535"),
    Broken(
        "a_number_as_section", f"monitor: 9108\n{EXCHANGES}",
        "monitor", 1, "9108", "a section of: host, port",
    ),
    Broken(
        "public_without_token", f"api:\n  host: 0.0.0.0\n{EXCHANGES}",
        "api.token", 1, "nothing, though api.host is reachable from outside", "loopback",
    ),
    Broken(
        "unknown_exchange", "exchanges:\n  BINANCE: {pairs: [BTC/USDT]}\n",
        "exchanges.BINANCE", 2, "'BINANCE'", "BINANCE_FUTURES, BYBIT",
    ),
    Broken(
        "no_exchange", "exchanges: {}\n",
        "exchanges", 1, "an empty section", "BINANCE_FUTURES, BYBIT",
    ),
    Broken(
        "exchanges_as_list", "exchanges: [BYBIT]\n",
        "exchanges", 1, "a list of 1", "a section for each exchange",
    ),
    Broken(
        "channel_that_isnt_given",
        "exchanges:\n  BYBIT:\n    pairs: [BTC/USDT]\n    channels:\n    - candles\n    - book\n",
        "exchanges.BYBIT.channels[1]", 6, "'book'", "BYBIT gives candles, funding",
    ),
    Broken(
        "channels_as_text", "exchanges:\n  BYBIT: {pairs: [BTC/USDT], channels: candles}\n",
        "exchanges.BYBIT.channels", 2, "'candles'", "a list of: candles, funding",
    ),
    Broken(
        "without_pairs", "exchanges:\n  BYBIT:\n    channels: [candles]\n",
        "exchanges.BYBIT.pairs", 2, "nothing", "a list of pairs",
    ),
    Broken(
        "empty_pairs", "exchanges:\n  BYBIT: {pairs: []}\n",
        "exchanges.BYBIT.pairs", 2, "an empty list", "a list of pairs",
    ),
    Broken(
        "an_exchange_id_as_pair", "exchanges:\n  BYBIT:\n    pairs:\n    - BTCUSDT\n",
        "exchanges.BYBIT.pairs[0]", 4, "perhaps BTC/USDT:USDT, the perpetual", "as ccxt names it",
    ),
    Broken(
        "a_pair_twice", "exchanges:\n  BYBIT:\n    pairs: [BTC/USDT, ETH/USDT, BTC/USDT]\n",
        "exchanges.BYBIT.pairs", 3, "BTC/USDT twice", "each pair once",
    ),
    Broken(
        "top_without_count", "exchanges:\n  BYBIT:\n    pairs: {quote: USDT}\n",
        "exchanges.BYBIT.pairs.top", 3, "nothing", "a whole number from 1 to 1000",
    ),
    Broken(
        "no_fallback", "exchanges:\n  BYBIT:\n    pairs: {redis: [k]}\n",
        "exchanges.BYBIT.pairs.fallback", 3, "nothing", "a list of pairs",
    ),
    Broken(
        "stream_address_with_path",
        f"exchanges:\n  BYBIT:\n    pairs: [BTC/USDT]\n    ws_url: wss://h/v5?key={SECRET}\n",
        "exchanges.BYBIT.ws_url", 4, "a path or a query", "ws:// or wss://, without a path",
    ),
    Broken(
        "rest_address_of_a_stream",
        "exchanges:\n  BYBIT:\n    pairs: [BTC/USDT]\n    rest_url: wss://h\n",
        "exchanges.BYBIT.rest_url", 4, "wss:// as the scheme", "http:// or https://",
    ),
    Broken(
        "proxy_with_impossible_port",
        f"exchanges:\n  BYBIT:\n    pairs: [BTC/USDT]\n    http_proxy: http://me:{SECRET}@h:99999\n",
        "exchanges.BYBIT.http_proxy", 4, "an impossible host or port", "http:// or https://",
    ),
    Broken(
        "an_alias_of_itself", f"{EXCHANGES}redis: &r {{url: redis://h, views: [*r]}}\n",
        "redis.views[0]", 2, "an alias of what it is in", "a value",
    ),
]  # fmt: skip


def faults(text: str) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as raised:
        parse_config(text, source="config.yaml", folder=Path("/srv"), environ=ENVIRON)
    assert SECRET not in str(raised.value)
    assert SECRET not in repr(raised.value.faults)
    assert raised.value.__cause__ is None, "a chained error would show the values"
    return raised.value.faults


@pytest.mark.parametrize("broken", BROKEN, ids=[broken.name for broken in BROKEN])
def test_a_fault_names_key_line_found_and_valid(broken: Broken) -> None:
    (fault,) = (found for found in faults(broken.text) if found.key == broken.key)
    assert fault.line == broken.line
    assert broken.found in fault.found
    assert broken.valid in fault.valid


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    found = faults(
        """store: {kind: postgres}
api: {host: 0.0.0.0, port: 0, colour: red}
outbox: {max_bytes: 1}
outbox: {}
redis: {url: "${NO_SUCH_URL}", views: [none]}
exchanges:
  BYBIT:
    pairs: [BTCUSDT, ETHUSDT]
    channels: [book]
  KRAKEN: {pairs: [BTC/USD]}
"""
    )
    assert [fault.key for fault in found] == [
        "store.kind",
        "api.port",
        "api.token",
        "api.colour",
        "outbox.max_bytes",
        "outbox",
        "redis.url",
        "redis.views[0]",
        "exchanges.BYBIT.pairs[0]",
        "exchanges.BYBIT.pairs[1]",
        "exchanges.BYBIT.channels[0]",
        "exchanges.KRAKEN",
    ]


def test_the_message_is_one_line_for_each_fault() -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config("api:\n  port: 0\n", source="x.yaml", folder=Path(), environ={})
    assert str(raised.value).splitlines() == [
        "x.yaml can't be used:",
        "  line 1: exchanges: found nothing; valid: a section for each exchange, of: "
        "BINANCE_FUTURES, BYBIT",
        "  line 2: api.port: found 0; valid: a whole number from 1 to 65535",
    ]


def test_a_file_that_is_no_text_is_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text in UTF-8"):
        load_config(tmp_path / "config.yaml", {})


def test_a_folder_is_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path, {})
