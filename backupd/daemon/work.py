"""The daemon's work for the databases, and the context that it shares: snapshots, drills and prunes, each in its turn.

Drills and scheduled prunes take the stores that answer. A store that stops answering is skipped for the rest of the
databases: otherwise a thousand of them would wait for its time limit one after the other.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from backupd.backup import Outcome, SnapshotRequest
from backupd.daemon.reachability import Reachability
from backupd.errors import BackupdError, BusyError, InterruptedByUserError, StoreUnavailableError, as_backupd_error
from backupd.health import planning, recording
from backupd.jobs.prunes import is_pruned_after
from backupd.jobs.snapshots import take_snapshot
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.backup import BackupResult
    from backupd.capture.worker import Workers
    from backupd.config import DatabaseSettings, Settings
    from backupd.daemon.discovery import Discovery, Inventory
    from backupd.daemon.following import Following
    from backupd.daemon.runs import Runs
    from backupd.health import StatusFile, StoreHealth
    from backupd.health.heartbeats import Heartbeats
    from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore
    from backupd.jobs.prunes import Pruner
    from backupd.state import StateDirectory
    from backupd.verify import ContinuityResult

_MOST_TRIES = 3
_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Context:
    """One configuration in force, with what carries it out. Each reload and each new plan makes another context."""

    settings: Settings
    state: StateDirectory
    status: StatusFile
    discovery: Discovery
    runs: Runs
    heartbeats: Heartbeats
    pruner: Pruner
    wake: Callable[[], None]
    """Call it when the status has changed, so that alarms are reported without delay."""
    following: Following | None = None
    """What follows the databases; without it, no snapshot is known to lie in a window."""
    workers: Workers | None = None
    """The processes that capture, kept while runs follow each other; without them, each capture starts its own."""
    reachability: Reachability = field(default_factory=Reachability)
    superseded: threading.Event = field(default_factory=threading.Event)
    """Set when another context has replaced this one: work that has begun may finish, and plans nothing more."""


def back_up_database(
    configured: ConfiguredDatabase,
    stores: Sequence[ConfiguredStore],
    context: Context,
    *,
    drill_soon: Callable[[ConfiguredDatabase], None],
    must_read: bool = False,
) -> BackupdError | None:
    """Take a snapshot into each of `stores` and prune after it. Return the first error of the snapshot.

    With `must_read`, it is not built from the log.

    A store in which a drill found damage gets the damaged pages again, and every page when it is still damaged after
    that: each time `drill_soon` is called, to see whether it is sound now.
    """
    started_at = datetime.now(UTC)
    context.status.update_or_log(lambda status: planning.with_running(status, configured.name, since=started_at))
    try:
        results, has_mended = _take_all(configured, stores, context, must_read=must_read)
    except Exception as bug:
        # The caller logs it; but the status must show that the database is not backed up.
        down = {configured.name: [(store.url, as_backupd_error(bug)) for store in stores]}
        context.status.update_or_log(lambda status: recording.with_down(status, down, at=started_at))
        raise
    finally:
        context.status.update_or_log(lambda status: planning.with_running(status, configured.name, since=None))
    if has_mended:
        drill_soon(configured)
    prune_after_snapshot(results, stores, context)
    return next((result.error for result in results if result.error is not None), None)


def _take_all(
    configured: ConfiguredDatabase, stores: Sequence[ConfiguredStore], context: Context, *, must_read: bool
) -> tuple[list[BackupResult], bool]:
    """Return the results, and whether a damaged store was given again what was damaged."""
    known = context.status.read().databases.get(configured.name)
    health = known.stores if known else {}
    damaged = {store.url for store in stores if is_known_damaged(health.get(store.url))}
    in_full = [store for store in stores if store.url in damaged and is_still_damaged(health[store.url])]
    others = [store for store in stores if store not in in_full]
    # The others in one run: which pages of which store are damaged, a snapshot reads from that store itself.
    results = [
        *take_logged_snapshot(configured, others, context, SnapshotRequest(must_read=must_read)),
        *take_logged_snapshot(configured, in_full, context, SnapshotRequest(is_full=True)),
    ]
    known_damaged = {url for url, each in health.items() if each.is_damaged}
    # Damage that another machine, or a `backupd verify`, has found may be recorded in the store alone.
    unknown = {result.store for result in results if result.replaced_packs} - known_damaged
    sound = {result.store for result in results if result.error is None}
    return results, bool(sound & (damaged | unknown))


def is_known_damaged(health: StoreHealth | None) -> bool:
    """Whether a drill found stored bytes damaged, and no snapshot since has written their pages again."""
    if health is None or not health.is_damaged or health.drill_failure is None:
        return False
    if health.drill_failure.count > _MOST_TRIES:  # the store damages everything that it gets: a person has to act
        return False
    return health.snapshot_at is None or health.snapshot_at <= health.drill_failure.last_at


def is_still_damaged(health: StoreHealth) -> bool:
    """Whether a drill found damage once more after a snapshot that had stored the damaged pages again."""
    failure, snapshot_at = health.drill_failure, health.snapshot_at
    return failure is not None and snapshot_at is not None and failure.since < snapshot_at <= failure.last_at


def take_logged_snapshot(
    configured: ConfiguredDatabase, stores: Sequence[ConfiguredStore], context: Context, request: SnapshotRequest
) -> list[BackupResult]:
    """Take a snapshot into each of `stores`, and log each result, in their order."""
    if not stores:
        return []
    span = context.following.span(configured.name) if context.following else None
    results: list[BackupResult] = []
    try:
        since = span.since() if span is not None and not request.must_read else None
        results = take_snapshot(
            configured,
            stores,
            context,
            request=request,
            on_progress=context.runs.abandoned.check,
            workers=context.workers,
            since=since,
            also=partial(planning.with_running, name=configured.name, since=None),
        )
    finally:
        if span is not None:
            span.end(results)
    for result in results:
        log_snapshot(result)
    return results


def log_snapshot(result: BackupResult) -> None:
    """Log what became of a snapshot of one database in one store."""
    write = log.error if result.outcome is Outcome.FAILED else log.warning if result.warnings else log.info
    write("snapshot", **result.values())


def prune_after_snapshot(results: Sequence[BackupResult], stores: Sequence[ConfiguredStore], context: Context) -> None:
    """Prune each store after its snapshot, where the policy of the database wants that."""
    by_url = {store.url: store for store in stores}
    status = context.status.read()
    for result in results:
        if is_pruned_after(result, by_url[result.store], status):
            context.pruner.prune(result.database, by_url[result.store], context.runs.abandoned.check)


def run_drills(context: Context, entry: DatabaseSettings) -> None:
    """Test-restore each database of the entry, one after the other, each from the store whose turn it is.

    A drill needs as much room as its database: run no two of these at the same time.
    """
    inventory = context.discovery.now()
    stores = _AnsweringStores(context, inventory)
    with suppress(InterruptedByUserError):
        for configured in inventory.databases(entry)[0]:
            with log.catch(InterruptedByUserError, database=configured.name):
                _drill(configured, stores, context)


def run_drill(context: Context, configured: ConfiguredDatabase) -> None:
    """Test-restore one database now, to see whether a snapshot has repaired what another drill found damaged."""
    with suppress(InterruptedByUserError), log.catch(InterruptedByUserError, database=configured.name):
        _drill(configured, _AnsweringStores(context, context.discovery.now()), context)


def _drill(configured: ConfiguredDatabase, stores: _AnsweringStores, context: Context) -> None:
    # numpy and SQLite: 7 MB in a daemon that only waits
    from backupd.jobs.checks import check_continuity, drill_next  # noqa: PLC0415

    _read_again(configured, stores, context)
    # In a turn of its own, beside snapshots: a stop of the daemon waits until the copy is gone from scratch.
    with context.runs.turn(f"{configured.name} (drill)", timeout=None):
        result = drill_next(
            configured,
            stores.answering,
            context,
            others=stores.others,
            should_stop=context.runs.stopping.check,
        )
        if result is not None and not isinstance(result.error, StoreUnavailableError):
            store = next(each for each in stores.answering if each.url == result.store)
            others = [each for each in (*stores.answering, *stores.others) if each.url != store.url]
            continuity = check_continuity(
                configured.name,
                store,
                context,
                others=others,
                newest=context.following.newest_place(configured.name, store.url) if context.following else {},
                should_stop=context.runs.stopping.check,
            )
            if continuity is not None:
                _log_continuity(continuity, context)
    if result is not None:
        write = log.info if result.error is None else log.error
        write("drill", **result.values())
        stores.skip_if_unavailable(result.store, result.error)
        context.wake()


def _read_again(configured: ConfiguredDatabase, stores: _AnsweringStores, context: Context) -> None:
    """Take a snapshot of the database itself, if the newest one was built from its log: a drill compares the two."""
    if context.following is None:
        return
    archives = [store.repository.archive(configured.name) for store in stores.answering]
    with suppress(BackupdError):  # the drill meets it, too, and reports it; so does the end of the daemon
        newest = [archive.history().newest for archive in archives]
        if any(each is not None and each.replayed is not None for each in newest):
            with context.runs.turn(configured.name, timeout=_LONGEST_WAIT_SECONDS):
                back_up_database(configured, stores.taking, context, drill_soon=lambda _: None, must_read=True)


def _log_continuity(result: ContinuityResult, context: Context) -> None:
    """Log what became of the check of a recovery window. One that is broken is over, and another one begins."""
    write = log.info if result.error is None else log.error
    write("continuity", **result.values())
    if context.following is not None and result.found is not None and result.is_broken:
        context.following.distrust(result.database, result.found.window)


def run_prunes(context: Context, entry: DatabaseSettings) -> None:
    """Prune each database of the entry in each store, one after the other.

    A snapshot of the same database waits until its prune has ended. A database whose run takes long is left out: the
    next prune makes up for it.
    """
    inventory = context.discovery.now()
    stores = _AnsweringStores(context, inventory)
    with suppress(InterruptedByUserError):
        for configured in inventory.databases(entry)[0]:
            with log.catch(InterruptedByUserError, database=configured.name), suppress(BusyError):
                _prune(configured, stores, context)


def _prune(configured: ConfiguredDatabase, stores: _AnsweringStores, context: Context) -> None:
    with context.runs.turn(configured.name, timeout=_LONGEST_WAIT_SECONDS):
        for store in stores.answering:
            result = context.pruner.prune(configured.name, store, context.runs.abandoned.check)
            if result is not None:
                stores.skip_if_unavailable(result.store, result.error)
    context.wake()


class _AnsweringStores:
    """The stores of one inventory: those that answer and whose keys may read packs and delete, and the others."""

    def __init__(self, context: Context, inventory: Inventory) -> None:
        self._all = inventory.stores
        with_full_keys = [store for store in self._all if not store.is_put_only]
        errors = context.reachability.ask(with_full_keys).errors
        for url, error in errors.items():
            log.error("store not asked", store=url, error=error.values())
        self._answering = {store.url for store in with_full_keys if store.url not in errors}

    @property
    def answering(self) -> list[ConfiguredStore]:
        return [store for store in self._all if store.url in self._answering]

    @property
    def taking(self) -> list[ConfiguredStore]:
        """Those that take snapshots, as far as that is known."""
        return [store for store in self._all if store.is_put_only or store.url in self._answering]

    @property
    def others(self) -> list[ConfiguredStore]:
        return [store for store in self._all if store.url not in self._answering]

    def skip_if_unavailable(self, url: str, error: BackupdError | None) -> None:
        if isinstance(error, StoreUnavailableError):
            self._answering.discard(url)
