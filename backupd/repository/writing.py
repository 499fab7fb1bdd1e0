"""The order in which a snapshot is written.

Packs, then a listing that shows every pack of the snapshot there with its size, then the manifest, which is the commit
point, then the local cache. A crash at any point leaves at most packs that no manifest names.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.cache import hashes_name, manifest_name, private_name
from backupd.errors import DamageError, LostManifestError, LostPacksError, NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError
from backupd.format.manifest import highest_sequence
from backupd.format.records import DELETION_COUNTS_FOR, decode_deletion
from backupd.repository.packs import pack_key
from backupd.repository.readable import encode_restorable
from backupd.repository.records import read_record
from backupd.store.keys import SnapshotKey

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from backupd.format.manifest import AnyManifest, Manifest, PackEntry
    from backupd.repository import Repository
    from backupd.survey import Survey

_LISTINGS_TRIED = 4
_STORE_CLOCK_TICK_SECONDS = 2.0


def put_pack(repository: Repository, database: str, file: Path, pack: PackEntry) -> None:
    """Upload one pack. Never skipped because the name exists: that heals a damaged object."""
    repository.create_once()
    repository.store.put(pack_key(database, pack), file, sha256=bytes.fromhex(pack.sha256))


def commit(repository: Repository, manifest: Manifest, hashes: Path) -> None:
    """Make the snapshot exist. All its packs have been put; `hashes` is the file of its page hashes.

    Atomic: when this raises, the snapshot may exist only if the store did what it did not acknowledge, or cannot
    be asked any more. Raises `LostPacksError` when the store does not show a pack, which the next snapshot writes
    again, `LostManifestError`, and `UnreadableObjectError` before it puts anything. When it returns, the store has
    shown everything that the snapshot needs.
    """
    repository.create_once()
    content, private = encode_restorable(manifest, repository.encryption, url=repository.url)
    publish(repository, manifest, content)
    _require_manifest(repository, manifest, content)
    repository.leave_rescue_once()
    if private is not None:
        repository.cache.write(manifest.database, private_name(manifest.id), private)
    repository.cache.write(manifest.database, manifest_name(manifest.id), content)
    repository.cache.link(manifest.database, hashes_name(manifest.id), hashes)
    newest = hashes_name(manifest.id)
    repository.cache.forget(manifest.database, lambda file: file.suffix == ".hashes" and file.name != newest)


def publish(repository: Repository, manifest: AnyManifest, content: bytes) -> None:
    """Put the bytes of a manifest, after a listing has shown all its packs and no sweep that is deleting one.

    Raises `LostPacksError`. Why this is safe beside a sweep on another host: FORMAT.md, "Deleting packs".
    """
    for _ in range(_LISTINGS_TRIED):
        survey = repository.survey(manifest.database)
        missing = survey.missing(manifest.packs)
        if missing:
            raise LostPacksError(
                f"{repository.url} does not show {len(missing)} of {len(manifest.packs)} packs of the snapshot, "
                f"such as {missing[0].sha256}",
                hint="the next snapshot writes them again; if this repeats, the store loses what it acknowledged",
            )
        try:
            _reject_packs_being_deleted(repository, manifest, survey)
        except NoSuchObjectError:
            continue  # a sweep has just ended, and may have deleted what the listing showed before
        _wait_until_sequence_counts(manifest, survey)
        repository.put_object(str(SnapshotKey(manifest.database, str(manifest.id))), content)
        return
    raise LostPacksError(
        f"one sweep after the other deletes packs of {manifest.database} in {repository.url}", hint="try again"
    )


def _wait_until_sequence_counts(manifest: AnyManifest, survey: Survey) -> None:
    """Let the store's clock go on when something in it has the highest sequence that counts now: this one is newer."""
    put_at = max((stored.modified_at for stored in survey.manifests.values()), default=None)
    if put_at is not None and manifest.sequence > highest_sequence(put_at, datetime.now(UTC)):
        time.sleep(_STORE_CLOCK_TICK_SECONDS)


def _require_manifest(repository: Repository, manifest: Manifest, content: bytes) -> None:
    """Raise `LostManifestError` unless the store gives back the manifest as it was put, at once or put again."""
    key = str(SnapshotKey(manifest.database, str(manifest.id)))
    if not _gives_back(repository, key, content):
        repository.put_object(key, content)
        if not _gives_back(repository, key, content):
            raise LostManifestError(
                f"{repository.url} took the manifest of snapshot {manifest.id} of {manifest.database} twice, and gives "
                "back something else",
                hint="the snapshot does not count; look after the disk or the service behind this store",
            )


def _gives_back(repository: Repository, key: str, content: bytes) -> bool:
    try:
        return repository.store.get(key, limit_bytes=len(content)) == content
    except (NoSuchObjectError, DamageError):
        return False


def _reject_packs_being_deleted(repository: Repository, manifest: AnyManifest, survey: Survey) -> None:
    for stored in survey.deletions.values():
        # A sweep has given up long before: what was put after that is not deleted by it.
        is_over_at = stored.modified_at + DELETION_COUNTS_FOR
        try:
            named = read_record(repository, manifest.database, stored, decode_deletion).packs
            last_put = min((survey.packs[pack].modified_at for pack in _common(manifest, named)), default=None)
        except (FormatError, UnsupportedFormatError):
            # Which packs is not known: as long as this snapshot's newest may be one of them, it has to wait.
            last_put = max((survey.packs[pack.sha256].modified_at for pack in manifest.packs), default=None)
        if last_put is not None and last_put <= is_over_at:
            raise LostPacksError(
                f"packs of the snapshot are being deleted from {repository.url} as unused, says {stored.key}",
                hint="try again in a few minutes, and the snapshot writes them again; if no host of yours prunes now, "
                "delete that object: it may have been put there to keep snapshots away",
            )


def _common(manifest: AnyManifest, packs: Iterable[str]) -> set[str]:
    return {pack.sha256 for pack in manifest.packs}.intersection(packs)
