"""Following by the daemon: what is followed, what reaches the stores, and when a window gets its snapshot."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from harness.booking import book, connect
from harness.context import PlacedContext
from harness.daemon import wait_until
from harness.extent import slow
from harness.windows import Window, stored_windows

from backupd.backup import Outcome
from backupd.backup.results import BackupResult
from backupd.config import DatabaseSettings
from backupd.config.settings import FollowSettings
from backupd.daemon.following import Following
from backupd.format import SnapshotId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ON, OFF = FollowSettings.read({"enabled": True, "interval": "1s"}), FollowSettings()
SLOWER = FollowSettings.read({"enabled": True, "interval": "2s"})
SNAPSHOT = SnapshotId("20261129T150000000Z-0badcafe")


class Scene(PlacedContext):
    """Databases in `home`, and a daemon's part that follows them. No snapshot is taken: who is asked for is noted."""

    def __init__(self, home: Path, **settings: Any) -> None:
        super().__init__(home, follow=ON, **settings)
        self.asked_for: list[str] = []
        self.following = Following(self.context.state, self.context.status, self.asked_for.append)

    def configure(self, **changes: Any) -> None:
        """Follow what a configuration with these changes asks for."""
        context = self.with_settings(**changes)
        self.following.configure(context.settings, context.discovery.now())

    def windows(self, name: str = "app", store: int = 0) -> list[Window]:
        """The windows of a database in a store."""
        return stored_windows(self.repositories[store].archive(name))

    def reached(self, commits: int, name: str = "app") -> None:
        """Wait until every store has so many commits of the newest window."""
        for store in (0, 1):
            wait_until(lambda place=store: [each.reach() for each in self.windows(name, place)][-1:] == [commits])

    def spooled(self, name: str = "app") -> list[Path]:
        """The segments that wait."""
        return [*self.context.state.followed(name).glob("*.segment")]

    @property
    def process(self) -> int:
        """The process that follows, once there is one."""
        return self._follower()._process.pid

    def _follower(self) -> Any:
        wait_until(lambda: self.following._process is not None)
        return self.following._process


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Nothing is followed yet."""
    with running(tmp_path) as found:
        yield found


@contextmanager
def running(home: Path, **settings: Any) -> Iterator[Scene]:
    """A scene whose process ends with the block."""
    found = Scene(home, **settings)
    try:
        yield found
    finally:
        found.following.stop()
        found.close()


def taken(outcome: Outcome = Outcome.CREATED) -> list[BackupResult]:
    """The result of a snapshot."""
    found = None if outcome is Outcome.FAILED else SNAPSHOT
    return [BackupResult(database="app", store="disk", outcome=outcome, id=found)]


def test_what_is_committed_reaches_every_store(scene: Scene):
    """Nothing stays in the spool, and the window asked for a snapshot."""
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.configure()
        wait_until(lambda: scene.asked_for == ["app"])
        book(connection, 5)
        scene.reached(6)
    wait_until(lambda: not scene.spooled())


def test_following_is_switched_off_and_on_without_a_loss(scene: Scene):
    """What was read before goes to the stores, and the window is continued when that can be proven."""
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.configure()
        scene.reached(1)
        book(connection, 3)
        scene.configure(follow=OFF)
        scene.reached(4)
        book(connection, 2)
        scene.configure(follow=ON)
        scene.reached(6)
    assert len(scene.windows()) == 1


def test_databases_come_and_go(scene: Scene):
    """A new database of a pattern is followed from the next look on; one that has gone stops none."""
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.configure()
        scene.reached(1)
        with closing(connect(scene.home / "shop.db")) as other:
            book(other, 2)
            scene.configure()
            scene.reached(1, "shop")
        (scene.home / "shop.db").unlink()
        scene.configure()
        book(connection, 4)
        scene.reached(5)


def test_a_look_of_an_earlier_configuration_changes_nothing(scene: Scene):
    """A round that began before a reload must not bring back what was configured then."""
    superseded = scene.context.superseded
    superseded.set()
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.following.configure(scene.context.settings, scene.inventory, superseded=superseded)
        assert scene.following._process is None


def test_a_name_that_stands_for_another_file_is_another_window(scene: Scene):
    """The file of a named database was changed in the configuration: the old one is not followed under its name."""
    with closing(connect(scene.home / "one.db")) as one, closing(connect(scene.home / "two.db")) as two:
        book(one)
        book(two)
        for name in ("one", "two"):
            entry = DatabaseSettings(path=str(scene.home / f"{name}.db"), name="app")
            scene.configure(databases=(entry,))
            scene.reached(1)
            wait_until(lambda windows=1 + (name == "two"): len(scene.windows()) == windows)
        book(one, 5)
        book(two)
        scene.reached(2)


def test_a_window_gets_a_snapshot_that_begins_in_it(scene: Scene):
    """One that began before the window has no place in it: another is asked for, but not before the first has ended."""
    with closing(connect(scene.home / "app.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        scene.configure()
        span = scene.following.span("app")
        book(connection)
        scene.reached(1)
        assert scene.asked_for == []
        span.end(taken())
        wait_until(lambda: scene.asked_for == ["app"])
        span = scene.following.span("app")
        span.end(taken())
        book(connection)
        scene.reached(2)
    anchors = [anchor for window in scene.windows() for anchor in window.anchors]
    assert [(each.snapshot, each.after, each.by) for each in anchors] == [(SNAPSHOT, 0, 1)]
    assert scene.following._wanted == {}


@pytest.mark.parametrize("results", [[], taken(Outcome.FAILED)], ids=["none", "failed"])
def test_a_snapshot_that_failed_is_asked_for_again(scene: Scene, results: list[BackupResult]):
    """The window needs one, however often that fails; not at once, because it takes work."""
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.configure()
        wait_until(lambda: scene.asked_for == ["app"])
        scene.following.span("app").end(results)
        assert "app" in scene.following._wanted
        scene.following._wanted["app"].due_at = 0.0
        wait_until(lambda: scene.asked_for == ["app", "app"])


def test_a_mark_is_answered_while_segments_are_reported(scene: Scene):
    """A snapshot does not wait for what waits for it."""
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.configure()
        scene.reached(1)
        until = time.monotonic() + 2.5
        while time.monotonic() < until:
            book(connection)
            began = time.monotonic()
            span = scene.following.span("app")
            assert span._before is not None
            span.end([])
            assert time.monotonic() - began < 4


def test_a_process_that_was_killed_is_replaced(scene: Scene):
    """The next one continues from the place that was noted, and nothing is missing."""
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.configure()
        scene.reached(1)
        before = scene.process
        book(connection, 2)
        os.kill(before, signal.SIGKILL)
        book(connection, 2)
        scene.reached(5)
        assert scene.process != before
    assert len(scene.windows()) == 1


def test_a_stop_does_not_wait_for_the_next_process(scene: Scene):
    """The process has just been killed: the daemon ends all the sooner."""
    with closing(connect(scene.home / "app.db")) as connection:
        book(connection)
        scene.configure()
        scene.reached(1)
        os.kill(scene.process, signal.SIGKILL)
        wait_until(lambda: scene.following._process is None)
        began = time.monotonic()
        scene.following.stop()
        assert time.monotonic() - began < 2


def test_segments_that_an_earlier_daemon_left_reach_the_stores(tmp_path: Path):
    """The stores were down when it ended; its part of a file is removed."""
    with closing(connect(tmp_path / "app.db")) as connection:
        book(connection)
        with running(tmp_path) as scene:
            for store in scene.stores:
                store.is_down = True
            scene.configure()
            wait_until(scene.spooled)
        partial = scene.spooled()[0].with_name(".partial.segment")
        partial.write_bytes(b"half a segm")
        with running(tmp_path) as scene:
            scene.configure()
            scene.reached(1)
            wait_until(lambda: not scene.spooled())
    assert not partial.exists()


@slow
def test_a_thousand_databases_are_followed_and_followed_otherwise(tmp_path: Path):
    """With more reports and requests than pipes hold, neither process waits for the other for ever."""
    with closing(connect(tmp_path / "app.db")) as connection:
        book(connection)
        for number in range(1000):
            for suffix in ("", "-wal"):
                shutil.copyfile(tmp_path / f"app.db{suffix}", tmp_path / f"tenant-{number:04}.db{suffix}")
        with running(tmp_path) as scene:
            scene.configure()
            wait_until(lambda: len(scene.asked_for) == 1001)
            for settings in (SLOWER, OFF, ON):
                scene.configure(follow=settings)
            book(connection, 2)
            scene.reached(3)
            wait_until(lambda: not scene.spooled("tenant-0999"))
            assert scene.windows("tenant-0999")[0].reach() == 1
