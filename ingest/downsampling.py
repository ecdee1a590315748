"""Ticks that expire live on as minutes: the tasks that an InfluxDB runs for that. Pure text.

Two tasks go over each minute more than once. The first runs often and covers the last hour; the
second goes over six hours once more when they are two days old, for ticks that an outbox delivers
after an outage: going over two days each time would cost the server a gigabyte. Both write whole
minutes, labelled by their start, so that running again, or late, or both at once, only writes the
same points once more: a window that is cut off is never written.

Each field has a `from` of its own. Fields that share one keep InfluxDB from aggregating while it
reads: 25 s and 1.4 GB instead of 1 s and 75 MB, for an hour of marks of 164 pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from marketdata.units import format_duration

MINUTES = {
    "mark_price_1m": (
        ("mark_price", "mark_price", "first", "open"),
        ("mark_price", "mark_price", "max", "high"),
        ("mark_price", "mark_price", "min", "low"),
        ("mark_price", "mark_price", "last", "close"),
        ("mark_price", "index_price", "last", "index_price"),
    ),
    "last_price_1m": (
        ("last_price", "price", "first", "open"),
        ("last_price", "price", "max", "high"),
        ("last_price", "price", "min", "low"),
        ("last_price", "price", "last", "close"),
    ),
}
"""What the tasks write: measurement and field of the ticks, aggregate, field of the minutes.

The names are not among those that the service writes: a point of two writers would be a mixture.
"""

LATE_MS = 48 * 3_600_000
"""Ticks that come later than this, or than half of their retention, are not in the minutes."""
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class DownsamplingTask:
    """One task; `name` tells it from all others of its organization."""

    name: str
    flux: str


def downsampling_tasks(
    bucket: str, ticks_bucket: str, retention_ms: int
) -> tuple[DownsamplingTask, ...]:
    """The tasks that keep the minutes of `ticks_bucket` in `bucket`.

    >>> [task.name for task in downsampling_tasks("market_data", "ticks", 30 * 86_400_000)]
    ['market_data: ticks to minutes', 'market_data: late ticks to minutes']
    """
    often, late = f"{bucket}: ticks to minutes", f"{bucket}: late ticks to minutes"
    lag = format_duration(min(LATE_MS, retention_ms // 2) // _MINUTE_MS * _MINUTE_MS)
    return (
        DownsamplingTask(often, _flux(often, "10m", "0m", "1h", bucket, ticks_bucket)),
        DownsamplingTask(late, _flux(late, "3h", lag, "6h", bucket, ticks_bucket)),
    )


def _flux(name: str, every: str, lag: str, covered: str, bucket: str, ticks_bucket: str) -> str:
    calls = [
        f"minutes(of: {quoted(of)}, field: {quoted(field)}, fn: {fn}, "
        f"into: {quoted(into)}, as: {quoted(written)})"
        for into, fields in MINUTES.items()
        for of, field, fn, written in fields
    ]
    head = f"""import "date"

option task = {{name: {quoted(name)}, every: {every}, offset: 30s}}

stop = date.sub(d: {lag}, from: date.truncate(t: now(), unit: 1m))
start = date.sub(d: {covered}, from: stop)

minutes = (of, field, fn, into, as) =>
    from(bucket: {quoted(ticks_bucket)})
        |> range(start: start, stop: stop)
        |> filter(fn: (r) => r._measurement == of and r._field == field)
        |> aggregateWindow(every: 1m, fn: fn, createEmpty: false, timeSrc: "_start")
        |> set(key: "_measurement", value: into)
        |> set(key: "_field", value: as)
        |> to(bucket: {quoted(bucket)})
        |> yield(name: into + "." + as)

"""
    return head + "\n".join(calls) + "\n"


def quoted(text: str) -> str:
    """A text as Flux writes it; nothing in it is code.

    >>> print(quoted('a "bucket" of ${b}'))
    "a \\"bucket\\" of \\${b}"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'
