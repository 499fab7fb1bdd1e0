"""What a listing of one database shows: its snapshots in their order, its trash, and its other objects."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import msgspec

from backupd.concurrency import worker_threads
from backupd.errors import BusyError, DamageError, NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError, SnapshotId
from backupd.format.manifest import (
    ALWAYS_COUNTED_SEQUENCES,
    AnyManifest,
    AnySummary,
    Summary,
    highest_sequence,
    summary_of,
)
from backupd.format.records import MAX_TRASH_BYTES, TrashEntry
from backupd.state.catalog import names_of_packs
from backupd.store import StoredObject, key_of
from backupd.store.keys import (
    RecordKey,
    RecordKind,
    SegmentKey,
    SnapshotKey,
    clock_key,
    retention_key,
    segments_prefix,
    snapshots_prefix,
    split_key,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from backupd.format.manifest import PackEntry
    from backupd.repository.archive import Archive

_S = TypeVar("_S", bound=AnySummary)
_READERS = 8
_CLOCK_TOLERANCE = timedelta(minutes=1)
_FAR_AHEAD = timedelta(days=1)


class StoredSegment(NamedTuple):
    """A segment in a listing."""

    key: SegmentKey
    stored: StoredObject

    @property
    def size_bytes(self) -> int:
        """Its size as it is stored."""
        return self.stored.size_bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of one database in one store: packs by SHA-256 (hex), everything else by the id in its key."""

    manifests: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    packs: Mapping[str, StoredObject] = field(default_factory=dict)
    """Those that the store gave by their keys alone are looked at when they are asked for."""
    trash: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    drills: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    findings: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    """Records of sweeps: which packs nothing named."""
    deletions: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    undeleted: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    """Marks of snapshots that came back from the trash, which no rule removes again."""
    continuity: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    """Records of checks of recovery windows, by the id of the window."""
    segments: dict[SnapshotId, list[StoredSegment]] = field(default_factory=dict)
    """The segments of each recovery window, by its id; windows and segments in the order of their keys."""
    single: dict[str, StoredObject] = field(default_factory=dict)
    """The retention record and the clock, of which there is one each, by key."""
    foreign: list[str] = field(default_factory=list)
    """Keys that are not of this format, in the order of the listing."""

    @classmethod
    def of(
        cls,
        database: str,
        objects: Iterable[StoredObject | str],
        look: Callable[[str], StoredObject | None] = lambda _: None,
    ) -> Self:
        """Sort `objects`, a store's listing of everything of `database`.

        The store may have given packs by their keys alone; `look` is what gives the rest of one then.
        """
        packs: dict[str, StoredObject | str] = {}
        listing = cls(packs=_ListedPacks(packs, look))
        of_kind: dict[str, dict[SnapshotId, StoredObject]] = {
            "snapshots": listing.manifests,
            RecordKind.TRASH: listing.trash,
            RecordKind.DRILL: listing.drills,
            RecordKind.SWEEP: listing.findings,
            RecordKind.DELETION: listing.deletions,
            RecordKind.UNDELETED: listing.undeleted,
            RecordKind.CONTINUITY: listing.continuity,
        }
        single = {retention_key(database), clock_key(database)}
        segments = segments_prefix(database)
        for stored in objects:
            key = key_of(stored)
            kind, name = split_key(key) or (None, "")
            if kind == "packs":
                packs[name] = stored
            elif isinstance(stored, str):
                listing.foreign.append(key)
            elif kind is not None and (object_id := _as_id(name)):
                of_kind[kind][object_id] = stored
            elif key.startswith(segments) and (segment := SegmentKey.parse(key)):
                window = listing.segments.setdefault(SnapshotId(segment.window), [])
                window.append(StoredSegment(segment, stored))
            elif key in single:
                listing.single[key] = stored
            else:
                listing.foreign.append(key)
        return listing

    def missing(self, packs: Iterable[PackEntry]) -> list[PackEntry]:
        """Return the entries in `packs` whose pack is absent, or has another size than the entry says."""
        return [pack for pack in packs if self._size(pack.sha256) != pack.stored_bytes]

    def _size(self, sha256: str) -> int | None:
        found = self.packs.get(sha256)
        return None if found is None else found.size_bytes


