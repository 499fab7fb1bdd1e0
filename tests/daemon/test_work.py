import os
import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from harness.checks import check_context
from harness.command_line import wait_until
from harness.context import PlacedContext
from harness.place import change_rows, create_database

from backupd.config import RetentionSettings
from backupd.daemon.discovery import missing_databases
from backupd.daemon.work import back_up_database, is_known_damaged, run_drill, run_drills, run_prunes
from backupd.format.records import CheckOutcome
from backupd.health.planning import with_daemon
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.verify import drill


class Setting(PlacedContext):
    """Databases that have a snapshot in both stores."""

    def __init__(self, home, *names, **settings):
        super().__init__(home, **settings)
        for name in names:
            create_database(home / f"{name}.db", rows=2)
        self.context.status.update(lambda status: with_daemon(status, pid=1, version="test", at=datetime.now(UTC)))
        self.drilled_soon = []
        for configured in self.databases:
            assert self.snapshot(configured) is None

    @property
    def databases(self):
        return self.inventory.databases(self.entry)[0]

    def snapshot(self, configured):
        return back_up_database(configured, self.inventory.stores, self.context, drill_soon=self.drilled_soon.append)

    def health(self, name, url):
        return self.context.status.read().databases[name].stores[url]


@pytest.fixture
def make(tmp_path):
    """Make a setting; its runs end after the test."""
    with Setting.making(tmp_path) as make:
        yield make


def test_drills_take_the_stores_in_turn(make):
    """Each night drills one store of each database, and the next night another one."""
    setting = make("app", "shop")
    for nights in (1, 2):
        run_drills(setting.context, setting.entry)
        for name in ("app", "shop"):
            proven = [setting.health(name, url).proven_at is not None for url in (setting.disk, setting.bucket)]
            assert sum(proven) == nights


def test_a_store_that_is_down_is_asked_once_for_all_drills(make):
    """A thousand databases do not wait for it in turn; the other store proves them."""
    setting = make("app", "shop", "wiki")
    setting.stores[0].is_down = True
    setting.stores[0].calls.clear()
    run_drills(setting.context, setting.entry)
    assert setting.stores[0].calls == ["get"]
    assert all(setting.health(name, setting.bucket).proven_at for name in ("app", "shop", "wiki"))


def test_a_store_that_is_down_is_asked_once_for_all_prunes(make):
    """A thousand databases do not wait for it in turn; the other store is pruned."""
    setting = make("app", "shop", "wiki", retention=RetentionSettings(keep_last=1, daily=0, weekly=0, monthly=0))
    for configured in setting.databases:
        change_rows(configured.database.path, "changed")
        assert setting.snapshot(configured) is None
    setting.stores[0].is_down = True
    setting.stores[0].calls.clear()
    run_prunes(setting.context, setting.entry)
    assert setting.stores[0].calls == ["get"]
    assert all(not setting.health(name, setting.bucket).prune_failure for name in ("app", "shop", "wiki"))


def test_a_bug_in_one_drill_costs_the_others_nothing(make, monkeypatch, capsys):
    """A bug in one drill is logged, and the next database is drilled."""
    setting = make("app", "shop")
    broken = setting.context.status.read

    def read():
        monkeypatch.setattr(setting.context.status, "read", broken)
        raise ZeroDivisionError

    monkeypatch.setattr(setting.context.status, "read", read)
    run_drills(setting.context, setting.entry)
    assert "this is a bug in backupd" in capsys.readouterr().err
    assert setting.health("shop", setting.disk).proven_at or setting.health("shop", setting.bucket).proven_at


def test_a_store_that_hangs_in_a_prune_is_left_behind(make):
    """The snapshot is there, the other store is pruned, and nothing more is begun in the one that hangs."""
    setting = make("app", "shop")
    store = setting.inventory.stores[0]
    setting.stores[0].answers.clear()
    result = setting.context.pruner.prune("app", store, lambda: None)
    assert "has not let app be pruned within 1 s" in result.error.message
    assert setting.health("app", setting.disk).prune_failure is not None
    assert setting.context.pruner.prune("shop", store, lambda: None) is None
    assert setting.context.pruner.prune("shop", setting.inventory.stores[1], lambda: None).error is None
    setting.stores[0].answers.set()
    wait_until(lambda: setting.context.pruner.prune("shop", store, lambda: None) is not None)


def damage(setting, store, number):
    """Turn a bit in a pack of that store, by its age; its size."""
    packs = sorted((setting.home / store / "app/packs").iterdir(), key=lambda file: file.stat().st_mtime_ns)
    content = bytearray(packs[number].read_bytes())
    content[-1] ^= 1
    packs[number].write_bytes(content)
    return len(content)


def drill_until(setting, configured, is_so):
    """Drill store after store until something is known of the disk."""
    for _ in range(4):
        run_drill(setting.context, configured)
        if is_so(setting.health("app", setting.disk)):
            return
    pytest.fail("no drill has found that")


