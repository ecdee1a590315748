"""The units name what exists: commands, options, settings; and systemd understands them."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from ingest.service import DRAIN_S
from marketdata.config import load_config

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
PREFIX = "/opt/marketdata/.venv/bin"
NEWER = ("RestartSteps", "RestartMaxDelaySec")
"""Options of systemd 254; older ones say that they don't know them, and go on."""


def options(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def seconds(unit: Path, name: str) -> float:
    (text,) = options(unit)[name]
    return float(text)


def test_both_services_have_a_unit_and_both_drop_ins_a_service() -> None:
    assert [unit.stem for unit in UNITS] == ["marketdata-ingest", "marketdata-readers"]
    drop_ins = sorted(path.name for path in FOLDER.glob("*.d"))
    assert drop_ins == [f"{unit.name}.d" for unit in UNITS]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_starts_a_command_that_exists_with_options_that_it_has(unit: Path) -> None:
    (line,) = options(unit)["ExecStart"]
    program, command, *arguments = shlex.split(line)
    assert program.startswith(f"{PREFIX}/")
    group = importlib.import_module(f"{Path(program).name}.cli").main
    found = group.get_command(click.Context(group), command)
    assert found is not None
    known = {name for parameter in found.params for name in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("-")} <= known


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_restart_is_tried_unless_it_can_t_help(unit: Path) -> None:
    found = options(unit)
    assert found["Restart"] == ["on-failure"]
    assert found["RestartPreventExitStatus"] == ["2"]
    assert found["StartLimitIntervalSec"] == ["0"]


def test_the_service_is_given_the_time_to_drain_and_is_watched() -> None:
    ingest = UNITS[0]
    assert options(ingest)["Type"] == ["notify"]
    assert seconds(ingest, "WatchdogSec") == 60
    assert seconds(ingest, "TimeoutStopSec") > DRAIN_S * 2


def test_the_credential_of_the_drop_ins_is_a_token_that_the_file_can_name(tmp_path: Path) -> None:
    for unit in UNITS:
        text = (FOLDER / f"{unit.name}.d" / "influxdb.conf").read_text()
        match = re.search(r"^LoadCredential=(\S+):(\S+)$", text, re.MULTILINE)
        assert match is not None
        name, path = match.groups()
        assert Path(path).name in ("service.token", "readers.token")
        (tmp_path / name).write_text("a-secret\n")
        config = tmp_path / "config.yaml"
        config.write_text(
            "store: {kind: influxdb, url: http://127.0.0.1:8086, org: o, bucket: b, token:"
            f' {{file: "${{CREDENTIALS_DIRECTORY}}/{name}"}}}}\n'
            "exchanges: {BYBIT: {pairs: [BTC/USDT]}}\n"
        )
        settings = load_config(config, {"CREDENTIALS_DIRECTORY": str(tmp_path)})
        assert settings.store.kind == "influxdb"
        assert settings.store.token.get_secret_value() == "a-secret"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    for program in ("ingest", "readers"):
        stub = tmp_path / program
        stub.write_text("#!/bin/sh\n")
        stub.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PREFIX, str(tmp_path)))
    shutil.copytree(FOLDER / f"{unit.name}.d", tmp_path / f"{unit.name}.d")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],  # noqa: S607 (as installed)
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = [
        line
        for line in (done.stdout + done.stderr).splitlines()
        if not any(f"Unknown key '{option}'" in line for option in NEWER)
    ]
    assert (done.returncode, said) == (0, [])
