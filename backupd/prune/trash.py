"""The trash: snapshots are removed into it, come back from it, and leave it for good when their grace is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.errors import NoSuchObjectError, StoreError
from backupd.format.manifest import decode_manifest
from backupd.format.records import TrashEntry, encode_trash
from backupd.store.keys import RecordKey, RecordKind, SnapshotKey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backupd.format.ids import SnapshotId
    from backupd.repository import Repository


def move_to_trash(
    repository: Repository,
    database: str,
    reasons: Mapping[SnapshotId, str],
    moved: list[SnapshotId],
    *,
    now: datetime,
) -> None:
    """Remove the snapshots that `reasons` names, each with its reason, and append them to `moved` one by one.

    For each, the trash entry is put before the manifest is deleted. At the end a listing has to show what was done.
    Raises the errors of `Store` and `DamageError`; then the last one may be in both places, and is not removed.
    """
    written: dict[SnapshotId, bytes] = {}
    for snapshot_id, reason in reasons.items():
        try:
            content = repository.manifest_bytes(database, snapshot_id)
        except NoSuchObjectError:
            continue  # another host was faster
        written[snapshot_id] = encode_trash(TrashEntry(now, reason, content, decode_manifest(content)))
        repository.put_object(_key(database, snapshot_id), written[snapshot_id])
        repository.store.delete(str(SnapshotKey(database, str(snapshot_id))))
        moved.append(snapshot_id)
    if written:
        _check(repository, database, written, moved)


def _check(repository: Repository, database: str, written: Mapping[SnapshotId, bytes], moved: list[SnapshotId]) -> None:
    survey = repository.survey(database)
    for snapshot_id, content in written.items():
        # Another host that took the entry for a stale one, because it saw the manifest still there.
        if snapshot_id not in survey.trash and snapshot_id not in survey.manifests:
            repository.put_object(_key(database, snapshot_id), content)
    remaining = [snapshot_id for snapshot_id in moved if snapshot_id in survey.manifests]
    if remaining:
        moved[:] = [snapshot_id for snapshot_id in moved if snapshot_id not in survey.manifests]
        raise not_deleted(repository.url, survey.manifests[remaining[0]].key)


def not_deleted(url: str, key: str) -> StoreError:
    """The error for a store at `url` that still shows what it has acknowledged as deleted."""
    return StoreError(
        f"{url} acknowledged that {key} was deleted, and still has it",
        hint="look at the store's own state and the permissions of these credentials; nothing is lost",
    )


def delete_entry(repository: Repository, database: str, snapshot_id: SnapshotId) -> None:
    """Delete one trash entry."""
    repository.store.delete(_key(database, snapshot_id))


def _key(database: str, snapshot_id: SnapshotId) -> str:
    return str(RecordKey(RecordKind.TRASH, database, str(snapshot_id)))
