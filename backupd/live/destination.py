"""The live database as a destination: its whole content is replaced in one transaction, beside open connections."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

import apsw

from backupd.capture import side_files, source
from backupd.capture.database_files import read_header_to_write, warm_file_cache
from backupd.capture.facts import TooMuchError, alembic_revisions, distrust
from backupd.errors import BackupdError, BusyError, TargetUnwritableError
from backupd.live.contents import Identity
from backupd.live.soundness import opened_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

_LOCK_RETRY_SECONDS = 0.001
_PATIENCE_SECONDS = 1.0
_BREATH_SECONDS = 0.2
"""Longer than SQLite's own longest sleep between two tries, 100 ms, so that every waiting connection gets in."""

_PAGE_CACHE_KIB = 16 << 10
"""In rollback mode SQLite flushes the journal twice each time that this cache is full. With its default of 2 MiB, the
pause is twice as long on a disk that takes 5 ms for a flush. 32 MiB were measured to be hardly faster than this.
"""

_REVISIONS_SECONDS = 0.5
_CHANGE_SECONDS = 60.0
"""No longer do writers wait for rows that are brought back: a trigger may never end."""

_STEPS_BETWEEN_LOOKS = 10_000
_BYTES_PER_STEP = 2 << 20
_JOURNAL_MODE_OFFSET = 18
_ROLLBACK, _WAL = b"\x01\x01", b"\x02\x02"


class _Pause:
    """The longest time that other connections were kept waiting.

    A lock that is released and taken again within `_BREATH_SECONDS` counts as held: those who wait may sleep meanwhile.
    """

    def __init__(self) -> None:
        self.longest_seconds = 0.0
        self._since = 0.0
        self._ended_at: float | None = None
        self._is_on = False

    def begin(self) -> None:
        """Start the measurement: other connections may be kept waiting from now on."""
        now = time.monotonic()
        if self._ended_at is None or now - self._ended_at >= _BREATH_SECONDS:
            self._since = now
        self._is_on = True

    def end(self) -> None:
        """End the measurement: other connections get in from now on. Does nothing when they did already."""
        if self._is_on:
            self._is_on = False
            self._ended_at = time.monotonic()
            self.longest_seconds = max(self.longest_seconds, self._ended_at - self._since)


class LiveDatabase:
    """A connection that replaces the content of the database at `path`, as a context manager.

    Never checkpoints while others use the database, which is left to the application. Waits at most `lock_timeout`
    seconds for each lock. Raises `BusyError`, `TargetUnwritableError`, `SourceUnusableError`.
    """

    def __init__(self, path: Path, *, lock_timeout: float) -> None:
        """Open the database, which rolls back a hot journal, and creates a missing log."""
        self._path = path
        self._lock_timeout = lock_timeout
        self._patience = lock_timeout
        self._give_up_at = 0.0
        self._pause = _Pause()
        self._using = threading.RLock()
        """SQLite's wrapper refuses a connection that two threads use at once, and a timer has to let writers go."""

        text = os.fspath(path)
        self._is_wal = read_header_to_write(text).is_wal
        source.prepare(text)
        side_files.reject_foreign_files(text)
        with self._translating_errors():
            self._connection = _open(path)
            try:
                self._connection.set_busy_handler(self._wait)
                self._connection.wal_autocheckpoint(0)
                self.version()  # the first access to the file
                source.read_damaged_schema(self._connection)
                if not self._is_wal:
                    self._connection.pragma("cache_size", -_PAGE_CACHE_KIB)
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def pause_seconds(self) -> float:
        """The longest that other connections were kept waiting: writers, and in rollback mode readers too.

        In rollback mode readers wait for the last part of it only: not before `replace_content`.
        """
        return self._pause.longest_seconds

    def version(self) -> int:
        """A number that changes with every commit of another connection."""
        with self._using, self._translating_errors():
            self._connection.pragma("data_version")  # looks at the file
            return self._connection.data_version("main")

    def identity(self) -> Identity:
        """Read the part of the contents that a restore must match."""
        with self._using, self._translating_errors():
            connection = self._connection
            try:
                revisions = alembic_revisions(connection, seconds=_REVISIONS_SECONDS)
            except TooMuchError:
                revisions = None
            return Identity(
                page_size=connection.pragma("page_size"),
                encoding=connection.pragma("encoding"),
                journal_mode=connection.pragma("journal_mode"),
                alembic_revisions=None if revisions is None else tuple(revisions),
            )

    @contextmanager
    def writers_waiting(self, *, most_seconds: float) -> Iterator[None]:
        """Keep all writers waiting until the block ends, or `most_seconds` have passed; readers continue."""
        with self._translating_errors():
            self._connection.execute("BEGIN IMMEDIATE")
        self._pause.begin()
        timer = threading.Timer(most_seconds, self._let_writers_go)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            self._let_writers_go()

    def _let_writers_go(self) -> None:
        with self._using:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
                self._pause.end()

    @contextmanager
    def opened(self, image: Path) -> Iterator[apsw.Connection]:
        """Open `image` for `replace_content`; needs no lock yet.

        Changes `image` to the journal mode of the live database, which would otherwise take over the image's.
        """
        _set_journal_mode(image, is_wal=self._is_wal)
        warm_file_cache(os.fspath(image))
        with self._translating_errors(), opened_image(image) as connection:
            connection.pragma("page_size")  # reads the header
            yield connection

    def replace_content(
        self, image: apsw.Connection, expected_version: int, stepped: Callable[[int, int], None]
    ) -> bool:
        """Replace the whole content by that of the `opened` image, in one transaction; whether that was done.

        Does nothing when another connection has committed since `version` was `expected_version`. `stepped` gets the
        number of pages done, and of all. An exception, also one of `stepped`, leaves the old content.
        """
        with self._translating_errors():
            pages_per_step = _BYTES_PER_STEP // image.pragma("page_size")
            with self._locked_backup(image) as backup:
                # An empty image is done with the lock.
                if not backup.done and self._connection.data_version("main") != expected_version:
                    return False
                while not backup.done:
                    backup.step(pages_per_step)
                    if backup.done:
                        self._pause.end()
                    stepped(backup.page_count - backup.remaining, backup.page_count)
        return True

    def change(self, change: Callable[[apsw.Connection], None], expected_version: int) -> bool:
        """Call `change` with the connection, in one transaction that writes; whether that was done.

        Does nothing when another connection has committed since `version` was `expected_version`. An exception of
        `change` leaves everything as it was. Foreign keys are not enforced, and triggers run as for the application.
        """
        with self._translating_errors():
            self._connection.pragma("foreign_keys", False)
            for switch in (apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, apsw.SQLITE_DBCONFIG_ENABLE_VIEW):
                self._connection.config(switch, 1)
            give_up_at = time.monotonic() + _CHANGE_SECONDS
            self._connection.set_progress_handler(lambda: time.monotonic() > give_up_at, _STEPS_BETWEEN_LOOKS)
            self._connection.execute("BEGIN IMMEDIATE")
            self._pause.begin()
            try:
                if self._connection.data_version("main") != expected_version:
                    return False
                change(self._connection)
                self._connection.execute("COMMIT")
            finally:
                self._connection.set_progress_handler(None)
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._pause.end()
        return True

    @contextmanager
    def _locked_backup(self, image: apsw.Connection) -> Iterator[apsw.Backup]:
        """Begin a backup that has the lock, and has copied nothing yet.

        In rollback mode the backup API takes the EXCLUSIVE lock at once, and keeps new readers out while it waits for
        the last one to end. So each try is short, or one reader that does not end would make all others fail.
        """
        give_up_at = time.monotonic() + self._lock_timeout
        while (backup := self._try_to_lock(image)) is None:
            if time.monotonic() > give_up_at:
                raise _stayed_locked(self._path)
            time.sleep(_BREATH_SECONDS)
        try:
            with backup:
                yield backup
        finally:
            self._pause.end()

    def _try_to_lock(self, image: apsw.Connection) -> apsw.Backup | None:
        backup = self._connection.backup("main", image, "main")
        self._patience = min(_PATIENCE_SECONDS, self._lock_timeout)
        self._pause.begin()
        try:
            backup.step(0)
        except apsw.BusyError:
            backup.close(True)  # by force, or it raises the same once more
            self._pause.end()
            return None
        finally:
            self._patience = self._lock_timeout
        return backup

    def _wait(self, tries: int) -> bool:
        if tries == 0:
            self._give_up_at = time.monotonic() + self._patience
        # SQLite's own busy_timeout sleeps up to 100 ms between tries and so misses the gaps of a busy application.
        time.sleep(_LOCK_RETRY_SECONDS)
        return time.monotonic() < self._give_up_at

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        try:
            yield
        except apsw.Error as error:
            raise side_files.refusal(os.fspath(self._path), error) or _translated(self._path, error) from error


