"""The trash: snapshots are removed into it, come back from it, and leave it for good when their grace is over.

FORMAT.md, "Removing a snapshot", has the protocol and the argument why no snapshot gets lost in between.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, NoSuchObjectError, StoreRefusedError
from backupd.format.manifest import decode_manifest
from backupd.format.records import TrashEntry, decode_trash, encode_trash
from backupd.logs import log
from backupd.repository.manifests import manifest_as_stored
from backupd.repository.writing import publish
from backupd.store.keys import RecordKey, RecordKind, SnapshotKey

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backupd.format.ids import SnapshotId
    from backupd.prune.naming import Holdings
    from backupd.prune.pace import Pace
    from backupd.repository import Repository
    from backupd.store import StoredObject

_CONTENT = b"{}\n"


def move_to_trash(
    repository: Repository,
    database: str,
    reasons: Mapping[SnapshotId, str],
    moved: list[SnapshotId],
    pace: Pace,
    *,
    now: datetime,
) -> int:
    """Remove the snapshots that `reasons` names, each with its reason, and append them to `moved` one by one.

    For each, the trash entry is put before the manifest is deleted. At the end, after an error too, a listing has to
    show what was done. Returns how many were left for another time. Raises the errors of `Store` and `DamageError`;
    then some may be in both places, and are not removed.
    """
    written: dict[SnapshotId, bytes] = {}

    def move(snapshot_id: SnapshotId) -> None:
        try:
            content = manifest_as_stored(repository, database, snapshot_id)
        except NoSuchObjectError:
            return  # another host was faster
        entry = TrashEntry(now, reasons[snapshot_id], content, decode_manifest(content))
        written[snapshot_id] = encode_trash(entry)
        repository.put_object(_key(database, snapshot_id), written[snapshot_id])
        repository.store.delete(str(SnapshotKey(database, str(snapshot_id))))
        moved.append(snapshot_id)

    try:
        left = pace.each(move, reasons)
    except BackupdError:
        with suppress(BackupdError):  # the first error says more; the next prune finds what this check would
            _check(repository, database, written, moved)
        raise
    _check(repository, database, written, moved)
    return left


def _check(repository: Repository, database: str, written: Mapping[SnapshotId, bytes], moved: list[SnapshotId]) -> None:
    """Look whether another host, or the store, did something else to what was removed, and put that right."""
    if not written:
        return
    survey = repository.survey(database)
    remaining = [each for each in moved if each in survey.manifests and each not in survey.undeleted]
    moved[:] = [each for each in moved if each not in survey.manifests and each not in survey.undeleted]
    for snapshot_id, content in written.items():
        if snapshot_id in survey.manifests:
            continue
        if snapshot_id in survey.undeleted:
            entry = decode_trash(content)
            publish(repository, entry.manifest, entry.content)  # it came back before its manifest had gone
        elif snapshot_id not in survey.trash:
            repository.put_object(_key(database, snapshot_id), content)
    if remaining:
        # A listing need not show what comes while it is made: the manifest of an undelete, but not yet its mark.
        survey = repository.survey(database)
        for snapshot_id in remaining:
            if snapshot_id in survey.manifests and snapshot_id not in survey.undeleted:
                raise not_deleted(repository.url, survey.manifests[snapshot_id].key)


def bring_back(repository: Repository, database: str, holdings: Holdings) -> bool:
    """Give what was undeleted its manifest again, where a removal at the same time took it away; whether any was.

    Raises the errors of `Store`.
    """
    survey = holdings.survey
    undeleted = [entry for entry in holdings.trash.entries if entry.manifest.id in survey.undeleted]
    is_any = False
    for entry in undeleted:
        if entry.manifest.id in survey.manifests:
            continue
        if survey.missing(entry.manifest.packs):
            log.warning(
                "an undeleted snapshot cannot come back: packs are missing",
                snapshot=f"{database}@{entry.manifest.id}",
                store=repository.url,
            )
            continue
        publish(repository, entry.manifest, entry.content)
        is_any = True
    return is_any


def mark_undeleted(repository: Repository, database: str, snapshot_id: SnapshotId) -> None:
    """Keep one snapshot from every rule, for every host."""
    repository.put_object(_mark(database, snapshot_id), _CONTENT)


def unmark_undeleted(repository: Repository, database: str, snapshot_id: SnapshotId) -> None:
    """The opposite."""
    repository.store.delete(_mark(database, snapshot_id))


def purge(
    repository: Repository,
    database: str,
    due: Mapping[SnapshotId, StoredObject],
    purged: list[SnapshotId],
    pace: Pace,
) -> int:
    """Delete the trash entries `due` that nobody has touched since they were listed, and append them to `purged`.

    None of them had a manifest beside it, or had been undeleted. At the end a listing has to show what was done.
    Returns how many were left for another time. Raises the errors of `Store`.
    """
    if not due:
        return 0
    # Again: reading everything took its time, and an entry that is put anew gets its whole grace.
    survey = repository.survey(database)
    taken = survey.manifests.keys() | survey.undeleted.keys()
    unchanged = [each for each, stored in due.items() if survey.trash.get(each) == stored and each not in taken]

    def delete(snapshot_id: SnapshotId) -> None:
        repository.store.delete(_key(database, snapshot_id))
        purged.append(snapshot_id)

    left = pace.each(delete, unchanged)
    listed = repository.survey(database).trash if purged else {}
    remaining = [each for each in purged if listed.get(each) == due[each]]
    purged[:] = [each for each in purged if each not in remaining]
    for snapshot_id in remaining:
        raise not_deleted(repository.url, due[snapshot_id].key)
    return left


def not_deleted(url: str, key: str) -> StoreRefusedError:
    """The error for a store at `url` that still shows what it has acknowledged as deleted."""
    return StoreRefusedError(
        f"{url} acknowledged that {key} was deleted, and still has it",
        hint="look at the store's own state and the permissions of these credentials; nothing is lost",
    )


def _key(database: str, snapshot_id: SnapshotId) -> str:
    return str(RecordKey(RecordKind.TRASH, database, str(snapshot_id)))


def _mark(database: str, snapshot_id: SnapshotId) -> str:
    return str(RecordKey(RecordKind.UNDELETED, database, str(snapshot_id)))
