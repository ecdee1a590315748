"""Capture that is always on: what connections say, into compressed segments, bounded on disk.

`CaptureWriter` has the signature of cryptofeed's raw callback, and writes the lines of cryptofeed's
file callback. The feeds only put a line into a list; once a second a thread of its own formats,
compresses and writes what has come. Policy of the bounds: in memory the newest line goes, and in
its place another tells how many; on disk the oldest segments go. Each loss is counted. Whatever the
disk does, no frame waits for it.

Segments of all connections begin together, at multiples of their length. They begin with what is
known of the exchanges and with the connections that are open, so that each time replays alone.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import structlog

from ingest.capture_files import MEMBER_BYTES, append, member, part_of, segment_name
from ingest.clock import Clock
from ingest.database import Worker

log = structlog.get_logger()

WAITING_CHARS = 64 * 2**20
"""Several minutes of 164 pairs."""
LINE_CHARS = 200
"""What a line costs in memory beside its text."""
FLUSH_S = 1.0

CONTINUED = "continued:"
LOST = "lost:"


class _Line(NamedTuple):
    """The arguments of a callback; see `CaptureWriter`."""

    data: str | None
    time_s: float
    uuid: str
    endpoint: str | None
    send: str | None
    connect: str | None
    header: Mapping[str, str] | None


class _Metadata(NamedTuple):
    """The arguments of `CaptureWriter.metadata`."""

    exchange: str
    url: str
    json_bytes: bytes
    time_s: float


class CaptureWriter:
    """cryptofeed's raw data callback (`Connection.raw_data_callback`), into segments of a folder.

    Parameters
    ----------
    max_bytes
        Of all segments in the folder.
    segment_ms
        How long a segment is.

    Attributes
    ----------
    dropped
        Lines that are not in the capture, by reason: `memory_full` (the disk doesn't keep up),
        `disk_full` (the segments of now alone reach `max_bytes`).
    error
        Why nothing can be written now, None while all is well.
    """

    def __init__(
        self,
        folder: Path,
        clock: Clock,
        *,
        max_bytes: int,
        segment_ms: int,
        waiting_chars: int = WAITING_CHARS,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self.error: str | None = None
        self._clock = clock
        self._segments = _Segments(folder, max_bytes, segment_ms, self.dropped)
        self._limit = waiting_chars
        self._held = self._arrived = 0
        self._lines: list[_Line | _Metadata] = []
        self._lost: Counter[str] = Counter()
        self._closing = asyncio.Event()
        self._worker = Worker("capture")
        self._flushing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to write; a folder that can't be written is tried again each second."""
        await self._flush()
        self._flushing = asyncio.create_task(self._run(), name="capture")

    async def close(self) -> None:
        """Write what has come, and end the thread."""
        try:
            if self._flushing is not None:
                self._closing.set()
                await self._flushing
        finally:
            await self._worker.close()

    async def __call__(
        self,
        data: str | None,
        timestamp: float,
        uuid: str,
        endpoint: str | None = None,
        send: str | None = None,
        connect: str | None = None,
        header: Mapping[str, str] | None = None,
    ) -> None:
        """Take in a line; never waits."""
        if connect is not None or send is not None:
            # cryptofeed takes the time of the world for these.
            timestamp = self._clock.now_ms() / 1000
        line = _Line(data, timestamp, uuid, endpoint, send, connect, header)
        self._add(line, uuid, 0 if data is None else len(data))

    def told(self, what: str, time_s: float, uuid: str, address: str) -> None:
        """Take in what happened to a connection: `opened`, or `closed: cause`, also if it never
        was open."""
        self._add(_Line(what, time_s, uuid, None, None, address, None), uuid, len(what))

    def metadata(self, exchange: str, url: str, json_bytes: bytes) -> None:
        """What an exchange says of its markets; from now on in every segment."""
        now_s = self._clock.now_ms() / 1000
        self._add(_Metadata(exchange, url, json_bytes, now_s), exchange, len(json_bytes))

    def _add(self, line: _Line | _Metadata, stem: str, chars: int) -> None:
        if self._held + self._arrived + chars + LINE_CHARS > self._limit:
            if not self.dropped["memory_full"]:
                log.warning("capture_overrun", waiting_chars=self._limit)
            self.dropped["memory_full"] += 1
            self._lost[stem] += 1
        else:
            self._arrived += chars + LINE_CHARS
            self._lines.append(line)

    def status(self) -> dict[str, Any]:
        """`bytes` and `files` on disk, `deleted` files, `dropped` lines, `error`."""
        return {
            "bytes": self._segments.bytes,
            "files": self._segments.files,
            "deleted": self._segments.deleted,
            "dropped": self.dropped.total(),
            "error": self.error,
        }

    async def _run(self) -> None:
        closing = False
        while not closing:
            with suppress(TimeoutError):
                async with self._clock.timeout(FLUSH_S):
                    await self._closing.wait()
            closing = self._closing.is_set()  # and then once more, for what has come last
            await self._flush()

    async def _flush(self) -> None:
        lines, self._lines = self._lines, []
        now_ms = self._clock.now_ms()
        if self._lost and self._held + self._arrived + LINE_CHARS * len(self._lost) <= self._limit:
            for uuid, count in self._lost.items():
                note = f"{LOST} {count}"
                lines.append(_Line(note, now_ms / 1000, uuid, None, None, "", None))
            self._lost.clear()
        self._held += self._arrived
        self._arrived = 0
        try:
            await self._worker.run(self._segments.write, lines, now_ms)
        except OSError as error:
            if self.error is None:
                log.error("capture_unavailable", cause=str(error), next_try_s=FLUSH_S)
            self.error = str(error)
        else:
            if self.error is not None:
                log.info("capture_written_again", dropped=dict(self.dropped))
            self.error = None
        self._held = self._segments.waiting_bytes


@dataclass(frozen=True, slots=True)
class _Packed:
    """A member on its way into its segment."""

    stem: str
    start_ms: int
    data: bytes
    lines: int


class _Segments:
    """The files; all methods belong to one thread. What can't be written waits, packed."""

    def __init__(
        self, folder: Path, max_bytes: int, segment_ms: int, dropped: Counter[str]
    ) -> None:
        self.deleted = 0
        self.bytes = self.files = self.waiting_bytes = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_ms = segment_ms
        self._dropped = dropped
        self._start_ms = 0
        self._sizes: defaultdict[int, dict[Path, int]] = defaultdict(dict)
        self._sizes_of_ms = 0
        self._texts: defaultdict[str, list[bytes]] = defaultdict(list)
        self._waiting: list[_Packed] = []
        self._known: dict[tuple[str, str], bytes] = {}
        self._urls: dict[str, str] = {}
        self._open: dict[str, float] = {}
        """Connections, and since when."""

    def write(self, lines: Sequence[_Line | _Metadata], now_ms: int) -> None:
        """Write lines, in the order of their coming; OSError leaves what is left for the next call.

        Without lines too: a time without any is told by the segments that begin in it.
        """
        # While nothing can be written no segment begins: their beginnings alone would fill memory.
        stuck = bool(self._waiting)
        for line in lines:
            if not stuck:
                self._reach(round(line.time_s * 1000))
            if isinstance(line, _Metadata):
                self._learn(line)
            else:
                self._follow(line)
                self._texts[line.uuid].append(self._format(line))
        if not stuck:
            self._reach(now_ms)
        self._pack()
        if self._waiting:
            self._write_waiting()

    def _learn(self, told: _Metadata) -> None:
        head = f"{told.url} -> {told.time_s}: ".encode()
        packed = member(head + told.json_bytes.replace(b"\n", b" ") + b"\n")
        self._known[told.exchange, told.url] = packed
        self._put(_Packed(told.exchange, self._start_ms, packed, 1))

    def _reach(self, time_ms: int) -> None:
        """Begin the segments that this time belongs to, if they haven't begun."""
        start_ms = time_ms - time_ms % self._segment_ms
        if start_ms <= self._start_ms:
            return
        self._pack()
        # The first of a run begins within a segment that an earlier run may have written to.
        self._start_ms = start_ms if self._start_ms else time_ms
        for (exchange, _), packed in self._known.items():
            self._put(_Packed(exchange, self._start_ms, packed, 1))
        for uuid, opened_s in self._open.items():
            told = (
                f"{self._urls.get(uuid, '')} <-> {self._start_ms / 1000} {CONTINUED} {opened_s}\n"
            )
            self._texts[uuid].append(told.encode())

    def _follow(self, line: _Line) -> None:
        if line.connect is None:
            if line.endpoint is None and line.send is None:
                self._open.setdefault(line.uuid, line.time_s)
        elif line.data is None or not line.data.startswith(LOST):
            self._urls[line.uuid] = line.connect
            self._open.pop(line.uuid, None)
            if line.data == "opened":
                self._open[line.uuid] = line.time_s

    def _format(self, line: _Line) -> bytes:
        data = "" if line.data is None else line.data.replace("\n", " ")
        if line.endpoint is not None:
            end = "" if line.header is None else f" header: {orjson.dumps(line.header).decode()}"
            text = f"{line.endpoint} -> {line.time_s}: {data}{end}\n"
        elif line.send is not None:
            text = f"{line.send} <- {line.time_s}: {data}\n"
        elif line.connect is not None:
            url = line.connect or self._urls.get(line.uuid, "")
            text = f"{url} <-> {line.time_s} {data}".rstrip() + "\n"
        else:
            text = f"{line.time_s}: {data}\n"
        return text.encode(errors="replace")

    def _pack(self) -> None:
        for uuid, texts in self._texts.items():
            for some in _of_members(texts):
                packed = member(b"".join(some))
                self._put(_Packed(uuid, self._start_ms, packed, len(some)))
        self._texts.clear()

    def _put(self, packed: _Packed) -> None:
        self._waiting.append(packed)
        self.waiting_bytes += len(packed.data)

    def _write_waiting(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._sizes_of_ms != self._start_ms:
            self._look()
        self._make_room(sum(len(packed.data) for packed in self._waiting))
        done = 0
        try:
            for packed in self._waiting:
                if self.bytes + len(packed.data) > self._max_bytes:
                    self._dropped["disk_full"] += packed.lines
                else:
                    self._append(packed)
                self.waiting_bytes -= len(packed.data)
                done += 1
        finally:
            del self._waiting[:done]
            self.files = sum(map(len, self._sizes.values()))

    def _append(self, packed: _Packed) -> None:
        path = self._folder / segment_name(packed.stem, packed.start_ms)
        append(path, packed.data)
        sizes = self._sizes[packed.start_ms]
        sizes[path] = sizes.get(path, 0) + len(packed.data)
        self.bytes += len(packed.data)

    def _look(self) -> None:
        """Learn what is in the folder; once a segment, since others may tidy it too."""
        self._sizes.clear()
        for path in self._folder.iterdir():
            part = part_of(path)
            if part is not None and part.start_ms:
                with suppress(FileNotFoundError):
                    self._sizes[part.start_ms][path] = path.stat().st_size
        self.bytes = sum(sum(sizes.values()) for sizes in self._sizes.values())
        self._sizes_of_ms = self._start_ms

    def _make_room(self, wanted: int) -> None:
        """Delete the oldest segments, those of all connections together, never those of now."""
        for start_ms in sorted(self._sizes):
            if self.bytes + wanted <= self._max_bytes or start_ms >= self._start_ms:
                return
            for path, size in self._sizes.pop(start_ms).items():
                path.unlink(missing_ok=True)
                self.bytes -= size
                self.deleted += 1


def _of_members(texts: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Lines as members have them: after the disk was away they may be too many for one."""
    some: list[bytes] = []
    size = 0
    for text in texts:
        if some and size + len(text) > MEMBER_BYTES:
            yield some
            some, size = [], 0
        some.append(text)
        size += len(text)
    yield some
