"""Raw capture: what an exchange sent, line by line, with the times at which it came.

A capture is a folder. Of each exchange it has what REST said (`url -> time: JSON`), and of each
connection the frames (`time: text`), what was sent (`url <- time: text`), and between them lines
that tell of the connection: `url <-> time` that it is being opened, and with more behind it that it
is `opened`, or `continued: since when` at the beginning of a segment, that it was `closed: cause`,
that lines were `lost: how many`. Times are ours, in seconds. The lines are cryptofeed's, which
tells only that a connection is being opened, and skips the rest. Files: `ingest.capture_files`.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import orjson

from ingest.capture_files import Part, part_of, read_lines
from marketdata.errors import ConfigError, Fault

_ANSWER = re.compile(rb"(https?://\S+) -> (\d+(?:\.\d+)?): (.*)", re.DOTALL)
_TOLD = re.compile(rb"(wss?://\S+|) <-> (\d+(?:\.\d+)?)(?: (.*))?")
_NO_FRAME = re.compile(rb"$|https?://\S+ (?:->|<-) |wss?://\S+ <- |configuration: ")
_OPENING = frozenset({b"", b"opened"})

LATEST_S = 253_402_300_800
"""The year 10,000, where dates end."""
SPOILT_MS = 3_600_000
"""So far from its neighbours no line can be, unless its time is spoilt or the clock was set."""

INTERVALS = "/intervals"
"""Ends the address under which hours between fundings, by exchange id, are among the answers."""
SELECTED = "/selected"
"""Ends the address under which they have what is collected: `{"pairs": […], "channels": […]}`."""


class Frame(NamedTuple):
    """One line of a connection: a message, or what is told of the connection.

    `text` is None where `told` says what happened: nothing (it is being opened), `opened`,
    `continued: since when`, `closed: cause`, `lost: lines`. `url` is empty if it is never told.
    """

    received_ms: int
    connection: str
    url: str
    text: str | None
    told: str = ""


class Answer(NamedTuple):
    """What REST said."""

    received_ms: int
    url: str
    value: object


@dataclass(slots=True)
class Capture:
    """A capture of one exchange on disk.

    Attributes
    ----------
    damaged
        Places read so far where lines are cut off, spoilt or none of a capture's; each costs
        itself.
    """

    exchange: str
    metadata: Sequence[Part]
    connections: Mapping[str, Sequence[Part]]
    damaged: int = field(default=0, compare=False)

    def answers(self) -> Iterator[Answer]:
        """What REST said, in the order of the files; each once, though every segment repeats it."""
        seen: set[tuple[bytes, bytes]] = set()
        for part in self.metadata:
            for line in self._lines(part.path):
                match = _ANSWER.fullmatch(line)
                if match is None:
                    self.damaged += _NO_FRAME.match(line) is None
                    continue
                if match.group(1, 2) in seen:
                    continue
                try:
                    answer = Answer(_ms(match[2]), match[1].decode(), orjson.loads(match[3]))
                except ValueError:
                    self.damaged += 1
                else:
                    seen.add((match[1], match[2]))
                    yield answer

    def frames(self, since_ms: int | None = None, *, merging: bool = True) -> Iterator[Frame]:
        """Every line of every connection, by the time of its coming.

        Parameters
        ----------
        since_ms
            A little more than what has come since: of each connection that is open then, what
            tells its state.
        merging
            Whether that is everything since it was opened, or its address only.
        """
        streams = [
            self._in_order(self._frames(name, parts[self._first(parts, since_ms, merging) :]))
            for name, parts in self.connections.items()
        ]
        return heapq.merge(*streams, key=lambda frame: frame.received_ms)

    def _first(self, parts: Sequence[Part], since_ms: int | None, merging: bool) -> int:
        """The part to begin with."""
        if since_ms is None:
            return 0
        for index in reversed(range(len(parts))):
            if parts[index].start_ms > since_ms:
                continue
            told = [
                match[3] or b""
                for line in read_lines(parts[index].path)
                if line is not None and not line[:1].isdigit()
                if (match := _TOLD.fullmatch(line)) is not None
                if float(match[2]) * 1000 <= since_ms
                if not (match[3] or b"").startswith(b"lost:")
            ]
            if not told:
                continue
            if not merging or told[-1].startswith(b"closed") or set(told) & _OPENING:
                return index
            with suppress(ValueError):
                opened_ms = _ms(told[-1].rpartition(b" ")[2])
                return max((n for n, p in enumerate(parts) if p.start_ms <= opened_ms), default=0)
        return 0

    def _frames(self, connection: str, parts: Sequence[Part]) -> Iterator[Frame]:
        url = _first_url(parts)
        for part in parts:
            for line in self._lines(part.path):
                try:
                    if line[:1].isdigit():
                        seconds, _, text = line.partition(b": ")
                        yield Frame(_ms(seconds), connection, url, text.decode())
                    elif (match := _TOLD.fullmatch(line)) is not None:
                        url = match[1].decode() or url
                        told = (match[3] or b"").decode()
                        yield Frame(_ms(match[2]), connection, url, None, told)
                    else:
                        self.damaged += _NO_FRAME.match(line) is None
                except ValueError:
                    self.damaged += 1

    def _in_order(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Without the lines whose time is spoilt: one would hold back, or outrun, all others."""
        before_ms: int | None = None
        held: Frame | None = None
        for frame in frames:
            if held is not None:
                if _is_spoilt(before_ms, held.received_ms, frame.received_ms):
                    self.damaged += 1
                else:
                    before_ms = held.received_ms
                    yield held
            held = frame
        if held is not None:
            yield held

    def _lines(self, path: Path) -> Iterator[bytes]:
        for line in read_lines(path):
            if line is None:
                self.damaged += 1
            else:
                yield line


