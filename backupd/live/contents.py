"""What a database holds, so that a person can see what a restore would change."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

from backupd.capture import source
from backupd.capture.checksums import is_sealed
from backupd.capture.image import opened_image

if TYPE_CHECKING:
    from pathlib import Path

_STEPS_BETWEEN_LOOKS_AT_THE_CLOCK = 10_000
_COUNTING_SECONDS = 10.0
_COUNTING_SECONDS_IN_ROLLBACK_MODE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What tells whether open connections, and the running code, fit what comes."""

    page_size: int
    encoding: str
    journal_mode: str
    alembic_revisions: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What SQLite says of a database. `schema` is the SQL of each object by its kind and name, such as `table users`.

    `rows` is by table, without SQLite's own; None where the rows could not be counted (in time).
    """

    page_size: int
    page_count: int
    journal_mode: str
    encoding: str
    rows: dict[str, int | None]
    schema: dict[str, str]
    alembic_revisions: tuple[str, ...] | None

    @property
    def image_bytes(self) -> int:
        """Size of the database."""
        return self.page_size * self.page_count

    @property
    def identity(self) -> Identity:
        """The part that a restore has to fit."""
        return Identity(
            page_size=self.page_size,
            encoding=self.encoding,
            journal_mode=self.journal_mode,
            alembic_revisions=self.alembic_revisions,
        )

    @property
    def is_wal(self) -> bool:
        """Whether it is in WAL mode."""
        return self.journal_mode == "wal"


def contents_of_live(path: Path, *, lock_timeout: float) -> Contents:
    """What is in the live database, which is opened read-only. Writers wait for one table's count at most.

    Raises `SourceUnusableError` when it is not a readable database, and `BusyError`.
    """
    text = os.fspath(path)
    header = source.read_header(text)
    with source.pinned(text, lock_timeout=lock_timeout) as connection:
        if not header.is_wal:
            source.let_go(connection)  # from here on each statement takes the lock for itself
        limit = _COUNTING_SECONDS if header.is_wal else _COUNTING_SECONDS_IN_ROLLBACK_MODE
        return _contents(connection, source.read_facts(connection, header), limit)


def has_page_checksums(path: Path) -> bool:
    """Whether page 1 of this file has the checksum of SQLite's checksum VFS.

    This process must not have the database open: closing the file drops SQLite's locks.
    """
    with path.open("rb") as file:
        head = file.read(source.HEADER_BYTES)
        page_size = source.page_size_of(head)
        return page_size is not None and is_sealed(head + file.read(page_size - len(head)))


def contents_of_image(file: Path) -> Contents:
    """What is in a proven image that nobody else has open. Leaves no files beside it."""
    header = source.read_header(os.fspath(file))
    with opened_image(file) as connection:
        connection.execute("BEGIN")
        connection.pragma("schema_version")
        connection.pragma("writable_schema", True)  # a damaged schema was captured as it was
        return _contents(connection, source.read_facts(connection, header), _COUNTING_SECONDS)


def _contents(connection: apsw.Connection, facts: dict[str, object], counting_seconds: float) -> Contents:
    revisions = facts["alembic_revisions"]
    return Contents(
        page_size=connection.pragma("page_size"),
        page_count=connection.pragma("page_count"),
        journal_mode=str(facts["journal_mode"]),
        encoding=str(facts["encoding"]),
        rows=_rows(connection, counting_seconds),
        schema=_schema(connection),
        alembic_revisions=tuple(revisions) if isinstance(revisions, list) else None,
    )


def _schema(connection: apsw.Connection) -> dict[str, str]:
    try:
        found = connection.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
    except (apsw.Error, UnicodeDecodeError):
        return {}
    return {f"{kind} {name}": str(sql) for kind, name, sql in found if not _is_internal(str(name))}


def _rows(connection: apsw.Connection, counting_seconds: float) -> dict[str, int | None]:
    tables = [key.partition(" ")[2] for key in _schema(connection) if key.startswith("table ")]
    give_up_at = time.monotonic() + counting_seconds
    connection.set_progress_handler(lambda: time.monotonic() > give_up_at, _STEPS_BETWEEN_LOOKS_AT_THE_CLOCK)
    try:
        return {table: _count(connection, table) for table in sorted(tables)}
    finally:
        connection.set_progress_handler(None)


def _count(connection: apsw.Connection, table: str) -> int | None:
    quoted = table.replace('"', '""')
    try:
        rows = connection.execute(f'SELECT count(*) FROM "{quoted}"').fetchall()  # noqa: S608  (a name cannot be bound)
    except apsw.Error:
        return None  # no time, damaged, or a virtual table whose module is the application's
    return int(str(rows[0][0]))


def _is_internal(name: str) -> bool:
    return name.startswith("sqlite_")
