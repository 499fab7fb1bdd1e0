"""Take one snapshot of one database into every store: one capture feeds them all, and none can stop another."""

from __future__ import annotations

import os
import time
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.backup.feed import Feed
from backupd.backup.results import BackupResult, Outcome, Progress, Wish
from backupd.backup.store_part import StorePart, spool_failure
from backupd.capture.process import Capture, CaptureRequest, PagesCaptured, StreamBase
from backupd.errors import BackupdError, LostPacksError
from backupd.format.manifest import SnapshotKind
from backupd.live.intent import finish_interrupted
from backupd.repository import Repository
from backupd.store import canonical_url
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.config import Database, Settings
    from backupd.state import StateDirectory
    from backupd.store import Store

__all__ = ["BackupResult", "Outcome", "Progress", "Wish", "back_up"]

_SLOT_BYTES = 8 << 20
_FEWEST_SLOTS = 4
_TICK_SECONDS = 0.1
_GRACE_SECONDS = 1.5


def back_up(
    database: Database,
    stores: Sequence[Store],
    settings: Settings,
    state: StateDirectory,
    *,
    wish: Wish,
    on_progress: Callable[[Progress], None],
) -> list[BackupResult]:
    """One snapshot of `database` in each of `stores`, with the same id in all; a result per store, in their order.

    Expected failures are results, never exceptions. Repeatable. A store that lost acknowledged packs while the snapshot
    was written gets a second try, which writes their pages again.
    """
    results = _attempt(database, stores, settings, state, wish, on_progress)
    lost = [store for store, result in zip(stores, results, strict=True) if isinstance(result.error, LostPacksError)]
    if lost:
        again = iter(_attempt(database, lost, settings, state, wish, on_progress))
        results = [next(again) if isinstance(result.error, LostPacksError) else result for result in results]
    return results


def _attempt(
    database: Database,
    stores: Sequence[Store],
    settings: Settings,
    state: StateDirectory,
    wish: Wish,
    on_progress: Callable[[Progress], None],
) -> list[BackupResult]:
    started = time.monotonic()
    parts = [StorePart(database, Repository(store, state), state, settings, wish) for store in stores]
    try:
        if wish.kind is SnapshotKind.REGULAR:  # a restore has done so itself, and has the database open now
            finish_interrupted(Path(_led_to(database.path)), lock_timeout=settings.capture.lock_timeout.total_seconds())
        with state.spool() as spool, Capture() as capture:
            for part in sorted(parts, key=lambda part: canonical_url(part.repository.url)):
                part.lock()
            # All stores at once, so that a slow one costs its own time and no other's.
            _in_parallel([part.prepare for part in parts if part.error is None])
            ready = [part for part in parts if part.error is None]
            if ready:
                _run(capture, database, ready, settings, spool, on_progress)
    except (BackupdError, OSError) as error:
        for part in parts:
            part.fail(error if isinstance(error, BackupdError) else spool_failure(error))
    finally:
        for part in parts:
            part.close()
        # A directory store removes its temporary file when it may finish; a store that hangs is not waited for.
        wait([upload for part in parts for upload in part.running_uploads], timeout=_GRACE_SECONDS)
    return [part.result(time.monotonic() - started) for part in parts]


def _run(
    capture: Capture,
    database: Database,
    parts: Sequence[StorePart],
    settings: Settings,
    spool: Path,
    on_progress: Callable[[Progress], None],
) -> None:
    """Run the capture, feed its packs to the parts, and let each of them commit."""
    request = CaptureRequest(
        path=_led_to(database.path),
        spool=str(spool),
        streams=_share_streams(parts, spool),
        level=settings.packs.compression_level,
        slots=max(_FEWEST_SLOTS, settings.packs.spool_limit // _SLOT_BYTES),
        lock_timeout=settings.capture.lock_timeout.total_seconds(),
        max_lock=settings.capture.max_lock.total_seconds(),
    )
    feed = Feed(request, parts, capture, settings.capture.max_wal_growth)
    for event in capture.events(request, deadline=settings.capture.deadline.total_seconds()):
        feed.handle(event)
        if event is None or isinstance(event, PagesCaptured):
            on_progress(feed.progress)
    image = feed.image(spool / "hashes")
    _in_parallel([partial(part.finish, image) for part in parts], meanwhile=lambda: on_progress(feed.progress))


def _share_streams(parts: Sequence[StorePart], spool: Path) -> list[StreamBase]:
    """One stream of packs for all parts that need the same pages stored: nearly always one for all."""
    streams: dict[object, tuple[int, StreamBase]] = {}
    for part in parts:
        key = part.stream_key()
        if key not in streams:
            streams[key] = (len(streams), part.stream_base(spool / f"expected-{len(streams)}"))
        part.stream = streams[key][0]
    return [base for _, base in streams.values()]


def _led_to(path: Path) -> str:
    """The file behind a symbolic link: SQLite keeps its log there. One that leads nowhere goes by its own name."""
    return os.path.realpath(path) if os.path.exists(path) else str(path)  # noqa: PTH110  (Path.exists raises)


def _in_parallel(calls: Sequence[Callable[[], None]], meanwhile: Callable[[], None] = lambda: None) -> None:
    """Make all calls at once and wait for them; `meanwhile` is called now and then, and once at the end."""
    if not calls:
        return
    with worker_threads(len(calls)) as threads:
        futures = [threads.submit(call) for call in calls]
        while wait(futures, timeout=_TICK_SECONDS).not_done:
            meanwhile()
        meanwhile()
        for future in futures:
            future.result()
