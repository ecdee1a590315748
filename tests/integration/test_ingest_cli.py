"""The commands as a user runs them: processes, exit codes, what they print where."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest

from tests.waiting import eventually_sync

ENVIRON = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160"}
INGEST = [sys.executable, "-m", "ingest"]


def ingest(*arguments, code=0):
    done = subprocess.run(
        [*INGEST, *map(str, arguments)], capture_output=True, text=True, timeout=60, env=ENVIRON
    )
    assert done.returncode == code, done.stderr
    return done


@contextmanager
def started(*arguments, **environ):
    process = subprocess.Popen(
        [*INGEST, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON | environ,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def status(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=2) as answer:
            return json.load(answer)
    except OSError:
        return None


def is_live(port):
    found = status(port)
    return found is not None and found["state"] in ("live", "quiet")


@pytest.fixture
def simulated(free_port_of):
    """A running simulator, and a configuration for it."""
    port = free_port_of()
    with started("simulate", "--port", port) as simulator:
        assert simulator.stdout.readline().startswith("# for config.yaml")
        yield port


@pytest.fixture
def supervisor(tmp_path):
    """What systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


@pytest.fixture
def free_port_of():
    from tests.servers.process import free_port

    return free_port


@pytest.fixture
def config(tmp_path, simulated, free_port_of):
    monitor = free_port_of()
    url = {"ws_url": f"ws://127.0.0.1:{simulated}", "rest_url": f"http://127.0.0.1:{simulated}"}
    path = tmp_path / "config.yaml"
    document = {
        "monitor": {"port": monitor},
        "repair": {"lookback": "30m"},
        "exchanges": {"BINANCE_FUTURES": {"pairs": ["BTC/USDT:USDT", "币安人生/USDT:USDT"], **url}},
    }
    path.write_text(json.dumps(document), "utf-8")
    return path, monitor


def test_run_prints_its_plan_serves_its_state_and_ends_with_0_on_sigterm(config, supervisor):
    path, monitor = config
    with started("run", "--config", path, NOTIFY_SOCKET=supervisor.getsockname()) as service:
        eventually_sync(lambda: is_live(monitor), 30, "a live service")
        eventually_sync(lambda: status(monitor)["minutes"]["repaired"] >= 60, 30, "history")
        shown = ingest("status", "--config", path)
        assert "BINANCE_FUTURES" in shown.stdout
        whole = json.loads(ingest("status", "--json", "--config", path).stdout)
        assert whole["exchanges"]["BINANCE_FUTURES"]["pairs"].keys() == {
            "BTC/USDT:USDT", "币安人生/USDT:USDT",
        }  # fmt: skip
        assert supervisor.recv(4096) == b"READY=1"
        service.send_signal(signal.SIGTERM)
        out, err = service.communicate(timeout=20)
    assert service.returncode == 0, err
    told = iter(lambda: supervisor.recv(4096), b"STOPPING=1\nSTATUS=draining")
    assert all(message.startswith(b"WATCHDOG=1\nSTATUS=") for message in told)
    assert out == ""
    assert "connection plan" in err
    assert "Traceback" not in err


def test_a_second_service_on_the_same_outbox_is_refused(config):
    path, monitor = config
    with started("run", "--config", path):
        eventually_sync(lambda: is_live(monitor), 30, "a live service")
        refused = ingest("run", "--config", path, code=3)
    assert "outbox.db is in use by another process (pid " in refused.stderr
    assert "give this one another outbox.path" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_port_that_is_taken_is_exit_code_3(config):
    path, monitor = config
    with socket.create_server(("127.0.0.1", monitor)):
        refused = ingest("run", "--config", path, code=3)
    assert f"can't listen on 127.0.0.1:{monitor}" in refused.stderr
    assert "Traceback" not in refused.stderr


DEFECT = """
import ingest.pipeline

async def step(self):
    raise ValueError("a defect")

ingest.pipeline.Pipeline.step = step
from ingest.cli import main
main()
"""


def test_a_defect_in_a_task_ends_the_service_with_exit_code_1_and_a_traceback(config):
    path, _ = config
    command = [sys.executable, "-c", DEFECT, "run", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRON)
    assert done.returncode == 1, done.stderr
    assert "Traceback" in done.stderr
    assert "ValueError: a defect" in done.stderr


