"""What a restore is about to do to a database, written down beside it: the next command finishes it, or takes it back.

A restore holds the lock on the file as long as it runs, so one that nobody holds tells of a restore that was killed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.errors import BusyError, TargetUnwritableError
from backupd.live.files import fsync_directory, open_locked, partial_name, remove_abandoned
from backupd.live.locks import holders
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Replacement:
    """Names in the directory of the database, and how they change.

    `image`, whose inode is `inode`, becomes the database; what was there keeps the name `aside`; `moves` are (from, to)
    of its log and journal.
    """

    image: str
    inode: int
    aside: str
    moves: tuple[tuple[str, str], ...]


@contextmanager
def announced_transaction(database: Path) -> Iterator[None]:
    """Say that a restore writes into the live database until the block ends. Raises `BusyError` beside another one."""
    with _announced(database, None):
        yield


def replace_files(database: Path, replacement: Replacement) -> None:
    """Give the new file the name of the database, which leads to a whole file at every moment.

    A failure takes everything back; after a kill, the next command completes it. Raises `BusyError` and OSError.
    """
    with _announced(database, replacement):
        try:
            _complete(database, replacement)
        except BaseException:
            _take_back(database, replacement)
            raise


def finish_interrupted(database: Path, *, lock_timeout: float) -> None:
    """Finish what a killed restore left: roll its transaction back, or complete the change of names.

    Costs two calls of `stat` when there is nothing to do. Waits at most `lock_timeout` seconds for a restore that still
    runs. Raises `BusyError` when it does after that or the database is in use, and `TargetUnwritableError`.
    """
    file = _intent_file(database)
    try:
        if os.path.lexists(file):
            descriptor = _open_when_free(file, database, lock_timeout)
            try:
                _finish(database, _read(descriptor), lock_timeout)
                _remove(file)
            finally:
                os.close(descriptor)
        remove_abandoned(partial_name(database), database)
    except OSError as error:
        raise TargetUnwritableError(
            f"a restore of {database} was interrupted and cannot be finished: {error.strerror} ({error.filename})",
            hint=f"run a command as a user who may write {database.parent}, such as: backupd undo --dry-run",
        ) from error


@contextmanager
def _announced(database: Path, replacement: Replacement | None) -> Iterator[None]:
    file = _intent_file(database)
    descriptor = open_locked(file, database)
    try:
        os.truncate(descriptor, 0)
        values = {"version": 1, "replacement": asdict(replacement) if replacement else None}
        os.pwrite(descriptor, json.dumps(values).encode(), 0)
        os.fsync(descriptor)
        fsync_directory(file.parent)
        yield
    finally:
        # Also after a failure, which has taken everything back: only a kill leaves the file.
        _remove(file)
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


def _finish(database: Path, values: dict[str, object] | None, lock_timeout: float) -> None:
    if values is None:
        return  # killed before it was written down whole, so nothing had been done
    if values["replacement"] is None:
        from backupd.live.destination import settle  # noqa: PLC0415  (every snapshot comes here, few need SQLite)

        if database.exists():
            settle(database, lock_timeout=lock_timeout)
        log.warning(
            "an interrupted restore was cleaned up: the database has the content of before, or all of the restored",
            file=str(database),
        )
        return
    if database.exists() and holders(database):
        raise BusyError(
            f"a restore of {database} was interrupted before its end, and the database is in use",
            hint="stop the application, run the same command again, and start the application",
        )
    _complete(database, _parsed(values["replacement"]))
    log.warning("an interrupted restore was completed: restart the application", file=str(database))


def _complete(database: Path, replacement: Replacement) -> None:
    directory = database.parent
    image = directory / replacement.image
    if not _has_inode(image, replacement.inode):
        if not _has_inode(database, replacement.inode):
            _take_back(database, replacement)
        return  # it has its new name, and what lies beside it belongs to it
    _keep_aside(database, directory / replacement.aside)
    for old, new in replacement.moves:
        with suppress(FileNotFoundError):
            (directory / old).rename(directory / new)
    fsync_directory(directory)
    image.rename(database)
    fsync_directory(directory)


def _take_back(database: Path, replacement: Replacement) -> None:
    directory = database.parent
    if _has_inode(database, replacement.inode):
        return  # too late, and complete
    for old, new in replacement.moves:
        if not (directory / old).exists() and (directory / new).exists():
            (directory / new).rename(directory / old)
    aside = directory / replacement.aside
    if aside.exists() and aside.samefile(database):
        aside.unlink()
    fsync_directory(directory)


def _keep_aside(database: Path, aside: Path) -> None:
    """A second name for the old file, or a copy where the file system has no such thing."""
    try:
        os.link(database, aside)
    except FileNotFoundError:
        return  # there is no old file, only what was beside it
    except FileExistsError:
        if not aside.samefile(database):
            raise  # somebody else's; the next try takes another name
    except OSError:
        shutil.copy2(database, aside)


def _has_inode(file: Path, inode: int) -> bool:
    try:
        return file.stat().st_ino == inode
    except FileNotFoundError:
        return False


def _intent_file(database: Path) -> Path:
    return database.with_name(f".{database.name}.backupd-restoring")


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    fsync_directory(file.parent)


def _read(descriptor: int) -> dict[str, object] | None:
    try:
        values: dict[str, object] = json.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
    except ValueError:
        return None
    return values


def _parsed(values: object) -> Replacement:
    """Only names: a file that somebody else wrote leads to no other directory."""
    assert isinstance(values, dict)  # noqa: S101
    moves = tuple((Path(old).name, Path(new).name) for old, new in values["moves"])
    return Replacement(Path(values["image"]).name, int(values["inode"]), Path(values["aside"]).name, moves)
