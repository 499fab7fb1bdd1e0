"""Sizes and durations in the words of a finding, and how long things are expected to take."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

_UNITS = ("kB", "MB", "GB", "TB", "PB")
_STEP = 1000
_FEW = 10
_MINUTES_FROM = 180
_NOTICED_SECONDS = 0.1

# README, "How fast": 1 GB on two cores. Other machines differ, and a cold disk costs more than anything here.
_FIRST_SECONDS_PER_GB = 6.6
_LATER_SECONDS_PER_GB = 2.5
_START_SECONDS = 0.2


def size(size_bytes: float) -> str:
    """Decimal units: `512 B`, `3.2 MB`, `245 MB`."""
    if size_bytes < _STEP:
        return f"{size_bytes:.0f} B"
    value = float(size_bytes)
    steps = 0
    # What rounds to 1000 is 1.0 of the next unit.
    while value >= _STEP - 0.5 and steps < len(_UNITS):
        value /= _STEP
        steps += 1
    unit = _UNITS[steps - 1]
    return f"{value:.1f} {unit}" if value < _FEW else f"{value:.0f} {unit}"


def seconds(duration: float) -> str:
    """`0.4 s`, `75 s`, `12 min`."""
    if duration < _FEW:
        return f"{duration:.1f} s"
    return f"{duration:.0f} s" if duration < _MINUTES_FROM else f"{duration / 60:.0f} min"


def span(duration: timedelta) -> str:
    """A duration of either sign, as people say it: `40 s`, `12 min`, `5 h`, `3 days`."""
    elapsed = abs(duration.total_seconds())
    for unit_seconds, unit, most in ((1, "s", 120), (60, "min", 7200), (3600, "h", 172_800)):
        if elapsed < most:
            return f"{elapsed / unit_seconds:.0f} {unit}"
    return f"{elapsed / 86400:.0f} days"


def first_capture_seconds(size_bytes: int) -> float:
    """How long the first snapshot of so many bytes should take."""
    return _START_SECONDS + size_bytes / 1e9 * _FIRST_SECONDS_PER_GB


def later_capture_seconds(size_bytes: int) -> float:
    """How long each following one should."""
    return _START_SECONDS + size_bytes / 1e9 * _LATER_SECONDS_PER_GB


def wait(duration: float) -> str:
    """`3 ms`, `0.4 s`: what a writer may notice."""
    return seconds(duration) if duration >= _NOTICED_SECONDS else f"{max(1, round(duration * 1000))} ms"
