"""Manifests: the small objects that make snapshots exist. FORMAT.md, "Manifest", is the specification."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field, TypeAdapter

from backupd.format import FORMAT_VERSION, MAX_IMAGE_PAGES, is_page_size
from backupd.format.pack import MAX_PACK_BYTES, MAX_RAW_BYTES
from backupd.format.pagemap import PageMap, decode_page_map
from backupd.format.seal import Digest, Id, Name, Text, decode_sealed, encode_sealed

if TYPE_CHECKING:
    from backupd.format.ids import SnapshotId

MAX_MANIFEST_BYTES = 1 << 28
"""A reader's bound on one manifest. Real ones are a few kB."""


def _reject_odd_page_size(size: int) -> int:
    if not is_page_size(size):
        raise ValueError(f"{size} is not a page size")
    return size


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
    stored_bytes: Annotated[int, Field(ge=1, le=MAX_PACK_BYTES)]
    pages: Annotated[int, Field(ge=1, le=MAX_RAW_BYTES // 512)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What the database said of itself in the captured state. None where its schema could not be read."""

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
    """SHA-256 over the rows of sqlite_schema, by `backupd.capture.source.schema_digest`."""
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
class Manifest:
    """One snapshot. It stands alone: every pack that a restore needs is in `packs`."""

    format: Literal[1] = FORMAT_VERSION
    id: Id
    sequence: Sequence
    """That of the base + 1. The newest snapshot is the one with the highest; ids decide between equals."""
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
    image_digest: Digest
    packs: tuple[PackEntry, ...]
    page_map: str
    source: SourceFacts
    writer: Writer

    @property
    def image_bytes(self) -> int:
        """Size of the restored file."""
        return self.page_size * self.page_count

    @property
    def order(self) -> tuple[int, SnapshotId]:
        """Sorts snapshots of one database from oldest to newest."""
        return (self.sequence, self.id)

    def decode_map(self) -> PageMap:
        """The page map as an array. Raises `FormatError`."""
        return decode_page_map(
            self.page_map, page_size=self.page_size, page_count=self.page_count, packs=len(self.packs)
        )


_adapter = TypeAdapter(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as a sealed object."""
    return encode_sealed("manifest", _adapter, manifest)


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in `data`. Raises `FormatError` for every damage, `NewerFormatError` for a version above 1."""
    return decode_sealed("manifest", _adapter, data)
