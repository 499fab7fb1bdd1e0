"""Every stored byte of a snapshot whose packs cannot be decrypted here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backupd.drill.image import DamagedPacksError
from backupd.drill.packs import DamagedPackError, read_proven
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.repository import Repository

_READERS = 4


def read_ciphertext(repository: Repository, manifest: AnyManifest, should_stop: Callable[[], None]) -> int:
    """Read each pack of the snapshot, and compare its SHA-256; how many bytes that were.

    Raises `DamagedPacksError` with all that are damaged or missing, and `StoreError`. `should_stop` is called from
    several threads.
    """

    def why_damaged(pack: PackEntry) -> str | None:
        should_stop()
        try:
            read_proven(repository, manifest.database, pack)
        except DamagedPackError as found:
            return found.message
        return None

    with worker_threads(_READERS, name="look") as threads:
        reasons = list(threads.map(why_damaged, manifest.packs))
    damaged = {pack.sha256: reason for pack, reason in zip(manifest.packs, reasons, strict=True) if reason}
    if damaged:
        more = f"; {len(damaged)} of its {len(reasons)} packs are damaged" if len(damaged) > 1 else ""
        raise DamagedPacksError(f"{next(iter(damaged.values()))}{more}", hint=None, packs=tuple(damaged))
    return sum(pack.stored_bytes for pack in manifest.packs)
