"""Records: the small sealed objects for drills, retention, sweeps, deletions and the trash.

FORMAT.md, "Records", is the specification.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator

from backupd.format import FORMAT_VERSION, FormatError, NewerFormatError, SnapshotId
from backupd.format.manifest import AnyManifest, Sequence, decode_manifest
from backupd.format.seal import Digest, Id, Name, Text, decode_sealed, encode_sealed

MAX_RECORD_BYTES = 1 << 24
"""A reader's limit on one record that is not a trash entry."""

MAX_TRASH_BYTES = 1 << 30
"""A reader's limit on one trash entry: the largest manifest, with escapes."""

MAX_RECORD_PACKS = 100_000

DELETION_ENDS_AFTER = timedelta(minutes=30)
"""A sweep requests no more deletions once its record of them is older than this."""

DELETION_COUNTS_FOR = timedelta(hours=1)
"""A record of deletions does not concern objects that were put this long after it."""

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


class CheckOutcome(StrEnum):
    """The outcome of a check of one snapshot: one vocabulary for checks, records, the status and the screen.

    The values are those of JSON documents and logs; records have words of their own (FORMAT.md, "Records").
    """

    PROVEN = "proven"
    """Every byte is what was captured, and SQLite found the database sound."""
    NOT_CHECKABLE = "not-checkable"
    """Proven, except for tables that only the application can check. A record says "proven"."""
    INTACT = "intact"
    """Every stored byte is what was written; SQLite did not check the database."""
    PRESENT = "present"
    """Every object is there with its size; not every byte was read. Never recorded."""
    DAMAGED_STORE = "damaged-store"
    """Stored bytes are not the ones that were written, or are gone. A record says "failed"."""
    DAMAGED_SOURCE = "damaged-source"
    """Every byte is what was captured, and SQLite found that database damaged."""
    INCONCLUSIVE = "failed"
    """The check could not be done, or was stopped. Never recorded."""

    @property
    def is_damage(self) -> bool:
        """Whether the snapshot does not restore to a sound database."""
        return self in {CheckOutcome.DAMAGED_STORE, CheckOutcome.DAMAGED_SOURCE}

    @property
    def is_proof(self) -> bool:
        """Whether the snapshot was restored and found sound, as far as SQLite can check it."""
        return self in {CheckOutcome.PROVEN, CheckOutcome.NOT_CHECKABLE}


_WORDS = {
    CheckOutcome.PROVEN: "proven",
    CheckOutcome.INTACT: "intact",
    CheckOutcome.DAMAGED_STORE: "failed",
    CheckOutcome.DAMAGED_SOURCE: "damaged-source",
}
_OUTCOMES = {word: outcome for outcome, word in _WORDS.items()}
RECORDED_OUTCOMES = tuple(_WORDS)
"""The outcomes that a record can have when it is read."""


def _format_outcome(outcome: CheckOutcome) -> str:
    return _WORDS[CheckOutcome.PROVEN if outcome is CheckOutcome.NOT_CHECKABLE else outcome]


def _parse_outcome(value: object) -> CheckOutcome:
    if not isinstance(value, str) or value not in _OUTCOMES:
        raise ValueError(f"{value!r} is not an outcome")
    return _OUTCOMES[value]


RecordedOutcome = Annotated[CheckOutcome, PlainValidator(_parse_outcome), PlainSerializer(_format_outcome)]


class _Record:
    """A value that is stored as a sealed object of the name `sealed_as`."""

    __slots__ = ()
    sealed_as: ClassVar[str]

    def encode(self) -> bytes:
        """Encode the record as a sealed object."""
        return encode_sealed(self.sealed_as, self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a record of this kind. Raises `FormatError`."""
        return decode_sealed(cls.sealed_as, cls, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill(_Record):
    """The record of the last check of one snapshot: a drill, or a verification that found damage or healed packs."""

    sealed_as: ClassVar[str] = "drill"

    format: Literal[1] = FORMAT_VERSION
    snapshot: Id
    database: Name
    outcome: RecordedOutcome
    at: Moment
    damaged_packs: Annotated[
        tuple[Digest, ...], Field(max_length=MAX_RECORD_PACKS, exclude_if=lambda packs: not packs)
    ] = ()
    """The SHA-256 of packs that were damaged or missing. The object has no such key without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The newest regular snapshot at the time when a user accepted that the database has shrunk."""

    snapshot: Id
    sequence: Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrink:
    """A snapshot that has lost much data, and the reason, worded to follow its id."""

    snapshot: Id
    reason: Text


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionRecord(_Record):
    """Whether a database has shrunk suddenly, and which loss was accepted, for every host that prunes it."""

    sealed_as: ClassVar[str] = "retention"

    format: Literal[1] = FORMAT_VERSION
    accepted_shrink: Accepted | None
    held: Shrink | None
    """A loss that is not accepted yet: as long as it is recorded, no rule removes any snapshot."""

    @property
    def accepted_order(self) -> tuple[int, SnapshotId] | None:
        """The `Manifest.order` of the accepted snapshot, which may have been removed."""
        accepted = self.accepted_shrink
        return None if accepted is None else (accepted.sequence, accepted.snapshot)


EMPTY_RETENTION_RECORD = RetentionRecord(accepted_shrink=None, held=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPack:
    """A pack as a listing showed it. If it is put again, its time differs, and it counts as another one."""

    sha256: Digest
    modified_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepRecord(_Record):
    """Packs that one sweep found, and that no manifest and no trash entry names."""

    sealed_as: ClassVar[str] = "sweep"

    format: Literal[1] = FORMAT_VERSION
    packs: Annotated[tuple[FoundPack, ...], Field(min_length=1, max_length=MAX_RECORD_PACKS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionRecord(_Record):
    """Packs, by SHA-256, that a sweep is about to delete."""

    sealed_as: ClassVar[str] = "deletion"

    format: Literal[1] = FORMAT_VERSION
    packs: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=MAX_RECORD_PACKS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trash(_Record):
    sealed_as: ClassVar[str] = "trash"

    format: Literal[1] = FORMAT_VERSION
    removed_at: Moment
    reason: Text
    manifest: str


@dataclass(frozen=True, slots=True)
class TrashEntry:
    """A removed snapshot: the time (aware), the reason, and its manifest, with the exact bytes."""

    removed_at: datetime
    reason: str
    content: bytes
    manifest: AnyManifest

    def encode(self) -> bytes:
        """Encode the entry as a sealed object."""
        return _Trash(removed_at=self.removed_at, reason=self.reason, manifest=self.content.decode()).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode an entry and the manifest in it. Raises `FormatError`."""
        body = _Trash.decode(data)
        content = body.manifest.encode()
        try:
            return cls(body.removed_at, body.reason, content, decode_manifest(content))
        except NewerFormatError:
            raise
        except FormatError as error:
            raise FormatError(f"manifest: {error}") from error
