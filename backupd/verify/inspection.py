"""Everything about the snapshots of one database in one store that are to be verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.drill.packs import DamagedPackError, read_each
from backupd.errors import BackupdError, DamageError, NoSuchObjectError, StoreUnavailableError
from backupd.format.fitting import Fitting
from backupd.format.manifest import Manifest
from backupd.format.pagemap import image_digest
from backupd.receipt import compare_checksums, faults_in_listing
from backupd.repository.manifests import checked_map, read_manifest
from backupd.repository.packs import pack_key
from backupd.repository.records import read_trash
from backupd.store.keys import SnapshotKey, packs_prefix
from backupd.threads import worker_threads
from backupd.verify.findings import Findings, Kind
from backupd.verify.results import Level, Looked, Outcome, VerifiedSnapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from backupd.drill import DrillResult
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.proofs import Verdict
    from backupd.repository import Repository
    from backupd.verify.choosing import Holding
    from backupd.verify.journal import Journal

_READERS = 8


class VanishedStoreError(StoreUnavailableError):
    """A store held backups when a verification began, and holds none any more."""


class Inspection:
    """Looks at the snapshots `wanted`, step by step. Steps raise the errors of `Store`, and those of `should_stop`."""

    def __init__(self, holding: Holding, wanted: Iterable[SnapshotId], should_stop: Callable[[], None]) -> None:
        self.holding = holding
        self.findings = Findings(holding.repository.url, holding.database)
        self.wanted = [*wanted]
        self.manifests: dict[SnapshotId, AnyManifest] = {}
        self.looked: dict[SnapshotId, Looked] = {}
        self.rows: dict[SnapshotId, Mapping[str, int | None]] = {}
        """By table, of snapshots that were restored; None where the rows cannot be counted."""
        self.error: BackupdError | None = None
        """Why it was not looked at to the end."""
        self.newest_drill: DrillResult | None = None
        """Of the newest snapshot in the store, when that was drilled."""
        self.damaged_sources: list[DrillResult] = []
        """Drills that found what was captured damaged."""
        self.known_of_newest: Verdict | None = None
        """What the last drill of the newest snapshot found, when nobody drilled it now."""
        self.known_damaged: frozenset[SnapshotId] = frozenset()
        """Those that an earlier run has recorded as damaged."""
        self._should_stop = should_stop
        self._naming: dict[str, list[SnapshotId]] = {}

    @property
    def repository(self) -> Repository:
        """Of the store."""
        return self.holding.repository

    @property
    def database(self) -> str:
        """Its name."""
        return self.holding.database

    def read_manifests(self) -> None:
        """Read each manifest from the store itself, with its page map; one that was removed meanwhile is left out."""

        def read(snapshot: SnapshotId) -> AnyManifest | None:
            self._should_stop()
            return self._read(snapshot)

        with worker_threads(_READERS, name="manifests") as threads:
            found = dict(zip(self.wanted, threads.map(read, self.wanted), strict=True))
        self.manifests = {snapshot: manifest for snapshot, manifest in found.items() if manifest is not None}
        damaged = self.findings.touched()
        self.wanted = [each for each in self.wanted if each in self.manifests or each in damaged]
        every = {each.id: each for each in self.holding.history.manifests} | self.manifests
        for snapshot, manifest in every.items():
            for pack in manifest.packs:
                self._naming.setdefault(pack.sha256, []).append(snapshot)

    def _read(self, snapshot: SnapshotId) -> AnyManifest | None:
        key = str(SnapshotKey(self.database, str(snapshot)))
        try:
            manifest = read_manifest(self.repository, self.database, snapshot)
        except NoSuchObjectError:
            return None
        except DamageError as error:
            self.findings.add(Kind.MANIFEST_DAMAGED, key, error.message, [snapshot])
            return None
        try:
            if isinstance(manifest, Manifest):
                checked_map(self.repository, manifest)
        except DamageError as error:
            self.findings.add(Kind.PAGE_MAP_DAMAGED, key, error.message, [snapshot])
        return manifest

    def find_packs(self) -> list[PackEntry]:
        """Each pack of these snapshots once, of those that the listing shows as they should be."""
        packs = {pack.sha256: pack for manifest in self.manifests.values() for pack in manifest.packs}
        faults = faults_in_listing(packs.values(), self.holding.survey)
        for pack, (fault, reason) in faults.items():
            self.add_fault(pack, Kind(fault.value), reason)
        self._mark(self.manifests, Looked.SIZES)
        return [pack for pack in packs.values() if pack not in faults]

    def add_fault(self, pack: PackEntry, kind: Kind, reason: str) -> None:
        """Something is wrong with a pack: all snapshots that name it are touched, whether somebody asked or not."""
        key = pack_key(self.database, pack)
        self.findings.add(kind, key, reason, self._naming[pack.sha256], pack=pack.sha256)

    def compare_checksums(self, packs: Collection[PackEntry]) -> str | None:
        """Compare the checksums that the store keeps; why it could not be done for all, or None."""
        checksums = compare_checksums(self.repository, self.database, packs, self._should_stop)
        for pack, (fault, reason) in checksums.faults.items():
            self.add_fault(pack, Kind(fault.value), reason)
        compared = {pack.sha256 for pack in checksums.compared}
        self._mark(self._made_of(compared, self.manifests), Looked.CHECKSUMS)
        return checksums.why_not

    def read_packs(self, packs: Iterable[PackEntry], journal: Journal, on_read: Callable[[int], None]) -> None:
        """Read every byte of `packs`, and note in `journal` which are right. `on_read` gets the bytes of the pages."""
        for pack, looked in read_each(self.repository, self.database, packs, self._should_stop):
            if isinstance(looked, DamagedPackError):
                self.add_fault(pack, Kind(looked.fault.value), looked.message)
            else:
                journal.note(pack.sha256, looked)
            on_read(0 if looked is None or isinstance(looked, DamagedPackError) else looked.pages * looked.page_size)

    def compare_images(self, journal: Journal, *, is_sample: bool) -> None:
        """Compare the packs in `journal` with what manifests say of them, and the images that they make up."""
        without_map = self._without_map()
        for snapshot, manifest in self.manifests.items():
            self._should_stop()
            is_whole = all(pack.sha256 in journal for pack in manifest.packs)
            if isinstance(manifest, Manifest) and snapshot not in without_map:
                is_open = self._compare_image(manifest, journal, is_whole=is_whole)
            else:
                is_open = False
            if is_whole:
                self._mark([snapshot], Looked.PAGES if is_open else Looked.CIPHERTEXT)
            elif is_sample:
                self._mark([snapshot], Looked.SAMPLE)

    def _compare_image(self, manifest: Manifest, journal: Journal, *, is_whole: bool) -> bool:
        """Whether all packs could be looked into."""
        fitting = Fitting(manifest, manifest.decode_map())
        is_open, is_right = True, True
        for position, pack in enumerate(manifest.packs, 1):
            if pack.sha256 not in journal:
                continue
            index = journal.index(pack.sha256)
            if index is None:
                is_open = False
            elif reason := fitting.place(index, position):
                is_right = False
                key = pack_key(self.database, pack)
                self.findings.add(Kind.PACK_DOES_NOT_FIT, key, reason, [manifest.id], pack=pack.sha256)
        if is_whole and is_open and is_right and image_digest(fitting.hashes) != manifest.image_digest:
            key = str(SnapshotKey(self.database, str(manifest.id)))
            self.findings.add(
                Kind.IMAGE_DIGEST_WRONG, key, "its packs do not make up the image that was captured", [manifest.id]
            )
        return is_open

    def _without_map(self) -> set[SnapshotId]:
        maps = (each for each in self.findings.damage if each.kind is Kind.PAGE_MAP_DAMAGED)
        return {snapshot for each in maps for snapshot in each.snapshots}

    def find_orphans(self) -> None:
        """Tell of packs that nothing names: they cost space, and no snapshot is the worse for them."""
        survey = self.holding.survey
        unnamed = set(survey.packs) - {sha for sha, _ in self._naming.items()}
        if not unnamed or self.holding.history.damaged or self.holding.history.lacks_some_of(survey):
            return
        trash = read_trash(self.repository, self.database, survey)
        unnamed -= {pack.sha256 for entry in trash.entries for pack in entry.manifest.packs}
        if unnamed and not trash.damaged:
            size_bytes = sum(survey.packs[sha].size_bytes for sha in unnamed)
            reason = (
                f"{len(unnamed)} packs with {size_bytes} bytes are named by no snapshot; prune removes them in time"
            )
            self.findings.add(Kind.ORPHAN, packs_prefix(self.database), reason)

    def reject_vanished_store(self) -> None:
        """Raise `VanishedStoreError` for a store that has gone: all that it held looks like missing then."""
        if not self.repository.exists():
            url = self.repository.url
            raise VanishedStoreError(
                f"{url} has gone away in the middle of a verification: it holds no backups any more",
                hint="see that it is mounted, and that nobody has moved it; then verify again",
            )

    def _made_of(self, packs: Collection[str], snapshots: Iterable[SnapshotId]) -> list[SnapshotId]:
        """Those of `snapshots` that need no other packs."""
        return [each for each in snapshots if all(pack.sha256 in packs for pack in self.manifests[each].packs)]

    def _mark(self, snapshots: Iterable[SnapshotId], looked: Looked) -> None:
        for snapshot in snapshots:
            self.looked[snapshot] = looked

    def results(self, level: Level) -> list[VerifiedSnapshot]:
        """The verdict on each snapshot that was wanted and is still there."""
        damaged = self.findings.touched()
        return [
            VerifiedSnapshot(
                id=snapshot,
                database=self.database,
                store=self.repository.url,
                level=level,
                outcome=self._outcome(snapshot, damaged),
                looked=self.looked.get(snapshot),
                rows=self.rows.get(snapshot) or {},
                packs=len(self.manifests[snapshot].packs) if snapshot in self.manifests else 0,
            )
            for snapshot in self.wanted
        ]

    def _outcome(self, snapshot: SnapshotId, damaged: Collection[SnapshotId]) -> Outcome:
        if snapshot in damaged:
            return Outcome.DAMAGED
        return Outcome.UNKNOWN if self.error is not None or snapshot not in self.looked else Outcome.RIGHT
