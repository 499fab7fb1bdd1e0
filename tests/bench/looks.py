"""Looks into a snapshot: a whole table and a diff in a directory, and one row in a bucket that answers slowly."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from harness.creditrobot import update_scattered
from harness.relay import relay

from bench.measuring import directory_bytes
from bench.snapshots import UPDATES

if TYPE_CHECKING:
    from bench.scene import Scene
    from bench.tools import Backupd

ROUND_TRIP_SECONDS = 0.02
_NOTHING = "SELECT 1"
_ROW = "SELECT * FROM reports WHERE id = 77777"
_TABLE = "SELECT sum(length(reference)), sum(user_id) FROM reports NOT INDEXED"
_BY_SQLITE = (
    "import sqlite3, sys; print(sqlite3.connect(f'file:{sys.argv[1]}?immutable=1', uri=True).execute(sys.argv[2])"
    ".fetchall())"
)


def time_looks(scene: Scene) -> None:
    """Read a whole table, beside SQLite on the restored file, and compare two snapshots."""
    database = scene.sample_database()
    backupd = scene.backupd(database)
    backupd.run("now", "--quiet")
    update_scattered(database, UPDATES, seed=0)
    backupd.run("now", "--quiet")
    difference = backupd.command("diff", "latest~1", "latest", "--rows", "0")
    for number in scene.each_round():
        scene.tell(f"looks into a snapshot, round {number}")
        _time_beyond_start(scene, "look-table", backupd, _TABLE)
        scene.time("look-table-sqlite", [sys.executable, "-c", _BY_SQLITE, database, _TABLE])
        scene.time("look-diff", difference, backupd.environment)
    scene.peak("look-table", backupd.command("query", "latest", _TABLE), backupd.environment)
    scene.peak("look-diff", difference, backupd.environment)


def time_looks_into_bucket(scene: Scene) -> None:
    """Read one row by its primary key, the first time and again, with 20 ms for each round trip."""
    try:
        from harness.s3_server import s3_server  # noqa: PLC0415  (needs what only tests need)
    except ImportError:
        scene.tell("SeaweedFS is not installed, and left out")
        return
    with s3_server() as server, relay(server.endpoint_url) as network:
        database = scene.sample_database()
        store = {
            "url": f"s3://{server.new_bucket()}",
            "endpoint_url": network.url,
            "access_key_id": server.access_key_id,
            "secret_access_key": server.secret_access_key,
        }
        backupd = scene.backupd(database, store=store)
        backupd.run("now", "--quiet")
        update_scattered(database, UPDATES, seed=0)
        backupd.run("now", "--quiet")
        network.delay(ROUND_TRIP_SECONDS)
        cache = backupd.work / "state" / "reading"
        for number in scene.each_round():
            scene.tell(f"looks into a bucket, round {number}")
            shutil.rmtree(cache, ignore_errors=True)
            _time_beyond_start(scene, "look-row", backupd, _ROW)
            scene.record("look-row", stored=directory_bytes(cache))
            _time_beyond_start(scene, "look-row-again", backupd, _ROW)
        _time_diff(scene, "look-diff-bucket", backupd)
        network.delay(0)
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE payments SET status = 'lost' WHERE id BETWEEN 5000 AND ?", (4999 + UPDATES,))
        backupd.run("now", "--quiet")
        network.delay(ROUND_TRIP_SECONDS)
        _time_diff(scene, "look-near-bucket", backupd)


def _time_diff(scene: Scene, work: str, backupd: Backupd) -> None:
    """Compare the two newest snapshots, of which nothing was read before."""
    cache = backupd.work / "state" / "reading"
    shutil.rmtree(cache, ignore_errors=True)
    scene.time(work, backupd.command("diff", "latest~1", "latest", "--rows", "0"), backupd.environment)
    scene.record(work, stored=directory_bytes(cache))


def _time_beyond_start(scene: Scene, work: str, backupd: Backupd, sql: str) -> None:
    """Record what a statement takes beyond one that reads nothing: finding the snapshot is part of the start."""
    start = scene.time(f"{work}-start", backupd.command("query", "latest", _NOTHING), backupd.environment)
    whole = scene.time(f"{work}-whole", backupd.command("query", "latest", sql), backupd.environment)
    scene.record(
        work, seconds=max(0.0, whole.seconds - start.seconds), cpu=max(0.0, whole.cpu_seconds - start.cpu_seconds)
    )
