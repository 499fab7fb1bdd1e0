"""What doctor finds: a verdict about one thing, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable

# A doctor with several errors leaves with the code of the one that has to be mended first.
_GRAVEST_FIRST = (
    ExitCode.BUG,
    ExitCode.USAGE,
    ExitCode.DAMAGE_FOUND,
    ExitCode.UNSUPPORTED_FORMAT,
    ExitCode.SOURCE_UNUSABLE,
    ExitCode.STORE_UNAVAILABLE,
    ExitCode.BUSY,
)


class Verdict(StrEnum):
    """How good a thing is. Only an error says that backups, or restores, do not work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check of one subject. `message` and `remedy` are lines as those of an error; `remedy` is None for ok.

    `exit_code` is what the process returns when this is its only error; `DONE` for every other verdict.
    """

    subject: str
    check: str
    verdict: Verdict
    message: str
    remedy: str | None = None
    exit_code: ExitCode = ExitCode.DONE


@dataclass(frozen=True, slots=True)
class Subject:
    """Makes findings about one thing; `name` is what they call it."""

    name: str

    def ok(self, check: str, message: str) -> Finding:
        """All is well."""
        return Finding(self.name, check, Verdict.OK, message)

    def note(self, check: str, message: str, remedy: str | None = None) -> Finding:
        """Good to know, and nothing needs to be done."""
        return Finding(self.name, check, Verdict.NOTE, message, remedy)

    def warning(self, check: str, message: str, remedy: str) -> Finding:
        """It works today, and somebody should look at it."""
        return Finding(self.name, check, Verdict.WARNING, message, remedy)

    def error(self, check: str, message: str, remedy: str, exit_code: ExitCode) -> Finding:
        """Backups or restores do not work."""
        return Finding(self.name, check, Verdict.ERROR, message, remedy, exit_code)

    def failed(self, check: str, error: BackupdError) -> Finding:
        """An error that a check met."""
        remedy = error.hint or "look at the lines above and at the log of the machine"
        return self.error(check, error.message, remedy, error.exit_code)


def exit_code_of(findings: Iterable[Finding]) -> ExitCode:
    """0 without an error, else the code of the gravest one."""
    codes = {finding.exit_code for finding in findings if finding.verdict is Verdict.ERROR}
    return next((code for code in _GRAVEST_FIRST if code in codes), max(codes, default=ExitCode.DONE))
