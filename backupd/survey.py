"""What one listing shows of a database, object by object, and what was read of its snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.format import FormatError
from backupd.format.ids import SnapshotId
from backupd.store.keys import PackKey, RecordKey, RecordKind, SnapshotKey, clock_key, retention_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.format.records import TrashEntry
    from backupd.store import StoredObject


@dataclass(frozen=True, slots=True)
class Survey:
    """The objects of one database by what they are: packs by SHA-256 (hex), all others by id."""

    manifests: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    packs: dict[str, StoredObject] = field(default_factory=dict)
    trash: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    drills: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    findings: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    deletions: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    undeleted: dict[SnapshotId, StoredObject] = field(default_factory=dict)
    """By the snapshot that came back from the trash, and that no rule removes again."""
    single: dict[str, StoredObject] = field(default_factory=dict)
    """Those of which there is one, by key."""
    strangers: list[str] = field(default_factory=list)
    """Keys that are not of this format, in their order."""

    def missing(self, packs: Iterable[PackEntry]) -> list[PackEntry]:
        """Those of `packs` that are not there, or not with their size."""
        return [pack for pack in packs if self._size(pack.sha256) != pack.stored_bytes]

    def _size(self, sha256: str) -> int | None:
        found = self.packs.get(sha256)
        return None if found is None else found.size_bytes


def survey_of(database: str, found: Iterable[StoredObject]) -> Survey:
    """What `found`, a listing of everything of `database`, shows."""
    survey = Survey()
    of_kind = {
        RecordKind.TRASH: survey.trash,
        RecordKind.DRILL: survey.drills,
        RecordKind.SWEEP: survey.findings,
        RecordKind.DELETION: survey.deletions,
        RecordKind.UNDELETED: survey.undeleted,
    }
    single = {retention_key(database), clock_key(database)}
    for stored in found:
        if pack := PackKey.parse(stored.key):
            survey.packs[pack.sha256.hex()] = stored
        elif snapshot := snapshot_id_of(stored.key):
            survey.manifests[snapshot] = stored
        elif (record := RecordKey.parse(stored.key)) and (record_id := _as_id(record.id)):
            of_kind[record.kind][record_id] = stored
        elif stored.key in single:
            survey.single[stored.key] = stored
        else:
            survey.strangers.append(stored.key)
    return survey


def snapshot_id_of(key: str) -> SnapshotId | None:
    """The id of the snapshot whose manifest has this key, or None."""
    parsed = SnapshotKey.parse(key)
    return _as_id(parsed.snapshot_id) if parsed else None


def _as_id(text: str) -> SnapshotId | None:
    try:
        return SnapshotId(text)
    except FormatError:
        return None  # digits in the right places that are no date: not ours


@dataclass(frozen=True, slots=True)
class DamagedManifest:
    """A manifest that is there and cannot be read."""

    database: str
    id: SnapshotId
    reason: str
    is_newer: bool = False
    """It is of a newer format than its repository: that of a newer backupd, or of none."""
    is_outdated: bool = False
    """It is dated after the time when it was put, and a readable one was put later: it is not the newest."""


@dataclass(frozen=True, slots=True)
class History:
    """The snapshots of one database, oldest first, and the manifests that cannot be read."""

    manifests: tuple[AnyManifest, ...]
    damaged: tuple[DamagedManifest, ...]
    implausible: Mapping[SnapshotId, str] = field(default_factory=dict)
    """Why some of `manifests` say what no snapshot can be right about. They count in the order as FORMAT.md says."""

    @property
    def newest(self) -> AnyManifest | None:
        """The snapshot with the highest sequence, of any kind."""
        return self.manifests[-1] if self.manifests else None

    @property
    def newest_id(self) -> SnapshotId | None:
        """That of the newest snapshot, also when its manifest is what is damaged."""
        known = [] if self.newest is None else [self.newest.id]
        return max([*known, *self.perhaps_newer_than(self.newest)], default=None)

    def perhaps_newer_than(self, found: AnyManifest | None) -> set[SnapshotId]:
        """The damaged ones that may be newer than `found`; all that may be a snapshot's, when that is None.

        A damaged manifest does not say its place in the order: its id has to do.
        """
        candidates = {damaged.id for damaged in self.damaged if not damaged.is_outdated}
        return {each for each in candidates if found is None or each > found.id}

    def lacks_some_of(self, survey: Survey) -> bool:
        """Whether manifests that `survey` shows had gone before they could be read."""
        return len(self.manifests) + len(self.damaged) < len(survey.manifests)


@dataclass(frozen=True, slots=True)
class Trash:
    """What was removed from one database, oldest first, and the trash entries that cannot be read."""

    entries: tuple[TrashEntry, ...]
    damaged: tuple[DamagedManifest, ...]
