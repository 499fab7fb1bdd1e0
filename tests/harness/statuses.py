"""Statuses of a day in November, at 12:00 UTC: what tests of health begin with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from backupd.backup.results import BackupResult, Outcome
from backupd.errors import BackupdError, DamageError, StoreUnavailableError
from backupd.format import SnapshotId
from backupd.format.records import CheckOutcome
from backupd.health import DatabaseHealth, Status, StoreHealth
from backupd.health.alarms import Alarm, find_alarms
from backupd.health.planning import with_daemon
from backupd.health.recording import with_snapshots
from backupd.repository.proofs import KnownOutcome
from backupd.verify import CheckResult

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SOON = NOON + MINUTE
LATER = NOON + HOUR
DISK = "/backups"
BUCKET = "s3://bucket/creditrobot"
DOWN = StoreUnavailableError("s3://bucket/creditrobot does not answer", hint="check the network")


def snapshot_id(at: datetime = NOON) -> SnapshotId:
    """The id of a snapshot taken then."""
    return SnapshotId.new(at, 0x7F3A91C2)


def drilled(
    outcome: str,
    *,
    database: str = "app",
    store: str = DISK,
    id: SnapshotId | None = None,  # noqa: A002  (as the result calls it)
    error: BackupdError | None = None,
    findings: tuple[str, ...] = (),
    proven_at: datetime | None = None,
    damaged_snapshots: tuple[SnapshotId, ...] = (),
) -> CheckResult:
    """What a drill of a database found. Damage without an error gets one with its findings."""
    found = CheckOutcome(outcome)
    if found.is_damage and error is None:
        error = DamageError(f"snapshot {id}: {'; '.join(findings)}", hint="see what still restores")
    return CheckResult(
        database=database,
        store=store,
        id=id,
        outcome=found,
        started_at=NOON,
        error=error,
        findings=findings,
        damaged_snapshots=damaged_snapshots,
        earlier=None if proven_at is None else KnownOutcome(CheckOutcome.PROVEN, proven_at),
    )


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
    """A result of a run that made no snapshot."""
    return BackupResult(database=database, store=store, outcome=Outcome.FAILED, duration_seconds=2.0, error=error)


def recorded(status: Status, *results: BackupResult, at: datetime = NOON, **changes: Any) -> Status:
    """The status after one run at `at` that is to be repeated within half an hour."""
    settings: dict[str, Any] = {"path": "/app/app.db", "due_by": at + 30 * MINUTE, "fingerprint": "1:2:3"}
    return with_snapshots(status, results, at=at, **(settings | changes))


def healthy(*names: str, stores: tuple[str, ...] = (DISK, BUCKET)) -> Status:
    """A daemon runs, and every database (`app`) was captured at noon into both stores, for half an hour."""
    status = with_daemon(Status(), pid=12, version="0.1.0", at=NOON - HOUR)
    for name in names or ("app",):
        status = recorded(status, *(created(name, store) for store in stores), path=f"/app/{name}.db")
    return status


def with_times(status: Status, *names: str, **times: datetime) -> Status:
    """Return a status with these times of these databases."""
    changed = {name: replace(status.databases[name], **times) for name in names}
    return replace(status, databases={**status.databases, **changed})


def with_health(status: Status, database: str = "app", store: str = DISK, **changes: Any) -> Status:
    """Return a status with these fields of one database in one store."""
    before: DatabaseHealth = status.databases[database]
    health: StoreHealth = replace(before.stores[store], **changes)
    return replace(
        status, databases={**status.databases, database: replace(before, stores={**before.stores, store: health})}
    )


def alarms_of(status: Status, now: datetime = SOON, alive_at: datetime | None = None) -> tuple[Alarm, ...]:
    """What is wrong, by a daemon that lives unless `alive_at` says something else."""
    return find_alarms(status, now=now, alive_at=alive_at or now)
