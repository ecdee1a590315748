"""What a comparison found: counts, differences and the worst of them, as JSON, Markdown or text."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table

from ingest.compare import Result

WORST: Final = 20
"""Differences kept of each exchange and channel."""
SUFFIXES: Final = (".md", ".json")
_HEADS: Final = ("exchange", "pair", "channel", "what", "stream", "REST", "at", "REST at")
_COUNTS: Final = ("exchange", "channel", "compared", "same", "differ", "not comparable")


@dataclass(slots=True)
class Report:
    """Everything since `started_ms`; `failures` counts the rounds that an exchange or the store
    didn't answer, by exchange."""

    started_ms: int
    ended_ms: int = 0
    rounds: int = 0
    counts: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    worst: dict[tuple[str, str], list[Result]] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, exchange: str, results: Iterable[Result]) -> None:
        """Take in comparisons."""
        for result in results:
            key = exchange, result.channel
            self.counts.setdefault(key, Counter())[result.verdict] += 1
            if result.verdict == "differs":
                worst = self.worst.setdefault(key, [])
                worst.append(result)
                worst.sort(key=lambda one: -one.size)
                del worst[WORST:]

    @property
    def compared(self) -> int:
        return sum(counts["same"] + counts["differs"] for counts in self.counts.values())

    @property
    def differing(self) -> int:
        return sum(counts["differs"] for counts in self.counts.values())

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "started_ms": self.started_ms,
            "ended_ms": self.ended_ms,
            "rounds": self.rounds,
            "compared": self.compared,
            "differing": self.differing,
            "failures": dict(self.failures),
            "channels": [
                {
                    "exchange": exchange,
                    "channel": channel,
                    **{verdict: counts[verdict] for verdict in ("same", "differs", "skipped")},
                    "worst": [
                        {k: v for k, v in result._asdict().items() if k not in ("verdict", "size")}
                        for result in self.worst.get((exchange, channel), ())
                    ],
                }
                for (exchange, channel), counts in sorted(self.counts.items())
            ],
        }

    def as_markdown(self) -> str:
        """The same to read."""
        lines = ["# Stream against REST", "", self.headline(), ""]
        lines += _markdown(_COUNTS, self._count_rows())
        if self.worst:
            lines += ["", "## Worst differences", "", *_markdown(_HEADS, self._worst_rows())]
        if self.failures:
            lines += ["", "## Rounds without an answer", ""]
            lines += [f"- {name}: {count}" for name, count in sorted(self.failures.items())]
        return "\n".join(lines) + "\n"

    def headline(self) -> str:
        """The result in one sentence."""
        return (
            f"{_time(self.started_ms)} to {_time(self.ended_ms)} UTC, {self.rounds:,} rounds: "
            f"{self.compared:,} values compared, {self.differing:,} differ."
        )

    def show(self, console: Console) -> None:
        """Print it."""
        console.print(self.headline(), highlight=False, soft_wrap=True)
        console.print(_table(_COUNTS, self._count_rows()))
        if self.worst:
            console.print(_table(_HEADS, self._worst_rows()))

    def write(self, path: Path) -> None:
        """Keep it, as the file's name says; whoever reads never finds half of one."""
        text = (
            orjson.dumps(self.as_json(), option=orjson.OPT_INDENT_2)
            if path.suffix == ".json"
            else self.as_markdown().encode()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.tmp")
        fresh.write_bytes(text)
        os.replace(fresh, path)

    def _count_rows(self) -> list[tuple[str, ...]]:
        return [
            (
                exchange,
                channel,
                f"{counts['same'] + counts['differs']:,}",
                f"{counts['same']:,}",
                f"{counts['differs']:,}",
                f"{counts['skipped']:,}",
            )
            for (exchange, channel), counts in sorted(self.counts.items())
        ]

    def _worst_rows(self) -> list[tuple[str, ...]]:
        return [
            (
                exchange, result.symbol, channel, result.what, result.ours, result.theirs,
                _time(result.ours_ms), _time(result.theirs_ms),
            )
            for (exchange, channel), results in sorted(self.worst.items())
            for result in results
        ]  # fmt: skip


def _markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    heads = tuple(heads)
    return [
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    return table


def _time(time_ms: int | None) -> str:
    if time_ms is None:
        return "–"
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
