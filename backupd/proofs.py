"""What test restores found of the snapshots of one database in one store, by what they left there.

Nothing here depends on the state of this machine: what one host found, the others know. FORMAT.md, "Records", says when
a pack is condemned.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.errors import NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError
from backupd.format.records import Drill, DrillOutcome, decode_drill
from backupd.repository.records import read_record
from backupd.store.keys import drills_prefix
from backupd.survey import survey_of
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import AnyManifest
    from backupd.repository import Repository
    from backupd.survey import Survey

_READERS = 8


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one snapshot, and when (aware, UTC) the drill began that found it."""

    outcome: DrillOutcome
    at: datetime


@dataclass(frozen=True, slots=True)
class _Found:
    """A drill, and when the store got it, by the store's clock."""

    drill: Drill
    put_at: datetime

    @property
    def verdict(self) -> Verdict:
        return Verdict(self.drill.outcome, self.drill.at)

    @property
    def order(self) -> tuple[datetime, datetime]:
        """Sorts drills by time: by the store's clock, which may know whole seconds only, then by that of the host."""
        return self.put_at, self.drill.at


@dataclass(frozen=True, slots=True)
class Proofs:
    """The drills of one database in one store, at the time of one listing."""

    _found: Mapping[SnapshotId, _Found] = field(default_factory=dict)
    _condemned: Mapping[str, _Found] = field(default_factory=dict)
    """By SHA-256 (hex) of each pack that was found damaged and not put again since, the latest drill that found it."""
    unreadable: frozenset[SnapshotId] = frozenset()
    """Snapshots whose drill cannot be read, or is another's: perhaps proven."""

    def own(self, snapshot: SnapshotId) -> Verdict | None:
        """What the last drill of the snapshot itself has found."""
        found = self._found.get(snapshot)
        return None if found is None else found.verdict

    def verdict(self, manifest: AnyManifest) -> Verdict | None:
        """What is known of the snapshot: by its own drill, or by that of another one that names a damaged pack of it.

        Its own drill says more when it is damage, or later.
        """
        own = self._found.get(manifest.id)
        if own is not None and own.drill.outcome.is_damage:
            return own.verdict
        condemning = [self._condemned[pack.sha256] for pack in manifest.packs if pack.sha256 in self._condemned]
        last = max(condemning, key=lambda found: found.order, default=None)
        if last is None or (own is not None and own.order > last.order):
            return None if own is None else own.verdict
        return last.verdict

    def condemned_packs(self, manifest: AnyManifest) -> frozenset[str]:
        """SHA-256 (hex) of the packs of the snapshot that no other is to build on.

        All of them when its own drill found stored bytes damaged and blames no pack.
        """
        verdict = self.verdict(manifest)
        if verdict is None or verdict.outcome is not DrillOutcome.FAILED:
            return frozenset()
        own = self._found.get(manifest.id)
        named = {pack.sha256 for pack in manifest.packs}
        if own is not None and own.drill.outcome is DrillOutcome.FAILED and not own.drill.damaged_packs:
            return frozenset(named)
        return frozenset(named & self._condemned.keys())

    def condemning(self, manifests: Iterable[AnyManifest]) -> set[SnapshotId]:
        """The snapshots, gone or not, whose drills say that a pack which one of `manifests` names is damaged."""
        named = {pack.sha256 for manifest in manifests for pack in manifest.packs}
        return {found.drill.snapshot for sha256, found in self._condemned.items() if sha256 in named}

    def verdicts(self, manifests: Iterable[AnyManifest]) -> dict[SnapshotId, DrillOutcome]:
        """What is known of each of the snapshots, as far as anything is."""
        found = {manifest.id: self.verdict(manifest) for manifest in manifests}
        return {snapshot_id: verdict.outcome for snapshot_id, verdict in found.items() if verdict is not None}

    def newest_proven(self, manifests: Iterable[AnyManifest]) -> AnyManifest | None:
        """The newest of the snapshots that is proven."""
        return self._newest(manifests, DrillOutcome.PROVEN)

    def newest_intact(self, manifests: Sequence[AnyManifest]) -> AnyManifest | None:
        """The newest of the snapshots that is intact, when it is newer than the newest proven one."""
        intact, proven = self._newest(manifests, DrillOutcome.INTACT), self.newest_proven(manifests)
        return intact if intact and (proven is None or intact.order > proven.order) else None

    def perhaps_proven(self, manifests: Sequence[AnyManifest]) -> set[SnapshotId]:
        """Those newer than the newest proven one that may be proven: what their drills found cannot be read."""
        proven = self.newest_proven(manifests)
        return {
            manifest.id
            for manifest in manifests
            if manifest.id in self.unreadable and (proven is None or manifest.order > proven.order)
        }

    def _newest(self, manifests: Iterable[AnyManifest], outcome: DrillOutcome) -> AnyManifest | None:
        known = [each for each in manifests if (found := self.verdict(each)) and found.outcome is outcome]
        return max(known, key=lambda manifest: manifest.order, default=None)


def read_proofs(repository: Repository, database: str, survey: Survey | None = None) -> Proofs:
    """What the drills that `survey` shows have found; each is read from the store once, and then from the cache.

    Without a survey, drills are listed, and packs too when one was found damaged. Raises the errors of `Store`.
    """
    shown = survey or survey_of(database, repository.store.list(drills_prefix(database)))

    def read(snapshot_id: SnapshotId) -> _Found | None:
        stored = shown.drills[snapshot_id]
        drill = read_record(repository, database, stored, decode_drill)
        if (drill.snapshot, drill.database) != (snapshot_id, database):
            raise FormatError("it is that of another snapshot")
        return _Found(drill, stored.modified_at)

    def read_if_there(snapshot_id: SnapshotId) -> _Found | FormatError | UnsupportedFormatError | None:
        try:
            return read(snapshot_id)
        except NoSuchObjectError:
            return None  # removed since the listing
        except (FormatError, UnsupportedFormatError) as error:
            return error

    with worker_threads(_READERS) as readers:
        read_all = dict(zip(shown.drills, readers.map(read_if_there, shown.drills), strict=True))
    found = {snapshot_id: each for snapshot_id, each in read_all.items() if isinstance(each, _Found)}
    unreadable = frozenset(found_at for found_at, each in read_all.items() if isinstance(each, Exception))
    if survey is None and any(each.drill.damaged_packs for each in found.values()):
        shown = repository.survey(database)
    return Proofs(found, _condemned(found.values(), shown), unreadable)


def _condemned(found: Iterable[_Found], survey: Survey) -> dict[str, _Found]:
    condemned: dict[str, _Found] = {}
    for each in sorted(found, key=lambda each: each.order):
        for sha256 in each.drill.damaged_packs:
            stored = survey.packs.get(sha256)
            # One with a later time was put again, with the bytes that its name says.
            if stored is None or stored.modified_at <= each.put_at:
                condemned[sha256] = each
    return condemned
