"""The output of a capture: pages go to the packer, and events go to the parent process as lines of JSON on stdout."""

from __future__ import annotations

import base64
import json
import mmap
import os
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from backupd.capture.database_files import reject_sparse_image
from backupd.capture.packer import Packer, PackWriter, Stream
from backupd.capture.sink import completed_first_page
from backupd.capture.table import BLOCK_BYTES, known_blocks
from backupd.encryption import Encryption
from backupd.errors import BusyError, UsageError
from backupd.format import MAX_IMAGE_PAGES

if TYPE_CHECKING:
    from backupd.capture.header import Header
    from backupd.capture.limits import CaptureRequest, StreamBase
    from backupd.capture.table import KnownBlocks

_ALIVE_SECONDS = 1.0
_REPORTED_BYTES = 2 << 20


class Events:
    """Reports to the parent, in the order of the calls.

    No method waits: a parent that is stopped must not prolong a lock. A thread has to run `write`.
    """

    def __init__(self) -> None:
        self._lines: SimpleQueue[str | None] = SimpleQueue()

    def emit(self, event: str, **values: Any) -> None:
        """Report `event` with its values, which `process` turns into an event of the parent's side."""
        self._lines.put(json.dumps({"event": event, **values}) + "\n")

    def end(self) -> None:
        """Let `write` return after the events so far."""
        self._lines.put(None)

    def write(self) -> None:
        """Write the events to stdout until `end`. Ends this process when they cannot reach the parent any more."""
        while (line := self._lines.get()) is not None:
            try:
                sys.stdout.write(line)
                sys.stdout.flush()
            except OSError:
                os._exit(1)  # Python's own end would try to flush once more, and complain