class _ListedPacks(Mapping[str, StoredObject]):
    """The packs in a listing, by SHA-256 (hex). One that has gone when it is looked at is not there."""

    def __init__(self, shown: dict[str, StoredObject | str], look: Callable[[str], StoredObject | None]) -> None:
        self._shown = shown
        self._look = look

    def __getitem__(self, sha256: str) -> StoredObject:
        shown = self._shown[sha256]
        if isinstance(shown, str):
            looked_at = self._look(shown)
            if looked_at is None:
                raise KeyError(sha256)
            self._shown[sha256] = shown = looked_at
        return shown

    def __contains__(self, sha256: object) -> bool:
        return sha256 in self._shown

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown)

    def __len__(self) -> int:
        return len(self._shown)


@functools.lru_cache(maxsize=1 << 15)
def _as_id(text: str) -> SnapshotId | None:
    try:
        return SnapshotId(text)
    except FormatError:
        return None  # digits in the right places that are no date: not written by backupd


@dataclass(frozen=True, slots=True)
class DamagedManifest:
    """A manifest that is in the store and cannot be read."""

    database: str
    id: SnapshotId
    reason: str
    is_newer: bool = False
    """Its format version is newer than its repository's: a newer backupd wrote it, or none did."""
    is_outdated: bool = False
    """It is dated after the time when it was put, and a readable one was put later: it is not the newest."""

    def error(self, url: str, *, hint: str) -> DamageError | UnsupportedFormatError:
        """Build the error for this manifest in the store at `url`; `hint` is the remedy when it is damaged."""
        name = f"{self.database}@{self.id}"
        if self.is_newer:
            return UnsupportedFormatError(
                f"snapshot {name} in {url} was written by a newer backupd: {self.reason}",
                hint="install the newer version; nothing was changed",
            )
        return DamageError(f"the manifest of {name} in {url} is damaged: {self.reason}", hint=hint)


@dataclass(frozen=True, slots=True)
class History:
    """The snapshots of one database, oldest first, and the manifests that cannot be read."""

    manifests: tuple[AnySummary, ...]
    """The newest as it was read; of others, all but the page map."""
    damaged: tuple[DamagedManifest, ...]
    implausible: Mapping[SnapshotId, str] = field(default_factory=dict)
    """Why some of `manifests` state what cannot be true of a snapshot. FORMAT.md says how they count in the order."""

    @property
    def newest(self) -> AnySummary | None:
        """The snapshot with the highest sequence, of any kind."""
        return self.manifests[-1] if self.manifests else None

    @property
    def newest_id(self) -> SnapshotId | None:
        """The id of the newest snapshot, even when its manifest is damaged."""
        known = [] if self.newest is None else [self.newest.id]
        return max([*known, *self.perhaps_newer_than(self.newest)], default=None)

    def perhaps_newer_than(self, found: AnySummary | None) -> set[SnapshotId]:
        """The damaged manifests that may be newer than `found`; when that is None, all that may be a snapshot.

        A damaged manifest does not say its place in the order, so its id has to do.
        """
        candidates = {damaged.id for damaged in self.damaged if not damaged.is_outdated}
        return {each for each in candidates if found is None or each > found.id}

    def lacks_some_of(self, listing: Listing) -> bool:
        """Whether manifests that `listing` shows had gone before they could be read."""
        return len(self.manifests) + len(self.damaged) < len(listing.manifests)

    def needing(self, pack: PackEntry) -> tuple[list[SnapshotId], SnapshotId | None]:
        """The snapshots that name `pack`, oldest first, and the newest that does not: what its damage affects."""
        affected = [manifest.id for manifest in self.manifests if pack in manifest.packs]
        spared = [manifest.id for manifest in self.manifests if pack not in manifest.packs]
        return affected, spared[-1] if spared else None


@dataclass(frozen=True, slots=True)
class SeenHistory:
    """The manifests that a run has seen and read, so that what it does next need not do so again."""

    listed: Mapping[str, StoredObject]
    """By key."""
    summaries: Mapping[SnapshotId, AnySummary]

    @classmethod
    def of(cls, listing: Listing, history: History) -> Self:
        """Take what `listing` showed and `history` read, but for what other keys, or another time, may change."""
        summaries = {
            each.id: summary_of(each)
            for each in history.manifests
            if isinstance(each, Summary) and each.sequence <= ALWAYS_COUNTED_SEQUENCES
        }
        return cls({stored.key: stored for each in summaries if (stored := listing.manifests[each])}, summaries)

    def known(self, listing: Listing) -> dict[SnapshotId, AnySummary]:
        """Return what was read of the manifests that `listing` shows as they were seen."""
        manifests, listed = listing.manifests, self.listed
        return {
            each: summary
            for each, summary in self.summaries.items()
            if (stored := manifests.get(each)) and stored == listed.get(stored.key)
        }


