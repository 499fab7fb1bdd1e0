"""Manifests: the small objects that make snapshots exist. FORMAT.md, "Manifest", is the specification."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from backupd.format import MAX_IMAGE_PAGES, FormatError, SnapshotId, is_page_size
from backupd.format.pack import (
    MAX_ENCRYPTED_PACK_BYTES,
    MAX_PACK_BYTES,
    MAX_RAW_BYTES,
    is_index_length,
)
from backupd.format.pagemap import decode_page_map
from backupd.format.seal import Digest, Name, Text, Value, decode_sealed_as, encode_sealed, validated, values_of
from backupd.format.segment import MAX_COMMIT_NUMBER

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.format.pagemap import PageMap


MAX_MANIFEST_BYTES = 1 << 28
"""A reader's limit on one manifest. Usual ones have a few kB."""


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ALWAYS_COUNTED_SEQUENCES = 1 << 32
"""Sequences up to this one always count as they are: no writer takes so many snapshots."""


def highest_sequence(put_at: datetime, now: datetime) -> int:
    """Return the highest sequence that counts for a manifest that a listing shows as put at `put_at` (both aware).

    A planted manifest can so always be followed by a higher one: see FORMAT.md, "The order of snapshots".
    """
    milliseconds = (put_at - _EPOCH) // timedelta(milliseconds=1) if put_at <= now else 0
    return ALWAYS_COUNTED_SEQUENCES + max(0, milliseconds)


Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Sequence = Annotated[int, Meta(ge=1, lt=1 << 53)]
Int32 = Annotated[int, Meta(ge=-(1 << 31), lt=1 << 31)]


class SnapshotKind(StrEnum):
    """Why a snapshot was taken. References such as `latest` name regular ones only."""

    REGULAR = "regular"
    BEFORE_RESTORE = "before-restore"


