"""A daemon that follows databases while they are written or rest: what that costs, and how soon a commit is stored.

Processor time is that of the following process, and that of the daemon beside it, never that of the application. Each
span begins when the recovery window has its snapshot and the daemon has come to rest, and holds no snapshot if it can:
a gap asks for one.
"""

from __future__ import annotations

import sqlite3
import time
from bisect import bisect_right
from contextlib import ExitStack, closing, contextmanager
from statistics import quantiles
from typing import TYPE_CHECKING, NamedTuple

from harness.creditrobot import update_scattered

from backupd.store.keys import SegmentKey, segments_prefix
from bench.commits import committing, slowest_hundredth
from bench.daemons import running_daemon, sleep_until_next_minute
from bench.measuring import anonymous_bytes, cpu_seconds, descendant
from bench.snapshots import UPDATES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from harness.daemon import Daemon

    from bench.scene import Scene

RATES = (100, 1000)
"""Commits a second."""
FULL_RATE = 2000
"""Commits a second, at which no gap may come."""
_INTERVAL = {"enabled": True, "interval": "1s"}
# Only windows ask for snapshots, and none falls due in a span.
_TABLES: dict[str, dict[str, object]] = {"follow": _INTERVAL, "schedule": {"snapshots": "every 6h"}}
_SPAN_SECONDS = 30.0
_IDLE_SPAN_SECONDS = 60.0
_RESTS_AFTER_SECONDS = 10.0
"""A daemon that has logged nothing for so long has nothing left to do."""
_RESTS_WITHIN_SECONDS = 60.0
_RESTS_WITHIN_SECONDS_EACH = 1.0
_TRIES = 2
_UPDATES_AT_ONCE = 20
_BETWEEN_UPDATES_SECONDS = 0.2
_BEFORE_SNAPSHOT_SECONDS = 3.0
_SNAPSHOT_WITHIN_SECONDS = 75.0
_AGE_STEP_SECONDS = 0.01
_LISTED_EVERY_SECONDS = 0.1
_STORED_AFTER_SECONDS = 4.0