def test_a_changed_file_is_followed_and_a_bad_one_is_not(config):
    path, monitor = config
    with started("run", "--config", path) as service:
        eventually_sync(lambda: is_live(monitor), 30, "a live service")
        document = json.loads(path.read_text("utf-8"))
        document["exchanges"]["BINANCE_FUTURES"]["pairs"] = ["ETH/USDT:USDT"]
        path.write_text(json.dumps(document), "utf-8")

        def pairs():
            return set(status(monitor)["exchanges"]["BINANCE_FUTURES"]["pairs"])

        eventually_sync(lambda: pairs() == {"ETH/USDT:USDT"}, 30, "the new pair")
        path.write_text("exchanges: {NOWHERE: {pairs: [A/B]}}", "utf-8")
        service.send_signal(signal.SIGHUP)
        line = eventually_sync(
            lambda: next((li for li in service.stderr if "reload_refused" in li), None),
            30,
            "a log line",
        )
        assert "NOWHERE" in str(line)
        assert pairs() == {"ETH/USDT:USDT"}


def test_pairs_of_which_none_is_listed_are_an_error_of_the_configuration(config):
    path, _ = config
    document = json.loads(path.read_text("utf-8"))
    document["exchanges"]["BINANCE_FUTURES"]["pairs"] = ["NOPE/USDT:USDT"]
    path.write_text(json.dumps(document), "utf-8")
    refused = ingest("run", "--config", path, code=2)
    assert "exchanges.BINANCE_FUTURES.pairs" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_check_prints_the_plan_and_touches_nothing(tmp_path):
    path = tmp_path / "config.yaml"
    pairs = [f"C{n}/USDT:USDT" for n in range(164)]
    path.write_text(json.dumps({"exchanges": {"BINANCE_FUTURES": {"pairs": pairs}}}))
    shown = ingest("check", "--config", path)
    assert "market-1" in shown.stdout
    assert "165" in shown.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_a_bad_file_is_exit_code_2_and_a_message_for_each_fault(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("exchanges:\n  BYBIT:\n    pairs: [BTCUSDT]\n    channels: [trades]\n")
    for command in ("run", "check", "status", "launch"):
        refused = ingest(command, "--config", path, code=2)
        assert "line 3" in refused.stderr
        assert "line 4" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_status_without_a_service_is_exit_code_3(tmp_path, free_port_of):
    path = tmp_path / "config.yaml"
    path.write_text(
        f"monitor: {{port: {free_port_of()}}}\nexchanges: {{BYBIT: {{pairs: [BTC/USDT]}}}}\n"
    )
    assert "no service answers" in ingest("status", "--config", path, code=3).stderr


def test_launch_restarts_what_dies_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "demo"
    with started("launch", "--demo", "--folder", folder) as launcher:
        monitor = eventually_sync(lambda: monitor_of(folder), 20, "the demo's configuration")
        eventually_sync(lambda: is_live(monitor), 60, "a live service")
        first = status(monitor)["started_ms"]
        (service,) = processes("run", folder)
        os.kill(service, signal.SIGKILL)
        eventually_sync(
            lambda: is_live(monitor) and status(monitor)["started_ms"] != first, 60, "a new service"
        )
        assert len(processes("serve", folder)) == 1
        launcher.send_signal(signal.SIGINT)
        out, err = launcher.communicate(timeout=40)
    assert launcher.returncode == 0, err
    assert "Ctrl-C stops everything" in out
    assert "part_died" in err
    assert processes("", folder) == []


LAUNCHER = """
import asyncio, pathlib, sys
from ingest.clock import Clock
from ingest.processes import Launcher, Part
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
folder = pathlib.Path(sys.argv[1])
parts = [Part(name, sleep, folder / f"{name}.log") for name in ("one", "two")]
asyncio.run(Launcher(parts, Clock()).run())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_the_parts_of_a_launcher_that_is_killed_end_as_well(tmp_path):
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path)])
    try:
        parts = eventually_sync(lambda: sleepers(launcher.pid), 20, "both parts at work")
    finally:
        launcher.kill()
        launcher.wait()
    eventually_sync(lambda: not any(map(is_running, parts)), 20, "no part is left")


def sleepers(parent):
    """The launcher's two parts, once both have become their programs."""
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        children = [int(child) for child in file.read().split()]
    ready = [child for child in children if b"time.sleep" in command_line(child).split(b"\0")[2]]
    return ready if len(ready) == 2 else None


def command_line(process):
    with open(f"/proc/{process}/cmdline", "rb") as file:
        return file.read() + b"\0" * 3


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_part_whose_launcher_is_gone_already_is_not_started(tmp_path):
    mark = tmp_path / "mark"
    command = [sys.executable, "-m", "ingest.tied", str(os.getppid()), "touch", str(mark)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "touch is not started" in done.stderr
    assert not mark.exists()


def monitor_of(folder):
    import yaml

    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text("utf-8"))["monitor"]["port"] if path.exists() else None


def processes(command, folder):
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    words = file.read().decode().split("\0")
            except OSError:
                continue
            mine = any(str(folder) in word for word in words) and "launch" not in words
            if mine and (not command or command in words):
                found.append(int(entry))
    return found
