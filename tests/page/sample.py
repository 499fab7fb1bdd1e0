"""A sample for the pages: a year of one database in two stores, and the status of some others. Values, no files."""

from __future__ import annotations

import hashlib
import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from harness.packs import pack_entry
from msgspec.structs import replace

from backupd.config import RetentionSettings
from backupd.format import SnapshotId
from backupd.format.manifest import SnapshotKind, SourceFacts, Summary, Writer
from backupd.format.records import CheckOutcome
from backupd.health.alarms import find_alarms
from backupd.health.values import (
    DaemonHealth,
    DatabaseHealth,
    Failure,
    FollowHealth,
    Gap,
    LastRun,
    Problem,
    Status,
    StoreHealth,
)
from backupd.page.database import Part, render_database
from backupd.page.overview import Place, render_overview
from backupd.page.report import render_report
from backupd.page.snapshot import find_snapshot, render_snapshot
from backupd.page.values import KnownDatabase, KnownSnapshot, KnownStore, RemovedSnapshot, Situation
from backupd.repository.proofs import KnownOutcome
from backupd.repository.windows import NotedWindow
from backupd.retention import decide
from backupd.state.runs import Run

NOW = datetime(2026, 11, 22, 14, 0, 20, tzinfo=UTC)
DISK, BUCKET = "/backups", "s3://backups/creditrobot"
HOSTILE = '<script>alert("1")</script>&\'"\x1b[31m'
_MINUTE, _HOUR, _DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
_PAGE_SIZE = 4096
_WRITER = Writer(
    id="5f2c9a0b1d3e4f67", host="web-1", path="/app/app.db", uid=1000, gid=1000, mode=0o640, backupd_version="0.1.0"
)
_SOURCE = SourceFacts(
    journal_mode="wal",
    encoding="UTF-8",
    free_pages=40,
    schema_version=12,
    user_version=0,
    application_id=0,
    sqlite_version="3.45.1",
    tables=("alembic_version", "booking", "user"),
    schema_digest=hashlib.sha256(b"schema").hexdigest(),
    alembic_revisions=("9f3b2c1d",),
)
_NAMES = [
    "app",
    "billing",
    "catalogue",
    "feedback",
    "invoices",
    "jobs",
    "mail",
    "metrics",
    "sessions",
    "settings",
    "shop",
    "users",
]


def store_health(**changes: Any) -> StoreHealth:
    """A database that was captured 40 s ago, and whose last test restore passed in the night."""
    usual = StoreHealth(
        current_at=NOW - timedelta(seconds=40),
        due_by=NOW + 30 * _MINUTE,
        planned_since=NOW - 300 * _DAY,
        snapshot_id=str(SnapshotId.new(NOW - 40 * timedelta(seconds=1), 7)),
        snapshot_at=NOW - timedelta(seconds=40),
        seen_at=NOW - timedelta(seconds=40),
        proven_id=str(SnapshotId.new(NOW - 10 * _HOUR, 7)),
        proven_at=NOW - 10 * _HOUR,
        last_run=LastRun(
            started_at=NOW - timedelta(seconds=40),
            duration_seconds=0.24,
            outcome="created",
            stored_bytes=48_000,
            changed_pages=21,
            page_count=61_000,
            page_size=_PAGE_SIZE,
        ),
    )
    return replace(usual, **changes)


def database_health(name: str, stores: dict[str, StoreHealth], **changes: Any) -> DatabaseHealth:
    """A database that is backed up every quarter of an hour."""
    usual = DatabaseHealth(
        path=f"/app/instance/{name}.db",
        is_scheduled=True,
        next_run_at=NOW + 14 * _MINUTE,
        next_drill_at=NOW + 14 * _HOUR,
        journal_mode="wal",
        stores=stores,
    )
    return replace(usual, **changes)


def situation(databases: dict[str, DatabaseHealth], *, now: datetime = NOW) -> Situation:
    """What is known of these databases, by a daemon that lives."""
    daemon = DaemonHealth(pid=12, version="0.1.0", started_at=NOW - 9 * _DAY)
    status = Status(daemon=daemon, databases=databases)
    return Situation(status, find_alarms(status, now=now, alive_at=now), now, alive_at=now)


