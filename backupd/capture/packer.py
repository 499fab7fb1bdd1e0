"""The packer: hashes the pages of an image, compares them with the base, and stores what changed in packs in the spool.

A `Packer` takes the pages of one image. For each base it has a `Stream`, which gathers the pages that differ in a
`_RawPack`, and hands a full one to the `PackWriter`, whose threads compress it into a file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from operator import gt
from typing import TYPE_CHECKING

from backupd.capture.table import HashTable, Pages, mark, spool_full
from backupd.concurrency import WorkerThreads
from backupd.errors import SourceUnusableError
from backupd.format.pack import HASH_BYTES, PackEncoder, index_hash
from backupd.system.files import has_room

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    from backupd.capture.table import KnownBlocks

_WORKERS = 2
_RAW_PACKS_IN_MEMORY = 2
"""Those that are being compressed: one more is filled meanwhile, and takes less time for it."""

_POLL_SECONDS = 0.05
_SPOOL_RESERVE_BYTES = 64 << 20
_RAW_PACK_BYTES = 8 << 20
"""Pages go into one pack until they fill this. Larger packs waste bytes when few of their pages live on."""


class Packer:
    """Takes pages of an image, and stores in each stream what that stream's base does not have.

    Pages may come as often as they like, and the image may grow and shrink meanwhile: the result is the last image of
    each page up to the last page count.
    """

    def __init__(
        self,
        page_size: int,
        page_count: int,
        streams: list[Stream],
        writer: PackWriter,
        file: Path,
        known: KnownBlocks | None = None,
    ) -> None:
        """`file` becomes the page hashes of the image, 16 bytes a page; `page_count` is at least 1.

        `known` are the blocks of one of the bases.
        """
        self.page_size = page_size
        self.table = HashTable(file, page_count, page_size=page_size, known=known)
        self._streams = streams
        self._writer = writer

    def resize(self, page_count: int) -> None:
        """Set the number of pages of the image, at least 1."""
        self.table.resize(page_count)
        for stream in self._streams:
            stream.cut(page_count)

    def add(self, numbers: list[int], images: list[bytes]) -> int:
        """Take some pages of the image, in the order of writing; a page that comes again replaces its earlier image.

        Returns how many of them differ from when they came before.
        """
        pages = self.table.record(numbers, images)
        for stream in self._streams:
            stream.offer(pages, self._writer)
        return len(pages.numbers)

    def wait(self) -> None:
        """Wait until nothing is being compressed. Raises what a worker failed with."""
        self._writer.wait()

    def finish(self) -> None:
        """Send the last packs. Raises `SourceUnusableError` when a page never came."""
        if self.table.seen != self.table.page_count:
            raise SourceUnusableError(
                f"{self.table.seen} of {self.table.page_count} pages could be read",
                hint="the file was probably truncated during the capture; try again",
            )
        for stream in self._streams:
            stream.finish(self.page_size, self.table.page_count, self._writer)
        self._writer.close()
        self.table.close()


class Stream:
    """The pages that differ from one base, on their way to every store that has this base.

    `expected` holds the base's page hashes, with zeros for pages that must be stored whatever they hold (a pack that
    held them is gone); pages of `relocate` leave their pack if the database has changed at all.
    """

    def __init__(self, number: int, expected: bytes | mmap.mmap, relocate: frozenset[int], spool: Path) -> None:
        self._number = number
        self._expected = expected
        self._relocate = relocate
        self._packs = 0
        self._raw: _RawPack | None = None
        self._stored = bytearray()  # by page number
        self._aside = _PagesAside(spool / f"relocated-{number}") if relocate else None

    def offer(self, pages: Pages, writer: PackWriter) -> None:
        """Store those of the pages that the base does not have, and put aside those that have to be relocated.

        A page that was stored before is stored again: a later pack wins over an earlier one, and over the base.
        """
        if not self._expected:
            self._store(pages, writer)
        elif self._needs_any(pages):
            differing = []
            for number, page_hash, image in zip(*pages, strict=True):
                if self._differs(number, page_hash):
                    differing.append((number, page_hash, image))
                elif self._aside is not None and number in self._relocate:
                    self._aside.put(number, page_hash, image)
            self._store(Pages.of(differing), writer)

    def _needs_any(self, pages: Pages) -> bool:
        """Whether any of these pages may have to be stored or put aside. Most of them are those of the base."""
        if self._relocate or not pages.are_in(self._expected):
            return bool(pages.numbers)
        return 1 in self._stored[pages.numbers[0] : pages.numbers[-1] + 1]

    def _differs(self, number: int, page_hash: bytes) -> bool:
        """Whether a page differs from the base, or did before in this capture."""
        start = (number - 1) * HASH_BYTES
        return self._is_stored(number) or self._expected[start : start + HASH_BYTES] != page_hash

    def _is_stored(self, number: int) -> bool:
        return number < len(self._stored) and bool(self._stored[number])

    def _store(self, pages: Pages, writer: PackWriter) -> None:
        self._stored.extend(bytes(max(0, max(pages.numbers, default=0) + 1 - len(self._stored))))
        mark(self._stored, pages.numbers)
        while pages.numbers:
            if self._raw is None:
                self._raw = _RawPack(self._number, self._packs, len(pages.images[0]), writer.buffer())
            fitting, pages = pages.split(self._raw.room)
            self._raw.add(fitting)
            if not self._raw.room:
                self._flush(writer)

    def cut(self, page_count: int) -> None:
        """Drop pages beyond `page_count` that are in no pack yet."""
        if self._raw is not None:
            self._raw.cut(page_count)

    def finish(self, page_size: int, page_count: int, writer: PackWriter) -> None:
        """Send what has gathered, and if anything has changed also the pages put aside."""
        if self._aside is not None and (self._packs or (self._raw is not None and self._raw.numbers)):
            self._flush(writer)
            for number, page_hash, image in self._aside.pages(page_size):
                if number <= page_count and not self._is_stored(number):
                    self._store(Pages([number], [page_hash], [image]), writer)
        self._flush(writer)
        if self._aside is not None:
            self._aside.close()

    def _flush(self, writer: PackWriter) -> None:
        if self._raw is not None and self._raw.numbers:
            writer.submit(self._raw)
            self._packs += 1
            self._raw = None


class _PagesAside:
    """Unchanged pages to relocate, in a file: whether they are stored depends on whether anything changes."""

    def __init__(self, file: Path) -> None:
        self._path = file
        self._hashes: dict[int, bytes] = {}
        self._file = file.open("w+b")

    def put(self, number: int, page_hash: bytes, image: bytes) -> None:
        """Keep a page, once. Raises `TargetUnwritableError`."""
        if number in self._hashes:
            return
        self._hashes[number] = page_hash
        try:
            self._file.write(image)
            self._file.flush()  # or a full disk would show up later, where it is not expected
        except OSError as error:
            with suppress(OSError):
                self._file.close()
            raise spool_full(self._path.parent, error) from error

    def pages(self, page_size: int) -> Iterator[tuple[int, bytes, bytes]]:
        """Number, hash and image of each page."""
        self._file.seek(0)
        for number, page_hash in self._hashes.items():
            yield number, page_hash, self._file.read(page_size)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
        self._path.unlink()


@dataclass(slots=True)
class _RawPack:
    """Pages on their way into a pack, each page number once.

    Their images are at the beginning of `buffer`, which has room for a full pack. It copies many pages at once, which a
    bytearray does one by one, and twice. Nothing can be added while a view of `images` is in use.
    """

    stream: int
    order: int
    page_size: int
    buffer: io.BytesIO
    numbers: list[int] = field(default_factory=list)
    hashes: bytearray = field(default_factory=bytearray)
    _places: dict[int, int] = field(default_factory=dict)

    @property
    def images(self) -> memoryview:
        """The images of the pages, joined."""
        return self.buffer.getbuffer()[: len(self.numbers) * self.page_size]

    @property
    def room(self) -> int:
        """How many more pages the pack takes."""
        return _RAW_PACK_BYTES // self.page_size - len(self.numbers)

    def add(self, pages: Pages) -> None:
        """Add pages, each once and no more than there is room for, or replace the images of those that are here."""
        if not self._places.keys().isdisjoint(pages.numbers):
            for page in zip(*pages, strict=True):
                self._put(*page)
            return
        self.buffer.seek(len(self.numbers) * self.page_size)
        self.buffer.writelines(pages.images)
        self._places.update(zip(pages.numbers, count(len(self.numbers)), strict=False))
        self.numbers += pages.numbers
        self.hashes += b"".join(pages.digests)

    def _put(self, number: int, page_hash: bytes, image: bytes) -> None:
        """Add a page, or replace its image if it is here already."""
        at = self._places.setdefault(number, len(self.numbers))
        if at == len(self.numbers):
            self.numbers.append(number)
        self.hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] = page_hash
        self.buffer.seek(at * self.page_size)
        self.buffer.write(image)

    def cut(self, page_count: int) -> None:
        """Drop the pages beyond `page_count`."""
        before = [*self._pages()]
        if any(number > page_count for number, _, _ in before):
            self.numbers, self.hashes, self._places = [], bytearray(), {}
            for number, page_hash, image in before:
                if number <= page_count:
                    self._put(number, page_hash, image)

    def sort(self) -> None:
        """Put the pages into the order of their numbers, which SQLite's backup hardly ever breaks."""
        if any(map(gt, self.numbers, self.numbers[1:])):
            before = sorted(self._pages())
            self.numbers, self._places = [], {}
            for page in before:
                self._put(*page)

    def _pages(self) -> Iterator[tuple[int, bytes, bytes]]:
        with self.images as images:
            for at, number in enumerate(self.numbers):
                page_hash = bytes(self.hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES])
                yield number, page_hash, bytes(images[at * self.page_size : (at + 1) * self.page_size])


