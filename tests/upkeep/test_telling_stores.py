"""What one store's drill finds of a captured database, in every other store, and what it holds there."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.place import change_rows, create_database

from backupd.backup import Wish
from backupd.config import DatabaseSettings, RetentionSettings, Settings, StoreSettings, find_databases
from backupd.drill import DrillResult, Outcome
from backupd.format.records import DrillOutcome
from backupd.health import StatusFile, StoreHealth
from backupd.health.judging import judge
from backupd.proofs import read_proofs
from backupd.repository.manifests import read_history
from backupd.state import StateDirectory
from backupd.upkeep.configured import Configured
from backupd.upkeep.damaged_sources import tell_stores
from backupd.upkeep.drills import drill_next
from backupd.upkeep.rotation import rotate
from backupd.upkeep.snapshots import take_snapshot
from backupd.upkeep.stores import open_repositories, rotated_stores
from backupd.upkeep.verifications import note_verified, tell_others

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format.ids import SnapshotId
    from backupd.prune import PruneResult

_STRICTEST = RetentionSettings(keep_last=1, daily=0, weekly=0, monthly=0)


def corrupt(path: Path) -> None:
    """Shift rows of the table against its index."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET rootpage = 2 WHERE name = 'report_title'")


class Setting:
    """One database in a disk, a bucket and a vault, of which the daemon reads two."""

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
        self.configured = Configured(database, self.settings.schedule)
        self.stores = rotated_stores(open_repositories(self.settings.stores, self.state), self.settings)

    def take(self) -> SnapshotId:
        """A snapshot in each store; its id."""
        results = take_snapshot(
            self.configured,
            self.stores,
            self.settings,
            self.state,
            self.status,
            wish=Wish(),
            on_progress=lambda _: None,
        )
        assert [result.error for result in results] == [None] * 3
        (snapshot,) = {result.id for result in results}
        assert snapshot is not None
        return snapshot

    def drill(self) -> DrillResult:
        """By the daemon, in the stores that it may read."""
        *readable, vault = self.stores
        result = drill_next(
            self.configured,
            readable,
            self.settings,
            self.state,
            self.status,
            others=[vault],
            should_stop=lambda: None,
        )
        assert result is not None
        return result

    def known(self, name: str, snapshot: SnapshotId) -> DrillOutcome | None:
        """What that store has recorded of it."""
        (repository,) = (each.repository for each in self.stores if each.url == str(self.home / name))
        found = read_proofs(repository, "app").own(snapshot)
        return None if found is None else found.outcome

    def health(self, name: str) -> StoreHealth:
        return self.status.read().databases["app"].stores[str(self.home / name)]

    def alarms(self) -> list[tuple[str, str]]:
        """Kinds and names of stores."""
        alarms = judge(self.status.read(), now=datetime.now(UTC), alive_at=None)
        return [(alarm.kind, (alarm.store or "").rpartition("/")[2]) for alarm in alarms]

    def prune(self, name: str) -> PruneResult:
        (rotated,) = (each for each in self.stores if each.url == str(self.home / name))
        return rotate("app", rotated, self.state, self.status)


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
    newest = read_history(setting.stores[0].repository, "app").newest_id
    assert newest is not None
    return newest


def test_every_store_knows_and_holds(setting: Setting) -> None:
    """Those that get no drill too, by record, alarm and hold, for as long as nothing newer is proven there."""
    snapshot = _newest(setting)
    assert setting.drill().outcome is Outcome.DAMAGED_SOURCE
    assert {setting.known(name, snapshot) for name in ("disk", "bucket", "vault")} == {DrillOutcome.DAMAGED_SOURCE}
    assert setting.alarms() == [("damaged-source", name) for name in ("disk", "bucket", "vault")]
    other = StatusFile(StateDirectory(setting.home / "another"))
    for rotated in setting.stores[:2]:
        assert setting.prune(rotated.url.rpartition("/")[2]).hold is not None
        elsewhere = rotate("app", rotated, setting.state, other)  # by the record alone, as on another machine
        assert (elsewhere.removed, elsewhere.hold is not None) == ((), True)
    assert setting.drill().store == str(setting.home / "bucket")  # no turn was lost
    setting.path.write_bytes(setting.sound)
    change_rows(setting.path, "repaired")
    setting.take()
    assert setting.drill().outcome is Outcome.PROVEN
    assert setting.drill().outcome is Outcome.PROVEN
    assert setting.alarms() == [("damaged-source", "vault")]
    assert setting.prune("disk").hold is None
    assert setting.prune("disk").error is None


def test_a_store_that_cannot_be_told_is_held_from_here(setting: Setting) -> None:
    """It was away when the drill found it: this machine knows, and removes nothing there."""
    bucket = setting.home / "bucket"
    bucket.rename(setting.home / "away")
    bucket.write_text("not a directory")
    result = setting.drill()
    assert result.outcome is Outcome.DAMAGED_SOURCE
    (warning,) = tell_stores(result, setting.stores).warnings
    assert warning.startswith(f"{bucket} could not be told that snapshot {result.id} of app is of a damaged database")
    bucket.unlink()
    (setting.home / "away").rename(bucket)
    assert setting.known("bucket", _newest(setting)) is None
    pruned = setting.prune("bucket")
    assert (pruned.error, pruned.removed) == (None, ())
    assert pruned.hold is not None
    assert "is a damaged database as it was captured" in pruned.hold.message


def test_stronger_and_other_findings_stay(setting: Setting) -> None:
    """Damage of stored bytes is not written over, nor is a store told of a snapshot that it does not have."""
    snapshot = _newest(setting)
    for pack in (setting.home / "bucket/app/packs").iterdir():
        pack.unlink()
    shutil.rmtree(setting.home / "vault/app")
    result = setting.drill()
    assert result.store == str(setting.home / "disk")
    told = tell_stores(result, setting.stores)
    assert (told.stores, told.warnings) == ((str(setting.home / "bucket"),), ())
    assert setting.known("vault", snapshot) is None
    assert setting.drill().outcome is Outcome.DAMAGED_STORE
    assert setting.known("bucket", snapshot) is DrillOutcome.FAILED
    assert tell_stores(result, setting.stores).stores == (str(setting.home / "bucket"),)
    assert setting.known("bucket", snapshot) is DrillOutcome.FAILED


def test_what_is_found_by_hand_is_told_too(setting: Setting) -> None:
    """As by the daemon."""
    snapshot = _newest(setting)
    result = setting.drill()
    for name in ("bucket", "vault"):
        (setting.home / name / f"app/drills/{snapshot}.json").unlink()
    told = tell_others([result], setting.stores)
    configured = {"app": setting.configured}
    note_verified([result], configured, setting.settings, setting.status, told=told, is_drill=True)
    assert {setting.known(name, snapshot) for name in ("bucket", "vault")} == {DrillOutcome.DAMAGED_SOURCE}
    assert len(setting.alarms()) == 3


def test_damage_is_as_late_as_its_drill_ended(setting: Setting) -> None:
    """A snapshot that was taken beside the drill may be built on what is damaged: it has healed nothing."""
    for pack in (setting.home / "disk/app/packs").iterdir():
        pack.unlink()
    result = setting.drill()
    assert result.outcome is Outcome.DAMAGED_STORE
    failure = setting.health("disk").drill_failure
    assert failure is not None
    assert failure.last_at > result.started_at