class _Span(NamedTuple):
    """What a daemon needed from one time (seconds since 1970) to another."""

    began: float
    ended: float
    follower_cpu: float
    daemon_cpu: float
    """That of all its processes but the one that follows."""

    def of(self, commits: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Return those of `commits` that were made in it."""
        return [each for each in commits if self.began <= each[0] <= self.ended]


class _Arrival(NamedTuple):
    """A segment that a store has: since when (seconds since 1970), and the number of its last commit."""

    at: float
    last: int


def time_commits(scene: Scene) -> None:
    """Follow a database that is written all the time, into a directory; the same application without it in turn."""
    for rate in RATES:
        for number in scene.each_round():
            work = f"follow-{rate}"
            database = scene.sample_database()
            with _kept_open(database):
                scene.tell(f"{rate:,} commits a second, not followed, round {number}")
                with committing(database, rate) as application:
                    time.sleep(min(_SPAN_SECONDS, scene.scale.followed_seconds))
                    alone = application.stop()
                scene.record(f"{work}-writer-alone", wait=slowest_hundredth(alone))
                scene.tell(f"{rate:,} commits a second, followed, round {number}")
                backupd = scene.backupd(database, **_TABLES)
                with running_daemon(backupd) as daemon, committing(database, rate) as application:
                    _wait_for_window(daemon)
                    scene.feel_pace(work)
                    span = _undisturbed(scene, daemon, _SPAN_SECONDS)
                    scene.record(work, memory=anonymous_bytes(_follower(daemon)))
                    commits = application.stop()
                    _record_span(scene, work, span)
                    scene.record(f"{work}-writer", wait=slowest_hundredth(span.of(commits)))
                    time.sleep(_STORED_AFTER_SECONDS)
                    _record_age(scene, f"{work}-age", daemon, span, commits, _arrivals(backupd.store, database.stem))
    backupd.remove()


def time_bucket(scene: Scene) -> None:
    """Follow a database that is written all the time, into a bucket of a real server on this machine."""
    try:
        from harness.s3_server import s3_server  # noqa: PLC0415  (needs what only tests need)
    except ImportError:
        scene.tell("SeaweedFS is not installed, and left out")
        return
    rate, work = RATES[0], "follow-bucket-age"
    with s3_server() as server, closing(server.client()) as client:
        for number in scene.each_round():
            scene.tell(f"{rate:,} commits a second, followed into a bucket, round {number}")
            database, bucket = scene.sample_database(), server.new_bucket()
            store = {
                "url": f"s3://{bucket}",
                "endpoint_url": server.endpoint_url,
                "access_key_id": server.access_key_id,
                "secret_access_key": server.secret_access_key,
            }
            arrivals: dict[str, _Arrival] = {}

            def look(bucket: str = bucket, arrivals: dict[str, _Arrival] = arrivals, of: str = database.stem) -> None:
                """Note which segments have come since the last look."""
                found = client.list_objects_v2(
                    Bucket=bucket, Prefix=segments_prefix(of), StartAfter=max(arrivals, default="")
                )
                for each in found.get("Contents", ()):
                    if key := SegmentKey.parse(each["Key"]):
                        arrivals[each["Key"]] = _Arrival(time.time(), key.last)

            backupd = scene.backupd(database, store=store, **_TABLES)
            with (
                _kept_open(database),
                running_daemon(backupd) as daemon,
                committing(database, rate) as application,
            ):
                _wait_for_window(daemon)
                scene.feel_pace(work)
                span = _undisturbed(scene, daemon, _SPAN_SECONDS, look)
                commits = application.stop()
                time.sleep(_STORED_AFTER_SECONDS)
                look()
                _record_age(scene, work, daemon, span, commits, sorted(arrivals.values()))
    backupd.remove()


def time_full_rate(scene: Scene) -> None:
    """Follow a database that is written as fast as following has to bear, and count the gaps."""
    scene.tell(f"{FULL_RATE:,} commits a second, followed for {scene.scale.followed_seconds} s")
    database = scene.sample_database()
    backupd = scene.backupd(database, **_TABLES)
    with _kept_open(database), running_daemon(backupd) as daemon, committing(database, FULL_RATE) as application:
        _wait_for_window(daemon)
        position, pid = daemon.position, _follower(daemon)
        began, cpu = time.time(), cpu_seconds(pid)
        time.sleep(scene.scale.followed_seconds)
        ended, cpu = time.time(), cpu_seconds(pid) - cpu
        gaps = _gaps(daemon, position)
        made = sum(began <= at <= ended for at, _ in application.stop())
    scene.tell(f"{made / (ended - began):,.0f} commits a second were made, and {len(gaps)} gaps came: {gaps}")
    scene.record("follow-full", gaps=len(gaps), share=100 * cpu / (ended - began))
    backupd.remove()


def time_scheduled(scene: Scene) -> None:
    """Have scheduled snapshots taken of a database that is followed, each after some updates: none may read it."""
    database = scene.sample_database()
    backupd = scene.backupd(database, follow=_INTERVAL, schedule={"snapshots": "every 1m"})
    with _kept_open(database), running_daemon(backupd) as daemon:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.execute("UPDATE users SET id = id WHERE id = 1")
        _wait_for_window(daemon)
        for number in scene.each_round():
            scene.tell(f"a scheduled snapshot of a followed database, round {number}")
            for burst in range(UPDATES // _UPDATES_AT_ONCE):
                update_scattered(database, _UPDATES_AT_ONCE, seed=number * UPDATES + burst)
                time.sleep(_BETWEEN_UPDATES_SECONDS)
            sleep_until_next_minute(but_seconds=_BEFORE_SNAPSHOT_SECONDS)
            scene.feel_pace("follow-scheduled")
            position, pid, follower = daemon.position, daemon.process.pid, _follower(daemon)
            before = cpu_seconds(pid) - cpu_seconds(follower)
            event = daemon.wait_for("snapshot", after=position, patience_seconds=_SNAPSHOT_WITHIN_SECONDS)
            if event["was_read"] or not event["changed_pages"]:
                raise RuntimeError(f"this snapshot was not built from the log: {event}")
            time.sleep(_BEFORE_SNAPSHOT_SECONDS)
            scene.record("follow-scheduled", cpu=cpu_seconds(pid) - cpu_seconds(follower) - before)
    backupd.remove()


def time_resting(scene: Scene) -> None:
    """Follow one database in which nothing happens, and then many."""
    for work, count in (("follow-idle", 1), ("follow-idle-many", scene.scale.databases)):
        scene.tell(f"{count} followed databases at rest")
        directory = scene.scratch / work
        directory.mkdir(exist_ok=True)
        backupd = scene.backupd(f"{directory}/*.db", **_TABLES)
        with ExitStack() as stack:
            for number in range(count):
                _open_with_log(directory / f"app-{number:04}.db", stack)
            # By command, which is quicker; the windows ask for others of the daemon.
            backupd.run("now", "--quiet")
            daemon = stack.enter_context(running_daemon(backupd))
            _wait_for_window(daemon, count)
            for _ in scene.each_round():
                scene.feel_pace(work)
                _record_span(scene, work, _undisturbed(scene, daemon, _IDLE_SPAN_SECONDS))
            scene.record(work, memory=anonymous_bytes(_follower(daemon)))
        backupd.remove()


@contextmanager
def _kept_open(database: Path) -> Iterator[None]:
    """A connection that stays, as a service has it: when the last one is closed, SQLite removes the log."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("SELECT count(*) FROM users").fetchone()
        yield


def _open_with_log(database: Path, stack: ExitStack) -> None:
    """Make a small database, with a commit in its log, and keep it open."""
    connection = stack.enter_context(closing(sqlite3.connect(database, isolation_level=None)))
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = off")
    connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")


def _follower(daemon: Daemon) -> int:
    return descendant(daemon.process.pid, "backupd.follow.child")


def _gaps(daemon: Daemon, position: int) -> list[str]:
    """The reasons of the gaps since `position` of the log."""
    return [event["reason"] for event in daemon.events_of("a recovery window has ended", after=position)]


def _wait_for_window(daemon: Daemon, count: int = 1) -> None:
    """Wait until `count` databases have a recovery window, and the daemon has taken the snapshots that they need.

    Where gaps come all the time, it never has: then wait no longer.
    """
    give_up_at = time.monotonic() + _RESTS_WITHIN_SECONDS + count * _RESTS_WITHIN_SECONDS_EACH
    position, quiet_since = -1, 0.0
    while time.monotonic() < give_up_at:
        if daemon.position != position:
            position, quiet_since = daemon.position, time.monotonic()
        if _has_windows(daemon, count) and time.monotonic() - quiet_since >= _RESTS_AFTER_SECONDS:
            return
        time.sleep(0.5)
    if not _has_windows(daemon, count):
        raise RuntimeError(f"the databases are not followed: {daemon.events[-3:]}")


def _has_windows(daemon: Daemon, count: int) -> bool:
    return len({event["database"] for event in daemon.events_of("a recovery window begins")}) >= count


def _undisturbed(scene: Scene, daemon: Daemon, seconds: float, look: Callable[[], None] | None = None) -> _Span:
    """Measure for `seconds`, a few times if a snapshot or a gap comes between, and `look` at the store meanwhile."""
    seconds, pid, follower = min(seconds, scene.scale.followed_seconds), daemon.process.pid, _follower(daemon)
    for number in range(1, _TRIES + 1):
        position, began = daemon.position, time.time()
        all_before, follower_before = cpu_seconds(pid), cpu_seconds(follower)
        while (rest := began + seconds - time.time()) > 0:
            if look is not None:
                look()
            time.sleep(rest if look is None else min(rest, _LISTED_EVERY_SECONDS))
        follower_cpu = cpu_seconds(follower) - follower_before
        daemon_cpu = cpu_seconds(pid) - all_before - follower_cpu
        span = _Span(began, time.time(), follower_cpu, daemon_cpu)
        if daemon.position == position:
            break
        scene.tell(f"disturbed by {[event['event'] for event in daemon.events[position:]]}")
        if number < _TRIES:
            _wait_for_window(daemon)
    return span


def _record_span(scene: Scene, work: str, span: _Span) -> None:
    seconds = span.ended - span.began
    scene.record(work, share=100 * span.follower_cpu / seconds)
    scene.record(f"{work}-daemon", share=100 * span.daemon_cpu / seconds)


def _arrivals(store: Path, database: str) -> list[_Arrival]:
    """The segments in a directory: the change time of a file is when it got the name that it has."""
    files = (store / segments_prefix(database)).rglob("*")
    keys = {file: SegmentKey.parse(str(file.relative_to(store))) for file in files}
    return sorted(_Arrival(file.stat().st_ctime, key.last) for file, key in keys.items() if key is not None)


def _record_age(
    scene: Scene,
    work: str,
    daemon: Daemon,
    span: _Span,
    commits: list[tuple[float, float]],
    arrivals: list[_Arrival],
) -> None:
    """Record how old the newest stored commit was in 99 of 100 moments of the span; nothing when gaps came.

    Each commit of the application has one number in the window, and the last one stored is the last one made.
    """
    if gaps := _gaps(daemon, 0):
        scene.tell(f"the age of commits cannot be said, because {len(gaps)} gaps came")
        return
    made_before = len(commits) - arrivals[-1].last  # not in the window
    times = [arrival.at for arrival in arrivals]
    ages = []
    moment = span.began
    while moment < span.ended:
        newest = arrivals[bisect_right(times, moment) - 1]
        ages.append(moment - commits[made_before + newest.last - 1][0])
        moment += _AGE_STEP_SECONDS
    scene.record(work, seconds=quantiles(ages, n=100)[-1])
