"""Findings: the verdict of one check of one subject, and what to do about it; and the words for quantities in them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# With several errors, the exit code is that of the one that has to be corrected first.
_MOST_SEVERE_FIRST = (
    ExitCode.BUG,
    ExitCode.USAGE,
    ExitCode.DAMAGE_FOUND,
    ExitCode.UNSUPPORTED_FORMAT,
    ExitCode.SOURCE_UNUSABLE,
    ExitCode.STORE_UNAVAILABLE,
    ExitCode.BUSY,
)
_UNITS = ("kB", "MB", "GB", "TB", "PB")
_STEP = 1000
_FEW = 10
_MINUTES_FROM = 180


class Verdict(StrEnum):
    """The verdict of a check. Only an error means that backups or restores do not work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check of one subject. `message` and `remedy` read like those of an error.

    `remedy` is None for ok. `exit_code` is what the process returns when this is its only error; `DONE` for every other
    verdict.
    """

    subject: str
    check: str
    verdict: Verdict
    message: str
    remedy: str | None = None
    exit_code: ExitCode = ExitCode.DONE


@dataclass(frozen=True, slots=True)
class Subject:
    """A thing that is checked, under the name that its findings have."""

    name: str

    def ok(self, check: str, message: str) -> Finding:
        """Report that nothing is wrong."""
        return Finding(self.name, check, Verdict.OK, message)

    def note(self, check: str, message: str, remedy: str | None = None) -> Finding:
        """Report what is good to know and needs no action."""
        return Finding(self.name, check, Verdict.NOTE, message, remedy)

    def warning(self, check: str, message: str, remedy: str) -> Finding:
        """Report what works today and needs attention."""
        return Finding(self.name, check, Verdict.WARNING, message, remedy)

    def error(self, check: str, message: str, remedy: str, exit_code: ExitCode) -> Finding:
        """Report that backups or restores do not work."""
        return Finding(self.name, check, Verdict.ERROR, message, remedy, exit_code)

    def failed(self, check: str, error: BackupdError) -> Finding:
        """Report an error that a check met."""
        remedy = error.hint or "look at the lines above and at the system log"
        return self.error(check, error.message, remedy, error.exit_code)


def exit_code_of(findings: Iterable[Finding]) -> ExitCode:
    """The exit code of the most severe error, or 0 without one."""
    codes = {finding.exit_code for finding in findings if finding.verdict is Verdict.ERROR}
    return next((code for code in _MOST_SEVERE_FIRST if code in codes), max(codes, default=ExitCode.DONE))


def size(size_bytes: float) -> str:
    """A size in decimal units: `512 B`, `3.2 MB`, `245 MB`."""
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
    """A duration: `0.4 s`, `75 s`, `12 min`."""
    if duration < _FEW:
        return f"{duration:.1f} s"
    return f"{duration:.0f} s" if duration < _MINUTES_FROM else f"{duration / 60:.0f} min"


def listed(names: Sequence[object], most: int = 3) -> str:
    """The first `most` names, and how many more there are: `a, b, c and 4 more`."""
    rest = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {rest} more" if rest > 0 else "")
