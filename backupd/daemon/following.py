"""Following the logs of the databases: the process that reads them, and what the daemon does about what it reports.

A window is worth nothing before a snapshot is in it, so the beginning of one asks for a snapshot. A snapshot lies
between two marks: what had been committed before it began, and when it was done.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import TimeoutError as NoAnswerError
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.backup import Outcome
from backupd.concurrency import start_thread
from backupd.daemon.follow_report import FollowReport, Limits
from backupd.daemon.kept_segments import KeptSegments, remove_kept
from backupd.daemon.segment_uploads import SegmentUploads
from backupd.errors import BackupdError
from backupd.follow.chain import WindowBegan, WindowEnded
from backupd.follow.process import FollowerProcess
from backupd.follow.spool import Cut
from backupd.format import SnapshotId
from backupd.format.segment import Anchor
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backupd.backup import BackupResult
    from backupd.backup.results import SinceImage
    from backupd.config import Database, Settings
    from backupd.daemon.discovery import Inventory
    from backupd.follow.chain import Mark
    from backupd.follow.process import Event
    from backupd.health import StatusFile
    from backupd.state import StateDirectory

_INTERVAL_SECONDS = 10.0
_DIRECTORY_INTERVAL_SECONDS = 1.0
_MARK_SECONDS = 5.0
_STOP_SECONDS = 2.0
_RESTART_SECONDS = 5.0
_LOOK_SECONDS = 20.0
_BETWEEN_SNAPSHOTS_SECONDS = 60.0
"""Windows may follow each other quickly: an application that closes its last connection removes its log each time."""
_STORED_SECONDS = 15.0
_STORED_TICK_SECONDS = 0.1
_LAST_WAIT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class _Followed:
    """How a database is followed: into which stores (URLs), cut how often, and how much may wait for them."""

    database: Database
    within: Path | None
    stores: tuple[str, ...]
    interval: float
    spool_bytes: int


@dataclass(slots=True)
class _Wanted:
    """A snapshot that a window needs, or (None) a gap: when it may begin (monotonic), and the wait if it fails."""

    window: SnapshotId | None
    due_at: float
    wait: float = _BETWEEN_SNAPSHOTS_SECONDS


class Following:
    """Follows what one configuration after the other asks for. Threads may share it."""

    def __init__(self, state: StateDirectory, status: StatusFile, begin_window: Callable[[str], None]) -> None:
        """`begin_window` has a snapshot taken of a database, soon. What following comes to is in `status`."""
        self._state = state
        self._report = FollowReport(status)
        self._begin_window = begin_window
        self._configuring = threading.Lock()
        """Held while requests are written, which may have to wait until what the process reports is read."""
        self._lock = threading.Lock()
        """Never held while anything is waited for."""
        self._process: FollowerProcess | None = None
        self._reader: threading.Thread | None = None
        self._plan: tuple[Settings, Inventory] | None = None
        self._followed: dict[str, _Followed] = {}
        self._forgotten: dict[str, _Followed] = {}
        """Databases that are followed no longer: what was read of them goes to the stores, too."""
        self._uploads = SegmentUploads()
        self._kept = KeptSegments()
        remove_kept(state.all_followed())
        self._wanted: dict[str, _Wanted] = {}
        """By name, the databases whose window needs a snapshot."""
        self._may_begin: dict[str, float] = {}
        self._spans: Counter[str] = Counter()
        """How many snapshots of a database are being taken."""
        self._places: dict[str, tuple[SnapshotId, Anchor]] = {}
        """The window of the newest snapshot of each database, and its place there."""
        self._look_at = 0.0
        self._stopping = threading.Event()

    def configure(self, settings: Settings, inventory: Inventory, *, superseded: threading.Event | None = None) -> None:
        """Follow the databases of `inventory` into its stores from now on, and no others, unless that is `superseded`.

        What cannot be done is logged: snapshots are taken as ever. Raises nothing.
        """
        with self._configuring, log.catch():
            if not self._stopping.is_set() and not (superseded and superseded.is_set()):
                self._plan = settings, inventory
                self._follow_only(settings, inventory)

    def _follow_only(self, settings: Settings, inventory: Inventory) -> None:
        databases = inventory.all_databases if settings.follow.enabled else []
        urls = tuple(store.url for store in inventory.stores)
        interval = _interval_of(settings, urls)
        self._report.use([each.name for each in databases], Limits(settings.follow.max_age.total_seconds(), interval))
        process = self._process
        if process is None:
            if not databases:
                self._report.write(self._uploads)
                return
            process = self._start()
        self._uploads.use(store.repository for store in inventory.stores)
        for name in self._followed.keys() - {each.name for each in databases}:
            with self._lock:
                self._forgotten[name] = self._followed.pop(name)
                self._wanted.pop(name, None)
            process.forget(name)
            self._kept.forget(name)
        for configured in databases:
            database = configured.database
            followed = _Followed(database, database.within, urls, interval, settings.follow.spool)
            if self._followed.get(database.name) != followed:
                spool = self._state.followed(database.name)
                with self._lock:
                    self._followed[database.name] = followed
                self._kept.use(database.name, spool)
                process.follow(database, spool, interval=followed.interval, most_bytes=followed.spool_bytes)
                process.mark(database.name).add_done_callback(partial(self._report.marked, database.name))

    def _start(self) -> FollowerProcess:
        try:
            process = FollowerProcess()
        except BackupdError:
            self._report.process_ended(self._uploads)
            raise
        try:
            reader = start_thread(self._read, process, name="follow")
        except BaseException:
            process.end()
            raise
        with self._lock:
            self._process, self._reader, self._followed = process, reader, {}
        return process

    def span(self, name: str) -> Span:
        """Begin a snapshot of a database: all that is committed by now will be in it."""
        with self._lock:
            self._spans[name] += 1
            process = self._process if name in self._followed else None
        return Span(self, process, self._kept, name)

    def newest_place(self, name: str, store: str) -> Mapping[SnapshotId, Anchor]:
        """Return the place of the newest snapshot by its window, once `store` (URL) has all commits up to there.

        No segment may have named it yet. Waits for the store for some seconds. Empty when it is not known.
        """
        give_up_at = time.monotonic() + _STORED_SECONDS
        while (name, store) in self._uploads.lacking() and time.monotonic() < give_up_at:
            if self._stopping.wait(_STORED_TICK_SECONDS):
                break
        with self._lock:
            return dict([self._places[name]]) if name in self._places else {}

    def distrust(self, name: str, window: SnapshotId) -> None:
        """End a recovery window whose commits have turned out wrong. If the database is still in it, another begins."""
        with self._lock:
            process = self._process if name in self._followed else None
        if process is not None:
            process.distrust(name, window)

    def _distrust_broken(self) -> None:
        """Now and then, end the windows that a check has found broken: one by hand is in the status, too."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            for name, window in self._report.broken_windows():
                self.distrust(name, SnapshotId(window))

    def ended(self, name: str, anchored: SnapshotId | None, place: Anchor | None) -> None:
        """Note the end of a span, and the window that has a snapshot now, in its place, if one has."""
        with self._lock:
            self._spans[name] -= 1
            if anchored is not None and place is not None:
                self._places[name] = anchored, place
            wanted = self._wanted.get(name)
            if wanted is not None and wanted.window in (None, anchored):
                del self._wanted[name]

    def stop(self) -> None:
        """Store what was read in the time that is left, and end the process. What is not stored stays in the spool."""
        self._stopping.set()
        with self._lock:
            process, reader = self._process, self._reader
        if process is not None and reader is not None:
            process.stop()
            reader.join(_STOP_SECONDS)
            process.end()
        self._kept.clear()
        self._uploads.stop(within_seconds=_STOP_SECONDS)
        self._report.write(self._uploads)

    def _read(self, process: FollowerProcess) -> None:
        """Act on what the process reports until it ends; then start another one, unless the daemon stops."""
        for event in process.events():
            with log.catch():
                if event is not None:
                    self._act_on(event)
                self._begin_windows()
                self._distrust_broken()
                self._report.tick(process, self._uploads)
        status = process.end()
        if self._stopping.is_set():
            return
        log.error("the process that follows databases has ended", status=status, hint="another one is started")
        self._report.process_ended(self._uploads)
        with self._lock:
            self._process = None
        while self._process is None and not self._stopping.wait(_RESTART_SECONDS):
            if self._plan is not None:
                self.configure(*self._plan)
            if not self._is_wanted:
                return

    @property
    def _is_wanted(self) -> bool:
        return self._plan is not None and self._plan[0].follow.enabled

    def _act_on(self, event: Event) -> None:
        name = event.name
        match event.what:
            case Cut():
                with self._lock:
                    followed = self._followed.get(name) or self._forgotten.get(name)
                self._kept.add(name, event.what)
                if followed is not None:
                    file, most_bytes = Path(event.what.file), followed.spool_bytes // 2
                    self._uploads.add(name, file, followed.stores, most_bytes=most_bytes)
            case WindowBegan():
                log.info("a recovery window begins", database=name, window=event.what.window)
                self._report.window_began(name, event.what.window)
                with self._lock:
                    if name in self._followed:
                        self._wanted[name] = _Wanted(event.what.window, self._may_begin.get(name, 0.0))
            case WindowEnded():
                log.warning("a recovery window has ended", database=name, reason=event.what.reason)
                self._report.window_ended(name, event.what)
                self._kept.end_window(name)
                with self._lock:
                    if name in self._followed:  # what was committed in the gap is in no window
                        self._wanted[name] = _Wanted(None, self._may_begin.get(name, 0.0))

    def _begin_windows(self) -> None:
        """Have snapshots taken of the databases whose window has none: not of one all the time, and not of one twice.

        A snapshot that has begun before the window has no place in it: the next one waits for its end.
        """
        now = time.monotonic()
        with self._lock:
            due = {
                name: wanted for name, wanted in self._wanted.items() if wanted.due_at <= now and not self._spans[name]
            }
            for name, wanted in due.items():
                self._may_begin[name] = now + _BETWEEN_SNAPSHOTS_SECONDS
                wanted.due_at, wanted.wait = now + wanted.wait, min(wanted.wait * 2, _LAST_WAIT_SECONDS)
        for name in due:
            self._begin_window(name)


