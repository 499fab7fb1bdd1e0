"""What became of a prune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backupd.errors import BackupdError
    from backupd.format.ids import SnapshotId
    from backupd.holds import Hold
    from backupd.retention import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """One database in one store. In a dry run, everything that would be done, by this host's clock."""

    database: str
    store: str
    decisions: tuple[Decision, ...] = ()
    """About every snapshot, oldest first."""
    hold: Hold | None = None
    """Why nothing was removed although the policy would."""
    removed: tuple[SnapshotId, ...] = ()
    """Moved to the trash."""
    accepted: SnapshotId | None = None
    """The snapshot whose shrinking was accepted; None when nothing was held for that."""
    purged: tuple[SnapshotId, ...] = ()
    """Gone from the trash, whose grace was over."""
    deleted_packs: int = 0
    freed_bytes: int = 0
    """Size of the deleted packs."""
    waiting_packs: int = 0
    """Packs that nothing names, within their grace."""
    waiting_bytes: int = 0
    unfinished: int = 0
    """Snapshots to remove or to purge, and packs to delete, that are left for the next prune: the time was up."""
    strangers: tuple[str, ...] = ()
    """Keys of objects that are not of this format, or at least cannot be read: they are left alone."""
    error: BackupdError | None = None
    """What stopped it. What is counted above was done before."""

    @property
    def has_changed_anything(self) -> bool:
        """Whether something was moved to the trash, purged from it, or deleted."""
        return bool(self.removed or self.purged or self.deleted_packs)

    def values(self) -> dict[str, object]:
        """The result without its decisions, as JSON documents and logs show it."""
        return {
            "database": self.database,
            "store": self.store,
            "hold": None if self.hold is None else {"message": self.hold.message, "hint": self.hold.hint},
            "accepted": None if self.accepted is None else str(self.accepted),
            "removed": [str(snapshot_id) for snapshot_id in self.removed],
            "purged": [str(snapshot_id) for snapshot_id in self.purged],
            "deleted_packs": self.deleted_packs,
            "freed_bytes": self.freed_bytes,
            "waiting_packs": self.waiting_packs,
            "waiting_bytes": self.waiting_bytes,
            "unfinished": self.unfinished,
            "strangers": list(self.strangers),
            "error": None if self.error is None else self.error.values(),
        }
