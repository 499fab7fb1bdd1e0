"""Snapshots of a database in rollback-journal mode: how long a writer of the application waits for its lock."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.creditrobot import update_scattered

from bench.processes import Series, busy_loops, timed, tried
from bench.waits import PROBE, WRITE, Waits, application, longest_wait

if TYPE_CHECKING:
    from pathlib import Path

    from bench.methods import Backupd

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

    name: str
    statement: str
    thinking_seconds: float
    busy_loops: int = 0

    def snapshots(self, rounds: int) -> int:
        """How many to take of each kind: beside busy loops more, to show whether each of them succeeds."""
        return _SNAPSHOTS_BESIDE_BUSY_LOOPS if self.busy_loops and rounds >= _ROUNDS_OF_A_FULL_RUN else rounds


SITUATIONS = (
    Situation("no other writer", PROBE, 0.02),
    Situation("a writer", WRITE, 0.05),
    Situation(f"a writer and {_BUSY_LOOPS} busy loops", WRITE, 0.05, _BUSY_LOOPS),
)


@dataclass(slots=True)
class LockFigures:
    """Of one kind of snapshot in one situation: the command, and the waits of one process during it and before it."""

    snapshots: Series = field(default_factory=Series)
    waits: list[Waits] = field(default_factory=list)
    undisturbed_waits: list[Waits] = field(default_factory=list)


def use_rollback_journal(database: Path) -> None:
    """Set the journal mode to `delete`, SQLite's default. Raises RuntimeError when the database keeps another."""
    with closing(sqlite3.connect(database)) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode = delete").fetchone()
    if mode != "delete":
        raise RuntimeError(f"{database} stays in journal mode {mode}")


def time_lock_waits(database: Path, backupd: Backupd, situation: Situation, rounds: int) -> dict[str, LockFigures]:
    """Take first and later snapshots in turn in one situation; figures by what was done.

    Each first snapshot begins with an empty store and state directory, and each later one follows 1,000 updates.
    """
    first, later = LockFigures(), LockFigures()
    for number in range(1, situation.snapshots(rounds) + 1):
        backupd.remove()
        _time_one(database, backupd, situation, first)
        if first.snapshots.runs[-1].exit_code:
            timed(backupd.backup(database), {**backupd.environment, **_PATIENT})
        update_scattered(database, _UPDATES, seed=number)
        _time_one(database, backupd, situation, later)
    return {f"first snapshot, {situation.name}": first, f"later snapshot, {situation.name}": later}


def _time_one(database: Path, backupd: Backupd, situation: Situation, figures: LockFigures) -> None:
    """Take one snapshot, which may fail, beside the process of `situation`, which is watched without one before."""
    os.sync()  # so that the flushes of the watched process do not wait for what was written before
    with (
        busy_loops(situation.busy_loops),
        application(database, situation.statement, situation.thinking_seconds) as process,
    ):
        time.sleep(_WATCHED_SECONDS)
        started = time.monotonic()
        figures.snapshots.runs.append(tried(backupd.backup(database), backupd.environment))
        before, after = process.waits(started)
        figures.undisturbed_waits.append(before)
        figures.waits.append(after)


def lock_lines(figures: dict[str, LockFigures], size_bytes: int) -> list[str]:
    """The report: a table of medians with their ranges."""
    columns = ["longest wait", "without a snapshot", "command", "CPU", "succeeded"]
    lines = [
        f"| waits for the lock, rollback-journal mode, {size_bytes / 1e6:.0f} MB | {' | '.join(columns)} |",
        "|---|---|---|---|---|---|",
    ]
    for what, each in figures.items():
        waits = f"{longest_wait(each.waits)} | {longest_wait(each.undisturbed_waits)}"
        succeeded = f"{each.snapshots.successes} of {len(each.snapshots.runs)}"
        lines.append(f"| {what} | {waits} | {each.snapshots} | {each.snapshots.cpu_seconds:.2f} s | {succeeded} |")
    return [
        *lines,
        "",
        "A later snapshot follows 1,000 scattered one-row updates. Where there is no other writer, a probe takes the",
        "exclusive lock every 20 ms and changes nothing; the writer pauses for 50 ms after each commit. The waits",
        f"without a snapshot are those of the same process in the {_WATCHED_SECONDS:.0f} s before.",
        "Failed snapshots are included in every figure.",
    ]