class Span:
    """A snapshot that is being taken, between two marks in the window of its database."""

    def __init__(self, following: Following, process: FollowerProcess | None, kept: KeptSegments, name: str) -> None:
        """Ask for the first mark; without a `process`, the database is not followed."""
        self._following = following
        self._process = process
        self._kept = kept
        self._name = name
        self._before = self._mark()

    def since(self) -> SinceImage | None:
        """Return the state at the first mark, if it can be built from the newest image and the log."""
        return None if self._before is None else self._kept.since(self._name, self._before)

    def end(self, results: Sequence[BackupResult]) -> None:
        """Let the next segment say where the snapshots in `results` are, those that nothing was newer than included.

        Call it once for each span; without results when the snapshot failed.
        """
        anchor = None
        try:
            anchor = self._anchor([each for each in results if each.outcome is not Outcome.FAILED])
        finally:
            window = None if anchor is None or self._before is None else self._before.window
            self._following.ended(self._name, window, anchor)

    def _anchor(self, results: Sequence[BackupResult]) -> Anchor | None:
        places = self._places(results)
        if self._process is None or self._before is None or places is None:
            return None
        after, by = places
        anchor = None
        # That a state is still that of a snapshot, the log alone has shown: this must not count as a proof of the log.
        shown = {each.id for each in results if each.has_made_snapshot or not (each.image and each.image.replayed)}
        for snapshot_id in sorted(found for found in shown if found is not None):
            anchor = Anchor(snapshot=snapshot_id, after=after, by=by)
            self._process.anchor(self._name, self._before.window, anchor)
        image = next((each.image for each in results if each.image is not None), None)
        if image is not None or any(each.was_read for each in results):
            self._kept.continues(self._name, self._before.window, image, after=after)
        return anchor

    def _places(self, results: Sequence[BackupResult]) -> tuple[int, int] | None:
        """Return after which commits the state of the snapshots may be, the first and the last one; None if unknown."""
        before = self._before
        if before is None or not any(each.id is not None for each in results):
            return None
        replayed = next((each.image.replayed for each in results if each.image is not None), None)
        if replayed is not None:
            return (replayed.commit, replayed.commit) if replayed.window == before.window else None
        after = self._mark()
        if after is None or after.window != before.window:
            return None
        # The last commit may have been in the log, and not yet visible to readers.
        return before.last - 1, after.last

    def _mark(self) -> Mark | None:
        if self._process is None:
            return None
        try:
            return self._process.mark(self._name).result(_MARK_SECONDS)
        except NoAnswerError:
            return None


def _interval_of(settings: Settings, urls: Sequence[str]) -> float:
    if settings.follow.interval is not None:
        return settings.follow.interval.total_seconds()
    has_bucket = any(url.startswith("s3://") for url in urls)
    return _INTERVAL_SECONDS if has_bucket else _DIRECTORY_INTERVAL_SECONDS