class PackEntry(Value, frozen=True):
    """A pack that a snapshot names: SHA-256 of the object (hex), its size, and its number of pages.

    With `index_bytes` and `index_hash`, the index is read alone and proven. An encrypted pack has neither: they would
    confirm a guess of its content.
    """

    sha256: Digest
    stored_bytes: Annotated[int, Meta(ge=1, le=MAX_ENCRYPTED_PACK_BYTES)]
    pages: Annotated[int, Meta(ge=1, le=MAX_RAW_BYTES // 512)]
    index_bytes: int | None = None
    """The length of the index: all before the first frame."""
    index_hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")] | None = None
    """The digest of the index, as `backupd.format.pack.index_hash` gives it."""
    encryption: Literal["age"] | None = None
    """The encryption of the object; None when there is none."""

    def __post_init__(self) -> None:
        if self.stored_bytes > self.most_bytes:
            raise ValueError(f"a pack has at most {self.most_bytes} bytes")
        if self.encryption is not None:
            if (self.index_bytes, self.index_hash) != (None, None):
                raise ValueError("an encrypted pack shows neither the length nor the digest of its index")
        elif self.index_bytes is None or self.index_hash is None:
            raise ValueError("a pack needs the length and the digest of its index")
        elif not is_index_length(self.index_bytes, self.pages):
            raise ValueError(f"the index of {self.pages} pages cannot have {self.index_bytes} bytes")

    @property
    def most_bytes(self) -> int:
        """A reader's limit on such a pack."""
        return MAX_PACK_BYTES if self.encryption is None else MAX_ENCRYPTED_PACK_BYTES


class SourceFacts(Value, frozen=True):
    """Properties of the database in the captured state. None where its schema could not be read in time."""

    journal_mode: Text
    encoding: Text
    free_pages: Count
    schema_version: Int32
    user_version: Int32
    application_id: Int32
    sqlite_version: Text
    """The version of SQLite that wrote the file last, such as `3.45.1`; empty for an empty database."""
    tables: tuple[str, ...] | None
    schema_digest: Digest | None
    """SHA-256 over the rows of sqlite_schema, by `backupd.capture.facts.schema_digest`."""
    alembic_revisions: tuple[str, ...] | None
    """Rows of `alembic_version`, sorted; None when there is no such table."""


class Writer(Value, frozen=True):
    """The installation that took the snapshot, and the file it took it of; a restore gives back owner and mode."""

    id: Text
    """Random, made once per state directory."""
    host: Text
    path: str
    uid: Count
    gid: Count
    mode: Annotated[int, Meta(ge=0, le=0o7777)]
    backupd_version: Text


class Replayed(Value, frozen=True):
    """The commit of a recovery window after which the image of a snapshot is the state: it was built from the log."""

    window: SnapshotId
    commit: Annotated[int, Meta(ge=1, le=MAX_COMMIT_NUMBER)]
    """The number of the commit in the window."""


class _Head(Value, frozen=True, kw_only=True):
    """The part of a manifest that is never encrypted."""

    id: SnapshotId
    sequence: Sequence
    """One more than that of the base. The newest snapshot has the highest one; ids decide between equals.

    `read_history` limits it to `highest_sequence`.
    """
    base: SnapshotId | None
    database: Name
    kind: SnapshotKind
    tags: tuple[Text, ...]
    page_size: int
    page_count: Annotated[int, Meta(ge=0, le=MAX_IMAGE_PAGES)]
    changed_pages: Count
    """Number of pages that differ from the base."""
    stored_bytes: Count
    """Total size of the packs that were written for this snapshot."""
    replayed: Replayed | None = None
    """Where in the log the image comes from: the base and commits after it. None when the database was read."""

    @property
    def image_bytes(self) -> int:
        """Size of the restored file."""
        return self.page_size * self.page_count

    @property
    def order(self) -> tuple[int, SnapshotId]:
        """Sort key of the snapshots of one database, from oldest to newest."""
        return (self.sequence, self.id)


class Summary(_Head, frozen=True, kw_only=True):
    """All that a manifest says but the page map: what is known of a snapshot without reading it again."""

    image_digest: Digest
    packs: tuple[PackEntry, ...]
    source: SourceFacts
    writer: Writer

    @property
    def writer_id(self) -> str:
        """Random, made once per state directory."""
        return self.writer.id


class Manifest(Summary, frozen=True, kw_only=True):
    """A snapshot. It does not depend on others: `packs` has every pack that a restore needs."""

    page_map: str

    def decode_map(self) -> PageMap:
        """Return the page map. Raises `FormatError`."""
        return decode_page_map(
            self.page_map, page_size=self.page_size, page_count=self.page_count, packs=len(self.packs)
        )


class PrivatePart(Value, frozen=True):
    """The private part of a manifest as it is stored: the SHA-256 of its JSON, and the encrypted JSON in base64."""

    sha256: Digest
    age: str

    def __post_init__(self) -> None:
        try:
            _ = self.ciphertext
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from error

    @property
    def ciphertext(self) -> bytes:
        """The age file."""
        return base64.b64decode(self.age, validate=True)


class SealedSummary(_Head, frozen=True, kw_only=True):
    """All that an encrypted manifest says to those who have no identity."""

    packs: tuple[PackEntry, ...]
    writer_id: Text
    """Random, made once per state directory."""


class SealedManifest(SealedSummary, frozen=True, kw_only=True):
    """A snapshot with an encrypted private part, which `open_manifest` adds to make a `Manifest`."""

    private: PrivatePart


AnyManifest = Manifest | SealedManifest
AnySummary = Summary | SealedSummary


class _Private(Value, frozen=True):
    """The part of a manifest that encryption hides from all who have no identity."""

    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    """Random: without it, the SHA-256 would confirm a correct guess of all the rest."""
    image_digest: Digest
    page_map: str
    source: SourceFacts
    writer: Writer


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest as a sealed object without encryption."""
    return encode_sealed("manifest", manifest, last=("source", "writer"))


def manifest_values(manifest: AnyManifest) -> dict[str, Any]:
    """Return all values of a manifest as JSON has them, without a private part that is still encrypted."""
    return {key: value for key, value in values_of(manifest).items() if key != "private"}


def encrypt_manifest(manifest: Manifest, encrypt: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
    """Encode a manifest as a sealed object with a private part; return that part as well, for `open_manifest`.

    Raises `FormatError` for values that JSON cannot represent.
    """
    private = _Private(
        nonce=secrets.token_hex(16), **_values(manifest, ("image_digest", "page_map", "source", "writer"))
    )
    try:
        plaintext = msgspec.json.encode(private)
    except UnicodeEncodeError as error:
        raise FormatError(f"private part: {error}") from error
    sealed = SealedManifest(
        **_values(manifest, _HEAD),
        packs=manifest.packs,
        writer_id=manifest.writer.id,
        private=PrivatePart(
            sha256=hashlib.sha256(plaintext).hexdigest(), age=base64.b64encode(encrypt(plaintext)).decode("ascii")
        ),
    )
    return encode_sealed("manifest", sealed), plaintext


def decode_manifest(data: bytes) -> AnyManifest:
    """Decode a manifest. Raises `FormatError` for every damage, `NewerFormatError` for a version above 1."""
    manifest = decode_sealed_as("manifest", _kind_of, data)
    if not is_page_size(manifest.page_size):
        raise FormatError(f"page_size: {manifest.page_size} is not a page size")
    return manifest


def _kind_of(values: dict[str, Any]) -> type[AnyManifest]:
    return SealedManifest if "private" in values else Manifest


def open_manifest(sealed: SealedManifest, plaintext: bytes) -> Manifest:
    """Return the whole manifest, with the decrypted private part in `plaintext`. Raises `FormatError`."""
    if hashlib.sha256(plaintext).hexdigest() != sealed.private.sha256:
        raise FormatError("the private part does not belong to this manifest")
    try:
        private = validated(plaintext, lambda _: _Private)
    except FormatError as error:
        raise FormatError(f"private part: {error}") from error
    return Manifest(
        **_values(sealed, _HEAD),
        packs=sealed.packs,
        **_values(private, ("image_digest", "page_map", "source", "writer")),
    )


def summary_of(manifest: AnySummary) -> AnySummary:
    """Return what `manifest` says without its page map and its private part."""
    kind = Summary if isinstance(manifest, Summary) else SealedSummary
    return manifest if type(manifest) is kind else kind(**_values(manifest, kind.__struct_fields__))


_HEAD = _Head.__struct_fields__


def _values(value: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}
