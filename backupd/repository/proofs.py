"""Outcomes of checks of the snapshots of one database in one store, from the records that they left there.

Nothing here depends on the state of this machine: what one host found, the others know. FORMAT.md, "Records", says when
a pack counts as damaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from backupd.concurrency import worker_threads
from backupd.errors import NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError
from backupd.format.records import CheckOutcome, Drill
from backupd.repository.history import Listing
from backupd.store.keys import drills_prefix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnySummary
    from backupd.repository.archive import Archive

_READERS = 8


class KnownOutcome(msgspec.Struct, frozen=True):
    """The known outcome for one snapshot, and when (aware, UTC) the check began that found it."""

    outcome: CheckOutcome
    at: datetime


class _Found(msgspec.Struct, frozen=True):
    """The record of a check, and when the store got it, by the store's clock."""

    drill: Drill
    put_at: datetime

    @property
    def known(self) -> KnownOutcome:
        return KnownOutcome(self.drill.outcome, self.drill.at)

    @property
    def order(self) -> tuple[datetime, datetime]:
        """The sort key by time: by the store's clock, which may know whole seconds only, then by that of the host."""
        return self.put_at, self.drill.at


class Proofs(msgspec.Struct, frozen=True):
    """The outcomes of checks of one database in one store, at the time of one listing."""

    _found: Mapping[SnapshotId, _Found] = msgspec.field(default_factory=dict)
    _damaged: Mapping[str, _Found] = msgspec.field(default_factory=dict)
    """The latest record that names each damaged pack, by SHA-256 (hex), without packs that were put again since."""
    unreadable: frozenset[SnapshotId] = frozenset()
    """Snapshots whose record cannot be read, or is of another snapshot: they may be proven."""

    def own(self, snapshot: SnapshotId) -> KnownOutcome | None:
        """Return the outcome of the last check of the snapshot itself."""
        found = self._found.get(snapshot)
        return None if found is None else found.known

    def known(self, manifest: AnySummary) -> KnownOutcome | None:
        """Return the outcome that counts for a snapshot: from its own record, or one that names a damaged pack of it.

        Its own record wins when it reports damage, or is later.
        """
        own = self._found.get(manifest.id)
        if own is not None and own.drill.outcome.is_damage:
            return own.known
        if not self._damaged:  # as nearly always, and there are many packs to look up
            return None if own is None else own.known
        damaging = [self._damaged[pack.sha256] for pack in manifest.packs if pack.sha256 in self._damaged]
        last = max(damaging, key=lambda found: found.order, default=None)
        if last is None or (own is not None and own.order > last.order):
            return None if own is None else own.known
        return last.known

    def known_damaged_packs(self, manifest: AnySummary) -> frozenset[str]:
        """SHA-256 (hex) of the packs of the snapshot that no other snapshot may build on.

        These are all its packs when its own record reports damage in the store and names no pack.
        """
        known = self.known(manifest)
        if known is None or known.outcome is not CheckOutcome.DAMAGED_STORE:
            return frozenset()
        own = self._found.get(manifest.id)
        named = {pack.sha256 for pack in manifest.packs}
        if own is not None and own.drill.outcome is CheckOutcome.DAMAGED_STORE and not own.drill.damaged_packs:
            return frozenset(named)
        return frozenset(named & self._damaged.keys())

    def reporting_damage(self, manifests: Iterable[AnySummary]) -> set[SnapshotId]:
        """The snapshots, present or not, whose records name a damaged pack of one of `manifests`."""
        if not self._damaged:
            return set()
        named = {pack.sha256 for manifest in manifests for pack in manifest.packs}
        return {found.drill.snapshot for sha256, found in self._damaged.items() if sha256 in named}

    def known_outcomes(self, manifests: Iterable[AnySummary]) -> dict[SnapshotId, CheckOutcome]:
        """Return the outcome that counts for each of the snapshots that has one."""
        is_any = bool(self._damaged)
        found = {each.id: self.known(each) for each in manifests if is_any or each.id in self._found}
        return {snapshot_id: known.outcome for snapshot_id, known in found.items() if known is not None}

    def newest_proven(self, manifests: Iterable[AnySummary]) -> AnySummary | None:
        """The newest of the snapshots that is proven."""
        return self._newest(manifests, CheckOutcome.PROVEN)

    def newest_intact(self, manifests: Sequence[AnySummary]) -> AnySummary | None:
        """The newest of the snapshots that is intact, when it is newer than the newest proven one."""
        intact, proven = self._newest(manifests, CheckOutcome.INTACT), self.newest_proven(manifests)
        return intact if intact and (proven is None or intact.order > proven.order) else None

    def perhaps_proven(self, manifests: Sequence[AnySummary]) -> set[SnapshotId]:
        """The snapshots newer than the newest proven one that may be proven: their records cannot be read."""
        if not self.unreadable:
            return set()
        proven = self.newest_proven(manifests)
        return {
            manifest.id
            for manifest in manifests
            if manifest.id in self.unreadable and (proven is None or manifest.order > proven.order)
        }

    def _newest(self, manifests: Iterable[AnySummary], outcome: CheckOutcome) -> AnySummary | None:
        known = [each for each in manifests if (found := self.known(each)) and found.outcome is outcome]
        return max(known, key=lambda manifest: manifest.order, default=None)


def recalled_proofs(records: Iterable[tuple[Drill, datetime]], *, has_damage: bool) -> Proofs:
    """Return the outcomes that drill records state, each with the time when the store got it.

    Without a listing, it is not known which damaged packs were put again since: with `has_damage`, all of them count as
    damaged, and otherwise none.
    """
    found = {drill.snapshot: _Found(drill, put_at) for drill, put_at in records}
    return Proofs(found, _damaged_packs(found.values(), Listing()) if has_damage else {})


def read_proofs(archive: Archive, listing: Listing | None) -> Proofs:
    """Read the drill records that `listing` shows, each from the store once and then from the catalog.

    Without a listing, drills are listed, and packs too when one was found damaged. Raises the errors of `Store`.
    """
    prefix = drills_prefix(archive.database)
    shown = listing or Listing.of(archive.database, archive.repository.store.list(prefix))

    def read(snapshot_id: SnapshotId) -> _Found:
        stored = shown.drills[snapshot_id]
        drill = archive.record(stored, Drill.decode)
        if (drill.snapshot, drill.database) != (snapshot_id, archive.database):
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
        answers = dict(zip(shown.drills, readers.map(read_if_there, shown.drills), strict=True))
    found = {snapshot_id: each for snapshot_id, each in answers.items() if isinstance(each, _Found)}
    unreadable = frozenset(snapshot_id for snapshot_id, each in answers.items() if isinstance(each, Exception))
    if listing is None and any(each.drill.damaged_packs for each in found.values()):
        shown = archive.listing()
    return Proofs(found, _damaged_packs(found.values(), shown), unreadable)


def _damaged_packs(found: Iterable[_Found], listing: Listing) -> dict[str, _Found]:
    damaged: dict[str, _Found] = {}
    for each in sorted(found, key=lambda each: each.order):
        for sha256 in each.drill.damaged_packs:
            stored = listing.packs.get(sha256)
            # One with a later time was put again, with the bytes that its name says.
            if stored is None or stored.modified_at <= each.put_at:
                damaged[sha256] = each
    return damaged
