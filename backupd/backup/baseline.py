"""The baseline of the next snapshot in one store: what it builds on, and which pages are stored again anyway."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from backupd.backup.relocation import pages_to_relocate
from backupd.capture.limits import StreamBase
from backupd.concurrency import worker_threads
from backupd.errors import (
    BackupdError,
    DamageError,
    IdentityNeededError,
    NoSuchObjectError,
    PutOnlyError,
    StoreRefusedError,
    UnsupportedFormatError,
)
from backupd.format.manifest import Manifest, Summary
from backupd.format.pack import HASH_BYTES
from backupd.format.pagemap import ImageCheck, find_pages, image_digest
from backupd.logs import log
from backupd.repository.history import History, SeenHistory
from backupd.repository.proofs import Proofs
from backupd.state.catalog import write_atomically

if TYPE_CHECKING:
    from array import array
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.pack import PackIndex
    from backupd.format.pagemap import PageHashes, PageMap
    from backupd.repository.archive import Archive
    from backupd.repository.history import Listing

_READERS = 8
_ANY_PAGE_SIZE = 512
_MOSTLY_LOST = "most of its pages are not in the store"


@dataclass(frozen=True, slots=True)
class BaseSnapshot:
    """The snapshot that the next one is compared with: the newest usable one, as far as its packs are known to exist.

    `hashes` is the file of its page hashes. The `lost` pages (indices from 0) must be stored again in any case.
    """

    manifest: Manifest
    page_map: PageMap
    hashes: Path
    lost: array[int]
    damaged_packs: int = 0
    """How many of its packs are known damaged, missing, or unreadable where that is damage."""
    unread: BackupdError | None = None
    """Why packs that are there count as lost: their page hashes are not cached, and this host may not read packs."""

    def read_hashes(self) -> PageHashes:
        """The page hashes, which stay on disk."""
        return map_hashes(self.hashes)


def pages_there(manifest: Summary, listing: Listing) -> int:
    """Return the most pages of `manifest` that the packs in `listing` can hold, by the size of each pack."""
    missing = set(listing.missing(manifest.packs))
    # A page takes 20 bytes of the index at least, whatever a manifest says.
    there = {pack.sha256: min(pack.pages, pack.stored_bytes // 20) for pack in manifest.packs if pack not in missing}
    return sum(there.values())


def _find_base(archive: Archive, newest: Manifest, listing: Listing, known_damaged: Collection[str]) -> BaseSnapshot:
    """Read what a snapshot after `newest` builds on. Page hashes come from the cache, or from the pack indexes.

    The packs in `known_damaged` (SHA-256, hex) count as lost, as do those that `listing` does not show with their size.
    Raises the errors of `Store` and `DamageError`.
    """
    page_map = archive.page_map(newest)
    missing = set(listing.missing(newest.packs))
    lost = {
        position for position, pack in enumerate(newest.packs, 1) if pack in missing or pack.sha256 in known_damaged
    }
    damaged = frozenset(lost)
    unread: list[BackupdError] = []
    file = archive.catalog.hashes(newest.id)
    if not is_hashes_file(file, newest):
        log.info("rebuilding the base from pack indexes", database=newest.database, store=archive.url)
        hashes = _gather_hashes(archive, newest, page_map, lost, unread)
        if not lost and image_digest(hashes) != newest.image_digest:
            lost.update(range(1, len(newest.packs) + 1))
        write_atomically(file, hashes)
        if not unread:
            damaged = frozenset(lost)
    return BaseSnapshot(
        newest,
        page_map,
        file,
        find_pages(page_map, lost),
        damaged_packs=len(damaged),
        unread=next(iter(unread), None),
    )


def _gather_hashes(
    archive: Archive,
    manifest: Manifest,
    page_map: PageMap,
    lost: set[int],
    unread: list[BackupdError],
) -> PageHashes:
    """Collect the page hashes from the indexes of the packs; adds to `lost` each pack whose index cannot be read.

    `unread` gets the reason where that is no damage.
    """
    fitting = ImageCheck(page_map, page_size=manifest.page_size, packs=len(manifest.packs))
    for position, index in _indexes(archive, manifest, lost, unread):
        if index is None or fitting.place(index, position) is not None:
            lost.add(position)
    return fitting.hashes


def _indexes(
    archive: Archive, manifest: Manifest, lost: Collection[int], unread: list[BackupdError]
) -> Iterator[tuple[int, PackIndex | None]]:
    def read(position: int) -> PackIndex | None:
        pack = manifest.packs[position - 1]
        if any(isinstance(error, PutOnlyError) for error in unread):
            return None  # these keys would be refused the next pack too
        try:
            return archive.index(pack)
        except (PutOnlyError, IdentityNeededError) as error:
            unread.append(error)
        except DamageError:
            pass  # the caller counts the pack as lost
        return None

    positions = [position for position in range(1, len(manifest.packs) + 1) if position not in lost]
    with worker_threads(_READERS) as readers:
        yield from zip(positions, readers.map(read, positions), strict=True)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The snapshots of a database in one store, and the one among them that the next snapshot builds on."""

    is_full: bool
    """Whether every page is stored again."""
    history: History = field(default=History((), ()))
    base: BaseSnapshot | None = None
    relocate: Sequence[int] = ()
    unusable: Mapping[SnapshotId, str] = field(default_factory=dict)
    """The snapshots that are newer than the base, and why they cannot be built on."""
    is_newest_unreadable: bool = False
    unread_drills: BackupdError | None = None
    """Why it is not known which packs are known to be damaged."""

    @property
    def builds_on(self) -> BaseSnapshot | None:
        """The snapshot that the capture is compared with; None when every page is stored again."""
        return None if self.is_full else self.base

    @property
    def needs_snapshot(self) -> bool:
        """Whether even an unchanged database gets a new snapshot: the last one cannot be restored as it should."""
        if self.base is None or self.is_newest_unreadable:
            return True
        is_of_newest = self.history.newest is not None and self.base.manifest.id == self.history.newest.id
        return self.base.damaged_packs > 0 or not is_of_newest

    def stream_key(self, *, relocates: bool) -> object:
        """A key that is equal for stores that need the same pages stored."""
        base = self.builds_on
        if base is None:
            return None
        relocate = tuple(self.relocate) if relocates else ()
        return (base.manifest.page_size, base.manifest.image_digest, base.lost.tobytes(), relocate)

    def stream_base(self, expected: Path, *, relocates: bool) -> StreamBase:
        """The base for the stream of packs; `expected` is a file that may be written for it."""
        base = self.builds_on
        if base is None:
            return StreamBase(page_size=_ANY_PAGE_SIZE, hashes=None, relocate=())
        file = base.hashes
        if len(base.lost):
            hashes = bytearray(base.read_hashes())
            for index in base.lost:
                hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES] = bytes(HASH_BYTES)
            expected.write_bytes(hashes)
            file = expected
        relocate = self.relocate if relocates else ()
        return StreamBase(page_size=base.manifest.page_size, hashes=str(file), relocate=relocate)

    def warnings(self, url: str) -> Iterator[str]:
        """Warnings about what could not be read in the store at `url`, and the consequences."""
        unread = None if self.builds_on is None else self.builds_on.unread
        if unread is not None:
            yield (
                f"pages that had not changed were stored again in {url}, because the state directory "
                f"does not know the snapshot before this one: {unread.message}; keep state_dir"
            )
        if self.unread_drills is not None:
            yield (
                "what test restores have found cannot be read, so damaged packs are not stored again by themselves: "
                f"{self.unread_drills.message}"
            )


