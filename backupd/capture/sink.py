"""The sink of a capture: a VFS into which SQLite's backup writes, so that every page is seen and none is kept on disk.

Page 1 comes last. The backup has put counters of its own into it, so that it is completed here from the content.
"""

from __future__ import annotations

import struct
from contextlib import nullcontext
from typing import TYPE_CHECKING

import apsw

from backupd.capture.table import BLOCK_BYTES, mark
from backupd.errors import SourceUnusableError
from backupd.format import lock_page

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    PagesWritten = Callable[[list[int], list[bytes]], object]
    """Takes page numbers (from 1), in the order of writing, and the page images."""

_VFS_NAME = "backupd-sink"
_WINDOW_BYTES = 32 << 20
"""How much of the source is mapped at most. A multiple of what the kernel reads and maps at once, up to 2 MiB: pages
that were mapped twice would count as often used, and push out those of the application."""

_SECTOR_BYTES = 4096
_COUNTER_OFFSET = 24
_COOKIE_OFFSET = 40
_VALID_FOR_OFFSET = 92
_RESERVED_BYTES_OFFSET = 20
_CHECKSUM_BYTES = 8
_MODULUS = 1 << 32


class _PageFile:
    """The file that the backup writes: gathers pages until `take`, and keeps page 1, whose header SQLite reads back."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._size = 0
        self._offsets: list[int] = []
        self._images: list[bytes] = []
        self.first_page = b""

    def take(self, pages_per_block: int = 1) -> tuple[list[int], list[bytes]]:
        """Return numbers and images of the pages written since the last call, except page 1.

        Those after the end of a block are left to the next call, so that it gets their block whole.
        """
        numbers = [offset // self._page_size + 1 for offset in self._offsets]
        end = len(numbers) - numbers[-1] % pages_per_block if numbers else 0
        images = self._images[:end] if end > 0 else []
        self._offsets, self._images = self._offsets[len(images) :], self._images[len(images) :]
        return numbers[: len(images)], images

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
    """Copy `source`, which has at least one page, into `pages_written`, and return page 1.

    Each step runs inside the context `held`, which makes all steps see one committed state where no transaction spans
    them. `pages_written` gets the pages, roughly in order, except page 1 and the lock-byte page; a page that comes
    twice replaces its first image. `stepped` then gets the number of pages that remain. An exception from
    any of them ends the copy and propagates. Raises `SourceUnusableError` when SQLite left a page out.
    """
    file = _PageFile(page_size)
    vfs = _SinkVFS(file)
    passed = _PassedPart(source)
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
                numbers, images = file.take(BLOCK_BYTES // page_size)
                mark(delivered, numbers)
                pages_written(numbers, images)
                passed.move_to((backup.page_count - backup.remaining) * page_size)
                stepped(backup.remaining)
    finally:
        destination.close()
        vfs.unregister()
    numbers, images = file.take()  # what was left, and what the destination wrote only when it was closed
    mark(delivered, numbers)
    pages_written(numbers, images)
    _reject_missing_pages(delivered, page_size)
    return file.first_page


class _PassedPart:
    """The part of the source that has been copied: keeps what SQLite has mapped of it from filling the memory."""

    def __init__(self, source: apsw.Connection) -> None:
        self._source = source
        self._window = 0

    def move_to(self, position_bytes: int) -> None:
        """Unmap what comes before `position_bytes` when a window has been passed; the page cache keeps it.

        Another limit makes SQLite map the file again, of which nothing is resident then. Source: SQLITE_FCNTL_MMAP_SIZE
        in os_unix.c. Without any mapping a gigabyte would take 0.4 s of CPU more, for a system call each page.
        """
        window = position_bytes // _WINDOW_BYTES
        if window != self._window:
            self._window = window
            limit_bytes = self._source.pragma("mmap_size")
            self._source.pragma("mmap_size", limit_bytes ^ 1 if limit_bytes else 0)


def _reject_missing_pages(delivered: bytearray, page_size: int) -> None:
    """Refuse an image that lacks a page other than page 1, which is returned, and the lock-byte page (no page 0)."""
    missing = delivered.count(0) - 2 - (lock_page(page_size) < len(delivered))
    if missing:
        raise SourceUnusableError(
            f"SQLite left out {missing} of {len(delivered) - 1} pages",
            hint="the file was probably truncated during the capture; try again",
        )


def completed_first_page(
    page: bytes, *, schema_version: int, writer_version: int, digest_of_image: Callable[[bytes], bytes]
) -> bytes:
    """Page 1 with a change counter that differs when the content does, so that no cache mistakes one for the other.

    `digest_of_image` gives the digest of the image with a page 1, the other pages being known. A page that has the
    checksum of SQLite's checksum VFS gets a new one.
    """
    blank = with_counters(page, schema_version=schema_version, writer_version=writer_version, counter=0)
    # Neither the API's page nor the log shows the counter that the application's checksum was made with.
    if has_checksum := has_page_checksum(blank):
        blank = blank[:-_CHECKSUM_BYTES] + bytes(_CHECKSUM_BYTES)
    counter = int.from_bytes(digest_of_image(blank)[:4], "big") or 1
    completed = with_counters(blank, schema_version=schema_version, writer_version=writer_version, counter=counter)
    return with_page_checksum(completed) if has_checksum else completed


def with_counters(page: bytes, *, schema_version: int, writer_version: int, counter: int) -> bytes:
    """Page 1 with these values in place of those that SQLite's backup gives it: they do not depend on the content.

    Source: https://www.sqlite.org/fileformat2.html#the_database_header, offsets 24, 40, 92 and 96.
    """
    image = bytearray(page)
    image[_COUNTER_OFFSET : _COUNTER_OFFSET + 4] = counter.to_bytes(4, "big")
    image[_COOKIE_OFFSET : _COOKIE_OFFSET + 4] = (schema_version & 0xFFFFFFFF).to_bytes(4, "big")
    image[_VALID_FOR_OFFSET : _VALID_FOR_OFFSET + 8] = counter.to_bytes(4, "big") + writer_version.to_bytes(4, "big")
    return bytes(image)


def has_page_checksum(first_page: bytes) -> bool:
    """Whether page 1 has the checksum of SQLite's checksum VFS, whatever its change counter was when that was made.

    A page that reserves 8 bytes and is random looks so once in 2^32 times. The checksum is the last 8 bytes of a page.
    An application with that VFS gets an I/O error for a page whose checksum is wrong, and page 1 of an image is never
    the one that the application wrote: the backup API gives it counters of its own.
    Source: https://www.sqlite.org/cksumvfs.html and ext/misc/cksumvfs.c.
    """
    if first_page[_RESERVED_BYTES_OFFSET] != _CHECKSUM_BYTES:
        return False
    found = struct.unpack("<2I", first_page[-_CHECKSUM_BYTES:])
    blank, one = (_checksum_with_counter(first_page, number) for number in (0, 1))
    # The sums are linear: a counter adds it times a slope to each, and one of both slopes is odd for every page size.
    slopes = [(with_one - without) % _MODULUS for with_one, without in zip(one, blank, strict=True)]
    rests = [(wanted - without) % _MODULUS for wanted, without in zip(found, blank, strict=True)]
    odd = 0 if slopes[0] % 2 else 1
    counter = rests[odd] * pow(slopes[odd], -1, _MODULUS)
    return all((counter * slope - rest) % _MODULUS == 0 for slope, rest in zip(slopes, rests, strict=True))


def with_page_checksum(page: bytes) -> bytes:
    """The page with the checksum of its content in its last 8 bytes."""
    return page[:-_CHECKSUM_BYTES] + struct.pack("<2I", *_checksum(page))


def _checksum_with_counter(first_page: bytes, counter: int) -> tuple[int, int]:
    """The checksum of page 1 with this change counter, in machine order, in both places."""
    image = bytearray(first_page)
    for offset in (_COUNTER_OFFSET, _VALID_FOR_OFFSET):
        image[offset : offset + 4] = counter.to_bytes(4, "little")
    return _checksum(bytes(image))


def _checksum(page: bytes) -> tuple[int, int]:
    """Two running sums over the little-endian words of the page, without its checksum."""
    words = struct.unpack_from(f"<{len(page) // 4 - 2}I", page)
    first = second = 0
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) % _MODULUS
        second = (second + right + first) % _MODULUS
    return first, second
