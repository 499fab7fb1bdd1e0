"""The steps that look at the selected snapshots of one archive, and what they have found so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupd.concurrency import worker_threads
from backupd.errors import DamageError, NoSuchObjectError
from backupd.format.manifest import Manifest
from backupd.format.pagemap import ImageCheck, image_digest
from backupd.format.records import CheckOutcome
from backupd.repository.packs import PackFault, compare_checksums, faults_in_listing
from backupd.store.keys import SnapshotKey, packs_prefix
from backupd.verify.packs import DamagedPackError, read_each, read_proven
from backupd.verify.results import Depth, Finding, Kind, VerifiedSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.verify.journal import Journal
    from backupd.verify.results import CheckResult, Level
    from backupd.verify.selection import Selection

_READERS = 8


@dataclass(slots=True)
class Findings:
    """All findings about one database in one store, each of them once."""

    store: str
    database: str
    _found: dict[tuple[Kind, str, str], Finding] = field(default_factory=dict)

    def add(
        self, kind: Kind, key: str, reason: str, snapshots: Iterable[SnapshotId] = (), *, pack: str | None = None
    ) -> None:
        """Add a finding, or its snapshots to the equal one that was found before."""
        before = self._found.get((kind, key, reason))
        touched = {*snapshots, *(before.snapshots if before else ())}
        self._found[kind, key, reason] = Finding(
            kind=kind,
            store=self.store,
            database=self.database,
            key=key,
            reason=reason,
            snapshots=tuple(sorted(touched)),
            pack=pack,
        )

    def clear(self) -> None:
        """Remove all findings."""
        self._found.clear()

    @property
    def found(self) -> list[Finding]:
        """All findings, in the order in which they were made."""
        return [*self._found.values()]

    @property
    def damage(self) -> list[Finding]:
        """The findings that are damage."""
        return [each for each in self.found if each.is_damage]

    def damaged_snapshots(self) -> set[SnapshotId]:
        """The snapshots that are damaged."""
        return {snapshot for each in self.damage for snapshot in each.snapshots}

    def outcome(self, snapshot: SnapshotId) -> CheckOutcome | None:
        """The outcome for a damaged snapshot; None for any other. Damage of the store comes first."""
        kinds = [each.kind for each in self.damage if snapshot in each.snapshots]
        if not kinds:
            return None
        is_of_store = any(kind.is_of_store for kind in kinds)
        return CheckOutcome.DAMAGED_STORE if is_of_store else CheckOutcome.DAMAGED_SOURCE

    def damaged_packs(self) -> set[str]:
        """SHA-256 of the packs that are damaged."""
        return {each.pack for each in self.damage if each.pack is not None}


class Inspection:
    """Looks at selected snapshots of one archive. Steps raise the errors of `Store`, and those of `should_stop`."""

    def __init__(self, selection: Selection, should_stop: Callable[[], None]) -> None:
        self.listed = selection.listed
        self.archive = selection.listed.archive
        self.findings = Findings(self.archive.url, self.archive.database)
        self.manifests: dict[SnapshotId, AnyManifest] = {}
        """The readable ones of the selected snapshots."""
        self.depths: dict[SnapshotId, Depth] = {}
        self.drills: dict[SnapshotId, CheckResult] = {}
        """The conclusive drills of this run."""
        self._wanted = selection.snapshots
        self._should_stop = should_stop
        self._naming: dict[str, list[SnapshotId]] = {}

    def read_manifests(self) -> None:
        """Read each manifest from the store itself, with its page map; one that was removed meanwhile is left out."""

        def read(snapshot: SnapshotId) -> AnyManifest | None:
            self._should_stop()
            return self._read(snapshot)

        with worker_threads(_READERS, name="manifests") as threads:
            found = dict(zip(self._wanted, threads.map(read, self._wanted), strict=True))
        self.manifests = {snapshot: manifest for snapshot, manifest in found.items() if manifest is not None}
        damaged = self.findings.damaged_snapshots()
        self._wanted = tuple(each for each in self._wanted if each in self.manifests or each in damaged)
        every = {each.id: each for each in self.listed.history.manifests} | self.manifests
        for snapshot, manifest in every.items():
            for pack in manifest.packs:
                self._naming.setdefault(pack.sha256, []).append(snapshot)

    def _read(self, snapshot: SnapshotId) -> AnyManifest | None:
        try:
            manifest = self.archive.manifest(snapshot)
        except NoSuchObjectError:
            return None
        except DamageError as error:
            self._add(Kind.MANIFEST_DAMAGED, snapshot, error.message)
            return None
        try:
            if isinstance(manifest, Manifest):
                self.archive.page_map(manifest)
        except DamageError as error:
            self._add(Kind.PAGE_MAP_DAMAGED, snapshot, error.message)
        return manifest

    def find_packs(self) -> list[PackEntry]:
        """List each pack of the snapshots once, of those that the listing shows as they should be."""
        packs = {pack.sha256: pack for manifest in self.manifests.values() for pack in manifest.packs}
        faults = faults_in_listing(packs.values(), self.listed.listing)
        for pack, (fault, reason) in faults.items():
            self._add_fault(pack, fault, reason)
        self.depths = dict.fromkeys(self.manifests, Depth.SIZES)
        return [pack for pack in packs.values() if pack not in faults]

    def compare_checksums(self, packs: Collection[PackEntry]) -> str | None:
        """Compare the checksums that the store keeps; returns why it could not be done for all, or None."""
        checksums = compare_checksums(self.archive, packs, self._should_stop)
        for pack, (fault, reason) in checksums.faults.items():
            self._add_fault(pack, fault, reason)
        compared = {pack.sha256 for pack in checksums.compared}
        for snapshot, manifest in self.manifests.items():
            if all(pack.sha256 in compared for pack in manifest.packs):
                self.depths[snapshot] = Depth.CHECKSUMS
        return checksums.why_not

    def read_packs(self, packs: Iterable[PackEntry], journal: Journal, on_read: Callable[[int], None]) -> None:
        """Read every byte of `packs`, and note in `journal` which are right. `on_read` gets the bytes of the pages."""
        for pack, reading in read_each(self.archive, packs, self._should_stop):
            if isinstance(reading, DamagedPackError):
                self._add_fault(pack, reading.fault, reading.message)
                on_read(0)
            else:
                journal.note(pack.sha256, reading)
                on_read(0 if reading is None else reading.pages * reading.page_size)

    def compare_images(self, journal: Journal, *, is_sample: bool) -> None:
        """Compare the packs in `journal` with what manifests say of them, and the images that they make up."""
        without_map = {
            snapshot
            for finding in self.findings.damage
            if finding.kind is Kind.PAGE_MAP_DAMAGED
            for snapshot in finding.snapshots
        }
        for snapshot, manifest in self.manifests.items():
            self._should_stop()
            is_whole = all(pack.sha256 in journal for pack in manifest.packs)
            is_open = False
            if isinstance(manifest, Manifest) and snapshot not in without_map:
                is_open = self._compare_image(manifest, journal, is_whole=is_whole)
            if is_whole:
                self.depths[snapshot] = Depth.PAGES if is_open else Depth.CIPHERTEXT
            elif is_sample:
                self.depths[snapshot] = Depth.SAMPLE

    def _compare_image(self, manifest: Manifest, journal: Journal, *, is_whole: bool) -> bool:
        """Compare one image; returns whether all packs could be decrypted."""
        fitting = ImageCheck(manifest.decode_map(), page_size=manifest.page_size, packs=len(manifest.packs))
        is_open, is_right = True, True
        for position, pack in enumerate(manifest.packs, 1):
            if pack.sha256 not in journal:
                continue
            index = journal.index(pack.sha256)
            if index is None:
                is_open = False
            elif reason := fitting.place(index, position):
                is_right = False
                key = self.archive.pack_key(pack)
                self.findings.add(Kind.PACK_DOES_NOT_FIT, key, reason, [manifest.id], pack=pack.sha256)
        if is_whole and is_open and is_right and image_digest(fitting.hashes) != manifest.image_digest:
            reason = "its packs do not make up the image that was captured"
            self._add(Kind.IMAGE_DIGEST_WRONG, manifest.id, reason)
        return is_open

    def add_drill(self, snapshot: SnapshotId, result: CheckResult) -> None:
        """Add what a drill found. An inconclusive one leaves nothing known: that the packs exist was not the question.

        Raises the errors of `Store` when damaged packs cannot be read again.
        """
        if result.outcome is CheckOutcome.INCONCLUSIVE:
            self.depths.pop(snapshot, None)
            return
        self.drills[snapshot] = result
        for kind, reason in _found_by_drill(result):
            self._add(kind, snapshot, reason)
        if result.outcome is CheckOutcome.DAMAGED_STORE:
            self._blame(snapshot, result)
        if result.outcome is CheckOutcome.INTACT or result.earlier is not None:
            self.depths[snapshot] = Depth.CIPHERTEXT  # all stored bytes are right, and nothing was decrypted
        elif result.outcome is not CheckOutcome.DAMAGED_STORE:
            self.depths[snapshot] = Depth.RESTORED

    def _blame(self, snapshot: SnapshotId, result: CheckResult) -> None:
        """Add a finding for each damaged pack that says what is wrong with it; without any, one about the image."""
        reason = _reason(result)
        known = self.findings.damaged_packs()
        blamed = [pack for pack in self.manifests[snapshot].packs if pack.sha256 in result.damaged_packs]
        for pack in blamed:
            if pack.sha256 in known:
                continue
            try:
                read_proven(self.archive, pack)
            except DamagedPackError as error:
                self._add_fault(pack, error.fault, error.message)
            else:
                self._add_fault(pack, PackFault.DOES_NOT_FIT, reason)
        if not blamed and snapshot not in self.findings.damaged_snapshots():
            self._add(Kind.IMAGE_DIGEST_WRONG, snapshot, reason)

    def find_orphans(self) -> None:
        """Report packs that nothing names: they cost space, and harm no snapshot."""
        listing, history = self.listed.listing, self.listed.history
        unnamed = set(listing.packs) - set(self._naming)
        if not unnamed or history.damaged or history.lacks_some_of(listing):
            return
        trash = self.archive.trash(listing)
        unnamed -= {pack.sha256 for entry in trash.entries for pack in entry.manifest.packs}
        if unnamed and not trash.damaged:
            there = [stored for each in unnamed if (stored := listing.packs.get(each)) is not None]
            size_bytes = sum(stored.size_bytes for stored in there)
            reason = f"{len(there)} packs with {size_bytes} bytes are named by no snapshot; prune removes them in time"
            self.findings.add(Kind.ORPHAN, packs_prefix(self.archive.database), reason)

    def results(self, level: Level, *, is_complete: bool) -> list[VerifiedSnapshot]:
        """Give the result for each selected snapshot that is still there."""
        return [
            VerifiedSnapshot(
                id=snapshot,
                database=self.archive.database,
                store=self.archive.url,
                level=level,
                outcome=self._outcome(snapshot, is_complete=is_complete),
                depth=self.depths.get(snapshot),
                rows=self.drills[snapshot].rows if snapshot in self.drills else {},
                packs=len(self.manifests[snapshot].packs) if snapshot in self.manifests else 0,
            )
            for snapshot in self._wanted
        ]

    def _outcome(self, snapshot: SnapshotId, *, is_complete: bool) -> CheckOutcome:
        if damage := self.findings.outcome(snapshot):
            return damage
        if not is_complete or snapshot not in self.depths:
            return CheckOutcome.INCONCLUSIVE
        return self.drills[snapshot].outcome if snapshot in self.drills else self.depths[snapshot].outcome

    def _add(self, kind: Kind, snapshot: SnapshotId, reason: str) -> None:
        """Add a finding about one snapshot."""
        self.findings.add(kind, str(SnapshotKey(self.archive.database, str(snapshot))), reason, [snapshot])

    def _add_fault(self, pack: PackEntry, fault: PackFault, reason: str) -> None:
        """Add a finding about a pack: it affects all snapshots that name the pack, also those outside the selection."""
        key = self.archive.pack_key(pack)
        self.findings.add(Kind(fault.value), key, reason, self._naming[pack.sha256], pack=pack.sha256)


def _found_by_drill(result: CheckResult) -> Iterator[tuple[Kind, str]]:
    """What a drill found in the database itself, with reasons. Damage of the store is not included."""
    if result.odd_values_summary is not None:
        yield Kind.ODD_VALUES, result.odd_values_summary
    others = "; ".join(finding for finding in result.findings if finding not in result.odd_values)
    if result.outcome is CheckOutcome.DAMAGED_SOURCE:
        yield Kind.SOURCE_DAMAGED, _reason(result)
    elif result.outcome is CheckOutcome.NOT_CHECKABLE:
        yield Kind.NOT_CHECKABLE, others
    elif result.outcome is CheckOutcome.PROVEN and others:
        yield Kind.ORPHANED_ROWS, others


def _reason(result: CheckResult) -> str:
    return "it does not restore" if result.error is None else result.error.message
