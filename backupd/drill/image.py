"""The image of a snapshot in scratch, proven byte by byte; and when it is damaged, by which packs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backupd.drill.packs import reject_damaged_packs
from backupd.errors import DamageError, TargetUnwritableError
from backupd.format.pack import page_hash
from backupd.format.pagemap import image_digest, page_hashes
from backupd.logs import log
from backupd.restore.image import fetch_image

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.format.manifest import Manifest
    from backupd.repository import Repository

_READ_BYTES = 4 << 20


def fetch_proven(repository: Repository, manifest: Manifest, descriptor: int, should_stop: Callable[[], None]) -> int:
    """Write the image into an empty file and prove each byte of what is then in it; how many bytes that fetched.

    Raises `DamageError`, as `DamagedPacksError` where packs are to blame, `StoreError`, OSError, and
    `TargetUnwritableError` when the disk does not give back what was written. `should_stop` is called from several
    threads.
    """
    try:
        fetched_bytes = _fetch(repository, manifest, descriptor, should_stop)
    except DamageError as error:
        reject_damaged_packs(repository, manifest, should_stop, seen=error)
        # A byte was turned on its way here, and not in the store: or the second time says the same.
        fetched_bytes = _fetch(repository, manifest, descriptor, should_stop)
        log.warning(
            "damaged bytes came from the store once, and the right ones the second time",
            database=manifest.database,
            store=repository.url,
            id=str(manifest.id),
            reason=error.message,
            hint="look after the memory and the network of this machine and of the store",
        )
    if _digest_of(descriptor, manifest, should_stop) != manifest.image_digest:
        reject_damaged_packs(repository, manifest, should_stop)
        raise TargetUnwritableError(
            "the disk of the state directory does not give back what was written to it",
            hint="look at the system log, and replace the disk; nothing is known about the store",
        )
    return fetched_bytes


def _fetch(repository: Repository, manifest: Manifest, descriptor: int, should_stop: Callable[[], None]) -> int:
    should_stop()
    return fetch_image(repository, manifest, descriptor, lambda _: should_stop())


def _digest_of(descriptor: int, manifest: Manifest, should_stop: Callable[[], None]) -> str:
    """The image digest of what the file holds now, from its pages alone."""
    page_size, hashes = manifest.page_size, bytearray()
    for start in range(0, manifest.image_bytes, _READ_BYTES):
        should_stop()
        chunk = memoryview(os.pread(descriptor, _READ_BYTES, start))
        for offset in range(0, len(chunk), page_size):
            hashes += page_hash(chunk[offset : offset + page_size])
    return image_digest(page_hashes(bytes(hashes)))
