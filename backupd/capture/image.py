"""A restored image on disk, and whether SQLite opens it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import quote

import apsw

if TYPE_CHECKING:
    from pathlib import Path


def why_unreadable(file: Path, page_count: int, *, needs_schema: bool) -> str | None:
    """Why SQLite does not take `file`, an image of `page_count` pages that nobody else has open; None if it does.

    Opened as immutable, or SQLite would leave `-wal` and `-shm` beside it. With `needs_schema` its tables are read too.
    """
    uri = f"file:{quote(os.fsencode(file))}?immutable=1"
    try:
        connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        try:
            connection.execute("BEGIN")
            connection.pragma("schema_version")
            connection.pragma("writable_schema", True)  # what was damaged when it was captured is no damage of ours
            if needs_schema:
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            seen = connection.pragma("page_count")
        finally:
            connection.close()
    except apsw.Error as error:
        return str(error)
    return None if seen == page_count else f"SQLite sees {seen} pages instead of {page_count}"
