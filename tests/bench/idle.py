"""A daemon beside one small database in which nothing happens, as a sidecar, and small commands beside it."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

from harness.image import health_check

from bench.daemons import running_daemon
from bench.measuring import anonymous_bytes, cpu_seconds, timed

if TYPE_CHECKING:
    from pathlib import Path

    from bench.scene import Scene
    from bench.tools import Backupd

_COMMAND_RUNS = 15
_CHECKED_EVERY_SECONDS = 30.0
"""As the HEALTHCHECK of the image does."""
_CHECKS = 2
_STARTS_WITHIN_SECONDS = 10.0


def time_idle(scene: Scene) -> None:
    """The daemon and its health checks for a minute, which holds no round of snapshots at the default schedule."""
    backupd, database = _small(scene)
    with running_daemon(backupd) as daemon:
        daemon.wait_for("snapshot")
        scene.tell("an idle daemon")
        time.sleep(_STARTS_WITHIN_SECONDS)
        for _ in scene.each_round():
            scene.feel_pace("idle")
            _time_one(scene, backupd, daemon.process.pid)
        _time_commands(scene, backupd, database)
        for _ in range(_COMMAND_RUNS):
            scene.time("check", backupd.command("status", "--check"), backupd.environment)
    backupd.remove()


def _time_one(scene: Scene, backupd: Backupd, pid: int) -> None:
    began, cpu_before, cpu_of_checks = time.monotonic(), cpu_seconds(pid), 0.0
    for number in range(1, _CHECKS + 1):
        cpu_of_checks += timed(health_check(), backupd.environment, scene.scratch).cpu_seconds
        time.sleep(max(0.0, began + number * _CHECKED_EVERY_SECONDS - time.monotonic()))
    cpu = cpu_seconds(pid) - cpu_before + cpu_of_checks
    scene.record("idle", share=100 * cpu / (time.monotonic() - began), memory=anonymous_bytes(pid))


def _time_commands(scene: Scene, backupd: Backupd, database: Path) -> None:
    """Commands about the small database, with a change before each snapshot."""
    scene.tell("small commands")
    for number in range(_COMMAND_RUNS):
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("INSERT INTO users (name) VALUES (?)", (str(number),))
        scene.time("now", backupd.now(), backupd.environment)
        scene.time("list", backupd.command("list"), backupd.environment)
        scene.time("help", backupd.command("--help"), backupd.environment)


def _small(scene: Scene) -> tuple[Backupd, Path]:
    database = scene.scratch / "small.db"
    database.unlink(missing_ok=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
    return scene.backupd(database), database
