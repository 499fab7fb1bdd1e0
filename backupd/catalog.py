"""What the stores hold: all snapshots for a listing, or the one that somebody means."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.errors import BackupdError, DamageError, NoSuchObjectError, NoSuchSnapshotError, UnsupportedFormatError
from backupd.logs import log
from backupd.reference import parse_reference, resolve
from backupd.repository.manifests import opened, read_history, read_manifest, unreadable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from backupd.format.manifest import AnyManifest, Manifest
    from backupd.reference import Reference
    from backupd.repository import Repository
    from backupd.survey import History

_DATABASES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class ListedSnapshot:
    """One snapshot in one store, as far as its manifest can be read here."""

    repository: Repository
    manifest: AnyManifest


@dataclass(frozen=True, slots=True)
class WholeSnapshot:
    """One snapshot in one store, of which everything is known that a restore needs."""

    repository: Repository
    manifest: Manifest


@dataclass(slots=True)
class Listing:
    """Snapshots by store, database and age, newest last; and every store or manifest that could not be read."""

    snapshots: list[ListedSnapshot] = field(default_factory=list)
    problems: list[BackupdError] = field(default_factory=list)


def list_snapshots(repositories: Sequence[Repository], database: str | None) -> Listing:
    """Everything in `repositories`, or all of one database. Errors of one store do not hide what others hold."""
    listing = Listing()
    for repository in repositories:
        try:
            if not is_repository(repository):
                continue
            for name in [database] if database else repository.databases():
                history = read_history(repository, name)
                listing.snapshots.extend(ListedSnapshot(repository, manifest) for manifest in history.manifests)
                listing.problems.extend(_damage(repository, history))
        except BackupdError as error:
            listing.problems.append(error)
    return listing


def is_repository(repository: Repository) -> bool:
    """Whether anything was ever stored there. Raises `DamageError` when only the object that says so is gone."""
    if repository.exists():
        return True
    if names := repository.databases():
        raise DamageError(
            f"backupd.json is missing from {repository.url}, which holds snapshots of {_some(names)}",
            hint="the next `backupd now` of one of them puts it back; nothing else is lost",
        )
    return False


def _damage(repository: Repository, history: History) -> list[BackupdError]:
    hint = "it cannot be restored from there; other snapshots are not affected"
    return [unreadable(repository, damaged, hint=hint) for damaged in history.damaged]


def find_snapshot(
    repositories: Sequence[Repository], text: str, *, database: str | None, now: datetime
) -> ListedSnapshot:
    """The snapshot that `text` means; its manifest is read from the store that it is found in.

    An id comes from the first store that has it. `latest`, a time, an age or a tag means the newest that any store
    has, because one of them may have missed some; of equal ones, that of the first store. Raises `NoSuchSnapshotError`
    (none, or ambiguous), `DamageError` when a damaged manifest may be the one meant, and the error of a store that
    could not be asked when no other store has it.
    """
    reference = parse_reference(text)
    wanted = reference.database or database
    failed: BackupdError | None = None
    candidates: list[ListedSnapshot] = []
    for repository in repositories:
        try:
            if is_repository(repository):
                names = [wanted] if wanted else repository.databases()
                if (found := _find_in(repository, reference, names, now)) is not None:
                    candidates.append(ListedSnapshot(repository, found))
        except (NoSuchSnapshotError, DamageError, UnsupportedFormatError):
            raise
        except BackupdError as error:
            failed = failed or error
            log.warning("a store could not be asked", reason=error.message, hint=error.hint)
        if candidates and reference.is_id:
            break
    if not candidates:
        raise failed or _nothing_found(reference, repositories, wanted)
    best = max(candidates, key=lambda candidate: candidate.manifest.id.taken_at)
    try:
        return ListedSnapshot(best.repository, read_manifest(best.repository, best.manifest.database, best.manifest.id))
    except NoSuchObjectError as error:
        raise NoSuchSnapshotError(
            f"snapshot {best.manifest.id} was removed from {best.repository.url} in this moment",
            hint=f"it may be in the trash: backupd list --trash {best.manifest.database}",
        ) from error


def whole(found: ListedSnapshot) -> WholeSnapshot:
    """`found` with everything that a restore needs. Raises `IdentityNeededError`."""
    return WholeSnapshot(found.repository, opened(found.repository, found.manifest))


def _find_in(repository: Repository, reference: Reference, names: list[str], now: datetime) -> AnyManifest | None:
    if len(names) > 1 and reference.names_one_moment:
        raise NoSuchSnapshotError(
            f"{repository.url} holds several databases: {_some(names)}",
            hint=f"say which one: {names[0]}@{reference.text}",
        )
    found = []
    for name in names:
        history = read_history(repository, name)
        manifest = resolve(reference, history.manifests, now)
        _reject_if_damage_may_be_meant(repository, reference, history, manifest)
        if manifest is not None:
            found.append(manifest)
    if len(found) > 1:
        raise NoSuchSnapshotError(
            f"{reference.text} means a snapshot in several databases: {_some([each.database for each in found])}",
            hint=f"say which one: {found[0].database}@{reference.text}",
        )
    return found[0] if found else None


def _reject_if_damage_may_be_meant(
    repository: Repository, reference: Reference, history: History, found: AnyManifest | None
) -> None:
    """Never hand out an older snapshot in silence because the manifest of the right one cannot be read."""
    perhaps_newer = set() if reference.is_id else history.perhaps_newer_than(found)
    for damaged in history.damaged:
        if str(damaged.id).startswith(reference.text) or damaged.id in perhaps_newer:
            alternative = f"restore {found.id} by its id instead, or " if found else ""
            hint = f"{alternative}choose another snapshot from: backupd list {damaged.database}"
            raise unreadable(repository, damaged, hint=hint)


def _nothing_found(
    reference: Reference, repositories: Sequence[Repository], database: str | None
) -> NoSuchSnapshotError:
    known = {name for repository in repositories if repository.exists() for name in repository.databases()}
    places = ", ".join(repository.url for repository in repositories)
    if not known:
        return NoSuchSnapshotError(f"no snapshots in {places}", hint="take one with: backupd now")
    if database is not None and database not in known:
        return NoSuchSnapshotError(
            f"no snapshots of a database {database} in {places}", hint=f"there are some of: {_some(sorted(known))}"
        )
    return NoSuchSnapshotError(f"no snapshot {reference.text} in {places}", hint="see what there is with: backupd list")


def _some(names: list[str]) -> str:
    rest = len(names) - _DATABASES_SHOWN
    return ", ".join(names[:_DATABASES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
