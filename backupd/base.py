"""What the next snapshot builds on: the page map and the page hashes of the newest one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backupd.cache import hashes_name, is_hashes_file, map_hashes, write_atomically
from backupd.errors import DamageError, IdentityNeededError, NoSuchObjectError, PutOnlyError
from backupd.format import FormatError
from backupd.format.fitting import Fitting
from backupd.format.pagemap import image_digest
from backupd.logs import log
from backupd.repository.manifests import checked_map
from backupd.repository.packs import read_index
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from backupd.errors import BackupdError
    from backupd.format.manifest import Manifest
    from backupd.format.pack import PackIndex
    from backupd.format.pagemap import PageHashes, PageMap
    from backupd.repository import Repository
    from backupd.survey import Survey

_READERS = 8


@dataclass(frozen=True, slots=True)
class BaseSnapshot:
    """What the next snapshot is compared with: the newest one, as far as its packs are known to be there.

    `hashes` is the file of its page hashes; those of `lost` (page indices from 0) must be stored again in any case.
    """

    manifest: Manifest
    page_map: PageMap
    hashes: Path
    lost: npt.NDArray[np.intp]
    damaged_packs: int = 0
    """How many of its packs are condemned, missing, or unreadable where that is damage. They have the `lost` pages."""
    unread: BackupdError | None = None
    """Why packs that are there count as lost: their page hashes are not in the cache, and who is here may not read."""

    def read_hashes(self) -> PageHashes:
        """The page hashes as an array that stays on disk."""
        return map_hashes(self.hashes)


def pages_there(manifest: Manifest, survey: Survey) -> int:
    """How many pages the packs of `manifest` hold at most, as far as `survey` shows them; by no more than its word."""
    missing = set(survey.missing(manifest.packs))
    # A page takes 20 bytes of the index at least, whatever a manifest says.
    there = {pack.sha256: min(pack.pages, pack.stored_bytes // 20) for pack in manifest.packs if pack not in missing}
    return sum(there.values())


def find_base(
    repository: Repository, newest: Manifest, survey: Survey, *, condemned: Collection[str] = ()
) -> BaseSnapshot:
    """What a snapshot after `newest` builds on. Page hashes come from the cache, or else from the pack indexes.

    The packs in `condemned` (SHA-256, hex) count as lost, as do those that `survey` does not show with their size.
    Raises the errors of `Store` and `DamageError`.
    """
    page_map = checked_map(repository, newest)
    is_lost = np.zeros(len(newest.packs) + 1, dtype=bool)
    missing = set(survey.missing(newest.packs))
    for position, pack in enumerate(newest.packs, 1):
        is_lost[position] = pack in missing or pack.sha256 in condemned
    is_damaged = is_lost.copy()
    unread: list[BackupdError] = []
    file = repository.cache.file(newest.database, hashes_name(newest.id))
    if not is_hashes_file(file, newest):
        log.info("rebuilding the base from pack indexes", database=newest.database, store=repository.url)
        hashes = _gather_hashes(repository, newest, page_map, is_lost, unread)
        if not is_lost.any() and image_digest(hashes) != newest.image_digest:
            is_lost[1:] = True
        write_atomically(file, hashes.tobytes())
        if not unread:
            is_damaged = is_lost
    return BaseSnapshot(
        newest,
        page_map,
        file,
        np.flatnonzero(is_lost[page_map]),
        damaged_packs=int(is_damaged.sum()),
        unread=next(iter(unread), None),
    )


def _gather_hashes(
    repository: Repository,
    manifest: Manifest,
    page_map: PageMap,
    is_lost: npt.NDArray[np.bool_],
    unread: list[BackupdError],
) -> PageHashes:
    """The page hashes by the indexes of the packs; a pack whose index cannot be read is marked in `is_lost`.

    `unread` gets the reason where that is no damage.
    """
    fitting = Fitting(manifest, page_map)
    for position, index in _indexes(repository, manifest, is_lost, unread):
        if index is None or fitting.place(index, position) is not None:
            is_lost[position] = True
    return fitting.hashes


def _indexes(
    repository: Repository, manifest: Manifest, is_lost: npt.NDArray[np.bool_], unread: list[BackupdError]
) -> Iterator[tuple[int, PackIndex | None]]:
    def read(position: int) -> PackIndex | None:
        pack = manifest.packs[position - 1]
        if any(isinstance(error, PutOnlyError) for error in unread):
            return None  # these keys would be refused the next pack too
        try:
            index = read_index(repository, manifest.database, pack)
        except (PutOnlyError, IdentityNeededError) as error:
            unread.append(error)
            return None
        except (NoSuchObjectError, FormatError, DamageError):
            return None
        return index if index.pages == pack.pages else None

    positions = [position for position in range(1, len(manifest.packs) + 1) if not is_lost[position]]
    with worker_threads(_READERS) as readers:
        yield from zip(positions, readers.map(read, positions), strict=True)
