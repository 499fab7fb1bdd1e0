"""Object keys, written and parsed: the layout in format/FORMAT.md.

A key from a store is untrusted: `parse` of the classes below returns None for every foreign object.
"""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Self

import msgspec

REPOSITORY_KEY = "backupd.json"
RESTORE_KEY = "RESTORE.md"
RESCUE_KEY = "rescue.py"

_PROBE_PREFIX = "doctor-"
_PROBE_KEY = re.compile(f"{_PROBE_PREFIX}[0-9a-f]{{32}}\\.probe")

_DATABASE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_SNAPSHOT_ID = r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}"
_SHA256 = r"[0-9a-f]{64}"
_RECORD_KINDS = "continuity|deletions|drills|sweeps|trash|undeleted"
_SNAPSHOT_KEY = re.compile(f"({_DATABASE})/snapshots/({_SNAPSHOT_ID})\\.json")
_PACK_KEY = re.compile(f"({_DATABASE})/packs/({_SHA256})\\.zst(\\.age)?")
_RECORD_KEY = re.compile(f"({_DATABASE})/({_RECORD_KINDS})/({_SNAPSHOT_ID})\\.json")

_COMMIT_NUMBER = r"(?!0{12})[0-9]{12}"
_TIME = r"[0-9]{8}T(?!24)[0-9]{9}Z"
_SEGMENT_KEY = re.compile(
    f"({_DATABASE})/segments/({_TIME}-[0-9a-f]{{8}})"
    f"/({_COMMIT_NUMBER})-({_COMMIT_NUMBER})-({_TIME})-({_SHA256})\\.zst(\\.age)?"
)

_MANY_KEY = re.compile(
    f"{_DATABASE}/(?:packs/({_SHA256})\\.zst(?:\\.age)?|(snapshots|{_RECORD_KINDS})/({_SNAPSHOT_ID})\\.json)"
)

# The longest key that S3 allows, in bytes of UTF-8, prefix included. No key of this format comes near.
_LONGEST_KEY_BYTES = 1024


class SnapshotKey(msgspec.Struct, frozen=True):
    """The key of a snapshot's manifest; `str` gives its text. Raises ValueError for a malformed part."""

    database: str
    snapshot_id: str

    def __post_init__(self) -> None:
        _require_match(_SNAPSHOT_KEY, str(self))

    def __str__(self) -> str:
        return f"{snapshots_prefix(self.database)}{self.snapshot_id}.json"

    @classmethod
    def parse(cls, key: str) -> Self | None:
        """Parse the key of a manifest; return None for any other key."""
        match = _SNAPSHOT_KEY.fullmatch(key)
        return cls(match[1], match[2]) if match else None


class PackKey(msgspec.Struct, frozen=True):
    """The key of a pack, by the SHA-256 of its bytes; `str` gives its text. Raises ValueError for a malformed part."""

    database: str
    sha256: bytes
    is_encrypted: bool = False

    def __post_init__(self) -> None:
        _require_match(_PACK_KEY, str(self))

    def __str__(self) -> str:
        return f"{packs_prefix(self.database)}{self.sha256.hex()}.zst{'.age' if self.is_encrypted else ''}"

    @classmethod
    def parse(cls, key: str) -> Self | None:
        """Parse the key of a pack; return None for any other key."""
        match = _PACK_KEY.fullmatch(key)
        return cls(match[1], bytes.fromhex(match[2]), match[3] is not None) if match else None


class SegmentKey(msgspec.Struct, frozen=True):
    """The key of a segment; `str` gives its text. Raises ValueError for a malformed part.

    `first` and `last` are the numbers of its first and last commit in the window, `seen_at` is when the last one was
    seen (aware, UTC, whole milliseconds), and `sha256` is that of the object as it is stored.
    """

    database: str
    window: str
    first: int
    last: int
    seen_at: datetime
    sha256: bytes
    is_encrypted: bool = False

    def __post_init__(self) -> None:
        _require_match(_SEGMENT_KEY, str(self))
        if self.first > self.last:
            raise ValueError(f"malformed object key {str(self)!r}")

    def __str__(self) -> str:
        seen_at = f"{self.seen_at.year:04}{self.seen_at:%m%dT%H%M%S}{self.seen_at.microsecond // 1000:03}Z"
        name = (
            f"{self.first:012}-{self.last:012}-{seen_at}-{self.sha256.hex()}.zst{'.age' if self.is_encrypted else ''}"
        )
        return f"{segments_prefix(self.database)}{self.window}/{name}"

    @classmethod
    def parse(cls, key: str) -> Self | None:
        """Parse the key of a segment; return None for any other key, or one with a time that does not exist."""
        match = _SEGMENT_KEY.fullmatch(key)
        if match is None:
            return None
        database, window, first, last, time, sha256, age = match.groups()
        try:
            seen_at = _time(time)
            _time(window)
            return cls(database, window, int(first), int(last), seen_at, bytes.fromhex(sha256), age is not None)
        except ValueError:
            return None


