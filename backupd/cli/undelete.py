"""`backupd undelete`: take a snapshot out of the trash again."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.options import Invocation, Verb, database_option, global_options, store_option
from backupd.errors import BackupdError, ExitCode, NoSuchSnapshotError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.cli.session import Session
    from backupd.cli.trash import Trashed
    from backupd.reference import Reference
    from backupd.upkeep.stores import RotatedStore


def _complete_removed(context: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
    """The ids in the trash of directory stores."""
    from backupd.cli import completion

    return completion.removed_snapshots(context, incomplete)


@click.command(
    "undelete",
    cls=Verb,
    short_help="Take a snapshot out of the trash again.",
    examples=(
        "backupd list --trash",
        "backupd undelete latest",
    ),
)
@click.argument("snapshot", shell_complete=_complete_removed)
@database_option
@store_option
@global_options
@click.pass_obj
def command(invocation: Invocation, snapshot: str, database: str | None, store: str | None) -> int:
    """Take SNAPSHOT out of the trash of every store that has it there.

    SNAPSHOT is the id that `backupd list --trash` shows, or its unique beginning; `latest`, a time, an age or a tag
    mean a snapshot in the trash too. NAME@ before it chooses the database.

    No rule removes it again: it stays until `backupd forget`.
    """
    from backupd.cli.session import Session
    from backupd.cli.sought import parsed_reference

    session = Session(invocation)
    reference = parsed_reference(session, snapshot, database)
    found, problems = _found(reference, session.rotated([store] if store else []))
    undeleted: list[Trashed] = []
    for trashed in found:
        try:
            _undelete(trashed, session)
            undeleted.append(trashed)
        except BackupdError as error:
            problems.append(error)
    if session.is_json:
        output.print_document(
            {
                "undeleted": [trashed.values() for trashed in undeleted],
                "problems": [output.error_values(problem) for problem in problems],
            }
        )
    else:
        for problem in problems:
            output.print_error(problem)
    if not problems:
        return ExitCode.DONE
    return ExitCode.PARTLY_DONE if undeleted else problems[0].exit_code


def _found(reference: Reference, stores: Sequence[RotatedStore]) -> tuple[list[Trashed], list[BackupdError]]:
    """The one snapshot that is meant, in each store whose trash has it; and what may have hidden it from us elsewhere.

    Raises `NoSuchSnapshotError` when it is in none, or when several databases have one, and the first error when a
    store that could not be asked, or a damaged entry, may have it.
    """
    from backupd.cli.trash import read_trash
    from backupd.reference import resolve

    now = datetime.now().astimezone()
    trash = read_trash(stores, reference.database)
    meant: list[list[Trashed]] = []
    for name in dict.fromkeys(trashed.database for trashed in trash.found):
        of_database = [trashed for trashed in trash.found if trashed.database == name]
        # By time: what is third in one store may be fourth in another.
        by_id = {trashed.manifest.id: trashed.manifest for trashed in of_database}
        wanted = resolve(reference, [by_id[snapshot_id] for snapshot_id in sorted(by_id)], now)
        if wanted is not None:
            meant.append([trashed for trashed in of_database if trashed.manifest.id == wanted.id])
    if len(meant) > 1:
        names = ", ".join(f"{each.database}@{each.manifest.id}" for each, *_ in meant)
        raise NoSuchSnapshotError(
            f"{reference.text} means a removed snapshot in several databases", hint=f"say which one: {names}"
        )
    # Of those that are damaged, an id means only its own; any of them may be what a time or a tag means.
    damaged = [error for error in trash.damaged if not reference.is_id or f"@{reference.text}" in error.message]
    problems = [*trash.problems, *damaged]
    if not meant:
        if problems:
            raise problems[0]
        places = ", ".join(rotated.repository.url for rotated in stores)
        raise NoSuchSnapshotError(
            f"no snapshot {reference.text} in the trash of {places}",
            hint="see what there is with: backupd list --trash",
        )
    return meant[0], problems


def _undelete(trashed: Trashed, session: Session) -> None:
    from backupd.prune import undelete

    undelete(trashed.rotated.repository, trashed.database, trashed.manifest.id)
    if not session.is_json:
        line = (
            f"{trashed.database}  undeleted  {trashed.manifest.id}  stays until it is forgotten by hand  "
            f"-> {trashed.rotated.repository.url}"
        )
        output.print_result(output.printable(line))
