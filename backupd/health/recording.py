"""What each outcome changes in the status. Pure: a status goes in, another comes out, for `StatusFile.update`.

Times are aware and UTC. `at` is when the attempt began: the state that it saved is at least that new.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from backupd.errors import AnotherRunError, DamageError, InterruptedByUserError, SourceUnusableError
from backupd.health.changing import next_failure, next_hold, next_problem, with_database, with_databases, with_stores
from backupd.health.values import DatabaseHealth, Failure, LastRun, Problem, Status, StoreHealth

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Mapping
    from datetime import datetime

    from backupd.backup.results import BackupResult
    from backupd.errors import BackupdError
    from backupd.format.ids import SnapshotId
    from backupd.prune.results import PruneResult

_API_DIFFERS = SourceUnusableError(
    "reading its file gave something else than SQLite reads from it; snapshots are taken through SQLite alone since",
    hint="look at the file system, which may show stale pages (a network or host mount?), and report it if that is a "
    "local disk; it is tried again when the database is on another device, or backupd is upgraded",
)
_SUCCEEDED = frozenset(("proven", "not-checkable", "intact"))


class DrillResult(Protocol):
    """What became of a drill, as `backupd.drill` tells it."""

    @property
    def database(self) -> str:
        """Its name."""

    @property
    def store(self) -> str:
        """The store's URL."""

    @property
    def id(self) -> SnapshotId | None:
        """The snapshot that was tried; None when there was none to try."""

    @property
    def outcome(self) -> str:
        """One of "proven", "damaged-store", "damaged-source", "not-checkable", "intact", "failed"."""

    @property
    def error(self) -> BackupdError | None:
        """What stopped it, or what it found."""

    @property
    def remark(self) -> str | None:
        """What SQLite said that is no damage."""

    @property
    def proven_at(self) -> datetime | None:
        """When an earlier drill proved what this one found intact."""

    @property
    def damaged_snapshots(self) -> Collection[SnapshotId]:
        """Every snapshot in that store that stored bytes are damaged or missing for."""

    @property
    def findings(self) -> tuple[str, ...]:
        """What SQLite said of the restored file."""


def with_snapshots(
    status: Status,
    results: Iterable[BackupResult],
    *,
    path: os.PathLike[str] | str,
    at: datetime,
    due_by: datetime | None,
    fingerprint: str | None,
) -> Status:
    """One run of one database. `fingerprint` is what `stat` said before it; a store that failed keeps none.

    A store that failed stays due when it was. That somebody stopped the run, or another was at work at the same time,
    is no failure: a database that this makes late is late.
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
            stores={**database.stores, result.store: after},
        )
        status = with_databases(status, {result.database: database})
    return status


def with_all_unchanged(
    status: Status, checked: Mapping[str, Collection[str]], *, at: datetime, due_by: datetime | None
) -> Status:
    """A whole round: these databases are in these stores (URLs) as they are, and nobody had to look into them.

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
    """A whole round: by database, the stores (URLs) that could not be asked, and why. Each is a failed attempt."""
    changed = {}
    for name, errors in down.items():
        database = status.databases.get(name)
        if database is not None:
            stores = dict(database.stores)
            for url, error in errors:
                before = stores.get(url) or StoreHealth()
                # Nothing was tried: what the store had, it may have still, and the next round asks for it.
                stores[url] = replace(_after_failure(before, error, at), fingerprint=before.fingerprint)
            changed[name] = replace(database, stores=stores)
    return with_databases(status, changed)


def with_seen(status: Status, store: str, names: Iterable[str], *, at: datetime) -> Status:
    """The newest manifests of these databases were seen in `store` (a URL)."""
    return with_stores(status, dict.fromkeys(names, store), lambda health: replace(health, seen_at=at))


def with_prune(status: Status, result: PruneResult, *, at: datetime) -> Status:
    """A prune of one database in one store, whether it removed anything or not."""

    def after(health: StoreHealth) -> StoreHealth:
        if _says_nothing(result.error):
            return health
        hold = None if result.hold is None else next_hold(health.hold, result.hold, at)
        return replace(health, hold=hold, prune_failure=next_failure(health.prune_failure, result.error, at))

    return with_stores(status, {result.database: result.store}, after)


def with_drill(status: Status, result: DrillResult, *, at: datetime, proof_due_by: datetime | None = None) -> Status:
    """A drill of one database's newest snapshot in one store.

    One that SQLite could not check in every table had every byte in its place: that counts as proven, as in the store.
    `proof_due_by` is when the next has to have succeeded, after one that did; None leaves that as it is.
    """
    status = with_stores(status, {result.database: result.store}, lambda health: _after_drill(health, result, at))
    if proof_due_by is None or result.outcome not in _SUCCEEDED:
        return status
    return with_database(status, result.database, lambda database: replace(database, proof_due_by=proof_due_by))


def with_damaged_source(status: Status, result: DrillResult, stores: Iterable[str], *, at: datetime) -> Status:
    """What a drill found of a captured database, in other `stores` (URLs) that have the same snapshot of it.

    Not where a newer one is proven. When those are drilled themselves stays as it is.
    """
    for url in stores:
        status = with_stores(status, {result.database: url}, lambda health: _after_drill_elsewhere(health, result, at))
    return status