def sample(*, is_troubled: bool = False) -> Situation:
    """Twelve databases in two stores; with trouble, one cannot be stored and another does not restore."""
    found = {}
    for number, name in enumerate(_NAMES):
        pages = 61_000 if name == "app" else 900 * (number + 2)
        run = LastRun(
            started_at=NOW - timedelta(seconds=40),
            duration_seconds=0.24,
            outcome="created" if number % 3 == 0 else "unchanged",
            page_count=pages,
            page_size=_PAGE_SIZE,
            changed_pages=21,
        )
        at = NOW - timedelta(seconds=7 * (number % 6) + 5)
        found[name] = database_health(name, {url: store_health(last_run=run, current_at=at) for url in (DISK, BUCKET)})
    follow = FollowHealth(
        max_age_seconds=300,
        lag_seconds=4,
        window=str(SnapshotId.new(NOW - 9 * _HOUR, 3)),
        window_since=NOW - 9 * _HOUR,
        last_gap=Gap(at=NOW - 9 * _HOUR - 40 * _MINUTE, reason="the log was reset before it was read"),
        gaps=(NOW - 9 * _HOUR - 40 * _MINUTE,),
        gaps_total=3,
    )
    found["app"] = replace(found["app"], follow=follow)
    if is_troubled:
        failure = Failure(
            since=NOW - 3 * _HOUR,
            count=12,
            last_at=NOW - 5 * _MINUTE,
            message="s3://backups/creditrobot refused the keys: 403 AccessDenied",
            hint="look whether the key was revoked, and try it with: backupd doctor",
            exit_code=10,
        )
        late = store_health(current_at=NOW - 3 * _HOUR, failure=failure, due_by=NOW - 2 * _HOUR)
        drill = replace(failure, count=1, message="page 417 is not what was captured", hint=None, exit_code=20)
        damaged = store_health(drill_failure=drill, is_damaged=True)
        hold = Problem(
            since=NOW - 2 * _DAY,
            message="the newest snapshot has 12 MB in use, and an earlier one had 240 MB",
            hint="if the newest is right: backupd prune app --accept-shrink",
        )
        found["billing"] = database_health("billing", {DISK: store_health(), BUCKET: late})
        found["shop"] = database_health("shop", {DISK: damaged, BUCKET: store_health()})
        found["app"] = replace(found["app"], stores={**found["app"].stores, DISK: store_health(hold=hold)})
    return situation(found)


def sample_database(of: Situation, name: str = "app") -> KnownDatabase:
    """A year of `name`: what its stores have kept of a snapshot every quarter of an hour."""
    health = of.status.databases[name]
    stores = [_store(name, url, health, is_second=bool(number)) for number, url in enumerate(health.stores)]
    return KnownDatabase(name, health, tuple(stores))


def week_of_runs(name: str) -> list[tuple[datetime, str]]:
    """Runs of a week, of which a few failed."""
    return [(run.started_at, run.outcome) for run in _runs(name, DISK)]


def pages(*, is_troubled: bool = False) -> dict[str, str]:
    """All pages of the sample by their paths, and the report as `/report.html`."""
    of = sample(is_troubled=is_troubled)
    runs = {name: week_of_runs(name) for name in of.status.databases}
    found = {"/": render_overview(of, Place(), runs)}
    databases = {name: sample_database(of, name) for name in ("app", "billing")}
    for name, database in databases.items():
        found[f"/database/{name}"] = render_database(database, of, Part())
    newest = str(databases["app"].stores[0].snapshots[-1].summary.id)
    proven = next(each for each in reversed(databases["app"].stores[0].snapshots) if each.check is not None)
    for snapshot_id in (newest, str(proven.summary.id)):
        where = find_snapshot(databases["app"], snapshot_id)
        found[f"/snapshot/app/{snapshot_id}"] = render_snapshot(databases["app"], where, of)
    found["/report.html"] = render_report(
        situation({name: each.health for name, each in databases.items()}), databases, runs
    )
    return found


def summary(name: str, at: datetime, number: int, **changes: Any) -> Summary:
    """A snapshot of a database that grows by a quarter within a year, without what its base has stored."""
    age = (NOW - at) / _DAY
    page_count = int(61_000 * (1 - 0.4 * age / 365))
    pack = pack_entry(hashlib.sha256(f"{name} {number}".encode()).hexdigest(), stored_bytes=48_000, pages=21)
    usual = Summary(
        id=SnapshotId.new(at, 7),
        sequence=number,
        base=SnapshotId.new(at - 15 * _MINUTE, 7),
        database=name,
        kind=SnapshotKind.REGULAR,
        tags=(),
        page_size=_PAGE_SIZE,
        page_count=page_count,
        changed_pages=21,
        stored_bytes=48_000 + int(20_000 * math.sin(number)),
        image_digest=hashlib.sha256(f"{name} {number}".encode()).hexdigest(),
        packs=(pack,),
        source=_SOURCE,
        writer=replace(_WRITER, path=f"/app/instance/{name}.db"),
    )
    return replace(usual, **changes)