def find_baseline(archive: Archive, *, is_full: bool) -> Baseline:
    """Find what the store has of the database. Raises the errors of `Store`, `DamageError`, `UnsupportedFormatError`.

    Puts nothing except a `backupd.json` that was removed: the source may turn out to be unusable.
    """
    is_repository = archive.repository.exists()
    listing = archive.listing()
    if not listing.manifests:
        return Baseline(is_full)
    if not is_repository:
        archive.repository.create_if_missing()
    history = archive.history(listing)
    if history.lacks_some_of(listing):
        # Another host removes snapshots. It keeps the newest, which may be newer than those that were listed.
        listing = archive.listing()
        history = archive.history(listing)
    archive.repository.keep_seen(archive.database, SeenHistory.of(listing, history))
    is_newest_unreadable = _is_newest_unreadable(history, listing)
    proofs, unread_drills = _readable_proofs(archive, listing)
    base, unusable = _find_usable_base(archive, history, listing, proofs)
    relocate = () if base is None else pages_to_relocate(base.manifest.packs, base.page_map, base.manifest.page_size)
    return Baseline(is_full, history, base, relocate, unusable, is_newest_unreadable, unread_drills)


def _find_usable_base(
    archive: Archive, history: History, listing: Listing, proofs: Proofs
) -> tuple[BaseSnapshot | None, dict[SnapshotId, str]]:
    """Find the newest snapshot that can be built on, and why newer ones cannot: they may be planted.

    When all have lost most of their pages, this is the newest one, and those pages are stored again.
    """
    unusable: dict[SnapshotId, str] = {}

    def find(found: Summary) -> BaseSnapshot | None:
        try:
            manifest = _whole(archive, found)
            return _find_base(archive, manifest, listing, proofs.known_damaged_packs(manifest))
        except (DamageError, IdentityNeededError, NoSuchObjectError, UnsupportedFormatError) as error:
            unusable[found.id] = error.message
            return None

    candidates = [each for each in reversed(history.manifests) if isinstance(each, Summary)]
    for manifest in candidates:
        base = find(manifest) if 2 * pages_there(manifest, listing) >= manifest.page_count else None
        # Packs that a drill found damaged were there, and their pages are stored again.
        if base and (2 * len(base.lost) <= manifest.page_count or proofs.known_damaged_packs(manifest)):
            return base, unusable
        unusable.setdefault(manifest.id, _MOSTLY_LOST)
    for position, manifest in enumerate(candidates):
        if unusable[manifest.id] is _MOSTLY_LOST and (base := find(manifest)) is not None:
            return base, {each.id: unusable[each.id] for each in candidates[:position]}
    return None, unusable


