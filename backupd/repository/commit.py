"""Commit a snapshot: the order in which its objects are written, and the check that readers will accept them.

Packs, then a listing that shows every pack of the snapshot there with its size, then the manifest, which is the commit
point, then the local catalog. A crash at any point leaves at most packs that no manifest names.

The bytes of each small object go through the reader of its kind before they are put. A pack goes through its reader
where it is made, in `backupd.format.pack`, because what is put may be encrypted.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.errors import (
    DamageError,
    LostManifestError,
    LostPacksError,
    NoSuchObjectError,
    UnreadableObjectError,
    UnsupportedFormatError,
)
from backupd.format import FormatError
from backupd.format.manifest import (
    ALWAYS_COUNTED_SEQUENCES,
    MAX_MANIFEST_BYTES,
    SealedManifest,
    decode_manifest,
    encode_manifest,
    encrypt_manifest,
    highest_sequence,
    open_manifest,
)
from backupd.format.records import (
    DELETION_COUNTS_FOR,
    MAX_RECORD_BYTES,
    MAX_TRASH_BYTES,
    Continuity,
    DeletionRecord,
    Drill,
    RetentionRecord,
    SweepRecord,
    TrashEntry,
)
from backupd.store.keys import REPOSITORY_KEY, RecordKey, RecordKind, SnapshotKey, retention_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.encryption import Encryption
    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, Manifest
    from backupd.repository.archive import Archive
    from backupd.repository.history import Listing

MAX_REPOSITORY_OBJECT_BYTES = 4096
"""The most bytes that a reader takes for `backupd.json`."""

_REPOSITORY_ID = re.compile("[0-9A-Za-z]{1,64}")
_LISTINGS_TRIED = 4
_STORE_CLOCK_TICK_SECONDS = 2.0


def commit(archive: Archive, manifest: Manifest, hashes: Path) -> None:
    """Make the snapshot exist. All its packs have been put; `hashes` is the file of its page hashes.

    Atomic: when this raises, the snapshot may exist only if the store did what it did not acknowledge, or cannot
    be asked any more. Raises `LostPacksError` when the store does not show a pack, which the next snapshot writes
    again, `LostManifestError`, and `UnreadableObjectError` before it puts anything. When it returns, the store has
    shown everything that the snapshot needs.
    """
    archive.repository.ensure_created()
    content, private = _encode_restorable(manifest, archive.repository.encryption, url=archive.url)
    publish(archive, manifest, content)
    _require_manifest(archive, manifest, content)
    archive.repository.leave_rescue()
    if private is not None:
        archive.catalog.keep_private_part(manifest.id, private)
    archive.catalog.keep_hashes(manifest.id, hashes)


def publish(archive: Archive, manifest: AnyManifest, content: bytes) -> None:
    """Put the bytes of a manifest, after a listing has shown all its packs and no sweep that is deleting one.

    Raises `LostPacksError`. Why this is safe beside a sweep on another host: FORMAT.md, "Deleting packs".
    """
    for _ in range(_LISTINGS_TRIED):
        listing = archive.listing_up_to_packs()
        missing = listing.missing(manifest.packs)
        if missing:
            raise LostPacksError(
                f"{archive.url} does not show {len(missing)} of {len(manifest.packs)} packs of the snapshot, "
                f"such as {missing[0].sha256}",
                hint="the next snapshot writes them again; if this repeats, the store loses what it acknowledged",
            )
        try:
            _reject_packs_being_deleted(archive, manifest, listing)
        except NoSuchObjectError:
            continue  # a sweep has just ended, and may have deleted what the listing showed before
        _wait_until_sequence_counts(archive, manifest)
        archive.repository.put_object(str(SnapshotKey(manifest.database, str(manifest.id))), content)
        return
    raise LostPacksError(
        f"one sweep after the other deletes packs of {manifest.database} in {archive.url}", hint="try again"
    )


def _wait_until_sequence_counts(archive: Archive, manifest: AnyManifest) -> None:
    """Wait for the store's clock when another snapshot has the highest sequence that counts now: this one is newer."""
    if manifest.sequence <= ALWAYS_COUNTED_SEQUENCES:
        return
    put_at = max((stored.modified_at for stored in archive.listing().manifests.values()), default=None)
    if put_at is not None and manifest.sequence > highest_sequence(put_at, datetime.now(UTC)):
        time.sleep(_STORE_CLOCK_TICK_SECONDS)


def _reject_packs_being_deleted(archive: Archive, manifest: AnyManifest, listing: Listing) -> None:
    for stored in listing.deletions.values():
        # A sweep has given up long before: what was put after that is not deleted by it.
        is_over_at = stored.modified_at + DELETION_COUNTS_FOR
        try:
            deleted = archive.record(stored, DeletionRecord.decode).packs
            common = {pack.sha256 for pack in manifest.packs}.intersection(deleted)
            last_put = min((listing.packs[pack].modified_at for pack in common), default=None)
        except (FormatError, UnsupportedFormatError):
            # Which packs is not known: as long as this snapshot's newest may be one of them, it has to wait.
            last_put = max((listing.packs[pack.sha256].modified_at for pack in manifest.packs), default=None)
        if last_put is not None and last_put <= is_over_at:
            raise LostPacksError(
                f"packs of the snapshot are being deleted from {archive.url} as unused, says {stored.key}",
                hint="try again in a few minutes, and the snapshot writes them again; if no host of yours prunes now, "
                "delete that object: it may have been put there to keep snapshots away",
            )


