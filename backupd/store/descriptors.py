"""Files and directories by their descriptors: written so that no power cut loses them, and read to the end."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_STALE_AFTER_SECONDS = 3600
_COPY_BLOCK_BYTES = 1 << 20
_COPY_RANGE_BYTES = 1 << 30
_NOT_SUPPORTED = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


def create_with_parents(path: Path) -> None:
    """Create a directory of mode 0700, and those above it that are missing, with durable names."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flush_names(parent)
        finally:
            os.close(parent)


def write_durably(name: str, directory: int, content: bytes | int) -> None:
    """Write a new file of mode 0600 and flush it. `content` is bytes, or a descriptor that is read to its end.

    The name is not durable before `flush_names`. When this raises, the file may be there in part.
    """
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode=0o600, dir_fd=directory)
    try:
        if isinstance(content, int):
            _copy(content, file)
        else:
            _write(file, content)
        os.fsync(file)
    finally:
        os.close(file)


def _copy(source: int, target: int) -> None:
    try:
        while os.copy_file_range(source, target, _COPY_RANGE_BYTES):
            pass
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    # The rest: everything where the kernel cannot copy between these file systems, and nothing where it did.
    while block := os.read(source, _COPY_BLOCK_BYTES):
        _write(target, block)


def _write(file: int, content: bytes) -> None:
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


def read_at(file: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, fewer when the file ends before."""
    blocks = []
    while length > 0 and (block := os.pread(file, length, offset)):
        blocks.append(block)
        offset += len(block)
        length -= len(block)
    return b"".join(blocks)


def sorted_entries(directory: int) -> list[tuple[str, os.stat_result]]:
    """Regular files and directories, the latter with a `/` at the end, which makes this the order of whole keys.

    Python compares code points, which orders strings as their UTF-8 bytes. Links, pipes, names that are not UTF-8,
    and files that vanish meanwhile are left out.
    """
    entries = []
    with os.scandir(directory) as found:
        for entry in found:
            with suppress(FileNotFoundError, UnicodeEncodeError):
                entry.name.encode()
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    entries.append((f"{entry.name}/", status))
                elif stat.S_ISREG(status.st_mode):
                    entries.append((entry.name, status))
    return sorted(entries, key=lambda entry: entry[0])


def remove_stale(directory: int) -> None:
    """Remove the files that a killed process left; another process may be writing the younger ones right now."""
    stale_before = time.time() - _STALE_AFTER_SECONDS
    for name, status in sorted_entries(directory):
        if not name.endswith("/") and status.st_mtime < stale_before:
            with suppress(OSError):
                os.unlink(name, dir_fd=directory)