class RecordKind(StrEnum):
    """The kinds of records, the small objects beside the manifests, by their directories."""

    CONTINUITY = "continuity"
    """Whether the commits of a recovery window, replayed, gave what they must."""
    DELETION = "deletions"
    """Packs that a sweep is deleting. Listings must show these before the packs: FORMAT.md says why."""
    DRILL = "drills"
    SWEEP = "sweeps"
    """Packs that a sweep found, and that nothing names."""
    TRASH = "trash"
    UNDELETED = "undeleted"
    """A snapshot that came back from the trash."""


class RecordKey(msgspec.Struct, frozen=True):
    """The key of a record; `str` gives its text. Raises ValueError for a malformed part.

    `id` has the form of a snapshot id. It is that of the snapshot, or for continuity that of the window; deletions and
    sweeps have their own.
    """

    kind: RecordKind
    database: str
    id: str

    def __post_init__(self) -> None:
        _require_match(_RECORD_KEY, str(self))

    def __str__(self) -> str:
        return f"{self.database}/{self.kind}/{self.id}.json"

    @classmethod
    def parse(cls, key: str) -> Self | None:
        """Parse the key of a record; return None for any other key."""
        match = _RECORD_KEY.fullmatch(key)
        return cls(RecordKind(match[2]), match[1], match[3]) if match else None


def split_key(key: str) -> tuple[str, str] | None:
    """Split the key of a manifest, a pack or a record into the name of its directory and its own without an extension.

    What `SnapshotKey`, `PackKey` and `RecordKey` do one by one, but faster, for listings of many thousands of keys.
    None for all others.
    """
    match = _MANY_KEY.fullmatch(key)
    if match is None:
        return None
    sha256, kind, object_id = match.groups()
    return ("packs", sha256) if kind is None else (kind, object_id)


def is_object_key(key: str) -> bool:
    """Whether `key` belongs to this format, or is reserved for it."""
    if PackKey.parse(key) or SnapshotKey.parse(key) or RecordKey.parse(key) or SegmentKey.parse(key):
        return True
    database = key.partition("/")[0]
    is_single = bool(re.fullmatch(_DATABASE, database)) and key in {retention_key(database), clock_key(database)}
    return is_single or key in {REPOSITORY_KEY, RESTORE_KEY, RESCUE_KEY} or is_probe_key(key)


def probe_key(token: str) -> str:
    """Return the key of a temporary object of `backupd doctor`. ValueError unless `token` is 32 random hex digits.

    It has no slash, so that no directory remains of it in a directory store.
    """
    key = f"{_PROBE_PREFIX}{token}.probe"
    _require_match(_PROBE_KEY, key)
    return key


def is_probe_key(key: str) -> bool:
    """Whether `key` is one that `probe_key` returns."""
    return bool(_PROBE_KEY.fullmatch(key))


def probes_prefix() -> str:
    """Return the prefix of all probes' keys; others may have it too, see `is_probe_key`."""
    return _PROBE_PREFIX


def retention_key(database: str) -> str:
    """Return the key of a database's retention record: whether it has shrunk, and which loss was accepted."""
    return f"{database}/retention.json"


def clock_key(database: str) -> str:
    """Return the key of the object that a sweep writes to learn the store's time."""
    return f"{sweeps_prefix(database)}clock.json"


def sweeps_prefix(database: str) -> str:
    """Return the prefix of the records that sweeps keep for the next one."""
    return f"{database}/{RecordKind.SWEEP}/"


def continuity_prefix(database: str) -> str:
    """Return the prefix of the records of all recovery windows of one database."""
    return f"{database}/{RecordKind.CONTINUITY}/"


def drills_prefix(database: str) -> str:
    """Return the prefix of all drill records of one database."""
    return f"{database}/{RecordKind.DRILL}/"


def database_prefix(database: str) -> str:
    """Return the prefix of all objects of one database."""
    return f"{database}/"


def snapshots_prefix(database: str) -> str:
    """Return the prefix of all manifests of one database."""
    return f"{database}/snapshots/"


def packs_prefix(database: str) -> str:
    """Return the prefix of all packs of one database."""
    return f"{database}/packs/"


def segments_prefix(database: str) -> str:
    """Return the prefix of all segments of one database."""
    return f"{database}/segments/"


def require_safe_key(key: str) -> None:
    """Raise ValueError unless `key` is relative, has no empty, `.` or `..` part, and can be stored everywhere."""
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"unsafe object key {key!r}")
    _reject_control_characters(key)


def require_safe_prefix(prefix: str) -> None:
    """Raise ValueError unless `prefix` is empty or the beginning of a safe key, with any end."""
    if prefix:
        require_safe_key(f"{prefix}x")


def _time(text: str) -> datetime:
    """Return the time that a snapshot id begins with. Raises ValueError when it does not exist."""
    return datetime.fromisoformat(f"{text[:15]}.{text[15:18]}+00:00")


def _reject_control_characters(key: str) -> None:
    if any(character < " " or character == "\x7f" for character in key) or len(key.encode()) > _LONGEST_KEY_BYTES:
        raise ValueError(f"unsafe object key {key!r}")


def _require_match(pattern: re.Pattern[str], key: str) -> None:
    if not pattern.fullmatch(key):
        raise ValueError(f"malformed object key {key!r}")
