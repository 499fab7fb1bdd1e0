"""Other ways to back up the same database into a directory, in turn with backupd: each does what it does best.

An application keeps the database open. Litestream is a process that follows the log: what it costs to bring 1,000
updates into its replica is measured while it runs: processor time from the first update on, and time from the last one,
until it says that it has replicated all. What it makes of that later, when it compacts its files, is not counted.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from harness.creditrobot import update_scattered

from bench.measuring import anonymous_bytes, cpu_seconds, directory_bytes, timed
from bench.snapshots import UPDATES
from bench.tools import Litestream, Restic, Usual, plain_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bench.scene import Scene

OURS = "backupd"
PEERS = {
    "usual": "`.backup` + zstd -3",
    "restic": "`.backup` + restic",
    "litestream": "Litestream",
}
"""By key, as tables name them."""
WORKS = {
    "first": "first backup",
    "updates": "1,000 scattered updates",
    "unchanged": "nothing new",
    "restore": "restore",
}
_SETTLES_WITHIN_SECONDS = 600.0
_PAUSE_SECONDS = 2.0


def time_peers(scene: Scene) -> None:
    """Back up, again after nothing and after updates, and restore, by each installed tool; in turn in each round."""
    tools: dict[str, Callable[[Scene, int], None]] = {OURS: _time_backupd}
    for key, (is_installed, measure) in {
        "usual": (Usual.is_installed, _time_usual),
        "restic": (Restic.is_installed, _time_restic),
        "litestream": (Litestream.is_installed, _time_litestream),
    }.items():
        if is_installed():
            tools[key] = measure
        else:
            scene.tell(f"{PEERS[key]} is not installed, and left out")
    for number in scene.each_round():
        for key, measure in tools.items() if number % 2 else reversed(tools.items()):
            scene.tell(f"round {number}: {key}")
            measure(scene, number)


@contextmanager
def _database(scene: Scene, key: str) -> Iterator[Path]:
    """A database that an application has open."""
    database = scene.sample_database(f"of-{key}.db")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT count(*) FROM users").fetchone()
        yield database
    database.unlink()


def _measure(
    scene: Scene, work: str, command: Callable[[], list[str | Path]], environment: dict[str, str], kept: Path | None
) -> None:
    """Time one command, with the bytes that it adds to the directory `kept`."""
    before = 0 if kept is None else directory_bytes(kept)
    scene.time(work, command(), environment)
    if kept is not None:
        scene.record(work, stored=directory_bytes(kept) - before)


def _time_backupd(scene: Scene, number: int) -> None:
    target = scene.scratch / "restored.db"
    with _database(scene, OURS) as database:
        backupd = scene.backupd(database)
        environment = backupd.environment
        _measure(scene, f"first-{OURS}", backupd.now, environment, backupd.store)
        backupd.run("now", "--quiet")
        scene.settle()
        backupd.run("now", "--quiet")
        _measure(scene, f"unchanged-{OURS}", backupd.now, environment, backupd.store)
        update_scattered(database, UPDATES, seed=number)
        _measure(scene, f"updates-{OURS}", backupd.now, environment, backupd.store)
        _measure(scene, f"restore-{OURS}", lambda: backupd.restore(target), environment, None)
        if number == 1:
            update_scattered(database, UPDATES, seed=-number)
            scene.peak(f"updates-{OURS}", backupd.now(), environment)
            scene.peak(f"unchanged-{OURS}", backupd.now(), environment)
            scene.peak(f"restore-{OURS}", backupd.restore(target), environment)
            backupd = scene.backupd(database)
            scene.peak(f"first-{OURS}", backupd.now(), environment)
        backupd.remove()
    target.unlink()


def _time_usual(scene: Scene, number: int) -> None:
    """Every backup is a whole one: it begins without the one before, and keeps the same bytes."""
    usual, target = Usual(scene.scratch / "usual"), scene.scratch / "restored.db"
    environment = plain_environment()
    with _database(scene, "usual") as database:
        for work in ("first", "unchanged", "updates"):
            if work == "updates":
                update_scattered(database, UPDATES, seed=number)
            scene.time(f"{work}-usual", usual.backup(database), environment)
            scene.record(f"{work}-usual", stored=usual.archive.stat().st_size)
            if number == 1:
                scene.peak(f"{work}-usual", usual.backup(database), environment)
        scene.time("restore-usual", usual.restore(target), environment)
        if number == 1:
            scene.peak("restore-usual", usual.restore(target), environment)
    shutil.rmtree(usual.work)
    target.unlink()


def _time_restic(scene: Scene, number: int) -> None:
    restic, target = Restic(scene.scratch / "restic"), scene.scratch / "restored"
    environment = restic.environment
    with _database(scene, "restic") as database:
        if number == 1:
            restic.prepare()
            scene.peak("first-restic", restic.backup(database), environment)
        restic.prepare()
        for work in ("first", "unchanged", "updates"):
            if work == "updates":
                update_scattered(database, UPDATES, seed=number)
            _measure(scene, f"{work}-restic", lambda: [*restic.backup(database)], environment, restic.repository)
            if number == 1 and work != "first":
                if work == "updates":
                    update_scattered(database, UPDATES, seed=-number)
                scene.peak(f"{work}-restic", restic.backup(database), environment)
        _measure(scene, "restore-restic", lambda: [*restic.restore(target)], environment, None)
        if number == 1:
            scene.peak("restore-restic", restic.restore(target), environment)
    shutil.rmtree(restic.work)
    shutil.rmtree(target)


def _time_litestream(scene: Scene, number: int) -> None:
    target, environment = scene.scratch / "restored.db", plain_environment()
    with _database(scene, "litestream") as database:
        litestream = Litestream(scene.scratch / "litestream", database)
        if number == 1:
            litestream.prepare()
            scene.peak("first-litestream", litestream.once(), environment)
        litestream.prepare()
        _measure(scene, "first-litestream", lambda: [*litestream.once()], environment, litestream.replica)
        _time_following(scene, litestream, number, environment)
        _measure(scene, "restore-litestream", lambda: [*litestream.restore(target)], environment, None)
        if number == 1:
            scene.peak("restore-litestream", litestream.restore(target), environment)
        litestream.prepare()
    shutil.rmtree(litestream.work)
    target.unlink()


def _time_following(scene: Scene, litestream: Litestream, number: int, environment: dict[str, str]) -> None:
    """Record updates as a process replicates them that has followed the log before: memory is that afterwards."""
    work = "updates-litestream"
    with subprocess.Popen(litestream.follow(), env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            _wait_until_idle(litestream, environment)
            scene.feel_pace(work)
            stored, cpu = directory_bytes(litestream.replica), cpu_seconds(process.pid)
            update_scattered(litestream.database, UPDATES, seed=number)
            sync = timed(litestream.sync(), environment, scene.scratch)
            scene.record(
                work,
                seconds=sync.seconds,
                cpu=cpu_seconds(process.pid) - cpu + sync.cpu_seconds,
                stored=directory_bytes(litestream.replica) - stored,
                memory=anonymous_bytes(process.pid),
            )
        finally:
            process.terminate()
            process.wait()


def _wait_until_idle(litestream: Litestream, environment: dict[str, str]) -> None:
    """Wait until it answers, and has made the copies of the whole database that it makes after its start."""
    give_up_at = time.monotonic() + _SETTLES_WITHIN_SECONDS
    while not litestream.has_settled() or _fails(litestream.sync(), environment):
        if time.monotonic() > give_up_at:
            raise RuntimeError("litestream does not come to rest")
        time.sleep(0.2)
    time.sleep(_PAUSE_SECONDS)


def _fails(command: list[str], environment: dict[str, str]) -> bool:
    return subprocess.run(command, env=environment, check=False, capture_output=True).returncode != 0
