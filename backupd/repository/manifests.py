"""The manifests of a repository: from the cache where that can be, and with their private part where there is a key.

What is read raises the errors of `Store`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from backupd.cache import SNAPSHOT_SUFFIXES, manifest_name, private_name
from backupd.errors import BackupdError, DamageError, NoSuchObjectError, UnsupportedFormatError
from backupd.format import FormatError, NewerFormatError
from backupd.format.manifest import (
    MAX_MANIFEST_BYTES,
    AnyManifest,
    Manifest,
    SealedManifest,
    decode_manifest,
    highest_sequence,
    open_manifest,
)
from backupd.store.keys import SnapshotKey, snapshots_prefix
from backupd.survey import DamagedManifest, History, Survey, survey_of
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import PackEntry
    from backupd.format.pagemap import PageMap
    from backupd.repository import Repository
    from backupd.store import StoredObject

_READERS = 8
_CLOCK_TOLERANCE = timedelta(minutes=1)
_FAR_AHEAD = timedelta(days=1)


def read_history(repository: Repository, database: str, survey: Survey | None = None) -> History:
    """All manifests of `database` that `survey`, or else a listing of them, shows; those that have gone since left out.

    One that cannot be read is part of it; one whose private part cannot be read here is a `SealedManifest`. Raises
    `NoSuchObjectError` when this is no repository.
    """
    if survey is None:
        survey = survey_of(database, repository.store.list(snapshots_prefix(database)))
    listed = survey.manifests
    newest = max(listed, default=None)

    def read(snapshot_id: SnapshotId) -> AnyManifest | DamagedManifest | None:
        # The newest is read from the store every time: what the next snapshot builds on is not taken on trust.
        if snapshot_id != newest:
            cached = _cached(repository, database, snapshot_id, listed[snapshot_id].size_bytes)
            if cached is not None:
                return cached
        try:
            return _read(repository, database, snapshot_id)
        except NoSuchObjectError:
            return None  # removed since the listing

    with worker_threads(_READERS) as readers:
        found = list(readers.map(read, listed))
    present = {str(snapshot_id) for snapshot_id in listed}

    def is_of_removed(file: Path) -> bool:
        return file.suffix in SNAPSHOT_SUFFIXES and file.stem not in present

    repository.cache.forget(database, is_of_removed)
    return _history(found, listed, datetime.now(UTC))


def _history(
    found: Sequence[AnyManifest | DamagedManifest | None], listed: Mapping[SnapshotId, StoredObject], now: datetime
) -> History:
    read = [each for each in found if isinstance(each, AnyManifest)]
    manifests = sorted((as_counted(each, listed[each.id], now) for each in read), key=lambda each: each.order)
    last_put_at = listed[manifests[-1].id].modified_at if manifests else None

    def is_outdated(damaged: DamagedManifest) -> bool:
        put_at = listed[damaged.id].modified_at
        is_ahead = damaged.id.taken_at > min(put_at, now) + _CLOCK_TOLERANCE
        return is_ahead and last_put_at is not None and put_at < last_put_at

    damaged = [each for each in found if isinstance(each, DamagedManifest)]
    return History(
        tuple(manifests),
        tuple(replace(each, is_outdated=is_outdated(each)) for each in damaged),
        {each.id: why for each in read if (why := _why_implausible(each, listed[each.id], now))},
    )


def as_counted(manifest: AnyManifest, stored: StoredObject, now: datetime) -> AnyManifest:
    """`manifest`, listed as `stored`, with the sequence that counts in the order of snapshots."""
    highest = highest_sequence(stored.modified_at, now)
    return manifest if manifest.sequence <= highest else replace(manifest, sequence=highest)


def _why_implausible(manifest: AnyManifest, stored: StoredObject, now: datetime) -> str | None:
    if manifest.sequence > highest_sequence(stored.modified_at, now):
        return f"its sequence is {manifest.sequence}, and so many snapshots were never taken"
    if manifest.id.taken_at > now + _FAR_AHEAD:
        return "it is dated in the future: a clock was wrong, or it was planted"
    return None


def read_manifest(repository: Repository, database: str, snapshot_id: SnapshotId) -> AnyManifest:
    """One manifest, read from the store itself. Raises the errors of `unreadable`, and `NoSuchObjectError`."""
    found = _read(repository, database, snapshot_id)
    if isinstance(found, DamagedManifest):
        raise unreadable(repository, found, hint=f"restore another snapshot; backupd list {database} shows them")
    return found


def unreadable(repository: Repository, damaged: DamagedManifest, *, hint: str) -> DamageError | UnsupportedFormatError:
    """The error for a manifest that is needed and cannot be read; `hint` says what to do when it is damaged."""
    name = f"{damaged.database}@{damaged.id}"
    if damaged.is_newer:
        return UnsupportedFormatError(
            f"snapshot {name} in {repository.url} was written by a newer backupd: {damaged.reason}",
            hint="install the newer version; nothing was changed",
        )
    return DamageError(f"the manifest of {name} in {repository.url} is damaged: {damaged.reason}", hint=hint)


def opened(repository: Repository, found: AnyManifest) -> Manifest:
    """`found` with its private part. Raises `IdentityNeededError` when that cannot be read here."""
    if isinstance(found, SealedManifest):
        return open_manifest(found, _decrypted(repository, found))
    return found


def checked_map(repository: Repository, manifest: Manifest) -> PageMap:
    """The page map of a manifest from this store. Raises `DamageError`."""
    try:
        return manifest.decode_map()
    except FormatError as error:
        raise DamageError(
            f"the manifest of snapshot {manifest.id} in {repository.url} is damaged: {error}",
            hint=f"restore another snapshot; backupd list {manifest.database} shows them",
        ) from error


def manifest_as_stored(repository: Repository, database: str, snapshot_id: SnapshotId) -> bytes:
    """The bytes of a manifest, after they were found right. Raises `DamageError`, `NoSuchObjectError`."""
    try:
        return _get_checked(repository, database, snapshot_id)[0]
    except FormatError as error:
        raise DamageError(
            f"the manifest of snapshot {snapshot_id} in {repository.url} is damaged: {error}",
            hint=f"it was left where it is; backupd list {database} shows what there is",
        ) from error


def snapshots_that_need(
    repository: Repository, database: str, pack: PackEntry
) -> tuple[list[SnapshotId], SnapshotId | None]:
    """The snapshots that name `pack`, oldest first, and the newest that does not: who suffers when it is damaged."""
    manifests = read_history(repository, database).manifests
    needing = [manifest.id for manifest in manifests if pack in manifest.packs]
    spared = [manifest.id for manifest in manifests if pack not in manifest.packs]
    return needing, spared[-1] if spared else None


def require_own(manifest: AnyManifest, database: str, snapshot_id: SnapshotId) -> None:
    """Raise `FormatError` for the manifest of another snapshot: an object was put under a key that is not its own."""
    if (manifest.id, manifest.database) != (snapshot_id, database):
        raise FormatError(f"it is that of {manifest.database}@{manifest.id}")


def _cached(repository: Repository, database: str, snapshot_id: SnapshotId, stored_bytes: int) -> AnyManifest | None:
    """A manifest as the cache has it, unless that is of another size than the store's: one never changes."""
    content = repository.cache.read(database, manifest_name(snapshot_id))
    if content is None or len(content) != stored_bytes:
        return None
    with suppress(FormatError):
        return _opened_if_possible(repository, decode_manifest(content))
    return None


