"""Snapshots and restores of one database, beside the usual method: fresh, after a month, and by compression level."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from harness.creditrobot import update_scattered

from bench.measuring import directory_bytes
from bench.tools import Usual

if TYPE_CHECKING:
    from pathlib import Path

    from bench.scene import Scene
    from bench.tools import Backupd

UPDATES = 1000
LEVELS = (1, 2, 3)
DAYS = 30


def time_snapshots(scene: Scene) -> None:
    """The first snapshot, a restore, nothing new, a new time stamp, and 1,000 updates; the usual method in turn."""
    database, target = scene.sample_database(), scene.scratch / "restored.db"
    usual = Usual(scene.scratch / "usual")
    for number in scene.each_round():
        scene.tell(f"snapshots and restores, round {number}")
        backupd = scene.backupd(database)
        _time_first(scene, backupd, usual, database, is_usual_first=number % 2 == 0)
        _time_restore(scene, "restore", backupd, usual, target)
        # The first snapshot may have found the database without the files that SQLite keeps beside it while it is open.
        backupd.run("now", "--quiet")
        scene.settle()
        backupd.run("now", "--quiet")
        scene.time("unchanged", backupd.now(), backupd.environment)
        database.touch()
        scene.settle()
        scene.time("touched", backupd.now(), backupd.environment)
        update_scattered(database, UPDATES, seed=number)
        stored_before = directory_bytes(backupd.store)
        scene.time("updates", backupd.now(), backupd.environment)
        scene.record("updates", stored=directory_bytes(backupd.store) - stored_before)
    _measure_memory(scene, database, target)


def _time_first(scene: Scene, backupd: Backupd, usual: Usual, database: Path, *, is_usual_first: bool) -> None:
    if is_usual_first:
        _time_usual(scene, "usual", usual, database)
    scene.time("first", backupd.now(), backupd.environment)
    scene.record("first", stored=directory_bytes(backupd.store))
    if not is_usual_first:
        _time_usual(scene, "usual", usual, database)


def _time_usual(scene: Scene, work: str, usual: Usual, database: Path) -> None:
    if usual.is_installed():
        scene.time(work, usual.backup(database))
        scene.record(work, stored=usual.archive.stat().st_size)


def _time_restore(scene: Scene, work: str, backupd: Backupd, usual: Usual, target: Path) -> None:
    scene.time(work, backupd.restore(target), backupd.environment)
    if usual.is_installed():
        scene.time(f"{work}-usual", usual.restore(target))


def _measure_memory(scene: Scene, database: Path, target: Path) -> None:
    """Measure peak memory in runs of their own, because looking at it slows a command down."""
    scene.tell("memory of snapshots and restores")
    backupd = scene.backupd(database)
    scene.peak("first", backupd.now(), backupd.environment)
    scene.peak("restore", backupd.restore(target), backupd.environment)
    database.touch()
    scene.peak("touched", backupd.now(), backupd.environment)
    update_scattered(database, UPDATES, seed=0)
    scene.peak("updates", backupd.now(), backupd.environment)


def time_increments(scene: Scene) -> None:
    """A restore after a month with a snapshot of 1,000 updates every day, beside `zstd -d` of the same state."""
    database, target = scene.sample_database(), scene.scratch / "restored.db"
    backupd, usual = scene.backupd(database), Usual(scene.scratch / "usual")
    backupd.run("now", "--quiet")
    scene.tell(f"{DAYS} snapshots of {UPDATES} updates each")
    for day in range(DAYS):
        update_scattered(database, UPDATES, seed=day)
        backupd.run("now", "--quiet")
    if usual.is_installed():
        scene.time("usual-later", usual.backup(database))
    for number in scene.each_round():
        scene.tell(f"restores after {DAYS} increments, round {number}")
        _time_restore(scene, "restore-later", backupd, usual, target)
    scene.peak("restore-later", backupd.restore(target), backupd.environment)


def time_levels(scene: Scene) -> None:
    """First snapshots at several compression levels, each round beside the usual method."""
    database, usual = scene.sample_database(), Usual(scene.scratch / "usual")
    for number in scene.each_round():
        scene.tell(f"compression levels, round {number}")
        _time_usual(scene, "usual-beside-levels", usual, database)
        for level in LEVELS:
            backupd = scene.backupd(database, level=level)
            scene.time(f"level-{level}", backupd.now(), backupd.environment)
            scene.record(f"level-{level}", stored=directory_bytes(backupd.store))
    for level in LEVELS:
        backupd = scene.backupd(database, level=level)
        scene.peak(f"level-{level}", backupd.now(), backupd.environment)
    shutil.rmtree(usual.work, ignore_errors=True)
