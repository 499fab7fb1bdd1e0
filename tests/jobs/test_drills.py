from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness.databases import entries_by_name, find_databases
from harness.extent import slow
from harness.place import change_rows, create_database

from backupd.backup import SnapshotRequest
from backupd.config import DatabaseSettings, ScheduleSettings, Settings, StoreSettings
from backupd.errors import InterruptedByUserError
from backupd.format.records import CheckOutcome
from backupd.health import StatusFile
from backupd.jobs.checks import drill_next
from backupd.jobs.configured import ConfiguredDatabase, configured_stores, open_repositories
from backupd.jobs.snapshots import take_snapshot
from backupd.state import StateDirectory


class Setting:
    """One database in some directory stores, and drills of it when a test asks for them."""

    def __init__(self, home, *names):
        self.home = home
        self.path = home / "app.db"
        create_database(self.path, rows=2)
        self.settings = Settings(
            state_dir=home / "state",
            databases=(DatabaseSettings(path=str(self.path)),),
            stores=tuple(StoreSettings(url=str(home / name)) for name in names),
        )
        self.state = StateDirectory(self.settings.state_dir)
        self.status = StatusFile(self.state)
        (database,) = find_databases(self.settings.databases)
        self.configured = ConfiguredDatabase(database, self.settings.schedule)
        self.stores = configured_stores(
            open_repositories(self.settings.stores, self.state), self.settings, entries_by_name(self.settings.databases)
        )
        self.states = 0

    def take(self):
        """A snapshot of a new state, all of it, in each store."""
        self.states += 1
        change_rows(self.path, f"state {self.states}")
        request = SnapshotRequest(is_full=True)
        results = take_snapshot(self.configured, self.stores, self, request=request, on_progress=lambda _: None)
        assert all(result.error is None for result in results)

    def drill(self, *, should_stop=lambda: None):
        return drill_next(self.configured, self.stores, self, should_stop=should_stop)

    def drills(self, count):
        """The names of the stores that so many drills looked at."""
        return [Path(self.drill().store).name for _ in range(count)]

    def damage(self, name):
        """Make what is in that store impossible to restore from it."""
        for pack in (self.home / name / "app" / "packs").iterdir():
            pack.unlink()

    def health(self, name):
        return self.status.read().databases["app"].stores[str(self.home / name)]


@pytest.fixture
def setting(tmp_path):
    """A database that no store has yet."""
    return Setting(tmp_path, "disk", "bucket")


def test_there_is_nothing_to_drill_without_a_snapshot(setting):
    """A store about which nothing is known is not asked."""
    assert setting.drill() is None


def test_stores_take_turns(setting):
    """The stores are drilled in turn, and what was proven is in the status."""
    setting.take()
    before = datetime.now(UTC)
    assert setting.drills(4) == ["disk", "bucket", "disk", "bucket"]
    assert all(setting.health(name).proven_at >= before for name in ("disk", "bucket"))


def test_a_repaired_store_goes_first(setting):
    """A repaired store is drilled first, so that its alarm does not wait for the other stores."""
    setting.take()
    assert setting.drills(2) == ["disk", "bucket"]
    setting.damage("disk")
    assert setting.drill().outcome is CheckOutcome.DAMAGED_STORE
    assert setting.health("disk").is_damaged
    setting.take()
    assert setting.drills(1) == ["disk"]
    assert not setting.health("disk").is_damaged
    assert setting.health("disk").drill_failure is None
    assert setting.drills(1) == ["bucket"]


def test_an_unrepaired_store_waits_for_its_turn(setting):
    """A damaged store without a newer snapshot waits for its turn, because there is nothing new to find."""
    setting.take()
    setting.damage("disk")
    assert setting.drills(4) == ["disk", "bucket", "disk", "bucket"]


@slow
def test_stores_that_fail_every_time_keep_no_other_waiting(tmp_path):
    """Although they have a newer snapshot each time."""
    setting = Setting(tmp_path, "disk", "bucket", "share", "attic")
    seen = []
    for _ in range(14):
        setting.take()
        setting.damage("disk")
        setting.damage("bucket")
        seen += setting.drills(1)
    assert min(seen.count("share"), seen.count("attic")) >= 2, seen


def test_the_next_proof_is_due_after_two_scheduled_drills(setting):
    """The next proof is due after two scheduled drills and the grace; a drill that fails proves nothing."""
    setting.take()
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    schedule = ScheduleSettings(drills="0 4 * * *", time_zone="UTC")
    grace = timedelta(minutes=15)
    daily = ConfiguredDatabase(setting.configured.database, schedule)
    assert daily.proof_due_after(noon, grace) == datetime(2026, 11, 24, 4, 15, tzinfo=UTC)
    never = ConfiguredDatabase(setting.configured.database, ScheduleSettings(drills="never"))
    assert never.proof_due_after(noon, grace) is None
    before = datetime.now(UTC)
    setting.drill()
    due_by = setting.status.read().databases["app"].proof_due_by
    assert due_by >= setting.configured.proof_due_after(before, setting.settings.health.grace)
    setting.damage("bucket")
    assert setting.drill().outcome is CheckOutcome.DAMAGED_STORE
    assert setting.status.read().databases["app"].proof_due_by == due_by


def test_a_drill_that_is_stopped_leaves_the_turn_where_it_was(setting):
    """A stop says nothing about the store."""

    def stop():
        raise InterruptedByUserError("backupd is stopping")

    setting.take()
    with pytest.raises(InterruptedByUserError):
        setting.drill(should_stop=stop)
    assert setting.health("disk").drill_failure is None
    assert setting.drills(1) == ["disk"]
