"""What a verification was asked for, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from backupd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backupd.drill import DrillResult
    from backupd.errors import BackupdError
    from backupd.format.ids import SnapshotId
    from backupd.reference import Reference
    from backupd.verify.findings import Finding


class Level(StrEnum):
    """How closely to look."""

    RECEIPT = "receipt"
    """Every object there, with the right size, and the right checksum where the store keeps one."""
    PACKS = "packs"
    """Every byte read: SHA-256 of each pack, checksum of its content, hash of each page, digest of each image."""
    DRILL = "drill"
    """Restored to scratch, and looked through by SQLite."""


class Outcome(StrEnum):
    """What is known of a snapshot after its verification."""

    RIGHT = "right"
    """Nothing is wrong, as far as was looked."""
    DAMAGED = "damaged"
    UNKNOWN = "unknown"
    """It could not be looked at, or not to the end."""


class Looked(StrEnum):
    """What a verdict on a snapshot rests on."""

    SIZES = "sizes"
    CHECKSUMS = "checksums"
    """Those that the store keeps."""
    SAMPLE = "sample"
    """Some packs were read."""
    CIPHERTEXT = "ciphertext"
    """Packs have the SHA-256 that names them; there is no key here to look inside all of them."""
    PAGES = "pages"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyWish:
    """Which snapshots to look at, and how. Without references, the newest of each database in each store.

    `database` narrows everything down to one. `sample` is the share (above 0, at most 1) of packs or, in a drill, of
    snapshots to look at, chosen by chance; None is all. `is_anew` forgets what a run that was broken off has read.
    """

    references: tuple[Reference, ...] = ()
    wants_all: bool = False
    database: str | None = None
    level: Level = Level.PACKS
    sample: float | None = None
    is_anew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedSnapshot:
    """One snapshot in one store. `looked` is None when nothing was found out; `packs` is how many it has."""

    id: SnapshotId
    database: str
    store: str
    level: Level
    outcome: Outcome
    looked: Looked | None
    packs: int
    rows: Mapping[str, int | None] = field(default_factory=dict)
    """By table, after a restore; None where the rows cannot be counted."""

    def values(self) -> dict[str, object]:
        """As JSON documents show it."""
        return {
            "id": str(self.id),
            "database": self.database,
            "store": self.store,
            "level": str(self.level),
            "outcome": str(self.outcome),
            "looked_at": None if self.looked is None else str(self.looked),
            "packs": self.packs,
            "rows": dict(self.rows),
        }


@dataclass(slots=True, kw_only=True)
class Verification:
    """Everything that one run found, of all stores."""

    snapshots: list[VerifiedSnapshot] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    problems: list[BackupdError] = field(default_factory=list)
    """Why stores, or parts of them, could not be looked at."""
    warnings: list[str] = field(default_factory=list)
    verdicts: list[DrillResult] = field(default_factory=list)
    """What the status of this machine is to know, at most one of each database in each store."""
    damaged_sources: list[DrillResult] = field(default_factory=list)
    """Drills, of whatever snapshots, that found a database damaged as it was captured."""
    packs_read: int = 0
    """In this run."""
    packs_known: int = 0
    """Those that were read before this run was broken off, and not again."""
    read_bytes: int = 0
    duration_seconds: float = 0.0

    @property
    def exit_code(self) -> ExitCode:
        """Damage first; then that of the first problem, or partly done where anything could be looked at."""
        codes = [problem.exit_code for problem in self.problems]
        if ExitCode.DAMAGE_FOUND in codes or any(finding.is_damage for finding in self.findings):
            return ExitCode.DAMAGE_FOUND
        if not codes:
            return ExitCode.DONE
        has_verdict = any(snapshot.outcome is not Outcome.UNKNOWN for snapshot in self.snapshots)
        return ExitCode.PARTLY_DONE if has_verdict else codes[0]
