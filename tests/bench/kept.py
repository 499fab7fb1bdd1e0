"""A small database with many snapshots, beside one with few: what `now`, `list` and `prune` cost."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from harness.long_history import write_long_history

from bench.tools import Backupd

if TYPE_CHECKING:
    from pathlib import Path

    from bench.scene import Scene

FEW = 10


def time_long_histories(scene: Scene) -> None:
    """Look at each history once as a new machine does, then take snapshots in turn, and list and prune the long one."""
    places = {
        name: _make(scene, name, snapshots) for name, snapshots in (("few", FEW), ("many", max(FEW, scene.scale.kept)))
    }
    for name, (backupd, _) in places.items():
        # Nothing is known of the store yet.
        scene.time(f"list-{name}-first", backupd.command("list"), backupd.environment)
        backupd.run("now", "--quiet")
    many, _ = places["many"]
    for number in scene.each_round():
        scene.tell(f"a history of {scene.scale.kept} snapshots, round {number}")
        for name, (backupd, database) in places.items():
            _change(database, number)
            scene.time(f"now-{name}", backupd.now(), backupd.environment)
        scene.time("list-many", many.command("list"), many.environment)
        scene.time("prune-many", many.command("prune", "--dry-run"), many.environment)
    scene.peak("list-many", many.command("list"), many.environment)
    for backupd, _ in places.values():
        backupd.remove()


def _make(scene: Scene, name: str, snapshots: int) -> tuple[Backupd, Path]:
    scene.tell(f"making a history of {snapshots} snapshots")
    backupd, database = Backupd(scene.scratch / f"kept-{name}"), scene.scratch / f"kept-{name}" / "app.db"
    backupd.configure([database])
    write_long_history(database, backupd.store, snapshots)
    return backupd, database


def _change(database: Path, number: int) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS changes (number INTEGER)")
        connection.execute("INSERT INTO changes VALUES (?)", (number,))
