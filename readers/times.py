"""The times that callers pass in."""

from __future__ import annotations

from datetime import UTC, datetime

When = datetime | str | int
"""A datetime, a date or time in ISO 8601, or UTC milliseconds; without an offset it is UTC."""


def to_ms(when: When) -> int:
    """UTC milliseconds.

    Raises
    ------
    ValueError
        The text is no date.

    >>> to_ms("2026-01-01"), to_ms("2026-01-01T01:00+01:00"), to_ms(1_767_225_600_000)
    (1767225600000, 1767225600000, 1767225600000)
    """
    if isinstance(when, int):
        return when
    if isinstance(when, str):
        try:
            when = datetime.fromisoformat(when)
        except ValueError:
            raise ValueError(
                f"time {when!r} is not understood; valid: ISO 8601 such as 2026-01-31T12:00, "
                "or UTC milliseconds"
            ) from None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return int(when.timestamp() * 1000)


def range_ms(since: When | None, until: When | None, now_ms: int) -> tuple[int, int]:
    """Since the beginning where `since` is left out, until now where `until` is."""
    return (0 if since is None else to_ms(since)), (now_ms if until is None else to_ms(until))
