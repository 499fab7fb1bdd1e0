"""The amount of data that a verification reads: counted, reported as progress, and limited to a rate."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from backupd.errors import DamageError
from backupd.store import StoreWrapper
from backupd.store.keys import PackKey
from backupd.verify.results import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from backupd.format.manifest import PackEntry
    from backupd.store import Store

_LEAST_PIECE_BYTES = 128 << 10
_PIECES_A_SECOND = 4


class Meter:
    """Counts what all threads read from all stores. With a rate, in bytes per second, it makes readers wait.

    `on_read` is called after each read, by one thread at a time. `clock` counts seconds and never goes back.
    """

    def __init__(
        self,
        rate: float | None = None,
        *,
        on_read: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.read_bytes = 0
        self.pack_bytes = 0
        """Bytes of packs alone: their total can be known before."""
        self._rate = rate
        self._on_read = on_read
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = clock()

    @property
    def piece_bytes(self) -> int | None:
        """How much to read at once, so that the allowance is not used in one burst; None without a rate."""
        return None if self._rate is None else max(_LEAST_PIECE_BYTES, int(self._rate / _PIECES_A_SECOND))

    def count(self, size_bytes: int, *, is_pack: bool) -> None:
        """Count a read; returns when the rate allows it."""
        with self._lock:
            self.read_bytes += size_bytes
            self.pack_bytes += size_bytes if is_pack else 0
            self._on_read()
            now = self._clock()
            if self._rate is None:
                return
            # Time in which nothing was read does not allow a burst later.
            self._paid_until = max(self._paid_until, now) + size_bytes / self._rate
            wait = self._paid_until - now
        self._sleep(wait)


class Tally:
    """Counts what a verification has read of what it must read, and reports that to `on_progress`."""

    def __init__(self, rate: float | None, on_progress: Callable[[Progress], None]) -> None:
        self.meter = Meter(rate, on_read=self._report)
        self.packs_read = 0
        self.packs_known = 0
        """Packs that an interrupted run read before."""
        self._on_progress = on_progress
        self._whole_bytes = self._all_packs = self._page_bytes = 0

    def expect(self, packs: Collection[PackEntry]) -> None:
        """Add packs that must be read."""
        self._whole_bytes += sum(pack.stored_bytes for pack in packs)
        self._all_packs += len(packs)

    def skip(self, packs: Collection[PackEntry]) -> None:
        """Count expected packs that need not be read again."""
        self.packs_known += len(packs)
        self._whole_bytes -= sum(pack.stored_bytes for pack in packs)
        self._report()

    def pack_read(self, page_bytes: int) -> None:
        """Count a pack that was read, with the bytes of the pages in it."""
        self.packs_read += 1
        self._page_bytes += page_bytes
        self._report()

    def _report(self) -> None:
        self._on_progress(
            Progress(
                min(self.meter.pack_bytes, self._whole_bytes),
                self._whole_bytes,
                self._page_bytes,
                self.packs_read + self.packs_known,
                self._all_packs,
            )
        )


class MeteredStore(StoreWrapper):
    """A store whose every read a `Meter` counts."""

    def __init__(self, store: Store, meter: Meter) -> None:
        super().__init__(store)
        self._meter = meter

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """Read an object; with a rate, a large one in several requests."""
        piece_bytes = self._meter.piece_bytes
        if piece_bytes is None or piece_bytes >= limit_bytes:
            content = super().get(key, limit_bytes=limit_bytes)
            self._count(key, content)
            return content
        pieces: list[bytes] = []
        size_bytes = 0
        while not pieces or len(pieces[-1]) == piece_bytes:
            pieces.append(self.get_range(key, offset=size_bytes, length=piece_bytes))
            size_bytes += len(pieces[-1])
            if size_bytes > limit_bytes:
                raise DamageError(f"{key} in {self.url} has more than the {limit_bytes} bytes that can be right")
        return b"".join(pieces)

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        """Read a part of an object."""
        content = super().get_range(key, offset=offset, length=length)
        self._count(key, content)
        return content

    def _count(self, key: str, content: bytes) -> None:
        self._meter.count(len(content), is_pack=PackKey.parse(key) is not None)
