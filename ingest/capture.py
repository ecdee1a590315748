"""Raw capture in cryptofeed's format, and the same bytes through the whole pipeline again.

A capture is a folder with files of one exchange: `{EXCHANGE}.0` has what REST said (`url -> time:
JSON`), `{EXCHANGE}.ws.N.M` the frames of connection N (`time: text`) between lines that tell of
connecting (`url <-> time`) and sending (`url <- time: text`). Times are ours, in seconds.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import orjson

from marketdata.errors import ConfigError, Fault

_ANSWER = re.compile(r"(https?://\S+) -> ([\d.]+): (.*)", re.DOTALL)
_OPENED = re.compile(r"(wss?://\S+) <-> ([\d.]+)")
_FRAME = re.compile(r"(\d+(?:\.\d+)?): (.*)", re.DOTALL)


class Frame(NamedTuple):
    """One line of a connection: `text` is None where the connection was opened, at `url`."""

    received_ms: int
    connection: str
    url: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture of one exchange on disk."""

    exchange: str
    answers: Mapping[str, object]
    """What REST said, by URL."""
    connections: Mapping[str, list[Path]]
    """Files by connection, in the order of their writing."""

    def frames(self) -> Iterator[Frame]:
        """Every frame of every connection, by the time of its arrival."""
        streams = [_frames(name, paths) for name, paths in self.connections.items()]
        return heapq.merge(*streams, key=lambda frame: frame.received_ms)


def open_captures(folder: Path, exchanges: Iterable[str]) -> list[Capture]:
    """The captures of a folder, by exchange.

    Raises
    ------
    ConfigError
        The folder has frames of none of the exchanges, or a file that is no capture.
    """
    known = list(exchanges)
    captures = [_open(folder, exchange) for exchange in known]
    found = [capture for capture in captures if capture.connections]
    if not found:
        raise _unusable(folder, "no frames", f"EXCHANGE.ws.N.M, of {', '.join(known)}")
    return found


def _open(folder: Path, exchange: str) -> Capture:
    connections: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"{exchange}.ws.*"), key=_part):
        connections.setdefault(path.name.rpartition(".")[0], []).append(path)
    answers: dict[str, object] = {}
    for path in sorted(folder.glob(f"{exchange}.[0-9]*"), key=_part):
        for line in path.read_text(encoding="utf-8").splitlines():
            match = _ANSWER.fullmatch(line)
            if match is not None:
                try:
                    answers[match[1]] = orjson.loads(match[3])
                except orjson.JSONDecodeError as error:
                    raise _unusable(path, f"an answer that isn't JSON: {error}", "JSON") from error
    return Capture(exchange, answers, connections)


def _frames(connection: str, paths: list[Path]) -> Iterator[Frame]:
    url = ""
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if (match := _FRAME.fullmatch(line.rstrip("\n"))) is not None:
                    yield Frame(_ms(match[1]), connection, url, match[2])
                elif (match := _OPENED.match(line)) is not None:
                    url = match[1]
                    yield Frame(_ms(match[2]), connection, url, None)


def _ms(seconds: str) -> int:
    return round(float(seconds) * 1000)


def _part(path: Path) -> tuple[str, int]:
    stem, _, part = path.name.rpartition(".")
    return stem, int(part) if part.isdecimal() else 0


def _unusable(path: Path, found: str, valid: str) -> ConfigError:
    return ConfigError("the capture", [Fault(str(path), None, found, valid)])
