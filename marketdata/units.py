"""Durations and sizes as a configuration writes them: `1s`, `2d`, `4GiB`."""

from __future__ import annotations

import re

_MILLISECONDS = {
    "ms": 1,
    "s": 1_000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 7 * 86_400_000,
}
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a duration; ValueError for what is none.

    >>> parse_duration_ms("2d"), parse_duration_ms("500ms")
    (172800000, 500)
    """
    return _scaled(text, _MILLISECONDS)


def parse_bytes(text: str) -> int:
    """Bytes of a size; ValueError for what is none.

    >>> parse_bytes("4GiB")
    4294967296
    """
    return _scaled(text, _BYTES)


def format_duration(duration_ms: int) -> str:
    """The shortest form without a fraction.

    >>> format_duration(172_800_000), format_duration(90_000)
    ('2d', '90s')
    """
    return _shortest(duration_ms, {unit: n for unit, n in _MILLISECONDS.items() if unit != "w"})


def format_bytes(size: int) -> str:
    """The shortest form without a fraction.

    >>> format_bytes(4 << 30)
    '4GiB'
    """
    return _shortest(size, _BYTES)


def _scaled(text: str, units: dict[str, int]) -> int:
    match = re.fullmatch(r"(\d{1,12}) ?([A-Za-z]+)", text.strip(), re.ASCII)
    if match is None or match[2] not in units:
        raise ValueError(f"not a number with one of the units {', '.join(units)}")
    return int(match[1]) * units[match[2]]


def _shortest(amount: int, units: dict[str, int]) -> str:
    for unit, factor in sorted(units.items(), key=lambda item: -item[1]):
        if amount and amount % factor == 0:
            return f"{amount // factor}{unit}"
    return f"0{next(iter(units))}"
