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
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backupd.cache import is_hashes_file, link_atomically, map_hashes, write_atomically
from backupd.errors import (
    DamageError,
    LostPacksError,
    NoSuchObjectError,
    StoreUnavailableError,
    TargetUnwritableError,
    UnsupportedFormatError,
)
from backupd.format import FORMAT_VERSION, FormatError, NewerFormatError
from backupd.format.ids import SnapshotId
from backupd.format.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest, encode_manifest
from backupd.format.pack import MAX_PACK_BYTES, PackIndex, decode_pack, index_bytes, page_hash, parse_index
from backupd.format.pagemap import image_digest, page_hashes
from backupd.logs import log
from backupd.store.keys import REPOSITORY_KEY, PackKey, SnapshotKey, database_prefix, snapshots_prefix
from backupd.threads import worker_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy.typing as npt

    from backupd.format.manifest import PackEntry
    from backupd.format.pagemap import PageHashes, PageMap
    from backupd.state import StateDirectory
    from backupd.store import Store

_READERS = 8
_MAX_REPOSITORY_OBJECT_BYTES = 4096
_REPOSITORY_ID = re.compile("[0-9A-Za-z]{1,64}")
_LOCK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Survey:
    """What one listing showed of a database: sizes of its manifests, by id, and of its packs, by SHA-256 (hex)."""

    manifests: dict[SnapshotId, int]
    packs: dict[str, int]

    def missing(self, packs: Iterable[PackEntry]) -> list[PackEntry]:
        """Those of `packs` that are not there, or not with their size."""
        return [pack for pack in packs if self.packs.get(pack.sha256) != pack.stored_bytes]


@dataclass(frozen=True, slots=True)
class DamagedManifest:
    """A manifest that is there and cannot be read."""

    database: str
    id: SnapshotId
    reason: str


@dataclass(frozen=True, slots=True)
class History:
    """The snapshots of one database, oldest first, and the manifests that cannot be read."""

    manifests: tuple[Manifest, ...]
    damaged: tuple[DamagedManifest, ...]

    @property
    def newest(self) -> Manifest | None:
        """The snapshot with the highest sequence, of any kind."""
        return self.manifests[-1] if self.manifests else None


@dataclass(frozen=True, slots=True)
class BaseSnapshot:
    """What the next snapshot is compared with: the newest one, as far as its packs are known to be there.

    `hashes` is the file of its page hashes; those of `lost` (page indices from 0) must be stored again in any case.
    """

    manifest: Manifest
    page_map: PageMap
    hashes: Path
    lost: npt.NDArray[np.intp]

    def read_hashes(self) -> PageHashes:
        """The page hashes as an array that stays on disk."""
        return map_hashes(self.hashes)


