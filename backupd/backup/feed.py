"""From the capture to the stores: hand packs on as they come, and keep the application's log from growing for ever."""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.backup.results import Progress
from backupd.backup.spooled import Image, SpooledPack
from backupd.cache import map_hashes
from backupd.capture.process import Captured, Compared, HeldUp, PackReady, PagesCaptured, Pinned
from backupd.errors import StoreUnavailableError
from backupd.format.ids import SnapshotId
from backupd.format.pagemap import image_digest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backupd.backup.comparison import Comparison
    from backupd.backup.store_part import StorePart
    from backupd.capture.process import Capture, CaptureRequest


class Feed:
    """Hands the capture's packs to the parts, and keeps a slow one from holding the application's WAL."""

    def __init__(
        self,
        request: CaptureRequest,
        parts: Sequence[StorePart],
        capture: Capture,
        comparison: Comparison,
        max_wal_growth_bytes: int,
    ) -> None:
        self._request = request
        self._parts = parts
        self._capture = capture
        self._comparison = comparison
        self._max_wal_growth_bytes = max_wal_growth_bytes
        self._wal_bytes = 0
        self._is_held_up = False
        self._read = PagesCaptured(0, 0)
        self._pinned: Pinned | None = None
        self._id: SnapshotId | None = None

    @property
    def progress(self) -> Progress:
        """How far everything is; zeros until anything has been read."""
        stored = sum(part.uploaded_bytes for part in self._parts)
        return Progress(self._read.captured_bytes, self._read.image_bytes, stored)

    def image(self, hashes: Path) -> Image:
        """What was captured; after the last event."""
        assert self._id is not None and self._pinned is not None  # noqa: PT018, S101
        api_differs = self._comparison.differs and self._pinned.facts.journal_mode != "wal"
        return Image(self._id, self._pinned, hashes, image_digest(map_hashes(hashes)), api_differs)

    def handle(self, event: object) -> None:
        """Act on one event of the capture; None is the passing of time."""
        match event:
            case Pinned():
                self._pinned = event
                self._id = SnapshotId.new(datetime.fromtimestamp(event.taken_at, UTC), secrets.randbits(32))
                self._wal_bytes = _wal_bytes(self._request.path)
            case PagesCaptured():
                self._read = event
            case PackReady():
                self._distribute(event)
            case HeldUp():
                self._is_held_up = event.is_waiting
            case Compared():
                self._comparison.note(is_same=event.is_same)
            case Captured():
                self._is_held_up = False
            case None:
                for part in self._parts:
                    part.fail_if_silent()
            case _:
                pass
        if self._is_held_up:
            self._limit_wal()

    def _distribute(self, pack: PackReady) -> None:
        takers = [part for part in self._parts if part.stream == pack.stream and part.error is None]
        spooled = SpooledPack(pack, len(takers), self._capture, is_encrypted=bool(self._request.recipients))
        for part in takers:
            part.upload(spooled)

    def _limit_wal(self) -> None:
        grown = _wal_bytes(self._request.path) - self._wal_bytes
        if grown <= self._max_wal_growth_bytes:
            return
        if self._capture.packs_in_spool < self._request.slots:
            self._capture.stop_waiting()  # it is the compression that is slow, and that can be done later
            return
        # A full spool: of the stores that packs wait for, those that hold half of it or more are the slow ones.
        for part in [part for part in self._parts if part.waiting_packs * 2 >= self._request.slots]:
            part.fail(
                StoreUnavailableError(
                    f"{part.repository.url} is too slow: the WAL of {self._request.path} grew by {grown >> 20} MiB "
                    "while the snapshot waited for it",
                    hint="the next snapshot tries again; raise capture.max_wal_growth if the disk has room",
                )
            )


def _wal_bytes(path: str) -> int:
    """Size of the write-ahead log beside the database; `stat` leaves SQLite's locks alone."""
    try:
        return os.stat(path + "-wal").st_size  # noqa: PTH116
    except FileNotFoundError:
        return 0