class Output:
    """The output of one capture, in whatever way it is taken: the pages of the image, and the events about it."""

    def __init__(self, request: CaptureRequest, events: Events) -> None:
        self.page_size = 0
        self.page_count = 0
        self.spool = Path(request.spool)
        self._path = request.path
        self._streams = request.streams
        self._emit = events.emit
        self._packer: Packer | None = None
        self._is_locked = False
        self._pages_read = 0
        self._reported_at = 0
        self._alive_at = 0.0
        encryption = Encryption(request.recipients)
        self.writer = PackWriter(
            self.spool,
            level=request.level,
            slots=request.slots,
            encrypt=encryption.encrypt if encryption.is_on else None,
            emit=events.emit,
        )

    def begin(self, page_size: int, page_count: int) -> Packer:
        """Set the size of the image, at least one page, and return the packer that takes its pages.

        Repeatable while the database grows or shrinks: pages that came before stay until they are replaced. Raises
        `BusyError` when its pages have another size than before.
        """
        self._reject_size(page_size, page_count)
        self.page_size, self.page_count = page_size, page_count
        if self._packer is None:
            bases = [self._base_hashes(base) for base in self._streams]
            streams = [self._stream(number, hashes) for number, hashes in enumerate(bases)]
            known = self._known_blocks(bases)
            self._packer = Packer(page_size, page_count, streams, self.writer, self.spool / "hashes", known)
        self._packer.resize(page_count)
        self._packer.table.put_lock_page(page_size)
        return self._packer

    def begin_on_base(self, page_size: int, page_count: int) -> Packer:
        """Set the size of the image, as `begin` does, and take all pages from the bases, which have the same image."""
        packer = self.begin(page_size, page_count)
        packer.table.put_base(self._base_hashes(self._streams[0]))
        return packer

    def begin_empty(self, page_size: int) -> None:
        """Set the image to that of an empty database. Raises `BusyError` when it had pages before."""
        self._reject_size(page_size, 0)
        self.page_size, self.page_count = page_size, 0

    def _reject_size(self, page_size: int, page_count: int) -> None:
        reject_sparse_image(self._path, page_size * page_count)
        if page_count > MAX_IMAGE_PAGES:
            raise UsageError(
                f"{self._path} has {page_count} pages, the format holds {MAX_IMAGE_PAGES}",
                hint="give the database larger pages: PRAGMA page_size = 65536; VACUUM",
            )
        if self._packer is not None and (page_size != self.page_size or page_count == 0):
            raise BusyError(
                f"{self._path} was rebuilt by the application while it was captured: it has "
                f"{page_count} pages of {page_size} bytes now, and had pages of {self.page_size} bytes",
                hint="try again",
            )

    def _base_hashes(self, base: StreamBase) -> bytes | mmap.mmap:
        """The page hashes of a base; one with another page size counts as no base."""
        if base.page_size == self.page_size and base.hashes:
            with open(base.hashes, "rb") as file:
                if os.fstat(file.fileno()).st_size:
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return b""

    def _stream(self, number: int, hashes: bytes | mmap.mmap) -> Stream:
        pages = self._streams[number].relocate if hashes else ()
        relocate = frozenset(page for page in pages if page <= self.page_count)
        return Stream(number, hashes, relocate, self.spool)

    def _known_blocks(self, bases: list[bytes | mmap.mmap]) -> KnownBlocks | None:
        """The blocks of the base that has the most of them; None without a base, and where a block is one page."""
        if self.page_size == BLOCK_BYTES:
            return None
        known = [
            known_blocks(Path(base.hashes), hashes)
            for base, hashes in zip(self._streams, bases, strict=True)
            if base.hashes and hashes
        ]
        return max(known, key=lambda blocks: len(blocks.digests), default=None)

    def progress(self, pages: int) -> None:
        """Report every 2 MiB how many pages of the image have been read; those that are read again do not count."""
        self._pages_read = max(self._pages_read, pages)
        if abs(pages - self._reported_at) * self.page_size >= _REPORTED_BYTES or pages >= self.page_count:
            self._reported_at = pages
            self._emit("pages", captured=self._pages_read, page_size=self.page_size, page_count=self.page_count)

    def alive(self) -> None:
        """Report, at most once a second, that something of the database has been read."""
        now = time.monotonic()
        if now - self._alive_at > _ALIVE_SECONDS:
            self._alive_at = now
            self._emit("alive")

    def expect(self, seconds: float) -> None:
        """Report that the next event comes within `seconds`, unless this process hangs."""
        self._emit("expect", seconds=seconds)

    def locked(self, at: float) -> None:
        """Report that writers wait for this capture since `at` on the monotonic clock."""
        self._is_locked = True
        self._emit("locked", at=at)

    def released(self) -> None:
        """Report that writers no longer wait, if they did."""
        if self._is_locked:
            self._emit("released")
        self._is_locked = False

    def compared(self, *, is_same: bool | None) -> None:
        """Report whether the image equals that of the backup API; None when comparing would have taken too long."""
        self._emit("compared", is_same=is_same)

    def not_replayed(self, reason: str) -> None:
        """Report why the database is read although there is a log to build the image from."""
        self._emit("not_replayed", reason=reason)

    def pinned(self, facts: dict[str, Any], taken_at: float, *, is_replayed: bool = False) -> None:
        """Report which state is captured; it was current at `taken_at`, seconds since the epoch."""
        status = os.stat(self._path)
        file = {"uid": status.st_uid, "gid": status.st_gid, "mode": status.st_mode & 0o7777}
        size = {"page_size": self.page_size, "page_count": self.page_count}
        number = status.st_dev, status.st_ino
        self._emit("pinned", **size, facts=facts, taken_at=taken_at, **file, file=number, is_replayed=is_replayed)

    def finish(self, schema_version: int, first_page: bytes, header: Header) -> None:
        """Complete the image and its packs: every page but page 1 has come, and the database is no longer in use."""
        self._emit("captured")
        page = b""
        if self._packer is None:
            (self.spool / "hashes").touch(mode=0o600)  # an empty database
        else:
            page = completed_first_page(
                first_page,
                schema_version=schema_version,
                writer_version=header.writer_version,
                digest_of_image=self._packer.table.digest_with,
            )
            self._packer.add([1], [page])
            self._packer.finish()
        self._emit("done", first_page=base64.b64encode(page).decode())
