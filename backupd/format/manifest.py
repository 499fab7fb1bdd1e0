"""Manifests: the small objects that make snapshots exist. FORMAT.md, "Manifest", is the specification."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from backupd.format import FORMAT_VERSION, MAX_IMAGE_PAGES, FormatError, NewerFormatError, is_page_size
from backupd.format.ids import SnapshotId
from backupd.format.pack import MAX_PACK_BYTES, MAX_RAW_BYTES
from backupd.format.pagemap import PageMap, decode_page_map

MAX_MANIFEST_BYTES = 1 << 28
"""A reader's bound on one manifest. Real ones are a few kB."""

_SEAL = re.compile(rb'\{"sha256":"([0-9a-f]{64})","manifest":')
_END = b"}\n"


def _reject_odd_page_size(size: int) -> int:
    if not is_page_size(size):
        raise ValueError(f"{size} is not a page size")
    return size


Id = Annotated[
    SnapshotId,
    PlainValidator(lambda value: value if isinstance(value, SnapshotId) else SnapshotId(str(value))),
    PlainSerializer(str),
]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Int32 = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]
Text = Annotated[str, Field(max_length=4096)]


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
    sequence: Annotated[int, Field(ge=1, lt=1 << 53)]
    """That of the base + 1. The newest snapshot is the one with the highest; ids decide between equals."""
    base: Id | None
    database: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\z")]
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
    """The manifest as an object: JSON, one key a line, sealed with the SHA-256 of its own bytes."""
    values: dict[str, Any] = _adapter.dump_python(manifest, mode="json")
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    body = ("{\n" + ",\n".join(lines) + "\n}").encode("ascii")
    return b'{"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'","manifest":' + body + _END


def decode_manifest(data: bytes) -> Manifest:
    """The manifest in `data`. Raises `FormatError` for every damage, `NewerFormatError` for a version above 1."""
    seal = _SEAL.match(data)
    if seal is None or not data.endswith(_END):
        raise FormatError("the object is not a sealed manifest")
    body = data[seal.end() : -len(_END)]
    if hashlib.sha256(body).hexdigest().encode() != seal[1]:
        raise FormatError("the manifest does not have the SHA-256 that it is sealed with")
    try:
        values = json.loads(body.decode(), object_pairs_hook=_reject_repeated_keys, parse_constant=_reject_constant)
        _reject_other_version(values.get("format") if isinstance(values, dict) else None)
        return _adapter.validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise FormatError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, FormatError) else FormatError(f"not JSON: {error}") from error


def _reject_other_version(version: object) -> None:
    # By exact type: to a validator, as to Python, `true` and `1.0` equal 1.
    if type(version) is not int or version < 1:
        raise FormatError("format: the manifest does not say its version")
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"the manifest is of format version {version}")


def _reject_constant(name: str) -> None:
    raise FormatError(f"not JSON: {name} is no number")


def _reject_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise FormatError("a key stands twice in one object")
    return values