def settle(path: Path, *, lock_timeout: float) -> None:
    """Let SQLite roll back a hot journal of the database, or move its log into it, so that one file has everything.

    Raises `BusyError` when another process uses it, and `SourceUnusableError` when SQLite does not read it.
    """
    with LiveDatabase(path, lock_timeout=lock_timeout):
        pass  # opening rolls back; closing the last connection moves the log into the file


def _open(path: Path) -> apsw.Connection:
    uri = f"file:{quote(os.fsencode(path))}"
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI | apsw.SQLITE_OPEN_NOFOLLOW
    connection = apsw.Connection(uri, flags=flags)
    distrust(connection)
    return connection


def _set_journal_mode(image: Path, *, is_wal: bool) -> None:
    """Set the journal mode in the header of a restored image.

    Source: https://www.sqlite.org/fileformat2.html#the_database_header, offsets 18 and 19.
    """
    with image.open("r+b") as file:
        if not file.read(1):
            return  # an empty database has no header
        file.seek(_JOURNAL_MODE_OFFSET)
        file.write(_WAL if is_wal else _ROLLBACK)


def _translated(path: Path, error: apsw.Error) -> BackupdError:
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return _stayed_locked(path)
    if isinstance(error, apsw.InterruptError):
        return BusyError(
            f"{path} was not changed: writing took longer than {_CHANGE_SECONDS:g} s, in which others wait",
            hint="write fewer rows at a time, and look whether a trigger of the database never ends",
        )
    if isinstance(error, apsw.FullError) or source.is_disk_full(os.fspath(path)):
        return TargetUnwritableError(
            f"the disk of {path} is full, so nothing was restored: the old content is in place",
            hint="free some space there and restore again; the application continues",
        )
    if isinstance(error, apsw.ReadOnlyError | apsw.CantOpenError | apsw.IOError):
        return TargetUnwritableError(
            f"{path} cannot be written: {_detail(error)}, so nothing was restored",
            hint="check that its volume is not mounted read-only, and that this user may write the file and directory",
        )
    return source.translated(os.fspath(path), error)


def _stayed_locked(path: Path) -> BusyError:
    return BusyError(
        f"{path} stayed locked by the application, so nothing was restored",
        hint="try again, or stop the application and restore again",
    )


def _detail(error: apsw.Error) -> str:
    # What the backup API itself refuses, such as another page size, leaves no message.
    return f"SQLite refused it ({type(error).__name__})" if str(error) == "not an error" else str(error)