def open_captures(folder: Path, exchanges: Iterable[str]) -> list[Capture]:
    """The captures of a folder, by exchange: cryptofeed's files, and segments.

    Raises
    ------
    ConfigError
        The folder has frames of none of the exchanges.
    """
    known = list(exchanges)
    parts = sorted(part for path in folder.iterdir() if (part := part_of(path)) is not None)
    captures = [_of_exchange(exchange, parts) for exchange in known]
    found = [capture for capture in captures if capture.connections]
    if not found:
        valid = f"files EXCHANGE.ws.LANE.N or EXCHANGE.ws.LANE.TIME.gz, of {', '.join(known)}"
        raise ConfigError("the capture", [Fault(str(folder), None, "no frames", valid)])
    return found


def _of_exchange(exchange: str, parts: Sequence[Part]) -> Capture:
    connections: dict[str, list[Part]] = {}
    for part in parts:
        if part.stem.startswith(f"{exchange}.ws."):
            connections.setdefault(part.stem, []).append(part)
    return Capture(exchange, [part for part in parts if part.stem == exchange], connections)


def _first_url(parts: Sequence[Part]) -> str:
    """Where a connection went, even if the line that told it first is lost."""
    for part in parts:
        for line in read_lines(part.path):
            if line and not line[:1].isdigit() and (match := _TOLD.fullmatch(line)) is not None:
                return match[1].decode(errors="replace")
    return ""


def _is_spoilt(before_ms: int | None, time_ms: int, after_ms: int) -> bool:
    """Whether a time lies far from both of its neighbours, which are near each other.

    >>> _is_spoilt(1_000, 9_999_999, 2_000), _is_spoilt(9_000_000, 1_000, 9_001_000)
    (True, True)
    >>> _is_spoilt(1_000, 9_999_999, 9_999_999), _is_spoilt(9_000_000, 1_000, 2_000)
    (False, False)
    """
    if before_ms is None:
        return time_ms > after_ms + SPOILT_MS
    if abs(after_ms - before_ms) > SPOILT_MS:
        return False
    return abs(time_ms - before_ms) > SPOILT_MS and abs(time_ms - after_ms) > SPOILT_MS


def _ms(seconds: bytes) -> int:
    """Milliseconds; ValueError for what is no time."""
    value = float(seconds)
    if not 0 <= value < LATEST_S:
        raise ValueError(f"{seconds!r} is no time")
    return round(value * 1000)
