"""`backupd doctor`: checks whether backups and restores will work here, and prints what to do about problems."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, global_options
from backupd.doctor.findings import Verdict, exit_code_of, listed
from backupd.errors import UsageError

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


@click.command(
    "doctor",
    cls=Verb,
    short_help="Check whether backups and restores will work.",
    examples=(
        "backupd doctor",
        "backupd doctor --json",
        "backupd doctor --send-test",
    ),
)
@click.option("--send-test", is_flag=True, help="Also send a test to every notification target and heartbeat.")
@global_options
@click.pass_obj
def command(invocation: Invocation, *, send_test: bool) -> int:
    """Check the configuration, every database and every store, and say what to do about problems.

    Databases are opened read-only, as for a snapshot. Into each store an object is written, read back, listed and
    deleted. Nothing is changed, and nothing stays, except one small object in stores with `put_only`, whose keys may
    not delete it: the same object at every run. A check that hangs is given up after about two minutes at most.

    The verdicts: ok; note, good to know; warning, it works and needs attention; error, backups or restores do not
    work. The exit code is that of the most severe error, or 0 without an error; docs/operations.md lists them.
    """
    findings = _findings(invocation, send_test=send_test)
    if invocation.is_json:
        output.print_document({"checks": values_of(findings)})
    else:
        print_findings(findings, is_quiet=invocation.is_quiet)
    return exit_code_of(findings)


def _findings(invocation: Invocation, *, send_test: bool) -> Sequence[Finding]:
    from backupd.cli.session import Session
    from backupd.doctor.configuration import CONFIGURATION
    from backupd.doctor.examination import examine

    try:
        session = Session(invocation)
    except UsageError as error:
        # Nothing else can be checked: only the configuration says where the databases and stores are.
        return (CONFIGURATION.failed("file", error),)
    findings = examine(session.settings, session.state)
    if not send_test:
        return findings
    from backupd.doctor.unattended import send_tests

    return [*findings, *send_tests(session.settings)]


def values_of(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as values for JSON."""
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
    """Print findings under their subjects, and the number of each verdict; if quiet, only findings that are not ok."""
    shown = [each for each in findings if not (is_quiet and each.verdict is Verdict.OK)]
    width = max((len(finding.check) for finding in shown), default=0)
    blocks = ["\n".join(_block(title, found, width)) for title, found in _titled(shown)]
    output.print_result("\n\n".join([*blocks, _summary(findings)]))


def _titled(findings: Sequence[Finding]) -> Iterator[tuple[str, Sequence[Finding]]]:
    """The findings by subject. Of many databases with the same problems, the first represents all."""
    by_subject: dict[str, list[Finding]] = {}
    for finding in findings:
        by_subject.setdefault(finding.subject, []).append(finding)
    databases = {subject: found for subject, found in by_subject.items() if subject.startswith(_DATABASE)}
    alike: dict[tuple[object, ...], list[str]] = {}
    for subject, found in databases.items():
        # A few databases are all shown.
        problems = _problems(found) if len(databases) > _SHOWN_IN_FULL else (subject,)
        alike.setdefault(problems, []).append(subject)
    followers = {subjects[0]: subjects[1:] for subjects in alike.values()}
    for subject, found in by_subject.items():
        if subject not in databases:
            yield subject, found
        elif subject in followers:
            yield subject, found
            if others := followers[subject]:
                yield f"{_named(others)}: {'the same' if _problems(found) else 'nothing wrong either'}", ()


def _problems(findings: Iterable[Finding]) -> tuple[object, ...]:
    """A key that is equal for databases with the same problems and remedies."""
    bad = (each for each in findings if each.verdict in {Verdict.WARNING, Verdict.ERROR})
    return tuple((each.check, each.verdict, each.remedy) for each in bad)


def _named(subjects: Sequence[str]) -> str:
    names = [subject.removeprefix(_DATABASE) for subject in subjects]
    return f"{'database' if len(names) == 1 else 'databases'} {listed(names, _NAMES_SHOWN)}"


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
    """The findings, with the steps of using a store joined into one when all of them are ok."""
    steps = [each for each in findings if each.check in _STEPS and each.verdict is Verdict.OK]
    is_one = len(steps) == len(_STEPS)
    if is_one:
        messages = "; ".join(each.message for each in steps)
        yield replace(steps[0], check="use", message=messages)
    yield from (each for each in findings if not (is_one and each in steps))


def _wrapped(text: str, indent: int) -> list[str]:
    """The lines of `text`, all but the first indented; one line unless stdout is a terminal."""
    if not _is_terminal():
        return [text]
    import shutil

    columns = max(shutil.get_terminal_size().columns, _NARROWEST)
    lines = textwrap.wrap(text, columns - indent, break_long_words=False, break_on_hyphens=False)
    return [line if number == 0 else " " * indent + line for number, line in enumerate(lines or [""])]


def _summary(findings: Sequence[Finding]) -> str:
    counts = {verdict: sum(each.verdict is verdict for each in findings) for verdict in Verdict}
    parts = [
        output.count(counts[verdict], str(verdict))
        for verdict in (Verdict.ERROR, Verdict.WARNING, Verdict.NOTE)
        if counts[verdict]
    ]
    checks = output.count(len(findings), "check")
    return f"{checks}: {', '.join(parts)}" if parts else f"{checks}: all is well"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()
