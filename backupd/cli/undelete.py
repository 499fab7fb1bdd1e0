"""`backupd undelete`: take a snapshot out of the trash."""

from __future__ import annotations

from datetime import datetime

import click

from backupd.cli import output
from backupd.cli.verbs import (
    Invocation,
    Verb,
    complete_removed_snapshots,
    database_option,
    global_options,
    store_option,
)
from backupd.errors import ExitCode


@click.command(
    "undelete",
    cls=Verb,
    short_help="Take a snapshot out of the trash.",
    examples=(
        "backupd list --trash",
        "backupd undelete latest",
    ),
)
@click.argument("snapshot", shell_complete=complete_removed_snapshots)
@database_option
@store_option
@global_options
@click.pass_obj
def command(invocation: Invocation, snapshot: str, database: str | None, store: str | None) -> int:
    """Take SNAPSHOT out of the trash of every store that has it there.

    SNAPSHOT is the id that `backupd list --trash` shows, or its unique beginning; `latest`, a time, an age or a tag
    mean a snapshot in the trash too. NAME@ before it chooses the database.

    No rule removes it again: only `backupd forget` does.
    """
    from backupd.cli.listing import removed_values
    from backupd.cli.session import Session
    from backupd.jobs.trash import undelete_in_stores

    session = Session(invocation)
    reference = session.reference(snapshot, database)
    stores = session.configured_stores([store] if store else [])
    undeleted, problems = undelete_in_stores(reference, stores, now=datetime.now().astimezone())
    if session.is_json:
        output.print_document(
            {
                "undeleted": [removed_values(removed) for removed in undeleted],
                "problems": [output.error_values(problem) for problem in problems],
            }
        )
    else:
        for removed in undeleted:
            output.print_line(
                f"{removed.database}  undeleted  {removed.manifest.id}  stays until it is forgotten  "
                f"-> {removed.store.url}"
            )
        for problem in problems:
            output.print_error(problem)
    if not problems:
        return ExitCode.DONE
    return ExitCode.PARTLY_DONE if undeleted else problems[0].exit_code
