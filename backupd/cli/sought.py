"""The snapshot that the user asks for, in the stores that the user means."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from backupd.catalog import find_snapshot
from backupd.cli.selection import name_meant
from backupd.errors import UsageError
from backupd.reference import parse_reference

if TYPE_CHECKING:
    from backupd.catalog import ListedSnapshot
    from backupd.cli.session import Session


def sought_snapshot(session: Session, text: str, database: str | None, store: str | None) -> ListedSnapshot:
    """The snapshot that `text` refers to; `database` (a name or a path) and `store` narrow it down.

    Raises what `find_snapshot` raises, and `UsageError` when two databases are named.
    """
    name = name_meant(database, session.databases()) if database else None
    named_before = parse_reference(text).database
    if name and named_before and name != named_before:
        raise UsageError(
            f"{text!r} names the database {named_before}, and --database {name}", hint="leave one of them out"
        )
    return find_snapshot(session.repositories(store), text, database=name, now=datetime.now().astimezone())
