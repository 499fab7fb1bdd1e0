"""Files and directories by their descriptors: written so that no power cut loses them, and read to the end."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from backupd import files

if TYPE_CHECKING:
    from pathlib import Path

_STALE_AFTER_SECONDS = 3600


def create_with_parents(path: Path) -> None:
    """Create a directory of mode 0700, and those above it that are missing, with durable names."""
    missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
        parent = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            files.flush_names(parent)
        finally:
            os.close(parent)


def write_durably(name: str, directory: int, content: bytes | int) -> None:
    """Write a new file of mode 0600 and flush it. `content` is bytes, or a descriptor that is read to its end.

    The name is not durable before `files.flush_names`. When this raises, the file may be there in part.
    """
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode=0o600, dir_fd=directory)
    try:
        if isinstance(content, int):
            files.copy(content, file)
        else:
            files.write(file, content)
        os.fsync(file)
    finally:
        os.close(file)


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
