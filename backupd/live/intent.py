"""The intent of a restore, in a file beside the database: it lets the next command clean up after a kill.

A restore holds the lock on the file as long as it runs, so a file without a lock shows that a restore was killed.
What such a restore had not completed is taken back, never completed: the application may run again on the old file.

The file lies in a directory that other users may write. It counts only when it has the token that the state directory
has for it: a file of another user never makes this open a database for writing, or rename a file. Nor does the file of
a restore whose state directory is lost: every step of a restore leaves a whole database, and the application itself
rolls back the transaction of a killed one, so that it is enough to report it.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from backupd.errors import AnotherRunError, BusyError, NotADatabaseError, TargetUnwritableError, UnsupportedFormatError
from backupd.live.files import (
    Replacement,
    make_locked,
    open_ours,
    partial_directory,
    put_in_place,
    remove_abandoned,
    take_back,
    why_not_ours,
)
from backupd.logs import log
from backupd.state import UNUSABLE_STATE, Note
from backupd.system.files import flush_directory
from backupd.system.trust import status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.state import StateDirectory

_LOCK_RETRY_SECONDS = 0.05
_VERSION = 1
_MOST_BYTES = 1 << 16


class _Intent(msgspec.Struct, frozen=True):
    version: int
    token: str
    replacement: Replacement | None


class RestoreToken(msgspec.Struct, frozen=True):
    """The last restore that this state directory started in a database, by the token in its file.

    It `has_ended` when all that was left to do was to remove that file.
    """

    kind: ClassVar[str] = "restore-token"

    token: str
    has_ended: bool = False


class _IgnoredFile(msgspec.Struct, frozen=True):
    """A file of an interrupted restore that was reported, and ignored."""

    kind: ClassVar[str] = "ignored-file"

    inode: int
    changed_ns: int


@contextmanager
def announced_transaction(database: Path, state: StateDirectory) -> Iterator[None]:
    """Announce that a restore writes into the live database until the block ends. Raises `BusyError` beside another."""
    with _announced(database, None, state) as file:
        try:
            yield
        finally:
            # Also after a failure, which SQLite has rolled back, so that only a kill leaves the file.
            try:
                _remove(file, database, state)
            except (OSError, *UNUSABLE_STATE) as error:
                log.warning("the next backupd removes a file of this restore", file=str(file), reason=str(error))


def replace_files(database: Path, replacement: Replacement, state: StateDirectory) -> None:
    """Replace the file of the database; its name leads to a whole file at every moment.

    A failure takes everything back, and so does the next command after a kill. Raises `BusyError`,
    `TargetUnwritableError` and OSError.
    """
    with _announced(database, replacement, state) as file:
        try:
            put_in_place(database, replacement)
        except BaseException:
            take_back(database, replacement)
            _remove(file, database, state)  # stays when taking back failed: the next command tries again
            raise
        _remove(file, database, state)


def finish_interrupted(database: Path, state: StateDirectory, *, lock_timeout: float) -> None:
    """Clean up what a killed restore left: roll its transaction back, or give the old files their names again.

    Costs two calls of `stat` when there is nothing to do. Waits at most `lock_timeout` seconds for a restore that still
    runs. The file of a restore that `state` does not know is reported once, and ignored. Raises `BusyError` when a
    restore still runs after that time, `TargetUnwritableError` and `UnsupportedFormatError`. Must not be
    called while this process has a connection to the database.
    """
    file = _intent_file(database)
    try:
        if os.path.lexists(file):
            descriptor = _open_when_free(file, database, lock_timeout)
            try:
                values = None if descriptor is None else _read(descriptor)
                if values is None or (values and not _is_known(values, database, state)):
                    _report_once(file, database, state)
                else:
                    # Without values it was killed while it wrote the file, so nothing had been done.
                    if values and not _has_ended(database, state):
                        _clean_up(database, _intent(values, file), lock_timeout)
                    _remove(file, database, state)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
    except OSError as error:
        raise TargetUnwritableError(
            f"a restore of {database} was interrupted and cannot be cleaned up: {error.strerror} ({error.filename})",
            hint=f"run backupd now as a user who may write {database.parent}",
        ) from error
    with suppress(AnotherRunError, OSError):  # it only takes space; a user who may write there can remove it
        remove_abandoned(partial_directory(database), database)


@contextmanager
def _announced(database: Path, replacement: Replacement | None, state: StateDirectory) -> Iterator[Path]:
    file = _intent_file(database)
    before = open_ours(file, database)
    if before is not None:
        try:
            if _is_known(_read(before), database, state):
                raise BusyError(
                    f"another restore of {database} was interrupted in the meantime",
                    hint="run the same command again: it cleans up first",
                )
        finally:
            os.close(before)
    descriptor = make_locked(file, database)
    try:
        token = secrets.token_hex(16)
        try:
            token_note(database, state).write(RestoreToken(token), is_durable=True)
            os.pwrite(descriptor, json.dumps(msgspec.to_builtins(_Intent(_VERSION, token, replacement))).encode(), 0)
            os.fsync(descriptor)
            flush_directory(file.parent)
        except BaseException:
            file.unlink()
            raise
        yield file
    finally:
        os.close(descriptor)


def _open_when_free(file: Path, database: Path, lock_timeout: float) -> int | None:
    give_up_at = time.monotonic() + lock_timeout
    while True:
        try:
            return open_ours(file, database)
        except BusyError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_LOCK_RETRY_SECONDS)


def _is_known(values: dict[str, Any], database: Path, state: StateDirectory) -> bool:
    """Whether the last restore that used this state directory wrote `values`."""
    last = token_note(database, state).read()
    if last is None or not last.token:
        return False
    return hmac.compare_digest(*(str(token).encode(errors="replace") for token in (values.get("token"), last.token)))


def _has_ended(database: Path, state: StateDirectory) -> bool:
    """Whether the last restore was killed when it only had to remove its file."""
    last = token_note(database, state).read()
    return last is not None and last.has_ended


def _report_once(file: Path, database: Path, state: StateDirectory) -> None:
    """Warn that `file` is ignored, once for each file with this name."""
    status = status_of(str(file))
    if status is None:
        return  # gone meanwhile
    note, ignored = Note(state, _IgnoredFile, str(file)), _IgnoredFile(status.st_ino, status.st_mtime_ns)
    if note.read() == ignored:
        return
    log.warning(
        "the file of an interrupted restore is ignored",
        file=str(file),
        reason=why_not_ours(status) or f"the state directory {state.root} knows of no such restore",
        hint=f"if a restore of {database.name} was killed, open it once with the application, and look at the files "
        "beside it; then remove this file",
    )
    note.write(ignored)


def token_note(database: Path, state: StateDirectory) -> Note[RestoreToken]:
    """The note about the restore that is in progress in `database`."""
    return Note(state, RestoreToken, str(database))


def _clean_up(database: Path, intent: _Intent, lock_timeout: float) -> None:
    if intent.replacement is not None:
        is_taken_back = take_back(database, intent.replacement)
        what = "was taken back" if is_taken_back else "had replaced the file: restart the application"
        log.warning(f"an interrupted restore {what}", file=str(database), old_file=intent.replacement.aside)
    elif database.exists():
        from backupd.live.destination import settle  # noqa: PLC0415  (every snapshot comes here, few need SQLite)

        with suppress(NotADatabaseError):  # then there is no transaction to roll back
            settle(database, lock_timeout=lock_timeout)
        log.warning(
            "an interrupted restore was cleaned up: the database has its old content, or all of the restored one",
            file=str(database),
        )


def _intent_file(database: Path) -> Path:
    return database.with_name(f".{database.name}.backupd-restoring")


def _remove(file: Path, database: Path, state: StateDirectory) -> None:
    # Note the end first: another user could put the file back, which must not look like that of a killed restore.
    note = token_note(database, state)
    if (last := note.read()) is not None:
        note.write(RestoreToken(last.token, has_ended=True), is_durable=True)
    file.unlink(missing_ok=True)
    flush_directory(file.parent)
    note.remove()


def _read(descriptor: int) -> dict[str, Any]:
    """Read the values of the file; none when it was not written whole."""
    try:
        values = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _intent(values: dict[str, Any], file: Path) -> _Intent:
    """Parse `values` of the file. Only the names of its paths count, so that none leads to another directory."""
    try:
        intent = _names_only(msgspec.convert(values, _Intent))
        if intent.version != _VERSION:
            raise ValueError("of another version")  # noqa: TRY301
    except (msgspec.ValidationError, ValueError) as error:
        raise UnsupportedFormatError(
            f"{file} is of an interrupted restore, and in the format of another version of backupd",
            hint="run the backupd that restored; or look at the files beside it, and remove it when all is well",
        ) from error
    return intent


def _names_only(intent: _Intent) -> _Intent:
    """Keep only names, without the image, which is never renamed back. Raises ValueError for a path without a name."""
    if intent.replacement is None:
        return intent
    replacement = intent.replacement
    moves = tuple((_name(old), _name(new)) for old, new in replacement.moves)
    return _Intent(intent.version, intent.token, Replacement("", replacement.inode, _name(replacement.aside), moves))


def _name(path: str) -> str:
    name = Path(path).name
    if name in {"", ".."} or "\0" in name:
        raise ValueError(f"{path!r} names no file")
    return name
