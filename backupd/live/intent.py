"""What a restore is about to do to a database, written down beside it: the next command cleans up after a kill.

A restore holds the lock on the file as long as it runs, so one that nobody holds tells of a restore that was killed.
What such a restore had not completed is taken back, never completed: the application may run again on the old file.

The file lies where others may write. It counts only when it has the token that the state directory has for it:
what another user put there never makes this open a database for writing, or rename a file. Nor does the file of a
restore whose state directory is lost: every step of a restore leaves a whole database, and the application rolls back
the transaction of a killed one by itself, so that there is nothing to do but to say so.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from backupd.errors import AnotherRunError, BusyError, NotADatabaseError, TargetUnwritableError, UnsupportedFormatError
from backupd.files import flush_directory
from backupd.live.files import (
    make_locked,
    open_ours,
    partial_directory,
    remove_abandoned,
    why_not_ours,
)
from backupd.logs import log
from backupd.trust import status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.state import StateDirectory

_LOCK_RETRY_SECONDS = 0.05
_VERSION = 1
_MOST_BYTES = 1 << 16
_ENDED = "ended "


@dataclass(frozen=True, slots=True)
class Replacement:
    """Names in the directory of the database, and how they change.

    `image` (a path from there), whose inode is `inode`, becomes the database; what was there keeps the name `aside`;
    `moves` are (from, to) of its log and journal, as far as there are any.
    """

    image: str
    inode: int
    aside: str
    moves: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Intent:
    version: int
    token: str
    replacement: Replacement | None


_adapter = TypeAdapter(_Intent)


@contextmanager
def announced_transaction(database: Path, state: StateDirectory) -> Iterator[None]:
    """Say that a restore writes into the live database until the block ends. Raises `BusyError` beside another one."""
    with _announced(database, None, state) as file:
        try:
            yield
        finally:
            # Also after a failure, which SQLite has rolled back: only a kill leaves the file.
            try:
                _remove(file, database, state)
            except (OSError, TargetUnwritableError) as error:
                log.warning("the next backupd removes a file of this restore", file=str(file), reason=str(error))


def replace_files(database: Path, replacement: Replacement, state: StateDirectory) -> None:
    """Give the new file the name of the database, which leads to a whole file at every moment.

    A failure takes everything back, and so does the next command after a kill. Raises `BusyError`,
    `TargetUnwritableError` and OSError.
    """
    with _announced(database, replacement, state) as file:
        try:
            _put_in_place(database, replacement)
        except BaseException:
            _take_back(database, replacement)
            _remove(file, database, state)  # not when that failed: the next command tries again
            raise
        _remove(file, database, state)


def finish_interrupted(database: Path, state: StateDirectory, *, lock_timeout: float) -> None:
    """Clean up what a killed restore left: roll its transaction back, or give the old files their names again.

    Costs two calls of `stat` when there is nothing to do. Waits at most `lock_timeout` seconds for a restore that still
    runs. A file that tells of a restore which `state` knows nothing of is reported once, and ignored. Raises
    `BusyError` when a restore runs after that time, `TargetUnwritableError` and `UnsupportedFormatError`. Must not be
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
                    # Without values: killed before it was written down whole, so nothing had been done.
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
    with suppress(AnotherRunError, OSError):  # it takes space and does no harm: who may write there removes it
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
            state.note(_subject(database), token, is_durable=True)
            os.pwrite(descriptor, json.dumps(asdict(_Intent(_VERSION, token, replacement))).encode(), 0)
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
    noted = state.noted(_subject(database))
    token = "" if noted is None else noted.removeprefix(_ENDED)
    return bool(token) and hmac.compare_digest(str(values.get("token")).encode(), token.encode())


def _has_ended(database: Path, state: StateDirectory) -> bool:
    """Whether that restore was killed only when it had nothing left to do but to remove its file."""
    return (state.noted(_subject(database)) or "").startswith(_ENDED)


def _report_once(file: Path, database: Path, state: StateDirectory) -> None:
    """Say that `file` is ignored, once for each file that has the name."""
    status = status_of(str(file))
    if status is None:
        return  # gone meanwhile
    subject, seen = f"the ignored {file}", f"{status.st_ino} {status.st_mtime_ns}"
    if state.noted(subject) == seen:
        return
    log.warning(
        "a file that tells of an interrupted restore is ignored",
        file=str(file),
        reason=why_not_ours(status) or f"the state directory {state.root} knows of no such restore",
        hint=f"if a restore of {database.name} was killed, open it once with the application, and look at the files "
        "beside it; then remove this one",
    )
    state.note(subject, seen)


