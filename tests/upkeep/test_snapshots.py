from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from harness.charge import Charged
from harness.command_line import wait_until
from harness.place import change_rows, create_database

from backupd.backup import Wish
from backupd.capture.unchanged import fingerprint
from backupd.config import CaptureSettings
from backupd.errors import AnotherRunError, InterruptedByUserError
from backupd.health.planning import Plan, with_plans
from backupd.upkeep.snapshots import take_snapshot


class Setting(Charged):
    """One database, and snapshots of it when a test asks for them."""

    def __init__(self, home):
        super().__init__(home)
        self.path = home / "app.db"
        create_database(self.path, rows=2)
        self.configured = self.charge.database("app")

    def take(self, *, wish=Wish(), on_progress=lambda _: None):  # noqa: B008  (it has no state)
        """A snapshot in each store."""
        charge = self.charge
        return take_snapshot(
            self.configured,
            charge.stores(),
            charge.settings,
            charge.state,
            charge.status,
            wish=wish,
            on_progress=on_progress,
        )

    def plan(self):
        """The daemon looks after it from now on."""
        plan = Plan(
            path=self.path,
            stores=(self.disk, self.bucket),
            next_run_at=None,
            due_after=lambda at: self.configured.due_after(at, self.charge.settings.health.grace),
        )
        self.charge.status.update(lambda status: with_plans(status, {"app": plan}, at=datetime.now(UTC)))

    @property
    def health(self):
        return self.charge.status.read().databases["app"].stores


@pytest.fixture
def setting(tmp_path):
    """A database in two stores."""
    found = Setting(tmp_path)
    yield found
    found.close()


def test_each_store_has_its_result(setting):
    """In their order, under one id, and in the status."""
    before = datetime.now(UTC)
    results = setting.take()
    assert [result.store for result in results] == [setting.disk, setting.bucket]
    assert len({result.id for result in results}) == 1
    for result, health in zip(results, setting.health.values(), strict=True):
        assert health.snapshot_id == str(result.id)
        assert before <= health.current_at <= datetime.now(UTC)
        assert health.failure is None


def test_a_database_that_nobody_looks_after_is_never_due(setting):
    """Whoever takes snapshots by hand or by cron knows best when the next one comes."""
    setting.take()
    assert [health.due_by for health in setting.health.values()] == [None, None]


def test_a_database_that_the_daemon_looks_after_is_due_again(setting):
    """Also after a snapshot by hand."""
    setting.plan()
    setting.take()
    for health in setting.health.values():
        assert health.due_by == setting.configured.due_after(health.current_at, setting.charge.settings.health.grace)


def test_a_store_that_fails_is_noted_beside_one_that_does_not(setting):
    """The next success takes the failure away."""
    setting.stores[1].is_down = True
    results = setting.take()
    assert [result.error is None for result in results] == [True, False]
    assert [health.failure is None for health in setting.health.values()] == [True, False]
    setting.stores[1].is_down = False
    setting.take()
    assert [health.failure for health in setting.health.values()] == [None, None]


def test_the_fingerprint_is_that_of_before_the_capture(setting):
    """A commit meanwhile must not look like a state that the stores have."""
    wait_until(lambda: fingerprint(setting.path, now=datetime.now(UTC)) is not None)
    before = fingerprint(setting.path, now=datetime.now(UTC))
    is_changed = []

    def change(_progress):
        if not is_changed:
            is_changed.append(True)
            change_rows(setting.path, "state A")

    setting.take(on_progress=change)
    assert is_changed
    assert [health.fingerprint for health in setting.health.values()] == [before, before]
    assert fingerprint(setting.path, now=datetime.now(UTC) + timedelta(seconds=10)) != before


def test_a_database_that_was_written_a_moment_ago_keeps_no_fingerprint(setting):
    """It is captured once more, and then left alone."""
    change_rows(setting.path, "state A")
    setting.take()
    assert [health.fingerprint for health in setting.health.values()] == [None, None]


def test_whoever_stops_a_run_leaves_no_failure(setting):
    """It says nothing of the database or the store, and what was known before stays."""
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
    setting.charge = replace(setting.charge, settings=setting.charge.settings.model_copy(update={"capture": capture}))
    with setting.charge.state.lock(f"app in {setting.disk}", timeout=0):
        busy, created = setting.take()
    assert isinstance(busy.error, AnotherRunError)
    assert created.error is None
    health = setting.health[setting.disk]
    assert replace(health, last_run=None) == replace(before[setting.disk], last_run=None)
    assert health.last_run.outcome == "failed"
    assert setting.health[setting.bucket].snapshot_id == str(created.id)


def test_a_status_that_cannot_be_written_is_a_warning(setting):
    """The snapshots are there all the same."""
    setting.take()
    (setting.home / "state/status.json").unlink()
    (setting.home / "state/status.json").mkdir()
    change_rows(setting.path, "state A")
    results = setting.take()
    assert [result.error for result in results] == [None, None]
    assert all("status file" in "".join(result.warnings) for result in results)
