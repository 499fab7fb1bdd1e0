"""Which snapshots are to be verified: what the stores hold, and which of that is meant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd.catalog import is_repository
from backupd.errors import BackupdError, NoSuchSnapshotError
from backupd.format.manifest import SnapshotKind
from backupd.reference import resolve
from backupd.repository.manifests import read_history
from backupd.store.keys import SnapshotKey
from backupd.survey import survey_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from backupd.format.ids import SnapshotId
    from backupd.reference import Reference
    from backupd.repository import Repository
    from backupd.store import StoredObject
    from backupd.survey import History, Survey
    from backupd.verify.results import VerifyWish


@dataclass(frozen=True, slots=True, eq=False)
class Holding:
    """What one store holds of one database, by one listing."""

    repository: Repository
    database: str
    survey: Survey
    history: History

    def ids(self) -> set[SnapshotId]:
        """Those of all snapshots, readable or not."""
        readable = {manifest.id for manifest in self.history.manifests}
        return readable | {damaged.id for damaged in self.history.damaged}


@dataclass(frozen=True, slots=True)
class Holdings:
    """What all stores hold, why some could not be asked, and the URLs of those in which nothing was ever stored."""

    found: tuple[Holding, ...]
    problems: tuple[BackupdError, ...]
    empty: tuple[str, ...]


def look_around(repositories: Sequence[Repository], database: str | None) -> Holdings:
    """List every store once: everything, or one database. An error of one store does not hide what others hold."""
    found: list[Holding] = []
    problems: list[BackupdError] = []
    empty = []
    for repository in repositories:
        try:
            if is_repository(repository):
                found += _holdings(repository, database)
            else:
                empty.append(repository.url)
        except BackupdError as error:
            problems.append(error)
    return Holdings(tuple(found), tuple(problems), tuple(empty))


def _holdings(repository: Repository, database: str | None) -> list[Holding]:
    if database is not None:
        surveys = {database: repository.survey(database)}
    else:
        surveys = {name: survey_of(name, found) for name, found in _by_database(repository.store.list("")).items()}
    return [
        Holding(repository, name, survey, read_history(repository, name, survey))
        for name, survey in surveys.items()
        if survey.manifests
    ]


def _by_database(listing: Iterable[StoredObject]) -> dict[str, list[StoredObject]]:
    """The objects of each database that has a snapshot."""
    objects: dict[str, list[StoredObject]] = {}
    names = set()
    for found in listing:
        objects.setdefault(found.key.partition("/")[0], []).append(found)
        if snapshot := SnapshotKey.parse(found.key):
            names.add(snapshot.database)
    return {name: objects[name] for name in sorted(names)}


def choose(
    holdings: Sequence[Holding], wish: VerifyWish, now: datetime
) -> list[tuple[Holding, tuple[SnapshotId, ...]]]:
    """The snapshots that are meant, by what holds them, the oldest first.

    A reference means one snapshot, as everywhere, and that is looked at in every store that has it. Where the right
    manifest may be a damaged one, that is meant as well. Raises `NoSuchSnapshotError`.
    """
    if wish.references:
        meant = {each for reference in wish.references for each in _meant(reference, holdings, wish.database, now)}
        chosen = [(each, {one for name, one in meant if name == each.database} & each.ids()) for each in holdings]
    elif wish.wants_all:
        chosen = [(each, each.ids()) for each in holdings]
    else:
        chosen = [(each, _newest(each.history)) for each in holdings]
    return [(holding, tuple(sorted(ids))) for holding, ids in chosen if ids]


def _newest(history: History) -> set[SnapshotId]:
    regular = [each for each in history.manifests if each.kind is SnapshotKind.REGULAR]
    newest = (regular or history.manifests)[-1:]
    return {each.id for each in newest} | history.perhaps_newer_than(newest[-1] if newest else None)


def _meant(
    reference: Reference, holdings: Sequence[Holding], database: str | None, now: datetime
) -> set[tuple[str, SnapshotId]]:
    wanted = reference.database or database
    asked = [each for each in holdings if wanted in {None, each.database}]
    names = sorted({each.database for each in asked})
    if len(names) > 1 and reference.names_one_moment:
        raise NoSuchSnapshotError(
            f"there are several databases: {', '.join(names)}", hint=f"say which one: {names[0]}@{reference.text}"
        )
    found: set[tuple[str, SnapshotId]] = set()
    for name in names:
        histories = [each.history for each in asked if each.database == name]
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
