"""Files that a restore keeps beside a database while it works: private, locked by it, and durable by name.

The directory may belong to another user, who can give any name in it to a file of theirs at any moment. So what is made
here is made by `O_EXCL`, and what is found here counts only if this user or root made it.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from backupd.errors import AnotherRunError, BusyError, TargetUnwritableError
from backupd.files import try_lock
from backupd.trust import is_anothers, is_writable_for_others, status_of

if TYPE_CHECKING:
    from pathlib import Path

_PRIVATE_MODE = 0o600
_FOR_OTHERS = 0o077
_TRIES = 5
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK because another user may put a named pipe in the file's place in this moment.
_OLD = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IMAGE = "image"


def why_not_ours(status: os.stat_result) -> str | None:
    """Why a file may be another user's work; None for one that this user or root made, and that no other may write."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if is_anothers(status):
        return f"it belongs to uid {status.st_uid}"
    return "other users may write it" if is_writable_for_others(status) else None


def open_ours(file: Path, database: Path) -> int | None:
    """An existing `file`, open and locked; None when there is none, or `why_not_ours` has a reason.

    Raises `AnotherRunError` when another restore of `database` holds it, and OSError.
    """
    status = status_of(str(file))
    if status is None or why_not_ours(status) is not None:
        return None
    try:
        descriptor = os.open(file, _OLD)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor, file, database)
        if why_not_ours(os.fstat(descriptor)) is None and is_named(descriptor, file):
            return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def make_locked(file: Path, database: Path) -> int:
    """A new, empty `file` for this user alone, open and locked. What has the name is moved out of the way.

    Raises `AnotherRunError` as `open_ours`, `BusyError` when another takes the name again and again, and OSError.
    """
    for _ in range(_TRIES):
        try:
            descriptor = os.open(file, _NEW, _PRIVATE_MODE)
        except FileExistsError:
            with suppress(FileNotFoundError):
                file.rename(file.with_name(f"{file.name}.ignored-{secrets.token_hex(4)}"))
            continue
        try:
            _lock(descriptor, file, database)
            if is_named(descriptor, file):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise BusyError(f"another program takes the name {file} again and again", hint=f"look who writes {file.parent}")


def _lock(descriptor: int, file: Path, database: Path) -> None:
    if not try_lock(descriptor, file):
        raise _another_run(database)


def _another_run(database: Path) -> AnotherRunError:
    return AnotherRunError(f"another restore to {database} is running", hint="wait until it has finished")


def make_partial(target: Path) -> tuple[Path, int]:
    """An empty file for a restore to `target` to write before it gets its name, and its descriptor, which holds a lock.

    It lies in a directory of its own beside `target`, which no other user can enter: neither can they open the file,
    nor put files beside it that SQLite would apply to it. The directory has the same name each time, so that the next
    restore takes over what a killed one left; only where another user has that name, it gets a further one.

    Raises `AnotherRunError` when another restore to `target` is running, `TargetUnwritableError`, and OSError.
    """
    directory = usual = partial_directory(target)
    for _ in range(_TRIES):
        try:
            descriptor = _image_in(directory, target)
        except FileNotFoundError:
            continue  # another restore has just ended, and removed the directory
        if descriptor is not None:
            return directory / _IMAGE, descriptor
        directory = usual.with_name(f"{usual.name}-{secrets.token_hex(4)}")
    if directory == usual:
        raise _another_run(target)
    raise TargetUnwritableError(
        f"no private directory can be made beside {target}",
        hint=f"another program takes its names again and again: look who writes {target.parent}",
    )


def _image_in(directory: Path, target: Path) -> int | None:
    """The empty, locked image in `directory`, which is made if need be; None where another user has that name.

    Raises FileNotFoundError where another restore removes the one or the other meanwhile.
    """
    is_new = True
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        is_new = False
    if not is_new and not _is_private(directory):
        return None
    opened = os.open(directory, _DIRECTORY)
    try:
        descriptor = os.open(_IMAGE, _OLD | os.O_CREAT, _PRIVATE_MODE, dir_fd=opened)
        try:
            _lock(descriptor, directory / _IMAGE, target)
            if not os.path.samestat(os.fstat(descriptor), os.stat(_IMAGE, dir_fd=opened, follow_symlinks=False)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))  # noqa: TRY301
            _reject_another_maker(opened, descriptor, directory)
            _remove_beside_image(opened)
            os.ftruncate(descriptor, 0)
        except (AnotherRunError, FileNotFoundError):
            os.close(descriptor)
            raise
        except BaseException:
            os.close(descriptor)
            os.unlink(_IMAGE, dir_fd=opened)  # without locks nothing is begun
            directory.rmdir()
            raise
    finally:
        os.close(opened)
    return descriptor


def _remove_beside_image(opened: int) -> None:
    """Remove what SQLite, or a trial of links, made beside the image: SQLite would apply a journal to the next one."""
    for name in {*os.listdir(opened)} - {_IMAGE}:
        os.unlink(name, dir_fd=opened)


def _is_private(directory: Path) -> bool:
    """Whether it is a directory of this user that no other can enter. Raises FileNotFoundError."""
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _FOR_OTHERS


def _reject_another_maker(opened: int, descriptor: int, directory: Path) -> None:
    # Some file systems give all files another owner: then to both of these the same.
    if os.fstat(opened).st_uid != os.fstat(descriptor).st_uid:
        raise TargetUnwritableError(
            f"another user put a directory in the place of {directory}", hint=f"look who writes {directory.parent}"
        )


def partial_directory(target: Path) -> Path:
    """The directory of `make_partial`: always the same place, so that none is ever left over."""
    return target.with_name(f".{target.name}.backupd-partial")


def remove_abandoned(directory: Path, target: Path) -> None:
    """Remove the directory that a killed restore to `target` left, unless it is another user's, with what is in it.

    Raises `AnotherRunError` when that restore still runs, and OSError.
    """
    status = status_of(str(directory))
    if status is None or not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        return
    opened = os.open(directory, _DIRECTORY)
    try:
        if os.path.samestat(os.fstat(opened), status):
            with suppress(FileNotFoundError):
                descriptor = os.open(_IMAGE, _OLD, dir_fd=opened)
                try:
                    _lock(descriptor, directory / _IMAGE, target)
                    os.unlink(_IMAGE, dir_fd=opened)
                finally:
                    os.close(descriptor)
            _remove_beside_image(opened)
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass  # another restore has removed it
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
                raise _another_run(target) from error  # it has just taken it over
    finally:
        os.close(opened)


def is_named(descriptor: int, path: Path) -> bool:
    """Whether `path` is the name of the open file."""
    try:
        named = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), named)
