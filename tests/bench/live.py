"""Restores into a database that is in use: how long its application waits, beside what the plan says."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from harness.creditrobot import generate

from bench.waits import READ, WRITE, application

if TYPE_CHECKING:
    from pathlib import Path

    from bench.scene import Scene
    from bench.tools import Backupd

LIVE_BYTES = 100 * 10**6
MODES = {"wal": "WAL", "delete": "rollback"}
_WATCHED_SECONDS = 0.7


def time_live_restores(scene: Scene) -> None:
    """Restore a database of at most `LIVE_BYTES` live, in both journal modes."""
    database = scene.scratch / "live.db"
    database.unlink(missing_ok=True)
    generate(database, size_bytes=min(scene.scale.size_bytes, LIVE_BYTES))
    backupd = scene.backupd(database)
    for journal_mode, name in MODES.items():
        with closing(sqlite3.connect(database)) as connection:
            connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        backupd.run("now", "--quiet", "--tag", journal_mode)
        plan = backupd.json("restore", journal_mode, "--dry-run", "--quiet")["plan"]
        scene.record(f"live-{name}-writer-plan", wait=plan["pause_seconds"] + plan["saving_seconds"])
        scene.record(f"live-{name}-reader-plan", wait=plan["pause_seconds"] if plan["readers_wait"] else 0.0)
        for number in scene.each_round():
            scene.tell(f"live restores in {name} mode, round {number}")
            _time_one(scene, f"live-{name}", backupd, database, journal_mode)
    backupd.remove()


def _time_one(scene: Scene, work: str, backupd: Backupd, database: Path, tag: str) -> None:
    """Time one restore beside a process that writes and one that reads."""
    with application(database, WRITE) as writer, application(database, READ) as reader:
        time.sleep(_WATCHED_SECONDS)
        started = time.monotonic()
        scene.time(work, backupd.command("restore", tag, "--yes", "--quiet"), backupd.environment)
        # The checkpoint of what was restored comes with the next commit of the application, which waits for it.
        time.sleep(_WATCHED_SECONDS)
        for name, process in (("writer", writer), ("reader", reader)):
            before, after = process.waits(started)
            scene.record(f"{work}-{name}", wait=after.longest)
            scene.record(f"{work}-{name}-alone", wait=before.longest)
