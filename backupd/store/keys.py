"""The only spelling of object keys: format/FORMAT.md's layout, written and parsed.

A key that comes from a store is untrusted: `parse` of the classes below answers None for every stranger.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

REPOSITORY_KEY = "backupd.json"
RESTORE_KEY = "RESTORE.md"
RESCUE_KEY = "rescue.py"

_PROBE_PREFIX = "doctor-"
_PROBE_KEY = re.compile(f"{_PROBE_PREFIX}[0-9a-f]{{32}}\\.probe")

_DATABASE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_SNAPSHOT_ID = r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}"
_SHA256 = r"[0-9a-f]{64}"
_SNAPSHOT_KEY = re.compile(f"({_DATABASE})/snapshots/({_SNAPSHOT_ID})\\.json")
_PACK_KEY = re.compile(f"({_DATABASE})/packs/({_SHA256})\\.zst(\\.age)?")
_RECORD_KEY = re.compile(f"({_DATABASE})/(deletions|drills|sweeps|trash|undeleted)/({_SNAPSHOT_ID})\\.json")

# The longest key that S3 takes, in bytes of UTF-8. The prefix of a store comes on top; no key of ours comes near.
_LONGEST_KEY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """Where the manifest of one snapshot is. Prints itself as the key; raises ValueError on a malformed part."""

    database: str
    snapshot_id: str

    def __post_init__(self) -> None:
        _require_match(_SNAPSHOT_KEY, str(self))

    def __str__(self) -> str:
        return f"{snapshots_prefix(self.database)}{self.snapshot_id}.json"

    @classmethod
    def parse(cls, key: str) -> Self | None:
        """The parts of a manifest's key, or None when `key` is anything else."""
        match = _SNAPSHOT_KEY.fullmatch(key)
        return cls(match[1], match[2]) if match else None


@dataclass(frozen=True, slots=True)
class PackKey:
    """Where one pack is, by the SHA-256 of its bytes. Prints itself as the key; ValueError on a malformed part."""

    database: str
    sha256: bytes
    is_encrypted: bool = False

    def __post_init__(self) -> None:
        _require_match(_PACK_KEY, str(self))

    def __str__(self) -> str:
        return f"{packs_prefix(self.database)}{self.sha256.hex()}.zst{'.age' if self.is_encrypted else ''}"

    @classmethod
    def parse(cls, key: str) -> Self | None:
        """The parts of a pack's key, or None when `key` is anything else."""
        match = _PACK_KEY.fullmatch(key)
        return cls(match[1], bytes.fromhex(match[2]), match[3] is not None) if match else None


class RecordKind(StrEnum):
    """The small objects beside the manifests, by the directory that holds them."""

    DELETION = "deletions"
    """Packs that a sweep is deleting. In a listing they come before the packs, and that matters: FORMAT.md says why."""
    DRILL = "drills"
    SWEEP = "sweeps"
    """Packs that a sweep found named by nothing."""
    TRASH = "trash"
    UNDELETED = "undeleted"
    """That a snapshot came back from the trash."""


@dataclass(frozen=True, slots=True)
class RecordKey:
    """Where one record is. `id` has the form of a snapshot id; for all but deletions and sweeps it is the snapshot's.

    Prints itself as the key; ValueError on a malformed part.
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
        """The parts of a record's key, or None when `key` is anything else."""
        match = _RECORD_KEY.fullmatch(key)
        return cls(RecordKind(match[2]), match[1], match[3]) if match else None


def is_object_key(key: str) -> bool:
    """Whether `key` is one of this format, or reserved for it."""
    if PackKey.parse(key) or SnapshotKey.parse(key) or RecordKey.parse(key):
        return True
    database = key.partition("/")[0]
    is_single = bool(re.fullmatch(_DATABASE, database)) and key in {retention_key(database), clock_key(database)}
    return is_single or key in {REPOSITORY_KEY, RESTORE_KEY, RESCUE_KEY} or is_probe_key(key)


def probe_key(token: str) -> str:
    """Where `backupd doctor` puts an object for a moment; `token` is 32 random hex digits, ValueError if it is not.

    Without a slash, so that a directory store has no directory more when it is gone.
    """
    key = f"{_PROBE_PREFIX}{token}.probe"
    _require_match(_PROBE_KEY, key)
    return key


def is_probe_key(key: str) -> bool:
    """Whether `key` is one that `probe_key` gives."""
    return bool(_PROBE_KEY.fullmatch(key))


def probes_prefix() -> str:
    """What the keys of all probes begin with, and perhaps others: ask `is_probe_key`."""
    return _PROBE_PREFIX


def retention_key(database: str) -> str:
    """Where it is kept whether the snapshots of one database have shrunk, and what people said to that."""
    return f"{database}/retention.json"


def clock_key(database: str) -> str:
    """What a sweep writes to learn the store's time."""
    return f"{sweeps_prefix(database)}clock.json"


def sweeps_prefix(database: str) -> str:
    """What the keys of all that sweeps leave for the next one begin with."""
    return f"{database}/{RecordKind.SWEEP}/"


def drills_prefix(database: str) -> str:
    """What the keys of all drills of one database begin with."""
    return f"{database}/{RecordKind.DRILL}/"


def database_prefix(database: str) -> str:
    """What the keys of all objects of one database begin with."""
    return f"{database}/"


def snapshots_prefix(database: str) -> str:
    """What the keys of all manifests of one database begin with."""
    return f"{database}/snapshots/"


def packs_prefix(database: str) -> str:
    """What the keys of all packs of one database begin with."""
    return f"{database}/packs/"


def require_safe_key(key: str) -> None:
    """Raise ValueError unless `key` is relative, has no empty, `.` or `..` part, and is storable everywhere."""
    if any(part in {"", ".", ".."} for part in key.split("/")):
        raise ValueError(f"unsafe object key {key!r}")
    _reject_control_characters(key)


def require_safe_prefix(prefix: str) -> None:
    """Raise ValueError unless `prefix` is empty or the beginning of a safe key, with any end."""
    if prefix:
        require_safe_key(f"{prefix}x")


def _reject_control_characters(key: str) -> None:
    if any(character < " " or character == "\x7f" for character in key) or len(key.encode()) > _LONGEST_KEY_BYTES:
        raise ValueError(f"unsafe object key {key!r}")


def _require_match(pattern: re.Pattern[str], key: str) -> None:
    if not pattern.fullmatch(key):
        raise ValueError(f"malformed object key {key!r}")