def _store(name: str, url: str, health: DatabaseHealth, *, is_second: bool) -> KnownStore:
    policy = RetentionSettings()
    times = [NOW - 40 * timedelta(seconds=1) - number * 15 * _MINUTE for number in range(4 * 24 * 8)]
    times += [NOW - number * _DAY - 30 * timedelta(seconds=1) for number in range(8, 365)]
    first = pack_entry(hashlib.sha256(name.encode()).hexdigest(), stored_bytes=16_000_000, pages=4000)
    made, packs = [], [first]
    for number, at in enumerate(reversed(times), 1):
        each = summary(name, at, number)
        packs = [first, *packs[1:][-30:], *each.packs]
        if number == len(times) - 40:
            each = replace(each, tags=("before-upgrade",))
        if number == len(times) - 16:
            each = replace(each, kind=SnapshotKind.BEFORE_RESTORE)
        made.append(replace(each, packs=tuple(packs)))
    kept = [
        each.manifest for each in decide(made[:-4], policy, now=NOW - _HOUR, known={}, undeleted=()) if each.is_kept
    ]
    gone = [each for each in made[-260:-4] if each not in kept]
    # The last hour was not pruned yet.
    there = [*kept, *made[-4:]]
    checks = {
        each.id: KnownOutcome(CheckOutcome.PROVEN, each.id.taken_at + 20 * timedelta(seconds=1))
        for number, each in enumerate(reversed(there))
        if number % 7 == 3
    }
    if is_second:
        checks = {
            key: KnownOutcome(CheckOutcome.DAMAGED_STORE if position == 2 else CheckOutcome.INTACT, found.at)
            for position, (key, found) in enumerate(checks.items())
        }
    decisions = decide(there, policy, now=NOW, known={key: each.outcome for key, each in checks.items()}, undeleted=())
    snapshots = [
        KnownSnapshot(each.manifest, checks.get(each.manifest.id), each.reasons if each.is_kept else ())
        for each in decisions
    ]
    removed = [RemovedSnapshot(each.id, NOW - _HOUR, "no rule keeps it") for each in gone]
    windows = [
        NotedWindow("1", NOW - 20 * _DAY, NOW - 12 * _DAY, 9_000_000),
        NotedWindow("2", NOW - 12 * _DAY + 3 * _HOUR, NOW - 9 * _HOUR - 40 * _MINUTE, 12_000_000),
        NotedWindow("3", NOW - 9 * _HOUR, NOW - 5 * _MINUTE, 900_000),
    ]
    is_followed = health.follow is not None
    return KnownStore(
        url=url,
        health=health.stores[url],
        snapshots=tuple(snapshots),
        removed=tuple(removed),
        windows=tuple(windows) if is_followed else (),
        runs=tuple(_runs(name, url)),
        policy=policy,
    )


def _runs(name: str, url: str) -> list[Run]:
    chosen = random.Random(name)
    runs = []
    for number in range(90 * 24):
        at = NOW - timedelta(seconds=40) - (90 * 24 - 1 - number) * _HOUR
        has_failed = name in {"app", "shop"} and 90 * 24 - 60 <= number < 90 * 24 - 56
        is_quiet = not 6 <= at.hour < 20 or (name > "c" and chosen.random() < 0.4)
        outcome = "failed" if has_failed else "unchanged" if is_quiet else "created"
        changed = 0 if is_quiet else int(chosen.paretovariate(1.6) * 12)
        run = Run(
            database=name,
            store=url,
            started_at=at,
            duration_seconds=0.05 if is_quiet else 0.2 + changed / 400,
            outcome=outcome,
            changed_pages=None if has_failed else changed,
            page_count=61_000,
            page_size=_PAGE_SIZE,
            stored_bytes=0 if is_quiet else changed * 2200,
            message="the bucket does not answer" if has_failed else None,
        )
        runs.append(run)
    return runs
