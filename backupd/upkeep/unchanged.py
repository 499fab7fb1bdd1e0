"""Whether a database file is as it was, by what `stat` says of it: asking SQLite would take a process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

# Time stamps are as coarse as the file system likes: 2 s on FAT, 1 s on many servers, the tick of the kernel elsewhere.
# What was written within this before the look may be followed by another write with the same stamp.
_COARSEST_STAMP_NS = 3 * 10**9
# The file comes last: if it is as it was then, so was what the log added to it a moment before. The other way round, an
# application that moves its log into the file and removes it in between would look like one that never had a log.
_PARTS = ("-wal", "-journal", "")


def fingerprint(path: Path, *, now: datetime) -> str | None:
    """What tells the state of the database at `path` at `now` (aware) from any other, without reading it, or None.

    `now` is a moment just before the call. The fingerprint names the file (device, inode) and, of the file and its log,
    size and times of change. A write sets those; of the file, also after `touch -d`, because the time of the last
    change of the inode cannot be set. None while the newest of them is not older than the coarsest time stamp, or lies
    in the future. An empty log counts as none: looking makes one.
    """
    found = []
    newest_ns = 0
    file = os.path.realpath(path)  # SQLite keeps the log beside the file, not beside a symbolic link to it
    try:
        for part in _PARTS:
            stat = _stat(f"{file}{part}", is_optional=bool(part))
            if stat is None or (part and not stat.st_size):
                found.append("-")
                continue
            # SQLite as root gives a log its owner each time it opens one, and only looking changes the inode then.
            times_ns = (stat.st_mtime_ns,) if part else (stat.st_mtime_ns, stat.st_ctime_ns)
            newest_ns = max(newest_ns, *times_ns)
            found.append(":".join(map(str, (stat.st_dev, stat.st_ino, stat.st_size, *times_ns))))
    except OSError:
        return None
    return " ".join(found) if newest_ns + _COARSEST_STAMP_NS < now.timestamp() * 10**9 else None


def _stat(path: str, *, is_optional: bool) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116  (with a suffix, this is no Path yet)
    except FileNotFoundError:
        if is_optional:
            return None
        raise
