"""`backupd undo`: go back to what was there before the last restore."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from backupd.cli.verbs import (
    InPlaceOptions,
    Invocation,
    Verb,
    complete_databases,
    global_options,
    identity_option,
    in_place_options,
    store_option,
)
from backupd.errors import UsageError


@click.command(
    "undo",
    cls=Verb,
    short_help="Go back to what was there before the last restore.",
    examples=(
        "backupd undo app.db --dry-run",
        "backupd undo app.db --yes",
    ),
)
@click.argument("database", required=False, shell_complete=complete_databases)
@store_option
@in_place_options
@identity_option
@global_options
@click.pass_obj
def command(invocation: Invocation, /, database: str | None, store: str | None, **options: Any) -> None:
    """Restore what was in DATABASE just before the last restore into it, from the safety snapshot of that time.

    The state directory remembers which restore was the last; without it, the newest safety snapshot is restored.
    This is a restore like any other, with a plan, a question, and a safety snapshot first, so that an undo can be
    undone. All safety snapshots are `before-restore`, `before-restore~1`, ...: see `backupd restore`.
    """
    from backupd.cli.restore import restore_in_place
    from backupd.cli.session import Session
    from backupd.restore.undo import snapshot_to_undo

    session = Session(invocation)
    configured = session.databases()
    if database is None and configured:
        if len(configured) > 1:
            raise UsageError(f"{len(configured)} databases are configured", hint="say which one: backupd undo DATABASE")
        database = configured[0].name
    name = None if database is None else session.database_name(database)
    known = None if name is None else session.known_database(name, database)
    found = snapshot_to_undo(
        session.repositories(store),
        session.state,
        name,
        None if known is None else known.path,
        now=datetime.now().astimezone(),
    )
    restore_in_place(session, found, session.database_to_restore(found, database), InPlaceOptions(**options))
