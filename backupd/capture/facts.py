"""The facts of a pinned state: schema, versions and counters, read in bounded time whatever the schema holds.

The schema is the application's, and in a directory of many tenants it may be hostile: a table may be an endless view, a
column an expression that takes hours, the schema a gigabyte. So nothing of it is evaluated (`distrust` switches views
off, and a column is read only where its values are stored), and reading is interrupted when its time is over. A fact
that could not be read is left out: it never keeps the pages from being captured.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import apsw

from backupd.capture.database_files import LOG_HEADER_BYTES
from backupd.capture.header import HEADER_BYTES, Header

if TYPE_CHECKING:
    from collections.abc import Iterator


_STEPS_BETWEEN_LOOKS_AT_THE_CLOCK = 1000
_MOST_SCHEMA_CHARACTERS = 8 << 20
_MOST_VALUE_BYTES = 1 << 20
_MOST_REVISIONS = 100
_MOST_REVISION_CHARACTERS = 1000
_MOST_PAGES = 1000
_FRAME_HEADER_BYTES = 24
_FIRST_PAGE = (1).to_bytes(4, "big")
_UINT32 = 0xFFFFFFFF
_MOST_FRAMES = 1 << 16
"""So much of a log is searched for its newest page 1, in 0.3 s at most: 270 MB with pages of 4096 bytes."""

_LIMITS = (apsw.SQLITE_LIMIT_LENGTH, apsw.SQLITE_LIMIT_SQL_LENGTH)
_UNREADABLE = (apsw.CorruptError, apsw.SQLError, apsw.NotADBError, UnicodeDecodeError, TypeError)

# What a schema could make its reader execute: functions with side effects, triggers, views.
_OFF = (
    apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA,
    apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER,
    apsw.SQLITE_DBCONFIG_ENABLE_VIEW,
)


class TooMuchError(Exception):
    """Something was not read to its end; the message says why."""


def read_facts(connection: apsw.Connection, *, seconds: float) -> tuple[Header, dict[str, Any]]:
    """Read the header of the pinned state and the values of `format.manifest.SourceFacts` within about `seconds`.

    Three more values: `is_schema_readable` is False for a damaged schema; `left_out` has a sentence about each fact
    that is None because reading it would have taken too long; `revision_pages` are the numbers of the pages that hold
    Alembic's revisions, None where they are not known. `writable_schema` must be on, so that SQLite continues with
    the part of the schema that it has read when it is interrupted; see `source.read_damaged_schema`.
    """
    left_out: list[str] = []
    found: dict[str, Any] = {"tables": None, "schema_digest": None, "alembic_revisions": None, "revision_pages": None}
    is_schema_readable = True
    try:
        with bounded(connection, seconds=seconds / 2):
            # The first statement that reads the schema: if it is interrupted, those below lack the rest.
            connection.pragma("journal_mode")
            schema = read_schema(connection)
            digest = schema_digest(schema)  # raises for values that are not text
            found["tables"] = sorted(str(name) for kind, name, _, _ in schema if kind == "table")
            found["schema_digest"] = digest
    except TooMuchError as error:
        left_out.append(f"its tables are left out of the manifest: reading its schema {error}")
    except _UNREADABLE:
        is_schema_readable = False  # a damaged copy is better than none
    else:
        try:
            found["alembic_revisions"] = alembic_revisions(connection, seconds=seconds / 4)
            found["revision_pages"] = _revision_pages(connection, seconds=seconds / 4)
        except TooMuchError as error:
            left_out.append(f"its Alembic revisions are left out of the manifest: reading alembic_version {error}")
    header = _pinned_header(connection)
    return header, {
        "journal_mode": connection.pragma("journal_mode"),
        "encoding": connection.pragma("encoding"),
        # SQLite repeats what the header says, which may be any number.
        "free_pages": min(int(connection.pragma("freelist_count")) & _UINT32, int(connection.pragma("page_count"))),
        "schema_version": connection.pragma("schema_version"),
        "user_version": connection.pragma("user_version"),
        "application_id": connection.pragma("application_id"),
        "sqlite_version": header.sqlite_version,
        **found,
        "is_schema_readable": is_schema_readable,
        "left_out": left_out,
    }


def _pinned_header(connection: apsw.Connection) -> Header:
    """Read page 1's header: in WAL mode that of the pinned state may be in the log, and the file has an older one."""
    is_wal = connection.pragma("journal_mode") == "wal"
    page_size, page_count = connection.pragma("page_size"), connection.pragma("page_count")
    if not page_count:
        return Header(is_wal, 0, 0)
    head = _head_in_log(connection) if is_wal else None
    if head is None:
        _, head = connection.read("main", 0, 0, HEADER_BYTES)
    return Header.in_page(head, is_wal=is_wal, page_size=page_size)