def test_a_damaged_store_gets_the_damaged_pages_again_and_a_drill(make):
    """A damaged store gets the damaged pages again without a command, and other stores get nothing twice."""
    setting = make("app")
    (configured,) = setting.databases
    change_rows(setting.home / "app.db", "changed")
    setting.snapshot(configured)
    damaged_bytes = damage(setting, "disk", -1)
    drill_until(setting, configured, lambda health: health.is_damaged)
    assert is_known_damaged(setting.health("app", setting.disk))
    packs = {url: setting.health("app", url).totals.stored_bytes for url in (setting.disk, setting.bucket)}
    assert setting.snapshot(configured) is None
    assert setting.drilled_soon == [configured]
    assert setting.health("app", setting.disk).totals.stored_bytes == packs[setting.disk] + damaged_bytes
    assert setting.health("app", setting.bucket).totals.stored_bytes == packs[setting.bucket]
    assert not is_known_damaged(setting.health("app", setting.disk))
    run_drill(setting.context, configured)
    assert not setting.health("app", setting.disk).is_damaged


def test_a_store_that_is_still_damaged_after_that_gets_every_page(make):
    """A drill follows each full snapshot; after three tries, no further one is made."""
    setting = make("app")
    (configured,) = setting.databases
    before = setting.health("app", setting.disk).totals.stored_bytes
    with sqlite3.connect(setting.home / "app.db") as connection:
        connection.executemany("INSERT INTO report (body) VALUES (?)", ((os.urandom(1000),) for _ in range(100)))
    connection.close()
    setting.snapshot(configured)
    image_bytes = setting.health("app", setting.disk).totals.stored_bytes - before
    change_rows(setting.home / "app.db", "changed")
    setting.snapshot(configured)
    stored = []
    for _ in range(4):
        damage(setting, "disk", -1)
        drilled = setting.health("app", setting.disk).drill_failure
        count = drilled.count if drilled else 0
        drill_until(
            setting, configured, lambda health, count=count: health.drill_failure and health.drill_failure.count > count
        )
        before = setting.health("app", setting.disk).totals.stored_bytes
        setting.snapshot(configured)
        stored.append(setting.health("app", setting.disk).totals.stored_bytes - before)
    assert stored[0] < image_bytes / 2
    assert stored[1:3] == [pytest.approx(image_bytes, rel=0.2)] * 2
    assert len(setting.drilled_soon) == 3


def test_damage_that_only_the_store_records_is_repaired_and_drilled(make):
    """Damage that another machine or `verify` has recorded in the store is repaired, and a drill follows."""
    setting = make("app")
    (configured,) = setting.databases
    damage(setting, "disk", -1)
    elsewhere = StateDirectory(setting.home / "elsewhere")
    found = drill(Repository(DirectoryStore(setting.home / "disk"), elsewhere).archive("app"), check_context())
    assert found.outcome is CheckOutcome.DAMAGED_STORE
    assert not setting.health("app", setting.disk).is_damaged
    setting.snapshot(configured)
    assert setting.drilled_soon == [configured]


def test_a_damaged_source_does_not_cause_a_full_snapshot(make):
    """A damaged source is reported, stores nothing twice, and is cleared by the drill of a sound database."""
    setting = make("app")
    (configured,) = setting.databases
    path = setting.home / "app.db"
    sound = path.read_bytes()
    change_rows(path, "soon broken", rows=2)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("DELETE FROM sqlite_schema WHERE name = 'report_title'")
    connection.close()
    setting.snapshot(configured)
    drill_until(setting, configured, lambda health: health.is_source_damaged)
    health = setting.health("app", setting.disk)
    assert (health.is_damaged, is_known_damaged(health)) == (False, False)
    setting.snapshot(configured)
    assert setting.drilled_soon == []
    assert setting.health("app", setting.disk).totals.snapshots == health.totals.snapshots
    path.write_bytes(sound)
    setting.snapshot(configured)
    drill_until(setting, configured, lambda health: not health.is_source_damaged)
    assert setting.health("app", setting.disk).drill_failure is None


def test_what_cannot_be_reached_is_not_gone(make):
    """A directory that may not be entered may have the application write in it all the while."""
    setting = make(pattern="*/app.db")
    for name in ("one", "two"):
        (setting.home / name).mkdir()
        with sqlite3.connect(setting.home / name / "app.db") as connection:
            connection.execute("CREATE TABLE t (a)")
        connection.close()
    for configured in setting.databases:
        setting.snapshot(configured)
    setting.context.status.update(
        lambda status: _scheduled(status, {each.name: each for each in setting.databases}, datetime.now(UTC))
    )
    (setting.home / "one/app.db").rename(setting.home / "moved")
    (setting.home / "two/app.db").unlink()
    (setting.home / "two").rename(setting.home / "two-moved")
    (setting.home / "two").symlink_to("two")  # which leads nowhere but to itself
    lost = missing_databases(setting.entry, setting.databases, setting.context.status.read())
    assert lost["one"] is None
    assert isinstance(lost["two"], OSError)


def _scheduled(status, databases, now):
    from backupd.health.planning import Plan, with_plans  # noqa: PLC0415  (only here)

    plans = {
        name: Plan(
            path=each.database.path, stores=(), next_run_at=None, due_after=lambda moment: moment + timedelta(hours=1)
        )
        for name, each in databases.items()
    }
    return with_plans(status, plans, at=now)
