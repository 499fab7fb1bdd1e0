"""The small sealed objects beside the manifests: what was removed, what has shrunk, what a sweep found.

FORMAT.md, "Records", is the specification.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from backupd.format import FORMAT_VERSION, FormatError, NewerFormatError
from backupd.format.manifest import AnyManifest, Sequence, decode_manifest
from backupd.format.seal import Digest, Id, Name, Text, decode_sealed, encode_sealed

if TYPE_CHECKING:
    from backupd.format.ids import SnapshotId

MAX_RECORD_BYTES = 1 << 24
"""A reader's bound on one record that is not a trash entry."""

MAX_TRASH_BYTES = 1 << 30
"""A reader's bound on one trash entry: the largest manifest, with escapes."""

MAX_RECORD_PACKS = 100_000

DELETION_ENDS_AFTER = timedelta(minutes=30)
"""A sweep asks for no more deletions when its record of them is older than this."""

DELETION_COUNTS_FOR = timedelta(hours=1)
"""A record of deletions says nothing about what was put this long after it."""

_MOMENT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z")


def _format_moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def _parse_moment(value: object) -> datetime:
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise ValueError(f"{value!r} is not a time")
    return datetime.fromisoformat(value)


Moment = Annotated[datetime, PlainValidator(_parse_moment), PlainSerializer(_format_moment)]


class DrillOutcome(StrEnum):
    """What a test restore found."""

    PROVEN = "proven"
    """Every byte is what was captured, and SQLite found the database sound."""
    INTACT = "intact"
    """Every stored byte is what was written; nothing was decrypted or opened."""
    FAILED = "failed"
    """Stored bytes are not the ones that were written, or are gone."""
    DAMAGED_SOURCE = "damaged-source"
    """Every byte is what was captured, and SQLite found that database damaged."""

    @property
    def is_damage(self) -> bool:
        """Whether the snapshot does not restore to a sound database."""
        return self in {DrillOutcome.FAILED, DrillOutcome.DAMAGED_SOURCE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """A test restore of one snapshot."""

    format: Literal[1] = FORMAT_VERSION
    snapshot: Id
    database: Name
    outcome: DrillOutcome
    at: Moment
    damaged_packs: Annotated[
        tuple[Digest, ...], Field(max_length=MAX_RECORD_PACKS, exclude_if=lambda packs: not packs)
    ] = ()
    """The packs that were damaged or missing. An object without them has no such key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The newest regular snapshot when somebody said that it is right that there is less now."""

    snapshot: Id
    sequence: Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """A snapshot that has lost much, and what, in words that go on from its id."""

    snapshot: Id
    reason: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Whether one database has shrunk, and what people said to that, for every host that prunes it."""

    format: Literal[1] = FORMAT_VERSION
    accepted_shrink: Accepted | None
    held: Shrink | None
    """What nobody has accepted yet: no rule removes anything as long as it stands here."""

    @property
    def accepted_order(self) -> tuple[int, SnapshotId] | None:
        """The `Manifest.order` of the accepted snapshot, which may be gone."""
        accepted = self.accepted_shrink
        return None if accepted is None else (accepted.sequence, accepted.snapshot)


NO_VERDICTS = Verdicts(accepted_shrink=None, held=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPack:
    """A pack as a listing showed it. One that is put again, with the same bytes, is another one: its time differs."""

    sha256: Digest
    modified_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Packs that one sweep found named by no manifest and no trash entry."""

    format: Literal[1] = FORMAT_VERSION
    packs: Annotated[tuple[FoundPack, ...], Field(min_length=1, max_length=MAX_RECORD_PACKS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """Packs, by SHA-256, that a sweep is about to delete."""

    format: Literal[1] = FORMAT_VERSION
    packs: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=MAX_RECORD_PACKS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trash:
    format: Literal[1] = FORMAT_VERSION
    removed_at: Moment
    reason: Text
    manifest: str


@dataclass(frozen=True, slots=True)
class TrashEntry:
    """A snapshot that was removed: when (aware), why, and the exact bytes of its manifest with what they say."""

    removed_at: datetime
    reason: str
    content: bytes
    manifest: AnyManifest


_drill = TypeAdapter(Drill)
_verdicts = TypeAdapter(Verdicts)
_finding = TypeAdapter(Finding)
_deletion = TypeAdapter(Deletion)
_trash = TypeAdapter(_Trash)


def encode_drill(drill: Drill) -> bytes:
    """The drill as a sealed object."""
    return encode_sealed("drill", _drill, drill)


def decode_drill(data: bytes) -> Drill:
    """The drill in `data`. Raises `FormatError`, as do all below."""
    return decode_sealed("drill", _drill, data)


def encode_verdicts(verdicts: Verdicts) -> bytes:
    """The verdicts as a sealed object."""
    return encode_sealed("retention", _verdicts, verdicts)


def decode_verdicts(data: bytes) -> Verdicts:
    """The verdicts in `data`."""
    return decode_sealed("retention", _verdicts, data)


def encode_finding(finding: Finding) -> bytes:
    """The finding as a sealed object."""
    return encode_sealed("sweep", _finding, finding)


def decode_finding(data: bytes) -> Finding:
    """The finding in `data`."""
    return decode_sealed("sweep", _finding, data)


def encode_deletion(deletion: Deletion) -> bytes:
    """The deletion as a sealed object."""
    return encode_sealed("deletion", _deletion, deletion)


def decode_deletion(data: bytes) -> Deletion:
    """The deletion in `data`."""
    return decode_sealed("deletion", _deletion, data)


def encode_trash(entry: TrashEntry) -> bytes:
    """The trash entry as a sealed object."""
    body = _Trash(removed_at=entry.removed_at, reason=entry.reason, manifest=entry.content.decode())
    return encode_sealed("trash", _trash, body)


def decode_trash(data: bytes) -> TrashEntry:
    """The trash entry in `data`, whose manifest is a valid one."""
    body = decode_sealed("trash", _trash, data)
    content = body.manifest.encode()
    try:
        return TrashEntry(body.removed_at, body.reason, content, decode_manifest(content))
    except NewerFormatError:
        raise
    except FormatError as error:
        raise FormatError(f"manifest: {error}") from error
