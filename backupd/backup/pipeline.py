"""The way from a capture to the stores: packs are passed on as they come, and the application's WAL stays limited."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import msgspec

from backupd import __version__
from backupd.backup.assembly import Image
from backupd.backup.baseline import map_hashes
from backupd.backup.results import Progress
from backupd.backup.store_snapshot import SpooledPack
from backupd.capture.process import (
    Captured,
    Compared,
    Completed,
    HeldUp,
    NotReplayed,
    PackReady,
    PagesCaptured,
    Pinned,
)
from backupd.errors import StoreUnavailableError
from backupd.format import SnapshotId
from backupd.format.pagemap import image_digest
from backupd.logs import log
from backupd.state import UNUSABLE_STATE, Note

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.backup.results import SinceImage
    from backupd.backup.store_snapshot import StoreSnapshot
    from backupd.capture.limits import CaptureRequest, StreamBase
    from backupd.capture.process import Capture
    from backupd.state import StateDirectory

_COMPARED_EVERY = timedelta(days=7)
_COMPARISON_MAY_WAIT = timedelta(days=1)
_UNNOTICED_SECONDS = 0.5


class Stream(msgspec.Struct, frozen=True):
    """One stream of packs, and the stores that take it: those that need the same pages stored."""

    base: StreamBase
    takers: tuple[StoreSnapshot, ...]


def share_streams(parts: Sequence[StoreSnapshot], spool: Path, *, relocates: bool) -> list[Stream]:
    """Group `parts` by the pages that they need stored: nearly always, all take one stream.

    Unless `relocates`, only pages that have changed are stored.
    """
    groups: dict[object, list[StoreSnapshot]] = {}
    for part in parts:
        groups.setdefault(part.baseline.stream_key(relocates=relocates), []).append(part)
    return [
        Stream(takers[0].baseline.stream_base(spool / f"expected-{number}", relocates=relocates), tuple(takers))
        for number, takers in enumerate(groups.values())
    ]


class Pipeline:
    """Hands the capture's packs to the stores, and gives up a slow one before the application's WAL grows too far."""

    def __init__(
        self,
        request: CaptureRequest,
        streams: Sequence[Stream],
        capture: Capture,
        comparison: Comparison,
        max_wal_growth_bytes: int,
        since: SinceImage | None = None,
    ) -> None:
        """`since` is what the log of the request stands for."""
        self._request = request
        self._streams = streams
        self._parts = [part for stream in streams for part in stream.takers]
        self._capture = capture
        self._comparison = comparison
        self._max_wal_growth_bytes = max_wal_growth_bytes
        self._since = since
        self._wal_bytes = 0
        self._is_held_up = False
        self._read = PagesCaptured(0, 0)

    @property
    def progress(self) -> Progress:
        """The progress of capture and uploads; zeros until anything has been read."""
        stored = sum(part.uploads.uploaded_bytes for part in self._parts)
        return Progress(self._read.captured_bytes, self._read.image_bytes, stored)

    def run(self, hashes: Path, *, deadline_seconds: float, on_progress: Callable[[Progress], None]) -> Image:
        """Capture, and start the uploads; `hashes` is the file that the capture leaves. Raises what `events` raises."""
        pinned: Pinned | None = None
        first_page = b""
        for event in self._capture.events(self._request, deadline=deadline_seconds):
            if isinstance(event, Pinned):
                pinned = event
            elif isinstance(event, Completed):
                first_page = event.first_page
            elif isinstance(event, NotReplayed):
                log.info("the database is read", path=self._request.path, reason=event.reason)
            self._handle(event)
            if event is None or isinstance(event, PagesCaptured):
                on_progress(self.progress)
        if pinned is None:
            raise RuntimeError("the capture ended without saying which state it captured")
        snapshot_id = SnapshotId.new(datetime.fromtimestamp(pinned.taken_at, UTC), secrets.randbits(32))
        api_differs = self._comparison.differs and pinned.facts.journal_mode != "wal"
        return Image(
            snapshot_id,
            pinned,
            hashes,
            image_digest(map_hashes(hashes)),
            first_page,
            self._since if pinned.is_replayed else None,
            api_differs,
        )

    def _handle(self, event: object) -> None:
        """Act on one event of the capture; None is the passing of time."""
        match event:
            case Pinned():
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
        takers = [part for part in self._streams[pack.stream].takers if part.error is None]
        spooled = SpooledPack(pack, len(takers), self._capture, is_encrypted=bool(self._request.recipients))
        for part in takers:
            part.uploads.add(spooled)

    def _limit_wal(self) -> None:
        grown = _wal_bytes(self._request.path) - self._wal_bytes
        if grown <= self._max_wal_growth_bytes:
            return
        if self._capture.packs_in_spool < self._request.slots:
            self._capture.stop_waiting()  # it is the compression that is slow, and that can be done later
            return
        # A full spool: of the stores that packs wait for, those that hold half of it or more are the slow ones.
        for part in [part for part in self._parts if part.uploads.waiting * 2 >= self._request.slots]:
            part.fail(
                StoreUnavailableError(
                    f"{part.archive.url} is too slow: the WAL of {self._request.path} grew by {grown >> 20} MiB "
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


class _Compared(msgspec.Struct, frozen=True):
    """The note about one database: when it was compared last, and since when the comparison has been due.

    A difference counts for one device and one version of backupd, because either may be its cause.
    """

    kind: ClassVar[str] = "comparison"

    compared_at: datetime | None = None
    due_since: datetime | None = None
    differs_on: int | None = None
    differs_in: str | None = None


class Comparison:
    """The comparison of a database that was read without a lock with what SQLite's backup API gives, for one run.

    It is due the first time that a database is read so, and then once a week. While it would delay writers noticeably,
    it waits for a better moment; after a day it takes the time that `max_lock` grants.
    """

    def __init__(self, state: StateDirectory, path: str, *, max_lock_seconds: float, now: datetime) -> None:
        self._note = Note(state, _Compared, path)
        is_readable = True
        try:
            self._record = self._note.read() or _Compared()
        except UNUSABLE_STATE:
            self._record, is_readable = _Compared(), False
        self._max_lock_seconds = max_lock_seconds
        self._now = now.astimezone(UTC)
        self._device = _device(path)
        has_differed = (self._record.differs_on, self._record.differs_in) == (self._device, __version__)
        self.differs = has_differed or not is_readable
        """Whether reading without a lock may give other pages than SQLite reads; also when the note is unreadable."""

    @property
    def most_seconds(self) -> float:
        """For how long the lock may be held to compare; 0 when the comparison is not due."""
        due_since = self._due_since()
        if due_since is None:
            return 0.0
        return self._max_lock_seconds if self._now - due_since >= _COMPARISON_MAY_WAIT else _UNNOTICED_SECONDS

    def note(self, *, is_same: bool | None) -> None:
        """Remember the outcome; None says that it was due and would have taken too long."""
        if is_same is None:
            record = _Compared(self._record.compared_at, self._due_since())
        elif is_same:
            record = _Compared(compared_at=self._now)
        else:
            record = _Compared(self._now, None, self._device, __version__)
            self.differs = True
        if record != self._record:
            self._record = record
            with suppress(*UNUSABLE_STATE):  # it is compared once more then
                self._note.write(record)

    def _due_since(self) -> datetime | None:
        """Since when the comparison is due; never in the future, in which the clock may have been."""
        record, due_since = self._record, self._record.due_since
        if record.differs_on is not None:
            return self._now  # where it differed is past
        if due_since is None and record.compared_at is not None and record.compared_at <= self._now:
            due_since = record.compared_at + _COMPARED_EVERY
            return due_since if due_since <= self._now else None
        return min(due_since or self._now, self._now)


def _device(path: str) -> int | None:
    try:
        return Path(path).stat().st_dev
    except OSError:
        return None
