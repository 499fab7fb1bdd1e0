"""One database in one repository: the object through which its snapshots are read and written."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from backupd.errors import (
    BackupdError,
    DamagedSegmentError,
    DamageError,
    NoSuchObjectError,
    StoreUnavailableError,
    UnreadableObjectError,
    UnsupportedFormatError,
)
from backupd.format import FormatError, NewerFormatError
from backupd.format.manifest import MAX_MANIFEST_BYTES, Manifest, SealedManifest, decode_manifest, open_manifest
from backupd.format.pack import decode_frame, index_hash, parse_index, parse_pack
from backupd.format.records import MAX_RECORD_BYTES
from backupd.format.segment import MAX_ENCRYPTED_SEGMENT_BYTES, MAX_SEGMENT_BYTES, decode_segment
from backupd.repository import commit, history, proofs
from backupd.repository.commit import require_readable
from backupd.repository.history import NOTHING_SEEN, DamagedManifest, Listing
from backupd.state.catalog import Catalog
from backupd.store import canonical_url, key_of
from backupd.store.keys import (
    PackKey,
    RecordKey,
    SegmentKey,
    SnapshotKey,
    clock_key,
    database_prefix,
    packs_prefix,
    segments_prefix,
    sweeps_prefix,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, PackEntry
    from backupd.format.pack import Frame, PackIndex
    from backupd.format.pagemap import PageMap
    from backupd.format.segment import Segment
    from backupd.repository import Repository
    from backupd.repository.history import History, Holdings, SeenHistory, StoredSegment, Trash
    from backupd.repository.proofs import Proofs
    from backupd.store import StoredObject
    from backupd.store.keys import RecordKind

_T = TypeVar("_T")
_CLOCK_CONTENT = b"{}\n"
_NOTHING: Mapping[str, StoredObject] = {}


class Archive:
    """One database in one repository: its snapshots, what was removed, and what checks have found.

    Methods that ask the store raise the errors of `Store`. Without a `Listing`, a method makes the listing it needs.
    """

    def __init__(self, repository: Repository, database: str) -> None:
        self.repository = repository
        self.database = database
        self.catalog = Catalog(repository.state.database, self._local_key, self._local_directory, self._report_lost)

    @property
    def url(self) -> str:
        """The URL of the store, for messages."""
        return self.repository.url

    @contextmanager
    def lock(self, *, timeout: float) -> Iterator[None]:
        """Keep out other runs that share the state directory, waiting at most `timeout` seconds. Raises `BusyError`."""
        with self.repository.state.lock(f"{self.database} in {canonical_url(self.url)}", timeout=timeout):
            yield

    def listing(self, seen: Mapping[str, StoredObject] = _NOTHING) -> Listing:
        """List everything that the store has of this database. What was `seen` by its key counts as it was."""
        return Listing.of(self.database, self._survey(seen), self.repository.store.look)

    def listing_up_to_packs(self) -> Listing:
        """List the deletions and, after them, the packs, and nothing that comes after these in a listing."""
        packs = packs_prefix(self.database)
        # A directory is read as a whole, also the one after the packs: nothing in it needs to be looked at.
        shown = self.repository.store.survey(database_prefix(self.database), is_known=lambda key: key > packs)
        shown = takewhile(lambda each: key_of(each) < packs or key_of(each).startswith(packs), shown)
        return Listing.of(self.database, shown, self.repository.store.look)

    def _survey(self, seen: Mapping[str, StoredObject] = _NOTHING) -> Iterator[StoredObject | str]:
        packs, prefix = packs_prefix(self.database), database_prefix(self.database)
        shown = self.repository.store.survey(prefix, is_known=lambda key: key in seen or key.startswith(packs))
        return (seen.get(each, each) if isinstance(each, str) else each for each in shown) if seen else shown

    def segments(self) -> Listing:
        """List the segments that the store has of this database, and nothing else."""
        return Listing.of(self.database, self.repository.store.list(segments_prefix(self.database)))

    def shows(self, snapshot_id: str) -> bool:
        """Whether the store has the manifest of this snapshot now, and a reader accepts it. One request."""
        key = str(SnapshotKey(self.database, snapshot_id))
        try:
            require_readable(key, self.repository.store.get(key, limit_bytes=MAX_MANIFEST_BYTES), url=self.url)
        except (NoSuchObjectError, DamageError, UnreadableObjectError):
            return False
        return True

    def history(self, listing: Listing | None = None) -> History:
        """Read all manifests, from the catalog where that is safe; those that vanish meanwhile are left out.

        Raises `NoSuchObjectError` when the store is no repository.
        """
        return history.read_history(self, listing)

    def trash(self, listing: Listing) -> Trash:
        """Read all trash entries that `listing` shows. Raises `UnsupportedFormatError`."""
        return history.read_trash(self, listing)

    def holdings(self, seen: SeenHistory = NOTHING_SEEN) -> Holdings:
        """List the database, and read all manifests and trash entries. Raises `UnsupportedFormatError`.

        Manifests that were `seen` a moment ago, and are still there, are not looked at again.
        """
        return history.read_holdings(self, seen)

    def proofs(self, listing: Listing | None = None) -> Proofs:
        """Read what checks of the snapshots have found, each record from the store once and then from the catalog."""
        return proofs.read_proofs(self, listing)

    def manifest(self, snapshot_id: SnapshotId) -> AnyManifest:
        """Read one manifest from the store. Raises `DamageError`, `UnsupportedFormatError`, `NoSuchObjectError`."""
        found = self.load_manifest(snapshot_id)
        if isinstance(found, DamagedManifest):
            hint = f"restore another snapshot; backupd list {self.database} shows them"
            raise found.error(self.url, hint=hint)
        return found

    def load_manifest(self, snapshot_id: SnapshotId) -> AnyManifest | DamagedManifest:
        """Read one manifest from the store. Raises `NoSuchObjectError`."""
        try:
            return self._opened_if_possible(self._get_manifest(snapshot_id)[1])
        except FormatError as error:
            is_newer = isinstance(error, NewerFormatError)
            return DamagedManifest(self.database, snapshot_id, str(error), is_newer=is_newer)

    def manifest_as_stored(self, snapshot_id: SnapshotId) -> bytes:
        """Read the bytes of a manifest and check them. Raises `DamageError` and `NoSuchObjectError`."""
        try:
            return self._get_manifest(snapshot_id)[0]
        except FormatError as error:
            raise DamageError(
                f"the manifest of snapshot {snapshot_id} in {self.url} is damaged: {error}",
                hint=f"it was left where it is; backupd list {self.database} shows what there is",
            ) from error

    def _get_manifest(self, snapshot_id: SnapshotId) -> tuple[bytes, AnyManifest]:
        content = self.repository.store.get(self._manifest_key(snapshot_id), limit_bytes=MAX_MANIFEST_BYTES)
        found = decode_manifest(content)
        history.require_own(found, self.database, snapshot_id)
        return content, found

    def _opened_if_possible(self, found: AnyManifest) -> AnyManifest:
        """Give `found` its private part, if that is in the catalog or there is a key for it. Raises `FormatError`."""
        if isinstance(found, Manifest):
            return found
        if private := self.catalog.private_part(found.id):
            with suppress(FormatError):
                return open_manifest(found, private)
        if not self.repository.encryption.can_decrypt:
            return found
        try:
            private = self._decrypted(found)
        except BackupdError as error:
            # Other snapshots may be for other keys; a caller that needs this one in full gets the error.
            self.repository.report_once("what is encrypted cannot be read", reason=error.message)
            return found
        opened = open_manifest(found, private)
        self.catalog.keep_private_part(found.id, private)
        return opened

    def opened(self, manifest: AnyManifest) -> Manifest:
        """Give `manifest` its private part. Raises `IdentityNeededError` when that cannot be decrypted here."""
        return open_manifest(manifest, self._decrypted(manifest)) if isinstance(manifest, SealedManifest) else manifest

    def _decrypted(self, sealed: SealedManifest) -> bytes:
        what = f"the manifest of snapshot {sealed.id} of {sealed.database} in {self.url}"
        return self.repository.encryption.decrypt(sealed.private.ciphertext, what=what)

    def page_map(self, manifest: Manifest) -> PageMap:
        """Decode the page map of `manifest`. Raises `DamageError`."""
        try:
            return manifest.decode_map()
        except FormatError as error:
            raise DamageError(
                f"the manifest of snapshot {manifest.id} in {self.url} is damaged: {error}",
                hint=f"restore another snapshot; backupd list {manifest.database} shows them",
            ) from error

    def pack_key(self, pack: PackEntry) -> str:
        """The key under which the store holds `pack`."""
        return str(PackKey(self.database, bytes.fromhex(pack.sha256), is_encrypted=pack.encryption is not None))

    def pack(self, pack: PackEntry) -> StoredPack:
        """Read `pack`, and check its SHA-256 and its index. Its frames are checked when they are decompressed.

        Raises `DamageError` when it is missing or is not what was written, and `IdentityNeededError` when it cannot be
        decrypted here; its SHA-256 is right then.
        """
        name = f"{self.pack_key(pack)} in {self.url}"
        content = self._of_pack(pack, lambda key: self.repository.store.get(key, limit_bytes=pack.most_bytes))
        if hashlib.sha256(content).hexdigest() != pack.sha256:
            raise DamageError(f"pack {name} does not have the SHA-256 that names it")
        if pack.encryption is not None:
            content = self.repository.encryption.decrypt(content, what=f"pack {name}")
        with _damage_of(f"pack {name}"):
            index = parse_pack(content)
            _reject_other_index(index, pack)
        return StoredPack(name, index, memoryview(content))

    def index(self, pack: PackEntry) -> PackIndex:
        """Read the index of `pack` alone, and prove it by the manifest; of an encrypted pack, read all.

        Raises what `pack` raises.
        """
        if pack.index_bytes is None:
            return self.pack(pack).index
        length = pack.index_bytes
        content = self._of_pack(pack, lambda key: self.repository.store.get_range(key, offset=0, length=length))
        with _damage_of(f"pack {self.pack_key(pack)} in {self.url}"):
            if index_hash(content) != pack.index_hash:
                raise FormatError("its index does not have the digest in the manifest")
            index = parse_index(content)
            _reject_other_index(index, pack)
        return index

    def images(self, pack: PackEntry, index: PackIndex, frame: Frame) -> bytes:
        """Read one frame of `pack`, which is not encrypted, by its proven `index`: the images of its pages.

        No hash of a page is checked. Raises `DamageError` when the pack is missing, or the frame cannot be read.
        """
        content = self._of_pack(
            pack, lambda key: self.repository.store.get_range(key, offset=frame.offset, length=frame.length)
        )
        return StoredPack(f"{self.pack_key(pack)} in {self.url}", index, memoryview(content), frame.offset).images(
            frame
        )

    def _of_pack(self, pack: PackEntry, read: Callable[[str], bytes]) -> bytes:
        """Return what `read` returns for the key of `pack`. Raises `DamageError` when there is no such object."""
        key = self.pack_key(pack)
        try:
            return read(key)
        except NoSuchObjectError as error:
            raise DamageError(f"pack {key} is missing from {self.url}") from error

    def segment(self, stored: StoredSegment) -> Segment:
        """Read a segment, and check its SHA-256 and that it is the one that its key names.

        Raises `DamagedSegmentError` when it is missing or is not what was written, and `IdentityNeededError` when it
        cannot be decrypted here; its SHA-256 is right then.
        """
        key = stored.key
        name = f"segment {key} in {self.url}"
        limit = MAX_ENCRYPTED_SEGMENT_BYTES if key.is_encrypted else MAX_SEGMENT_BYTES
        try:
            content = self.repository.store.get(str(key), limit_bytes=limit)
        except NoSuchObjectError as error:
            raise DamagedSegmentError(f"segment {key} is missing from {self.url}") from error
        if hashlib.sha256(content).digest() != key.sha256:
            raise DamagedSegmentError(f"{name} does not have the SHA-256 that names it")
        if key.is_encrypted:
            content = self.repository.encryption.decrypt(content, what=name)
        try:
            segment = decode_segment(content)
        except FormatError as error:
            raise DamagedSegmentError(f"{name} cannot be read: {error}") from error
        if _segment_key(segment, key.sha256, is_encrypted=key.is_encrypted) != key:
            raise DamagedSegmentError(f"{name} cannot be read: it is not the one that its key names")
        return segment

    def record(self, stored: StoredObject, decode: Callable[[bytes], _T], *, limit_bytes: int = MAX_RECORD_BYTES) -> _T:
        """Decode the record `stored`, from the catalog when that has it as it was listed.

        Raises `FormatError`, `NoSuchObjectError` and `UnsupportedFormatError`.
        """
        content = self.catalog.record(stored)
        if content is not None:
            with suppress(FormatError):
                return decode(content)
        content = self.repository.store.get(stored.key, limit_bytes=limit_bytes)
        try:
            value = decode(content)
        except NewerFormatError as error:
            raise UnsupportedFormatError(
                f"{stored.key} in {self.url} was written by a newer backupd: {error}",
                hint="install the newer version; nothing was changed",
            ) from error
        self.catalog.keep_record(stored, content)
        return value

    def forget_records(self, listing: Listing) -> None:
        """Drop what the catalog has of records that `listing` does not show."""
        kinds = (listing.trash, listing.drills, listing.findings, listing.continuity)
        self.catalog.drop_records({stored.key for kind in kinds for stored in kind.values()})

    def store_time(self) -> datetime:
        """Ask for the present time by the store's clock, by putting an object and listing it."""
        key = clock_key(self.database)
        self.repository.put_object(key, _CLOCK_CONTENT)
        times = {stored.key: stored.modified_at for stored in self.repository.store.list(sweeps_prefix(self.database))}
        if key not in times:
            raise StoreUnavailableError(
                f"{self.url} took {key}, and does not show it",
                hint="try again; if this repeats, the store loses what it acknowledges",
            )
        return times[key]

    def put_pack(self, pack: PackEntry, file: Path) -> None:
        """Upload one pack. Never skipped because its name exists: that heals a damaged object."""
        self.repository.ensure_created()
        self.repository.store.put(self.pack_key(pack), file, sha256=bytes.fromhex(pack.sha256))

    def put_segment(self, content: bytes) -> SegmentKey:
        """Put one segment, as `encode_segment` made it, in one request; return its key.

        May be repeated: it has the same key again, unless it is encrypted, which gives other bytes each time. Readers
        take both. Raises `UnreadableObjectError`, and puts nothing, when it is not a segment of this database.
        """
        with commit.refused(f"a segment of {self.database}", self.url):
            segment = decode_segment(content)
            if segment.head.database != self.database:
                raise FormatError(f"it is one of {segment.head.database}")
        self.repository.ensure_created()
        encryption = self.repository.encryption
        stored = encryption.encrypt(content) if encryption.is_on else content
        sha256 = hashlib.sha256(stored).digest()
        key = _segment_key(segment, sha256, is_encrypted=encryption.is_on)
        self.repository.store.put(str(key), stored, sha256=sha256)
        return key

    def commit(self, manifest: Manifest, hashes: Path) -> None:
        """Make the snapshot exist, after all its packs have been put; `hashes` is the file of its page hashes.

        Atomic, as `commit.commit` describes. Raises `LostPacksError`, `LostManifestError`, `UnreadableObjectError`.
        """
        commit.commit(self, manifest, hashes)

    def publish(self, manifest: AnyManifest, content: bytes) -> None:
        """Put the bytes of a manifest, after a listing has shown all its packs and no sweep that deletes one.

        Raises `LostPacksError`.
        """
        commit.publish(self, manifest, content)

    def delete_segment(self, stored: StoredSegment) -> None:
        """Delete one segment; nothing happens when it does not exist."""
        self.repository.store.delete(str(stored.key))

    def put_record(self, kind: RecordKind, record_id: SnapshotId, content: bytes) -> None:
        """Put one record. Raises `UnreadableObjectError`."""
        self.repository.put_object(str(RecordKey(kind, self.database, str(record_id))), content)

    def delete_record(self, kind: RecordKind, record_id: SnapshotId) -> None:
        """Delete one record; nothing happens when it does not exist."""
        self.repository.store.delete(str(RecordKey(kind, self.database, str(record_id))))

    def delete_manifest(self, snapshot_id: SnapshotId) -> None:
        """Delete the manifest of a snapshot, which then exists only by its trash entry."""
        self.repository.store.delete(self._manifest_key(snapshot_id))

    def delete_listed(self, stored: StoredObject) -> None:
        """Delete a pack or a record that a listing has shown."""
        self.repository.store.delete(stored.key)

    def _manifest_key(self, snapshot_id: SnapshotId) -> str:
        return str(SnapshotKey(self.database, str(snapshot_id)))

    def _local_key(self) -> tuple[str, str]:
        return self.repository.local_key(), self.database

    def _local_directory(self) -> Path:
        return self.repository.state.cache(*self._local_key())

    def _report_lost(self, reason: str) -> None:
        self.repository.report_once("nothing can be cached", reason=reason)