class Repository:
    """All databases in one store. Methods raise the errors of `Store`; those that read raise `DamageError` too."""

    def __init__(self, store: Store, state: StateDirectory) -> None:
        """Asks the store for nothing yet."""
        self.store = store
        self._state = state
        self._id: str | None = None
        self._has_told_of_cache = False
        self._creation = threading.Lock()

    @property
    def url(self) -> str:
        """The store's URL, for people."""
        return self.store.url

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

    def create_if_missing(self) -> None:
        """Make the store a repository. Repeatable; of two that try at once on one machine, one does it."""
        if self.exists():
            return
        with self._state.lock(f"the creation of {self.url}", timeout=_LOCK_SECONDS):
            if not self.exists():
                content = json.dumps({"format": FORMAT_VERSION, "repository": secrets.token_hex(16)}).encode() + b"\n"
                self.store.put(REPOSITORY_KEY, content, sha256=hashlib.sha256(content).digest())
                if not self.exists():
                    raise StoreUnavailableError(
                        f"{self.url} took {REPOSITORY_KEY}, and does not have it",
                        hint="try again; if this repeats, the store loses what it acknowledges",
                    )

    def _create_once(self) -> None:
        with self._creation:
            if self._id is None:
                self.create_if_missing()

    def databases(self) -> list[str]:
        """Names of the databases that have a snapshot, sorted."""
        keys = (SnapshotKey.parse(found.key) for found in self.store.list(""))
        return sorted({key.database for key in keys if key is not None})

    def survey(self, database: str) -> Survey:
        """One listing of everything of `database`. Objects with other names are passed over."""
        manifests: dict[SnapshotId, int] = {}
        packs: dict[str, int] = {}
        for found in self.store.list(database_prefix(database)):
            if pack := PackKey.parse(found.key):
                packs[pack.sha256.hex()] = found.size_bytes
            elif snapshot := _snapshot_id(found.key):
                manifests[snapshot] = found.size_bytes
        return Survey(manifests, packs)

    def history(self, database: str, survey: Survey | None = None) -> History:
        """All manifests of `database`, from the cache where it has them. Raises `UnsupportedFormatError`."""
        if survey is None:
            keys = self.store.list(snapshots_prefix(database))
            sizes = {found_id: found.size_bytes for found in keys if (found_id := _snapshot_id(found.key))}
        else:
            sizes = survey.manifests
        newest = max(sizes, default=None)

        def read(snapshot_id: SnapshotId) -> Manifest | DamagedManifest | None:
            # The newest is read from the store every time: what the next snapshot builds on is not taken on trust.
            cached_bytes = None if snapshot_id == newest else sizes[snapshot_id]
            return self._manifest_if_there(database, snapshot_id, cached_bytes)

        with worker_threads(_READERS) as readers:
            found = list(readers.map(read, sizes))
        self._forget_removed(database, sizes)
        manifests = sorted((each for each in found if isinstance(each, Manifest)), key=lambda each: each.order)
        return History(tuple(manifests), tuple(each for each in found if isinstance(each, DamagedManifest)))

    def manifest(self, database: str, snapshot_id: SnapshotId) -> Manifest:
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
    ) -> Manifest | DamagedManifest | None:
        """A manifest; from the cache, if that has one of `cached_bytes` bytes. None when it has gone since."""
        # A manifest never changes, so one that has another size in the store is a damaged one.
        if cached_bytes is not None:
            with suppress(OSError, TargetUnwritableError, FormatError):
                content = (self._cache(database) / f"{snapshot_id}.json").read_bytes()
                if len(content) == cached_bytes:
                    return decode_manifest(content)
        try:
            return self._read_manifest(database, snapshot_id)
        except NoSuchObjectError:
            return None  # removed since the listing

    def _read_manifest(self, database: str, snapshot_id: SnapshotId) -> Manifest | DamagedManifest:
        content = self.store.get(str(SnapshotKey(database, str(snapshot_id))), limit_bytes=MAX_MANIFEST_BYTES)
        try:
            manifest = decode_manifest(content)
            if (manifest.id, manifest.database) != (snapshot_id, database):
                raise FormatError(f"it is that of {manifest.database}@{manifest.id}")  # noqa: TRY301
        except NewerFormatError as error:
            raise UnsupportedFormatError(
                f"snapshot {snapshot_id} in {self.url} was written by a newer backupd: {error}",
                hint="install the newer version; nothing was changed",
            ) from error
        except FormatError as error:
            return DamagedManifest(database, snapshot_id, str(error))
        with self._losing_cache_is_fine():
            write_atomically(self._cache(database) / f"{snapshot_id}.json", content)
        return manifest

    def base(self, newest: Manifest, survey: Survey) -> BaseSnapshot:
        """What a snapshot after `newest` builds on. Page hashes come from the cache, or else from the pack indexes."""
        page_map = self.checked_map(newest)
        is_lost = np.zeros(len(newest.packs) + 1, dtype=bool)
        missing = set(survey.missing(newest.packs))
        for position, pack in enumerate(newest.packs, 1):
            is_lost[position] = pack in missing
        file = self._cache(newest.database) / f"{newest.id}.hashes"
        if not is_hashes_file(file, newest):
            log.info("rebuilding the base from pack indexes", database=newest.database, store=self.url)
            hashes = self._gather_hashes(newest, page_map, is_lost)
            if not is_lost.any() and image_digest(hashes) != newest.image_digest:
                is_lost[1:] = True
            write_atomically(file, hashes.tobytes())
        return BaseSnapshot(newest, page_map, file, np.flatnonzero(is_lost[page_map]))

    def _gather_hashes(self, manifest: Manifest, page_map: PageMap, is_lost: npt.NDArray[np.bool_]) -> PageHashes:
        """The page hashes by the indexes of the packs; a pack whose index cannot be read is marked in `is_lost`."""
        hashes = np.zeros((manifest.page_count, 2), dtype=np.uint64)
        hashes[page_map == 0] = page_hashes(page_hash(bytes(manifest.page_size)))
        for position, index in self._indexes(manifest, is_lost):
            if index is None or not _place_hashes(index, position, page_map, hashes):
                is_lost[position] = True
        return hashes

    def _indexes(self, manifest: Manifest, is_lost: npt.NDArray[np.bool_]) -> Iterator[tuple[int, PackIndex | None]]:
        def read(position: int) -> PackIndex | None:
            pack = manifest.packs[position - 1]
            try:
                head = self.store.get_range(pack_key(manifest.database, pack), offset=0, length=index_bytes(pack.pages))
                index = parse_index(head)
            except (NoSuchObjectError, FormatError):
                return None
            return index if (index.pages, index.page_size) == (pack.pages, manifest.page_size) else None

        positions = [position for position in range(1, len(manifest.packs) + 1) if not is_lost[position]]
        with worker_threads(_READERS) as readers:
            yield from zip(positions, readers.map(read, positions), strict=True)

    def put_pack(self, database: str, file: Path, sha256: str) -> None:
        """Upload one pack. Never skipped because the name exists: that heals a damaged object."""
        self._create_once()
        digest = bytes.fromhex(sha256)
        self.store.put(str(PackKey(database, digest)), file, sha256=digest)

    def commit(self, manifest: Manifest, hashes: Path) -> None:
        """Make the snapshot exist. All its packs have been put; `hashes` is the file of its page hashes.

        Atomic: when this raises, the snapshot may exist only if the store did what it did not acknowledge. Raises
        `LostPacksError` when the store does not show a pack, which the next snapshot writes again.
        """
        self._create_once()
        missing = self.survey(manifest.database).missing(manifest.packs)
        if missing:
            raise LostPacksError(
                f"{self.url} does not show {len(missing)} of {len(manifest.packs)} packs of the snapshot, "
                f"such as {missing[0].sha256}",
                hint="the next snapshot writes them again; if this repeats, the store loses what it acknowledged",
            )
        content = encode_manifest(manifest)
        key = SnapshotKey(manifest.database, str(manifest.id))
        self.store.put(str(key), content, sha256=hashlib.sha256(content).digest())
        with self._losing_cache_is_fine():
            cache = self._cache(manifest.database)
            write_atomically(cache / f"{manifest.id}.json", content)
            link_atomically(hashes, cache / f"{manifest.id}.hashes")
            for older in cache.glob("*.hashes"):
                if older.stem != str(manifest.id):
                    older.unlink(missing_ok=True)

    def read_pack(self, database: str, pack: PackEntry) -> tuple[PackIndex, bytes]:
        """Index and page images of one pack, after its SHA-256 and zstd's checksum were found right.

        Raises `DamageError` when it is gone or is not what was written.
        """
        key = pack_key(database, pack)
        try:
            content = self.store.get(key, limit_bytes=MAX_PACK_BYTES)
            if hashlib.sha256(content).hexdigest() != pack.sha256:
                raise DamageError(f"pack {key} in {self.url} does not have the SHA-256 that names it")
            return decode_pack(content)
        except NoSuchObjectError as error:
            raise DamageError(f"pack {key} is missing from {self.url}") from error
        except FormatError as error:
            raise DamageError(f"pack {key} in {self.url} cannot be read: {error}") from error

    def _cache(self, database: str) -> Path:
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
            if not self._has_told_of_cache:
                log.info("nothing can be cached", reason=str(error))
            self._has_told_of_cache = True

    def _forget_removed(self, database: str, present: Iterable[SnapshotId]) -> None:
        names = {str(snapshot) for snapshot in present}
        with self._losing_cache_is_fine():
            for cached in self._cache(database).iterdir():
                if cached.stem not in names and cached.suffix in {".json", ".hashes"}:
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
    return str(PackKey(database, bytes.fromhex(pack.sha256)))


def snapshots_that_need(
    repository: Repository, database: str, pack: PackEntry
) -> tuple[list[SnapshotId], SnapshotId | None]:
    """The snapshots that name `pack`, oldest first, and the newest that does not: who suffers when it is damaged."""
    manifests = repository.history(database).manifests
    needing = [manifest.id for manifest in manifests if pack in manifest.packs]
    spared = [manifest.id for manifest in manifests if pack not in manifest.packs]
    return needing, spared[-1] if spared else None


def _snapshot_id(key: str) -> SnapshotId | None:
    parsed = SnapshotKey.parse(key)
    try:
        return SnapshotId(parsed.snapshot_id) if parsed else None
    except FormatError:
        return None  # digits in the right places that are no date: not ours


def _place_hashes(index: PackIndex, position: int, page_map: PageMap, hashes: PageHashes) -> bool:
    """Put the live hashes of one pack in their places; whether the index lists every page that it should."""
    indices = np.frombuffer(index.page_numbers, dtype="<u4").astype(np.int64) - 1
    within = indices < len(page_map)
    within[within] = page_map[indices[within]] == position
    hashes[indices[within]] = page_hashes(index.hashes)[within]
    return int(within.sum()) == int((page_map == position).sum())
