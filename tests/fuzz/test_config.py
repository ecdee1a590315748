"""Configuration files, damaged: settings, or every fault named; never a traceback or a secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from marketdata.config import parse_config
from marketdata.errors import ConfigError
from marketdata.settings import Settings
from tests.fuzz.mutation import ODD_TEXTS, damaged_bytes, damaged_value, dumps, fuzzed

SECRETS = {"SECRET": "hunter2-hunter2", "PORT": "hunter2", "BLANKS": " hunter2\n"}
OF_FILES = "hunter2:hunter2@"
SAMPLE = (Path(__file__).parents[2] / "config.yaml").read_text("utf-8")
SHORT = re.sub(
    r"(?m) *#.*\n|^\n", "\n", re.sub(r"pairs: \[[^\]]*\]", "pairs: [BTC/USDT:USDT]", SAMPLE)
)
FULL = """
store: &store
  kind: influxdb
  url: http://127.0.0.1:8086
  org: trading
  bucket: market_data
  token: ${SECRET}
  ticks: {every: 1s, bucket: market_data_ticks, retention: 30d}
redis: {url: "redis://:${SECRET}@127.0.0.1:6379/0", views: [quantum, bybit_spot]}
outbox: {path: var/outbox.db, max_bytes: 4GiB}
api: {host: 127.0.0.1, port: 8888, token: {file: token.txt}}
monitor: {host: "::1", port: 9108}
repair: {lookback: 2d, weight_share: 0.5}
capture: {path: ~/capture, max_bytes: 2GiB, segment: 5m}
exchanges:
  BINANCE_FUTURES:
    channels: [candles, funding]
    pairs: {redis: ["keys:of:pairs"], fallback: [BTC/USDT:USDT]}
    http_proxy: http://me:${SECRET}@127.0.0.1:3128
  BYBIT: {pairs: {quote: USDT, top: 120}, ws_url: ws://127.0.0.1:9, rest_url: http://h}
"""
SNIPPETS = (
    "${SECRET}", "${PORT}", "${BLANKS}", "${NOT_THERE}", "{file: x}", "*store", "&store",
    "<<: *store", "!!int x", "!!binary x", "!!python/object:x", "!hunter2!x", "? [a]\n:",
    "|\n  a\n  b", ">-", "---", "%YAML 9.9\n---", "%YAML " + "9" * 5_000 + ".1\n---",
    r'"\UFFFFFFFF"', r'"\uD800"', r'"\0"',
    ".nan", ".inf", "0o9", "1:30:00", "2024-13-45", "[" * 2_000, "{a: " * 2_000, "\t", "\r",
    "\u2028", "[*store, *store]", "a list", "by volume", "~nobody-here/x", "9" * 400,
)  # fmt: skip


@st.composite
def damaged_texts(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from([SHORT, FULL]))
    how = draw(st.sampled_from(["lines", "lines", "values", "bytes"]))
    if how == "bytes":
        return draw(damaged_bytes(text.encode())).decode("utf-8", "replace")
    if how == "values":
        # JSON is YAML; with `*` and `&` gone, an alias has become a copy.
        return dumps(draw(damaged_value(yaml.safe_load(text)))).decode()
    lines = text.split("\n")
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        odd = draw(st.one_of(st.sampled_from(SNIPPETS), st.sampled_from(ODD_TEXTS)))
        key, colon, _ = lines[at].partition(":")
        match draw(st.sampled_from(["value", "value", "key", "drop", "double", "indent", "token"])):
            case "value":
                lines[at] = f"{key}{colon} {odd}"
            case "key":
                lines[at] = lines[at].replace(key.strip() or "-", odd, 1)
            case "drop":
                del lines[at]
            case "double":
                lines.insert(at, lines[at])
            case "indent":
                lines[at] = draw(st.sampled_from([" ", "  ", "\t", "- "])) + lines[at]
            case _:
                words = re.findall(r"\S+", lines[at]) or [""]
                lines[at] = lines[at].replace(draw(st.sampled_from(words)), odd, 1)
        lines = lines or [""]
    return "\n".join(lines)


def read(path: Path) -> str:
    if "token" in path.name or path.name == "x":
        return OF_FILES
    raise FileNotFoundError(path)


def parsed(text: str) -> Settings | ConfigError:
    try:
        return parse_config(
            text, source="config.yaml", folder=Path("/srv"), environ=SECRETS, read=read
        )
    except ConfigError as error:
        return error


def test_the_samples_have_no_fault() -> None:
    for text in (SHORT, FULL):
        assert isinstance(parsed(text), Settings)


@fuzzed(200)
@given(damaged_texts())
def test_a_damaged_file_is_settings_or_faults_without_a_secret(text: str) -> None:
    outcome = parsed(text)
    if isinstance(outcome, Settings):
        return
    assert outcome.faults
    assert outcome.__cause__ is None, "a chained error would show the values"
    shown = f"{outcome}\n{outcome.faults!r}"
    assert "hunter2" in text or "hunter2" not in shown
    for fault in outcome.faults:
        assert fault.key
        assert fault.found
        assert fault.valid
        assert str(fault).isprintable(), "one line a fault, on any terminal"


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        # Each was found by the test above, or by hand on the way to it.
        ('api: {host: "\\UFFFFFFFF"}', "the file", "a number that is too large"),
        ("%YAML " + "9" * 5_000 + ".1\n---\napi: {}", "the file", "a number that is too large"),
        ('api: {host: "\\uD800"}', "api.host", "characters that can't be printed"),
        ('outbox: {path: "a\\0b"}', "outbox.path", "characters that can't be printed"),
        ('api: {token: {file: "a\\0b"}}', "api.token.file", "characters that can't be printed"),
        ("outbox: {path: ~nobody-here/x}", "outbox.path", "a user who isn't known"),
        ("repair: {weight_share: 1" + "0" * 400 + "}", "repair.weight_share", "1000"),
        ("monitor: {port: '" + "9" * 5_000 + "'}", "monitor.port", "9999"),
        ('a: &v ["${SECRET}"]\nredis: {url: redis://h, views: *v}', "redis.views[0]", "not shown"),
        ('exchanges: {"a list": "${SECRET}"}', "exchanges.a…", "not shown"),
        ("redis: {url: {file: token}}", "redis.url", "not shown"),
        ("api: {host: {token:hunter2: 1}}", "api.host", "a section (token…)"),
        ("api: {port: !hunter2!x 5}", "the file", "a tag (!…)"),
    ],
)
def test_what_was_found(text: str, key: str, found: str) -> None:
    outcome = parsed(text)
    assert isinstance(outcome, ConfigError)
    assert "hunter2" not in str(outcome)
    told: dict[str, Any] = {fault.key: fault.found for fault in outcome.faults}
    assert found in told[key]
