"""A thousand small databases: the first snapshot of all, and rounds of the daemon in which few or none have changed."""

from __future__ import annotations

import random
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from bench.daemons import running_daemon, sleep_until_next_minute
from bench.measuring import anonymous_bytes, cpu_seconds, directory_bytes, written_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from harness.daemon import Daemon

    from bench.scene import Scene

CHANGED = 10
_CONTENT_BYTES = 80_000
_ROW_BYTES = 1000
_MINUTELY = {"snapshots": "every 1m"}
# A busy machine may be late: the health check is to do what it does while all is well.
_PATIENT = {"grace": "2h"}
_LOOKED_BEFORE_SECONDS = 4.0
_ENDS_WITHIN_SECONDS = 600.0
_TAIL_SECONDS = 2.0
"""After its last snapshot, a round prunes, and writes its state."""


def time_tenants(scene: Scene) -> None:
    """Take the first snapshots by command, and then let a daemon make a round every minute."""
    count = scene.scale.databases
    tenants = scene.scratch / "tenants"
    scene.tell(f"making {count} databases")
    databases = _make_databases(tenants, count)
    backupd = scene.backupd(f"{tenants}/*.db", schedule=_MINUTELY, health=_PATIENT)
    for number in scene.each_round():
        scene.tell(f"first snapshots of {count} databases, round {number}")
        backupd = scene.backupd(f"{tenants}/*.db", schedule=_MINUTELY, health=_PATIENT)
        scene.time("tenants-first", backupd.now(), backupd.environment)
        scene.record("tenants-first", stored=directory_bytes(backupd.store))
    # Its second look finds each database with the files that SQLite keeps beside it while it is open.
    scene.settle()
    backupd.run("now", "--quiet")
    with running_daemon(backupd) as daemon:
        _wait_for_quiet_round(daemon, count)
        for number in scene.each_round():
            scene.tell(f"rounds of the daemon over {count} databases, round {number}")
            _time_round(scene, "tenants-idle", daemon, unchanged=count)
            # Its own change is of the next round; what is written right before a round would be looked at twice.
            changed = random.Random(number).sample(databases, min(CHANGED, count))
            for database in changed:
                _change(database)
            _time_round(scene, "tenants-round", daemon, unchanged=count - len(changed), created=len(changed))
            scene.time("tenants-check", backupd.command("status", "--check"), backupd.environment)
            _wait_for_quiet_round(daemon, count)
        scene.record("tenants-idle", memory=anonymous_bytes(daemon.process.pid))
    backupd.remove()


def _make_databases(directory: Path, count: int) -> list[Path]:
    """Make `count` databases of about 100 kB with rows of their own, in WAL mode."""
    directory.mkdir(parents=True, exist_ok=True)
    random_bytes = random.Random(1).randbytes
    databases = []
    for number in range(count):
        database = directory / f"tenant-{number:04}.db"
        databases.append(database)
        if database.exists():
            continue
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = off")
            connection.execute("CREATE TABLE reports (id INTEGER PRIMARY KEY, content TEXT)")
            connection.executemany(
                "INSERT INTO reports (content) VALUES (?)",
                ((random_bytes(_ROW_BYTES // 2).hex(),) for _ in range(_CONTENT_BYTES // _ROW_BYTES)),
            )
    return databases


def _change(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE reports SET content = upper(content) || id WHERE id = abs(random()) % 80 + 1")


def _wait_for_quiet_round(daemon: Daemon, count: int) -> None:
    """Wait for a round that finds nothing to do: only after it, the next one has nothing left of the one before."""
    daemon.wait_for("nothing changed", after=daemon.position, patience_seconds=_ENDS_WITHIN_SECONDS, databases=count)
    time.sleep(_TAIL_SECONDS)


def _time_round(scene: Scene, work: str, daemon: Daemon, *, unchanged: int, created: int = 0) -> None:
    """Record what the next round costs, which has to take `created` snapshots, and find the others `unchanged`."""
    pid = daemon.process.pid
    scene.feel_pace(work)
    sleep_until_next_minute(but_seconds=_LOOKED_BEFORE_SECONDS)
    position = daemon.position
    began, written = cpu_seconds(pid), written_bytes(pid)
    if unchanged:
        daemon.wait_for("nothing changed", after=position, patience_seconds=_ENDS_WITHIN_SECONDS)
    give_up_at = time.monotonic() + _ENDS_WITHIN_SECONDS
    while len(taken := daemon.events_of("snapshot", after=position, outcome="created")) < created:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"{len(taken)} of {created} snapshots were taken in time")
        time.sleep(0.1)
    time.sleep(_TAIL_SECONDS)
    (idle, *others) = daemon.events_of("nothing changed", after=position) or [{"databases": 0}]
    if others or idle["databases"] != unchanged or len(taken) != created:
        raise RuntimeError(f"not the round that was to be measured: {daemon.events[position:]}")
    scene.record(work, cpu=cpu_seconds(pid) - began, written=written_bytes(pid) - written)
