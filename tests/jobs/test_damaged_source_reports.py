"""A damaged source that a drill finds in one store is recorded in every other one, and holds pruning there."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.databases import entries_by_name, find_databases
from harness.place import change_rows, create_database

from backupd.backup import SnapshotRequest
from backupd.config import DatabaseSettings, RetentionSettings, Settings, StoreSettings
from backupd.format.records import CheckOutcome
from backupd.health import StatusFile, StoreHealth
from backupd.health.alarms import find_alarms
from backupd.jobs.checks import drill_next, record_in_status, report_damaged_source, report_damaged_sources
from backupd.jobs.configured import ConfiguredDatabase, configured_stores, open_repositories
from backupd.jobs.prunes import prune_database
from backupd.jobs.snapshots import take_snapshot
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format import SnapshotId
    from backupd.prune import PruneResult
    from backupd.verify import CheckResult

_STRICTEST = RetentionSettings(keep_last=1, daily=0, weekly=0, monthly=0)


def corrupt(path: Path) -> None:
    """Shift rows of the table against its index."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 2 WHERE name = 'report_title'")


class Setting:
    """One database in three stores: the daemon reads a disk and a bucket, but not a vault."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.path = home / "app.db"
        self.sound = b""
        create_database(self.path, rows=400)
        self.settings = Settings(
            state_dir=home / "state",
            retention=_STRICTEST,
            databases=(DatabaseSettings(path=str(self.path)),),
            stores=tuple(StoreSettings(url=str(home / name)) for name in ("disk", "bucket", "vault")),
        )
        self.state = StateDirectory(self.settings.state_dir)
        self.status = StatusFile(self.state)
        (database,) = find_databases(self.settings.databases)
        self.configured = ConfiguredDatabase(database, self.settings.schedule)
        self.stores = configured_stores(
            open_repositories(self.settings.stores, self.state), self.settings, entries_by_name(self.settings.databases)
        )

    def take(self) -> SnapshotId:
        """A snapshot in each store; its id."""
        results = take_snapshot(
            self.configured, self.stores, self, request=SnapshotRequest(), on_progress=lambda _: None
        )
        assert [result.error for result in results] == [None] * 3
        (snapshot,) = {result.id for result in results}
        assert snapshot is not None
        return snapshot

    def drill(self) -> CheckResult:
        """Drill as the daemon does, in the stores that it may read."""
        *readable, vault = self.stores
        result = drill_next(
            self.configured,
            readable,
            self,
            others=[vault],
            should_stop=lambda: None,
        )
        assert result is not None
        return result

    def known(self, name: str, snapshot: SnapshotId) -> CheckOutcome | None:
        """What that store has recorded of it."""
        (repository,) = (each.repository for each in self.stores if each.url == str(self.home / name))
        found = repository.archive("app").proofs().own(snapshot)
        return None if found is None else found.outcome

    def health(self, name: str) -> StoreHealth:
        return self.status.read().databases["app"].stores[str(self.home / name)]

    def alarms(self) -> list[tuple[str, str]]:
        """Kinds and names of stores."""
        alarms = find_alarms(self.status.read(), now=datetime.now(UTC), alive_at=None)
        return [(alarm.kind, (alarm.store or "").rpartition("/")[2]) for alarm in alarms]

    def prune(self, name: str) -> PruneResult:
        (store,) = (each for each in self.stores if each.url == str(self.home / name))
        return prune_database("app", store, self.status)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Two snapshots in each store: a sound one, and one of a damaged database."""
    setting = Setting(tmp_path)
    setting.take()
    setting.sound = setting.path.read_bytes()
    corrupt(setting.path)
    setting.take()
    return setting


def _newest(setting: Setting) -> SnapshotId:
    newest = setting.stores[0].repository.archive("app").history().newest_id
    assert newest is not None
    return newest


