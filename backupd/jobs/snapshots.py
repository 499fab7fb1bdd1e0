"""One snapshot of a configured database, and the notes of it for later runs and in the status."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backupd.backup import KnownState, back_up
from backupd.capture.unlocked import fingerprint, is_without_log
from backupd.errors import BackupdError, InterruptedByUserError
from backupd.health.planning import with_put_only
from backupd.health.recording import with_snapshots
from backupd.state import FailedSnapshot, failed_snapshot
from backupd.state.runs import Run, record_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.backup import BackupResult, Progress, SnapshotRequest
    from backupd.backup.results import SinceImage
    from backupd.capture.worker import Workers
    from backupd.health import Status
    from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore, JobContext
    from backupd.state import StateDirectory


def take_snapshot(
    configured: ConfiguredDatabase,
    stores: Sequence[ConfiguredStore],
    context: JobContext,
    *,
    request: SnapshotRequest,
    on_progress: Callable[[Progress], None],
    workers: Workers | None = None,
    since: SinceImage | None = None,
    also: Callable[[Status], Status] = lambda status: status,
) -> list[BackupResult]:
    """Take a snapshot of a configured database into each of `stores`, as `back_up` does; a result per store, in order.

    The database is not read where `stat` and the store show that nothing has changed since the last run, nor where
    `since` shows how, and nothing speaks against it.
    Its beginning is noted first, because after a kill or a loss of power nothing could note it. What could not be noted
    is a warning in the results. `workers` are those of a run over several databases. The change `also` is made to the
    status together with the outcome: with many databases, each write of it takes milliseconds.
    """
    started_at = datetime.now(UTC)
    unnoted = {store.url: _note_begun(context.state, configured.name, store.url, started_at) for store in stores}
    looked_like = fingerprint(configured.database.path, now=started_at)
    results = back_up(
        configured.database,
        [store.repository for store in stores],
        context.settings,
        request=request,
        on_progress=on_progress,
        known=_known_states(configured, context),
        since=since if since is not None and _is_log_trusted(configured, context) else None,
        workers=workers,
    )
    # What was written meanwhile, or another file in its place, is perhaps not what was captured. The log shows a state
    # from before `looked_like`.
    is_replayed = any(result.image is not None and result.image.replayed is not None for result in results)
    is_lasting = not is_replayed and looked_like == fingerprint(configured.database.path, now=started_at)
    results = [_noted(result, unnoted[result.store], context.state) for result in results]
    # An interruption says nothing of the database or the store.
    lasting = [result for result in results if not isinstance(result.error, InterruptedByUserError)]

    def recorded(found: Status) -> Status:
        known = found.databases.get(configured.name)
        is_awaited = known is not None and known.is_scheduled
        found = with_snapshots(
            found,
            lasting,
            path=configured.database.path,
            at=started_at,
            due_by=configured.due_after(started_at, context.settings.health.grace) if is_awaited else None,
            fingerprint=looked_like if is_lasting else None,
        )
        found = with_put_only(found, configured.name, {store.url: store.is_put_only for store in stores})
        return also(found)

    for record in (partial(context.status.update, recorded), partial(_remember, context.state, lasting, started_at)):
        try:
            record()
        except BackupdError as error:
            results = [_with_warning(result, error) for result in results]
    return results


def _remember(state: StateDirectory, results: Sequence[BackupResult], started_at: datetime) -> None:
    runs = [
        Run(
            database=result.database,
            store=result.store,
            started_at=started_at,
            duration_seconds=result.duration_seconds,
            outcome=str(result.outcome),
            changed_pages=result.changed_pages,
            page_count=result.page_count,
            page_size=result.page_size,
            stored_bytes=result.stored_bytes,
            message=None if result.error is None else result.error.message,
        )
        for result in results
    ]
    record_runs(state, runs)


def _known_states(configured: ConfiguredDatabase, context: JobContext) -> dict[str, KnownState]:
    """The state that each store has, by URL, as far as the status knows it and nothing speaks against it.

    After damage of the database or its file, a repair need not leave a stamp: it is read again.
    """
    health = context.status.read().databases.get(configured.name)
    if health is None or health.read_problem is not None:
        return {}
    return {
        url: KnownState(each.fingerprint, each.snapshot_id)
        for url, each in health.stores.items()
        if each.fingerprint is not None
        and is_without_log(each.fingerprint)
        and each.snapshot_id is not None
        and not (each.is_damaged or each.is_source_damaged or each.is_schema_unreadable)
    }


def _is_log_trusted(configured: ConfiguredDatabase, context: JobContext) -> bool:
    """Whether nothing that was found in the database, its file or its log speaks against what the log shows."""
    health = context.status.read().databases.get(configured.name)
    return (
        health is not None
        and health.read_problem is None
        and not any(
            each.is_source_damaged or each.is_schema_unreadable or each.continuity_problem is not None
            for each in health.stores.values()
        )
    )


def _note_begun(state: StateDirectory, database: str, store: str, now: datetime) -> BackupdError | None:
    try:
        failed_snapshot(state, database, store).write(FailedSnapshot(now, "it was interrupted"))
    except BackupdError as error:
        return error
    return None


def _noted(result: BackupResult, unnoted: BackupdError | None, state: StateDirectory) -> BackupResult:
    """Note for later prunes whether the snapshot failed, and return `result` with what could not be noted."""
    try:
        failure = failed_snapshot(state, result.database, result.store)
        if result.error is None:
            failure.remove()
        else:
            failure.write(FailedSnapshot(datetime.now(UTC), result.error.message))
    except BackupdError as error:
        unnoted = unnoted or error
    return result if unnoted is None else _with_warning(result, unnoted)


def _with_warning(result: BackupResult, error: BackupdError) -> BackupResult:
    # A failed snapshot is reported already, and a machine that cannot write this note cannot lock for a prune either.
    if result.error is not None or error.message in result.warnings:
        return result
    return replace(result, warnings=(*result.warnings, error.message))
