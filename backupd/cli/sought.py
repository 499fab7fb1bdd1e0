"""The snapshot that the user asks for, in the stores that the user means."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from backupd.catalog import find_snapshot, whole
from backupd.errors import UsageError
from backupd.reference import parse_reference

if TYPE_CHECKING:
    from backupd.catalog import ListedSnapshot, WholeSnapshot
    from backupd.cli.session import Session
    from backupd.reference import Reference


def parsed_reference(session: Session, text: str, database: str | None) -> Reference:
    """The reference in `text`, with the name that `database` (a name or a path) means if there is none before `@`.

    Raises `UsageError`, also when two databases are named.
    """
    name = None if database is None else session.name_meant(database)
    reference = parse_reference(text)
    if name and reference.database and name != reference.database:
        raise UsageError(
            f"{text!r} names the database {reference.database}, and --database {name}", hint="leave one of them out"
        )
    return replace(reference, database=reference.database or name)


def sought_snapshot(session: Session, text: str, database: str | None, store: str | None) -> ListedSnapshot:
    """The snapshot that `text` refers to; `database` (a name or a path) and `store` narrow it down.

    Raises what `find_snapshot` raises, and `UsageError` when two databases are named.
    """
    name = parsed_reference(session, text, database).database
    return find_snapshot(session.repositories(store), text, database=name, now=datetime.now().astimezone())


def snapshot_to_restore(session: Session, text: str, database: str | None, store: str | None) -> WholeSnapshot:
    """The same, with everything that a restore needs. Raises `IdentityNeededError` too."""
    return whole(sought_snapshot(session, text, database, store))
