"""Take one snapshot of one database into every store: one capture feeds them all, and none can stop another."""

from __future__ import annotations

import math
import time
from concurrent.futures import wait
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from backupd.backup.comparison import Comparison
from backupd.backup.feed import Feed
from backupd.backup.results import BackupResult, Outcome, Progress, Wish, exit_code_of
from backupd.backup.silence import Patience, SilentStores
from backupd.backup.spooled import spool_failure
from backupd.backup.store_part import StorePart
from backupd.capture.process import Capture, CaptureRequest, PagesCaptured, StreamBase
from backupd.errors import BackupdError, LostPacksError, StoreUnavailableError, expected
from backupd.format.manifest import SnapshotKind
from backupd.live.intent import finish_interrupted
from backupd.store import canonical_url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from backupd.config import Database, Settings
    from backupd.state import StateDirectory
    from backupd.store import Store

__all__ = ["BackupResult", "Outcome", "Patience", "Progress", "Wish", "back_up", "exit_code_of"]

_SLOT_BYTES = 8 << 20
_FEWEST_SLOTS = 4
_TICK_SECONDS = 0.1
_GRACE_SECONDS = 1.5
_PATIENCE = Patience()
_SILENT_STORES = SilentStores()


def back_up(
    database: Database,
    stores: Sequence[Store],
    settings: Settings,
    state: StateDirectory,
    *,
    wish: Wish,
    on_progress: Callable[[Progress], None],
    patience: Patience = _PATIENCE,
) -> list[BackupResult]:
    """One snapshot of `database` in each of `stores`, with the same id in all; a result per store, in their order.

    Expected failures are results, never exceptions. Repeatable. A store that lost acknowledged packs while the snapshot
    was written gets a second try, which writes their pages again. One that stops answering is given up as `patience`
    says, and the threads that wait for it are left behind.
    """
    results = _attempt(database, stores, settings, state, wish, on_progress, patience)
    lost = [store for store, result in zip(stores, results, strict=True) if isinstance(result.error, LostPacksError)]
    if lost:
        again = iter(_attempt(database, lost, settings, state, wish, on_progress, patience))
        results = [next(again) if isinstance(result.error, LostPacksError) else result for result in results]
    return results


def _attempt(
    database: Database,
    stores: Sequence[Store],
    settings: Settings,
    state: StateDirectory,
    wish: Wish,
    on_progress: Callable[[Progress], None],
    patience: Patience,
) -> list[BackupResult]:
    started = time.monotonic()
    parts = [StorePart(database, store, state, settings, wish, patience) for store in stores]
    try:
        if wish.kind is SnapshotKind.REGULAR:  # a restore has done so itself, and has the database open now
            finish_interrupted(database.file(), state, lock_timeout=settings.capture.lock_timeout.total_seconds())
        with state.spool() as spool, Capture() as capture:
            asked = _not_silent(database, stores, parts, patience)
            for part in sorted(asked, key=lambda part: canonical_url(part.repository.url)):
                part.lock()
            # All stores at once, so that a slow one costs its own time and no other's.
            ready = _all_do(StorePart.prepare, asked, lambda: on_progress(Progress(0, 0, 0)), patience.others_wait)
            if ready:
                try:
                    _run(capture, database, ready, settings, state, spool, on_progress)
                except BackupdError as error:
                    # Before the spool goes, or an upload that misses its file would be the first to fail.
                    for part in ready:
                        part.fail(error)
    except (BackupdError, OSError, MemoryError) as error:
        for part in parts:
            part.fail(spool_failure(error) if isinstance(error, OSError) else expected(error))
    finally:
        # A directory store removes its temporary file when it may finish; a store that hangs is not waited for.
        wait([each for part in parts for each in part.drop()], timeout=_GRACE_SECONDS)
        for part in parts:
            part.close()
    _note_silent(database, stores, parts, patience)
    return [part.result(time.monotonic() - started) for part in parts]


