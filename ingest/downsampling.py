"""Ticks that expire live on as minutes: the tasks that an InfluxDB runs for that. Pure text.

Two tasks, by how much of the past they go over. The first runs often and covers the last hour; the
second runs twice a day and covers two days, for ticks that an outbox delivers after an outage. Both
write whole minutes, labelled by their start, so that running again, or late, or both at once, only
writes the same points once more: a window that is cut off is never written.

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

_HOUR_MS = 3_600_000


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
    return (
        _task(f"{bucket}: ticks to minutes", "10m", "30s", _HOUR_MS, bucket, ticks_bucket),
        _task(
            f"{bucket}: late ticks to minutes",
            "12h",
            "5m",
            min(48 * _HOUR_MS, retention_ms // _HOUR_MS * _HOUR_MS),
            bucket,
            ticks_bucket,
        ),
    )


def _task(
    name: str, every: str, offset: str, covered_ms: int, bucket: str, ticks_bucket: str
) -> DownsamplingTask:
    calls = [
        f"minutes(of: {quoted(of)}, field: {quoted(field)}, fn: {fn}, "
        f"into: {quoted(into)}, as: {quoted(written)})"
        for into, fields in MINUTES.items()
        for of, field, fn, written in fields
    ]
    flux = f"""import "date"

option task = {{name: {quoted(name)}, every: {every}, offset: {offset}}}

stop = date.truncate(t: now(), unit: 1m)
start = date.sub(d: {format_duration(covered_ms)}, from: stop)

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
    return DownsamplingTask(name, flux + "\n".join(calls) + "\n")


def quoted(text: str) -> str:
    """A text as Flux writes it; nothing in it is code.

    >>> print(quoted('a "bucket" of ${b}'))
    "a \\"bucket\\" of \\${b}"
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "\\${")
    return f'"{escaped}"'
