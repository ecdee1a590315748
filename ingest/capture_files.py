"""The files of a capture: how they are called, and lines into and out of them.

A plain file is cryptofeed's: `{STEM}.N`; the stem is `{EXCHANGE}` or `{EXCHANGE}.ws.{LANE}`. A
segment is ours: `{STEM}.{TIME}Z.gz`, a gzip file of many members, each of whole lines and written
at once. What a crash cuts off or a disk spoils is one member; the next one is found by its head.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

PIECE_BYTES = 65_536
MEMBER_BYTES = 8 * 2**20
"""Of text in a member; only a line that is longer makes it larger."""
READ_BYTES = 64 * 2**20
"""The most that a member or a line is read as: one with more is spoilt, and would fill memory."""
LEVEL = 6
"""Frames shrink to a sixth, for 2 % of a core at 700 a second; level 1 leaves a third more."""
_GZIP = 31
"""zlib's `wbits` for gzip with the largest window."""
_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00"
"""How each of our members begins: gzip, deflate, no name, no time."""
_SEGMENT = re.compile(r"(.+)\.(\d{8}T\d{9})Z\.gz")
_PLAIN = re.compile(r"(.+)\.(\d+)")


class Part(NamedTuple):
    """One file of a capture; parts of a stem sort by the time of their contents."""

    start_ms: int
    """Before the first line; 0 for a plain file, which doesn't say."""
    number: int
    path: Path
    stem: str


def part_of(path: Path) -> Part | None:
    """What a file of a capture's folder is; None for others.

    >>> part_of(Path("BYBIT.ws.linear-1.20261120T100000250Z.gz"))[::3]
    (1795168800250, 'BYBIT.ws.linear-1')
    >>> part_of(Path("BYBIT.ws.linear-1.12"))[:2], part_of(Path("README.md"))
    ((0, 12), None)
    """
    if (match := _SEGMENT.fullmatch(path.name)) is not None:
        try:
            start = datetime.strptime(match[2], "%Y%m%dT%H%M%S%f").replace(tzinfo=UTC)
        except ValueError:
            return None
        return Part(round(start.timestamp() * 1000), 0, path, match[1])
    if (match := _PLAIN.fullmatch(path.name)) is not None:
        return Part(0, int(match[2]), path, match[1])
    return None


def segment_name(stem: str, start_ms: int) -> str:
    """The file of a segment.

    >>> segment_name("BYBIT", 1_795_168_800_250)
    'BYBIT.20261120T100000250Z.gz'
    """
    start = datetime.fromtimestamp(start_ms // 1000, UTC)
    return f"{stem}.{start:%Y%m%dT%H%M%S}{start_ms % 1000:03}Z.gz"


def member(text: bytes) -> bytes:
    """Whole lines as a member of a segment."""
    packing = zlib.compressobj(LEVEL, wbits=_GZIP)
    return packing.compress(text) + packing.flush()


def append(path: Path, data: bytes) -> None:
    """Write all of `data` at the end, or nothing: half a member would be read as a whole one twice.

    Raises
    ------
    OSError
        It can't be written.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file, rest) :]
        except OSError:
            os.ftruncate(file, size)
            raise
    finally:
        os.close(file)


def read_lines(path: Path) -> Iterator[bytes | None]:
    """The lines of a file without their ends; None for each place where some are lost.

    Raises
    ------
    OSError
        It can't be read.
    """
    if path.suffix != ".gz":
        with path.open("rb") as file:
            while line := file.readline(READ_BYTES):
                yield line[:-1] if line.endswith(b"\n") else None
        return
    for text in _members(path.read_bytes()):
        if text is None:
            yield None
            continue
        *lines, rest = text.split(b"\n")
        yield from lines
        if rest:
            yield None


def _members(data: bytes) -> Iterator[bytes | None]:
    """The text of each member, None for one that is spoilt; of the last one the whole lines that
    are there, and None for what is cut off."""
    view = memoryview(data)
    start = 0
    while start < len(data):
        unpacking = zlib.decompressobj(_GZIP)
        pieces, at, left = [], start, READ_BYTES
        try:
            while not unpacking.eof and at < len(data) and left:
                piece = view[at : at + PIECE_BYTES]
                pieces.append(unpacking.decompress(piece, left))
                at += len(piece) - len(unpacking.unused_data)
                left -= len(pieces[-1])
        except zlib.error:
            left = 0
        following = data.find(_HEAD, start + 1)
        text = b"".join(pieces)
        if left and unpacking.eof:
            yield text
            start = at
        elif left and following < 0:
            yield text[: text.rfind(b"\n") + 1]
            yield None
            return
        else:
            # None of it: a spoilt digit reads as well as a right one, only the checksum tells.
            yield None
            start = len(data) if following < 0 else following
