"""Sizes, counts, durations and times as people read them, on the terminal and on the status page.

Imports nothing that takes time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

_UNITS = ("kB", "MB", "GB", "TB", "PB")
_STEP = 1000
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def size(size_bytes: float) -> str:
    """Format a size in decimal units, as disks and providers count: `512 B`, `3.2 MB`, `245 MB`, `1.0 GB`."""
    if size_bytes < _STEP:
        return f"{size_bytes:.0f} B"
    value = float(size_bytes)
    for unit in _UNITS:
        value /= _STEP
        # What rounds to 1000 is 1.0 of the next unit.
        if value < _STEP - 0.5 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"  # noqa: PLR2004


def count(number: int, noun: str = "", plural: str | None = None) -> str:
    """Format a count, alone or with its noun: `245,196`, `1 page`, `245,196 pages`."""
    if not noun:
        return f"{number:,}"
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def seconds(duration: float) -> str:
    """Format a duration: `0.4 s`, `75 s`, `12 min`."""
    if duration < 10:  # noqa: PLR2004
        return f"{duration:.1f} s"
    return f"{duration:.0f} s" if duration < 3 * _MINUTE else f"{duration / _MINUTE:.0f} min"


def local_time(moment: datetime, *, is_exact: bool = False) -> str:
    """Format a time in the time zone of this machine, with its offset: `2026-11-22 09:55:57+01:00`, or `57.123`."""
    with suppress(OverflowError):  # on the first or the last day of the calendar, which a foreign object may name
        moment = moment.astimezone()
    return moment.isoformat(sep=" ", timespec="milliseconds" if is_exact else "seconds")


def utc_time(moment: datetime) -> str:
    """Format `moment`, in UTC, for JSON: `2026-11-22T08:55:57.123Z`."""
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(moment: datetime, now: datetime) -> str:
    """Format how long ago a moment was: `12 s ago`, `3 min ago`, `5 h ago`, `12 d ago`."""
    elapsed = (now - moment).total_seconds()
    if elapsed <= -1:
        return "in the future"
    for unit_seconds, unit, most in ((1, "s", _MINUTE), (_MINUTE, "min", _HOUR), (_HOUR, "h", 2 * _DAY)):
        if elapsed < most:
            return f"{max(0, int(elapsed)) // unit_seconds} {unit} ago"
    return f"{int(elapsed) // _DAY:,} d ago"
