"""Whether a database file is as it was, by what `stat` says of it: reading it, or asking SQLite, would cost more.

Why equal evidence means equal content. Let m be the newest time stamp in the evidence, let the clock that stamps the
file have gone on by more than 3 s since m at a time t, and let the same evidence be found after t. A `write` or
`truncate` after t stamps the file with that clock, cut to what the file system stores: 2 s on FAT, 1 s on many servers,
the tick of the kernel elsewhere. The stamp would be later than m, and the evidence another one. That the clock has gone
on so far is known in `Stillness` because the evidence has been the same for more than 3 s, whatever that clock shows,
and in `fingerprint` because it is this machine's. SQLite's change counter alone would not do: a transaction that
outgrows the page cache writes into the file, and when it is rolled back the counter is what it was, but a reader in
between has seen pages that never were committed. Further:

- `touch -d` sets mtime back. It cannot set ctime, which is evidence too.
- A clock that is set back lets a later write have an earlier stamp. `Stillness` compares the system's clock with one
  that cannot be set, and holds only while both have run alike.
- Another file under the same name has another inode. A hot journal that was rolled back was written into the file.
- A database may be written through a shared mapping (SQLite compiled with SQLITE_MMAP_READWRITE, which no distribution
  does): that stamps the file only when a clean page becomes dirty. The commit still changes the counter in page 1,
  which `Stillness` leaves to its caller to compare. What is rolled back had its journal created, written or deleted:
  that stamps the journal, which is evidence in the modes PERSIST and TRUNCATE, or, in the mode DELETE, the directory,
  which `Stillness` adds. In the mode MEMORY nothing tells; comparing with the backup API would.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

_COARSEST_STAMP_NS = 3 * 10**9
_LONGEST_TICK_NS = 10**7
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
    stamped = _stamped(path)
    if stamped is None:
        return None
    text, newest_ns = stamped
    return text if newest_ns + _COARSEST_STAMP_NS < now.timestamp() * 10**9 else None


def _stamped(path: Path | str) -> tuple[str, int] | None:
    """The evidence, and the newest time stamp in it."""
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
    return " ".join(found), newest_ns


TICK_SECONDS = 0.03
"""Longer than the kernel's, by which fine time stamps are counted."""


def has_fine_stamp(status: os.stat_result) -> bool:
    """Whether the file system keeps time stamps as fine as the tick of the kernel: this one was not cut to a second."""
    return status.st_mtime_ns % _LONGEST_TICK_NS != 0


class Stillness:
    """Watches one file: whether anything, even a transaction that was rolled back, has touched it during a reading."""

    def __init__(self, path: str) -> None:
        """`path` has no symbolic link in it."""
        self._path = path
        self._found: tuple[str, int, int] | None = None
        self._since = self._clock_ahead_seconds = 0.0
        self._is_proof = False

    def begin(self) -> None:
        """A reading begins now."""
        found, now = self._look(), time.monotonic()
        if found != self._found or not self._has_clock_run_alike():
            self._found, self._since, self._clock_ahead_seconds = found, now, _clock_ahead_seconds()
        self._is_proof = found is not None and now - self._since > _COARSEST_STAMP_NS / 10**9

    def still_holds(self) -> bool:
        """Whether nothing has touched the file since; the caller has yet to see that the header of page 1 is the same.

        Never before the evidence was the same for three seconds when the reading began.
        """
        return self._is_proof and self._look() == self._found and self._has_clock_run_alike()

    def _has_clock_run_alike(self) -> bool:
        return abs(_clock_ahead_seconds() - self._clock_ahead_seconds) < _CLOCKS_MAY_DIFFER_BY_SECONDS

    def _look(self) -> tuple[str, int, int] | None:
        stamped = _stamped(self._path)
        try:
            directory = os.stat(os.path.dirname(self._path))
        except OSError:
            return None
        return None if stamped is None else (stamped[0], directory.st_mtime_ns, directory.st_ctime_ns)


def _clock_ahead_seconds() -> float:
    return time.time() - time.monotonic()


def _stat(path: str, *, is_optional: bool) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        if is_optional:
            return None
        raise
