"""`backupd doctor`: whether backups and restores will work here, and what to do where not."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backupd.cli import output
from backupd.cli.options import Invocation, Verb, global_options
from backupd.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.doctor.findings import Finding


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
    """Check the configuration, every database and every store, and say what to do about what is wrong.

    Databases are opened read-only, as for a snapshot. Into each store an object is written, read back, listed and
    deleted. Nothing is changed, and nothing stays, but for one small object in stores with `put_only`, whose keys may
    not delete it: the same at every run. What hangs is given up on, after about two minutes at most.

    The verdicts: ok; note, good to know; warning, it works and somebody should look at it; error, backups or restores
    do not work. The exit code is 0 without an error, else that of the gravest one: the table is in README.
    """
    from backupd.cli.checks import print_findings, values_of
    from backupd.doctor.findings import exit_code_of

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
        # Nothing else can be looked at: where the databases and stores are, only the configuration says.
        return (CONFIGURATION.failed("file", error),)
    findings = examine(session.settings, session.state)
    if not send_test:
        return findings
    from backupd.doctor.trials import send_tests

    return [*findings, *send_tests(session.settings)]
