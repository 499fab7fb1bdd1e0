"""One snapshot of a configured database, with everything that later runs and readers of the status are to know."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd import prune
from backupd.backup import back_up
from backupd.capture.unchanged import fingerprint
from backupd.errors import BackupdError, InterruptedByUserError
from backupd.health.planning import with_put_only
from backupd.health.recording import with_snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backupd.backup import BackupResult, Progress, Wish
    from backupd.config import Settings
    from backupd.health import Status, StatusFile
    from backupd.state import StateDirectory
    from backupd.upkeep.configured import Configured
    from backupd.upkeep.stores import RotatedStore


def take_snapshot(
    configured: Configured,
    stores: Sequence[RotatedStore],
    settings: Settings,
    state: StateDirectory,
    status: StatusFile,
    *,
    wish: Wish,
    on_progress: Callable[[Progress], None],
) -> list[BackupResult]:
    """A snapshot of a configured database in each of `stores`, as `back_up` takes it; a result per store, in order.

    That it began is noted before it does: nobody could do that after a kill or a loss of power. What could not be noted
    is a warning in the results.
    """
    started_at = datetime.now(UTC)
    unnoted = {rotated.url: _note_begun(state, configured.name, rotated.url, started_at) for rotated in stores}
    looked_like = fingerprint(configured.database.path, now=started_at)
    results = back_up(
        configured.database,
        [rotated.repository.store for rotated in stores],
        settings,
        state,
        wish=wish,
        on_progress=on_progress,
    )
    results = [_noted(result, unnoted[result.store], state) for result in results]
    # Whoever stops backupd knows why the run ended, and it says nothing of the database or the store.
    lasting = [result for result in results if not isinstance(result.error, InterruptedByUserError)]

    def recorded(found: Status) -> Status:
        known = found.databases.get(configured.name)
        is_awaited = known is not None and known.is_scheduled
        found = with_snapshots(
            found,
            lasting,
            path=configured.database.path,
            at=started_at,
            due_by=configured.due_after(started_at, settings.health.grace) if is_awaited else None,
            fingerprint=looked_like,
        )
        return with_put_only(found, configured.name, {rotated.url: rotated.is_put_only for rotated in stores})

    try:
        status.update(recorded)
    except BackupdError as error:
        results = [_with_warning(result, error) for result in results]
    return results


def _note_begun(state: StateDirectory, database: str, store: str, now: datetime) -> BackupdError | None:
    try:
        prune.note_begun(state, database, store, now=now)
    except BackupdError as error:
        return error
    return None


def _noted(result: BackupResult, unnoted: BackupdError | None, state: StateDirectory) -> BackupResult:
    """Leave to later prunes whether the snapshot failed; `result` with what could not be noted, now or before it."""
    try:
        if result.error is None:
            prune.note_success(state, result.database, result.store)
        else:
            prune.note_failure(state, result.database, result.store, result.error, now=datetime.now(UTC))
    except BackupdError as error:
        unnoted = unnoted or error
    return result if unnoted is None else _with_warning(result, unnoted)


def _with_warning(result: BackupResult, error: BackupdError) -> BackupResult:
    # After a failed snapshot, whoever cannot write this note has heard of it, and cannot take the lock of a prune.
    if result.error is not None or error.message in result.warnings:
        return result
    return replace(result, warnings=(*result.warnings, error.message))
