"""Records: the small sealed objects for drills, retention, sweeps, deletions and the trash.

FORMAT.md, "Records", is the specification.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self

import msgspec
from msgspec import Meta

from backupd.format import FormatError, NewerFormatError, SnapshotId
from backupd.format.manifest import AnyManifest, Sequence, decode_manifest
from backupd.format.seal import Digest, Name, Text, Value, decode_sealed, encode_sealed
from backupd.format.segment import MAX_COMMIT_NUMBER

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


class Moment(str):
    """A time as records have it: in UTC, to the microsecond, such as `2026-11-25T03:00:00.123456Z`."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Take `text` as a time. Raises `FormatError` for one of another form, or that does not exist."""
        if not _MOMENT.fullmatch(text):
            raise FormatError(f"{text!r} is not a time")
        moment = super().__new__(cls, text)
        try:
            _ = moment.time
        except ValueError as error:
            raise FormatError(f"{text!r} is not a time: {error}") from error
        return moment

    @classmethod
    def of(cls, time: datetime) -> Self:
        """Return the text of `time` (aware)."""
        return cls(time.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z")

    @property
    def time(self) -> datetime:
        """The time itself, aware, UTC."""
        return datetime.fromisoformat(self)


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


_Word = Literal["proven", "intact", "failed", "damaged-source"]
_OUTCOMES: dict[_Word, CheckOutcome] = {
    "proven": CheckOutcome.PROVEN,
    "intact": CheckOutcome.INTACT,
    "failed": CheckOutcome.DAMAGED_STORE,
    "damaged-source": CheckOutcome.DAMAGED_SOURCE,
}
_WORDS = {outcome: word for word, outcome in _OUTCOMES.items()} | {CheckOutcome.NOT_CHECKABLE: "proven"}
RECORDED_OUTCOMES = tuple(_OUTCOMES.values())
"""The outcomes that a record can have when it is read."""


class _Record(Value, frozen=True):
    """A value that is stored as a sealed object of the name `sealed_as`."""

    sealed_as: ClassVar[str]

    def encode(self) -> bytes:
        """Encode the record as a sealed object."""
        return encode_sealed(self.sealed_as, self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a record of this kind. Raises `FormatError`."""
        return decode_sealed(cls.sealed_as, cls, data)


class _Drill(_Record, frozen=True):
    sealed_as: ClassVar[str] = "drill"

    snapshot: SnapshotId
    database: Name
    outcome: _Word
    at: Moment
    damaged_packs: Annotated[tuple[Digest, ...], Meta(max_length=MAX_RECORD_PACKS)] = ()


class Drill(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the last check of one snapshot: a drill, or a verification that found damage or healed packs."""

    snapshot: SnapshotId
    database: str
    outcome: CheckOutcome
    at: datetime
    damaged_packs: tuple[str, ...] = ()
    """The SHA-256 of packs that were damaged or missing. The object has no such key without them."""

    def encode(self) -> bytes:
        """Encode the record as a sealed object. Raises KeyError for an outcome that is not recorded."""
        body = _Drill(
            snapshot=self.snapshot,
            database=self.database,
            outcome=_WORDS[self.outcome],
            at=Moment.of(self.at),
            damaged_packs=self.damaged_packs,
        )
        return body.encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a record. Raises `FormatError`."""
        body = _Drill.decode(data)
        return cls(
            snapshot=body.snapshot,
            database=body.database,
            outcome=_OUTCOMES[body.outcome],
            at=body.at.time,
            damaged_packs=body.damaged_packs,
        )


class ContinuityOutcome(StrEnum):
    """The outcome of a replay of commits over one snapshot, compared with a later one."""

    PROVEN = "proven"
    """They gave exactly that snapshot."""
    BROKEN = "broken"
    """They gave another state: commits are missing, or are not what was committed."""


class _Continuity(_Record, frozen=True):
    sealed_as: ClassVar[str] = "continuity"

    database: Name
    window: SnapshotId
    outcome: Literal["proven", "broken"]
    base: SnapshotId
    after: Annotated[int, Meta(ge=0, le=MAX_COMMIT_NUMBER)]
    snapshot: SnapshotId
    by: Annotated[int, Meta(ge=1, le=MAX_COMMIT_NUMBER)]
    at: Moment


class Continuity(msgspec.Struct, frozen=True, kw_only=True):
    """The record of the last check of a recovery window: its commits `after + 1` to `by`, replayed over `base`.

    They gave `snapshot`, which an independent capture had made, or they did not. A broken one is not replaced.
    """

    database: str
    window: SnapshotId
    outcome: ContinuityOutcome
    base: SnapshotId
    after: int
    snapshot: SnapshotId
    by: int
    at: datetime
    """When the check began (aware, UTC)."""

    @property
    def is_broken(self) -> bool:
        """Whether commits later than `after` are not to be restored."""
        return self.outcome is ContinuityOutcome.BROKEN

    def encode(self) -> bytes:
        """Encode the record as a sealed object."""
        values = {**msgspec.structs.asdict(self), "outcome": self.outcome.value, "at": Moment.of(self.at)}
        return _Continuity(**values).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode a record. Raises `FormatError`."""
        body = _Continuity.decode(data)
        if body.by <= body.after:
            raise FormatError(f"by: {body.by} is not above {body.after}, which after says")
        values = {**msgspec.structs.asdict(body), "outcome": ContinuityOutcome(body.outcome), "at": body.at.time}
        return cls(**values)


class Accepted(Value, frozen=True):
    """The newest regular snapshot at the time when a user accepted that the database has shrunk."""

    snapshot: SnapshotId
    sequence: Sequence


class Shrink(Value, frozen=True):
    """A snapshot that has lost much data, and the reason, worded to follow its id."""

    snapshot: SnapshotId
    reason: Text


class RetentionRecord(_Record, frozen=True):
    """Whether a database has shrunk suddenly, and which loss was accepted, for every host that prunes it."""

    sealed_as: ClassVar[str] = "retention"

    accepted_shrink: Accepted | None
    held: Shrink | None
    """A loss that is not accepted yet: as long as it is recorded, no rule removes any snapshot."""

    @property
    def accepted_order(self) -> tuple[int, SnapshotId] | None:
        """The `Manifest.order` of the accepted snapshot, which may have been removed."""
        accepted = self.accepted_shrink
        return None if accepted is None else (accepted.sequence, accepted.snapshot)


EMPTY_RETENTION_RECORD = RetentionRecord(accepted_shrink=None, held=None)


class FoundPack(Value, frozen=True):
    """A pack as a listing showed it. If it is put again, its time differs, and it counts as another one."""

    sha256: Digest
    modified_at: Moment


class SweepRecord(_Record, frozen=True):
    """Packs that one sweep found, and that no manifest and no trash entry names."""

    sealed_as: ClassVar[str] = "sweep"

    packs: Annotated[tuple[FoundPack, ...], Meta(min_length=1, max_length=MAX_RECORD_PACKS)]


class DeletionRecord(_Record, frozen=True):
    """Packs, by SHA-256, that a sweep is about to delete."""

    sealed_as: ClassVar[str] = "deletion"

    packs: Annotated[tuple[Digest, ...], Meta(min_length=1, max_length=MAX_RECORD_PACKS)]


class _Trash(_Record, frozen=True):
    sealed_as: ClassVar[str] = "trash"

    removed_at: Moment
    reason: Text
    manifest: str


class TrashEntry(msgspec.Struct, frozen=True):
    """A removed snapshot: the time (aware), the reason, and its manifest, with the exact bytes."""

    removed_at: datetime
    reason: str
    content: bytes
    manifest: AnyManifest

    def encode(self) -> bytes:
        """Encode the entry as a sealed object."""
        return _Trash(
            removed_at=Moment.of(self.removed_at), reason=self.reason, manifest=self.content.decode()
        ).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Decode an entry and the manifest in it. Raises `FormatError`."""
        body = _Trash.decode(data)
        content = body.manifest.encode()
        try:
            return cls(body.removed_at.time, body.reason, content, decode_manifest(content))
        except NewerFormatError:
            raise
        except FormatError as error:
            raise FormatError(f"manifest: {error}") from error
