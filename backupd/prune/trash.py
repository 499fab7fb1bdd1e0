"""The trash: snapshots are removed into it, by rules or by request, come back from it, and leave it after their grace.

FORMAT.md, "Removing a snapshot", has the protocol and the argument why no snapshot gets lost in between.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from backupd.concurrency import Pace
from backupd.errors import (
    BackupdError,
    DamageError,
    NoSuchObjectError,
    NoSuchSnapshotError,
    StoreRefusedError,
    UsageError,
)
from backupd.format.manifest import decode_manifest
from backupd.format.records import TrashEntry
from backupd.logs import log
from backupd.retention import newest_regular
from backupd.store.keys import RecordKind

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest
    from backupd.repository.archive import Archive
    from backupd.repository.history import DamagedManifest, Holdings
    from backupd.store import StoredObject

LOCK_SECONDS = 30.0
"""How long a removal waits for another run in the same archive."""
_CONTENT = b"{}\n"


def forget(archive: Archive, snapshot_id: SnapshotId, *, now: datetime) -> None:
    """Move one snapshot to the trash, as a prune would, whatever rules keep it.

    Raises `UsageError` for the newest one (of any kind, and regular) and the newest proven one, `NoSuchSnapshotError`,
    `DamageError`, and the errors of `Store`. Repeatable.
    """
    with archive.lock(timeout=LOCK_SECONDS):
        holdings = archive.holdings()
        if snapshot_id not in holdings.listing.manifests:
            raise NoSuchSnapshotError(
                f"no snapshot {snapshot_id} of {archive.database} in {archive.url}",
                hint=f"see what there is with: backupd list {archive.database}",
            )
        _reject_indispensable(holdings, snapshot_id)
        if snapshot_id in holdings.listing.undeleted:
            unmark_undeleted(archive, snapshot_id)  # first: a marked one in the trash comes back by itself
        move_to_trash(archive, {snapshot_id: "forgotten by hand"}, [], Pace(), now=now)


def _reject_indispensable(holdings: Holdings, snapshot_id: SnapshotId) -> None:
    archive = holdings.archive
    manifests = holdings.history.manifests
    regular = newest_regular(manifests)
    proofs = archive.proofs(holdings.listing)
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
                f"{snapshot_id} is {reason} of {archive.database} in {archive.url}, and stays",
                hint="take another first, then it can be forgotten",
            )


def undelete(archive: Archive, snapshot_id: SnapshotId) -> AnyManifest:
    """Take one snapshot out of the trash, byte for byte as it was. No rule removes it again; only `forget` does.

    Raises `NoSuchSnapshotError` when it is not there, `DamageError` when the entry or one of its packs is damaged or
    gone, and the errors of `Store`. Repeatable.
    """
    with archive.lock(timeout=LOCK_SECONDS):
        holdings = archive.holdings()
        entry = _entry(holdings, snapshot_id)
        missing = holdings.listing.missing(entry.manifest.packs)
        if missing:
            raise DamageError(
                f"{len(missing)} of {len(entry.manifest.packs)} packs of {archive.database}@{snapshot_id} are gone "
                f"from {archive.url}, such as {missing[0].sha256}",
                hint="it cannot come back from there; another store may have it",
            )
        # First, so that a host that removes it right now finds that it must stay, and puts the manifest back.
        _mark_undeleted(archive, snapshot_id)
        if snapshot_id not in archive.listing().manifests:
            archive.publish(entry.manifest, entry.content)
        # The trash entry stays. It means nothing beside a manifest, and may by now be that of another removal.
        return entry.manifest


def _entry(holdings: Holdings, snapshot_id: SnapshotId) -> TrashEntry:
    archive = holdings.archive
    for damaged in holdings.trash.damaged:
        if damaged.id == snapshot_id:
            raise _damage(archive, damaged)
    for entry in holdings.trash.entries:
        if entry.manifest.id == snapshot_id:
            return entry
    raise NoSuchSnapshotError(
        f"no snapshot {snapshot_id} of {archive.database} in the trash of {archive.url}",
        hint=f"see what there is with: backupd list --trash {archive.database}",
    )


def _damage(archive: Archive, damaged: DamagedManifest) -> DamageError:
    return DamageError(
        f"the removed snapshot {damaged.database}@{damaged.id} in the trash of {archive.url} is damaged: "
        f"{damaged.reason}",
        hint="it cannot come back from there; another store may have it",
    )


def _mark_undeleted(archive: Archive, snapshot_id: SnapshotId) -> None:
    """Keep one snapshot from every rule, for every host."""
    archive.put_record(RecordKind.UNDELETED, snapshot_id, _CONTENT)


def unmark_undeleted(archive: Archive, snapshot_id: SnapshotId) -> None:
    """Let rules remove one snapshot again."""
    archive.delete_record(RecordKind.UNDELETED, snapshot_id)


def trashed(archive: Archive) -> tuple[list[TrashEntry], list[DamageError]]:
    """List the trash of one database, oldest first, with a problem for each entry that cannot be read.

    A snapshot that has a manifest is not in the trash, even if an entry of it is there. Raises the errors of `Store`.
    """
    listing = archive.listing()
    trash, live = archive.trash(listing), listing.manifests
    entries = [entry for entry in trash.entries if entry.manifest.id not in live]
    return entries, [_damage(archive, damaged) for damaged in trash.damaged if damaged.id not in live]


def move_to_trash(
    archive: Archive,
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
            content = archive.manifest_as_stored(snapshot_id)
        except NoSuchObjectError:
            return  # another host was faster
        entry = TrashEntry(now, reasons[snapshot_id], content, decode_manifest(content))
        written[snapshot_id] = entry.encode()
        archive.put_record(RecordKind.TRASH, snapshot_id, written[snapshot_id])
        archive.delete_manifest(snapshot_id)
        moved.append(snapshot_id)

    try:
        left = pace.each(move, reasons)
    except BackupdError:
        with suppress(BackupdError):  # the first error says more; the next prune finds what this check would
            _check(archive, written, moved)
        raise
    _check(archive, written, moved)
    return left


def _check(archive: Archive, written: Mapping[SnapshotId, bytes], moved: list[SnapshotId]) -> None:
    """Check that neither another host nor the store undid a removal, and repair what it left half done."""
    if not written:
        return
    listing = archive.listing()
    remaining = [each for each in moved if each in listing.manifests and each not in listing.undeleted]
    moved[:] = [each for each in moved if each not in listing.manifests and each not in listing.undeleted]
    for snapshot_id, content in written.items():
        if snapshot_id in listing.manifests:
            continue
        if snapshot_id in listing.undeleted:
            entry = TrashEntry.decode(content)
            archive.publish(entry.manifest, entry.content)  # it came back before its manifest had gone
        elif snapshot_id not in listing.trash:
            archive.put_record(RecordKind.TRASH, snapshot_id, content)
    if remaining:
        # A listing need not show what comes while it is made: the manifest of an undelete, but not yet its mark.
        listing = archive.listing()
        for snapshot_id in remaining:
            if snapshot_id in listing.manifests and snapshot_id not in listing.undeleted:
                raise not_deleted(archive.url, listing.manifests[snapshot_id].key)


def bring_back(holdings: Holdings) -> bool:
    """Put back the manifests of undeleted snapshots that a removal at the same time took away; whether any was.

    Raises the errors of `Store`.
    """
    archive, listing = holdings.archive, holdings.listing
    undeleted = [entry for entry in holdings.trash.entries if entry.manifest.id in listing.undeleted]
    is_any = False
    for entry in undeleted:
        if entry.manifest.id in listing.manifests:
            continue
        if listing.missing(entry.manifest.packs):
            log.warning(
                "an undeleted snapshot cannot come back: packs are missing",
                snapshot=f"{archive.database}@{entry.manifest.id}",
                store=archive.url,
            )
            continue
        archive.publish(entry.manifest, entry.content)
        is_any = True
    return is_any


def purge(
    archive: Archive,
    due: Mapping[SnapshotId, StoredObject],
    purged: list[SnapshotId],
    pace: Pace,
) -> int:
    """Delete the trash entries `due` that have not changed since they were listed, and append them to `purged`.

    None of them had a manifest beside it, or had been undeleted. At the end a listing has to show what was done.
    Returns how many were left for another time. Raises the errors of `Store`.
    """
    if not due:
        return 0
    # Again: reading everything took its time, and an entry that is put again gets its whole grace.
    listing = archive.listing()
    taken = listing.manifests.keys() | listing.undeleted.keys()
    unchanged = [each for each, stored in due.items() if listing.trash.get(each) == stored and each not in taken]

    def delete(snapshot_id: SnapshotId) -> None:
        archive.delete_record(RecordKind.TRASH, snapshot_id)
        purged.append(snapshot_id)

    left = pace.each(delete, unchanged)
    listed = archive.listing().trash if purged else {}
    remaining = [each for each in purged if listed.get(each) == due[each]]
    purged[:] = [each for each in purged if each not in remaining]
    for snapshot_id in remaining:
        raise not_deleted(archive.url, due[snapshot_id].key)
    return left


def not_deleted(url: str, key: str) -> StoreRefusedError:
    """Build the error for a store at `url` that still shows what it has acknowledged as deleted."""
    return StoreRefusedError(
        f"{url} acknowledged that {key} was deleted, and still has it",
        hint="check the store's own state and the permissions of these credentials; nothing is lost",
    )
