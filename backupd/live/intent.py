"""What a restore is about to do to a database, written down beside it: the next command cleans up after a kill.

A restore holds the lock on the file as long as it runs, so one that nobody holds tells of a restore that was killed.
What such a restore had not completed is taken back, never completed: the application may run again on the old file.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from backupd.errors import BusyError, NotADatabaseError, TargetUnwritableError, UnsupportedFormatError
from backupd.files import flush_directory
from backupd.live.files import open_locked, partial_name, remove_abandoned
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_RETRY_SECONDS = 0.05
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Replacement:
    """Names in the directory of the database, and how they change.

    `image`, whose inode is `inode`, becomes the database; what was there keeps the name `aside`; `moves` are (from, to)
    of its log and journal, as far as there are any.
    """

    image: str
    inode: int
    aside: str
    moves: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Intent:
    version: int
    replacement: Replacement | None


_adapter = TypeAdapter(_Intent)


@contextmanager
def announced_transaction(database: Path) -> Iterator[None]:
    """Say that a restore writes into the live database until the block ends. Raises `BusyError` beside another one."""
    with _announced(database, None) as file:
        try:
            yield
        finally:
            # Also after a failure, which SQLite has rolled back: only a kill leaves the file.
            try:
                _remove(file)
            except OSError as error:
                log.warning("the next backupd removes a file of this restore", file=str(file), reason=error.strerror)


def replace_files(database: Path, replacement: Replacement) -> None:
    """Give the new file the name of the database, which leads to a whole file at every moment.

    A failure takes everything back, and so does the next command after a kill. Raises `BusyError`,
    `TargetUnwritableError` and OSError.
    """
    with _announced(database, replacement) as file:
        try:
            _put_in_place(database, replacement)
        except BaseException:
            _take_back(database, replacement)
            _remove(file)  # not when that failed: the next command tries again
            raise
        _remove(file)


def finish_interrupted(database: Path, *, lock_timeout: float) -> None:
    """Clean up what a killed restore left: roll its transaction back, or give the old files their names again.

    Costs two calls of `stat` when there is nothing to do. Waits at most `lock_timeout` seconds for a restore that still
    runs. Raises `BusyError` when it does after that, `TargetUnwritableError` and `UnsupportedFormatError`. Must not be
    called while this process has a connection to the database.
    """
    file = _intent_file(database)
    try:
        if os.path.lexists(file):
            descriptor = _open_when_free(file, database, lock_timeout)
            try:
                _clean_up(database, _read(descriptor, file), lock_timeout)
                _remove(file)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise TargetUnwritableError(
            f"a restore of {database} was interrupted and cannot be cleaned up: {error.strerror} ({error.filename})",
            hint=f"run backupd now as a user who may write {database.parent}",
        ) from error
    remove_abandoned(partial_name(database), database)


@contextmanager
def _announced(database: Path, replacement: Replacement | None) -> Iterator[Path]:
    file = _intent_file(database)
    descriptor = open_locked(file, database)
    try:
        if os.fstat(descriptor).st_size:
            raise BusyError(
                f"another restore of {database} was interrupted in the meantime",
                hint="run the same command again: it cleans up first",
            )
        try:
            os.pwrite(descriptor, json.dumps(asdict(_Intent(_VERSION, replacement))).encode(), 0)
            os.fsync(descriptor)
            flush_directory(file.parent)
        except OSError:
            file.unlink()
            raise
        yield file
    finally:
        os.close(descriptor)


def _open_when_free(file: Path, database: Path, lock_timeout: float) -> int:
    give_up_at = time.monotonic() + lock_timeout
    while True:
        try:
            return open_locked(file, database)
        except BusyError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(_LOCK_RETRY_SECONDS)


def _clean_up(database: Path, intent: _Intent | None, lock_timeout: float) -> None:
    if intent is None:
        return  # killed before it was written down whole, so nothing had been done
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


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    flush_directory(file.parent)


def _read(descriptor: int, file: Path) -> _Intent | None:
    """What was written down; None when it was not written whole. Only names count: no path leads elsewhere."""
    content = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return None
    try:
        intent = _names_only(_adapter.validate_json(content))
        if intent.version != _VERSION:
            raise ValueError("of another version")  # noqa: TRY301
    except (ValidationError, ValueError) as error:
        raise UnsupportedFormatError(
            f"{file} tells of a restore that was interrupted, in words of another backupd",
            hint="run the backupd that restored; or look at the files beside it, and remove it when all is well",
        ) from error
    return intent


def _names_only(intent: _Intent) -> _Intent:
    """Raise ValueError for a path that leads nowhere."""
    if intent.replacement is None:
        return intent
    replacement = intent.replacement
    moves = tuple((_name(old), _name(new)) for old, new in replacement.moves)
    return _Intent(
        intent.version,
        Replacement(_name(replacement.image), replacement.inode, _name(replacement.aside), moves),
    )


def _name(path: str) -> str:
    name = Path(path).name
    if name in {"", ".."} or "\0" in name:
        raise ValueError(f"{path!r} names no file")
    return name
