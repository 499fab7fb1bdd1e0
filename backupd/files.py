"""What some file systems refuse, done in another way there: CIFS, NFS, exFAT, FUSE, mounts of user namespaces.

    copy_file_range        some CIFS mounts, old container sandboxes: bytes are read and written
    link                   exFAT, many network and FUSE ones: an empty file takes the name, and is then replaced
    fsync of a directory   some network ones: nothing, they write names through
    fchmod                 exFAT, CIFS: the mount decides, and the caller learns that
    fallocate              many: zeros are written
    statfs                 some FUSE ones: room is taken to be there
    flock                  NFS without its lock service: there is no other way, and the error says what is missing

What remains an OSError is for the caller to translate; that of a full disk always remains one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_COPY_BLOCK_BYTES = 1 << 20
_COPY_RANGE_BYTES = 1 << 30
_NOT_SUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def copy(source: int, target: int) -> None:
    """Copy what `source` has from its position on to the position of `target`."""
    # Whatever the kernel cannot copy, for whatever reason, is read and written: a disk that fails, or is full, says so
    # then. It moves both positions by what it did copy, and by nothing when it fails.
    with suppress(OSError):
        while os.copy_file_range(source, target, _COPY_RANGE_BYTES):
            pass
    while block := os.read(source, _COPY_BLOCK_BYTES):
        write(target, block)


def write(file: int, content: bytes | memoryview) -> None:
    """Write all of `content`."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def flush_names(directory: int) -> None:
    """Make the names in a directory durable, where directories can be flushed at all."""
    try:
        os.fsync(directory)
    except OSError as error:
        # Some network file systems cannot flush a directory, and write names through instead.
        if error.errno not in _NOT_SUPPORTED:
            raise


def flush_directory(directory: Path) -> None:
    """`flush_names` by path."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush_names(descriptor)
    finally:
        os.close(descriptor)


def rename_new(temporary: Path, file: Path) -> None:
    """Give a finished file the name `file`, unless that is there: raises FileExistsError, and leaves `temporary`.

    In one step; where there are no hard links, an empty file has the name for a moment, and after a kill for good.
    """
    try:
        os.link(temporary, file)  # unlike a rename, fails if another process has taken the name
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            temporary.rename(file)
        except OSError:
            file.unlink()
            raise
    else:
        temporary.unlink()


def try_lock(descriptor: int, file: Path) -> bool:
    """Take the lock on `file`, open as `descriptor`, until that is closed; False while another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        reason = f"its file system gives no locks: {(error.strerror or str(error)).lower()}"
        raise OSError(error.errno, reason, os.fspath(file)) from error
    return True


def set_mode(descriptor: int, mode: int) -> bool:
    """Give an open file these permissions; whether it has them now."""
    with suppress(OSError):
        os.fchmod(descriptor, mode)
    return stat.S_IMODE(os.fstat(descriptor).st_mode) == mode


def take_space(descriptor: int, size_bytes: int) -> None:
    """Make a file so long, and have the disk keep the room for it: what is written there later cannot fail."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno in _FULL:
            raise
        missing = size_bytes - os.lseek(descriptor, 0, os.SEEK_END)
        for start in range(0, missing, _COPY_BLOCK_BYTES):
            write(descriptor, bytes(min(_COPY_BLOCK_BYTES, missing - start)))


def free_bytes(directory: Path) -> int | None:
    """How much room is left for this user; None where the file system does not say. Raises FileNotFoundError."""
    try:
        status = os.statvfs(directory)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def is_mounted_read_only(directory: Path) -> bool:
    """Whether the file system says so. Raises FileNotFoundError."""
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        raise
    except OSError:
        return False


def has_room(directory: Path, size_bytes: int) -> bool:
    """Whether so much fits, as far as the file system says. Raises FileNotFoundError."""
    free = free_bytes(directory)
    return free is None or free >= size_bytes
