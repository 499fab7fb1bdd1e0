"""What is kept of a repository between runs: written in one step, and believed only when it proves itself."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from backupd.errors import TargetUnwritableError
from backupd.format.pack import HASH_BYTES
from backupd.format.pagemap import image_digest, page_hashes
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import Manifest
    from backupd.format.pagemap import PageHashes

_MANIFEST, _PRIVATE, _HASHES = SNAPSHOT_SUFFIXES = (".json", ".private", ".hashes")
"""Of the files that belong to one snapshot."""


def manifest_name(snapshot_id: SnapshotId) -> str:
    """The file that holds a manifest as it is stored."""
    return f"{snapshot_id}{_MANIFEST}"


def private_name(snapshot_id: SnapshotId) -> str:
    """The file that holds the private part of an encrypted manifest, in clear."""
    return f"{snapshot_id}{_PRIVATE}"


def hashes_name(snapshot_id: SnapshotId) -> str:
    """The file that holds the page hashes of a snapshot, in page order."""
    return f"{snapshot_id}{_HASHES}"


class Cache:
    """Files by database and name. Losing one costs a request, so what cannot be read or written is no error."""

    def __init__(self, directory: Callable[[str], Path]) -> None:
        """`directory` gives that of a database, which exists; what it raises of a store passes through here."""
        self._directory = directory
        self._has_told = False

    def file(self, database: str, name: str) -> Path:
        """Where it is, or would be. Raises `TargetUnwritableError` when there is no room for a directory."""
        return self._directory(database) / name

    def read(self, database: str, name: str) -> bytes | None:
        """The content of a file, or None."""
        try:
            return self.file(database, name).read_bytes()
        except (OSError, TargetUnwritableError):
            return None

    def write(self, database: str, name: str, content: bytes) -> None:
        """Keep `content`, in place of what had that name."""
        with self._losing_is_fine():
            write_atomically(self.file(database, name), content)

    def link(self, database: str, name: str, source: Path) -> None:
        """Give `source`, a finished file of the spool, a second name here, in place of what had it."""
        with self._losing_is_fine():
            _link_atomically(source, self.file(database, name))

    def forget(self, database: str, is_stale: Callable[[Path], bool]) -> None:
        """Drop the files of which `is_stale` is true."""
        with self._losing_is_fine():
            for file in self._directory(database).iterdir():
                if is_stale(file):
                    file.unlink(missing_ok=True)

    @contextmanager
    def _losing_is_fine(self) -> Iterator[None]:
        try:
            yield
        except (OSError, TargetUnwritableError) as error:
            if not self._has_told:
                self._has_told = True
                log.info("nothing can be cached", reason=str(error))


def map_hashes(file: Path) -> PageHashes:
    """A file of page hashes as an array that stays on disk."""
    if file.stat().st_size == 0:
        return page_hashes(b"")
    return page_hashes(np.memmap(file, dtype=np.uint8, mode="r"))


def is_hashes_file(file: Path, manifest: Manifest) -> bool:
    """Whether `file` holds the page hashes of exactly this snapshot: its image digest is their digest."""
    try:
        if file.stat().st_size != manifest.page_count * HASH_BYTES:
            return False
    except FileNotFoundError:
        return False
    return image_digest(map_hashes(file)) == manifest.image_digest


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write a file of the cache. It needs no fsync: it proves itself when it is read."""
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)


def _link_atomically(source: Path, file: Path) -> None:
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        try:
            os.link(source, temporary)  # one file system: the spool is in the state directory too
        except OSError:
            shutil.copyfile(source, temporary)
        temporary.rename(file)
    finally:
        temporary.unlink(missing_ok=True)