def _segment_key(segment: Segment, sha256: bytes, *, is_encrypted: bool) -> SegmentKey:
    seen_at = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=segment.commits[-1].seen_at_ms)
    head = segment.head
    return SegmentKey(head.database, str(head.window), head.first, head.last, seen_at, sha256, is_encrypted)


@dataclass(frozen=True, slots=True)
class StoredPack:
    """A pack that was read: its index, and its bytes, of which each frame is decompressed when it is needed.

    `name` is its key and its store, for messages. `offset` is where `content` begins in it.
    """

    name: str
    index: PackIndex
    content: memoryview
    offset: int = 0

    def images(self, frame: Frame) -> bytes:
        """Return the page images in `frame`, one of those of the index. Raises `DamageError`."""
        start = frame.offset - self.offset
        with _damage_of(f"pack {self.name}"):
            return decode_frame(self.index, frame, self.content[start : start + frame.length])


@contextmanager
def _damage_of(pack: str) -> Iterator[None]:
    """Raise a `FormatError` as damage of `pack`."""
    try:
        yield
    except FormatError as error:
        raise DamageError(f"{pack} cannot be read: {error}") from error


def _reject_other_index(index: PackIndex, pack: PackEntry) -> None:
    """Raise `FormatError` unless `index` is the one that the manifest describes in `pack`."""
    if index.pages != pack.pages:
        raise FormatError(f"it has {index.pages} pages, and the manifest says {pack.pages}")
    if pack.encryption is not None:
        return
    if (len(index.encoded), index_hash(index.encoded)) != (pack.index_bytes, pack.index_hash):
        raise FormatError("its index is not the one in the manifest")
    if index.pack_bytes != pack.stored_bytes:
        raise FormatError(f"its frames end at {index.pack_bytes}, and the manifest says {pack.stored_bytes} bytes")
