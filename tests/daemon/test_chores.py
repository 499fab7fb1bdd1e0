import sqlite3
from datetime import UTC, datetime, timedelta

import pytest
from harness.charge import Charged
from harness.command_line import wait_until
from harness.place import change_rows, create_database

from backupd.config import RetentionSettings
from backupd.daemon.charge import missing
from backupd.daemon.chores import run_drill, run_drills, run_prunes
from backupd.daemon.snapshots import is_condemned, look_after
from backupd.health.planning import with_daemon


class Setting(Charged):
    """Databases that have a snapshot in both stores."""

    def __init__(self, home, *names, **settings):
        super().__init__(home, **settings)
        for name in names:
            create_database(home / f"{name}.db", rows=2)
        self.charge.status.update(lambda status: with_daemon(status, pid=1, version="test", at=datetime.now(UTC)))
        self.drilled_soon = []
        for configured in self.databases:
            assert self.snapshot(configured) is None

    @property
    def databases(self):
        return self.charge.databases(self.entry)[0]

    def snapshot(self, configured):
        return look_after(configured, self.charge.stores(), self.charge, drill_soon=self.drilled_soon.append)

    def health(self, name, url):
        return self.charge.status.read().databases[name].stores[url]


@pytest.fixture
def make(tmp_path):
    """Make a setting; its runs end after the test."""
    settings = []

    def make(*names, **options):
        settings.append(Setting(tmp_path, *names, **options))
        return settings[-1]

    yield make
    for setting in settings:
        setting.close()


def test_drills_take_the_stores_in_turn(make):
    """One store a night, and each database."""
    setting = make("app", "shop")
    for nights in (1, 2):
        run_drills(setting.charge, setting.entry)
        for name in ("app", "shop"):
            proven = [setting.health(name, url).proven_at is not None for url in (setting.disk, setting.bucket)]
            assert sum(proven) == nights


def test_a_store_that_is_down_is_asked_once_for_all_drills(make):
    """A thousand databases do not wait for it in turn; the other store proves them."""
    setting = make("app", "shop", "wiki")
    setting.stores[0].is_down = True
    setting.stores[0].calls.clear()
    run_drills(setting.charge, setting.entry)
    assert setting.stores[0].calls == ["get"]
    assert all(setting.health(name, setting.bucket).proven_at for name in ("app", "shop", "wiki"))


def test_a_store_that_is_down_is_asked_once_for_all_prunes(make):
    """The same, and the other store is pruned."""
    setting = make("app", "shop", "wiki", retention=RetentionSettings(keep_last=1, daily=0, weekly=0, monthly=0))
    for configured in setting.databases:
        change_rows(configured.database.path, "changed")
        assert setting.snapshot(configured) is None
    setting.stores[0].is_down = True
    setting.stores[0].calls.clear()
    run_prunes(setting.charge, setting.entry)
    assert setting.stores[0].calls == ["get"]
    assert all(not setting.health(name, setting.bucket).prune_failure for name in ("app", "shop", "wiki"))


def test_a_bug_in_one_drill_costs_the_others_nothing(make, monkeypatch, capsys):
    """It is logged, and the next database has its turn."""
    setting = make("app", "shop")
    broken = setting.charge.status.read

    def read():
        monkeypatch.setattr(setting.charge.status, "read", broken)
        raise MemoryError

    monkeypatch.setattr(setting.charge.status, "read", read)
    run_drills(setting.charge, setting.entry)
    assert "this is a bug in backupd" in capsys.readouterr().err
    assert setting.health("shop", setting.disk).proven_at or setting.health("shop", setting.bucket).proven_at


def test_a_store_that_hangs_in_a_prune_is_left_behind(make):
    """The snapshot is there, the other store is pruned, and nothing more is begun in the one that hangs."""
    setting = make("app", "shop")
    rotated = setting.charge.stores()[0]
    setting.stores[0].answers.clear()
    result = setting.charge.rotations.rotate("app", rotated, lambda: None)
    assert "has not let app be pruned within 1 s" in result.error.message
    assert setting.health("app", setting.disk).prune_failure is not None
    assert setting.charge.rotations.rotate("shop", rotated, lambda: None) is None
    assert setting.charge.rotations.rotate("shop", setting.charge.stores()[1], lambda: None).error is None
    setting.stores[0].answers.set()
    wait_until(lambda: setting.charge.rotations.rotate("shop", rotated, lambda: None) is not None)


def test_a_damaged_store_gets_every_page_again_and_a_drill(make):
    """Nobody has to do that by hand; where nothing is damaged, nothing is stored twice."""
    setting = make("app")
    (configured,) = setting.databases
    for pack in (setting.home / "disk/app/packs").iterdir():
        pack.chmod(0o600)
        content = bytearray(pack.read_bytes())
        content[-1] ^= 1
        pack.write_bytes(content)
    while not setting.health("app", setting.disk).is_damaged:
        run_drill(setting.charge, configured)
    assert is_condemned(setting.health("app", setting.disk))
    packs = {url: setting.health("app", url).totals.stored_bytes for url in (setting.disk, setting.bucket)}
    assert setting.snapshot(configured) is None
    assert setting.drilled_soon == [configured]
    assert setting.health("app", setting.disk).totals.stored_bytes > packs[setting.disk]
    assert setting.health("app", setting.bucket).totals.stored_bytes == packs[setting.bucket]
    assert not is_condemned(setting.health("app", setting.disk))
    run_drill(setting.charge, configured)
    assert not setting.health("app", setting.disk).is_damaged


def test_what_cannot_be_reached_is_not_gone(make):
    """A directory that may not be entered may have the application write in it all the while."""
    setting = make(pattern="*/app.db")
    for name in ("one", "two"):
        (setting.home / name).mkdir()
        with sqlite3.connect(setting.home / name / "app.db") as connection:
            connection.execute("CREATE TABLE t (a)")
        connection.close()
    setting.look_again()
    for configured in setting.databases:
        setting.snapshot(configured)
    setting.charge.status.update(
        lambda status: _scheduled(status, {each.name: each for each in setting.databases}, datetime.now(UTC))
    )
    (setting.home / "one/app.db").rename(setting.home / "moved")
    (setting.home / "two/app.db").unlink()
    (setting.home / "two").rename(setting.home / "two-moved")
    (setting.home / "two").symlink_to("two")  # which leads nowhere but to itself
    setting.look_again()
    lost = missing(setting.entry, setting.databases, setting.charge.status.read())
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
