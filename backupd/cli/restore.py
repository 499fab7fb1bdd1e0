"""`backupd restore`: bring a snapshot back, into the running service or as a file."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output, quantities
from backupd.cli.options import (
    InPlaceWish,
    Invocation,
    Verb,
    database_option,
    global_options,
    in_place_options,
    snapshot_argument,
    store_option,
)
from backupd.errors import UsageError

if TYPE_CHECKING:
    from backupd.catalog import ListedSnapshot
    from backupd.cli.session import Session
    from backupd.restore import RestoreResult


@click.command(
    "restore",
    cls=Verb,
    short_help="Bring a snapshot back, into the running service or as a file.",
    examples=(
        "backupd restore latest --to restored.db",
        "backupd restore latest~1 --database app.db --dry-run",
        "backupd restore latest~1 --database app.db --yes",
    ),
)
@snapshot_argument
@database_option
@store_option
@click.option("--to", metavar="FILE", type=click.Path(path_type=Path), help="Restore to this file instead.")
@click.option("--force", is_flag=True, help="With --to: replace the file that is there.")
@in_place_options
@global_options
@click.pass_obj
def command(
    invocation: Invocation,
    /,
    snapshot: str,
    database: str | None,
    store: str | None,
    to: Path | None,
    *,
    force: bool,
    **wish: Any,
) -> None:
    """Bring SNAPSHOT back into the configured database, while the application runs; or, with --to, as a file.

    SNAPSHOT is an id or its unique beginning, `latest`, `latest~2` (two before it), a time (2026-11-22T08:00: the
    newest at or before it), an age (2h, 3d), a tag, or `before-restore` (the newest safety snapshot). NAME@ before it
    chooses the database.

    First you see what would change, and are asked. Then a safety snapshot is taken, to which `backupd undo` goes back,
    and the content is replaced in one transaction: open connections stay valid, and the file keeps its owner and mode.
    --replace puts another file in place instead, which needs the application to be stopped.
    """
    from backupd.cli.session import Session
    from backupd.cli.sought import sought_snapshot
    from backupd.restore import reject_unusable_target

    session = Session(invocation)
    wanted = InPlaceWish(**wish)
    if to is None:
        from backupd.cli.in_place import database_to_restore, restore_in_place

        if force:
            raise UsageError("--force goes with --to", hint="to put another file in place: --replace --app-stopped")
        found = sought_snapshot(session, snapshot, database, store)
        restore_in_place(session, found, database_to_restore(session, found, database), wanted)
        return
    if wanted != InPlaceWish(is_yes=wanted.is_yes):
        raise UsageError("--to goes without the options of a restore in place", hint="see: backupd restore --help")
    target = _given_target(to)
    _reject_configured(target, session)
    reject_unusable_target(target, force=force)
    found = sought_snapshot(session, snapshot, database, store)
    result = restored_to_file(found, target, session, force=force, as_source=False)
    print_restored_file(found, result, session)


def restored_to_file(
    found: ListedSnapshot, target: Path, session: Session, *, force: bool, as_source: bool
) -> RestoreResult:
    """Restore to a file, showing how far it is."""
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


def print_restored_file(found: ListedSnapshot, result: RestoreResult, session: Session) -> None:
    """Tell of a restored file, as JSON or in a line."""
    manifest = found.manifest
    if session.is_json:
        output.print_document({"restored": _values(found, result)})
    elif not session.is_quiet:
        line = (
            f"restored {described(found)} from {found.repository.url} to {result.target}: "
            f"{quantities.size(manifest.image_bytes)} in {quantities.seconds(result.duration_seconds)}; "
            "every pack and the whole image have their checksums, and SQLite opens it"
        )
        output.print_result(output.printable(line))


def described(found: ListedSnapshot) -> str:
    """Which snapshot, and of when: `app@20261122T085557123Z-7f3a91c2 (2026-11-22 09:55:57+01:00, 3 h ago)`."""
    manifest = found.manifest
    taken_at = manifest.id.taken_at
    when = f"{quantities.local_time(taken_at)}, {quantities.age(taken_at, datetime.now(UTC))}"
    return f"{manifest.database}@{manifest.id} ({when})"


def _given_target(to: Path) -> Path:
    if str(to) == "-":
        raise UsageError("a database can not be restored to standard output", hint="name a file: --to FILE")
    try:
        return to.expanduser().absolute()
    except RuntimeError:
        return to.absolute()


def _reject_configured(target: Path, session: Session) -> None:
    """A configured database has its own way, which asks and takes a safety snapshot first."""
    for database in session.databases():
        if target.exists() and database.path.resolve() == target.resolve():
            raise UsageError(
                f"{target} is the configured database {database.name}",
                hint="leave --to out to restore into it, with a safety snapshot first",
            )


def _values(found: ListedSnapshot, result: RestoreResult) -> dict[str, object]:
    return {
        "id": str(found.manifest.id),
        "database": found.manifest.database,
        "store": found.repository.url,
        "target": str(result.target),
        "way": "file",
        "image_bytes": result.image_bytes,
        "fetched_bytes": result.fetched_bytes,
        "safety_snapshot": None,
        "kept_as": None,
        "pause_seconds": None,
        "duration_seconds": round(result.duration_seconds, 3),
    }
