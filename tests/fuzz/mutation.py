"""Real inputs, damaged: the strategies that the fuzz tests draw from.

In CI each test tries a few examples, always the same ones. `FUZZ_EXAMPLES=20000` makes every test
try so many new ones; what they find is printed as the smallest input that shows it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Of each test; 0: as few as the test says itself."""

T = TypeVar("T", bound=Callable[..., Any])
Path = tuple[Any, ...]

ODD_TEXTS = (
    "", " ", "0", "-0.0", "-1", "1e400", "1e-400", "NaN", "sNaN", "Infinity", "-inf", "0x10", "1_0",
    "9" * 30, "9" * 5_000, "1e308", "1e999999999", "٣", "²", "null", "true", "A\nB", "A B", "\x00",
    "\ud800", "\u2028", "\ufeff", "币安人生", "BTCUSDT", "ETHUSDT", "'; DROP TABLE", "${SECRET}",
    "%s%n", "\\", '"', "a,b=c", "../../etc/passwd", "~nobody-here/x", "inf", "1:30", "2026-02-30",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 7, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 0.1,
    -0.5, 1e308, 5e-324, float("nan"), float("inf"), [], {}, [[]], [None], {"": None}, [1, 2, 3],
)  # fmt: skip
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "cp037", "shift_jis")
LEVELS = 5_000
"""Deeper than any parser's stack may follow."""


class Samples(tuple[Any, ...]):
    """What is damaged; a failure shows what came of one, not all of them."""

    def __repr__(self) -> str:
        return f"{len(self)} samples"


def fuzzed(examples: int) -> Callable[[T], T]:
    """The settings of a fuzz test that tries so many examples in CI."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes, times: int = 3) -> bytes:
    """Bytes flipped, cut out, put in, doubled or moved, up to so many times."""
    for _ in range(draw(st.integers(1, times))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(1, 40)))
        part = data[start:end]
        match draw(st.sampled_from(["flip", "cut", "insert", "double", "move", "end"])):
            case "flip" if part:
                bit = 1 << draw(st.integers(0, 7))
                data = data[:start] + bytes([part[0] ^ bit]) + data[start + 1 :]
            case "cut":
                data = data[:start] + data[end:]
            case "insert":
                data = data[:start] + draw(st.binary(min_size=1, max_size=8)) + data[start:]
            case "double":
                data = data[:end] + part + data[end:]
            case "move":
                to = draw(st.integers(0, len(data)))
                data = data[:to] + part + data[to:]
            case _:
                data = data[:start]
    return data


@st.composite
def damaged_value(draw: st.DrawFn, value: Any, times: int = 3) -> Any:
    """JSON whose values have other types and sizes, whose keys are missing, new or doubled."""
    value = deepcopy(value)
    for _ in range(draw(st.integers(1, times))):
        places = list(_places(value))
        if not places:
            return deepcopy(draw(odd_values()))
        *above, key = draw(st.sampled_from(places))
        holder: Any = value
        for step in above:
            holder = holder[step]
        match draw(st.sampled_from(["replace", "replace", "digits", "drop", "add", "swap"])):
            case "drop":
                del holder[key]
            case "add" if isinstance(holder, list):
                holder.insert(key, deepcopy(holder[key]))
            case "add":
                holder[draw(st.sampled_from(["", "id", "data", "symbol", "\ud800"]))] = deepcopy(
                    holder[key]
                )
            case "swap":
                other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else [key]))
                holder[key], holder[other] = holder[other], holder[key]
            case "digits" if isinstance(holder[key], int | str):
                text = draw(st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,9})?", fullmatch=True))
                holder[key] = int(text) if text.isdecimal() and draw(st.booleans()) else text
            case _:
                holder[key] = deepcopy(draw(odd_values()))
    return value


def odd_values() -> st.SearchStrategy[Any]:
    """What nobody expects in the place of a value."""
    return st.one_of(st.sampled_from(ODD_VALUES), st.sampled_from(ODD_TEXTS), st.text(max_size=5))


@st.composite
def damaged_json(draw: st.DrawFn, samples: Samples) -> bytes:
    """A message of JSON that was one of the samples."""
    value = samples[draw(st.integers(0, len(samples) - 1))]
    how = draw(st.sampled_from(["value", "value", "value", "bytes", "encoding", "depth"]))
    if how == "value":
        return dumps(draw(damaged_value(value)))
    data = dumps(value)
    if how == "bytes":
        return draw(damaged_bytes(data))
    if how == "encoding":
        return data.decode().encode(draw(st.sampled_from(ENCODINGS)), "replace")
    bracket = draw(st.sampled_from([b"[", b'{"data":']))
    place = draw(st.integers(0, len(data)))
    return data[:place] + bracket * LEVELS + data[place:]


def dumps(value: Any) -> bytes:
    """JSON as loosely as Python writes it: NaN, integers of any size, halves of surrogates."""
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def _places(value: Any, above: Path = ()) -> Iterator[Path]:
    """The path of everything within a value."""
    if not isinstance(value, dict | list):
        return
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*above, key)
        yield from _places(item, (*above, key))