def _head_in_log(connection: apsw.Connection) -> bytes | None:
    """Find the header in the newest page 1 of the log that belongs to the pinned state; None if there is none.

    Frames that were appended since, or that a crash left without a commit, differ in one of the compared numbers.
    Source: https://www.sqlite.org/fileformat2.html#walformat.
    """
    names = ("page_count", "freelist_count", "schema_version", "user_version", "application_id")
    pinned = tuple(int(connection.pragma(name)) & _UINT32 for name in names)
    _, log_header = connection.read("main", 1, 0, LOG_HEADER_BYTES)
    salts, frame_bytes = log_header[16:24], _FRAME_HEADER_BYTES + int.from_bytes(log_header[8:12], "big")
    try:
        frames = (os.stat(connection.filename_wal).st_size - LOG_HEADER_BYTES) // frame_bytes
    except FileNotFoundError:
        return None
    for number in range(frames - 1, max(-1, frames - 1 - _MOST_FRAMES), -1):
        offset = LOG_HEADER_BYTES + number * frame_bytes
        _, frame = connection.read("main", 1, offset, _FRAME_HEADER_BYTES)
        if frame[:4] == _FIRST_PAGE and frame[8:16] == salts:
            _, head = connection.read("main", 1, offset + _FRAME_HEADER_BYTES, HEADER_BYTES)
            if struct.unpack(">28xI4xII16xI4xI28x", head) == pinned:
                return head
    return None


def alembic_revisions(connection: apsw.Connection, *, seconds: float) -> list[str] | None:
    """Read the rows of `alembic_version`, sorted; None where there is no such table that can be read.

    Raises `TooMuchError` for what Alembic never creates: a view, a computed column, more than 100 rows, long values.
    """
    try:
        with bounded(connection, seconds=seconds):
            table = "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = 'alembic_version'"
            if (row := next(iter(connection.execute(table)), None)) is None:
                return None
            if not str(row[0]).upper().startswith("CREATE TABLE"):
                raise TooMuchError("was not tried, because it is no table")
            columns = connection.execute("PRAGMA main.table_xinfo(alembic_version)").fetchall()
            if not columns:
                raise TooMuchError("was not possible, because SQLite did not get as far in its schema")
            if any(str(name).lower() == "version_num" and kind for _, name, _, _, _, _, kind in columns):
                raise TooMuchError("was not tried, because its column is computed")
            return sorted(_revisions(connection))
    except _UNREADABLE:
        return None


def _revision_pages(connection: apsw.Connection, *, seconds: float) -> list[int] | None:
    """Find the pages of the table `alembic_version`, none where there is no such table. Raises `TooMuchError`."""
    try:
        with bounded(connection, seconds=seconds):
            rows = connection.execute("SELECT pageno FROM dbstat WHERE name = 'alembic_version' LIMIT ?", [_MOST_PAGES])
            pages = [page for (page,) in rows]
    except _UNREADABLE:
        return None
    # The application may have a table of the name `dbstat`.
    return pages if len(pages) < _MOST_PAGES and all(isinstance(page, int) for page in pages) else None


def _revisions(connection: apsw.Connection) -> Iterator[str]:
    rows = connection.execute("SELECT version_num FROM main.alembic_version NOT INDEXED")
    for number, (value,) in enumerate(rows):
        if number == _MOST_REVISIONS or len(str(value)) > _MOST_REVISION_CHARACTERS:
            raise TooMuchError("was given up, because it holds far more than revisions")
        yield str(value)


def read_schema(connection: apsw.Connection) -> list[tuple[Any, ...]]:
    """Read the rows (type, name, tbl_name, sql) of sqlite_schema. Raises `TooMuchError` for more than 8 MiB."""
    schema, size = [], 0
    for row in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"):
        schema.append(row)
        size += sum(len(str(value)) for value in row)
        if size > _MOST_SCHEMA_CHARACTERS:
            raise TooMuchError(f"was given up, because it is larger than {_MOST_SCHEMA_CHARACTERS >> 20} MiB")
    return schema


@contextmanager
def bounded(connection: apsw.Connection, *, seconds: float) -> Iterator[None]:
    """Interrupt the statements of the block after `seconds`, or at a very long value, with `TooMuchError`.

    SQLite checks between its steps: a single call of a function runs to its end.
    """
    give_up_at = time.monotonic() + seconds
    before = [(limit, connection.limit(limit, _MOST_VALUE_BYTES)) for limit in _LIMITS]
    connection.set_progress_handler(lambda: time.monotonic() > give_up_at, _STEPS_BETWEEN_LOOKS_AT_THE_CLOCK)
    try:
        yield
    except apsw.InterruptError as error:
        raise TooMuchError(f"took longer than {seconds:g} s") from error
    except apsw.TooBigError as error:
        raise TooMuchError(f"was given up, because it has a text of more than {_MOST_VALUE_BYTES >> 20} MiB") from error
    finally:
        connection.set_progress_handler(None)
        for limit, value in before:
            connection.limit(limit, value)


def schema_digest(schema: list[tuple[Any, ...]]) -> str:
    """SHA-256, in hex, over the rows (type, name, tbl_name, sql) of sqlite_schema: sorted, each as a line of JSON."""
    lines = sorted(json.dumps(row) for row in schema)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def distrust(connection: apsw.Connection) -> None:
    """Keep `connection` from executing anything that the schema of its database contains."""
    for switch in _OFF:
        connection.config(switch, 0)