def _not_silent(
    database: Database, stores: Sequence[Store], parts: Sequence[StorePart], patience: Patience
) -> list[StorePart]:
    """The parts whose store is worth asking; the others fail, without another wait."""
    for store, part in zip(stores, parts, strict=True):
        if reason := _SILENT_STORES.reason_to_spare(store, database.name, rest_seconds=patience.rest):
            part.fail(reason)
    return [part for part in parts if part.error is None]


def _note_silent(database: Database, stores: Sequence[Store], parts: Sequence[StorePart], patience: Patience) -> None:
    """Have the next runs spare the stores that were waited for in vain."""
    for store, part in zip(stores, parts, strict=True):
        if part.error is None:
            _SILENT_STORES.forget(store)
        elif isinstance(part.error, StoreUnavailableError) and part.was_silent_seconds > patience.others_wait:
            _SILENT_STORES.note(store, database.name, part.running)


def _run(
    capture: Capture,
    database: Database,
    parts: Sequence[StorePart],
    settings: Settings,
    state: StateDirectory,
    spool: Path,
    on_progress: Callable[[Progress], None],
) -> None:
    """Run the capture, feed its packs to the parts, and let each of them commit."""
    path, max_lock_seconds = str(database.file()), settings.capture.max_lock.total_seconds()
    comparison = Comparison(state, path, max_lock_seconds=max_lock_seconds, now=datetime.now(UTC))
    request = CaptureRequest(
        path=path,
        spool=str(spool),
        streams=_share_streams(parts, spool),
        level=settings.packs.compression_level,
        slots=max(_FEWEST_SLOTS, settings.packs.spool_limit // _SLOT_BYTES),
        lock_timeout=settings.capture.lock_timeout.total_seconds(),
        max_lock=max_lock_seconds,
        recipients=settings.encryption.recipients,
        compare_seconds=comparison.most_seconds,
        trusts_file=not comparison.differs,
    )
    feed = Feed(request, parts, capture, comparison, settings.capture.max_wal_growth)
    for event in capture.events(request, deadline=settings.capture.deadline.total_seconds()):
        feed.handle(event)
        if event is None or isinstance(event, PagesCaptured):
            on_progress(feed.progress)
    image = feed.image(spool / "hashes")
    _all_do(partial(StorePart.finish, image=image), parts, lambda: on_progress(feed.progress))


def _share_streams(parts: Sequence[StorePart], spool: Path) -> list[StreamBase]:
    """One stream of packs for all parts that need the same pages stored: nearly always one for all."""
    streams: dict[object, tuple[int, StreamBase]] = {}
    for part in parts:
        key = part.ground.stream_key()
        if key not in streams:
            streams[key] = (len(streams), part.ground.stream_base(spool / f"expected-{len(streams)}"))
        part.stream = streams[key][0]
    return [base for _, base in streams.values()]


def _all_do(
    step: Callable[[StorePart], None],
    parts: Sequence[StorePart],
    meanwhile: Callable[[], None],
    others_wait_seconds: float = math.inf,
) -> list[StorePart]:
    """Have all `parts` do `step` at once, and wait for those that have not failed; gives those that have done it.

    `meanwhile` is called now and then, and once at the end. A store that is silent for `others_wait_seconds` when
    another part is ready is given up.
    """
    doing = {part: part.start(partial(step, part)) for part in parts if part.error is None}
    while waiting := [each for part, each in doing.items() if part.error is None and not each.done()]:
        wait(waiting, timeout=_TICK_SECONDS)
        is_waited_for = any(part.error is None and each.done() for part, each in doing.items())
        for part in doing:
            part.fail_if_silent(others_wait_seconds if is_waited_for else math.inf)
        meanwhile()
    meanwhile()
    for each in doing.values():
        if each.done():
            each.result()  # what nobody expected is a bug, and must not look like a store's
    return [part for part in doing if part.error is None]
