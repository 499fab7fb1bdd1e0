import os
from datetime import UTC, datetime, timedelta

import pytest
from harness.command_line import wait_until
from harness.context import PlacedContext
from harness.extent import slow
from harness.place import change_rows, create_database
from msgspec.structs import replace

from backupd.backup import SnapshotRequest
from backupd.capture.unlocked import fingerprint
from backupd.capture.worker import Workers
from backupd.config import CaptureSettings
from backupd.errors import AnotherRunError, InterruptedByUserError
from backupd.health.planning import Plan, with_plans
from backupd.jobs.snapshots import take_snapshot


class Setting(PlacedContext):
    """One database, and snapshots of it when a test asks for them."""

    def __init__(self, home):
        super().__init__(home)
        self.path = home / "app.db"
        create_database(self.path, rows=2)
        self.configured = self.inventory.database("app")

    def take(self, *, request=SnapshotRequest(), on_progress=lambda _: None, workers=None):  # noqa: B008  (no state)
        """A snapshot in each store."""
        stores = self.inventory.stores
        return take_snapshot(
            self.configured, stores, self.context, request=request, on_progress=on_progress, workers=workers
        )

    def plan(self):
        """Have the daemon back it up from now on."""
        plan = Plan(
            path=self.path,
            stores=(self.disk, self.bucket),
            next_run_at=None,
            due_after=lambda at: self.configured.due_after(at, self.context.settings.health.grace),
        )
        self.context.status.update(lambda status: with_plans(status, {"app": plan}, at=datetime.now(UTC)))

    @property
    def health(self):
        return self.context.status.read().databases["app"].stores


@pytest.fixture
def setting(tmp_path):
    """A database in two stores."""
    found = Setting(tmp_path)
    yield found
    found.close()


def test_each_store_has_its_result(setting):
    """Each store has its result, in order and under one id, in the answer and in the status."""
    before = datetime.now(UTC)
    results = setting.take()
    assert [result.store for result in results] == [setting.disk, setting.bucket]
    assert len({result.id for result in results}) == 1
    for result, health in zip(results, setting.health.values(), strict=True):
        assert health.snapshot_id == str(result.id)
        assert before <= health.current_at <= datetime.now(UTC)
        assert health.failure is None


def test_a_database_that_is_not_scheduled_is_never_due(setting):
    """The next snapshot by hand or by cron may come at any time."""
    setting.take()
    assert [health.due_by for health in setting.health.values()] == [None, None]


def test_a_scheduled_database_is_due_again(setting):
    """A snapshot by hand moves its deadline too."""
    setting.plan()
    setting.take()
    for health in setting.health.values():
        assert health.due_by == setting.configured.due_after(health.current_at, setting.context.settings.health.grace)


def test_a_store_that_fails_is_noted_beside_one_that_does_not(setting):
    """The next success takes the failure away."""
    setting.stores[1].is_down = True
    results = setting.take()
    assert [result.error is None for result in results] == [True, False]
    assert [health.failure is None for health in setting.health.values()] == [True, False]
    setting.stores[1].is_down = False
    setting.take()
    assert [health.failure for health in setting.health.values()] == [None, None]


@slow
def test_a_commit_during_the_capture_leaves_no_fingerprint(setting):
    """A commit during a capture leaves no fingerprint: what was captured may be the state before or after it."""
    wait_until(lambda: fingerprint(setting.path, now=datetime.now(UTC)) is not None)
    before = fingerprint(setting.path, now=datetime.now(UTC))
    is_changed = []

    def change(_progress):
        if not is_changed:
            is_changed.append(True)
            change_rows(setting.path, "state A")

    setting.take(on_progress=change)
    assert is_changed
    assert [health.fingerprint for health in setting.health.values()] == [None, None]
    assert fingerprint(setting.path, now=datetime.now(UTC) + timedelta(seconds=10)) != before


def test_a_database_that_was_written_a_moment_ago_keeps_no_fingerprint(setting):
    """A database that was just written keeps no fingerprint, so that it is captured once more."""
    change_rows(setting.path, "state A")
    setting.take()
    assert [health.fingerprint for health in setting.health.values()] == [None, None]


