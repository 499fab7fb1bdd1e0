"""Packs one by one: whether every byte is what was written, and whether they are what their manifests say."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from backupd.errors import DamageError, IdentityNeededError, NoSuchObjectError
from backupd.format import FormatError
from backupd.format.fitting import Fitting
from backupd.format.manifest import Manifest
from backupd.format.pack import HASH_BYTES, PackIndex, page_hash
from backupd.logs import log
from backupd.receipt import PackFault
from backupd.repository.manifests import checked_map
from backupd.repository.packs import pack_key, read_pack
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.repository import Repository

_READERS = 4
_AHEAD = 2 * _READERS
_PAGES_SHOWN = 3


class DamagedPackError(DamageError):
    """A pack is not as it should be; `fault` is the kind of that."""

    def __init__(self, message: str, fault: PackFault) -> None:
        super().__init__(message)
        self.fault = fault


class DamagedPacksError(DamageError):
    """Packs of a snapshot are damaged or missing; `packs` are their SHA-256."""

    def __init__(self, message: str, *, hint: str | None, packs: tuple[str, ...]) -> None:
        super().__init__(message, hint=hint)
        self.packs = packs


Looked: TypeAlias = PackIndex | DamagedPackError | None
"""What is in a pack that is right (None: it cannot be decrypted here), or what is wrong with it."""


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
        index, images = read_pack(repository, database, pack)
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


def read_each(
    repository: Repository, database: str, packs: Iterable[PackEntry], should_stop: Callable[[], None]
) -> Iterator[tuple[PackEntry, Looked]]:
    """Look at each of `packs`, several at once, in their order. Raises `StoreError`, and what `should_stop` raises.

    `should_stop` is called before each pack, from several threads. What was read is not kept.
    """

    def look(pack: PackEntry) -> Looked:
        should_stop()
        try:
            return read_proven(repository, database, pack)
        except DamagedPackError as error:
            return error

    waiting: deque[tuple[PackEntry, Future[Looked]]] = deque()
    with worker_threads(_READERS, name="look") as threads:
        for pack in packs:
            waiting.append((pack, threads.submit(look, pack)))
            if len(waiting) == _AHEAD:
                first, looking = waiting.popleft()
                yield first, looking.result()
        while waiting:
            first, looking = waiting.popleft()
            yield first, looking.result()


def reject_damaged_packs(
    repository: Repository,
    manifest: AnyManifest,
    should_stop: Callable[[], None],
    *,
    seen: DamageError | None = None,
) -> None:
    """Read each pack of the snapshot by itself; raise `DamagedPacksError` when one is not as it should be.

    Of packs that no key here decrypts, that is their SHA-256. `seen` is what gave rise to this; its words are used
    where they are about the same. Raises as `read_each`, and `DamageError` for a damaged page map.
    """
    reasons = _reasons(repository, manifest, should_stop)
    if reasons:
        first, reason = next(iter(reasons.items()))
        if seen is not None and first in seen.message:
            reason = seen.message
        more = f"; {len(reasons)} of its {len(manifest.packs)} packs are damaged" if len(reasons) > 1 else ""
        raise DamagedPacksError(f"{reason}{more}", hint=None if seen is None else seen.hint, packs=tuple(reasons))


def _reasons(repository: Repository, manifest: AnyManifest, should_stop: Callable[[], None]) -> dict[str, str]:
    """What is wrong with packs of the snapshot, by SHA-256."""
    fitting = Fitting(manifest, checked_map(repository, manifest)) if isinstance(manifest, Manifest) else None
    reasons = {}
    looked_at = read_each(repository, manifest.database, manifest.packs, should_stop)
    for position, (pack, looked) in enumerate(looked_at, 1):
        if isinstance(looked, DamagedPackError):
            reasons[pack.sha256] = looked.message
        elif looked is not None and fitting is not None and (reason := fitting.place(looked, position)):
            reasons[pack.sha256] = f"pack {pack_key(manifest.database, pack)} in {repository.url}: {reason}"
    return reasons
