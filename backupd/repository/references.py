"""Snapshots across stores: list all of them, or find the one that a reference means.

A reference is an id, `latest~2`, `before-restore`, a time, a time of day, an age or a tag; with or without `NAME@`. An
id, a time or an age begins with a digit; `latest` and tags do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from backupd.config import InvalidValueError, check_database_name, parse_duration
from backupd.errors import (
    BackupdError,
    DamageError,
    NoMatchingSnapshotError,
    NoSuchObjectError,
    NoSuchSnapshotError,
    UnsupportedFormatError,
    UsageError,
)
from backupd.format.manifest import SnapshotKind
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, AnySummary
    from backupd.repository import Repository
    from backupd.repository.archive import Archive
    from backupd.repository.history import History, Listing

_M_co = TypeVar("_M_co", covariant=True)
_LATEST = re.compile(r"(?P<word>latest|before-restore)(?:~(?P<back>[0-9]{1,9}))?")
_ID_BEGINNING = re.compile(r"[0-9]{4,8}|[0-9]{8}T[0-9]{0,9}|[0-9]{8}T[0-9]{9}Z(?:-[0-9a-f]{0,8})?")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}.*")
_TIME_OF_DAY = re.compile(r"[0-9]{1,2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?")
_TAG = re.compile(r"[A-Za-z][A-Za-z0-9._+-]{0,99}")
_CANDIDATES_SHOWN = 5
_DATABASES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; `database` is the name before `@`, if there was one."""

    text: str
    database: str | None

    @property
    def names_one_moment(self) -> bool:
        """Whether it means a different snapshot in each database: `latest`, a time or an age."""
        return not (self.is_id or self.is_tag)

    def moment(self, now: datetime) -> datetime | None:
        """Return the time (UTC) that it means: a time, the last such time of day, or an age before `now`; or None.

        `now` is aware. A time without an offset is local time, as it was at that date. Raises `UsageError`.
        """
        is_other = self.is_id or self.is_tag or _LATEST.fullmatch(self.text)
        return None if is_other else _moment(self.text, now)

    @property
    def is_id(self) -> bool:
        """Whether it is an id or the beginning of one."""
        return _ID_BEGINNING.fullmatch(self.text) is not None

    @property
    def is_tag(self) -> bool:
        """Whether only a tag can look like this."""
        return is_tag(self.text)


def is_tag(text: str) -> bool:
    """Whether `text` may be a tag: a letter, then letters, digits, `.`, `_`, `+`, `-`; but no word such as `latest`."""
    return _TAG.fullmatch(text) is not None and _LATEST.fullmatch(text) is None


def parse_reference(text: str) -> Reference:
    """Parse the reference in `text`. Raises `UsageError` when it is none."""
    database, separator, rest = text.rpartition("@")
    if database:
        check_database_name(database)
    reference = Reference(rest, database if separator else None)
    is_known = reference.is_tag or any(form.fullmatch(rest) for form in (_LATEST, _ID_BEGINNING, _TIME, _TIME_OF_DAY))
    if (separator and not database) or not (is_known or _age_seconds(rest) is not None):
        raise UsageError(
            f"{text!r} is not a snapshot",
            hint="give an id or its beginning, latest, latest~2, a time such as 2026-11-22T08:00 or 08:00, an age such "
            "as 2h or 3d, or a tag; NAME@ before it chooses the database",
        )
    return reference


def resolve(reference: Reference, manifests: Sequence[AnySummary], now: datetime) -> AnySummary | None:
    """Find the snapshot that `reference` means among those of one database, oldest first; None when there is none.

    `now` is aware. A time without an offset is local time, as it was at that date. `latest`, times and ages never mean
    a `before-restore` snapshot; that word means the newest of these. Raises `NoSuchSnapshotError` when several ids
    begin like this.
    """
    text = reference.text
    if reference.is_id:
        return _by_id(text, manifests)
    if reference.is_tag:
        return _newest([manifest for manifest in manifests if text in manifest.tags])
    regular = [manifest for manifest in manifests if manifest.kind is SnapshotKind.REGULAR]
    if match := _LATEST.fullmatch(text):
        meant = regular
        if match["word"] != "latest":
            meant = [manifest for manifest in manifests if manifest.kind is SnapshotKind.BEFORE_RESTORE]
        back = int(match["back"] or 0)
        return meant[-1 - back] if back < len(meant) else None
    moment = _moment(text, now)
    return _newest([manifest for manifest in regular if manifest.id.taken_at <= moment])


