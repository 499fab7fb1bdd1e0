"""Manifests: the small objects that make snapshots exist. FORMAT.md, "Manifest", is the specification."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter
from pydantic_core import PydanticSerializationError

from backupd.format import FORMAT_VERSION, MAX_IMAGE_PAGES, FormatError, is_page_size
from backupd.format.pack import MAX_ENCRYPTED_PACK_BYTES, MAX_PACK_BYTES, MAX_RAW_BYTES
from backupd.format.pagemap import PageMap, decode_page_map
from backupd.format.seal import Digest, Id, Name, Text, decode_sealed_as, encode_sealed, validated

if TYPE_CHECKING:
    from collections.abc import Callable

    from backupd.format.ids import SnapshotId

MAX_MANIFEST_BYTES = 1 << 28
"""A reader's bound on one manifest. Real ones are a few kB."""


def _reject_odd_page_size(size: int) -> int:
    if not is_page_size(size):
        raise ValueError(f"{size} is not a page size")
    return size


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
ALWAYS_COUNTED_SEQUENCES = 1 << 32
"""Sequences up to here count whenever the manifest was put: no writer takes so many snapshots."""


def highest_sequence(put_at: datetime, now: datetime) -> int:
    """As how much the sequence of a manifest counts at most that a listing shows as put at `put_at` (both aware).

    FORMAT.md, "The order of snapshots", says why: what is planted can always be followed by a higher one.
    """
    milliseconds = (put_at - _EPOCH) // timedelta(milliseconds=1) if put_at <= now else 0
    return ALWAYS_COUNTED_SEQUENCES + max(0, milliseconds)


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Sequence = Annotated[int, Field(ge=1, lt=1 << 53)]
Int32 = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]