def _require_manifest(archive: Archive, manifest: Manifest, content: bytes) -> None:
    """Raise `LostManifestError` unless the store gives back the manifest as it was put, at once or put again."""
    key = str(SnapshotKey(manifest.database, str(manifest.id)))
    if not _gives_back(archive, key, content):
        archive.repository.put_object(key, content)
        if not _gives_back(archive, key, content):
            raise LostManifestError(
                f"{archive.url} took the manifest of snapshot {manifest.id} of {manifest.database} twice, and gives "
                "back something else",
                hint="the snapshot does not count; check the disk or the service behind this store",
            )


def _gives_back(archive: Archive, key: str, content: bytes) -> bool:
    try:
        return archive.repository.store.get(key, limit_bytes=len(content)) == content
    except (NoSuchObjectError, DamageError):
        return False


def _encode_restorable(manifest: Manifest, encryption: Encryption, *, url: str) -> tuple[bytes, bytes | None]:
    """Encode a manifest so that a reader finds exactly it; gives the bytes, and the private part before encryption.

    Raises `UnreadableObjectError` when that cannot be done. `url` is the store that they are for.
    """
    private: bytes | None = None
    with refused(str(SnapshotKey(manifest.database, str(manifest.id))), url):
        if encryption.is_on:
            content, private = encrypt_manifest(manifest, encryption.encrypt)
        else:
            content = encode_manifest(manifest)
        found = decode_manifest(content)
        whole = open_manifest(found, private or b"") if isinstance(found, SealedManifest) else found
        whole.decode_map()
        _require_same(manifest, whole)
    return content, private


def _require_same(manifest: Manifest, found: Manifest) -> None:
    for name in manifest.__struct_fields__:
        if getattr(found, name) != getattr(manifest, name):
            raise FormatError(f"{name}: a reader finds something else than was written")


def require_readable(key: str, content: bytes, *, url: str) -> None:
    """Raise `UnreadableObjectError` unless readers accept `content` as the object `key` of the store at `url`."""
    with refused(key, url):
        _read(key, content)


def _read(key: str, content: bytes) -> None:
    if snapshot := SnapshotKey.parse(key):
        _require_within(MAX_MANIFEST_BYTES, content)
        found = decode_manifest(content)
        _require_own((snapshot.database, snapshot.snapshot_id), (found.database, found.id))
    elif record := RecordKey.parse(key):
        _require_within(MAX_TRASH_BYTES if record.kind is RecordKind.TRASH else MAX_RECORD_BYTES, content)
        _read_record(record, content)
    elif key == REPOSITORY_KEY:
        _require_within(MAX_REPOSITORY_OBJECT_BYTES, content)
        decode_repository(content)
    elif key == retention_key(key.partition("/")[0]):
        _require_within(MAX_RECORD_BYTES, content)
        RetentionRecord.decode(content)


def _read_record(key: RecordKey, content: bytes) -> None:
    match key.kind:
        case RecordKind.DRILL:
            drill = Drill.decode(content)
            _require_own((key.database, key.id), (drill.database, drill.snapshot))
        case RecordKind.TRASH:
            manifest = TrashEntry.decode(content).manifest
            _require_own((key.database, key.id), (manifest.database, manifest.id))
        case RecordKind.CONTINUITY:
            continuity = Continuity.decode(content)
            _require_own((key.database, key.id), (continuity.database, continuity.window))
        case RecordKind.SWEEP:
            SweepRecord.decode(content)
        case RecordKind.DELETION:
            DeletionRecord.decode(content)
        case RecordKind.UNDELETED:
            pass  # its content says nothing


def decode_repository(content: bytes) -> tuple[int, str]:
    """Read format version and id in a `backupd.json`; the id can safely name a directory. Raises `FormatError`."""
    try:
        values = json.loads(content)
        version, repository_id = values["format"], values["repository"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FormatError("it is not what backupd writes") from error
    if type(version) is not int or version < 1:
        raise FormatError("it does not say its version")
    if not isinstance(repository_id, str) or not _REPOSITORY_ID.fullmatch(repository_id):
        raise FormatError("it has no repository id")
    return version, repository_id


def _require_within(limit_bytes: int, content: bytes) -> None:
    if len(content) > limit_bytes:
        raise FormatError(f"it has {len(content)} bytes, and readers take at most {limit_bytes}")


def _require_own(wanted: tuple[str, str], found: tuple[str, SnapshotId]) -> None:
    database, snapshot_id = found
    if wanted != (database, str(snapshot_id)):
        raise FormatError(f"it is that of {database}@{snapshot_id}")


@contextmanager
def refused(key: str, url: str) -> Iterator[None]:
    """Raise a `FormatError` of the object `key` as an `UnreadableObjectError` of the store at `url`."""
    try:
        yield
    except FormatError as error:
        raise UnreadableObjectError(
            f"{key} was not put into {url}, because no reader would accept it: {error}",
            hint="the store is unchanged, and older snapshots can be restored; please report this as a bug",
        ) from error
