"""What following stores, and a restore from it, without waiting for the time that it stands for.

The commits are those of a real log, read by the real follower, and put into segments at once that a daemon would cut
within an hour: the times at which they were seen are closer to each other than they would be, which changes no size.
"""

from __future__ import annotations

import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import zstandard

from backupd.follow.log import Gap, LogFollower
from backupd.format import SnapshotId
from backupd.format.segment import SEGMENT_LEVEL, Anchor, Commit, SegmentHead, encode_segment
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from bench.commits import committer
from bench.tools import Litestream, plain_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from bench.scene import Scene

INTERVALS = (1, 10)
"""Seconds: what is usual for directories, and for buckets."""
LITESTREAM_INTERVAL = 10
"""Seconds after which it has to replicate. It is asked to by a command, which would take too long each second."""
_HOUR_SECONDS = 3600
_HOUR_RATE = 10
_MOMENT_SECONDS = 900
_MOMENT_RATE = 100
_USUAL_BYTES = 10**9
_FEWEST_SECONDS = 20
_POLLED_AFTER_COMMITS = 100
_STARTS_WITHIN_SECONDS = 60.0


def time_moments(scene: Scene) -> None:
    """Restore a snapshot, and in turn the last commit of a quarter of an hour after it, from segments of a second.

    In a smaller database, from proportionally fewer of them.
    """
    database, target = scene.sample_database(), scene.scratch / "restored.db"
    backupd = scene.backupd(database)
    snapshot = str(backupd.json("now", "--quiet")["snapshots"][0]["id"])
    scene.tell("making segments")
    repository = Repository(DirectoryStore(backupd.store), StateDirectory(scene.scratch / "making"))
    archive = repository.archive(database.stem)
    first, anchors = 1, (Anchor(snapshot=SnapshotId(snapshot), after=0, by=0),)
    window = SnapshotId.new(datetime.now(UTC), 1)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for commits, page_size in _followed(connection, database, _MOMENT_RATE, _part(scene, _MOMENT_SECONDS)):
            head = SegmentHead(database=database.stem, window=window, first=first, page_size=page_size, anchors=anchors)
            archive.put_segment(encode_segment(head, commits, level=SEGMENT_LEVEL))
            first, anchors = first + len(commits), ()
        time.sleep(1.0)
        moment = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        for number in scene.each_round():
            scene.tell(f"restores to a moment, round {number}")
            for work, what in (("follow-restore-snapshot", snapshot), ("follow-restore", moment)):
                target.unlink(missing_ok=True)
                scene.time(work, backupd.command("restore", what, "--to", target, "--quiet"), backupd.environment)
        scene.peak("follow-restore", backupd.command("restore", moment, "--to", target, "--force"), backupd.environment)
    target.unlink()
    backupd.remove()


def measure_stored_hour(scene: Scene) -> None:
    """Add up the segments of an hour, and beside them the last version of each page in each interval, compressed.

    For a smaller database, of a part of the hour.
    """
    scene.tell("an hour of segments")
    database, seconds = scene.sample_database(), _part(scene, _HOUR_SECONDS)
    window = SnapshotId.new(datetime.now(UTC), 1)
    waiting: dict[int, list[Commit]] = {interval: [] for interval in INTERVALS}
    stored, least = dict.fromkeys(INTERVALS, 0), dict.fromkeys(INTERVALS, 0)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for second, (commits, page_size) in enumerate(_followed(connection, database, _HOUR_RATE, seconds), 1):
            for interval in INTERVALS:
                waiting[interval] += commits
                if second % interval and second < seconds:
                    continue
                head = SegmentHead(
                    database=database.stem,
                    window=window,
                    first=second * _HOUR_RATE - len(waiting[interval]) + 1,
                    page_size=page_size,
                )
                stored[interval] += len(encode_segment(head, waiting[interval], level=SEGMENT_LEVEL))
                least[interval] += _last_versions_bytes(waiting[interval])
                waiting[interval] = []
    for interval in INTERVALS:
        scene.record(f"follow-hour-{interval}s", stored=stored[interval])
        scene.record(f"follow-hour-{interval}s-least", stored=least[interval])
    if Litestream.is_installed():
        _measure_litestream(scene, seconds)
    else:
        scene.tell("Litestream is not installed, and left out")


def _measure_litestream(scene: Scene, seconds: int) -> None:
    """Add up what it replicates of the same commits, before it compacts that."""
    scene.tell("an hour of Litestream")
    database, environment = scene.sample_database("of-litestream.db"), plain_environment()
    litestream = Litestream(scene.scratch / "litestream", database)
    litestream.prepare(syncs_by_itself=False)
    with (
        closing(sqlite3.connect(database, isolation_level=None)) as connection,
        subprocess.Popen(litestream.follow(), env=environment, stdin=subprocess.DEVNULL) as process,
    ):
        try:
            commit = committer(connection)
            give_up_at = time.monotonic() + _STARTS_WITHIN_SECONDS
            while subprocess.run(litestream.sync(), env=environment, check=False, capture_output=True).returncode:
                if time.monotonic() > give_up_at:
                    raise RuntimeError("litestream does not answer")
                time.sleep(0.2)
            before = litestream.replicated()
            for _ in range(0, seconds, LITESTREAM_INTERVAL):
                for _ in range(LITESTREAM_INTERVAL * _HOUR_RATE):
                    commit()
                subprocess.run(litestream.sync(), env=environment, check=True, capture_output=True)
            replicated = {file: size for file, size in litestream.replicated().items() if file not in before}
            scene.record("follow-hour-litestream", stored=sum(replicated.values()))
        finally:
            process.terminate()
            process.wait()
    litestream.remove()
    database.unlink()


def _part(scene: Scene, seconds: int) -> int:
    """Return so many seconds for the usual size of the database, and fewer for a smaller one."""
    return max(_FEWEST_SECONDS, min(seconds, seconds * scene.scale.size_bytes // _USUAL_BYTES))


def _followed(
    connection: sqlite3.Connection, database: Path, rate: int, seconds: int
) -> Iterator[tuple[list[Commit], int]]:
    """Commit, and yield what a follower reads: the commits of each second, with the size of a page."""
    commit, log = committer(connection), LogFollower(f"{database}-wal")
    with closing(log):
        for _ in range(seconds):
            made = []
            for number in range(rate):
                commit()
                if not number % _POLLED_AFTER_COMMITS:  # it begins with the last commit in the log, which is the first
                    made += log.poll()
            made += log.poll()
            if len(made) != rate or any(isinstance(each, Gap) for each in made):
                raise RuntimeError(f"not the {rate} commits that were made: {[*map(type, made)]}")
            seen_at_ms = time.time_ns() // 1_000_000
            read = [each for each in made if not isinstance(each, Gap)]
            commits = [Commit(seen_at_ms, each.page_count, each.pages, each.images) for each in read]
            yield commits, read[0].page_size


def _last_versions_bytes(commits: Sequence[Commit]) -> int:
    """The size of the last version of each page, in the order of the pages, compressed as segments are."""
    last = {}
    for commit in commits:
        size = len(commit.images) // len(commit.pages)
        for place, page in enumerate(commit.pages):
            last[page] = commit.images[place * size : (place + 1) * size]
    images = b"".join(last[page] for page in sorted(last))
    return len(zstandard.ZstdCompressor(level=SEGMENT_LEVEL).compress(images))
