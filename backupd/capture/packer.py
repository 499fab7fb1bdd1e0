"""Pages to packs: hash, compare with the base, and compress what changed into the spool while the capture goes on."""

from __future__ import annotations

import base64
import hashlib
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.capture.table import HashTable, spool_full
from backupd.errors import SourceUnusableError
from backupd.files import has_room
from backupd.format.pack import HASH_BYTES, encode_pack
from backupd.threads import WorkerThreads

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from concurrent.futures import Future
    from pathlib import Path

    from backupd.capture.table import Pages

RAW_PACK_BYTES = 8 << 20
"""Pages go into one pack until they fill this. Larger packs waste bytes when few of their pages live on."""

_WORKERS = 2
_RAW_PACKS_IN_MEMORY = 4
_LOOK_UP_SECONDS = 0.05
_SPOOL_RESERVE_BYTES = 64 << 20


@dataclass(slots=True)
class RawPack:
    """Pages on their way into a pack. Their images are in the file `spilled` when there was no memory for them."""

    stream: int
    order: int
    numbers: list[int] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)
    """Where each page number is in `numbers`."""
    hashes: bytearray = field(default_factory=bytearray)
    images: bytearray = field(default_factory=bytearray)
    spilled: Path | None = None


class PackWriter:
    """Compresses raw packs in worker threads into files of the spool, and says when each is there.

    Bounded: raw packs in memory by `_RAW_PACKS_IN_MEMORY`, finished ones on disk by the slots that the reader of the
    spool gives back with `free_slot`. When memory is full, `submit` waits, or, after `stop_waiting`, writes the raw
    pages to the spool.
    """

    def __init__(
        self,
        spool: Path,
        *,
        page_size: int,
        level: int,
        slots: int,
        emit: Callable[..., None],
        encrypt: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._spool = spool
        self._page_size = page_size
        self._level = level
        self._may_wait = True
        self._encrypt = encrypt
        self._emit = emit
        self._memory = threading.Semaphore(_RAW_PACKS_IN_MEMORY)
        self._slots = threading.Semaphore(slots)
        self._workers = WorkerThreads(_WORKERS, thread_name_prefix="pack")
        self._pending: list[Future[None]] = []

    def free_slot(self) -> None:
        """One finished pack has left the spool."""
        self._slots.release()

    def submit(self, raw: RawPack) -> None:
        """Hand over a raw pack, which the caller does not touch any more. Raises what a worker failed with."""
        self._raise_failures()
        if not self._memory.acquire(blocking=False) and not self._wait_for_memory():
            self._spill(raw)
        self._pending.append(self._workers.submit(self._finish, raw))

    def close(self) -> None:
        """Wait until every pack is in the spool. Raises what a worker failed with."""
        self.wait()
        self._workers.shutdown()

    def wait(self) -> None:
        """Wait until every raw pack that was handed over is in the spool. Raises what a worker failed with."""
        for future in self._pending:
            future.result()
        self._pending = []

    def stop_waiting(self) -> None:
        """From now on the application is not to be held up: what finds no memory goes to the spool."""
        self._may_wait = False

    def _wait_for_memory(self) -> bool:
        """Whether there is memory for one more raw pack, after waiting for it as long as that is allowed."""
        if not self._may_wait:
            return False
        self._emit("held")
        while not (has_memory := self._memory.acquire(timeout=_LOOK_UP_SECONDS)) and self._may_wait:
            pass
        self._emit("resumed")
        return has_memory

    def _raise_failures(self) -> None:
        done = [future for future in self._pending if future.done()]
        self._pending = [future for future in self._pending if not future.done()]
        for future in done:
            future.result()

    def _spill(self, raw: RawPack) -> None:
        if not has_room(self._spool, len(raw.images) + _SPOOL_RESERVE_BYTES):
            raise spool_full(self._spool)
        raw.spilled = self._spool / f"raw-{raw.stream}-{raw.order}"
        _write(raw.spilled, raw.images)
        raw.images = bytearray()

    def _finish(self, raw: RawPack) -> None:
        try:
            images = raw.spilled.read_bytes() if raw.spilled else raw.images
            numbers, hashes, images = _ascending(raw.numbers, bytes(raw.hashes), images, self._page_size)
            pack = encode_pack(self._page_size, numbers, hashes, images, level=self._level)
        finally:
            if raw.spilled:
                raw.spilled.unlink()
            else:
                self._memory.release()
        raw.images = images = bytearray()
        if self._encrypt is not None:
            pack = self._encrypt(pack)
        sha256 = hashlib.sha256(pack).hexdigest()
        self._slots.acquire()
        file = self._spool / f"pack-{raw.stream}-{raw.order}"
        _write(file, pack)
        page_numbers = base64.b64encode(struct.pack(f"<{len(numbers)}I", *numbers)).decode("ascii")
        self._emit("pack", stream=raw.stream, order=raw.order, file=str(file), sha256=sha256, page_numbers=page_numbers)


def _ascending(
    numbers: list[int], hashes: bytes, images: bytes | bytearray, page_size: int
) -> tuple[list[int], bytes, bytes | bytearray]:
    """The same pages in the order of their numbers; SQLite's backup hardly ever needs it but for page 1."""
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    if order == list(range(len(numbers))):
        return numbers, hashes, images
    view = memoryview(images)
    return (
        [numbers[i] for i in order],
        b"".join(hashes[i * HASH_BYTES : (i + 1) * HASH_BYTES] for i in order),
        b"".join(view[i * page_size : (i + 1) * page_size] for i in order),
    )


def _write(file: Path, content: bytes | bytearray) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise spool_full(file.parent, error) from error


class Stream:
    """The pages that differ from one base, on their way to every store that has this base.

    `expected` holds the base's page hashes, with zeros for pages that have to be stored whatever they hold (a pack that
    held them is gone); `relocate` the pages that leave their pack if the database has changed at all.
    """

    def __init__(self, number: int, expected: bytes | mmap.mmap, relocate: frozenset[int], spool: Path) -> None:
        self.number = number
        self.expected = expected
        self.relocate = relocate
        self._packs = 0
        self._raw = RawPack(number, 0)
        self._stored = bytearray()
        self._relocated: dict[int, bytes] = {}
        self._relocated_images = spool / f"relocated-{number}"
        self._relocation = self._relocated_images.open("w+b") if relocate else None

    @property
    def has_changes(self) -> bool:
        """Whether any page had to be stored so far."""
        return self._packs > 0 or bool(self._raw.numbers)

    def needs_any(self, pages: Pages) -> bool:
        """Whether any of these pages may have to be stored or put aside. Most of them are those of the base."""
        if self.relocate or not pages.are_in(self.expected):
            return bool(pages.numbers)
        return any(self._stored[pages.numbers[0] - 1 : pages.numbers[-1]])

    def offer(self, number: int, page_hash: bytes, image: bytes, writer: PackWriter) -> None:
        """One page of the image: stored if the base does not have it, put aside if it is to be relocated.

        A page that was stored before is stored again: a later pack wins over an earlier one, and over the base.
        """
        start = (number - 1) * HASH_BYTES
        if self._is_stored(number):
            self._replace(number, page_hash, image, writer)
        elif self.expected[start : start + HASH_BYTES] != page_hash:
            self._add(number, page_hash, image, writer)
        elif number in self.relocate:
            self._put_aside(number, page_hash, image)

    def _is_stored(self, number: int) -> bool:
        return number <= len(self._stored) and bool(self._stored[number - 1])

    def _add(self, number: int, page_hash: bytes, image: bytes, writer: PackWriter) -> None:
        if number > len(self._stored):
            self._stored.extend(bytes(number - len(self._stored)))
        self._stored[number - 1] = 1
        raw = self._raw
        raw.places[number] = len(raw.numbers)
        raw.numbers.append(number)
        raw.hashes += page_hash
        raw.images += image
        if len(raw.images) >= RAW_PACK_BYTES:
            self.flush(writer)

    def _replace(self, number: int, page_hash: bytes, image: bytes, writer: PackWriter) -> None:
        """Store the later image of a page that came before: a pack lists no page twice."""
        raw = self._raw
        at = raw.places.get(number)
        if at is None:
            self._add(number, page_hash, image, writer)
            return
        raw.hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES] = page_hash
        raw.images[at * len(image) : (at + 1) * len(image)] = image

    def cut(self, page_count: int) -> None:
        """Drop pages beyond `page_count` that are in no pack yet."""
        raw = self._raw
        if not raw.numbers or max(raw.numbers) <= page_count:
            return
        page_size = len(raw.images) // len(raw.numbers)
        self._raw = kept = RawPack(self.number, self._packs)
        for at, number in enumerate(raw.numbers):
            if number <= page_count:
                kept.places[number] = len(kept.numbers)
                kept.numbers.append(number)
                kept.hashes += raw.hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES]
                kept.images += raw.images[at * page_size : (at + 1) * page_size]

    def flush(self, writer: PackWriter) -> None:
        """Send what has gathered as a pack."""
        if self._raw.numbers:
            writer.submit(self._raw)
            self._packs += 1
            self._raw = RawPack(self.number, self._packs)

    def _put_aside(self, number: int, page_hash: bytes, image: bytes) -> None:
        """Keep an unchanged page: whether it is stored depends on whether anything changed."""
        assert self._relocation is not None  # noqa: S101
        if number in self._relocated:
            return
        self._relocated[number] = page_hash
        try:
            self._relocation.write(image)
            self._relocation.flush()  # or a full disk would show up later, where nobody expects it
        except OSError as error:
            with suppress(OSError):
                self._relocation.close()
            raise spool_full(self._relocated_images.parent, error) from error

    def relocate_unchanged(self, page_size: int, page_count: int, writer: PackWriter) -> None:
        """Store the pages put aside, but for those that have changed since and were stored for it."""
        if self._relocation is None:
            return
        self._relocation.seek(0)
        for number, digest in self._relocated.items():
            image = self._relocation.read(page_size)
            if number <= page_count and not self._is_stored(number):
                self._add(number, digest, image, writer)

    def close(self) -> None:
        """Discard the pages put aside, whether they were needed or not."""
        if self._relocation is not None:
            self._relocation.close()
            self._relocated_images.unlink()


