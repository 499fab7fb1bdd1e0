"""What a database holds, so that a person can see what a restore would change.

A live database is looked at by a process of its own, which can be ended whatever it hangs in: `python -m
backupd.live.contents PATH LOCK_TIMEOUT` prints a `Contents`, or an error, as one JSON object.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import apsw

from backupd.capture import side_files, source
from backupd.capture.checksums import is_sealed
from backupd.capture.facts import FACTS_SECONDS, TooMuchError, bounded, read_facts, read_schema
from backupd.capture.files import page_size_of, read_header_to_write
from backupd.capture.foreign import HEADER_BYTES
from backupd.capture.image import opened_image
from backupd.capture.limits import LockTimer, let_timers_end_this_process, looked_at
from backupd.children import command_of, error_as_json, error_from_json
from backupd.errors import BackupdError

if TYPE_CHECKING:
    from pathlib import Path

_COUNTING_SECONDS = 10.0
_COUNTING_SECONDS_IN_ROLLBACK_MODE = 1.0
_SCHEMA_SECONDS = 0.5
_MOST_LOCK_SECONDS = 3.0
_LOOKING_SECONDS = 30.0


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
    is_read_only: bool = False
    """Whether SQLite refuses to write to it, because its header says so."""

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


def contents_of_live(path: Path, *, lock_timeout: float, looking_seconds: float = _LOOKING_SECONDS) -> Contents:
    """What is in the live database, which is opened read-only. Writers wait for one table's count at most.

    `looking_seconds` is how long that may take beside waiting for a lock. Raises `SourceUnusableError` when it is not a
    readable database, and `BusyError`, also when it takes longer.
    """
    text = os.fspath(path)
    command = command_of("backupd.live.contents", text, str(lock_timeout))
    deadline = lock_timeout + source.opening_seconds(text) + looking_seconds
    values = looked_at(text, command, max_lock=_MOST_LOCK_SECONDS, deadline=deadline)
    if "error" in values:
        raise error_from_json(values)
    revisions = values.pop("alembic_revisions")
    return Contents(**values, alembic_revisions=None if revisions is None else tuple(revisions))


def _look(text: str, lock_timeout: float) -> Contents:
    header = read_header_to_write(text)
    if header.is_wal:
        with source.pinned(text, lock_timeout=lock_timeout) as connection:
            pinned, facts = read_facts(connection, seconds=FACTS_SECONDS)
            return replace(_contents(connection, facts, _COUNTING_SECONDS), is_read_only=pinned.is_read_only)
    timer = LockTimer(_MOST_LOCK_SECONDS)
    with source.pinned(text, lock_timeout=lock_timeout, timer=timer) as connection:
        source.let_go(connection)  # from here on each statement takes the lock for itself
        timer.start()
        pinned, facts = read_facts(connection, seconds=timer.facts_seconds)
        timer.start()
        contents = _contents(connection, facts, _COUNTING_SECONDS_IN_ROLLBACK_MODE)
        return replace(contents, is_read_only=pinned.is_read_only)


def has_page_checksums(path: Path) -> bool:
    """Whether page 1 of this file has the checksum of SQLite's checksum VFS.

    This process must not have the database open: closing the file drops SQLite's locks.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        page_size = page_size_of(head)
        return page_size is not None and is_sealed(head + file.read(page_size - len(head)))


def contents_of_image(file: Path) -> Contents:
    """What is in a proven image that nobody else has open. Leaves no files beside it."""
    with opened_image(file) as connection:
        connection.execute("BEGIN")
        connection.pragma("schema_version")
        connection.pragma("writable_schema", True)  # a damaged schema was captured as it was
        return _contents(connection, read_facts(connection, seconds=FACTS_SECONDS)[1], _COUNTING_SECONDS)


def _contents(connection: apsw.Connection, facts: dict[str, object], counting_seconds: float) -> Contents:
    revisions = facts["alembic_revisions"]
    schema = _schema(connection)
    return Contents(
        page_size=connection.pragma("page_size"),
        page_count=connection.pragma("page_count"),
        journal_mode=str(facts["journal_mode"]),
        encoding=str(facts["encoding"]),
        rows=_rows(connection, schema, counting_seconds),
        schema=schema,
        alembic_revisions=tuple(revisions) if isinstance(revisions, list) else None,
    )


def _schema(connection: apsw.Connection) -> dict[str, str]:
    try:
        with bounded(connection, seconds=_SCHEMA_SECONDS):
            found = read_schema(connection)
    except (TooMuchError, apsw.Error, UnicodeDecodeError):
        return {}
    return {f"{kind} {name}": str(sql) for kind, name, _, sql in found if not _is_internal(str(name))}


def _rows(connection: apsw.Connection, schema: dict[str, str], counting_seconds: float) -> dict[str, int | None]:
    give_up_at = time.monotonic() + counting_seconds
    tables = [key.partition(" ")[2] for key in schema if key.startswith("table ")]
    return {table: _count(connection, table, give_up_at - time.monotonic()) for table in sorted(tables)}


def _count(connection: apsw.Connection, table: str, seconds: float) -> int | None:
    if seconds < 0:
        return None
    quoted = table.replace('"', '""')
    try:
        with bounded(connection, seconds=seconds):
            rows = connection.execute(f'SELECT count(*) FROM "{quoted}"').fetchall()  # noqa: S608  (a name cannot be bound)
    except (TooMuchError, apsw.Error):
        return None  # no time, damaged, or a virtual table whose module is the application's
    return int(str(rows[0][0]))


def _is_internal(name: str) -> bool:
    return name.startswith("sqlite_")


def main() -> None:
    """Print what is in the database in the arguments."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    let_timers_end_this_process()
    side_files.keep_sqlite_from_deleting()
    path, lock_timeout = sys.argv[1:]
    try:
        values: dict[str, object] = asdict(_look(path, float(lock_timeout)))
    except BackupdError as error:
        values = error_as_json(error)
    sys.stdout.write(json.dumps(values))


if __name__ == "__main__":
    main()
