"""File operations that also work on file systems which lack some features: CIFS, NFS, exFAT, FUSE, user namespaces.

    copy_file_range        not on some CIFS mounts, in old container sandboxes: bytes are read and written
    link                   not on exFAT, many network and FUSE ones: an empty file takes the name, and is then replaced
    fsync of a directory   not on some network ones: they write names through, and nothing needs to be done
    fchmod                 not on exFAT, CIFS: the mount decides, and the result says so
    fallocate              not on many: zeros are written
    statfs                 not on some FUSE ones: free space is assumed
    flock                  not on NFS without its lock service: the error names what is missing

Other failures stay an OSError for the caller to translate; a full disk always does.
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
    """Copy from the position of `source` to its end, to the position of `target`."""
    # What the kernel cannot copy, for any reason, is read and written: a failing or full disk raises then. The kernel
    # advances both positions by what it copied, and by nothing when it fails.
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


def write_durably(name: str, directory: int, content: bytes | int) -> None:
    """Write and flush a new file of mode 0600. `content` is bytes, or a descriptor that is read to its end.

    The name is not durable before `flush_names`. When this raises, a part of the file may exist.
    """
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode=0o600, dir_fd=directory)
    try:
        if isinstance(content, int):
            copy(content, file)
        else:
            write(file, content)
        os.fsync(file)
    finally:
        os.close(file)


def read_at(file: int, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset`, fewer when the file ends before."""
    blocks = []
    while length > 0 and (block := os.pread(file, length, offset)):
        blocks.append(block)
        offset += len(block)
        length -= len(block)
    return b"".join(blocks)


def flush_names(directory: int) -> None:
    """Make the names in an open directory durable, if its file system can flush directories."""
    try:
        os.fsync(directory)
    except OSError as error:
        # Some network file systems cannot flush a directory: they write names through.
        if error.errno not in _NOT_SUPPORTED:
            raise


def flush_directory(directory: Path) -> None:
    """Make the names in a directory durable, given its path."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush_names(descriptor)
    finally:
        os.close(descriptor)


def create_with_parents(path: Path) -> None:
    """Create a directory of mode 0700 and its missing parents, with durable names."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        flush_directory(directory.parent)


def belong_to_owner(file: int, directory: Path) -> None:
    """Give an open file that root has created to the owner of `directory`, whose daemon must be able to use it."""
    if os.geteuid() == 0 and (owner := directory.stat()).st_uid != 0:
        os.fchown(file, owner.st_uid, owner.st_gid)


def rename_new(temporary: Path, file: Path) -> None:
    """Rename a finished file to `file`, in one step; raise FileExistsError, and keep `temporary`, if that exists.

    On file systems without hard links, an empty file has the name for a moment, or for good after a kill.
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
    """Lock `file`, open as `descriptor`, until that is closed; return False while another process has the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        reason = f"its file system has no locks: {(error.strerror or str(error)).lower()}"
        raise OSError(error.errno, reason, os.fspath(file)) from error
    return True


def set_mode(descriptor: int, mode: int) -> bool:
    """Set the permissions of an open file; return whether it has them now."""
    with suppress(OSError):
        os.fchmod(descriptor, mode)
    return stat.S_IMODE(os.fstat(descriptor).st_mode) == mode


def take_space(descriptor: int, size_bytes: int) -> None:
    """Extend a file and reserve the disk space for it, so that later writes cannot fail."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno in _FULL:
            raise
        missing = size_bytes - os.lseek(descriptor, 0, os.SEEK_END)
        for start in range(0, missing, _COPY_BLOCK_BYTES):
            write(descriptor, bytes(min(_COPY_BLOCK_BYTES, missing - start)))


def free_bytes(directory: Path) -> int | None:
    """Return the free space for this user; None if the file system does not report it. Raises FileNotFoundError."""
    try:
        status = os.statvfs(directory)
    except FileNotFoundError:
        raise
    except OSError:
        return None
    return status.f_bavail * status.f_frsize if status.f_blocks else None


def is_mounted_read_only(directory: Path) -> bool:
    """Whether the file system of a directory is mounted read-only. Raises FileNotFoundError."""
    try:
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    except FileNotFoundError:
        raise
    except OSError:
        return False


def has_room(directory: Path, size_bytes: int) -> bool:
    """Whether `size_bytes` fit, as far as the file system reports it. Raises FileNotFoundError."""
    free = free_bytes(directory)
    return free is None or free >= size_bytes