def _by_id(text: str, manifests: Sequence[AnySummary]) -> AnySummary | None:
    found = [manifest for manifest in manifests if str(manifest.id).startswith(text)]
    if len(found) > 1:
        shown = ", ".join(str(manifest.id) for manifest in found[-_CANDIDATES_SHOWN:])
        raise NoSuchSnapshotError(f"{len(found)} snapshots begin with {text}", hint=f"give more of the id: {shown}")
    return found[0] if found else None


def _newest(manifests: Sequence[AnySummary]) -> AnySummary | None:
    return manifests[-1] if manifests else None


def _moment(text: str, now: datetime) -> datetime:
    age = _age_seconds(text)
    try:
        if age is not None:
            return datetime.fromtimestamp(now.timestamp() - age, UTC)
        if _TIME_OF_DAY.fullmatch(text):
            return _last_time_of_day(text, now)
        # Through the timestamp, because astimezone() takes a local time that the clocks skipped for an earlier one.
        return datetime.fromtimestamp(datetime.fromisoformat(text).timestamp(), UTC)
    except (ValueError, OverflowError) as error:
        hint = "write it like 2026-11-22T08:00, with +02:00 behind it if it is not local time"
        raise UsageError(f"{text!r} is not a time: {error}", hint=hint) from error


def _last_time_of_day(text: str, now: datetime) -> datetime:
    """Return the last moment up to `now` at which local clocks showed `text`, the time of today or yesterday."""
    hours, _, rest = text.partition(":")
    clock = time.fromisoformat(f"{hours:0>2}:{rest}")
    today = datetime.fromtimestamp(now.timestamp()).date()  # noqa: DTZ006  (local, as users write times)
    moments = (datetime.combine(today - timedelta(days=days), clock).timestamp() for days in range(3))
    return datetime.fromtimestamp(next(each for each in moments if each <= now.timestamp()), UTC)


def _age_seconds(text: str) -> float | None:
    try:
        return parse_duration(text).total_seconds()
    except InvalidValueError:
        return None


@dataclass(frozen=True, slots=True)
class StoredSnapshot(Generic[_M_co]):
    """One snapshot in one store, with as much of its manifest as its type says."""

    archive: Archive
    manifest: _M_co


ListedSnapshot: TypeAlias = "StoredSnapshot[AnySummary]"
"""A snapshot with its manifest as far as that is known here, without the page map."""
FoundSnapshot: TypeAlias = "StoredSnapshot[AnyManifest]"
"""A snapshot with its manifest as the store has it."""


@dataclass(slots=True)
class SnapshotList:
    """Snapshots by store, database and age, newest last; and every store or manifest that could not be read."""

    snapshots: list[ListedSnapshot] = field(default_factory=list)
    problems: list[BackupdError] = field(default_factory=list)
    listings: dict[Archive, Listing] = field(default_factory=dict)
    """What was listed for them, where that was everything of a database."""
    unreadable: dict[Archive, list[SnapshotId]] = field(default_factory=dict)
    """The snapshots whose manifests cannot be read; `problems` says why."""


def list_snapshots(repositories: Sequence[Repository], database: str | None) -> SnapshotList:
    """List everything in `repositories`, or all of one database. Errors of one store do not hide what others hold."""
    listed = SnapshotList()
    for repository in repositories:
        try:
            if not is_repository(repository):
                continue
            for name, listing in _listings(repository, database).items():
                archive = repository.archive(name)
                history = archive.history(listing)
                if listing is not None:
                    listed.listings[archive] = listing
                listed.snapshots.extend(StoredSnapshot(archive, manifest) for manifest in history.manifests)
                listed.problems.extend(_damage(archive, history))
                if history.damaged:
                    listed.unreadable[archive] = [damaged.id for damaged in history.damaged]
        except BackupdError as error:
            listed.problems.append(error)
    return listed


