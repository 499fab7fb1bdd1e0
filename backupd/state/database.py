"""The state database: one SQLite file in the state directory for all that one run leaves for later ones.

It is a cache of the stores, and local memory. A file that is damaged, or that another version wrote, is set aside as
`.state.db.unreadable`, and a new one is made.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from backupd.errors import AnotherRunError, TargetUnwritableError, limit_reached
from backupd.logs import log
from backupd.system.files import belong_to_owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.errors import BackupdError, LimitReachedError

_T = TypeVar("_T")
_NAME = ".state.db"
"""Hidden, so that no pattern that finds the databases of an application finds it, wherever the state directory is."""

_BUSY_TIMEOUT_SECONDS = 10.0
_BUSY_AGAIN_SECONDS = 0.1
"""How long to wait for a process for which this one has already waited that long."""

_READ, _WRITE = "BEGIN", "BEGIN IMMEDIATE"
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""The last one is also that of a table or a column that is not there, because its name was damaged."""

_UNUSABLE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
}
_VERSION = 4
_SCHEMA = """
CREATE TABLE notes (kind TEXT, key TEXT, record TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE archives (
    id INTEGER PRIMARY KEY, repository TEXT NOT NULL, database TEXT NOT NULL, UNIQUE (repository, database)
);
CREATE TABLE manifests (
    number INTEGER PRIMARY KEY, archive INTEGER NOT NULL, ids BLOB NOT NULL, content BLOB NOT NULL,
    checksum INTEGER NOT NULL
);
CREATE INDEX manifests_of_archive ON manifests (archive);
CREATE TABLE packs (
    archive INTEGER, number INTEGER, content BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (archive, number)
) WITHOUT ROWID;
CREATE INDEX packs_by_checksum ON packs (archive, checksum);
CREATE TABLE facts (
    archive INTEGER, number INTEGER, content BLOB NOT NULL, checksum INTEGER NOT NULL, PRIMARY KEY (archive, number)
) WITHOUT ROWID;
CREATE INDEX facts_by_checksum ON facts (archive, checksum);
CREATE TABLE runs (
    place TEXT, started_at INTEGER, outcome TEXT NOT NULL, record TEXT NOT NULL, PRIMARY KEY (place, started_at)
) WITHOUT ROWID;
CREATE TABLE private_parts (archive INTEGER, id TEXT, content BLOB NOT NULL, PRIMARY KEY (archive, id));
CREATE TABLE records (
    archive INTEGER, key TEXT, size INTEGER NOT NULL, modified_at INTEGER NOT NULL, content BLOB NOT NULL,
    PRIMARY KEY (archive, key)
);
"""


