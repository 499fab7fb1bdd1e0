"""Snapshots over one store: what is there, what the next snapshot builds on, and the order in which it is written.

The order: packs, then a listing that shows every pack of the snapshot there with its size, then the manifest, which is
the commit point, then the local cache. A crash at any point leaves at most packs that no manifest names.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

from backupd.cache import link_atomically, write_atomically
from backupd.encryption import NO_ENCRYPTION
from backupd.errors import (
    BackupdError,
    DamageError,
    LostManifestError,
    LostPacksError,
    NoSuchObjectError,
    StoreUnavailableError,
    TargetUnwritableError,
    UnsupportedFormatError,
)
from backupd.format import FORMAT_VERSION, FormatError, NewerFormatError
from backupd.format.manifest import (
    MAX_MANIFEST_BYTES,
    AnyManifest,
    Manifest,
    SealedManifest,
    decode_manifest,
    encode_manifest,
    encrypt_manifest,
    open_manifest,
)
from backupd.format.pack import PackIndex, decode_pack, index_bytes, parse_index
from backupd.format.records import (
    DELETION_COUNTS_FOR,
    MAX_RECORD_BYTES,
    MAX_TRASH_BYTES,
    TrashEntry,
    decode_deletion,
    decode_trash,
)
from backupd.logs import log
from backupd.rescue import leave_rescue_objects
from backupd.store import canonical_url
from backupd.store.keys import (
    REPOSITORY_KEY,
    PackKey,
    RecordKey,
    RecordKind,
    SnapshotKey,
    database_prefix,
    is_object_key,
    snapshots_prefix,
)
from backupd.survey import DamagedManifest, History, Survey, Trash, survey_of
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from backupd.encryption import Encryption
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import PackEntry
    from backupd.format.pagemap import PageMap
    from backupd.state import StateDirectory
    from backupd.store import Store, StoredObject

_T = TypeVar("_T")
_READERS = 8
_MAX_REPOSITORY_OBJECT_BYTES = 4096
_REPOSITORY_ID = re.compile("[0-9A-Za-z]{1,64}")
_LOCK_SECONDS = 30.0
_LISTINGS_TRIED = 4


class Repository:
    """All databases in one store. Methods raise the errors of `Store`; those that read raise `DamageError` too."""

    def __init__(self, store: Store, state: StateDirectory, encryption: Encryption = NO_ENCRYPTION) -> None:
        """Asks the store for nothing yet."""
        self.store = store
        self.encryption = encryption
        self._state = state
        self._id: str | None = None
        self._told: set[str] = set()
        self._has_left_rescue = False
        self._creation = threading.Lock()

    @property
    def url(self) -> str:
        """The store's URL, for people."""
        return self.store.url

    @property
    def id(self) -> str | None:
        """The repository's own id, as `exists` last found it; None before."""
        return self._id

    def exists(self) -> bool:
        """Whether the store holds a repository that this version can read. Asks the store on every call.

        Raises `UnsupportedFormatError` for a newer format and `DamageError` for an unreadable `backupd.json`.
        """
        try:
            content = self.store.get(REPOSITORY_KEY, limit_bytes=_MAX_REPOSITORY_OBJECT_BYTES)
        except NoSuchObjectError:
            return False
        try:
            values = json.loads(content)
            version, repository_id = _checked(values["format"], values["repository"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(
                f"{REPOSITORY_KEY} in {self.url} cannot be read",
                hint="if this place was never a backupd repository, choose another; otherwise put back its content: "
                '{"format": 1, "repository": "0123456789abcdef"}',
            ) from error
        if version > FORMAT_VERSION:
            raise UnsupportedFormatError(
                f"{self.url} was written by a newer backupd (format {version}; this one knows {FORMAT_VERSION})",
                hint="install the newer version; nothing was changed",
            )
        self._id = repository_id
        return True

    def shows(self, database: str, snapshot_id: str) -> bool:
        """Whether the store has the manifest of this snapshot now. One small request."""
        try:
            return bool(self.store.get_range(str(SnapshotKey(database, snapshot_id)), offset=0, length=1))
        except NoSuchObjectError:
            return False

    def create_if_missing(self) -> None:
        """Make the store a repository. Repeatable; of two that try at once on one machine, one does it."""
        if self.exists():
            return
        with self._state.lock(f"the creation of {self.url}", timeout=_LOCK_SECONDS):
            if not self.exists():
                content = json.dumps({"format": FORMAT_VERSION, "repository": secrets.token_hex(16)}).encode() + b"\n"
                self.put_object(REPOSITORY_KEY, content)
                if not self.exists():
                    raise StoreUnavailableError(
                        f"{self.url} took {REPOSITORY_KEY}, and does not have it",
                        hint="try again; if this repeats, the store loses what it acknowledges",
                    )

    def _create_once(self) -> None:
        with self._creation:
            if self._id is None:
                self.create_if_missing()

    def _leave_rescue_once(self) -> None:
        # After the manifest: what a store does not take may cost no snapshot, and is not asked again all day.
        if not self._has_left_rescue and self._id is not None:
            self._has_left_rescue = True
            leave_rescue_objects(self.store, self._state, self._id)

    @contextmanager
    def lock(self, database: str, *, timeout: float) -> Iterator[None]:
        """Keep other runs with the same state directory away from `database` in this store. Raises `BusyError`."""
        with self._state.lock(f"{database} in {canonical_url(self.url)}", timeout=timeout):
            yield

    def databases(self, *, with_trash: bool = False) -> list[str]:
        """Names of the databases that have a snapshot, sorted; on demand also of those that have only removed ones."""
        names = set()
        for found in self.store.list(""):
            if snapshot := SnapshotKey.parse(found.key):
                names.add(snapshot.database)
            elif with_trash and (record := RecordKey.parse(found.key)) and record.kind is RecordKind.TRASH:
                names.add(record.database)
        return sorted(names)

    def strangers(self) -> list[str]:
        """Keys of objects that belong to no database and are not of this format, in their order."""
        databases: dict[str, bool] = {}
        outside: list[str] = []
        for found in self.store.list(""):
            name, slash, _ = found.key.partition("/")
            is_ours = is_object_key(found.key)
            if slash:
                databases[name] = databases.get(name, False) or is_ours
            if not is_ours:
                outside.append(found.key)
        return [key for key in outside if not databases.get(key.partition("/")[0], False)]

    def survey(self, database: str) -> Survey:
        """One listing of everything of `database`."""
        return survey_of(database, self.store.list(database_prefix(database)))

    def history(self, database: str, survey: Survey | None = None) -> History:
        """All manifests of `database`, from the cache where it has them. Raises `UnsupportedFormatError`."""
        if survey is None:
            survey = survey_of(database, self.store.list(snapshots_prefix(database)))
        listed = survey.manifests
        newest = max(listed, default=None)

        def read(snapshot_id: SnapshotId) -> AnyManifest | DamagedManifest | None:
            # The newest is read from the store every time: what the next snapshot builds on is not taken on trust.
            cached_bytes = None if snapshot_id == newest else listed[snapshot_id].size_bytes
            return self._manifest_if_there(database, snapshot_id, cached_bytes)

        with worker_threads(_READERS) as readers:
            found = list(readers.map(read, listed))
        self._forget_removed(database, listed)
        manifests = sorted((each for each in found if isinstance(each, AnyManifest)), key=lambda each: each.order)
        return History(tuple(manifests), tuple(each for each in found if isinstance(each, DamagedManifest)))

    def manifest(self, database: str, snapshot_id: SnapshotId) -> Manifest:
        """The whole of one manifest. Raises as `look_up`, and `IdentityNeededError` when a part cannot be read here."""
        return self.opened(self.look_up(database, snapshot_id))

    def opened(self, found: AnyManifest) -> Manifest:
        """`found` with its private part. Raises `IdentityNeededError` when that cannot be read here."""
        if isinstance(found, SealedManifest):
            return open_manifest(found, self._decrypted(found))
        return found

    def look_up(self, database: str, snapshot_id: SnapshotId) -> AnyManifest:
        """One manifest, read from the store itself. Raises `DamageError`, `NoSuchObjectError`."""
        found = self._read_manifest(database, snapshot_id)
        if isinstance(found, DamagedManifest):
            raise DamageError(
                f"the manifest of snapshot {snapshot_id} in {self.url} is damaged: {found.reason}",
                hint=f"restore another snapshot; backupd list {database} shows them",
            )
        return found

    def checked_map(self, manifest: Manifest) -> PageMap:
        """The page map of a manifest from this store. Raises `DamageError`."""
        try:
            return manifest.decode_map()
        except FormatError as error:
            raise DamageError(
                f"the manifest of snapshot {manifest.id} in {self.url} is damaged: {error}",
                hint=f"restore another snapshot; backupd list {manifest.database} shows them",
            ) from error

    def _manifest_if_there(
        self, database: str, snapshot_id: SnapshotId, cached_bytes: int | None
    ) -> AnyManifest | DamagedManifest | None:
        """A manifest; from the cache, if that has one of `cached_bytes` bytes. None when it has gone since."""
        # A manifest never changes, so one that has another size in the store is a damaged one.
        if cached_bytes is not None:
            with suppress(OSError, TargetUnwritableError, FormatError):
                content = (self.cache(database) / f"{snapshot_id}.json").read_bytes()
                if len(content) == cached_bytes:
                    return self._opened_if_possible(decode_manifest(content))
        try:
            return self._read_manifest(database, snapshot_id)
        except NoSuchObjectError:
            return None  # removed since the listing

    def _read_manifest(self, database: str, snapshot_id: SnapshotId) -> AnyManifest | DamagedManifest:
        content = self.store.get(str(SnapshotKey(database, str(snapshot_id))), limit_bytes=MAX_MANIFEST_BYTES)
        try:
            found = decode_manifest(content)
            _require_own(found, database, snapshot_id)
            manifest = self._opened_if_possible(found)
        except NewerFormatError as error:
            raise UnsupportedFormatError(
                f"snapshot {snapshot_id} in {self.url} was written by a newer backupd: {error}",
                hint="install the newer version; nothing was changed",
            ) from error
        except FormatError as error:
            return DamagedManifest(database, snapshot_id, str(error))
        with self._losing_cache_is_fine():
            write_atomically(self.cache(database) / f"{snapshot_id}.json", content)
        return manifest

    def _opened_if_possible(self, found: AnyManifest) -> AnyManifest:
        """`found` with its private part, if that is in the cache or there is a key for it. Raises `FormatError`."""
        if isinstance(found, Manifest):
            return found
        with suppress(OSError, TargetUnwritableError, FormatError):
            return open_manifest(found, (self.cache(found.database) / f"{found.id}.private").read_bytes())
        if not self.encryption.can_decrypt:
            return found
        try:
            private = self._decrypted(found)
        except BackupdError as error:
            # Other snapshots may be for other keys; who needs this one in full hears of it.
            self._tell_once("what is encrypted cannot be read", reason=error.message)
            return found
        opened = open_manifest(found, private)
        with self._losing_cache_is_fine():
            write_atomically(self.cache(found.database) / f"{found.id}.private", private)
        return opened

    def _decrypted(self, sealed: SealedManifest) -> bytes:
        what = f"the manifest of snapshot {sealed.id} of {sealed.database} in {self.url}"
        return self.encryption.decrypt(sealed.private.ciphertext, what=what)

    def manifest_bytes(self, database: str, snapshot_id: SnapshotId) -> bytes:
        """A manifest as the store holds it, after it was found right. Raises `DamageError`, `NoSuchObjectError`."""
        content = self.store.get(str(SnapshotKey(database, str(snapshot_id))), limit_bytes=MAX_MANIFEST_BYTES)
        try:
            _require_own(decode_manifest(content), database, snapshot_id)
        except FormatError as error:
            raise DamageError(
                f"the manifest of snapshot {snapshot_id} in {self.url} is damaged: {error}",
                hint=f"it was left where it is; backupd list {database} shows what there is",
            ) from error
        return content

    def trash(self, database: str, survey: Survey) -> Trash:
        """All trash entries that `survey` shows, from the cache where it has them. Raises `UnsupportedFormatError`."""

        def read(snapshot_id: SnapshotId) -> TrashEntry | DamagedManifest | None:
            try:
                entry = self.record(database, survey.trash[snapshot_id], decode_trash, limit_bytes=MAX_TRASH_BYTES)
                _require_own(entry.manifest, database, snapshot_id)
            except FormatError as error:
                return DamagedManifest(database, snapshot_id, str(error))
            except NoSuchObjectError:
                return None  # purged or undeleted since the listing
            return entry

        with worker_threads(_READERS) as readers:
            found = list(readers.map(read, survey.trash))
        entries = sorted((each for each in found if isinstance(each, TrashEntry)), key=lambda each: each.manifest.order)
        return Trash(tuple(entries), tuple(each for each in found if isinstance(each, DamagedManifest)))

    def record(
        self,
        database: str,
        stored: StoredObject,
        decode: Callable[[bytes], _T],
        *,
        limit_bytes: int = MAX_RECORD_BYTES,
    ) -> _T:
        """What the record `stored` says, from the cache when that has it as it was listed.

        Raises `FormatError`, `NoSuchObjectError` and `UnsupportedFormatError`.
        """
        with suppress(OSError, TargetUnwritableError, FormatError):
            content = (self.cache(database) / _cached_name(stored)).read_bytes()
            if len(content) == stored.size_bytes:
                return decode(content)
        content = self.store.get(stored.key, limit_bytes=limit_bytes)
        try:
            value = decode(content)
        except NewerFormatError as error:
            raise UnsupportedFormatError(
                f"{stored.key} in {self.url} was written by a newer backupd: {error}",
                hint="install the newer version; nothing was changed",
            ) from error
        with self._losing_cache_is_fine():
            write_atomically(self.cache(database) / _cached_name(stored), content)
        return value

    def put_pack(self, database: str, file: Path, pack: PackEntry) -> None:
        """Upload one pack. Never skipped because the name exists: that heals a damaged object."""
        self._create_once()
        self.store.put(pack_key(database, pack), file, sha256=bytes.fromhex(pack.sha256))

    def commit(self, manifest: Manifest, hashes: Path) -> None:
        """Make the snapshot exist. All its packs have been put; `hashes` is the file of its page hashes.

        Atomic: when this raises, the snapshot may exist only if the store did what it did not acknowledge, or cannot
        be asked any more. Raises `LostPacksError` when the store does not show a pack, which the next snapshot writes
        again, and `LostManifestError`. When it returns, the store has shown everything that the snapshot needs.
        """
        self._create_once()
        private: bytes | None = None
        if self.encryption.is_on:
            content, private = encrypt_manifest(manifest, self.encryption.encrypt)
        else:
            content = encode_manifest(manifest)
        self.publish(manifest, content)
        self._require_manifest(manifest, content)
        self._leave_rescue_once()
        with self._losing_cache_is_fine():
            cache = self.cache(manifest.database)
            if private is not None:
                write_atomically(cache / f"{manifest.id}.private", private)
            write_atomically(cache / f"{manifest.id}.json", content)
            link_atomically(hashes, cache / f"{manifest.id}.hashes")
            for older in cache.glob("*.hashes"):
                if older.stem != str(manifest.id):
                    older.unlink(missing_ok=True)

    def publish(self, manifest: AnyManifest, content: bytes) -> None:
        """Put the bytes of a manifest, after a listing has shown all its packs and no sweep that is deleting one.

        Raises `LostPacksError`. Why this is safe beside a sweep on another host: FORMAT.md, "Deleting packs".
        """
        for _ in range(_LISTINGS_TRIED):
            survey = self.survey(manifest.database)
            missing = survey.missing(manifest.packs)
            if missing:
                raise LostPacksError(
                    f"{self.url} does not show {len(missing)} of {len(manifest.packs)} packs of the snapshot, "
                    f"such as {missing[0].sha256}",
                    hint="the next snapshot writes them again; if this repeats, the store loses what it acknowledged",
                )
            try:
                self._reject_packs_being_deleted(manifest, survey)
            except NoSuchObjectError:
                continue  # a sweep has just ended, and may have deleted what the listing showed before
            self.put_object(str(SnapshotKey(manifest.database, str(manifest.id))), content)
            return
        raise LostPacksError(
            f"one sweep after the other deletes packs of {manifest.database} in {self.url}", hint="try again"
        )

    def _require_manifest(self, manifest: Manifest, content: bytes) -> None:
        """Raise `LostManifestError` unless the store gives back the manifest as it was put, at once or put again."""
        key = str(SnapshotKey(manifest.database, str(manifest.id)))
        if not self._gives_back(key, content):
            self.put_object(key, content)
            if not self._gives_back(key, content):
                raise LostManifestError(
                    f"{self.url} took the manifest of snapshot {manifest.id} of {manifest.database} twice, and gives "
                    "back something else",
                    hint="the snapshot does not count; look after the disk or the service behind this store",
                )

    def _gives_back(self, key: str, content: bytes) -> bool:
        try:
            return self.store.get(key, limit_bytes=len(content)) == content
        except (NoSuchObjectError, DamageError):
            return False

    def _reject_packs_being_deleted(self, manifest: AnyManifest, survey: Survey) -> None:
        for stored in survey.deletions.values():
            # A sweep has given up long before: what was put after that is not deleted by it.
            is_over_at = stored.modified_at + DELETION_COUNTS_FOR
            try:
                named = self.record(manifest.database, stored, decode_deletion).packs
                last_put = min((survey.packs[pack].modified_at for pack in _common(manifest, named)), default=None)
            except FormatError:
                # Which packs is not known: as long as this snapshot's newest may be one of them, it has to wait.
                last_put = max((survey.packs[pack.sha256].modified_at for pack in manifest.packs), default=None)
            if last_put is not None and last_put <= is_over_at:
                raise LostPacksError(
                    f"packs of the snapshot are being deleted from {self.url} by another host, as unused",
                    hint="try again in a few minutes; the next snapshot writes them again",
                )

    def put_object(self, key: str, content: bytes) -> None:
        """Put one small object."""
        self.store.put(key, content, sha256=hashlib.sha256(content).digest())

    def read_pack_object(self, database: str, pack: PackEntry) -> bytes:
        """The bytes of one pack as they are stored, after their SHA-256 was found right.

        Raises `DamageError` when it is gone or is not what was written.
        """
        key = pack_key(database, pack)
        try:
            content = self.store.get(key, limit_bytes=pack.most_bytes)
        except NoSuchObjectError as error:
            raise DamageError(f"pack {key} is missing from {self.url}") from error
        if hashlib.sha256(content).hexdigest() != pack.sha256:
            raise DamageError(f"pack {key} in {self.url} does not have the SHA-256 that names it")
        return content

    def read_pack(self, database: str, pack: PackEntry) -> tuple[PackIndex, bytes]:
        """Index and page images of one pack, after its SHA-256 and zstd's checksum were found right.

        Raises as `read_pack_object`, and `IdentityNeededError` for one that cannot be decrypted here.
        """
        content = self.read_pack_object(database, pack)
        key = pack_key(database, pack)
        if pack.encryption is not None:
            content = self.encryption.decrypt(content, what=f"pack {key} in {self.url}")
        try:
            return decode_pack(content)
        except FormatError as error:
            raise DamageError(f"pack {key} in {self.url} cannot be read: {error}") from error

    def read_index(self, database: str, pack: PackEntry) -> PackIndex:
        """The index of one pack, without its images where it can be read alone.

        Raises `FormatError`, `NoSuchObjectError`, and as `read_pack` for a pack that is encrypted as a whole.
        """
        if pack.encryption is not None:
            return self.read_pack(database, pack)[0]
        head = self.store.get_range(pack_key(database, pack), offset=0, length=index_bytes(pack.pages))
        return parse_index(head)

    def cache(self, database: str) -> Path:
        """What may be kept of `database` between runs. Raises `NoSuchObjectError` when this is no repository."""
        if self._id is None and not self.exists():
            raise NoSuchObjectError(f"{self.url} holds no backups", hint="make one with: backupd now")
        assert self._id is not None  # noqa: S101
        return self._state.cache(self._id, database)

    @contextmanager
    def _losing_cache_is_fine(self) -> Iterator[None]:
        """What the cache does not take is read from the store next time: a full disk here fails nothing."""
        try:
            yield
        except (OSError, TargetUnwritableError) as error:
            self._tell_once("nothing can be cached", reason=str(error))

    def _tell_once(self, event: str, *, reason: str) -> None:
        if event not in self._told:
            log.info(event, reason=reason)
        self._told.add(event)

    def forget_records(self, database: str, survey: Survey) -> None:
        """Drop what the cache has of records that `survey` does not show."""
        kinds = (survey.trash, survey.drills, survey.findings)
        present = {_cached_name(stored) for kind in kinds for stored in kind.values()}
        with self._losing_cache_is_fine():
            for cached in self.cache(database).glob("*.record"):
                if cached.name not in present:
                    cached.unlink(missing_ok=True)

    def _forget_removed(self, database: str, present: Iterable[SnapshotId]) -> None:
        names = {str(snapshot) for snapshot in present}
        with self._losing_cache_is_fine():
            for cached in self.cache(database).iterdir():
                if cached.stem not in names and cached.suffix in {".json", ".hashes", ".private"}:
                    cached.unlink(missing_ok=True)


def _checked(version: object, repository_id: object) -> tuple[int, str]:
    """Both values of `backupd.json`; the id can safely name a directory of the cache. Raises ValueError."""
    if type(version) is not int or version < 1:
        raise ValueError("not a format version")
    if not isinstance(repository_id, str) or not _REPOSITORY_ID.fullmatch(repository_id):
        raise ValueError("not a repository id")
    return version, repository_id


def pack_key(database: str, pack: PackEntry) -> str:
    """Where the store holds `pack`."""
    return str(PackKey(database, bytes.fromhex(pack.sha256), is_encrypted=pack.encryption is not None))


def snapshots_that_need(
    repository: Repository, database: str, pack: PackEntry
) -> tuple[list[SnapshotId], SnapshotId | None]:
    """The snapshots that name `pack`, oldest first, and the newest that does not: who suffers when it is damaged."""
    manifests = repository.history(database).manifests
    needing = [manifest.id for manifest in manifests if pack in manifest.packs]
    spared = [manifest.id for manifest in manifests if pack not in manifest.packs]
    return needing, spared[-1] if spared else None


def _require_own(manifest: AnyManifest, database: str, snapshot_id: SnapshotId) -> None:
    if (manifest.id, manifest.database) != (snapshot_id, database):
        raise FormatError(f"it is that of {manifest.database}@{manifest.id}")


def _common(manifest: AnyManifest, packs: Iterable[str]) -> set[str]:
    return {pack.sha256 for pack in manifest.packs}.intersection(packs)


def _cached_name(stored: StoredObject) -> str:
    """A record may be put again, with other content and the same size: then it has another time."""
    kind, name = stored.key.split("/")[-2:]
    return f"{kind}-{name.removesuffix('.json')}-{int(stored.modified_at.timestamp() * 10**6)}.record"
