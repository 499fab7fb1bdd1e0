"""Whether a database can be followed: it needs a write-ahead log, and a connection that keeps the log open."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from backupd.doctor.databases import subject_of
from backupd.doctor.findings import size
from backupd.health.recovery import TO_WAL, gaps_since

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.config import Database, FollowSettings
    from backupd.doctor.databases import DatabaseFacts
    from backupd.doctor.findings import Finding
    from backupd.health import DatabaseHealth

_FEW_GAPS = 6
_KEEP_OPEN = (
    "keep one connection open as long as the application runs: in SQLAlchemy, have a pool that keeps connections and "
    "not NullPool, or connect once more at the start; docs/following.md shows how"
)


def check_following(
    database: Database, facts: DatabaseFacts, follow: FollowSettings, known: DatabaseHealth | None, now: datetime
) -> Finding | None:
    """Check whether one database can be followed, if that is wanted. `known` is what the daemon knows of it. Pure."""
    subject, check = subject_of(database), "following"
    if facts.journal_mode is None:
        return None
    if not follow.enabled:
        could = "off; moments between snapshots can be restored as well with: [follow] enabled = true"
        return subject.ok(check, could) if facts.is_wal else None
    if not facts.is_wal:
        return subject.warning(
            check,
            "rollback-journal mode has no log to follow: moments between snapshots cannot be restored",
            TO_WAL.format(path=database.path),
        )
    health = known.follow if known else None
    gaps = 0 if health is None else gaps_since(health, now - timedelta(days=1))
    if health is not None and health.last_gap is not None and gaps > _FEW_GAPS:
        ended = f"{gaps} recovery windows have ended in 24 h, the last one because of this: {health.last_gap.reason}"
        return subject.warning(check, ended, _KEEP_OPEN)
    if facts.wal is None or not facts.wal.size_bytes:
        empty = (
            "its log is empty now: nothing was written yet, or the application has closed its last connection, which "
            "ends a recovery window each time"
        )
        return subject.note(check, empty, _KEEP_OPEN)
    return subject.ok(check, f"its log of {size(facts.wal.size_bytes)} is followed while backupd run runs")
