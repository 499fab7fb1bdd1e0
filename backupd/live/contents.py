"""The contents of a database, so that a person can see what a restore would change, and the processes that use it.

A separate process reads a live database, which can be ended whatever it hangs in: `python -m backupd.live.contents PATH
LOCK_TIMEOUT` prints a `Contents`, or an error, as one JSON object.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import apsw

from backupd.capture import source
from backupd.capture.database_files import LOCK_BYTES, conflicting_lock, opening_seconds, read_header_to_write
from backupd.capture.facts import TooMuchError, bounded, read_facts, read_schema
from backupd.capture.header import HEADER_BYTES, page_size_of
from backupd.capture.limits import FACTS_SECONDS, LockTimer, run_reader
from backupd.capture.sink import has_page_checksum
from backupd.errors import BackupdError
from backupd.live.soundness import opened_image
from backupd.system.processes import command_of, error_as_json, error_from_json

if TYPE_CHECKING:
    from pathlib import Path

_COUNTING_SECONDS = 10.0
_COUNTING_SECONDS_IN_ROLLBACK_MODE = 1.0
_SCHEMA_SECONDS = 0.5
_MOST_LOCK_SECONDS = 3.0
_LOOKING_SECONDS = 30.0
_INDEX_LOCKS = (120, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The part of a database's contents that open connections and the running code depend on."""

    page_size: int
    encoding: str
    journal_mode: str
    alembic_revisions: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a database. `schema` has the SQL of each object by kind and name, such as `table users`.

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
        """The part that a restore must match."""
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
    """Read the contents of the live database, read-only. Writers wait for the count of one table at most.

    `looking_seconds` is how long that may take apart from waiting for a lock. Raises `SourceUnusableError` when it is
    not a readable database, and `BusyError`, also when it takes longer.
    """
    text = os.fspath(path)
    command = command_of("backupd.live.contents", text, str(lock_timeout))
    deadline = lock_timeout + opening_seconds(text) + looking_seconds
    values = run_reader(text, command, max_lock=_MOST_LOCK_SECONDS, deadline=deadline)
    if "error" in values:
        raise error_from_json(values)
    revisions = values.pop("alembic_revisions")
    return Contents(**values, alembic_revisions=None if revisions is None else tuple(revisions))


def _live_contents(text: str, lock_timeout: float) -> Contents:
    header = read_header_to_write(text)
    if header.is_wal:
        with source.pinned(text, lock_timeout=lock_timeout) as connection:
            pinned, facts = read_facts(connection, seconds=FACTS_SECONDS)
            return replace(_contents(connection, facts, _COUNTING_SECONDS), is_read_only=pinned.is_read_only)
    timer = LockTimer(_MOST_LOCK_SECONDS)
    with source.pinned(text, lock_timeout=lock_timeout, timer=timer) as connection:
        source.unpin(connection)  # from here on each statement takes the lock by itself
        timer.start()
        pinned, facts = read_facts(connection, seconds=timer.facts_seconds)
        timer.start()
        contents = _contents(connection, facts, _COUNTING_SECONDS_IN_ROLLBACK_MODE)
        return replace(contents, is_read_only=pinned.is_read_only)


def has_page_checksums(path: Path) -> bool:
    """Whether page 1 of this file has the checksum of SQLite's checksum VFS.

    Must not be called while this process has a connection to it: closing the file drops SQLite's POSIX locks on it.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        page_size = page_size_of(head)
        return page_size is not None and has_page_checksum(head + file.read(page_size - len(head)))


def contents_of_image(file: Path) -> Contents:
    """Read the contents of a proven image that no other process has open. Leaves no files beside it."""
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


def holders(database: Path) -> set[int]:
    """Return the ids of processes that hold SQLite's locks on `database`; 0 stands for one in another container.

    A connection in WAL mode always holds one, in rollback mode only while it works. Must not be called while this
    process has a connection to it: closing the file drops SQLite's POSIX locks on it.
    Source: https://www.sqlite.org/src/file/src/os_unix.c, "Posix Advisory Locking": the bytes from 2^30 of the
    database, and bytes 120 to 128 of its `-shm`.
    """
    index = database.with_name(f"{database.name}-shm")
    return _holders(database, *LOCK_BYTES) | _holders(index, *_INDEX_LOCKS)


def _holders(file: Path, start: int, length: int) -> set[int]:
    try:
        # Another user may have put a link to a device there, or a named pipe.
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return set()
    try:
        found: set[int] = set()
        end = start + length
        while start < end:
            lock = conflicting_lock(descriptor, fcntl.F_WRLCK, start, end - start)
            if lock is None:
                break
            found.add(lock.process)
            start = lock.start + lock.length if lock.length else end
        return found
    finally:
        os.close(descriptor)


def main() -> None:
    """Print the contents of the database in the arguments."""
    source.prepare_process()
    path, lock_timeout = sys.argv[1:]
    try:
        values: dict[str, object] = asdict(_live_contents(path, float(lock_timeout)))
    except BackupdError as error:
        values = error_as_json(error)
    sys.stdout.write(json.dumps(values))


if __name__ == "__main__":
    main()
