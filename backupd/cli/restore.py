"""`backupd restore`: bring a snapshot back as a file."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from backupd.cli import output, quantities
from backupd.cli.options import Invocation, Verb, database_option, global_options, snapshot_argument, store_option
from backupd.errors import InterruptedByUserError, UsageError

if TYPE_CHECKING:
    from backupd.catalog import ListedSnapshot
    from backupd.cli.session import Session
    from backupd.config import Database
    from backupd.restore import RestoreResult


@click.command(
    "restore",
    cls=Verb,
    short_help="Bring a snapshot back as a file.",
    examples=(
        "backupd restore latest --to restored.db",
        "backupd restore app@latest~1 --to restored.db --force",
    ),
)
@snapshot_argument
@database_option
@store_option
@click.option("--to", metavar="FILE", type=click.Path(path_type=Path), help="The file to restore to.")
@click.option("--force", is_flag=True, help="Replace what is there, after the application was stopped.")
@click.option("--yes", is_flag=True, help="Do not ask before a configured database is replaced.")
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    snapshot: str,
    database: str | None,
    store: str | None,
    to: Path | None,
    *,
    force: bool,
    yes: bool,
) -> None:
    """Bring SNAPSHOT back as a file, which appears complete and checked, or not at all.

    SNAPSHOT is an id or its unique beginning, `latest`, `latest~2` (two before it), a time (2026-11-22T08:00: the
    newest at or before it), an age (2h, 3d) or a tag. NAME@ before it chooses the database.

    With --to, the file is readable only for you. Without it, the database goes back to its configured path, with the
    owner and mode that it had, if nothing is there.
    """
    from backupd.cli.session import Session
    from backupd.cli.sought import sought_snapshot
    from backupd.restore import reject_unusable_target

    session = Session(invocation)
    target = None if to is None else _given_target(to)
    if target is not None:
        reject_unusable_target(target, force=force)
    found = sought_snapshot(session, snapshot, database, store)
    if target is None:
        target = _configured_path(found, session.databases())
        reject_unusable_target(target, force=force)
    if force and not yes:
        _confirm_replacing(target, found, session.databases())
    result = _restored(found, target, force=force, as_source=to is None, session=session)
    if session.is_json:
        output.print_document({"restored": _values(found, result)})
    elif not session.is_quiet:
        _print(found, result, is_in_place=to is None)


def _given_target(to: Path) -> Path:
    if str(to) == "-":
        raise UsageError("a database can not be restored to standard output", hint="name a file: --to FILE")
    try:
        return to.expanduser().absolute()
    except RuntimeError:
        return to.absolute()


def _configured_path(found: ListedSnapshot, configured: tuple[Database, ...]) -> Path:
    name, writer = found.manifest.database, found.manifest.writer
    for database in configured:
        if database.name == name:
            return database.path
    raise UsageError(
        f"where to restore {name} to is not known: it is not configured here",
        hint=f"name the file: --to FILE; it was {writer.path} on {writer.host}",
    )


def _confirm_replacing(target: Path, found: ListedSnapshot, configured: tuple[Database, ...]) -> None:
    """Ask before a database that is in use somewhere is lost; a file that --to and --force name is not asked about."""
    is_live = any(database.path.resolve() == target.resolve() for database in configured)
    if not is_live or not target.exists():
        return
    manifest = found.manifest
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(
            f"{target} would be replaced, and there is no terminal to confirm it on",
            hint="stop the application, then say --yes as well; or restore beside it with --to FILE",
        )
    taken_at = manifest.id.taken_at
    question = (
        f"Replace {target} with {manifest.database}@{manifest.id} of {quantities.local_time(taken_at)} "
        f"({quantities.age(taken_at, datetime.now(UTC))})? "
        "What is in it now is lost, and the application must be stopped."
    )
    if not click.confirm(output.printable(question), err=True):
        raise InterruptedByUserError(f"nothing was restored: {target} stays as it is")


def _restored(found: ListedSnapshot, target: Path, *, force: bool, as_source: bool, session: Session) -> RestoreResult:
    from backupd.cli.progress import shown_progress
    from backupd.restore import restore_to_file

    name = found.manifest.database
    with shown_progress(name, done="restored", moved="fetched", is_quiet=session.is_quiet) as report:
        return restore_to_file(
            found.repository,
            found.manifest,
            target,
            force=force,
            as_source=as_source,
            on_progress=lambda now: report(now.restored_bytes, now.image_bytes, now.fetched_bytes),
        )


def _values(found: ListedSnapshot, result: RestoreResult) -> dict[str, object]:
    return {
        "id": str(found.manifest.id),
        "database": found.manifest.database,
        "store": found.repository.url,
        "target": str(result.target),
        "image_bytes": result.image_bytes,
        "fetched_bytes": result.fetched_bytes,
        "duration_seconds": round(result.duration_seconds, 3),
    }


def _print(found: ListedSnapshot, result: RestoreResult, *, is_in_place: bool) -> None:
    manifest = found.manifest
    taken_at = manifest.id.taken_at
    line = (
        f"restored {manifest.database}@{manifest.id} "
        f"({quantities.local_time(taken_at)}, {quantities.age(taken_at, datetime.now(UTC))}) "
        f"from {found.repository.url} to {result.target}: {quantities.size(result.image_bytes)} in "
        f"{quantities.seconds(result.duration_seconds)}; every pack and the whole image have their checksums, "
        "and SQLite opens it"
    )
    output.print_result(output.printable(line))
    if is_in_place:
        output.print_note("hint: the application can be started now")