def _read(repository: Repository, database: str, snapshot_id: SnapshotId) -> AnyManifest | DamagedManifest:
    try:
        content, found = _get_checked(repository, database, snapshot_id)
        manifest = _opened_if_possible(repository, found)
    except FormatError as error:
        return DamagedManifest(database, snapshot_id, str(error), is_newer=isinstance(error, NewerFormatError))
    repository.cache.write(database, manifest_name(snapshot_id), content)
    return manifest


def _get_checked(repository: Repository, database: str, snapshot_id: SnapshotId) -> tuple[bytes, AnyManifest]:
    """A manifest as the store holds it, and what it says. Raises `FormatError`, also for that of another snapshot."""
    content = repository.store.get(str(SnapshotKey(database, str(snapshot_id))), limit_bytes=MAX_MANIFEST_BYTES)
    found = decode_manifest(content)
    require_own(found, database, snapshot_id)
    return content, found


def _opened_if_possible(repository: Repository, found: AnyManifest) -> AnyManifest:
    """`found` with its private part, if that is in the cache or there is a key for it. Raises `FormatError`."""
    if isinstance(found, Manifest):
        return found
    if private := repository.cache.read(found.database, private_name(found.id)):
        with suppress(FormatError):
            return open_manifest(found, private)
    if not repository.encryption.can_decrypt:
        return found
    try:
        private = _decrypted(repository, found)
    except BackupdError as error:
        # Other snapshots may be for other keys; who needs this one in full hears of it.
        repository.tell_once("what is encrypted cannot be read", reason=error.message)
        return found
    whole = open_manifest(found, private)
    repository.cache.write(found.database, private_name(found.id), private)
    return whole


def _decrypted(repository: Repository, sealed: SealedManifest) -> bytes:
    what = f"the manifest of snapshot {sealed.id} of {sealed.database} in {repository.url}"
    return repository.encryption.decrypt(sealed.private.ciphertext, what=what)
