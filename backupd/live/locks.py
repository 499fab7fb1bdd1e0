"""Which processes hold SQLite's locks on a database, without touching any of them.

Source: https://www.sqlite.org/src/file/src/os_unix.c, "Posix Advisory Locking": the bytes from 2^30 of the database,
and bytes 120 to 128 of its `-shm`. A connection in WAL mode always holds one, in rollback mode only while it works.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from backupd.capture.files import FLOCK, LOCK_BYTES

if TYPE_CHECKING:
    from pathlib import Path

_INDEX_LOCKS = (120, 9)


def holders(database: Path) -> set[int]:
    """Ids of processes that have locks on `database`; 0 stands for one in another container.

    Must not be called while this process has a connection to it: closing the file would drop that one's locks.
    """
    index = database.with_name(f"{database.name}-shm")
    return _holders(database, *LOCK_BYTES) | _holders(index, *_INDEX_LOCKS)


def _holders(file: Path, start: int, length: int) -> set[int]:
    try:
        # Another user may have put a link to a device there, or a named pipe.
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return set()
    try:
        found: set[int] = set()
        end = start + length
        while start < end:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, end - start, 0)
            kind, _, first, held, process = struct.unpack(FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
            if kind == fcntl.F_UNLCK:
                break
            found.add(process)
            start = first + held if held else end
        return found
    finally:
        os.close(descriptor)