class _ThreadEncoder(threading.local):
    """The encoder of each thread."""

    def __init__(self, level: int) -> None:
        self.encoder = PackEncoder(level)


class PackWriter:
    """Compresses raw packs in worker threads into files of the spool, and reports each finished file.

    Bounded: raw packs in memory by `_RAW_PACKS_IN_MEMORY`, finished ones on disk by the slots that the reader of the
    spool returns with `free_slot`. When memory is full, `submit` waits, or, after `stop_waiting`, writes the raw
    pages to the spool.
    """

    def __init__(
        self,
        spool: Path,
        *,
        level: int,
        slots: int,
        emit: Callable[..., None],
        encrypt: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._spool = spool
        self._thread = _ThreadEncoder(level)
        self._may_wait = True
        self._encrypt = encrypt
        self._emit = emit
        self._memory = threading.Semaphore(_RAW_PACKS_IN_MEMORY)
        self._buffers: list[io.BytesIO] = []
        self._slots = threading.Semaphore(slots)
        self._workers = WorkerThreads(_WORKERS, thread_name_prefix="pack")
        self._pending: list[Future[None]] = []

    def free_slot(self) -> None:
        """Count that one finished pack has left the spool."""
        self._slots.release()

    def buffer(self) -> io.BytesIO:
        """Give a buffer for the images of one raw pack. `submit` takes it back."""
        try:
            return self._buffers.pop()
        except IndexError:
            return io.BytesIO(bytes(_RAW_PACK_BYTES))

    def submit(self, raw: _RawPack) -> None:
        """Take over a raw pack, which the caller must not touch any more. Raises what a worker failed with."""
        self._raise_failures()
        spilled = None
        if not self._memory.acquire(blocking=False) and not self._wait_for_memory():
            spilled = self._spill(raw)
        self._pending.append(self._workers.submit(self._finish, raw, spilled))

    def close(self) -> None:
        """Wait until every pack is in the spool. Raises what a worker failed with."""
        self.wait()
        self._workers.shutdown()

    def wait(self) -> None:
        """Wait until every raw pack taken so far is in the spool. Raises what a worker failed with."""
        for future in self._pending:
            future.result()
        self._pending = []

    def stop_waiting(self) -> None:
        """Never hold up the application from now on: raw packs that find no memory go to the spool."""
        self._may_wait = False

    def _wait_for_memory(self) -> bool:
        """Wait for memory for one more raw pack as long as that is allowed; whether there is."""
        if not self._may_wait:
            return False
        self._emit("held")
        while not (has_memory := self._memory.acquire(timeout=_POLL_SECONDS)) and self._may_wait:
            pass
        self._emit("resumed")
        return has_memory

    def _raise_failures(self) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()

    def _spill(self, raw: _RawPack) -> Path:
        """Move the images from memory into a file of the spool."""
        if not has_room(self._spool, len(raw.images) + _SPOOL_RESERVE_BYTES):
            raise spool_full(self._spool)
        spilled = self._spool / f"raw-{raw.stream}-{raw.order}"
        _write(spilled, raw.images)
        self._take_back(raw)
        return spilled

    def _finish(self, raw: _RawPack, spilled: Path | None) -> None:
        try:
            if spilled is not None:
                self._unspill(raw, spilled)
            raw.sort()
            numbers, hashes = raw.numbers, bytes(raw.hashes)
            index, pack = self._thread.encoder.encode(raw.page_size, numbers, hashes, raw.images)
            self._take_back(raw)
        finally:
            if spilled is not None:
                spilled.unlink()
            else:
                self._memory.release()
        proof: dict[str, int | str] = {"index_bytes": len(index.encoded), "index_hash": index_hash(index.encoded)}
        content: bytes | memoryview = pack
        if self._encrypt is not None:
            content, proof = self._encrypt(bytes(pack)), {}
        sha256 = hashlib.sha256(content).hexdigest()
        self._slots.acquire()
        file = self._spool / f"pack-{raw.stream}-{raw.order}"
        _write(file, content)
        page_numbers = base64.b64encode(index.page_numbers).decode("ascii")
        place = {"stream": raw.stream, "order": raw.order, "file": str(file)}
        self._emit("pack", **place, sha256=sha256, page_numbers=page_numbers, **proof)

    def _unspill(self, raw: _RawPack, spilled: Path) -> None:
        """Move the images from the spool back into memory."""
        raw.buffer = self.buffer()
        with spilled.open("rb") as file:
            if file.readinto(raw.images) != len(raw.images):
                raise spool_full(self._spool)

    def _take_back(self, raw: _RawPack) -> None:
        """Take the buffer of a raw pack for the next one.

        One that grew page by page was moved about in the heap, which kept 18 MB more than was in use.
        """
        self._buffers.append(raw.buffer)
        raw.buffer = io.BytesIO()


def _write(file: Path, content: bytes | memoryview) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise spool_full(file.parent, error) from error
