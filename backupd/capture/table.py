"""The table of an image's page hashes, in a file: 16 bytes for each page, in page order, zeros for one not seen yet."""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from backupd.errors import TargetUnwritableError
from backupd.format import lock_page
from backupd.format.pack import HASH_BYTES, page_hash
from backupd.system.files import free_bytes, take_space

if TYPE_CHECKING:
    from pathlib import Path

_UNSEEN = bytes(HASH_BYTES)


class Pages(NamedTuple):
    """Some pages of an image: numbers from 1, page hashes, and images, in the same order."""

    numbers: list[int]
    digests: list[bytes]
    images: list[bytes]

    @property
    def first_of_run(self) -> int:
        """The first number if the pages are consecutive, otherwise 0."""
        numbers = self.numbers
        is_run = bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        return numbers[0] if is_run else 0

    def are_in(self, hashes: bytes | mmap.mmap) -> bool:
        """Whether the pages are consecutive, and `hashes`, a table of joined page hashes, has them like this."""
        start = (self.first_of_run - 1) * HASH_BYTES
        return start >= 0 and hashes[start : start + len(self.digests) * HASH_BYTES] == b"".join(self.digests)


class HashTable:
    """The page hashes of one image, mapped into memory from a file that another process can read."""

    def __init__(self, file: Path | None, page_count: int) -> None:
        """Create `file`, or use memory alone when it is None. Raises `TargetUnwritableError`."""
        self.file = file
        self.page_count = page_count
        self.seen = 0
        self._hasher = blake3()  # one for all pages: creating one takes a fifth of the time of hashing a page
        self._descriptor = -1
        if file is not None:
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._take_space(file, page_count)
        try:
            self._map = mmap.mmap(self._descriptor, page_count * HASH_BYTES)
        except OSError as error:
            raise TargetUnwritableError(
                f"{file or 'the table of page hashes'} cannot be mapped into memory: {error.strerror}",
                hint="set state_dir to a directory on a local disk, and check that memory is left",
            ) from error

    def run(self, first: int, count: int) -> bytes:
        """The hashes of `count` pages from page `first` on, joined."""
        return self._map[(first - 1) * HASH_BYTES : (first - 1 + count) * HASH_BYTES]

    def put(self, first: int, digests: bytes) -> None:
        """Record the joined hashes of pages from page `first` on."""
        start, end = (first - 1) * HASH_BYTES, (first - 1) * HASH_BYTES + len(digests)
        self.seen += count_unseen(self._map[start:end])
        self._map[start:end] = digests

    def changed(self, numbers: list[int], images: list[bytes]) -> Pages:
        """Return those of the pages that differ from what is recorded."""
        pages = Pages(numbers, self._hash_all(images), images)
        if first := pages.first_of_run:
            # Nearly all pages come in runs that are new or as before: one comparison for all.
            before = self.run(first, len(numbers))
            if b"".join(pages.digests) == before:
                return Pages([], [], [])
            if not any(before):
                return pages
        changed = [page for page in zip(*pages, strict=True) if self.run(page[0], 1) != page[1]]
        return Pages(*map(list, zip(*changed, strict=True))) if changed else Pages([], [], [])

    def record(self, numbers: list[int], images: list[bytes]) -> Pages:
        """Record the pages, and return those that differ from what was recorded before."""
        changed = self.changed(numbers, images)
        if first := changed.first_of_run:
            self.put(first, b"".join(changed.digests))
        else:
            for number, digest, _ in zip(*changed, strict=True):
                self.put(number, digest)
        return changed

    def put_lock_page(self, page_size: int) -> None:
        """Record zeros for the lock-byte page, which SQLite never writes, if the image reaches that far."""
        lock = lock_page(page_size)
        if lock <= self.page_count:
            self.put(lock, page_hash(bytes(page_size)))

    def resize(self, page_count: int) -> None:
        """Forget the pages beyond `page_count`, or make room for more. Raises `TargetUnwritableError`."""
        if page_count == self.page_count:
            return
        if page_count < self.page_count:
            cut = self.run(page_count + 1, self.page_count - page_count)
            self.seen -= len(cut) // HASH_BYTES - count_unseen(cut)
        elif self.file is not None:
            self._take_space(self.file, page_count)
        # Shrinking cuts the file, so that it grows again with zeros.
        self._map.resize(page_count * HASH_BYTES)
        self.page_count = page_count

    def digest_with(self, first_page: bytes) -> bytes:
        """BLAKE3 over `first_page` and the hashes of all other pages, which stands for the content of the image."""
        with memoryview(self._map) as hashes:
            return blake3(first_page).update(hashes[HASH_BYTES:]).digest()

    def close(self) -> None:
        """Unmap the file, which stays."""
        self._map.close()
        if self.file is not None:
            os.close(self._descriptor)

    def _hash_all(self, images: list[bytes]) -> list[bytes]:
        hasher, digests = self._hasher, []
        for image in images:
            hasher.reset()
            hasher.update(image)
            digests.append(hasher.digest(HASH_BYTES))
        return digests

    def _take_space(self, file: Path, page_count: int) -> None:
        """Allocate the space at once: a full disk would otherwise be a SIGBUS later."""
        try:
            take_space(self._descriptor, page_count * HASH_BYTES)
        except OSError as error:
            raise spool_full(file.parent, error) from error


def count_unseen(hashes: bytes) -> int:
    """Count the pages among these joined hashes that have not been seen."""
    if _UNSEEN not in hashes:
        return 0
    return sum(hashes[at : at + HASH_BYTES] == _UNSEEN for at in range(0, len(hashes), HASH_BYTES))


def spool_full(spool: Path, error: OSError | None = None) -> TargetUnwritableError:
    """The error for a spool that cannot take more pages."""
    reason = error.strerror if error else f"{(free_bytes(spool) or 0) >> 20} MiB are left"
    return TargetUnwritableError(
        f"the spool {spool} cannot take more pages: {reason}",
        hint="free some space there, or set state_dir to a larger disk",
    )
