"""What a backup was asked for, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from backupd.errors import ExitCode
from backupd.format.manifest import SnapshotKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.backup.remarks import PassedOver
    from backupd.errors import BackupdError
    from backupd.format.ids import SnapshotId
    from backupd.receipt import Receipt


class Outcome(StrEnum):
    """What became of one database in one store."""

    CREATED = "created"
    UNCHANGED = "unchanged"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupResult:
    """One database in one store. `id` is that of the new snapshot, of the newest when unchanged, None when failed."""

    database: str
    store: str
    outcome: Outcome
    id: SnapshotId | None = None
    page_size: int | None = None
    page_count: int | None = None
    changed_pages: int | None = None
    stored_bytes: int = 0
    receipt: Receipt | None = None
    """What the store has shown of the snapshot at the end of the run; None when failed."""
    replaced_packs: int = 0
    """Damaged packs of the snapshot before this one whose pages were stored again: this one needs none of them."""
    is_schema_readable: bool = True
    """False when the database is so damaged that SQLite cannot tell its tables. It is captured all the same."""
    api_differs: bool = False
    """Whether reading the database's file gave something else than SQLite reads: only SQLite is believed then."""
    passed_over: PassedOver | None = None
    """Manifests in the store that no snapshot builds on."""
    duration_seconds: float = 0.0
    error: BackupdError | None = None
    warnings: tuple[str, ...] = ()

    def values(self) -> dict[str, object]:
        """The result as JSON documents and logs show it."""
        return {
            "id": None if self.id is None else str(self.id),
            "database": self.database,
            "store": self.store,
            "outcome": str(self.outcome),
            "page_size": self.page_size,
            "page_count": self.page_count,
            "changed_pages": self.changed_pages,
            "stored_bytes": self.stored_bytes,
            "receipt": None if self.receipt is None else self.receipt.values(),
            "replaced_packs": self.replaced_packs,
            "duration_seconds": round(self.duration_seconds, 3),
            "error": None if self.error is None else self.error.values(),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a capture is, in bytes of page images, and how many bytes of packs all stores have taken."""

    captured_bytes: int
    image_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for besides a plain snapshot. Any of it makes a snapshot even when nothing changed."""

    tags: tuple[str, ...] = ()
    is_full: bool = False
    kind: SnapshotKind = SnapshotKind.REGULAR

    @property
    def needs_snapshot(self) -> bool:
        """Whether an unchanged database gets a new snapshot all the same."""
        return bool(self.tags) or self.is_full or self.kind is not SnapshotKind.REGULAR


def exit_code_of(results: Sequence[BackupResult]) -> ExitCode:
    """What a run with these results ends with: the first error's code, or partly done when some succeeded."""
    errors = [result.error for result in results if result.error is not None]
    if not errors:
        return ExitCode.DONE
    return errors[0].exit_code if len(errors) == len(results) else ExitCode.PARTLY_DONE
