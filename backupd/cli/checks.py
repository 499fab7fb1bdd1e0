"""What doctor found, on one screen: aligned lines, the remedy below what it is for."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output, quantities
from backupd.doctor.findings import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backupd.doctor.findings import Finding

_COLOURS = {Verdict.OK: "green", Verdict.NOTE: "cyan", Verdict.WARNING: "yellow", Verdict.ERROR: "red"}
_VERDICT_WIDTH = max(map(len, Verdict))
_INDENT = "  "
_REMEDY = "do: "
_NARROWEST = 60
_DATABASE = "database "
_SHOWN_IN_FULL = 3
_NAMES_SHOWN = 8
_STEPS = ("write", "read", "list", "delete")


def values_of(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as JSON shows them."""
    return [
        {
            "subject": finding.subject,
            "check": finding.check,
            "verdict": str(finding.verdict),
            "message": finding.message,
            "remedy": finding.remedy,
        }
        for finding in findings
    ]


def print_findings(findings: Sequence[Finding], *, is_quiet: bool = False) -> None:
    """Write them to stdout under their subjects, and how many of each verdict there are; if quiet, what is not ok."""
    shown = [each for each in findings if not (is_quiet and each.verdict is Verdict.OK)]
    width = max((len(finding.check) for finding in shown), default=0)
    blocks = ["\n".join(_block(title, found, width)) for title, found in _titled(shown)]
    output.print_result("\n\n".join([*blocks, _sum(findings)]))


def _titled(findings: Sequence[Finding]) -> Iterator[tuple[str, Sequence[Finding]]]:
    """The findings by their subjects. Of many databases with the same troubles, the first stands for all."""
    by_subject: dict[str, list[Finding]] = {}
    for finding in findings:
        by_subject.setdefault(finding.subject, []).append(finding)
    databases = {subject: found for subject, found in by_subject.items() if subject.startswith(_DATABASE)}
    alike: dict[tuple[object, ...], list[str]] = {}
    for subject, found in databases.items():
        # Few of them are told one by one.
        trouble = _trouble(found) if len(databases) > _SHOWN_IN_FULL else (subject,)
        alike.setdefault(trouble, []).append(subject)
    followers = {subjects[0]: subjects[1:] for subjects in alike.values()}
    for subject, found in by_subject.items():
        if subject not in databases:
            yield subject, found
        elif subject in followers:
            yield subject, found
            if others := followers[subject]:
                yield f"{_named(others)}: {'the same' if _trouble(found) else 'nothing wrong either'}", ()


def _trouble(findings: Iterable[Finding]) -> tuple[object, ...]:
    """The same for databases with which the same is to be done."""
    bad = (each for each in findings if each.verdict in {Verdict.WARNING, Verdict.ERROR})
    return tuple((each.check, each.verdict, each.remedy) for each in bad)


def _named(subjects: Sequence[str]) -> str:
    names = [subject.removeprefix(_DATABASE) for subject in subjects]
    rest = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
    return f"{'database' if len(names) == 1 else 'databases'} {shown}"


def _block(title: str, findings: Sequence[Finding], width: int) -> Iterator[str]:
    clean = output.printable(title)
    yield click.style(clean, bold=True) if _is_terminal() else clean
    for finding in _joined(findings):
        verdict = f"{finding.verdict:{_VERDICT_WIDTH}}"
        start = f"{_INDENT}{verdict}  {finding.check:{width}}  "
        first, *others = _wrapped(output.printable(finding.message), len(start))
        coloured = click.style(verdict, fg=_COLOURS[finding.verdict]) if _is_terminal() else verdict
        yield f"{_INDENT}{coloured}  {finding.check:{width}}  {first}"
        yield from others
        if finding.remedy:
            remedy, *others = _wrapped(output.printable(finding.remedy), len(start) + len(_REMEDY))
            yield f"{' ' * len(start)}{_REMEDY}{remedy}"
            yield from others


def _joined(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The same with the steps in using a store as one, when all of them are ok."""
    steps = [each for each in findings if each.check in _STEPS and each.verdict is Verdict.OK]
    is_one = len(steps) == len(_STEPS)
    if is_one:
        messages = "; ".join(each.message for each in steps)
        yield replace(steps[0], check="use", message=messages)
    yield from (each for each in findings if not (is_one and each in steps))


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines of which all but the first are indented; elsewhere than on a terminal a line is as long as it is."""
    if not _is_terminal():
        return [text]
    import shutil  # noqa: PLC0415  (only on a terminal)

    columns = max(shutil.get_terminal_size().columns, _NARROWEST)
    lines = textwrap.wrap(text, columns - indent, break_long_words=False, break_on_hyphens=False)
    return [line if number == 0 else " " * indent + line for number, line in enumerate(lines or [""])]


def _sum(findings: Sequence[Finding]) -> str:
    counts = {verdict: sum(each.verdict is verdict for each in findings) for verdict in Verdict}
    told = [
        quantities.count(counts[verdict], str(verdict))
        for verdict in (Verdict.ERROR, Verdict.WARNING, Verdict.NOTE)
        if counts[verdict]
    ]
    checks = quantities.count(len(findings), "check")
    return f"{checks}: {', '.join(told)}" if told else f"{checks}: all is well"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
