"""What people do with single snapshots: forget one, look into the trash, take one out again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.errors import DamageError, NoSuchSnapshotError, UsageError
from backupd.proofs import read_proofs
from backupd.prune.naming import read_holdings
from backupd.prune.pace import Pace
from backupd.prune.pruning import LOCK_SECONDS
from backupd.prune.trash import mark_undeleted, move_to_trash, unmark_undeleted
from backupd.repository.writing import publish
from backupd.retention import newest_regular

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import AnyManifest
    from backupd.format.records import TrashEntry
    from backupd.prune.naming import Holdings
    from backupd.repository import Repository
    from backupd.survey import DamagedManifest


def forget(repository: Repository, database: str, snapshot_id: SnapshotId, *, now: datetime) -> None:
    """Move one snapshot to the trash, as a prune would, whatever rules keep it.

    Raises `UsageError` for the newest one (of any kind, and regular) and the newest proven one, `NoSuchSnapshotError`,
    `DamageError`, and the errors of `Store`. Repeatable.
    """
    with repository.lock(database, timeout=LOCK_SECONDS):
        holdings = read_holdings(repository, database)
        if snapshot_id not in holdings.survey.manifests:
            raise NoSuchSnapshotError(
                f"no snapshot {snapshot_id} of {database} in {repository.url}",
                hint=f"see what there is with: backupd list {database}",
            )
        _reject_indispensable(repository, database, holdings, snapshot_id)
        if snapshot_id in holdings.survey.undeleted:
            unmark_undeleted(repository, database, snapshot_id)  # first: a marked one in the trash comes back by itself
        move_to_trash(repository, database, {snapshot_id: "forgotten by hand"}, [], Pace(), now=now)


def _reject_indispensable(repository: Repository, database: str, holdings: Holdings, snapshot_id: SnapshotId) -> None:
    manifests = holdings.history.manifests
    regular = newest_regular(manifests)
    proofs = read_proofs(repository, database, holdings.survey)
    proven, intact = proofs.newest_proven(manifests), proofs.newest_intact(manifests)
    perhaps = proofs.perhaps_proven(manifests)
    reasons = {
        "the newest snapshot": {holdings.history.newest.id} if holdings.history.newest else set(),
        "the newest regular snapshot": {regular.id} if regular else set(),
        "the newest snapshot that a test restore proved": {proven.id} if proven else set(),
        "the newest snapshot that was read and found intact": {intact.id} if intact else set(),
        "perhaps the newest snapshot that a test restore proved, whose record is damaged,": perhaps,
    }
    for reason, indispensable in reasons.items():
        if snapshot_id in indispensable:
            raise UsageError(
                f"{snapshot_id} is {reason} of {database} in {repository.url}, and stays",
                hint="take another first, then it can be forgotten",
            )


def undelete(repository: Repository, database: str, snapshot_id: SnapshotId) -> AnyManifest:
    """Take one snapshot out of the trash, byte for byte as it was. No rule removes it again; `forget` does.

    Raises `NoSuchSnapshotError` when it is not there, `DamageError` when the entry or one of its packs is damaged or
    gone, and the errors of `Store`. Repeatable.
    """
    with repository.lock(database, timeout=LOCK_SECONDS):
        holdings = read_holdings(repository, database)
        entry = _entry(repository, database, holdings, snapshot_id)
        missing = holdings.survey.missing(entry.manifest.packs)
        if missing:
            raise DamageError(
                f"{len(missing)} of {len(entry.manifest.packs)} packs of {database}@{snapshot_id} are gone from "
                f"{repository.url}, such as {missing[0].sha256}",
                hint="it cannot come back from there; another store may have it",
            )
        # First, so that whoever removes it at this moment finds that it is to stay, and puts the manifest back.
        mark_undeleted(repository, database, snapshot_id)
        if snapshot_id not in repository.survey(database).manifests:
            publish(repository, entry.manifest, entry.content)
        # The trash entry stays. It means nothing beside a manifest, and may by now be that of another removal.
        return entry.manifest


def _entry(repository: Repository, database: str, holdings: Holdings, snapshot_id: SnapshotId) -> TrashEntry:
    for damaged in holdings.trash.damaged:
        if damaged.id == snapshot_id:
            raise _damage(repository, damaged)
    for entry in holdings.trash.entries:
        if entry.manifest.id == snapshot_id:
            return entry
    raise NoSuchSnapshotError(
        f"no snapshot {snapshot_id} of {database} in the trash of {repository.url}",
        hint=f"see what there is with: backupd list --trash {database}",
    )


def _damage(repository: Repository, damaged: DamagedManifest) -> DamageError:
    return DamageError(
        f"the removed snapshot {damaged.database}@{damaged.id} in the trash of {repository.url} is damaged: "
        f"{damaged.reason}",
        hint="it cannot come back from there; another store may have it",
    )


def trashed(repository: Repository, database: str) -> tuple[list[TrashEntry], list[DamageError]]:
    """What is in the trash of one database, oldest first, and a problem for each entry that cannot be read.

    What has a manifest is not in the trash, whatever is there. Raises the errors of `Store`.
    """
    holdings = read_holdings(repository, database)
    live = holdings.survey.manifests
    entries = [entry for entry in holdings.trash.entries if entry.manifest.id not in live]
    return entries, [_damage(repository, damaged) for damaged in holdings.trash.damaged if damaged.id not in live]