NOTHING_SEEN = SeenHistory({}, {})


@dataclass(frozen=True, slots=True)
class Trash:
    """The snapshots that were removed from one database, oldest first, and the trash entries that cannot be read."""

    entries: tuple[TrashEntry, ...]
    damaged: tuple[DamagedManifest, ...]


@dataclass(frozen=True, slots=True)
class Holdings:
    """One listing of an archive, with all manifests and trash entries that it shows."""

    archive: Archive
    listing: Listing
    history: History
    trash: Trash

    @property
    def named_packs(self) -> set[str]:
        """SHA-256 (hex) of every pack that a manifest or a trash entry names."""
        manifests = (*self.history.manifests, *(entry.manifest for entry in self.trash.entries))
        names: set[str] = set()
        for manifest in manifests:
            names.update(names_of_packs(manifest.packs))
        return names

    def require_readable_manifests(self) -> None:
        """Raise `DamageError` for a manifest that cannot be read, `BusyError` for one that has vanished meanwhile."""
        for damaged in self.history.damaged:
            raise damaged.error(
                self.archive.url,
                hint="nothing of this database is removed while it is there, because it may need any pack; when you "
                f"have given it up, delete {SnapshotKey(damaged.database, str(damaged.id))} by hand",
            )
        if self.history.lacks_some_of(self.listing):
            raise self._another_host_is_at_work()

    def require_readable_trash(self) -> None:
        """Raise `DamageError` for a trash entry that cannot be read, `BusyError` for one that has vanished."""
        database = self.archive.database
        for damaged in self.trash.damaged:
            key = RecordKey(RecordKind.TRASH, database, str(damaged.id))
            raise DamageError(
                f"the removed snapshot {database}@{damaged.id} in the trash of {self.archive.url} is damaged: "
                f"{damaged.reason}",
                hint="no space is freed while it is there, because it may need any pack; when you have given it up, "
                f"delete {key} by hand",
            )
        if len(self.trash.entries) < len(self.listing.trash):
            raise self._another_host_is_at_work()

    def _another_host_is_at_work(self) -> BusyError:
        return BusyError(
            f"another host removes or undeletes snapshots of {self.archive.database} in {self.archive.url} right now",
            hint="let it finish, then try again",
        )


def read_holdings(archive: Archive, seen: SeenHistory = NOTHING_SEEN) -> Holdings:
    """List `archive`, and read all manifests and trash entries. Raises as `Archive.holdings` does."""
    listing = archive.listing(seen.listed)
    return Holdings(archive, listing, read_history(archive, listing, seen), read_trash(archive, listing))


def read_history(archive: Archive, listing: Listing | None, seen: SeenHistory = NOTHING_SEEN) -> History:
    """Read all manifests that `listing`, or a new listing of them, shows. Raises as `Archive.history` does.

    What was `seen` a moment ago is neither decoded nor read again, but for the newest. An unreadable manifest is part
    of the result. One whose private part cannot be read here is a `SealedManifest`.
    """
    if listing is None:
        prefix = snapshots_prefix(archive.database)
        listing = Listing.of(archive.database, archive.repository.store.list(prefix))
    listed = listing.manifests
    keys = archive.repository.encryption.identity_digest()
    # Before the readers start: finding the catalog asks the store for its id, which each of them would do.
    known, has_others = seen.known(listing), False
    if len(known) + 1 < len(listed) or not known:
        known, has_others = archive.catalog.summaries(listed, keys=keys)

    def read(snapshot_id: SnapshotId) -> AnyManifest | DamagedManifest | None:
        try:
            return archive.load_manifest(snapshot_id)
        except NoSuchObjectError:
            return None  # removed since the listing

    # The newest is read from the store every time: what the next snapshot builds on is not taken on trust.
    newest = max(listed, default=None)
    unread = [snapshot_id for snapshot_id in listed if snapshot_id == newest or snapshot_id not in known]
    with worker_threads(_READERS) as readers:
        found = dict(zip(unread, readers.map(read, unread), strict=True))
    summaries = [summary_of(each) for each in found.values() if isinstance(each, AnyManifest)]
    learned = {each.id: each for each in summaries if each != known.get(each.id)}
    if learned or has_others:
        archive.catalog.keep_summaries(learned, listed, keys=keys)
    # Page maps can be large, so that of the newest is the only one that stays in memory.
    as_read = {each: found[each] for each in unread if each == newest or not isinstance(found[each], AnyManifest)}
    return _ordered([*(known | learned | as_read).values()], listed, datetime.now(UTC))


