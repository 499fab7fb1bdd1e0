"""Snapshots of a database in rollback-journal mode: how long a writer of the application waits for its lock."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.creditrobot import update_scattered

from bench.measuring import busy_loops, flush, timed, tried
from bench.waits import PROBE, WRITE, application

if TYPE_CHECKING:
    from pathlib import Path

    from bench.scene import Scene
    from bench.tools import Backupd

_UPDATES = 1000
_WATCHED_SECONDS = 2.0
_BUSY_LOOPS = 4
_SNAPSHOTS_BESIDE_BUSY_LOOPS = 10
_ROUNDS_OF_A_FULL_RUN = 3
# A later snapshot needs a first one: where the measured one was given up, another is taken without the application.
_PATIENT = {"BACKUPD_CAPTURE__MAX_LOCK": "10m"}


@dataclass(frozen=True, slots=True)
class Situation:
    """What runs beside a snapshot: one process that wants the lock, and processes that keep the cores busy."""

    key: str
    name: str
    statement: str
    thinking_seconds: float
    busy_loops: int = 0

    def snapshots(self, rounds: int) -> int:
        """How many snapshots of each kind to take: more beside busy loops, to show whether each of them succeeds."""
        return _SNAPSHOTS_BESIDE_BUSY_LOOPS if self.busy_loops and rounds >= _ROUNDS_OF_A_FULL_RUN else rounds


SITUATIONS = (
    # The probe takes the exclusive lock and changes nothing.
    Situation("alone", "no other writer", PROBE, 0.02),
    Situation("writer", "20 commits a second", WRITE, 0.05),
    Situation("busy", f"20 commits a second, beside {_BUSY_LOOPS} busy loops", WRITE, 0.05, _BUSY_LOOPS),
)


def time_lock_waits(scene: Scene) -> None:
    """Take first and later snapshots in turn in each situation; failed ones count in every figure.

    Each first snapshot begins with an empty store and state directory, and each later one follows 1,000 updates.
    """
    database = scene.sample_database()
    _use_rollback_journal(database)
    for situation in SITUATIONS:
        for number in scene.each_round(situation.snapshots(scene.rounds)):
            scene.tell(f"snapshots in rollback-journal mode, {situation.name}, round {number}")
            backupd = scene.backupd(database)
            if not _time_one(scene, f"lock-{situation.key}-first", database, backupd, situation):
                timed(backupd.now(), {**backupd.environment, **_PATIENT}, scene.scratch)
            update_scattered(database, _UPDATES, seed=number)
            _time_one(scene, f"lock-{situation.key}-later", database, backupd, situation)


def _use_rollback_journal(database: Path) -> None:
    """Set the journal mode to `delete`, SQLite's default. Raises RuntimeError when the database keeps another."""
    with closing(sqlite3.connect(database)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode = delete").fetchone()
    if mode != "delete":
        raise RuntimeError(f"{database} stays in journal mode {mode}")


def _time_one(scene: Scene, work: str, database: Path, backupd: Backupd, situation: Situation) -> bool:
    """Take one snapshot, which may fail, beside the process of `situation`; whether it succeeded."""
    flush(scene.scratch)  # so that the flushes of the watched process do not wait for what was written before
    scene.feel_pace(work)
    with (
        busy_loops(situation.busy_loops),
        application(database, situation.statement, situation.thinking_seconds) as process,
    ):
        time.sleep(_WATCHED_SECONDS)
        started = time.monotonic()
        run = tried(backupd.now(), backupd.environment, scene.scratch)
        before, after = process.waits(started)
    scene.record(work, seconds=run.seconds, cpu=run.cpu_seconds, wait=after.longest, failures=float(run.exit_code != 0))
    scene.record(f"{work}-undisturbed", wait=before.longest)
    return run.exit_code == 0