class SnapshotKind(StrEnum):
    """Why a snapshot was taken. References such as `latest` mean regular ones only."""

    REGULAR = "regular"
    BEFORE_RESTORE = "before-restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackEntry:
    """One pack that a snapshot names: SHA-256 of the object (hex), its size, and how many pages it holds."""

    sha256: Digest
    stored_bytes: Annotated[int, Field(ge=1, le=MAX_ENCRYPTED_PACK_BYTES)]
    pages: Annotated[int, Field(ge=1, le=MAX_RAW_BYTES // 512)]
    encryption: Annotated[Literal["age"] | None, Field(exclude_if=lambda value: value is None)] = None
    """What the object is wrapped in; None when it is not."""

    def __post_init__(self) -> None:
        if self.stored_bytes > self.most_bytes:
            raise ValueError(f"a pack has at most {self.most_bytes} bytes")

    @property
    def most_bytes(self) -> int:
        """What a reader has to take at most for such a pack."""
        return MAX_PACK_BYTES if self.encryption is None else MAX_ENCRYPTED_PACK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What the database said of itself in the captured state. None: its schema could not be read, or not in time."""

    journal_mode: Text
    encoding: Text
    free_pages: Count
    schema_version: Int32
    user_version: Int32
    application_id: Int32
    sqlite_version: Text
    """The SQLite that wrote the file last, such as `3.45.1`, by its own header; empty for an empty database."""
    tables: tuple[str, ...] | None
    schema_digest: Digest | None
    """SHA-256 over the rows of sqlite_schema, by `backupd.capture.facts.schema_digest`."""
    alembic_revisions: tuple[str, ...] | None
    """Rows of `alembic_version`, sorted; None when there is no such table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Who took the snapshot of which file: what tells two writers in one place apart, and what restore gives back."""

    id: Text
    """Random, made once per state directory."""
    host: Text
    path: str
    uid: Count
    gid: Count
    mode: Annotated[int, Field(ge=0, le=0o7777)]
    backupd_version: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What anybody may know of a snapshot who can read the store."""

    format: Literal[1] = FORMAT_VERSION
    id: Id
    sequence: Sequence
    """That of the base + 1. The newest snapshot is the one with the highest; ids decide between equals.

    `read_history` gives it as it counts in the order: never more than `highest_sequence`.
    """
    base: Id | None
    database: Name
    kind: SnapshotKind
    tags: tuple[Text, ...]
    page_size: Annotated[int, AfterValidator(_reject_odd_page_size)]
    page_count: Annotated[int, Field(ge=0, le=MAX_IMAGE_PAGES)]
    changed_pages: Count
    """How many pages differ from the base."""
    stored_bytes: Count
    """Size of the packs that were written for this snapshot."""

    @property
    def image_bytes(self) -> int:
        """Size of the restored file."""
        return self.page_size * self.page_count

    @property
    def order(self) -> tuple[int, SnapshotId]:
        """Sorts snapshots of one database from oldest to newest."""
        return (self.sequence, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest(_Head):
    """One snapshot. It stands alone: every pack that a restore needs is in `packs`."""

    image_digest: Digest
    packs: tuple[PackEntry, ...]
    page_map: str
    source: SourceFacts
    writer: Writer

    @property
    def writer_id(self) -> str:
        """As in `SealedManifest`."""
        return self.writer.id

    def decode_map(self) -> PageMap:
        """The page map as an array. Raises `FormatError`."""
        return decode_page_map(
            self.page_map, page_size=self.page_size, page_count=self.page_count, packs=len(self.packs)
        )


def _decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _reject_odd_base64(text: str) -> str:
    try:
        _decoded(text)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivatePart:
    """The private part of a manifest as the store has it: SHA-256 of its JSON, and that encrypted, in base64."""

    sha256: Digest
    age: Annotated[str, AfterValidator(_reject_odd_base64)]

    @property
    def ciphertext(self) -> bytes:
        """The age file."""
        return _decoded(self.age)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedManifest(_Head):
    """One snapshot whose manifest is encrypted, without what `open_manifest` finds in the private part."""

    packs: tuple[PackEntry, ...]
    writer_id: Text
    """Random, made once per state directory."""
    private: PrivatePart


AnyManifest = Manifest | SealedManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Private:
    """What only who has an identity may know of a snapshot."""

    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]
    """Random: without it, whoever guesses all the rest right could tell by the SHA-256."""
    image_digest: Digest
    page_map: str
    source: SourceFacts
    writer: Writer


_plain = TypeAdapter(Manifest)
_sealed = TypeAdapter(SealedManifest)
_private = TypeAdapter(_Private)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as a sealed object that anybody can read."""
    return encode_sealed("manifest", _plain, manifest)


def manifest_values(manifest: AnyManifest) -> dict[str, Any]:
    """Every value of a manifest as JSON has it; of one that cannot be read here, without the private part."""
    if isinstance(manifest, SealedManifest):
        values: dict[str, Any] = _sealed.dump_python(manifest, mode="json", exclude={"private"})
    else:
        values = _plain.dump_python(manifest, mode="json")
    return values


def encrypt_manifest(manifest: Manifest, encrypt: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
    """The manifest as a sealed object with a private part, and that part as `open_manifest` takes it.

    Raises `FormatError` for what is no JSON.
    """
    private = _Private(
        nonce=secrets.token_hex(16), **_values(manifest, ("image_digest", "page_map", "source", "writer"))
    )
    try:
        plaintext = _private.dump_json(private)
    except PydanticSerializationError as error:
        raise FormatError(f"private part: {error}") from error
    sealed = SealedManifest(
        **_values(manifest, _HEAD),
        packs=manifest.packs,
        writer_id=manifest.writer.id,
        private=PrivatePart(
            sha256=hashlib.sha256(plaintext).hexdigest(), age=base64.b64encode(encrypt(plaintext)).decode("ascii")
        ),
    )
    return encode_sealed("manifest", _sealed, sealed), plaintext


def decode_manifest(data: bytes) -> AnyManifest:
    """The manifest in `data`. Raises `FormatError` for every damage, `NewerFormatError` for a version above 1."""
    return decode_sealed_as("manifest", _adapter_for, data)


def _adapter_for(values: dict[str, Any]) -> TypeAdapter[AnyManifest]:
    adapter: TypeAdapter[Any] = _sealed if "private" in values else _plain
    return adapter


def open_manifest(sealed: SealedManifest, plaintext: bytes) -> Manifest:
    """The whole manifest: `plaintext` is what the private part's age file holds. Raises `FormatError`."""
    if hashlib.sha256(plaintext).hexdigest() != sealed.private.sha256:
        raise FormatError("the private part is not the one that belongs to this manifest")
    try:
        private = validated(plaintext, lambda _: _private)
    except FormatError as error:
        raise FormatError(f"private part: {error}") from error
    return Manifest(
        **_values(sealed, _HEAD),
        packs=sealed.packs,
        **_values(private, ("image_digest", "page_map", "source", "writer")),
    )


_HEAD = tuple(field.name for field in fields(_Head))


def _values(value: object, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}
