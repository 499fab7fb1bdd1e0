"""The selection of what a verification checks: which snapshots of which archives, and which sample of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from backupd.errors import BackupdError, NoSuchSnapshotError
from backupd.format.manifest import SnapshotKind
from backupd.repository.history import Listing
from backupd.repository.references import is_repository, resolve
from backupd.store.keys import database_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from random import Random

    from backupd.format import SnapshotId
    from backupd.repository import Repository
    from backupd.repository.archive import Archive
    from backupd.repository.history import History
    from backupd.repository.references import Reference
    from backupd.verify.results import VerifyRequest

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class ListedArchive:
    """One archive as one listing shows it."""

    archive: Archive
    listing: Listing
    history: History

    def ids(self) -> set[SnapshotId]:
        """The ids of all snapshots, readable or not."""
        readable = {manifest.id for manifest in self.history.manifests}
        return readable | {damaged.id for damaged in self.history.damaged}


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The snapshots of one archive to check, the oldest first."""

    listed: ListedArchive
    snapshots: tuple[SnapshotId, ...]


@dataclass(frozen=True, slots=True)
class Candidates:
    """All archives in all stores, why some stores could not be listed, and the URLs of those that hold no backups."""

    archives: tuple[ListedArchive, ...]
    problems: tuple[BackupdError, ...]
    empty: tuple[str, ...]


def list_archives(repositories: Sequence[Repository], database: str | None) -> Candidates:
    """List every store once: everything, or one database. An error of one store does not hide what others hold."""
    archives: list[ListedArchive] = []
    problems: list[BackupdError] = []
    empty = []
    for repository in repositories:
        try:
            if is_repository(repository):
                archives += _listed(repository, database)
            else:
                empty.append(repository.url)
        except BackupdError as error:
            problems.append(error)
    return Candidates(tuple(archives), tuple(problems), tuple(empty))


def _listed(repository: Repository, database: str | None) -> list[ListedArchive]:
    # Whole, because a verification compares the size of each pack.
    if database is None:
        listings = repository.listings()
    else:
        listings = {database: Listing.of(database, repository.store.list(database_prefix(database)))}
    archives = ((repository.archive(name), listing) for name, listing in listings.items() if listing.manifests)
    return [ListedArchive(archive, listing, archive.history(listing)) for archive, listing in archives]


def choose(archives: Sequence[ListedArchive], request: VerifyRequest, now: datetime) -> list[Selection]:
    """Choose the snapshots that `request` means. Raises `NoSuchSnapshotError` when a reference means none.

    A reference means one snapshot, and selects it in every store that has it. Where a damaged manifest may be the one
    that is meant, it is selected too.
    """
    if request.references:
        meant = {
            each for reference in request.references for each in _meant(reference, archives, request.database, now)
        }
        chosen = [
            (each, {one for name, one in meant if name == each.archive.database} & each.ids()) for each in archives
        ]
    elif request.wants_all:
        chosen = [(each, each.ids()) for each in archives]
    else:
        chosen = [(each, _newest(each.history)) for each in archives]
    return [Selection(listed, tuple(sorted(ids))) for listed, ids in chosen if ids]


def sample(items: Sequence[_T], share: float, random: Random) -> list[_T]:
    """Choose such a share of `items` at random, at least one."""
    return random.sample(items, min(len(items), max(1, math.ceil(share * len(items)))))


def sample_snapshots(selections: Sequence[Selection], share: float, random: Random) -> list[Selection]:
    """Choose such a share of all selected snapshots at random, at least one."""
    every = [(selection.listed, snapshot) for selection in selections for snapshot in selection.snapshots]
    chosen = set(sample(every, share, random))
    left = [
        Selection(each.listed, tuple(one for one in each.snapshots if (each.listed, one) in chosen))
        for each in selections
    ]
    return [each for each in left if each.snapshots]


def _newest(history: History) -> set[SnapshotId]:
    regular = [each for each in history.manifests if each.kind is SnapshotKind.REGULAR]
    newest = (regular or history.manifests)[-1:]
    return {each.id for each in newest} | history.perhaps_newer_than(newest[-1] if newest else None)


def _meant(
    reference: Reference, archives: Sequence[ListedArchive], database: str | None, now: datetime
) -> set[tuple[str, SnapshotId]]:
    wanted = reference.database or database
    asked = [each for each in archives if wanted in {None, each.archive.database}]
    names = sorted({each.archive.database for each in asked})
    if len(names) > 1 and reference.names_one_moment:
        raise NoSuchSnapshotError(
            f"there are several databases: {', '.join(names)}", hint=f"say which one: {names[0]}@{reference.text}"
        )
    found: set[tuple[str, SnapshotId]] = set()
    for name in names:
        histories = [each.history for each in asked if each.archive.database == name]
        candidates = [each for each in (resolve(reference, one.manifests, now) for one in histories) if each]
        best = max(candidates, key=lambda each: each.id.taken_at, default=None)
        if reference.is_id:
            suspects = {one.id for each in histories for one in each.damaged if str(one.id).startswith(reference.text)}
        else:
            suspects = {one for each in histories for one in each.perhaps_newer_than(best)}
        found |= {(name, one) for one in suspects | ({best.id} if best else set())}
    if len({name for name, _ in found}) > 1:
        some = sorted(found)
        raise NoSuchSnapshotError(
            f"{reference.text} means a snapshot in several databases: {', '.join(sorted({name for name, _ in found}))}",
            hint=f"say which one: {some[0][0]}@{reference.text}",
        )
    if not found:
        whose = f" of {wanted}" if wanted else ""
        raise NoSuchSnapshotError(f"no snapshot {reference.text}{whose}", hint="see what there is with: backupd list")
    return found
