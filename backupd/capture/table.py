"""The hashes of an image's pages in a file: 16 bytes for each page, in page order, zeros for one not seen yet."""

from __future__ import annotations

import mmap
import os
import shutil
from typing import TYPE_CHECKING

from blake3 import blake3

from backupd.errors import TargetUnwritableError
from backupd.format.pack import HASH_BYTES

if TYPE_CHECKING:
    from pathlib import Path

_UNSEEN = bytes(HASH_BYTES)


class HashTable:
    """A table that maps its file into memory, so that another process can read it."""

    def __init__(self, file: Path, page_count: int) -> None:
        """Make `file`, with no page seen. Raises `TargetUnwritableError`."""
        self._file = file
        self.page_count = page_count
        self.seen = 0
        self._hasher = blake3()  # one for all pages: making one takes a fifth as long as hashing a page
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._take_space(page_count)
        self._map = mmap.mmap(self._descriptor, page_count * HASH_BYTES)

    @property
    def file(self) -> Path:
        """Where the hashes are."""
        return self._file

    def hash_all(self, images: list[bytes]) -> list[bytes]:
        """The page hash of each image."""
        hasher, digests = self._hasher, []
        for image in images:
            hasher.reset()
            hasher.update(image)
            digests.append(hasher.digest(HASH_BYTES))
        return digests

    def run(self, first: int, count: int) -> bytes:
        """The hashes of `count` pages from page `first` on, joined."""
        return self._map[(first - 1) * HASH_BYTES : (first - 1 + count) * HASH_BYTES]

    def put(self, first: int, digests: bytes) -> None:
        """Record the joined hashes of pages from page `first` on."""
        start, end = (first - 1) * HASH_BYTES, (first - 1) * HASH_BYTES + len(digests)
        self.seen += count_unseen(self._map[start:end])
        self._map[start:end] = digests

    def resize(self, page_count: int) -> None:
        """Forget the pages beyond `page_count`, or make room for more. Raises `TargetUnwritableError`."""
        if page_count == self.page_count:
            return
        if page_count < self.page_count:
            cut = self.run(page_count + 1, self.page_count - page_count)
            self.seen -= len(cut) // HASH_BYTES - count_unseen(cut)
        else:
            self._take_space(page_count)
        # Shrinking cuts the file, so that it grows again with zeros.
        self._map.resize(page_count * HASH_BYTES)
        self.page_count = page_count

    def digest_behind(self, first_page: bytes) -> bytes:
        """BLAKE3 over `first_page` and the hashes of all other pages: stands for the content of the image."""
        with memoryview(self._map) as hashes:
            return blake3(first_page).update(hashes[HASH_BYTES:]).digest()

    def close(self) -> None:
        """Unmap the file, which stays."""
        self._map.close()
        os.close(self._descriptor)

    def _take_space(self, page_count: int) -> None:
        """Take the space at once: a full disk would otherwise be a SIGBUS later."""
        try:
            os.posix_fallocate(self._descriptor, 0, page_count * HASH_BYTES)
        except OSError as error:
            raise spool_full(self._file.parent, error) from error


def count_unseen(hashes: bytes) -> int:
    """How many of these joined hashes are of pages that have not been seen."""
    if _UNSEEN not in hashes:
        return 0
    return sum(hashes[at : at + HASH_BYTES] == _UNSEEN for at in range(0, len(hashes), HASH_BYTES))


def spool_full(spool: Path, error: OSError | None = None) -> TargetUnwritableError:
    """The error for a spool that takes no more."""
    reason = error.strerror if error else f"{shutil.disk_usage(spool).free >> 20} MiB are left"
    return TargetUnwritableError(
        f"the spool {spool} cannot take more pages: {reason}",
        hint="free some space there, or set state_dir to a larger disk",
    )
