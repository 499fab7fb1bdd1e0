"""The status file, which the daemon, `backupd now` beside it, and every check of the health share.

status.json   everything that is known, replaced in one piece
alive         its time shows when the daemon last could write: a status may stay as it is for a day
healthy       its time shows when the daemon last found nothing wrong: a health check need not read the status then

A process remembers what it has read or written. A daemon whose file is lost, damaged or, for a moment, unreadable
continues with that, and writes it back; otherwise every alarm would seem to be over.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backupd.errors import BackupdError, DamageError, TargetUnwritableError, UnsupportedFormatError
from backupd.health.codec import Encoder, NewerStatusError, UnreadableStatusError, decode
from backupd.health.values import Status
from backupd.logs import log
from backupd.system.files import belong_to_owner, flush_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.state import StateDirectory

_LOCK_TIMEOUT_SECONDS = 30.0
_PRIVATE_MODE = 0o600


class StatusFile:
    """The status of one state directory. Several threads and processes may use it at once."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._file = state.root / "status.json"
        self._alive = state.root / "alive"
        self._healthy = state.root / "healthy"
        self._turn = threading.Lock()
        # The file that was read or written last, and its content. Readers take no turns: at worst one reads again.
        self._known: tuple[tuple[int, int, int], Status] | None = None
        self._encoder = Encoder()
        self._kept: Status | None = None  # what this process knew, for when the file has less
        self._warned_of: str | None = None

    def find(self) -> Status | None:
        """Return the content of the file; None when nothing was ever written. Creates nothing.

        Raises `DamageError` when it is not a status, `UnsupportedFormatError` when a newer backupd wrote it, and
        `TargetUnwritableError` when it cannot be read.
        """
        with self._reporting_errors():
            try:
                with self._file.open("rb") as opened:
                    identity = _identity(os.fstat(opened.fileno()))
                    known = self._known
                    if known is not None and known[0] == identity:
                        return known[1]
                    content = opened.read()
            except FileNotFoundError:
                return None
        try:
            status = decode(content)
        except NewerStatusError as error:
            raise UnsupportedFormatError(
                f"the status file {self._file} was written by a newer backupd: {error}",
                hint="install the newer version, or remove the file: it is written again",
            ) from error
        except UnreadableStatusError as error:
            raise DamageError(
                f"the status file {self._file} cannot be read: {error}",
                hint="a running daemon writes it back, or the next run starts a new one; nothing but this file is lost",
            ) from error
        self._known = identity, status
        return status

    def read(self) -> Status:
        """Return the status; of a file that cannot be read, what this process knew, or an empty one, with a warning."""
        try:
            return self._completed(self.find())
        except BackupdError as error:
            self._warn(error)
            return self._kept or Status()

    def update(self, change: Callable[[Status], Status]) -> Status:
        """Replace the status by what `change` makes of it, and return that. Other threads and processes wait.

        Atomic and durable: after a kill, a loss of power or an error, the file has the old content or the new. A file
        that is not a status is kept beside it, as `status.json.unreadable`. Raises `TargetUnwritableError` (also for a
        full disk), and `BusyError` when another process holds the file for more than half a minute.
        """
        with self._turn, self._state.lock("the status file", timeout=_LOCK_TIMEOUT_SECONDS):
            before, is_written = self._before()
            after = change(before)
            if after is before and is_written:
                return before
            after = replace(after, written_at=datetime.now(UTC))
            self._write(after)
            return after

    def update_or_log(self, change: Callable[[Status], Status]) -> Status:
        """Replace the status as `update` does, and return it; what cannot be written is logged, and left as it is."""
        try:
            return self.update(change)
        except BackupdError as error:
            log.error("the status cannot be written", error=error.values())
            return self.read()

    def touch(self) -> None:
        """Leave a sign that the daemon is alive and could write. A status that was lost is written back first.

        Raises `TargetUnwritableError`, also for a full disk, and `BusyError` as `update` does.
        """
        self.update(lambda status: status)
        with self._reporting_errors():
            # A file of its own each time: on a full disk, what is there already can still be written over.
            _replace(self._alive, f"{os.getpid()}\n".encode(), is_durable=False)

    def show_health(self, *, is_healthy: bool) -> None:
        """Leave a sign that the daemon found nothing wrong just now, or take it away. It may be missing at any time.

        Raises `TargetUnwritableError`.
        """
        with self._reporting_errors():
            if is_healthy:
                _replace(self._healthy, f"{os.getpid()}\n".encode(), is_durable=False)
            else:
                self._healthy.unlink(missing_ok=True)

    def alive_at(self) -> datetime | None:
        """Return when the daemon last called `touch`, by this machine's clock; None when it never did.

        Raises `TargetUnwritableError` when that cannot be read.
        """
        with self._reporting_errors():
            try:
                return datetime.fromtimestamp(self._alive.stat().st_mtime, UTC)
            except FileNotFoundError:
                return None

    def _before(self) -> tuple[Status, bool]:
        """Return the status, and whether the file has it already.

        A file that is not a status is moved aside; one that could not even be read is not.
        """
        try:
            found = self.find()
        except (DamageError, UnsupportedFormatError) as error:
            self._warn(error)
            with self._reporting_errors():
                self._file.replace(self._file.with_name("status.json.unreadable"))
            return self._kept or Status(), False
        before = self._completed(found)
        return before, before is found or (found is None and self._kept is None)

    def _completed(self, found: Status | None) -> Status:
        """Return the content of the file, with what it has lost since this process read or wrote it."""
        kept = self._kept
        if found is None and kept is not None:
            self._warn(_lost(f"the status file {self._file} is gone"))
            return kept
        if found is not None and found.daemon is None and kept is not None and kept.daemon is not None:
            # A daemon is never removed from the status: a process that had found no file wrote this.
            self._warn(_lost(f"the status file {self._file} was lost, and another process began a new one"))
            return replace(kept, databases={**found.databases, **kept.databases})
        self._kept, self._warned_of = found, None
        return found or Status()

    def _warn(self, error: BackupdError) -> None:
        """Warn once, until the file can be read again: a daemon reads it all the time."""
        if self._warned_of != error.message:
            self._warned_of = error.message
            log.warning(error.message, hint=error.hint)

    def _write(self, status: Status) -> None:
        with self._reporting_errors():
            self._known = _replace(self._file, self._encoder.encode(status).encode(), is_durable=True), status
        self._kept = status

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            whom = f" for user {os.geteuid()}" if isinstance(error, PermissionError) else ""
            raise TargetUnwritableError(
                f"the status file {self._file} cannot be used: {error.strerror}{whom}",
                hint=f"see that {self._file.parent} belongs to the user that backupd runs as, and has space left",
            ) from error


def _lost(message: str) -> DamageError:
    return DamageError(message, hint="its content is written back; find out what removes files there")


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _replace(file: Path, content: bytes, *, is_durable: bool) -> tuple[int, int, int]:
    """Replace the content of `file` in one step, and return its identity. Of two writers at once, one wins."""
    temporary = file.with_name(f".{file.name}.new")  # always the same name, so that kills leave one file at most
    descriptor = _new(temporary)
    try:
        try:
            belong_to_owner(descriptor, file.parent)
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if is_durable:
                os.fsync(descriptor)
            identity = _identity(os.fstat(descriptor))
        finally:
            os.close(descriptor)
        temporary.replace(file)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        flush_directory(file.parent)
    return identity


def _new(file: Path) -> int:
    """Open a file that this process has created, in place of any other: the directory may be another user's."""
    while True:
        try:
            return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE_MODE)
        except FileExistsError:
            file.unlink(missing_ok=True)