def is_repository(repository: Repository) -> bool:
    """Whether anything was ever stored there. Raises `DamageError` when only `backupd.json` is missing."""
    if repository.exists():
        return True
    if names := repository.databases():
        raise DamageError(
            f"backupd.json is missing from {repository.url}, which holds snapshots of {_some(names)}",
            hint="the next `backupd now` of one of them puts it back; nothing else is lost",
        )
    return False


def _damage(archive: Archive, history: History) -> list[BackupdError]:
    hint = "it cannot be restored from there; other snapshots are not affected"
    return [damaged.error(archive.url, hint=hint) for damaged in history.damaged]


def find_snapshot(
    repositories: Sequence[Repository], text: str, *, database: str | None, now: datetime
) -> FoundSnapshot:
    """Find the snapshot that `text` means; its manifest is read from the store that it is found in.

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
                listings = _listings(repository, wanted)
                if (found := _find_in(repository, reference, listings, now)) is not None:
                    candidates.append(StoredSnapshot(repository.archive(found.database), found))
        except (NoSuchSnapshotError, DamageError, UnsupportedFormatError, UsageError):
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
        return StoredSnapshot(best.archive, best.archive.manifest(best.manifest.id))
    except NoSuchObjectError as error:
        raise NoSuchSnapshotError(
            f"snapshot {best.manifest.id} was removed from {best.archive.url} just now",
            hint=f"it may be in the trash: backupd list --trash {best.manifest.database}",
        ) from error


def _listings(repository: Repository, database: str | None) -> Mapping[str, Listing | None]:
    """What to look into, by name: one database, which its history lists, or all, which are listed at once."""
    return {database: None} if database else repository.listings()


def _find_in(
    repository: Repository, reference: Reference, listings: Mapping[str, Listing | None], now: datetime
) -> AnySummary | None:
    names = [*listings]
    if len(names) > 1 and reference.names_one_moment:
        raise NoSuchSnapshotError(
            f"{repository.url} holds several databases: {_some(names)}",
            hint=f"say which one: {names[0]}@{reference.text}",
        )
    found = []
    for name, listing in listings.items():
        history = repository.archive(name).history(listing)
        manifest = resolve(reference, history.manifests, now)
        _reject_if_damage_may_be_meant(repository.url, reference, history, manifest)
        if manifest is not None:
            found.append(manifest)
    if len(found) > 1:
        raise NoSuchSnapshotError(
            f"{reference.text} means a snapshot in several databases: {_some([each.database for each in found])}",
            hint=f"say which one: {found[0].database}@{reference.text}",
        )
    return found[0] if found else None


def _reject_if_damage_may_be_meant(url: str, reference: Reference, history: History, found: AnySummary | None) -> None:
    """Raise the error of a damaged manifest that may be meant: no older snapshot may silently stand in for it."""
    perhaps_newer = set() if reference.is_id else history.perhaps_newer_than(found)
    for damaged in history.damaged:
        if str(damaged.id).startswith(reference.text) or damaged.id in perhaps_newer:
            alternative = f"restore {found.id} by its id instead, or " if found else ""
            hint = f"{alternative}choose another snapshot from: backupd list {damaged.database}"
            raise damaged.error(url, hint=hint)


def _nothing_found(
    reference: Reference, repositories: Sequence[Repository], database: str | None
) -> NoMatchingSnapshotError:
    known = {name for repository in repositories if repository.exists() for name in repository.databases()}
    places = ", ".join(repository.url for repository in repositories)
    if not known:
        return NoMatchingSnapshotError(f"no snapshots in {places}", hint="take one with: backupd now")
    if database is not None and database not in known:
        return NoMatchingSnapshotError(
            f"no snapshots of a database {database} in {places}", hint=f"there are some of: {_some(sorted(known))}"
        )
    return NoMatchingSnapshotError(
        f"no snapshot {reference.text} in {places}", hint="see what there is with: backupd list"
    )


def _some(names: list[str]) -> str:
    rest = len(names) - _DATABASES_SHOWN
    return ", ".join(names[:_DATABASES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
