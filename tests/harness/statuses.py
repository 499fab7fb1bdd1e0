"""Statuses of a day in November, at 12:00 UTC: what tests of health begin with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from backupd.backup.results import BackupResult, Outcome
from backupd.errors import BackupdError, StoreUnavailableError
from backupd.format.ids import SnapshotId
from backupd.health import DatabaseHealth, Status, StoreHealth
from backupd.health.planning import with_daemon
from backupd.health.recording import with_snapshots

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DISK = "/backups"
BUCKET = "s3://bucket/creditrobot"
DOWN = StoreUnavailableError("s3://bucket/creditrobot does not answer", hint="check the network")


@dataclass(frozen=True)
class Drill:
    """What a drill found."""

    outcome: str
    database: str = "app"
    store: str = DISK
    id: SnapshotId | None = None
    error: BackupdError | None = None
    findings: tuple[str, ...] = ()
    remark: str | None = None
    proven_at: datetime | None = None
    damaged_snapshots: tuple[SnapshotId, ...] = ()


def snapshot_id(at: datetime = NOON) -> SnapshotId:
    """The id of a snapshot taken then."""
    return SnapshotId.new(at, 0x7F3A91C2)


def created(database: str = "app", store: str = DISK, at: datetime = NOON) -> BackupResult:
    """A snapshot was made: 12 of 1,000 pages."""
    return BackupResult(
        database=database,
        store=store,
        outcome=Outcome.CREATED,
        id=snapshot_id(at),
        page_size=4096,
        page_count=1000,
        changed_pages=12,
        stored_bytes=5000,
        duration_seconds=0.25,
    )


def failed(database: str = "app", store: str = BUCKET, error: BackupdError = DOWN) -> BackupResult:
    """None was made."""
    return BackupResult(database=database, store=store, outcome=Outcome.FAILED, duration_seconds=2.0, error=error)


def recorded(status: Status, *results: BackupResult, at: datetime = NOON, **changes: Any) -> Status:
    """After one run at `at` that is to be repeated within half an hour."""
    settings: dict[str, Any] = {"path": "/app/app.db", "due_by": at + 30 * MINUTE, "fingerprint": "1:2:3"}
    return with_snapshots(status, results, at=at, **(settings | changes))


def healthy(*names: str, stores: tuple[str, ...] = (DISK, BUCKET)) -> Status:
    """A daemon runs, and every database (`app`) was captured at noon into both stores, for half an hour."""
    status = with_daemon(Status(), pid=12, version="0.1.0", at=NOON - HOUR)
    for name in names or ("app",):
        status = recorded(status, *(created(name, store) for store in stores), path=f"/app/{name}.db")
    return status


def with_times(status: Status, *names: str, **times: datetime) -> Status:
    """The same, with these times of these databases."""
    changed = {name: replace(status.databases[name], **times) for name in names}
    return replace(status, databases={**status.databases, **changed})


def with_health(status: Status, database: str = "app", store: str = DISK, **changes: Any) -> Status:
    """The same, with these fields of one database in one store."""
    before: DatabaseHealth = status.databases[database]
    health: StoreHealth = replace(before.stores[store], **changes)
    return replace(
        status, databases={**status.databases, database: replace(before, stores={**before.stores, store: health})}
    )
