"""Rotation of a database in one store after a snapshot, and what of its outcome is news."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd import prune
from backupd.errors import BackupdError, StoreRefusedError
from backupd.health.recording import with_prune

if TYPE_CHECKING:
    from backupd.backup import BackupResult
    from backupd.health import Status, StatusFile
    from backupd.prune import PruneResult
    from backupd.state import StateDirectory
    from backupd.upkeep.stores import RotatedStore


def is_rotated_after(result: BackupResult, rotated: RotatedStore) -> bool:
    """Whether a snapshot's success is to be followed by a prune, by the policy of its database there.

    Never where the keys may not delete: somebody else prunes there.
    """
    policy = rotated.policy(result.database)
    return result.error is None and policy is not None and policy.after_snapshot and not rotated.is_put_only


def rotate_after(
    result: BackupResult, rotated: RotatedStore, state: StateDirectory, status: StatusFile
) -> PruneResult | None:
    """Prune what has just been backed up; None when its policy does not want that, or the snapshot failed.

    Expected failures are in the result. None is a failure of the snapshot.
    """
    if not is_rotated_after(result, rotated):
        return None
    return rotate(result.database, rotated, state, status)


def rotate(database: str, rotated: RotatedStore, state: StateDirectory, status: StatusFile) -> PruneResult:
    """Prune a configured database in one store by its policy, and record the outcome. Repeatable, as `prune` is.

    Expected failures are in the result.
    """
    now = datetime.now(UTC)
    outcome = prune.prune(
        rotated.repository,
        database,
        rotated.policy(database),
        state,
        now=now,
        damaged_sources=damaged_sources(status.read(), database),
    )
    try:
        record_prune(outcome, status, at=now)
    except BackupdError as error:
        return replace(outcome, error=outcome.error or error)
    return outcome


def damaged_sources(status: Status, database: str) -> frozenset[str]:
    """Ids of the snapshots that the status knows to be damaged as they were captured, in whatever store.

    They hold pruning in each: one that could not be reached then has no record of it.
    """
    known = status.databases.get(database)
    stores = known.stores.values() if known else ()
    return frozenset(health.damaged_source_id for health in stores if health.damaged_source_id is not None)


def record_prune(result: PruneResult, status: StatusFile, *, at: datetime) -> None:
    """Note in the status what became of a prune of a configured database, so that a hold that it ended alarms no more.

    `at` is when it began. A database or a store that the status does not know stays unknown. Raises
    `TargetUnwritableError` and `BusyError` as `StatusFile.update` does.
    """
    status.update(lambda found: with_prune(found, result, at=at))


def is_news(result: PruneResult, state: StateDirectory) -> bool:
    """Whether a prune's error is to be told. A bucket that refuses deletions does so every time: once, until one works.

    Remembers that it is told now.
    """
    if result.error is None and not result.has_changed_anything:
        return False
    try:
        is_new_refusal = prune.refusal_is_news(state, result.store, result.error)
    except BackupdError:
        return True  # what cannot be remembered is told again
    return is_new_refusal or not isinstance(result.error, StoreRefusedError)
