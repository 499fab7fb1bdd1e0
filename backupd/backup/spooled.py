"""What a capture leaves in the spool: the image's page hashes, and packs until every store has taken them."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.backup.assembly import WrittenPack
from backupd.errors import TargetUnwritableError, limit_reached
from backupd.format.manifest import PackEntry

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.capture.process import Capture, PackReady, Pinned
    from backupd.errors import BackupdError
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Image:
    """What was captured. `id` carries the time at which the state was pinned; `hashes` is a file.

    `api_differs` as in `BackupResult`.
    """

    id: SnapshotId
    pinned: Pinned
    hashes: Path
    digest: str
    api_differs: bool = False

    def is_that_of(self, manifest: Manifest) -> bool:
        """Whether a snapshot with this manifest has the same content."""
        return (self.pinned.page_size, self.pinned.page_count, self.digest) == (
            manifest.page_size,
            manifest.page_count,
            manifest.image_digest,
        )


class SpooledPack:
    """A finished pack in the spool, removed when the last store that wants it has taken it or given up."""

    def __init__(self, pack: PackReady, takers: int, capture: Capture, *, is_encrypted: bool) -> None:
        self.file = pack.file
        self.order = pack.order
        entry = PackEntry(
            sha256=pack.sha256,
            stored_bytes=pack.file.stat().st_size,
            pages=len(pack.page_numbers) // 4,
            encryption="age" if is_encrypted else None,
        )
        self.written = WrittenPack(entry, pack.page_numbers)
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


def spool_failure(error: OSError) -> BackupdError:
    """The error for a spool that cannot be written or read, unless it is a limit that was reached there."""
    return limit_reached(error) or TargetUnwritableError(
        f"{error.filename or 'the spool'}: {error.strerror}",
        hint="check the space and the permissions of state_dir; the stores are as they were",
    )
