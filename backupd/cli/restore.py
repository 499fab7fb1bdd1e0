"""`backupd restore`: bring a snapshot back, into the running service or as a file."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from backupd.cli.options import (
    InPlaceWish,
    Invocation,
    Verb,
    database_option,
    global_options,
    identity_option,
    in_place_options,
    snapshot_argument,
    store_option,
)
from backupd.errors import UsageError

if TYPE_CHECKING:
    from backupd.cli.session import Session


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
@identity_option
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
    from backupd.cli.sought import snapshot_to_restore
    from backupd.cli.to_file import print_restored_file, restored_to_file
    from backupd.restore import reject_unusable_target

    session = Session(invocation)
    wanted = InPlaceWish(**wish)
    if to is None:
        from backupd.cli.in_place import database_to_restore, restore_in_place

        if force:
            raise UsageError("--force goes with --to", hint="to put another file in place: --replace --app-stopped")
        found = snapshot_to_restore(session, snapshot, database, store)
        restore_in_place(session, found, database_to_restore(session, found, database), wanted)
        return
    if wanted != InPlaceWish(is_yes=wanted.is_yes):
        raise UsageError("--to goes without the options of a restore in place", hint="see: backupd restore --help")
    target = _given_target(to)
    _reject_configured(target, session)
    reject_unusable_target(target, force=force)
    found = snapshot_to_restore(session, snapshot, database, store)
    result = restored_to_file(found, target, session, force=force, as_source=False)
    print_restored_file(found, result, session)


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
