"""A restored image on disk, and whether SQLite opens it. It may be forged: who can write to a store can write one."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import apsw

from backupd.capture.facts import FACTS_SECONDS, TooMuchError, bounded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# What a schema could have run by whoever looks at it: functions with side effects, triggers, views.
_OFF = (
    apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA,
    apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER,
    apsw.SQLITE_DBCONFIG_ENABLE_VIEW,
)


def distrust(connection: apsw.Connection) -> None:
    """Have `connection` run nothing that the schema of its database says."""
    for switch in _OFF:
        connection.config(switch, 0)


@contextmanager
def opened_image(file: Path) -> Iterator[apsw.Connection]:
    """A connection to a file that nobody changes, which leaves nothing beside it and runs nothing that its schema says.

    Source: https://www.sqlite.org/security.html, "untrusted SQLite database files". No extension can be loaded: that is
    off unless it is switched on.
    """
    uri = f"file:{quote(os.fsencode(file))}?immutable=1"
    connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        distrust(connection)
        connection.pragma("cell_size_check", True)
        yield connection
    finally:
        connection.close()


def why_unreadable(file: Path, page_count: int, *, needs_schema: bool) -> str | None:
    """Why SQLite does not take `file`, an image of `page_count` pages that nobody else has open; None if it does.

    Opened as immutable, or SQLite would leave `-wal` and `-shm` beside it. With `needs_schema` its tables are read too.
    """
    try:
        with opened_image(file) as connection:
            connection.execute("BEGIN")
            connection.pragma("schema_version")
            connection.pragma("writable_schema", True)  # what was damaged when it was captured is no damage of ours
            # A schema may be made to take for ever: the part that is read in time has to do.
            with suppress(TooMuchError), bounded(connection, seconds=FACTS_SECONDS):
                connection.pragma("journal_mode")  # the first that has to know the schema
                if needs_schema:
                    connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            seen = connection.pragma("page_count")
    except apsw.Error as error:
        return str(error)
    return None if seen == page_count else f"SQLite sees {seen} pages instead of {page_count}"
