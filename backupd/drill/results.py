"""What became of a drill."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from backupd.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backupd.errors import BackupdError
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import AnyManifest
    from backupd.proofs import Verdict


class Outcome(StrEnum):
    """What a drill found."""

    PROVEN = "proven"
    """Every byte is what was captured, and SQLite finds the database sound."""
    DAMAGED_STORE = "damaged-store"
    """Stored bytes are not the ones that were written, or are gone."""
    DAMAGED_SOURCE = "damaged-source"
    """Every byte is what was captured, and that was a damaged database."""
    NOT_CHECKABLE = "not-checkable"
    """As proven, but for tables that only the application can check: `findings` says which. Recorded as proven."""
    INTACT = "intact"
    """Every stored byte is what was written. Nothing was restored: it is encrypted, and no key here decrypts it."""
    FAILED = "failed"
    """No verdict: the drill could not be done, or was stopped."""


def found_before(database: str, store: str, snapshot: SnapshotId, verdict: Verdict) -> DamageError:
    """That a snapshot is of a damaged database, by a drill which could restore it."""
    return DamageError(
        f"every stored byte of snapshot {snapshot} of {database} in {store} is right, and a test restore found "
        f"{verdict.at:%Y-%m-%d %H:%M:%SZ} that it is a damaged database as it was captured; nobody has restored it "
        "again since: this machine has no key, or was not asked to",
        hint=f"check the live one with PRAGMA integrity_check; when it is repaired: backupd now {database}, then where "
        f"the key is: backupd verify {database}@latest --level drill --identity FILE",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillResult:
    """One snapshot of one database in one store; `id` is None when there was none to try."""

    database: str
    store: str
    id: SnapshotId | None
    outcome: Outcome
    started_at: datetime
    """Aware, UTC."""
    duration_seconds: float
    image_bytes: int = 0
    fetched_bytes: int = 0
    error: BackupdError | None = None
    """None when the snapshot is proven, not checkable, or intact."""
    findings: tuple[str, ...] = ()
    """What SQLite said of the database, the first hundred lines: damage, what was not checked, odd values, orphans."""
    odd_values: tuple[str, ...] = ()
    """Which values do not fit the type or constraint of their column. All is as it was written: that is no damage."""
    damaged_packs: tuple[str, ...] = ()
    """SHA-256 of each pack of the snapshot that is damaged or missing."""
    damaged_snapshots: tuple[SnapshotId, ...] = ()
    """Every one in that store that is known to be damaged by what was found: others may need the same packs."""
    manifest: AnyManifest | None = None
    """Of a snapshot whose source was damaged: the same one in another store is no better."""
    earlier: Verdict | None = None
    """What an earlier drill found that could restore it, when this one could not: that holds for the same bytes."""
    rows: Mapping[str, int | None] = field(default_factory=dict)
    """By table; None where the rows cannot be counted."""

    @property
    def proven_at(self) -> datetime | None:
        """When an earlier drill proved an intact snapshot, elsewhere maybe (aware, UTC)."""
        return None if self.outcome is not Outcome.INTACT or self.earlier is None else self.earlier.at

    @property
    def remark(self) -> str | None:
        """The odd values in a few words."""
        if not self.odd_values:
            return None
        more = f" and {len(self.odd_values) - 1} more" if len(self.odd_values) > 1 else ""
        return f"values that do not fit their columns, which is no damage: {self.odd_values[0]}{more}"

    @property
    def note(self) -> str | None:
        """What `outcome` leaves out, for people."""
        if self.outcome is not Outcome.INTACT:
            return None
        why = "not restored: this machine has no identity that decrypts it; every stored byte is what was written"
        return why if self.proven_at is None else f"{why}, and it was proven {self.proven_at:%Y-%m-%d %H:%M:%SZ}"

    def values(self) -> dict[str, object]:
        """The result as JSON documents and logs show it."""
        return {
            "id": None if self.id is None else str(self.id),
            "database": self.database,
            "store": self.store,
            "outcome": str(self.outcome),
            "image_bytes": self.image_bytes,
            "fetched_bytes": self.fetched_bytes,
            "duration_seconds": round(self.duration_seconds, 3),
            "error": None if self.error is None else self.error.values(),
            "note": self.note,
            "remark": self.remark,
            "findings": list(self.findings),
            "damaged_packs": list(self.damaged_packs),
        }
