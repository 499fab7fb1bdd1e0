"""Packs checked one by one: whether every byte is what was written, and what their manifest says; and their image."""

from __future__ import annotations

import os
from collections import deque
from itertools import compress
from typing import TYPE_CHECKING, TypeAlias

from blake3 import blake3

from backupd.concurrency import worker_threads
from backupd.errors import DamageError, IdentityNeededError, NoSuchObjectError, TargetUnwritableError
from backupd.format import FormatError
from backupd.format.manifest import Manifest
from backupd.format.pack import PackIndex, page_hash
from backupd.format.pagemap import ImageCheck, differences, u32_from
from backupd.logs import log
from backupd.repository.packs import PackFault
from backupd.restore.image import fetch_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.repository.archive import Archive, StoredPack

_READERS = 4
_AHEAD = 2 * _READERS
_PAGES_SHOWN = 3
_READ_BYTES = 1 << 20


class DamagedPackError(DamageError):
    """A pack is not as it should be; `fault` says how."""

    def __init__(self, message: str, fault: PackFault) -> None:
        super().__init__(message)
        self.fault = fault


class DamagedPacksError(DamageError):
    """Packs of a snapshot are damaged or missing; `packs` are their SHA-256."""

    def __init__(self, message: str, *, hint: str | None, packs: tuple[str, ...]) -> None:
        super().__init__(message, hint=hint)
        self.packs = packs


PackReading: TypeAlias = PackIndex | DamagedPackError | None
"""The index of a pack that is right (None: it cannot be decrypted here), or what is wrong with the pack."""


def read_proven(archive: Archive, pack: PackEntry) -> PackIndex | None:
    """Read every byte of a pack, hash every page, and return its index.

    None for a pack that is encrypted and that no key here decrypts: its SHA-256 is right, and nothing else is known.
    A damaged one is read twice, because a bit may have flipped on the way. Raises `DamagedPackError` and `StoreError`.
    """
    try:
        return _read_once(archive, pack)
    except DamagedPackError as error:
        index = _read_once(archive, pack)
        log.warning(
            "the store returned damaged bytes once, and the right ones at the second read",
            database=archive.database,
            store=archive.url,
            reason=error.message,
            hint="check the memory and the network of this machine and of the store",
        )
        return index


def _read_once(archive: Archive, pack: PackEntry) -> PackIndex | None:
    try:
        found = archive.pack(pack)
        wrong = _wrong_pages(found)
    except IdentityNeededError:
        return None
    except DamageError as error:
        raise DamagedPackError(error.message, _fault_behind(error)) from error
    if wrong:
        shown = ", ".join(str(number) for number in wrong[:_PAGES_SHOWN])
        more = f" and {len(wrong) - _PAGES_SHOWN} more" if len(wrong) > _PAGES_SHOWN else ""
        message = f"pack {found.name} holds other pages than it says: {shown}{more}"
        raise DamagedPackError(message, PackFault.PAGE_WRONG)
    return found.index


def _fault_behind(error: DamageError) -> PackFault:
    if isinstance(error.__cause__, NoSuchObjectError):
        return PackFault.MISSING
    return PackFault.UNREADABLE if isinstance(error.__cause__, FormatError) else PackFault.WRONG_CHECKSUM


def _wrong_pages(pack: StoredPack) -> list[int]:
    """List the numbers of the pages whose image does not have the hash that the index gives. Raises `DamageError`."""
    index = pack.index
    found = b"".join(_hashes_of(pack.images(frame), index.page_size) for frame in index.frames)
    if found == index.hashes:
        return []
    return [*compress(u32_from(index.page_numbers), differences(found, index.hashes))]


def _hashes_of(images: bytes | memoryview, page_size: int) -> bytes:
    """Compute the page hashes of pages that follow each other."""
    view = memoryview(images)
    return b"".join([page_hash(view[start : start + page_size]) for start in range(0, len(view), page_size)])


