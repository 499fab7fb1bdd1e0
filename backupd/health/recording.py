"""Changes of the status by the results of jobs. Pure: a status goes in, another comes out, for `StatusFile.update`.

Times are aware and UTC. `at` is when the attempt began: the state that it saved is at least that new.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backupd.errors import AnotherRunError, InterruptedByUserError, SourceUnusableError
from backupd.format.records import CheckOutcome
from backupd.health.values import (
    DatabaseHealth,
    Failure,
    LastRun,
    Problem,
    Status,
    StoreHealth,
    next_failure,
    next_hold,
    next_problem,
    with_database,
    with_databases,
    with_stores,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from backupd.backup.results import BackupResult
    from backupd.errors import BackupdError
    from backupd.prune.pruning import PruneResult
    from backupd.verify import CheckResult, ContinuityResult

_API_DIFFERS = SourceUnusableError(
    "reading its file gave something else than SQLite reads from it; snapshots are taken through SQLite alone since",
    hint="look at the file system, which may show stale pages (a network or host mount?), and report it if that is a "
    "local disk; it is tried again when the database is on another device, or backupd is upgraded",
)
_PRUNED_EACH = timedelta(days=1)
_SUCCEEDED = frozenset((CheckOutcome.PROVEN, CheckOutcome.NOT_CHECKABLE, CheckOutcome.INTACT))


def with_snapshots(
    status: Status,
    results: Iterable[BackupResult],
    *,
    path: os.PathLike[str] | str,
    at: datetime,
    due_by: datetime | None,
    fingerprint: str | None,
) -> Status:
    """Record one run of one database. `fingerprint` is what `stat` said before it; a store that failed keeps none.

    A store that failed stays due when it was. A run that was stopped, or that gave way to another one, is no failure: a
    database that this makes late is late.
    """
    for result in results:
        database = status.databases.get(result.database) or DatabaseHealth(path=str(path))
        before = database.stores.get(result.store) or StoreHealth()
        after = _after_snapshot(before, result, at=at, due_by=due_by, fingerprint=fingerprint)
        database = replace(
            database,
            path=str(path),
            vanished_at=None,
            read_problem=_read_problem(database, result, at),
            journal_mode=result.journal_mode or database.journal_mode,
            stores={**database.stores, result.store: after},
        )
        status = with_databases(status, {result.database: database})
    return status


def with_all_unchanged(
    status: Status, checked: Mapping[str, Collection[str]], *, at: datetime, due_by: datetime | None
) -> Status:
    """Record a whole round: these stores (URLs) have these databases as they are, and none had to be read.

    Databases and stores that are not known are left out.
    """
    changed = {}
    for name, urls in checked.items():
        database = status.databases.get(name)
        if database is not None:
            stores = {
                url: replace(health, current_at=at, due_by=due_by, failure=None) if url in urls else health
                for url, health in database.stores.items()
            }
            changed[name] = replace(database, stores=stores)
    return with_databases(status, changed)


def with_down(status: Status, down: Mapping[str, Iterable[tuple[str, BackupdError]]], *, at: datetime) -> Status:
    """Record for each database the stores (URLs) that a round could not reach, and why: each is a failed attempt."""
    changed = {}
    for name, errors in down.items():
        database = status.databases.get(name)
        if database is not None:
            stores = dict(database.stores)
            for url, error in errors:
                before = stores.get(url) or StoreHealth()
                # Nothing was tried: the store may still have what it had, and the next round asks for it.
                stores[url] = replace(_after_failure(before, error, at), fingerprint=before.fingerprint)
            changed[name] = replace(database, stores=stores)
    return with_databases(status, changed)


def with_seen(status: Status, store: str, names: Iterable[str], *, at: datetime) -> Status:
    """Record that the newest manifests of these databases were seen in `store` (a URL)."""
    return with_stores(status, dict.fromkeys(names, store), lambda health: replace(health, seen_at=at))


def is_prune_due(health: StoreHealth, now: datetime) -> bool:
    """Whether a day has passed since the newest snapshot, which a prune followed, and since the last prune after it."""
    times = [at for at in (health.snapshot_at, health.pruned_at) if at is not None]
    return not times or now - max(times) > _PRUNED_EACH


def with_prune(status: Status, result: PruneResult, *, at: datetime) -> Status:
    """Record a prune of one database in one store, whether it removed anything or not."""

    def after(health: StoreHealth) -> StoreHealth:
        if _is_inconclusive(result.error):
            return health
        hold = None if result.hold is None else next_hold(health.hold, result.hold, at)
        failure = next_failure(health.prune_failure, result.error, at)
        # After a new snapshot, its own time says it: most prunes change nothing in the status then.
        pruned_at = at if is_prune_due(health, at) else health.pruned_at
        return replace(health, hold=hold, prune_failure=failure, pruned_at=pruned_at)

    return with_stores(status, {result.database: result.store}, after)


def with_drill(status: Status, result: CheckResult, *, at: datetime, proof_due_by: datetime | None = None) -> Status:
    """Record the check of one database's newest snapshot in one store.

    A database that SQLite could not check in every table counts as proven, as in the store's record. `proof_due_by` is
    when the next drill must have succeeded, after one that did; None leaves that as it is.
    """
    status = with_stores(status, {result.database: result.store}, lambda health: _after_drill(health, result, at))
    if proof_due_by is None or result.outcome not in _SUCCEEDED:
        return status
    return with_database(status, result.database, lambda database: replace(database, proof_due_by=proof_due_by))


def with_continuity(status: Status, result: ContinuityResult) -> Status:
    """Record the check of a recovery window of one database in one store; nothing for one that could not be done.

    What was wrong with one window stays until it, or a later one, is proven.
    """

    def after(health: StoreHealth) -> StoreHealth:
        window = str(result.window)
        if result.is_damage and result.error is not None:
            problem = next_problem(health.continuity_problem, result.error, result.started_at)
            is_broken = result.is_broken or (health.is_window_broken and health.continuity_window == window)
            return replace(health, continuity_problem=problem, continuity_window=window, is_window_broken=is_broken)
        if result.found is None:
            return health
        health = replace(health, continuity_at=result.found.snapshot.taken_at)
        is_over = window >= (health.continuity_window or "")
        return _without_problem(health) if is_over else health

    return with_stores(status, {result.database: result.store}, after)


def without_windows(status: Status, database: str, store: str) -> Status:
    """Record that one store has no recovery window of a database: nothing can be wrong with one."""
    return with_stores(status, {database: store}, _without_problem)


def _without_problem(health: StoreHealth) -> StoreHealth:
    return replace(health, continuity_problem=None, continuity_window=None, is_window_broken=False)


def with_damaged_source(status: Status, result: CheckResult, stores: Iterable[str], *, at: datetime) -> Status:
    """Record a damaged source, which a drill found in one store, for other `stores` (URLs) that have the snapshot.

    A store where a newer snapshot is proven is left alone. When the others are drilled themselves stays as it is.
    """
    for url in stores:
        status = with_stores(status, {result.database: url}, lambda health: _after_drill_elsewhere(health, result, at))
    return status


def _after_drill_elsewhere(health: StoreHealth, result: CheckResult, at: datetime) -> StoreHealth:
    health = _without_proof_of(health, result)
    known = health.damaged_source_id == str(result.id)
    if known or health.is_damaged or (health.proven_id or "") > str(result.id):
        return health
    earlier = health.drill_failure if health.is_source_damaged else None
    failure = _drill_failure(earlier, result, at)
    if failure is not None and earlier is not None:
        failure = replace(failure, last_at=earlier.last_at)
    return replace(health, drill_failure=failure, is_source_damaged=True, damaged_source_id=str(result.id))


def _without_proof_of(health: StoreHealth, result: CheckResult) -> StoreHealth:
    """Drop the proofs of snapshots that have turned out to be damaged."""
    damaged = {str(each) for each in (result.id, *result.damaged_snapshots)}
    if health.proven_id in damaged:
        health = replace(health, proven_id=None, proven_at=None)
    if result.outcome is CheckOutcome.DAMAGED_STORE and health.intact_id in damaged:
        health = replace(health, intact_id=None, intact_at=None)
    return health


def _with_proof_elsewhere(health: StoreHealth, result: CheckResult, at: datetime) -> StoreHealth:
    """Take over a proof by another machine, of the snapshot that was found intact here."""
    if result.proven_at is None:
        return health
    health = replace(health, drill_failure=None, is_source_damaged=False, damaged_source_id=None)
    if result.proven_at > at or (health.proven_at is not None and result.proven_at <= health.proven_at):
        return health
    return replace(health, proven_id=str(result.id), proven_at=result.proven_at)


def _after_drill(health: StoreHealth, result: CheckResult, at: datetime) -> StoreHealth:
    if _is_inconclusive(result.error):
        return health
    if result.outcome in _SUCCEEDED and health.hold is not None and health.hold.ends_by_itself:
        health = replace(health, hold=None)
    if result.outcome.is_proof:
        return replace(
            health,
            proven_id=str(result.id),
            proven_at=at,
            odd_values=result.odd_values_summary,
            drill_failure=None,
            is_damaged=False,
            is_source_damaged=False,
            damaged_source_id=None,
        )
    if result.outcome is CheckOutcome.INTACT:
        # That says nothing about the database that was captured, unless another machine has proven it.
        failure = health.drill_failure if health.is_source_damaged else None
        health = replace(health, intact_id=str(result.id), intact_at=at, drill_failure=failure, is_damaged=False)
        return _with_proof_elsewhere(health, result, at)
    is_known = health.is_damaged or health.is_source_damaged
    if result.outcome is CheckOutcome.INCONCLUSIVE and is_known and health.drill_failure is not None:
        # The damage that was found before remains.
        failure = replace(health.drill_failure, last_at=at, count=health.drill_failure.count + 1)
        return replace(health, drill_failure=failure)
    is_of_store = result.outcome is CheckOutcome.DAMAGED_STORE
    is_of_source = result.outcome is CheckOutcome.DAMAGED_SOURCE
    # The two kinds of damage have different remedies: attempts at the one do not count for the other.
    is_news = health.is_source_damaged if is_of_store else health.is_damaged if is_of_source else False
    return replace(
        _without_proof_of(health, result) if is_of_store or is_of_source else health,
        drill_failure=_drill_failure(None if is_news else health.drill_failure, result, at),
        # To find a source damaged, a drill must have read every stored byte, and found it right.
        is_damaged=is_of_store or (health.is_damaged and not is_of_source),
        is_source_damaged=is_of_source,
        damaged_source_id=str(result.id) if is_of_source and result.id is not None else None,
        fingerprint=None if is_of_store else health.fingerprint,
    )


def _after_snapshot(
    before: StoreHealth, result: BackupResult, *, at: datetime, due_by: datetime | None, fingerprint: str | None
) -> StoreHealth:
    last_run = LastRun(
        started_at=at,
        duration_seconds=round(result.duration_seconds, 3),
        outcome=str(result.outcome),
        stored_bytes=result.stored_bytes,
        changed_pages=result.changed_pages,
        page_count=result.page_count,
        page_size=result.page_size,
    )
    totals = replace(
        before.totals,
        snapshots=before.totals.snapshots + result.has_made_snapshot,
        stored_bytes=before.totals.stored_bytes + result.stored_bytes,
    )
    before = replace(before, last_run=last_run, totals=totals)
    if _is_inconclusive(result.error):
        return replace(before, due_by=before.due_by or due_by)
    if result.error is not None:
        return replace(_after_failure(before, result.error, at), due_by=before.due_by or due_by)
    return replace(
        before,
        current_at=at,
        due_by=due_by,
        fingerprint=fingerprint,
        snapshot_id=str(result.id) if result.id else before.snapshot_id,
        snapshot_at=result.id.taken_at if result.id else before.snapshot_at,
        seen_at=at,
        failure=None,
        is_schema_unreadable=not result.is_schema_readable if result.was_read else before.is_schema_unreadable,
        passed_over=None if result.passed_over is None else next_problem(before.passed_over, result.passed_over, at),
    )


def _read_problem(database: DatabaseHealth, result: BackupResult, at: datetime) -> Problem | None:
    if result.error is not None or not result.was_read:
        return database.read_problem  # nothing was captured that could show it
    return next_problem(database.read_problem, _API_DIFFERS, at) if result.api_differs else None


def _is_inconclusive(error: BackupdError | None) -> bool:
    """Whether an error says nothing about the database or the store: the next attempt may just succeed."""
    return isinstance(error, InterruptedByUserError | AnotherRunError)


def _after_failure(before: StoreHealth, error: BackupdError, at: datetime) -> StoreHealth:
    return replace(
        before,
        fingerprint=None,
        totals=replace(before.totals, failures=before.totals.failures + 1),
        failure=next_failure(before.failure, error, at),
    )


def _drill_failure(earlier: Failure | None, result: CheckResult, at: datetime) -> Failure | None:
    failure = next_failure(earlier, result.error, at)
    # Damage does not pass by itself; only what kept a drill from checking may.
    if failure is None or result.outcome is CheckOutcome.INCONCLUSIVE:
        return failure
    return replace(failure, is_transient=False)
