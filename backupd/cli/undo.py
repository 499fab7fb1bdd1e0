"""`backupd undo`: go back to what was there before the last restore."""

# ruff: noqa: PLC0415  (imports are late: `--help` is to be fast)

from __future__ import annotations

from typing import Any

import click

from backupd.cli.options import (
    InPlaceWish,
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
def command(invocation: Invocation, /, database: str | None, store: str | None, **wish: Any) -> None:
    """Restore what was in DATABASE just before the last restore into it, from the safety snapshot of that time.

    Which restore was the last is remembered in the state directory; without that, the newest safety snapshot is meant.
    This is a restore like any other, with a plan, a question, and a safety snapshot first, so that an undo can be
    undone. All safety snapshots are `before-restore`, `before-restore~1`, ...: see `backupd restore`.
    """
    from backupd.cli.in_place import (
        database_to_restore,
        newest_safety_snapshot,
        restore_in_place,
        snapshot_to_undo,
    )
    from backupd.cli.session import Session

    session = Session(invocation)
    configured = session.databases()
    if database is None and configured:
        if len(configured) > 1:
            raise UsageError(f"{len(configured)} databases are configured", hint="say which one: backupd undo DATABASE")
        database = configured[0].name
    if database is None:
        found = newest_safety_snapshot(session, None, store)
    else:
        found = snapshot_to_undo(session, database, store)
    restore_in_place(session, found, database_to_restore(session, found, database), InPlaceWish(**wish))
