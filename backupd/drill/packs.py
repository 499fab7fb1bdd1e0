"""One pack by itself: whether every byte of it is what was written, and whether it is what its manifests say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backupd.errors import DamageError, IdentityNeededError, NoSuchObjectError
from backupd.format import FormatError
from backupd.format.pack import HASH_BYTES, page_hash
from backupd.format.pagemap import page_hashes
from backupd.logs import log
from backupd.receipt import PackFault
from backupd.repository import pack_key
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.format.manifest import Manifest, PackEntry
    from backupd.format.pack import PackIndex
    from backupd.format.pagemap import PageMap
    from backupd.repository import Repository

_READERS = 4
_PAGES_SHOWN = 3


class DamagedPackError(DamageError):
    """A pack is not as it should be; `fault` is the kind of that."""

    def __init__(self, message: str, fault: PackFault) -> None:
        super().__init__(message)
        self.fault = fault


def read_proven(repository: Repository, database: str, pack: PackEntry) -> PackIndex | None:
    """The index of a pack of which every byte was read, and every page hashed.

    None for one that is encrypted and that no key here decrypts: then its SHA-256 is right, and nothing else is known.
    A damaged one is read twice, because a byte may have been turned on its way here. Raises `DamagedPackError` and
    `StoreError`.
    """
    try:
        return _read_once(repository, database, pack)
    except DamagedPackError as error:
        index = _read_once(repository, database, pack)
        log.warning(
            "damaged bytes came from the store once, and the right ones the second time",
            database=database,
            store=repository.url,
            reason=error.message,
            hint="look after the memory and the network of this machine and of the store",
        )
        return index


def _read_once(repository: Repository, database: str, pack: PackEntry) -> PackIndex | None:
    try:
        index, images = repository.read_pack(database, pack)
    except IdentityNeededError:
        return None
    except DamageError as error:
        raise DamagedPackError(error.message, _fault_behind(error)) from error
    wrong = _wrong_pages(index, images)
    if wrong:
        shown = ", ".join(str(number) for number in wrong[:_PAGES_SHOWN])
        more = f" and {len(wrong) - _PAGES_SHOWN} more" if len(wrong) > _PAGES_SHOWN else ""
        raise DamagedPackError(
            f"pack {pack_key(database, pack)} in {repository.url} holds other pages than it says: {shown}{more}",
            PackFault.PAGE_WRONG,
        )
    return index


def _fault_behind(error: DamageError) -> PackFault:
    if isinstance(error.__cause__, NoSuchObjectError):
        return PackFault.MISSING
    return PackFault.UNREADABLE if isinstance(error.__cause__, FormatError) else PackFault.WRONG_CHECKSUM


def _wrong_pages(index: PackIndex, images: bytes) -> list[int]:
    """Numbers of the pages whose image does not have the hash that the index gives."""
    view, size = memoryview(images), index.page_size
    found = b"".join(page_hash(view[at * size : (at + 1) * size]) for at in range(index.pages))
    if found == index.hashes:
        return []
    as_rows = (np.frombuffer(each, dtype=np.uint8).reshape(-1, HASH_BYTES) for each in (found, index.hashes))
    differs = np.not_equal(*as_rows).any(axis=1)
    return [int(number) for number in np.frombuffer(index.page_numbers, dtype="<u4")[differs]]


class Fitting:
    """What one manifest says of its packs, to be compared with their indexes."""

    def __init__(self, manifest: Manifest, page_map: PageMap) -> None:
        self._page_size = manifest.page_size
        self._page_map = page_map
        self._needed = np.bincount(page_map, minlength=len(manifest.packs) + 1)
        self.hashes = np.zeros((manifest.page_count, 2), dtype=np.uint64)
        """Those of the image: of holes, and of what was placed."""
        self.hashes[page_map == 0] = page_hashes(page_hash(bytes(manifest.page_size)))

    def place(self, index: PackIndex, position: int) -> str | None:
        """Take the hashes of what the image has in the pack at `position` (from 1); or why that is not as it says."""
        if index.page_size != self._page_size:
            return f"it holds pages of {index.page_size} bytes, and the snapshot has {self._page_size}"
        indices = np.frombuffer(index.page_numbers, dtype="<u4").astype(np.int64) - 1
        within = np.flatnonzero(indices < len(self._page_map))
        live = within[self._page_map[indices[within]] == position]
        self.hashes[indices[live]] = page_hashes(index.hashes)[live]
        lacking = int(self._needed[position]) - len(live)
        return f"it lacks {lacking} of the pages that the snapshot has in it" if lacking else None


def damaged_packs(
    repository: Repository, manifest: Manifest, should_stop: Callable[[], None]
) -> dict[PackEntry, DamagedPackError]:
    """The packs of one snapshot that are not as they should be. `should_stop` is called from several threads."""
    fitting = Fitting(manifest, repository.checked_map(manifest))

    def look(position: int, pack: PackEntry) -> DamagedPackError | None:
        should_stop()
        try:
            index = read_proven(repository, manifest.database, pack)
        except DamagedPackError as found:
            return found
        reason = None if index is None else fitting.place(index, position)
        if reason is None:
            return None
        key = pack_key(manifest.database, pack)
        return DamagedPackError(f"pack {key} in {repository.url}: {reason}", PackFault.DOES_NOT_FIT)

    with worker_threads(_READERS, name="look") as threads:
        futures = [threads.submit(look, *each) for each in enumerate(manifest.packs, 1)]
        found = {pack: future.result() for pack, future in zip(manifest.packs, futures, strict=True)}
    return {pack: error for pack, error in found.items() if error is not None}
