"""A store whose immutable objects, or parts of them, are kept on this machine once they were read."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING

from blake3 import blake3

from backupd.store import StoreWrapper
from backupd.store.keys import PackKey, SegmentKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backupd.store import Store

_CHECKSUM_BYTES = 16
_MOST_BYTES = 256 << 20
_KEPT_OF_FULL = 0.75
_COUNTED_AFTER_BYTES = 16 << 20


class CachedStore(StoreWrapper):
    """Reads packs and segments once: their keys have the SHA-256 of what they hold, so they never change.

    The cache holds what the store has, encrypted if that is. Several processes may share its directory: a file appears
    whole, begins with a checksum, and counts as absent when that is wrong. Those that were not used for longest are
    removed when there are too many. A cache that cannot be written costs only time: `on_failure` gets the reason.
    """

    def __init__(
        self, store: Store, directory: Path, *, on_failure: Callable[[str], None], most_bytes: int = _MOST_BYTES
    ) -> None:
        """Keep at most `most_bytes`, and for each process 16 MiB more, in `directory`, which exists."""
        super().__init__(store)
        self._directory = directory
        self._on_failure = on_failure
        self._most_bytes = most_bytes
        self._uncounted_bytes = _COUNTED_AFTER_BYTES  # others may have filled it
        self._lock = threading.Lock()

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Read one object, as `Store.get`."""
        return self._cached(key, "whole", lambda: super(CachedStore, self).get(key, limit_bytes=limit_bytes))

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """Read a part of one object, as `Store.get_range`."""
        return self._cached(
            key, f"{offset}+{length}", lambda: super(CachedStore, self).get_range(key, offset=offset, length=length)
        )

    def _cached(self, key: str, part: str, read: Callable[[], bytes]) -> bytes:
        if PackKey.parse(key) is None and SegmentKey.parse(key) is None:
            return read()
        file = self._directory / sha256(f"{key} {part}".encode()).hexdigest()[:32]
        content = _read(file)
        if content is None:
            content = read()
            try:
                self._write(file, content)
            except OSError as error:
                self._on_failure(str(error))
        return content

    def _write(self, file: Path, content: bytes) -> None:
        temporary = file.with_name(f"{file.name}.{os.urandom(4).hex()}.tmp")
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as new:
                new.write(_checksum(content))
                new.write(content)
            temporary.rename(file)
        finally:
            temporary.unlink(missing_ok=True)
        with self._lock:
            self._uncounted_bytes += len(content)
            if self._uncounted_bytes >= _COUNTED_AFTER_BYTES:
                self._uncounted_bytes = 0
                self._remove_oldest()

    def _remove_oldest(self) -> None:
        """Remove what was not used for longest, if there is too much."""
        files = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another process has removed it
                    facts = entry.stat(follow_symlinks=False)
                    files.append((facts.st_mtime_ns, facts.st_size, entry.path))
        left = sum(size for _, size, _ in files)
        if left <= self._most_bytes:
            return
        for _, size, path in sorted(files):
            if left <= self._most_bytes * _KEPT_OF_FULL:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108  (a plain string)
            left -= size


def _read(file: Path) -> bytes | None:
    """Return what a file of the cache holds, and mark it as used; None when it is missing or damaged."""
    try:
        with file.open("rb") as opened:
            content = opened.read()
            os.utime(opened.fileno())
    except OSError:
        return None
    if _checksum(content[_CHECKSUM_BYTES:]) != content[:_CHECKSUM_BYTES]:
        return None
    return content[_CHECKSUM_BYTES:]


def _checksum(content: bytes) -> bytes:
    return blake3(content).digest(length=_CHECKSUM_BYTES)
