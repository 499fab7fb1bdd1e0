"""The status file: one for the daemon, for `backupd now` beside it, and for everybody who asks how things are.

status.json   everything that is remembered, replaced in one piece
alive         its time says when the daemon last could write: a status may stay as it is for a day

What a process has read or written once it does not forget with the file: a daemon whose file is lost, damaged or, for
a moment, not readable goes on with what it knew, and writes it back. Else every alarm would be over.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, DamageError, TargetUnwritableError, UnsupportedFormatError
from backupd.files import flush_directory
from backupd.health.codec import Encoder, NewerStatusError, UnreadableStatusError, decode
from backupd.health.values import Status
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.state import StateDirectory

_LOCK_TIMEOUT_SECONDS = 30.0
_PRIVATE_MODE = 0o600


class StatusFile:
    """The status of one state directory. Its methods may be called from several threads and processes at once."""

    def __init__(self, state: StateDirectory) -> None:
        self._state = state
        self._file = state.root / "status.json"
        self._alive = state.root / "alive"
        self._turn = threading.Lock()
        # The file that was read or written last, and what is in it. Readers take no turns: at worst one reads again.
        self._known: tuple[tuple[int, int, int], Status] | None = None
        self._encoder = Encoder()
        self._kept: Status | None = None  # what holds when the file has less
        self._told: str | None = None

    def find(self) -> Status | None:
        """What is remembered; None when nothing was ever written. Creates nothing.

        Raises `DamageError` for what is no status, `UnsupportedFormatError` for that of a newer backupd, and
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
                hint="install the newer version, or remove the file: it is written anew",
            ) from error
        except UnreadableStatusError as error:
            raise DamageError(
                f"the status file {self._file} cannot be read: {error}",
                hint="a daemon that runs writes it back, else the next run begins anew; nothing but this file is lost",
            ) from error
        self._known = identity, status
        return status

    def read(self) -> Status:
        """What is remembered; of a file that cannot be read, what was in it before, or an empty status.

        That is worth a warning, and stops nothing.
        """
        try:
            return self._completed(self.find())
        except BackupdError as error:
            self._warn(error)
            return self._kept or Status()

    def update(self, change: Callable[[Status], Status]) -> Status:
        """Replace the status by what `change` makes of it, and give that. Others wait for their turn meanwhile.

        Atomic and durable: after a kill, a loss of power or an error, the file has the old content or the new. One that
        is no status is kept beside it, as `status.json.unreadable`. Raises `TargetUnwritableError` (a full disk is
        one), and `BusyError` when others hold the file for more than half a minute.
        """
        with self._turn, self._state.lock("the status file", timeout=_LOCK_TIMEOUT_SECONDS):
            before, is_written = self._before()
            after = change(before)
            if after is before and is_written:
                return before
            after = replace(after, written_at=datetime.now(UTC))
            self._write(after)
            return after

    def touch(self) -> None:
        """Leave a sign that the daemon is alive and could write. A status that was lost is written back first.

        Raises `TargetUnwritableError`, on a full disk too, and `BusyError` as `update` does.
        """
        self.update(lambda status: status)
        with self._reporting_errors():
            # A file of its own each time: on a full disk, what is there already can still be written over.
            _replace(self._alive, f"{os.getpid()}\n".encode(), is_durable=False)

    def alive_at(self) -> datetime | None:
        """When the daemon last called `touch`, by this machine's clock; None when it never did.

        Raises `TargetUnwritableError` when that cannot be told.
        """
        with self._reporting_errors():
            try:
                return datetime.fromtimestamp(self._alive.stat().st_mtime, UTC)
            except FileNotFoundError:
                return None

    def _before(self) -> tuple[Status, bool]:
        """What is remembered, and whether that needs no writing.

        What is no status makes room for one, and what could not even be read does not.
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
        """What the file says, with what it has lost since this process knew it."""
        kept = self._kept
        if found is None and kept is not None:
            self._warn(_lost(f"the status file {self._file} is gone"))
            return kept
        if found is not None and found.daemon is None and kept is not None and kept.daemon is not None:
            # A daemon that was noted is never taken out: somebody wrote this who had found no file.
            self._warn(_lost(f"the status file {self._file} was lost, and begun anew by another process"))
            return replace(kept, databases={**found.databases, **kept.databases})
        self._kept, self._told = found, None
        return found or Status()

    def _warn(self, error: BackupdError) -> None:
        """Once, until it can be read again: a daemon reads it all the time."""
        if self._told != error.message:
            self._told = error.message
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
    return DamageError(message, hint="what was in it is written back; find out what removes files there")


def _identity(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _replace(file: Path, content: bytes, *, is_durable: bool) -> tuple[int, int, int]:
    """Give `file` this content in one step; say which file it is now. Of two at once, one wins."""
    temporary = file.with_name(f".{file.name}.new")  # always the same, so that kills do not pile them up
    descriptor = _new(temporary)
    try:
        try:
            _belong_to_owner(descriptor, file.parent)
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
    """A file that this process has made, in the place of any other: the directory may be another user's."""
    while True:
        try:
            return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE_MODE)
        except FileExistsError:
            file.unlink(missing_ok=True)


def _belong_to_owner(descriptor: int, directory: Path) -> None:
    """What root writes, beside a daemon of another user, that daemon must be able to read."""
    owner = directory.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
