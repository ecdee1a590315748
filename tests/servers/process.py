"""A server as a child process with a folder of its own: started, stopped, killed, started again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.waiting import eventually_sync

START_S = 30.0
STOP_S = 20.0
FIRST_PORT, PORTS, PORT_SLICES = 12_000, 2_500, 8


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on right now.

    Below the range of outgoing connections, and from a slice for each process that runs tests, so
    that it is still free when it is bound.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST_PORT + worker % PORT_SLICES * PORTS
    while True:
        port = random.randrange(first, first + PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def cache_folder() -> Path:
    """Where the Makefile keeps the servers that it fetched or built."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "marketdata"


def find_program(name: str, variable: str, cached: Path) -> Path | None:
    """The executable that the environment variable names, else on PATH, else in the cache."""
    named = os.environ.get(variable)
    if named:
        return Path(named)
    found = shutil.which(name)
    if found:
        return Path(found)
    return cached if os.access(cached, os.X_OK) else None


class ServerProcess:
    """One server; its port and folder stay the same over restarts."""

    name = "server"

    def __init__(self, program: Path, folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def arguments(self) -> Sequence[str]:
        raise NotImplementedError

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start the server and return when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        log_path = self.folder / "log"
        # In its own folder: influxd takes a config.yaml of the working directory for its own.
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, *self.arguments()], stdout=log, stderr=log, cwd=self.folder
            )
        try:
            eventually_sync(self._is_up, START_S, f"{self.name} answers")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}\n{log_path.read_text()[-2000:]}") from None

    def _is_up(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.name} ended with {self._process.returncode}"
        return self.is_ready()

    def stop(self) -> None:
        """End it the civil way; nothing happens where it doesn't run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing is answered. `resume` ends that."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_S)
        self._process = None