class StateDatabase:
    """The file, opened when it is first used. Several threads, and several processes, may use it at once.

    Nothing closes it: that would cost a command the flushes of a checkpoint.
    """

    def __init__(self, directory: Path, make: Callable[[], object]) -> None:
        """`make` makes the state directory if it is missing; what it raises passes through here."""
        self._file = directory / _NAME
        self._make_directory = make
        self._turn = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._is_busy = False

    def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Return what `work` reads, all of it in one state. Raises as `write` does."""
        return self._run(_READ, work)

    def write(self, work: Callable[[sqlite3.Connection], _T], *, is_durable: bool = False) -> _T:
        """Return what `work` returns after its changes: all of them are made, or none. It may be called twice.

        With `is_durable`, they survive a loss of power. Raises `TargetUnwritableError` when the file cannot be read or
        written (also for a full disk), `AnotherRunError` when another process holds it for ten seconds, and
        `LimitReachedError` when no more files can be opened.
        """
        return self._run(_WRITE, work, is_durable=is_durable)

    def _run(self, begin: str, work: Callable[[sqlite3.Connection], _T], *, is_durable: bool = False) -> _T:
        with self._turn:
            try:
                try:
                    return self._attempt(begin, work, is_durable=is_durable)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._set_aside(str(error))
                    return self._attempt(begin, work, is_durable=is_durable)
            except (sqlite3.Error, OSError) as error:
                if self._connection is not None and self._connection.in_transaction:
                    self._close()  # it could not even be taken back
                self._is_busy = _code(error) in _BUSY
                if (reported := _limit(error) or _reported(self._file, error)) is None:
                    raise  # a bug, and no fault of the file
                raise reported from error

    def _attempt(self, begin: str, work: Callable[[sqlite3.Connection], _T], *, is_durable: bool) -> _T:
        connection = self._opened()
        connection.execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
        patience = _BUSY_AGAIN_SECONDS if self._is_busy else _BUSY_TIMEOUT_SECONDS
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * patience)}")
        connection.execute(begin)
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            # After some errors, such as that of a full disk, SQLite has taken the transaction back already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if begin != _READ:  # a reader need not wait for what a writer waits for
            self._is_busy = False
        return result

    def _opened(self) -> sqlite3.Connection:
        """The connection to the file that has the name now: it may have been removed, or set aside by another run."""
        file = self._file
        if self._connection is not None and _identity(file) == self._identity:
            return self._connection
        self._close()
        self._make_directory()
        if not os.path.lexists(file):
            _create(file)
        connection = sqlite3.connect(file, _BUSY_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._identity = _identity(file)
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _set_aside(self, reason: str) -> None:
        file = self._file
        self._close()
        if _identity(file) != self._identity:
            return  # another process has done it
        log.warning("the state was damaged, and starts empty", file=str(file), reason=reason)
        file.with_name(f"{_NAME}-shm").unlink(missing_ok=True)
        for suffix in ("-wal", "-journal", ""):  # the file itself last: what is beside it belongs to it
            with suppress(FileNotFoundError):
                file.with_name(f"{_NAME}{suffix}").replace(file.with_name(f"{_NAME}.unreadable{suffix}"))


def _create(file: Path) -> None:
    """Make an empty file, private and of the directory's owner, unless another process does so.

    What is left beside a file that was removed would be taken for the log of the new one.
    """
    directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # some network file systems lock no directory
            fcntl.flock(directory, fcntl.LOCK_EX)
        if not os.path.lexists(file):
            for each in _beside(file):
                each.unlink(missing_ok=True)
            with suppress(FileExistsError):
                new = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                try:
                    belong_to_owner(new, file.parent)
                finally:
                    os.close(new)
    finally:
        os.close(directory)


def _beside(file: Path) -> list[Path]:
    """Return the files that SQLite may make beside the state database."""
    return [file.with_name(f"{_NAME}{suffix}") for suffix in ("-wal", "-shm", "-journal")]


def _reported(file: Path, error: sqlite3.Error | OSError) -> BackupdError | None:
    """Return the error to raise for `error`; None for one that does not come from the file or its place."""
    code = _code(error)
    if code in _BUSY:
        return AnotherRunError(
            f"another process holds the state database {file}",
            hint="wait until it has finished; it shares the state directory",
        )
    if isinstance(error, sqlite3.Error) and code not in _UNUSABLE:
        return None
    for each in (file, *_beside(file)):
        if os.path.isdir(each):  # noqa: PTH112  (Path.is_dir raises where it may not look)
            return TargetUnwritableError(
                f"the state database {file} cannot be used: {each} is a directory",
                hint="move it away: what was in the state database is read again from the stores",
            )
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return TargetUnwritableError(
        f"the state database {file} cannot be used: {reason}",
        hint=f"set state_dir (or BACKUPD_STATE_DIR) to a directory that uid {os.geteuid()} may write, "
        "on a disk of this machine that has space left",
    )


def _code(error: sqlite3.Error | OSError) -> int | None:
    """Return SQLite's primary result code, if `error` has one."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _prepare(connection: sqlite3.Connection) -> None:
    """Give a new file its tables. Raises a `DatabaseError` that is damage for a file of another version."""
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        # A file system without shared memory, such as a network one, keeps the rollback journal.
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            version = _VERSION
            connection.execute(f"PRAGMA user_version = {_VERSION}")
        connection.execute("COMMIT")
    if version != _VERSION:
        raise _OtherVersionError(f"it is of version {version}, and this backupd writes version {_VERSION}")


class _OtherVersionError(sqlite3.DatabaseError):
    """Another version of backupd wrote the file."""


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # Text that is not UTF-8 is an operational error without a code.
    is_wrong_text = isinstance(error, sqlite3.OperationalError) and _code(error) is None
    return isinstance(error, _OtherVersionError) or is_wrong_text or _code(error) in _DAMAGED


def _limit(error: sqlite3.Error | OSError) -> LimitReachedError | None:
    """Return the limit of this process that caused `error`, of which SQLite only says that it could not open a file."""
    if _code(error) == sqlite3.SQLITE_CANTOPEN:
        try:
            os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as cause:
            return limit_reached(cause)
    return limit_reached(error)


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
