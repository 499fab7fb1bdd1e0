"""SQLite files below a directory, found by their content and not by their names."""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

_MAGIC = b"SQLite format 3\x00"
_MOST_LEVELS = 10
_MOST_SECONDS = 20.0
_SIDE_FILES = ("-wal", "-shm", "-journal")
_KEPT_BY_RESTORE = ".backupd-partial"
_ASIDE = ".before-restore-"
# Caches and working copies of tools: their SQLite files are not worth a backup.
_SKIPPED_DIRECTORIES = frozenset(
    {
        *(".git", ".hg", ".svn", ".cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".tox", ".venv"),
        *("__pycache__", "node_modules", "site-packages"),
    }
)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The SQLite files that were found, in the order of their paths, and what could not be read.

    `unfinished` says why the search ended early, or is None.
    """

    files: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    unfinished: str | None


def find_sqlite_files(
    root: Path,
    *,
    without: Collection[Path] = (),
    most_levels: int = _MOST_LEVELS,
    most_seconds: float = _MOST_SECONDS,
    seconds: Callable[[], float] = time.monotonic,
) -> SearchResult:
    """Find every file below `root`, an existing directory, that begins like an SQLite database.

    Symbolic links below `root` are not followed. Left out are SQLite's own side files, what a restore kept, caches of
    tools, the kernel's file systems, and the directories `without` (absolute).
    """
    search = _Search({os.path.realpath(path) for path in without}, most_levels, seconds() + most_seconds, seconds)
    return search.below(root)


class _Search:
    def __init__(
        self, without: Collection[str], most_levels: int, ends_at: float, seconds: Callable[[], float]
    ) -> None:
        self._without = without
        self._most_levels = most_levels
        self._ends_at = ends_at
        self._seconds = seconds
        self._files: list[Path] = []
        self._unreadable: list[Path] = []
        self._unfinished: str | None = None

    def below(self, root: Path) -> SearchResult:
        # Breadth first: if the time runs out, the files nearest to the top are found.
        waiting = deque([(root, 0)])
        while waiting:
            directory, level = waiting.popleft()
            if self._seconds() > self._ends_at:
                self._unfinished = f"the search took too long, and ended before {directory}"
                break
            inner = self._scan(directory)
            if inner and level == self._most_levels:
                self._unfinished = f"nothing was searched more than {level} directories deep"
            else:
                waiting.extend((each, level + 1) for each in inner)
        return SearchResult(tuple(sorted(self._files)), tuple(self._unreadable), self._unfinished)

    def _scan(self, directory: Path) -> list[Path]:
        """Collect the SQLite files in one directory; returns the directories in it."""
        inner = []
        try:
            with os.scandir(directory) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError:
            self._unreadable.append(directory)
            return []
        for entry in found:
            path = directory / entry.name
            try:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    if self._is_searched(path):
                        inner.append(path)
                elif stat.S_ISREG(status.st_mode) and status.st_size >= len(_MAGIC) and _is_database(path):
                    self._files.append(path)
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError:
                self._unreadable.append(path)
        return inner

    def _is_searched(self, directory: Path) -> bool:
        if directory.name in _SKIPPED_DIRECTORIES or str(directory) in {"/proc", "/sys", "/dev"}:
            return False
        return _KEPT_BY_RESTORE not in directory.name and os.path.realpath(directory) not in self._without


def _is_database(path: Path) -> bool:
    if path.name.endswith(_SIDE_FILES) or _ASIDE in path.name:
        return False
    # O_NONBLOCK because another program may put a named pipe in the file's place in this moment.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, len(_MAGIC)) == _MAGIC
    finally:
        os.close(descriptor)