def _after_drill_elsewhere(health: StoreHealth, result: DrillResult, at: datetime) -> StoreHealth:
    health = _without_proof_of(health, result)
    known = health.damaged_source_id == str(result.id)
    if known or health.is_damaged or (health.proven_id or "") > str(result.id):
        return health
    earlier = health.drill_failure if health.is_source_damaged else None
    failure = _drill_failure(earlier, result, at)
    if failure is not None and earlier is not None:
        failure = replace(failure, last_at=earlier.last_at)
    return replace(health, drill_failure=failure, is_source_damaged=True, damaged_source_id=str(result.id))


def _without_proof_of(health: StoreHealth, result: DrillResult) -> StoreHealth:
    """Without what was found right of snapshots that are damaged, as has turned out."""
    damaged = {str(each) for each in (result.id, *result.damaged_snapshots)}
    if health.proven_id in damaged:
        health = replace(health, proven_id=None, proven_at=None)
    if result.outcome == "damaged-store" and health.intact_id in damaged:
        health = replace(health, intact_id=None, intact_at=None)
    return health


def _with_proof_elsewhere(health: StoreHealth, result: DrillResult, at: datetime) -> StoreHealth:
    """With what somebody else has proven, of the snapshot that was found intact here."""
    if result.proven_at is None:
        return health
    health = replace(health, drill_failure=None, is_source_damaged=False, damaged_source_id=None)
    if result.proven_at > at or (health.proven_at is not None and result.proven_at <= health.proven_at):
        return health
    return replace(health, proven_id=str(result.id), proven_at=result.proven_at)


def _after_drill(health: StoreHealth, result: DrillResult, at: datetime) -> StoreHealth:
    if _says_nothing(result.error):
        return health
    if result.outcome in _SUCCEEDED and health.hold is not None and health.hold.ends_by_itself:
        health = replace(health, hold=None)
    if result.outcome in {"proven", "not-checkable"}:
        return replace(
            health,
            proven_id=str(result.id),
            proven_at=at,
            remark=result.remark,
            drill_failure=None,
            is_damaged=False,
            is_source_damaged=False,
            damaged_source_id=None,
        )
    if result.outcome == "intact":
        # That says nothing of the database that was captured, unless somebody else has proven it.
        failure = health.drill_failure if health.is_source_damaged else None
        health = replace(health, intact_id=str(result.id), intact_at=at, drill_failure=failure, is_damaged=False)
        return _with_proof_elsewhere(health, result, at)
    is_known = health.is_damaged or health.is_source_damaged
    if result.outcome == "failed" and is_known and health.drill_failure is not None:
        # What was found before is not better for it.
        failure = replace(health.drill_failure, last_at=at, count=health.drill_failure.count + 1)
        return replace(health, drill_failure=failure)
    is_of_store, is_of_source = result.outcome == "damaged-store", result.outcome == "damaged-source"
    # What mends the one is no try to mend the other.
    is_news = health.is_source_damaged if is_of_store else health.is_damaged if is_of_source else False
    return replace(
        _without_proof_of(health, result) if is_of_store or is_of_source else health,
        drill_failure=_drill_failure(None if is_news else health.drill_failure, result, at),
        # A source that was damaged was read byte by byte, and every one was right.
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
        snapshots=before.totals.snapshots + (result.outcome == "created"),
        stored_bytes=before.totals.stored_bytes + result.stored_bytes,
    )
    before = replace(before, last_run=last_run, totals=totals)
    if _says_nothing(result.error):
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
        is_schema_unreadable=not result.is_schema_readable,
        passed_over=None if result.passed_over is None else next_problem(before.passed_over, result.passed_over, at),
    )


def _read_problem(database: DatabaseHealth, result: BackupResult, at: datetime) -> Problem | None:
    if result.error is not None:
        return database.read_problem  # nothing was captured that could tell
    return next_problem(database.read_problem, _API_DIFFERS, at) if result.api_differs else None


def _says_nothing(error: BackupdError | None) -> bool:
    """Whether it says nothing about the database or the store: the next attempt may go well as it is."""
    return isinstance(error, InterruptedByUserError | AnotherRunError)


def _after_failure(before: StoreHealth, error: BackupdError, at: datetime) -> StoreHealth:
    return replace(
        before,
        fingerprint=None,
        totals=replace(before.totals, failures=before.totals.failures + 1),
        failure=next_failure(before.failure, error, at),
    )


def _drill_failure(earlier: Failure | None, result: DrillResult, at: datetime) -> Failure | None:
    found = DamageError(
        f"the drill of snapshot {result.id} of {result.database} in {result.store} ended as {result.outcome}: "
        + ("; ".join(result.findings) or "nothing more is known"),
        hint=f"see what still restores: backupd list {result.database}",
    )
    failure = next_failure(earlier, result.error or found, at)
    # What was found does not pass; only what kept a drill from looking may.
    return failure if failure is None or result.outcome == "failed" else replace(failure, is_transient=False)
