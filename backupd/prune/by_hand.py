"""What people do with single snapshots: forget one, look into the trash, take one out again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backupd.errors import DamageError, NoSuchSnapshotError, StoreRefusedError, UsageError
from backupd.logs import log
from backupd.prune.naming import read_holdings
from backupd.prune.pruning import LOCK_SECONDS
from backupd.prune.trash import delete_entry, move_to_trash
from backupd.prune.verdicts import newest_proven, read_verdicts, write_verdicts
from backupd.retention import newest_regular

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import Manifest
    from backupd.format.records import TrashEntry
    from backupd.prune.naming import Holdings
    from backupd.repository import Repository
    from backupd.state import StateDirectory


def forget(
    repository: Repository, database: str, snapshot_id: SnapshotId, state: StateDirectory, *, now: datetime
) -> None:
    """Move one snapshot to the trash, as a prune would, whatever rules keep it.

    Raises `UsageError` for the newest one (of any kind, and regular) and the newest proven one, `NoSuchSnapshotError`,
    `DamageError`, and the errors of `Store`. Repeatable.
    """
    with state.lock(f"{database} in {repository.url}", timeout=LOCK_SECONDS):
        holdings = read_holdings(repository, database)
        if snapshot_id not in holdings.survey.manifests:
            raise NoSuchSnapshotError(
                f"no snapshot {snapshot_id} of {database} in {repository.url}",
                hint=f"see what there is with: backupd list {database}",
            )
        _reject_indispensable(repository, database, holdings, snapshot_id)
        move_to_trash(repository, database, {snapshot_id: "forgotten by hand"}, [], now=now)
        verdicts = read_verdicts(repository, database, holdings)
        if snapshot_id in verdicts.undeleted:
            undeleted = tuple(each for each in verdicts.undeleted if each != snapshot_id)
            write_verdicts(repository, database, replace(verdicts, undeleted=undeleted))


def _reject_indispensable(repository: Repository, database: str, holdings: Holdings, snapshot_id: SnapshotId) -> None:
    manifests = holdings.history.manifests
    regular = newest_regular(manifests)
    proven, _ = newest_proven(repository, database, holdings)
    reasons = {
        "the newest snapshot": holdings.history.newest and holdings.history.newest.id,
        "the newest regular snapshot": regular and regular.id,
        "the newest snapshot that a test restore proved": proven,
    }
    for reason, indispensable in reasons.items():
        if snapshot_id == indispensable:
            raise UsageError(
                f"{snapshot_id} is {reason} of {database} in {repository.url}, and stays",
                hint="take another first, then it can be forgotten",
            )


def undelete(repository: Repository, database: str, snapshot_id: SnapshotId, state: StateDirectory) -> Manifest:
    """Take one snapshot out of the trash, byte for byte as it was. No rule removes it again; `forget` does.

    Raises `NoSuchSnapshotError` when it is not there, `DamageError` when the entry or one of its packs is damaged or
    gone, and the errors of `Store`. Repeatable.
    """
    with state.lock(f"{database} in {repository.url}", timeout=LOCK_SECONDS):
        holdings = read_holdings(repository, database)
        entry = _entry(repository, database, holdings, snapshot_id)
        missing = holdings.survey.missing(entry.manifest.packs)
        if missing:
            raise DamageError(
                f"{len(missing)} of {len(entry.manifest.packs)} packs of {database}@{snapshot_id} are gone from "
                f"{repository.url}, such as {missing[0].sha256}",
                hint="it cannot come back from there; another store may have it",
            )
        # First, so that a prune that sees the manifest knows that it is to stay.
        verdicts = read_verdicts(repository, database, holdings)
        if snapshot_id not in verdicts.undeleted:
            present = tuple(each for each in verdicts.undeleted if each in holdings.survey.manifests)
            write_verdicts(repository, database, replace(verdicts, undeleted=(*present, snapshot_id)))
        if snapshot_id not in holdings.survey.manifests:
            repository.publish(entry.manifest, entry.content)
        try:
            delete_entry(repository, database, snapshot_id)
        except StoreRefusedError as error:
            # It is back, and what remains in the trash means nothing.
            log.warning("the trash entry stays", reason=error.message, hint=error.hint)
        return entry.manifest


def _entry(repository: Repository, database: str, holdings: Holdings, snapshot_id: SnapshotId) -> TrashEntry:
    for damaged in holdings.trash.damaged:
        if damaged.id == snapshot_id:
            raise DamageError(
                f"the removed snapshot {database}@{snapshot_id} in the trash of {repository.url} is damaged: "
                f"{damaged.reason}",
                hint="it cannot come back from there; another store may have it",
            )
    for entry in holdings.trash.entries:
        if entry.manifest.id == snapshot_id:
            return entry
    raise NoSuchSnapshotError(
        f"no snapshot {snapshot_id} of {database} in the trash of {repository.url}",
        hint=f"see what there is with: backupd list --trash {database}",
    )


def trashed(repository: Repository, database: str) -> list[TrashEntry]:
    """What is in the trash of one database, oldest first. Damaged entries are left out, with a warning in the log."""
    holdings = read_holdings(repository, database)
    for damaged in holdings.trash.damaged:
        log.warning("a removed snapshot is damaged", snapshot=f"{database}@{damaged.id}", reason=damaged.reason)
    return [entry for entry in holdings.trash.entries if entry.manifest.id not in holdings.survey.manifests]