def _ordered(
    found: Sequence[AnySummary | DamagedManifest | None], listed: Mapping[SnapshotId, StoredObject], now: datetime
) -> History:
    read = [each for each in found if each is not None and not isinstance(each, DamagedManifest)]
    manifests = sorted(
        (
            each if each.sequence <= ALWAYS_COUNTED_SEQUENCES else _as_counted(each, listed[each.id], now)
            for each in read
        ),
        key=attrgetter("sequence", "id"),
    )
    # Ids sort by time, and compare faster than the times in them.
    latest = SnapshotId.new(now + _FAR_AHEAD, 0)
    doubtful = [each for each in read if each.sequence > ALWAYS_COUNTED_SEQUENCES or each.id > latest]
    last_put_at = listed[manifests[-1].id].modified_at if manifests else None

    def is_outdated(damaged: DamagedManifest) -> bool:
        put_at = listed[damaged.id].modified_at
        is_ahead = damaged.id.taken_at > min(put_at, now) + _CLOCK_TOLERANCE
        return is_ahead and last_put_at is not None and put_at < last_put_at

    damaged = [each for each in found if isinstance(each, DamagedManifest)]
    return History(
        tuple(manifests),
        tuple(replace(each, is_outdated=is_outdated(each)) for each in damaged),
        {each.id: why for each in doubtful if (why := _why_implausible(each, listed[each.id], now))},
    )


def read_trash(archive: Archive, listing: Listing) -> Trash:
    """Read all trash entries that `listing` shows. Raises as `Archive.trash` does."""
    now = datetime.now(UTC)

    def read(snapshot_id: SnapshotId) -> TrashEntry | DamagedManifest | None:
        try:
            stored = listing.trash[snapshot_id]
            entry = archive.record(stored, TrashEntry.decode, limit_bytes=MAX_TRASH_BYTES)
            require_own(entry.manifest, archive.database, snapshot_id)
            return msgspec.structs.replace(entry, manifest=_as_counted(entry.manifest, stored, now))
        except FormatError as error:
            return DamagedManifest(archive.database, snapshot_id, str(error))
        except NoSuchObjectError:
            return None  # purged or undeleted since the listing

    with worker_threads(_READERS) as readers:
        found = list(readers.map(read, listing.trash))
    entries = sorted((each for each in found if isinstance(each, TrashEntry)), key=lambda each: each.manifest.order)
    return Trash(tuple(entries), tuple(each for each in found if isinstance(each, DamagedManifest)))


def require_own(manifest: AnyManifest, database: str, snapshot_id: SnapshotId) -> None:
    """Raise `FormatError` for the manifest of another snapshot: an object was put under a key that is not its own."""
    if (manifest.id, manifest.database) != (snapshot_id, database):
        raise FormatError(f"it is that of {manifest.database}@{manifest.id}")


def _as_counted(manifest: _S, stored: StoredObject, now: datetime) -> _S:
    """Limit the sequence of `manifest`, listed as `stored`, to the highest that counts in the order of snapshots."""
    if manifest.sequence <= ALWAYS_COUNTED_SEQUENCES:
        return manifest
    highest = highest_sequence(stored.modified_at, now)
    return manifest if manifest.sequence <= highest else msgspec.structs.replace(manifest, sequence=highest)


def _why_implausible(manifest: AnySummary, stored: StoredObject, now: datetime) -> str | None:
    if _as_counted(manifest, stored, now) is not manifest:
        return f"its sequence is {manifest.sequence}, and so many snapshots were never taken"
    if manifest.id.taken_at > now + _FAR_AHEAD:
        return "it is dated in the future: a clock was wrong, or it was planted"
    return None
