"""`backupd report`: the status page as one file."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, global_options
from backupd.errors import TargetExistsError, TargetUnwritableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.cli.session import Session

_MODE = 0o600


@click.command(
    "report",
    cls=Verb,
    short_help="Write the status page into one file.",
    examples=(
        "backupd report --html report.html",
        "backupd report --html audit.html --json",
    ),
)
@click.option(
    "--html",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="The file to write, which must not exist yet.",
)
@global_options
@click.pass_obj
def command(invocation: Invocation, file: Path) -> None:
    """Write the page that `backupd run` serves into one file, for mail or an audit.

    It has how every database is doing, what is wrong and what to do about it, a timeline of each database in each
    store, and its newest snapshots. It shows names, paths, times and sizes, and nothing of the content of a database.
    Everything in it is what this machine knows: no store is asked, and the file says when each was seen last.
    """
    from backupd.cli.session import Session

    session = Session(invocation)
    target = _given_target(file)
    _reject_unusable(target)
    content = _report(session).encode(errors="replace")
    with _reporting_errors(target):
        _write_new(target, content)
    if session.is_json:
        output.print_document({"report": {"file": str(target), "bytes": len(content)}})
    else:
        output.print_line(f"wrote {target}, {output.size(len(content))}")


def _report(session: Session) -> str:
    from backupd.health.alarms import find_alarms
    from backupd.health.values import Status
    from backupd.jobs.knowledge import known_database, recent_runs
    from backupd.page.report import render_report
    from backupd.page.values import Situation

    now = datetime.now(UTC)
    status, alive_at = session.status.find(), session.status.alive_at()
    if status is None:  # nothing is made where nothing was done
        return render_report(Situation(Status(), (), now, alive_at), {}, {})
    alarms = find_alarms(status, now=now, alive_at=alive_at)
    situation = Situation(status, alarms, now, alive_at)
    known = {name: known_database(name, situation, session.settings, session.state) for name in status.databases}
    databases = {name: each for name, each in known.items() if each is not None}
    return render_report(situation, databases, recent_runs(situation, session.state))


def _given_target(file: Path) -> Path:
    if str(file) == "-":
        raise UsageError("a report cannot be written to standard output", hint="name a file: --html FILE")
    try:
        return file.expanduser().absolute()
    except RuntimeError:
        return file.absolute()


def _reject_unusable(target: Path) -> None:
    with _reporting_errors(target):
        if target.exists() or target.is_symlink():
            raise TargetExistsError(f"{target} exists already", hint="name a new file: --html FILE")
        if not target.parent.is_dir():
            raise TargetUnwritableError(
                f"the directory {target.parent} does not exist", hint="create it first, or name another file"
            )


@contextmanager
def _reporting_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise TargetExistsError(f"{target} exists already", hint="name a new file: --html FILE") from error
    except OSError as error:
        raise TargetUnwritableError(
            f"{target} cannot be written: {error.strerror}",
            hint="check the space and the permissions of its directory, or name another file",
        ) from error


def _write_new(target: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all, readable by its owner only, and replaces nothing."""
    from backupd.system.files import flush_directory, rename_new

    partial = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(descriptor)
        rename_new(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    flush_directory(target.parent)