def _subject(database: Path) -> str:
    return f"the restore that is going on in {database}"


def _clean_up(database: Path, intent: _Intent, lock_timeout: float) -> None:
    if intent.replacement is not None:
        is_taken_back = _take_back(database, intent.replacement)
        what = "was taken back" if is_taken_back else "had replaced the file: restart the application"
        log.warning(f"an interrupted restore {what}", file=str(database), old_file=intent.replacement.aside)
    elif database.exists():
        from backupd.live.destination import settle  # noqa: PLC0415  (every snapshot comes here, few need SQLite)

        with suppress(NotADatabaseError):  # then there is no transaction to roll back
            settle(database, lock_timeout=lock_timeout)
        log.warning(
            "an interrupted restore was cleaned up: the database has the content of before, or all of the restored",
            file=str(database),
        )


def _put_in_place(database: Path, replacement: Replacement) -> None:
    directory = database.parent
    _keep_aside(database, directory / replacement.aside)
    for old, new in replacement.moves:
        with suppress(FileNotFoundError):
            (directory / old).rename(directory / new)
    flush_directory(directory)
    (directory / replacement.image).rename(database)
    if not _has_inode(database, replacement.inode):
        raise TargetUnwritableError(
            f"another user has put a file of theirs in the place of {database}",
            hint=f"look who writes {directory}; the old file is kept as {replacement.aside}",
        )
    flush_directory(directory)


def _take_back(database: Path, replacement: Replacement) -> bool:
    """Give the old files their names again; whether that was right, and not the new file in place or somebody's doing.

    The second name is given first of all, so where it leads elsewhere than to the database, the old file is under it.
    """
    directory = database.parent
    aside = directory / replacement.aside
    if _has_inode(database, replacement.inode):
        return False
    if aside.exists():
        if not database.exists() or not aside.samefile(database):
            return False
        aside.unlink()
    for old, new in replacement.moves:
        # What an application that was started since has made is newer.
        if (directory / new).exists() and not (directory / old).exists():
            (directory / new).rename(directory / old)
    flush_directory(directory)
    return True


def _keep_aside(database: Path, aside: Path) -> None:
    """A second name for the old file, if there is one."""
    try:
        os.link(database, aside)
    except FileNotFoundError:
        return  # only what was beside it is kept
    except FileExistsError:
        raise
    except OSError as error:
        raise no_second_name(database, error) from error


def no_second_name(database: Path, error: OSError) -> TargetUnwritableError:
    """The error for a file system that has no hard links: the name would lead nowhere for a moment, or to half a file.

    An application, or its supervisor, makes an empty database when it finds none.
    """
    return TargetUnwritableError(
        f"{database} cannot be kept under a second name while it is replaced: the file system of {database.parent} has "
        f"no hard links ({(error.strerror or str(error)).lower()})",
        hint=f"move it away by hand with all files whose names begin with {database.name}, and restore again",
    )


def _has_inode(file: Path, inode: int) -> bool:
    try:
        return file.stat().st_ino == inode
    except FileNotFoundError:
        return False


def _intent_file(database: Path) -> Path:
    return database.with_name(f".{database.name}.backupd-restoring")


def _remove(file: Path, database: Path, state: StateDirectory) -> None:
    # That it has ended first: another user could put the file back, which must not be taken for one that was killed.
    if (noted := state.noted(_subject(database))) is not None:
        state.note(_subject(database), f"{_ENDED}{noted.removeprefix(_ENDED)}", is_durable=True)
    file.unlink(missing_ok=True)
    flush_directory(file.parent)
    state.note(_subject(database), None)


def _read(descriptor: int) -> dict[str, Any]:
    """What was written down; nothing when it was not written whole."""
    try:
        values = json.loads(os.pread(descriptor, _MOST_BYTES, 0))
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _intent(values: dict[str, Any], file: Path) -> _Intent:
    """What `values` of the file say. Only names count: no path leads elsewhere."""
    try:
        intent = _names_only(_adapter.validate_python(values))
        if intent.version != _VERSION:
            raise ValueError("of another version")  # noqa: TRY301
    except (ValidationError, ValueError) as error:
        raise UnsupportedFormatError(
            f"{file} tells of a restore that was interrupted, in words of another backupd",
            hint="run the backupd that restored; or look at the files beside it, and remove it when all is well",
        ) from error
    return intent


def _names_only(intent: _Intent) -> _Intent:
    """Raise ValueError for a path that leads nowhere. The image is left out: nothing is taken back from there."""
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