def read_each(
    archive: Archive, packs: Iterable[PackEntry], should_stop: Callable[[], None]
) -> Iterator[tuple[PackEntry, PackReading]]:
    """Read `packs`, several at once, and yield each in its order. Raises `StoreError`, and what `should_stop` raises.

    `should_stop` is called before each pack, from several threads. What was read is not kept.
    """

    def read(pack: PackEntry) -> PackReading:
        should_stop()
        try:
            return read_proven(archive, pack)
        except DamagedPackError as error:
            return error

    waiting: deque[tuple[PackEntry, Future[PackReading]]] = deque()
    with worker_threads(_READERS, name="check") as threads:
        for pack in packs:
            waiting.append((pack, threads.submit(read, pack)))
            if len(waiting) == _AHEAD:
                first, reading = waiting.popleft()
                yield first, reading.result()
        while waiting:
            first, reading = waiting.popleft()
            yield first, reading.result()


def reject_damaged_packs(
    archive: Archive,
    manifest: AnyManifest,
    should_stop: Callable[[], None],
    *,
    seen: DamageError | None = None,
) -> None:
    """Read each pack of the snapshot by itself; raise `DamagedPacksError` when one is not as it should be.

    Of packs that no key here decrypts, only the SHA-256 is compared. `seen` is the error that made the caller look; its
    words are used where they are about the same pack. Raises as `read_each`, and `DamageError` for a damaged page map.
    """
    reasons = _reasons(archive, manifest, should_stop)
    if reasons:
        first, reason = next(iter(reasons.items()))
        if seen is not None and first in seen.message:
            reason = seen.message
        more = f"; {len(reasons)} of its {len(manifest.packs)} packs are damaged" if len(reasons) > 1 else ""
        raise DamagedPacksError(f"{reason}{more}", hint=None if seen is None else seen.hint, packs=tuple(reasons))


def _reasons(archive: Archive, manifest: AnyManifest, should_stop: Callable[[], None]) -> dict[str, str]:
    """Collect what is wrong with packs of the snapshot, by SHA-256."""
    fitting = None
    if isinstance(manifest, Manifest):
        fitting = ImageCheck(archive.page_map(manifest), page_size=manifest.page_size, packs=len(manifest.packs))
    reasons = {}
    for position, (pack, reading) in enumerate(read_each(archive, manifest.packs, should_stop), 1):
        if isinstance(reading, DamagedPackError):
            reasons[pack.sha256] = reading.message
        elif reading is not None and fitting is not None and (reason := fitting.place(reading, position)):
            reasons[pack.sha256] = f"pack {archive.pack_key(pack)} in {archive.url}: {reason}"
    return reasons


def fetch_proven(archive: Archive, manifest: Manifest, descriptor: int, should_stop: Callable[[], None]) -> int:
    """Write the image into an empty file and prove each byte of what is then in it; returns the bytes fetched.

    Raises `DamageError`, as `DamagedPacksError` where packs are to blame, `StoreError`, OSError, and
    `TargetUnwritableError` when the disk does not give back what was written. `should_stop` is called from several
    threads.
    """

    def fetch() -> int:
        should_stop()
        return fetch_image(archive, manifest, descriptor, lambda _: should_stop())

    try:
        fetched_bytes = fetch()
    except DamageError as error:
        reject_damaged_packs(archive, manifest, should_stop, seen=error)
        # The packs are right when read by themselves, so a bit flipped on the way here; a second failure is final.
        fetched_bytes = fetch()
        log.warning(
            "the store returned damaged bytes once, and the right ones at the second read",
            database=manifest.database,
            store=archive.url,
            id=str(manifest.id),
            reason=error.message,
            hint="check the memory and the network of this machine and of the store",
        )
    if _digest_of(descriptor, manifest, should_stop) != manifest.image_digest:
        reject_damaged_packs(archive, manifest, should_stop)
        raise TargetUnwritableError(
            "the disk of the state directory does not give back what was written to it",
            hint="look at the system log, and replace the disk; nothing is known about the store",
        )
    return fetched_bytes


def _digest_of(descriptor: int, manifest: Manifest, should_stop: Callable[[], None]) -> str:
    """Compute the image digest from the pages that the file holds now."""
    page_size, digest = manifest.page_size, blake3()
    for start_at in range(0, manifest.image_bytes, _READ_BYTES):
        should_stop()
        digest.update(_hashes_of(os.pread(descriptor, _READ_BYTES, start_at), page_size))
    return digest.hexdigest()
