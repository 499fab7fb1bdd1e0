"""The segments of each followed database since the image of its newest snapshot: the next one is built from them.

They are links to the files of the spool, which does not depend on them. Without one of them, or without the image,
the database is read. So they are kept in bounds, and forgotten when the daemon ends.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.backup.results import SinceImage
from backupd.follow.spool import BLOCK_BYTES
from backupd.format.manifest import Replayed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backupd.backup.results import KnownImage
    from backupd.follow.chain import Mark
    from backupd.follow.spool import Cut
    from backupd.format import SnapshotId

_READ_EVERY = timedelta(days=1)
_DIRECTORY = "since-image"
_LEAST_BYTES = 1 << 20
_MOST_BYTES = 64 << 20
_PART_OF_IMAGE = 4
"""A segment holds five times its size or so, all of which is read: with more of them, the database is read as fast."""


@dataclass(slots=True)
class _Kept:
    window: SnapshotId
    segments: deque[tuple[Cut, int]] = field(default_factory=deque)
    """With their sizes in bytes. Each continues the one before it."""
    size_bytes: int = 0
    image: KnownImage | None = None
    after: int = 0
    """The image has all commits up to this one."""
    is_too_much: bool = False
    """Whether there was more than is kept: then nothing is, until there is another image."""

    def is_continued_by(self, cut: Cut) -> bool:
        """Whether no commit is missing between what is kept and `cut`."""
        return self.window == cut.window and (not self.segments or cut.first <= self.segments[-1][0].last + 1)

    def reaches(self, commit: int) -> bool:
        """Whether no commit is missing between the image and this one."""
        if not self.segments:
            return commit == self.after
        return self.segments[0][0].first <= self.after + 1 and self.after <= commit <= self.segments[-1][0].last


class KeptSegments:
    """The segments that are kept, and the images that they continue. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._directories: dict[str, Path] = {}
        self._kept: dict[str, _Kept] = {}

    def use(self, name: str, spool: Path) -> None:
        """Keep segments of a database from now on, beside those in its `spool`; what an earlier daemon kept goes."""
        with self._lock:
            self._kept.pop(name, None)
            self._directories[name] = spool / _DIRECTORY
            remove_kept([spool])

    def clear(self) -> None:
        """Keep nothing more of any database."""
        for name in [*self._directories]:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Keep nothing more of a database that is not followed any more."""
        with self._lock:
            self._drop(name)
            self._directories.pop(name, None)

    def add(self, name: str, cut: Cut) -> None:
        """Keep a segment, which is in the spool still, as long as it may be needed."""
        with self._lock:
            directory, kept = self._directories.get(name), self._kept.get(name)
            if directory is None:
                return
            if kept is None or not kept.is_continued_by(cut):
                self._drop(name)
                kept = self._kept[name] = _Kept(cut.window)
            if kept.is_too_much or (kept.segments and cut.last <= kept.segments[-1][0].last):  # it was reported before
                return
            try:
                size_bytes = _link(Path(cut.file), directory)
            except OSError:  # a file system without links, or without room for one
                self._drop(name)
                return
            kept.segments.append((cut._replace(file=str(directory / Path(cut.file).name)), size_bytes))
            kept.size_bytes += size_bytes
            if kept.size_bytes > _limit(kept.image):
                self._drop(name)
                self._kept[name] = _Kept(cut.window, is_too_much=True)

    def end_window(self, name: str) -> None:
        """Keep nothing of a window that is over."""
        with self._lock:
            self._drop(name)

    def continues(self, name: str, window: SnapshotId, image: KnownImage | None, *, after: int) -> None:
        """Keep what comes after `image`, the newest one, which has all commits up to `after`; nothing without one."""
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or image is None:
                self._drop(name)
                if image is not None and name in self._directories:
                    self._kept[name] = _Kept(window, image=image, after=after)
                return
            if kept.window != window:
                return
            kept.image, kept.after, kept.is_too_much = image, after, False
            while kept.segments and kept.segments[0][0].last <= after:
                cut, size_bytes = kept.segments.popleft()
                kept.size_bytes -= size_bytes
                _unlink(cut)

    def since(self, name: str, mark: Mark) -> SinceImage | None:
        """Return the state after the commit of `mark`; None when it is not known.

        Once a day it is None anyway: so that the database itself is read.
        """
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or kept.image is None or kept.window != mark.window or not kept.reaches(mark.last):
                return None
            at = datetime.fromtimestamp(mark.at_ms / 1000, UTC)
            if not timedelta() <= at - kept.image.read_at < _READ_EVERY:  # or the clock was set back
                return None
            return SinceImage(
                image=kept.image,
                segments=tuple(cut.file for cut, _ in kept.segments if cut.first <= mark.last),
                after=kept.after,
                replayed=Replayed(window=mark.window, commit=mark.last),
                at=at,
            )

    def _drop(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        for cut, _ in kept.segments if kept else ():
            _unlink(cut)


def remove_kept(spools: Iterable[Path]) -> None:
    """Remove what an earlier daemon has kept in these spools: which images it continued is not known any more."""
    for spool in spools:
        shutil.rmtree(spool / _DIRECTORY, ignore_errors=True)


def _limit(image: KnownImage | None) -> int:
    return _MOST_BYTES if image is None else min(max(image.size_bytes // _PART_OF_IMAGE, _LEAST_BYTES), _MOST_BYTES)


def _link(file: Path, directory: Path) -> int:
    """Link a file into a directory, and return how many bytes it takes."""
    directory.mkdir(mode=0o700, exist_ok=True)
    link = directory / file.name
    with suppress(FileExistsError):
        os.link(file, link)
    return max(link.stat().st_size, BLOCK_BYTES)


def _unlink(cut: Cut) -> None:
    with suppress(OSError):
        Path(cut.file).unlink()
