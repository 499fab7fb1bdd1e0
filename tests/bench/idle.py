"""What a thousand databases cost in which nothing happens: a round of the daemon over them, and the health check."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from harness.s3_server import s3_server

from backupd.backup.results import BackupResult, Outcome
from backupd.capture.unchanged import fingerprint
from backupd.config import DatabaseSettings, Settings, StoreSettings
from backupd.daemon.charge import Charge
from backupd.daemon.rotations import Rotations
from backupd.daemon.rounds import Rounds
from backupd.daemon.runs import Runs
from backupd.daemon.timetable import Timetable
from backupd.format.ids import SnapshotId
from backupd.format.manifest import decode_manifest, encode_manifest
from backupd.health import StatusFile, planning
from backupd.health.heartbeats import Heartbeats
from backupd.health.judging import judge
from backupd.health.recording import with_snapshots
from backupd.logs import log
from backupd.state import StateDirectory
from backupd.store.keys import SnapshotKey
from backupd.upkeep.stores import each_once, open_repositories
from bench.methods import Backupd
from bench.processes import Run, Series, timed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IDLE_DATABASES = 1000
_ROUNDS = 15
_SETTLES_WITHIN_SECONDS = 30


@dataclass(slots=True)
class IdleFigures:
    """All that was measured. `first` is the round after a start, in which every newest manifest is asked for."""

    first: Series = field(default_factory=Series)
    later: Series = field(default_factory=Series)
    judged: Series = field(default_factory=Series)
    checked: Series = field(default_factory=Series)
    status_bytes: int = 0
    written_bytes: list[int] = field(default_factory=list)
    """By each later round, into the status file and its like."""


def time_idle_databases(scratch: Path, count: int) -> dict[str, IdleFigures]:
    """By its stores: `count` databases that every store has as they are."""
    one, two = scratch / "idle-one", scratch / "idle-two"
    with s3_server() as server:
        return {
            "a directory": _time(one, count, [StoreSettings(url=str(one / "backups"))]),
            "a directory and S3": _time(two, count, [StoreSettings(url=str(two / "backups")), server.settings()]),
        }


def _time(home: Path, count: int, stores: Sequence[StoreSettings]) -> IdleFigures:
    log.configure(is_quiet=True)
    figures = IdleFigures()
    _make_databases(home / "tenants", count)
    charge = _charge(home, stores)
    _pretend_snapshots(charge)
    timetable = Timetable()
    entry = charge.settings.databases[0]
    rounds = Rounds(charge, entry, timetable)
    schedule = charge.settings.schedule_of(entry)
    timetable.add(rounds.key, rounds.run, schedule.snapshots, schedule.zone, jitter=schedule.latest_start)
    with _measured(figures.first):
        rounds.run()
    for _ in range(_ROUNDS):
        before = _written_bytes()
        charge.sights._last = None  # rounds that are so close to each other would look for their databases once
        with _measured(figures.later):
            rounds.run()
        figures.written_bytes.append(_written_bytes() - before)
        with _measured(figures.judged):
            alarms = judge(charge.status.read(), now=datetime.now(UTC), alive_at=datetime.now(UTC))
        if alarms or _has_taken_snapshots(charge):
            raise RuntimeError(f"the databases are not idle: {alarms}")
    figures.status_bytes = (home / "state/status.json").stat().st_size
    charge.status.touch()
    backupd = Backupd(home)
    environment = {**backupd.environment, "BACKUPD_STATE_DIR": str(home / "state")}
    for _ in range(_ROUNDS):
        figures.checked.runs.append(timed([backupd.program, "status", "--check"], environment))
    shutil.rmtree(home)
    return figures


def _make_databases(directory: Path, count: int) -> None:
    """One table each, in WAL mode, as a web service has them."""
    directory.mkdir(parents=True)
    original = directory / "tenant-0000.db"
    with closing(sqlite3.connect(original)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    for number in range(1, count):
        shutil.copyfile(original, directory / f"tenant-{number:04}.db")


def _charge(home: Path, stores: Sequence[StoreSettings]) -> Charge:
    settings = Settings(
        state_dir=home / "state",
        databases=(DatabaseSettings(path=str(home / "tenants/*.db")),),
        stores=tuple(stores),
    )
    state = StateDirectory(settings.state_dir)
    status = StatusFile(state)
    return Charge(
        settings=settings,
        state=state,
        status=status,
        runs=Runs(settings.daemon.concurrent_runs),
        heartbeats=Heartbeats(()),
        repositories=open_repositories(each_once(settings.stores), state),
        wake=lambda: None,
        rotations=Rotations(state, status),
    )


def _pretend_snapshots(charge: Charge) -> None:
    """Leave what a snapshot of each database would: a round over idle databases looks at its manifest only."""
    golden = decode_manifest((Path(__file__).parents[1] / "vectors/valid/manifest-minimal.json").read_bytes())
    databases = charge.all_databases()
    _wait_until_settled(databases[-1].database.path)
    now = datetime.now(UTC)
    status = planning.with_daemon(charge.status.read(), pid=os.getpid(), version="bench", at=now)
    for _, repository in charge.repositories:
        repository.create_if_missing()
        for number, configured in enumerate(databases):
            result = BackupResult(
                database=configured.name,
                store=repository.url,
                outcome=Outcome.CREATED,
                id=SnapshotId.new(now, number),
                page_size=4096,
                page_count=2,
                changed_pages=2,
                stored_bytes=500,
            )
            manifest = replace(golden, id=result.id, database=configured.name)
            repository.put_object(str(SnapshotKey(configured.name, str(result.id))), encode_manifest(manifest))
            status = with_snapshots(
                status,
                [result],
                path=configured.database.path,
                at=now,
                due_by=configured.due_after(now, charge.settings.health.grace),
                fingerprint=fingerprint(configured.database.path, now=now),
            )
    charge.status.update(lambda _: status)


def _wait_until_settled(last: Path) -> None:
    """A file that was written a moment ago is never taken for unchanged."""
    give_up_at = time.monotonic() + _SETTLES_WITHIN_SECONDS
    while fingerprint(last, now=datetime.now(UTC)) is None:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{last} does not look idle: is the clock right?")
        time.sleep(0.1)


def _has_taken_snapshots(charge: Charge) -> bool:
    return any(
        health.totals.snapshots > 1
        for database in charge.status.read().databases.values()
        for health in database.stores.values()
    )


@contextmanager
def _measured(series: Series) -> Iterator[None]:
    """Add what the block took, in all threads of this process."""
    started, cpu_before = time.perf_counter(), time.process_time()
    yield
    series.runs.append(Run(time.perf_counter() - started, time.process_time() - cpu_before))


def _written_bytes() -> int:
    """What this process has handed to `write` so far, wherever that went."""
    with open("/proc/self/io", encoding="ascii") as opened:  # noqa: PTH123  (no file)
        return next(int(line.partition(":")[2]) for line in opened if line.startswith("wchar"))


def idle_lines(figures: dict[str, IdleFigures], count: int) -> list[str]:
    """The report."""
    lines = [
        f"| {count} idle databases, by their stores | time | CPU |",
        "|---|---|---|",
    ]
    for stores, each in figures.items():
        for what, series in (
            ("round", each.later),
            ("first round after a start", each.first),
            ("looking for alarms", each.judged),
            ("`backupd status --check`", each.checked),
        ):
            lines.append(f"| {stores}: {what} | {_milliseconds(series)} | {series.cpu_seconds * 1000:.0f} ms |")
        lines.append(
            f"| {stores}: status file {each.status_bytes / 1e6:.2f} MB, "
            f"written by a round {median(each.written_bytes) / 1e6:.2f} MB | | |"
        )
    return lines


def _milliseconds(series: Series) -> str:
    every = sorted(run.seconds * 1000 for run in series.runs)
    return f"{median(every):.0f} ms ({every[0]:.0f}-{every[-1]:.0f})"