class Packer:
    """Takes pages of an image, and stores in each stream what that stream's base does not have.

    Pages may come as often as they like, and the image may grow and shrink meanwhile: what counts in the end is the
    last image of each page up to the last page count.
    """

    def __init__(self, page_size: int, page_count: int, streams: list[Stream], writer: PackWriter, file: Path) -> None:
        """`file` becomes the page hashes of the image, 16 bytes a page; `page_count` is at least 1."""
        self.page_size = page_size
        self.table = HashTable(file, page_count)
        self._streams = streams
        self._writer = writer

    def resize(self, page_count: int) -> None:
        """From now on the image has so many pages, at least 1."""
        self.table.resize(page_count)
        for stream in self._streams:
            stream.cut(page_count)

    def pages_written(self, numbers: list[int], images: list[bytes]) -> int:
        """Some pages of the image, in the order of writing. A page that comes again replaces its earlier image.

        Gives the number of those that are not as they came before.
        """
        pages = self.table.record(numbers, images)
        for stream in self._streams:
            if stream.needs_any(pages):
                for number, digest, image in zip(*pages, strict=True):
                    stream.offer(number, digest, image, self._writer)
        return len(pages.numbers)

    def finish(self) -> None:
        """Send the last packs. Raises `SourceUnusableError` when a page never came."""
        if self.table.seen != self.table.page_count:
            raise SourceUnusableError(
                f"{self.table.seen} of {self.table.page_count} pages could be read",
                hint="the file was probably truncated during the capture; try again",
            )
        for stream in self._streams:
            if stream.has_changes:
                stream.flush(self._writer)
                stream.relocate_unchanged(self.page_size, self.table.page_count, self._writer)
                stream.flush(self._writer)
            stream.close()
        self._writer.close()
        self.table.close()
