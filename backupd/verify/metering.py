"""How much is read from the stores, and no faster than allowed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from backupd.errors import DamageError
from backupd.store.keys import PackKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from backupd.store import ObjectFacts, Store, StoredObject

_LEAST_PIECE_BYTES = 128 << 10
_PIECES_A_SECOND = 4


class Meter:
    """Counts what all threads read from all stores. With a rate, in bytes per second, it holds each of them up.

    `on_read` is told after each read, one thread at a time. `clock` counts seconds and never goes back.
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
        """Those of packs: what can be known before."""
        self._rate = rate
        self._on_read = on_read
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = clock()

    @property
    def piece_bytes(self) -> int | None:
        """How much to read at once, so that what was allowed is not read in one burst; None without a rate."""
        return None if self._rate is None else max(_LEAST_PIECE_BYTES, int(self._rate / _PIECES_A_SECOND))

    def count(self, size_bytes: int, *, is_pack: bool) -> None:
        """Note that so much was read; returns when that was allowed to be."""
        with self._lock:
            self.read_bytes += size_bytes
            self.pack_bytes += size_bytes if is_pack else 0
            self._on_read()
            now = self._clock()
            if self._rate is None:
                return
            # Time in which nothing was read is not made up for by a burst.
            self._paid_until = max(self._paid_until, now) + size_bytes / self._rate
            wait = self._paid_until - now
        self._sleep(wait)


class MeteredStore:
    """Implements `Store` by another one; every read goes through a `Meter`."""

    def __init__(self, store: Store, meter: Meter) -> None:
        self._store = store
        self._meter = meter

    @property
    def url(self) -> str:
        """That of the other store."""
        return self._store.url

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """As the other store."""
        self._store.put(key, content, sha256=sha256)

    def get(self, key: str, *, limit_bytes: int) -> bytes:
        """As the other store; with a rate, a large object in several requests."""
        piece_bytes = self._meter.piece_bytes
        if piece_bytes is None or piece_bytes >= limit_bytes:
            content = self._store.get(key, limit_bytes=limit_bytes)
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
        """As the other store."""
        content = self._store.get_range(key, offset=offset, length=length)
        self._count(key, content)
        return content

    def facts(self, key: str) -> ObjectFacts:
        """As the other store."""
        return self._store.facts(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As the other store."""
        return self._store.list(prefix)

    def delete(self, key: str) -> None:
        """As the other store."""
        self._store.delete(key)

    def _count(self, key: str, content: bytes) -> None:
        self._meter.count(len(content), is_pack=PackKey.parse(key) is not None)