def _whole(archive: Archive, found: Summary) -> Manifest:
    """Read the page map of a snapshot too, and so all of its manifest, unless that was done just now."""
    manifest = found if isinstance(found, Manifest) else archive.opened(archive.manifest(found.id))
    return msgspec.structs.replace(manifest, sequence=found.sequence)  # as it counts


def _readable_proofs(archive: Archive, listing: Listing) -> tuple[Proofs, BackupdError | None]:
    try:
        return archive.proofs(listing), None
    except StoreRefusedError as error:
        return Proofs(), error  # keys that may only put are enough for a snapshot


def _is_newest_unreadable(history: History, listing: Listing) -> bool:
    """Whether the manifest that the store got last is damaged, so that its place in the order is not known."""
    if history.newest is None:
        return bool(history.damaged)
    put_at = listing.manifests[history.newest.id].modified_at
    return any(listing.manifests[damaged.id].modified_at > put_at for damaged in history.damaged)


def map_hashes(file: Path) -> PageHashes:
    """A file of page hashes, mapped into memory."""
    with file.open("rb") as opened:
        if file.stat().st_size == 0:
            return b""
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def is_hashes_file(file: Path, manifest: Manifest) -> bool:
    """Whether `file` holds the page hashes of exactly this snapshot: its image digest is their digest."""
    try:
        if not file.is_file() or file.stat().st_size != manifest.page_count * HASH_BYTES:
            return False
        return image_digest(map_hashes(file)) == manifest.image_digest
    except OSError:  # such as a file of another user: it is only a cache
        return False
