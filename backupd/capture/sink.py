"""The VFS into which SQLite's backup writes: every page of the image comes by here, and none is kept on disk."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import apsw

from backupd.errors import SourceUnusableError
from backupd.format import lock_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    PagesWritten = Callable[[list[int], list[bytes]], object]
    """Takes page numbers (from 1), in the order of writing, and the page images."""

_VFS_NAME = "backupd-sink"
_SECTOR_BYTES = 4096
_COUNTER_OFFSET = 24
_COOKIE_OFFSET = 40
_VALID_FOR_OFFSET = 92


class _PageFile:
    """The destination's file: gathers pages until they are taken, and keeps page 1, whose header SQLite reads back."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._size = 0
        self._offsets: list[int] = []
        self._images: list[bytes] = []
        self.first_page = b""

    def take(self) -> tuple[list[int], list[bytes]]:
        """Numbers and images of the pages that were written since the last call, but for page 1."""
        taken = [offset // self._page_size + 1 for offset in self._offsets], self._images
        self._offsets, self._images = [], []
        return taken

    def xRead(self, amount: int, offset: int) -> bytes:
        return self.first_page[offset : offset + amount]

    def xWrite(self, data: bytes, offset: int) -> None:
        # Called for every page, so what can be done for many at once is done in `take` and after it.
        if offset:
            self._offsets.append(offset)
            self._images.append(data)
        else:
            self.first_page = data
        if offset >= self._size:
            self._size = offset + len(data)

    def xFileSize(self) -> int:
        return self._size

    def xTruncate(self, size: int) -> None:
        self._size = size

    def xSync(self, flags: int) -> None:
        pass

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xClose(self) -> None:
        pass

    def xSectorSize(self) -> int:
        return _SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:
        return 0

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False


class _SinkVFS(apsw.VFS):
    """A file system with one file in it."""

    def __init__(self, file: _PageFile) -> None:
        super().__init__(_VFS_NAME, "", maxpathname=64)
        self._file = file

    def xOpen(self, name: object, flags: list[int]) -> _PageFile:  # type: ignore[override]
        flags[1] = flags[0]
        return self._file

    def xDelete(self, filename: str, syncdir: bool) -> None:
        pass

    def xAccess(self, pathname: str, flags: int) -> bool:
        return False

    def xFullPathname(self, name: str) -> str:
        return name


def stream_pages(
    source: apsw.Connection,
    *,
    page_size: int,
    pages_per_step: int,
    pages_written: PagesWritten,
    stepped: Callable[[int], None] = lambda _: None,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> bytes:
    """Copy `source`, which has at least one page, into `pages_written`, and give page 1 back.

    `held` is what each step is taken in: it sees to it that all steps meet the same committed state, where no
    transaction around everything does. `pages_written` gets every page but page 1 and the lock-byte page, roughly in
    order, after each step; a page that comes twice replaces its first image. `stepped` then gets the number of pages
    that remain. An exception of any of them ends the copy and comes out of here. Raises `SourceUnusableError` when
    SQLite left a page out.
    """
    file = _PageFile(page_size)
    vfs = _SinkVFS(file)
    delivered = bytearray()
    destination = apsw.Connection("image", vfs=_VFS_NAME)
    try:
        destination.pragma("page_size", page_size)
        # No journal, no lock and hardly any cache: the destination's pager hands each page straight to the file.
        destination.pragma("journal_mode", "off")
        destination.pragma("synchronous", "off")
        destination.pragma("locking_mode", "exclusive")
        destination.pragma("cache_size", 10)
        with destination.backup("main", source, "main") as backup:
            while not backup.done:
                with held():
                    backup.step(pages_per_step)
                delivered.extend(bytes(backup.page_count + 1 - len(delivered)))
                numbers, images = file.take()
                _mark(delivered, numbers)
                pages_written(numbers, images)
                stepped(backup.remaining)
    finally:
        destination.close()
        vfs.unregister()
    numbers, images = file.take()  # what the destination held back until its end
    _mark(delivered, numbers)
    pages_written(numbers, images)
    _reject_missing_pages(delivered, page_size)
    return file.first_page


def _mark(delivered: bytearray, numbers: list[int]) -> None:
    for number in numbers:
        delivered[number] = 1


def _reject_missing_pages(delivered: bytearray, page_size: int) -> None:
    """Every page has to come but page 1, which is given back, and the one with the lock byte. There is no page 0."""
    missing = delivered.count(0) - 2 - (lock_page(page_size) < len(delivered))
    if missing:
        raise SourceUnusableError(
            f"SQLite left out {missing} of {len(delivered) - 1} pages",
            hint="the file was probably truncated during the capture; try again",
        )


def complete_first_page(page: bytes, *, schema_version: int, writer_version: int, counter: int) -> bytes:
    """Page 1 as a function of the content: the backup gives it a schema cookie and a change counter of its own.

    Source: https://www.sqlite.org/fileformat2.html#the_database_header, offsets 24, 40, 92 and 96.
    """
    image = bytearray(page)
    image[_COUNTER_OFFSET : _COUNTER_OFFSET + 4] = counter.to_bytes(4, "big")
    image[_COOKIE_OFFSET : _COOKIE_OFFSET + 4] = (schema_version & 0xFFFFFFFF).to_bytes(4, "big")
    image[_VALID_FOR_OFFSET : _VALID_FOR_OFFSET + 8] = counter.to_bytes(4, "big") + writer_version.to_bytes(4, "big")
    return bytes(image)