def test_an_interrupted_run_leaves_no_failure(setting):
    """An interrupted run is no failure of the database or the store, and leaves their health as it was."""
    setting.take()
    before = setting.health
    change_rows(setting.path, "state A")

    def stop(_progress):
        raise InterruptedByUserError("backupd is stopping")

    results = setting.take(on_progress=stop)
    assert all(isinstance(result.error, InterruptedByUserError) for result in results)
    assert setting.health == before


def test_a_run_that_is_going_on_elsewhere_leaves_no_failure(setting):
    """`backupd now` of a large database, beside the daemon; the other store gets its snapshot."""
    setting.take()
    before = setting.health
    change_rows(setting.path, "state A")
    capture = CaptureSettings(lock_timeout=timedelta(milliseconds=100))
    setting.context = setting.with_settings(capture=capture)
    with setting.context.state.lock(f"app in {setting.disk}", timeout=0):
        busy, created = setting.take()
    assert isinstance(busy.error, AnotherRunError)
    assert created.error is None
    health = setting.health[setting.disk]
    assert replace(health, last_run=None) == replace(before[setting.disk], last_run=None)
    assert health.last_run.outcome == "failed"
    assert setting.health[setting.bucket].snapshot_id == str(created.id)


def test_a_status_that_cannot_be_written_is_a_warning(setting):
    """The snapshots exist anyway."""
    setting.take()
    (setting.home / "state/status.json").unlink()
    (setting.home / "state/status.json").mkdir()
    change_rows(setting.path, "state A")
    results = setting.take()
    assert [result.error for result in results] == [None, None]
    assert all("status file" in "".join(result.warnings) for result in results)


def _captured_bytes(setting, **request):
    """The results of a snapshot, and how many bytes of the database were read for it."""
    seen = [0]
    results = setting.take(
        request=SnapshotRequest(**request), on_progress=lambda progress: seen.append(progress.captured_bytes)
    )
    return results, max(seen)


class CountedWorkers(Workers):
    """Workers that count how often one was taken."""

    taken = 0

    def take(self):
        """Take a worker, and count that."""
        self.taken += 1
        return super().take()


@slow
def test_no_process_is_started_for_a_database_that_stat_shows_unchanged(setting):
    """Starting Python is half of the cost of a snapshot that finds nothing to do; a tag needs the process after all."""
    wait_until(lambda: fingerprint(setting.path, now=datetime.now(UTC)) is not None)
    with CountedWorkers() as workers:
        setting.take(workers=workers)
        assert workers.taken == 1
        assert [result.was_read for result in setting.take(workers=workers)] == [False, False]
        assert workers.taken == 1
        tagged = setting.take(workers=workers, request=SnapshotRequest(tags=("release",)))
        assert [result.outcome for result in tagged] == ["created", "created"]
        assert workers.taken == 2


@slow
def test_a_database_that_stat_shows_unchanged_is_not_read(setting):
    """A database is read for a store that lacks a pack, for a tag, and after a write, even one that hides its time."""
    wait_until(lambda: fingerprint(setting.path, now=datetime.now(UTC)) is not None)
    first, captured = _captured_bytes(setting)
    assert captured > 0
    for _ in range(2):
        again, captured = _captured_bytes(setting)
        assert captured == 0
        assert not any(result.was_read for result in again)
    assert [result.outcome for result in again] == ["unchanged", "unchanged"]
    assert [result.id for result in again] == [result.id for result in first]
    assert [result.upload_check for result in again] == [result.upload_check for result in first]

    packs = [file for file in (setting.home / "disk/app/packs").rglob("*") if file.is_file()]
    assert packs
    for pack in packs:
        pack.unlink()
    healed, captured = _captured_bytes(setting)
    assert captured > 0
    assert [result.outcome for result in healed] == ["created", "unchanged"]

    tagged, captured = _captured_bytes(setting, tags=("release",))
    assert captured > 0
    assert [result.outcome for result in tagged] == ["created", "created"]

    times = setting.path.stat()
    change_rows(setting.path, "state A")
    os.utime(setting.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed, captured = _captured_bytes(setting)
    assert captured > 0
    assert [result.outcome for result in changed] == ["created", "created"]
