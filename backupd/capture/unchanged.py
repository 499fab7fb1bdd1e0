"""Whether a database file is as it was, by what `stat` says of it: reading it, or asking SQLite, would cost more.

Why equal evidence means equal content. Let m be the newest time stamp in the evidence, taken at time t with
m + 3 s < t, and let the same evidence be found later. A `write` or `truncate` after t stamps the file with the time of
the kernel, cut to what the file system stores: 2 s on FAT, 1 s on many servers, the tick of the kernel elsewhere. That
stamp is later than t - 2 s, and so later than m: the evidence would be another. SQLite's change counter alone would not
do: a transaction that outgrows the page cache writes into the file, and when it is rolled back the counter is what it
was, but a reader in between has seen pages that never were committed. Further:

- `touch -d` sets mtime back. It cannot set ctime, which is evidence too.
- A file server stamps with a clock of its own. That proves the same as long as it is not seconds behind ours: then the
  header of page 1 tells of commits, and only what is rolled back goes unnoticed.
- A clock that is set back lets a later write have an earlier stamp. `Stillness` compares the system's clock with one
  that cannot be set, and holds only while both have run alike.
- Another file under the same name has another inode. A hot journal that was rolled back was written into the file.
- A database may be written through a shared mapping (SQLite compiled with SQLITE_MMAP_READWRITE, which no distribution
  does): that stamps the file only when a clean page becomes dirty. The commit still changes the counter in
  page 1, which `Stillness` leaves to its caller to compare. What is rolled back had its journal created, written or
  deleted: that stamps the journal, which is evidence in the modes PERSIST and TRUNCATE, or, in the mode DELETE, the
  directory, which `Stillness` adds. In the mode MEMORY nothing tells; comparing with the backup API would.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_COARSEST_STAMP_NS = 3 * 10**9
_LONGEST_TICK_NS = 10**7
_TICK_NS = 3 * _LONGEST_TICK_NS
_CLOCKS_MAY_DIFFER_BY_SECONDS = 0.5
# The file comes last: if it is as it was then, so was what the log added to it a moment before. The other way round, an
# application that moves its log into the file and removes it in between would look like one that never had a log.
_PARTS = ("-wal", "-journal", "")


def fingerprint(path: Path | str, *, now: datetime) -> str | None:
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
    return " ".join(found) if _is_old(newest_ns, now) else None


def tells_later_writes(status: os.stat_result) -> bool:
    """Whether any write from now on gives the file another mtime than it has in `status`.

    A stamp that is not a multiple of 10 ms was not cut to a second or two: it is as fine as the tick of the kernel.
    """
    coarsest_ns = _TICK_NS if status.st_mtime_ns % _LONGEST_TICK_NS else _COARSEST_STAMP_NS
    return status.st_mtime_ns + coarsest_ns < time.time_ns()


class Stillness:
    """Evidence that nothing, not even a transaction that was rolled back, has touched a file since this was made."""

    def __init__(self, path: str) -> None:
        """`path` has no symbolic link in it."""
        self._path = path
        self._began_at = datetime.now(UTC)
        self._clock_ahead_seconds = _clock_ahead_seconds()
        self._found = self._look()

    def still_holds(self) -> bool:
        """Whether nothing has touched it; the caller has yet to see that the header of page 1 is the same."""
        if self._found is None or self._look() != self._found:
            return False
        return abs(_clock_ahead_seconds() - self._clock_ahead_seconds) < _CLOCKS_MAY_DIFFER_BY_SECONDS

    def _look(self) -> tuple[str, int, int] | None:
        found = fingerprint(self._path, now=self._began_at)
        try:
            directory = os.stat(os.path.dirname(self._path))
        except OSError:
            return None
        times_ns = (directory.st_mtime_ns, directory.st_ctime_ns)
        return (found, *times_ns) if found is not None and _is_old(max(times_ns), self._began_at) else None


def _is_old(newest_ns: int, now: datetime) -> bool:
    return newest_ns + _COARSEST_STAMP_NS < now.timestamp() * 10**9


def _clock_ahead_seconds() -> float:
    return time.time() - time.monotonic()


def _stat(path: str, *, is_optional: bool) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        if is_optional:
            return None
        raise
