"""Removal by request in the configured stores: forget a snapshot, read the trash, and undelete one in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, DamageError, NoSuchSnapshotError, PutOnlyError
from backupd.prune import forget, trashed, undelete
from backupd.repository.references import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest
    from backupd.format.records import TrashEntry
    from backupd.jobs.configured import ConfiguredStore
    from backupd.repository.archive import Archive
    from backupd.repository.references import Reference


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The outcome for one snapshot in one store. `until` is when its grace ends, None when it was not removed."""

    id: SnapshotId
    database: str
    store: str
    until: datetime | None
    error: BackupdError | None


def forget_in_stores(database: str, snapshot_id: SnapshotId, stores: Sequence[ConfiguredStore]) -> list[Forgotten]:
    """Move one snapshot to the trash of each store that has it. An error in one store does not stop the others.

    Raises `NoSuchSnapshotError` when no store has it.
    """
    results = []
    for store in stores:
        until, error = None, None
        archive, now = store.repository.archive(database), datetime.now(UTC)
        try:
            if snapshot_id not in archive.listing().manifests:
                continue
            if store.is_put_only:
                raise PutOnlyError(
                    f"{snapshot_id} cannot be removed from {store.url} by the keys of this machine, which may only "
                    "put (put_only)",
                    hint="run this elsewhere: no put_only, and keys that may delete (docs/s3-providers.md)",
                )
            forget(archive, snapshot_id, now=now)
            until = now + store.grace(database)
        except BackupdError as failure:
            error = failure
        results.append(Forgotten(snapshot_id, database, store.url, until, error))
    if not results:
        raise NoSuchSnapshotError(f"{database}@{snapshot_id} is gone already", hint="see: backupd list --trash")
    return results


@dataclass(frozen=True, slots=True)
class RemovedSnapshot:
    """One removed snapshot in one store."""

    store: ConfiguredStore
    entry: TrashEntry

    @property
    def manifest(self) -> AnyManifest:
        """The manifest that the snapshot had, and has again once it is undeleted."""
        return self.entry.manifest

    @property
    def database(self) -> str:
        """The name of the database that it is a snapshot of."""
        return self.entry.manifest.database

    @property
    def archive(self) -> Archive:
        """The archive whose trash has it."""
        return self.store.repository.archive(self.database)

    @property
    def gone_after(self) -> datetime:
        """When its grace ends; the first prune after that frees its space."""
        return self.entry.removed_at + self.store.grace(self.database)


@dataclass(frozen=True, slots=True)
class Trash:
    """The removed snapshots in several stores, oldest first in each; damaged entries; and stores that failed."""

    found: list[RemovedSnapshot]
    damaged: list[DamageError]
    problems: list[BackupdError]


def read_trash(stores: Sequence[ConfiguredStore], database: str | None) -> Trash:
    """The trash of `stores`, of one database or of all. An error in one store does not hide what others hold."""
    found: list[RemovedSnapshot] = []
    all_damaged: list[DamageError] = []
    problems: list[BackupdError] = []
    for store in stores:
        try:
            if not store.repository.exists():
                continue
            names = [database] if database else store.repository.databases(with_trash=True)
        except BackupdError as error:
            problems.append(error)
            continue
        for name in names:
            try:
                entries, damaged = trashed(store.repository.archive(name))
            except BackupdError as error:
                problems.append(error)
                continue
            found += [RemovedSnapshot(store, entry) for entry in entries]
            all_damaged += damaged
    return Trash(found, all_damaged, problems)


def undelete_in_stores(
    reference: Reference, stores: Sequence[ConfiguredStore], *, now: datetime
) -> tuple[list[RemovedSnapshot], list[BackupdError]]:
    """Take the removed snapshot that is meant out of the trash of each store that has it there.

    Returns where that was done, and the problems that may hide it elsewhere or kept it there. Raises
    `NoSuchSnapshotError`, and the first error of a store that may have it.
    """
    found, problems = _find_removed(reference, stores, now)
    undeleted = []
    for removed in found:
        try:
            undelete(removed.archive, removed.manifest.id)
        except BackupdError as error:
            problems.append(error)
        else:
            undeleted.append(removed)
    return undeleted, problems


def _find_removed(
    reference: Reference, stores: Sequence[ConfiguredStore], now: datetime
) -> tuple[list[RemovedSnapshot], list[BackupdError]]:
    """The removed snapshot that is meant, in each store that has it, and the problems that may hide it in others.

    Raises `NoSuchSnapshotError` when it is in none, or when several databases have one, and the first error when a
    store that could not be asked, or a damaged entry, may have it.
    """
    trash = read_trash(stores, reference.database)
    meant: list[list[RemovedSnapshot]] = []
    for name in dict.fromkeys(removed.database for removed in trash.found):
        of_database = [removed for removed in trash.found if removed.database == name]
        # By time: what is third in one store may be fourth in another.
        by_id = {removed.manifest.id: removed.manifest for removed in of_database}
        wanted = resolve(reference, [by_id[snapshot_id] for snapshot_id in sorted(by_id)], now)
        if wanted is not None:
            meant.append([removed for removed in of_database if removed.manifest.id == wanted.id])
    if len(meant) > 1:
        names = ", ".join(f"{each.database}@{each.manifest.id}" for each, *_ in meant)
        raise NoSuchSnapshotError(
            f"{reference.text} means a removed snapshot in several databases", hint=f"say which one: {names}"
        )
    # Of those that are damaged, an id means only its own; any of them may be what a time or a tag means.
    damaged = [error for error in trash.damaged if not reference.is_id or f"@{reference.text}" in error.message]
    problems = [*trash.problems, *damaged]
    if not meant:
        if problems:
            raise problems[0]
        places = ", ".join(store.url for store in stores)
        raise NoSuchSnapshotError(
            f"no snapshot {reference.text} in the trash of {places}",
            hint="see what there is with: backupd list --trash",
        )
    return meant[0], problems
