"""What a capture leaves in the spool: the image's page hashes, and packs until every store has taken them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.backup.assembly import WrittenPack
from backupd.format.manifest import PackEntry
from backupd.format.pack import index_bytes, parse_index

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.capture.process import Capture, PackReady, Pinned
    from backupd.format.ids import SnapshotId


@dataclass(frozen=True, slots=True)
class Image:
    """What was captured. `id` carries the time at which the state was pinned; `hashes` is a file."""

    id: SnapshotId
    pinned: Pinned
    hashes: Path
    digest: str


class SpooledPack:
    """A finished pack in the spool, removed when the last store that wants it has taken it or given up."""

    def __init__(self, pack: PackReady, takers: int, capture: Capture) -> None:
        self.file = pack.file
        self.order = pack.order
        entry = PackEntry(sha256=pack.sha256, stored_bytes=pack.file.stat().st_size, pages=pack.pages)
        with pack.file.open("rb") as file:
            self.written = WrittenPack(entry, parse_index(file.read(index_bytes(pack.pages))).page_numbers)
        self._takers = takers
        self._capture = capture
        self._lock = threading.Lock()
        if not takers:
            self._remove()

    def taken(self) -> None:
        """One store is done with it."""
        with self._lock:
            self._takers -= 1
            is_last = self._takers == 0
        if is_last:
            self._remove()

    def _remove(self) -> None:
        self.file.unlink(missing_ok=True)
        self._capture.pack_left_spool()