def test_a_damaged_source_is_recorded_and_holds_pruning_in_every_store(setting: Setting) -> None:
    """A damaged source has a record, an alarm and a hold in every store, until a newer snapshot is proven there."""
    snapshot = _newest(setting)
    assert setting.drill().outcome is CheckOutcome.DAMAGED_SOURCE
    assert {setting.known(name, snapshot) for name in ("disk", "bucket", "vault")} == {CheckOutcome.DAMAGED_SOURCE}
    assert setting.alarms() == [("damaged-source", name) for name in ("disk", "bucket", "vault")]
    other = StatusFile(StateDirectory(setting.home / "another"))
    for store in setting.stores[:2]:
        assert setting.prune(store.url.rpartition("/")[2]).hold is not None
        elsewhere = prune_database("app", store, other)  # by the record alone, as on another machine
        assert (elsewhere.removed, elsewhere.hold is not None) == ((), True)
    assert setting.drill().store == str(setting.home / "bucket")  # no turn was lost
    setting.path.write_bytes(setting.sound)
    change_rows(setting.path, "repaired")
    setting.take()
    assert setting.drill().outcome is CheckOutcome.PROVEN
    assert setting.drill().outcome is CheckOutcome.PROVEN
    assert setting.alarms() == [("damaged-source", "vault")]
    assert setting.prune("disk").hold is None
    assert setting.prune("disk").error is None


def test_pruning_is_held_from_here_where_no_record_could_be_put(setting: Setting) -> None:
    """The store was away when the drill found it: this machine knows, and removes nothing there."""
    bucket = setting.home / "bucket"
    bucket.rename(setting.home / "away")
    bucket.write_text("not a directory")
    result = setting.drill()
    assert result.outcome is CheckOutcome.DAMAGED_SOURCE
    (warning,) = report_damaged_source(result, setting.stores).warnings
    assert warning.startswith(
        f"it could not be recorded in {bucket} that snapshot {result.id} of app is of a damaged database"
    )
    bucket.unlink()
    (setting.home / "away").rename(bucket)
    assert setting.known("bucket", _newest(setting)) is None
    pruned = setting.prune("bucket")
    assert (pruned.error, pruned.removed) == (None, ())
    assert pruned.hold is not None
    assert "is a damaged database as it was captured" in pruned.hold.message


def test_damage_of_the_store_stays_recorded_and_other_snapshots_get_no_record(setting: Setting) -> None:
    """A record of damaged bytes is not overwritten, and a store without the snapshot gets no record."""
    snapshot = _newest(setting)
    for pack in (setting.home / "bucket/app/packs").iterdir():
        pack.unlink()
    shutil.rmtree(setting.home / "vault/app")
    result = setting.drill()
    assert result.store == str(setting.home / "disk")
    reported = report_damaged_source(result, setting.stores)
    assert (reported.stores, reported.warnings) == ((str(setting.home / "bucket"),), ())
    assert setting.known("vault", snapshot) is None
    assert setting.drill().outcome is CheckOutcome.DAMAGED_STORE
    assert setting.known("bucket", snapshot) is CheckOutcome.DAMAGED_STORE
    assert report_damaged_source(result, setting.stores).stores == (str(setting.home / "bucket"),)
    assert setting.known("bucket", snapshot) is CheckOutcome.DAMAGED_STORE


def test_result_of_a_manual_verification_is_recorded_in_every_store(setting: Setting) -> None:
    """A manual verification leaves the same records and alarms as a drill by the daemon."""
    snapshot = _newest(setting)
    result = setting.drill()
    for name in ("bucket", "vault"):
        (setting.home / name / f"app/drills/{snapshot}.json").unlink()
    record_in_status(
        [result],
        {"app": setting.configured},
        setting,
        reported=report_damaged_sources([result], setting.stores),
        is_drill=True,
    )
    assert {setting.known(name, snapshot) for name in ("bucket", "vault")} == {CheckOutcome.DAMAGED_SOURCE}
    assert len(setting.alarms()) == 3


def test_damage_is_dated_when_its_drill_ended(setting: Setting) -> None:
    """A snapshot that was taken during the drill may be built on what is damaged: it has repaired nothing."""
    for pack in (setting.home / "disk/app/packs").iterdir():
        pack.unlink()
    result = setting.drill()
    assert result.outcome is CheckOutcome.DAMAGED_STORE
    failure = setting.health("disk").drill_failure
    assert failure is not None
    assert failure.last_at > result.started_at
