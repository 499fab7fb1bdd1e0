"""`backupd forget`: remove single snapshots, whatever rules keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from backupd.cli import output
from backupd.cli.verbs import Invocation, Verb, complete_snapshots, database_option, global_options, store_option
from backupd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.cli.session import Session
    from backupd.jobs.trash import Forgotten


@click.command(
    "forget",
    cls=Verb,
    short_help="Remove single snapshots.",
    examples=("backupd forget app@latest~1",),
)
@click.argument("snapshots", metavar="SNAPSHOT...", nargs=-1, required=True, shell_complete=complete_snapshots)
@database_option
@store_option
@global_options
@click.pass_obj
def command(invocation: Invocation, snapshots: tuple[str, ...], database: str | None, store: str | None) -> int:
    """Move each SNAPSHOT to the trash of every store that has it.

    SNAPSHOT is an id or its unique beginning, `latest~2` (two before the newest), a time (2026-11-22T08:00: the newest
    at or before it), an age (2h, 3d) or a tag. NAME@ before it chooses the database.

    `backupd undelete` brings it back within the grace, three days unless configured otherwise. The newest snapshot, and
    the newest that was proven to be restorable, cannot be removed.
    """
    from backupd.cli.session import Session
    from backupd.jobs.trash import forget_in_stores

    session = Session(invocation)
    # All of them first: once one is gone, `latest~2` means another.
    found = [session.snapshot(text, database, store).manifest for text in snapshots]
    stores = session.configured_stores([store] if store else [])
    results = [
        result
        for name, snapshot_id in dict.fromkeys((manifest.database, manifest.id) for manifest in found)
        for result in forget_in_stores(name, snapshot_id, stores)
    ]
    if session.is_json:
        output.print_document({"forgotten": [_values(result) for result in results]})
    else:
        _print(results, session)
    return _exit_code(results)


def _values(result: Forgotten) -> dict[str, Any]:
    return {
        "id": str(result.id),
        "database": result.database,
        "store": result.store,
        "gone_after": None if result.until is None else output.utc_time(result.until),
        "error": None if result.error is None else output.error_values(result.error),
    }


def _print(results: Sequence[Forgotten], session: Session) -> None:
    """Print a line for each result or its error, and then once for each snapshot how to bring it back."""
    for result in results:
        if result.error is not None:
            output.print_error(result.error, subject=result.database)
        elif result.until is not None:
            until = output.local_time(result.until)
            output.print_line(
                f"{result.database}  forgotten  {result.id}  can be undeleted until {until}  -> {result.store}"
            )
    names = dict.fromkeys(f"{result.database}@{result.id}" for result in results if result.until is not None)
    for name in () if session.is_quiet else names:
        output.print_hint(f"to bring it back: backupd undelete {name}")


def _exit_code(results: Sequence[Forgotten]) -> int:
    errors = [result.error for result in results if result.error is not None]
    if not errors:
        return ExitCode.DONE
    return errors[0].exit_code if len(errors) == len(results) else ExitCode.PARTLY_DONE
