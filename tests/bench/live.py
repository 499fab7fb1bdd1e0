"""Restores into a database that is in use: how long its application waits, beside what the plan says."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from harness.creditrobot import generate

from bench.processes import Series, timed
from bench.waits import READ, WRITE, Waits, application, longest_wait

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bench.methods import Backupd

LIVE_BYTES = 100 * 10**6
_MODES = {"wal": "WAL", "delete": "rollback"}
_WATCHED_SECONDS = 0.7


@dataclass(slots=True)
class LiveFigures:
    """Of all rounds in one journal mode: the command, the waits in its plan, and what two processes saw meanwhile."""

    planned_for_writers: float
    planned_for_readers: float
    restored: Series = field(default_factory=Series)
    writes: list[Waits] = field(default_factory=list)
    reads: list[Waits] = field(default_factory=list)
    undisturbed_writes: list[Waits] = field(default_factory=list)
    undisturbed_reads: list[Waits] = field(default_factory=list)


def time_live_restores(scratch: Path, backupd: Backupd, size_bytes: int, rounds: int) -> dict[str, LiveFigures]:
    """Restore a database of at most `LIVE_BYTES` live, in both journal modes; figures by the name of the mode."""
    database = scratch / "live.db"
    generate(database, size_bytes=min(size_bytes, LIVE_BYTES))
    found = {}
    for journal_mode, name in _MODES.items():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        _run(backupd, [*backupd.backup(database), "--tag", journal_mode])
        found[name] = figures = LiveFigures(*_planned_waits(database, backupd, journal_mode))
        for _ in range(rounds):
            _time_one(database, backupd, journal_mode, figures)
    database.unlink()
    return found


def _planned_waits(database: Path, backupd: Backupd, tag: str) -> tuple[float, float]:
    """How long writers, and how long readers are told to wait, in seconds."""
    plan = json.loads(_run(backupd, backupd.restore_live(database, tag, "--dry-run")))["plan"]
    return plan["pause_seconds"] + plan["saving_seconds"], plan["pause_seconds"] if plan["readers_wait"] else 0.0


def _time_one(database: Path, backupd: Backupd, tag: str, figures: LiveFigures) -> None:
    """One restore beside a process that writes and one that reads."""
    with application(database, WRITE) as writer, application(database, READ) as reader:
        time.sleep(_WATCHED_SECONDS)
        started = time.monotonic()
        figures.restored.runs.append(timed(backupd.restore_live(database, tag, "--yes"), backupd.environment))
        # The checkpoint of what was restored comes with the next commit of the application, which waits for it.
        time.sleep(_WATCHED_SECONDS)
        for process, alone, beside in (
            (writer, figures.undisturbed_writes, figures.writes),
            (reader, figures.undisturbed_reads, figures.reads),
        ):
            before, after = process.waits(started)
            alone.append(before)
            beside.append(after)


def _run(backupd: Backupd, command: Sequence[str | Path]) -> bytes:
    return subprocess.run(command, env=backupd.environment, check=True, stdout=subprocess.PIPE).stdout


def live_lines(figures: dict[str, LiveFigures], size_bytes: int) -> list[str]:
    """The report: a table of medians, with ranges for what was waited."""
    size = f"{min(size_bytes, LIVE_BYTES) / 1e6:.0f} MB"
    columns = ["command", "longest wait of a writer", "in its plan", "longest wait of a reader", "in its plan"]
    lines = [f"| live restore of {size} | {' | '.join(columns)} |", "|---|---|---|---|---|---|"]
    notes = []
    for mode, each in figures.items():
        writer = f"{longest_wait(each.writes)} | {each.planned_for_writers:.2f} s"
        reader = f"{longest_wait(each.reads)} | {each.planned_for_readers:.2f} s"
        lines.append(f"| {mode} mode | {each.restored} | {writer} | {reader} |")
        alone = f"{longest_wait(each.undisturbed_writes)} and {longest_wait(each.undisturbed_reads)}"
        notes.append(f"{mode} mode {_median(each.writes)} and {_median(each.reads)}, longest without restore {alone}")
    lines.append("\nOne process writes and one reads every few milliseconds. Medians of their statements meanwhile:")
    return [*lines, f"{'; '.join(notes)}."]


def _median(waits: Sequence[Waits]) -> str:
    return f"{median(wait.median for wait in waits) * 1000:.2f} ms"
