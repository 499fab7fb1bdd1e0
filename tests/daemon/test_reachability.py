import shutil
import threading
from datetime import UTC, datetime, timedelta

import pytest
from harness.command_line import wait_until
from harness.context import MoodyStore
from harness.place import change_rows, create_database
from harness.statuses import with_health

from backupd.backup import BackupResult, Outcome, SnapshotRequest
from backupd.capture.unlocked import fingerprint
from backupd.config import Database, ScheduleSettings, Settings
from backupd.daemon.reachability import Answers, Reachability, plan_round
from backupd.errors import StoreUnavailableError
from backupd.health import StatusFile
from backupd.health.recording import with_down, with_snapshots
from backupd.jobs.configured import ConfiguredDatabase, ConfiguredStore
from backupd.jobs.snapshots import take_snapshot
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

LATER = timedelta(seconds=10)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


class Setting:
    """Databases in two stores, each with a snapshot of its present state, and what is remembered of that."""

    def __init__(self, home, *names):
        self.home = home
        self.settings = Settings(state_dir=home / "state")
        self.state = StateDirectory(home / "state")
        self.status = StatusFile(self.state)
        self.stores = [MoodyStore(DirectoryStore(home / name)) for name in ("disk", "bucket")]
        self.configured_stores = [
            ConfiguredStore(Repository(store, self.state), {}, timedelta(days=7)) for store in self.stores
        ]
        self.disk, self.bucket = [store.url for store in self.stores]
        self.databases = [self.add(name) for name in names]
        self.known_ids = self.ask().ids

    def add(self, name, *, stores=None):
        """Add a database, and back it up into `stores`, or into all of them."""
        path = self.home / f"{name}.db"
        create_database(path, rows=5)
        configured = ConfiguredDatabase(Database(name, path), ScheduleSettings())
        self.back_up(configured, self.configured_stores if stores is None else stores)
        return configured

    def back_up(self, configured, stores):
        """A snapshot, and what is remembered of it when the file has not been written for a while."""
        results = take_snapshot(configured, stores, self, request=SnapshotRequest(), on_progress=lambda _: None)
        assert [result.error for result in results] == [None] * len(stores)
        looks_like = fingerprint(configured.database.path, now=datetime.now(UTC) + LATER)
        for store in stores:
            self.remember(configured.name, store.url, fingerprint=looks_like)

    def remember(self, name, url, **changes):
        """Change what is remembered of a database in a store."""
        self.status.update(lambda status: with_health(status, name, url, **changes))

    def ask(self):
        """Ask the stores."""
        return Reachability().ask(self.configured_stores)

    def plan(self, *, after=LATER, known_ids=None):
        """Plan a round some time from now. Other requests to the stores are in their `calls`."""
        answers = self.ask()
        for store in self.stores:
            store.calls.clear()
        known_ids = self.known_ids if known_ids is None else known_ids
        now = datetime.now(UTC) + after
        return plan_round(self.databases, self.configured_stores, answers, known_ids, self.status.read(), now=now)


@pytest.fixture
def setting(tmp_path):
    """A setting with one database."""
    return Setting(tmp_path, "app")


def wanting(plan):
    """The stores that may need a snapshot, by database."""
    return {name: [store.url for store in stores] for name, stores in plan.wanting.items()}


def down(plan):
    """The stores that could not be asked, by database."""
    return {name: [url for url, _ in errors] for name, errors in plan.down.items()}


def test_an_idle_database_needs_no_snapshot(setting):
    """For an idle database each store is asked once whether it can be reached, and for nothing else."""
    plan = setting.plan()
    assert plan.unchanged == {"app": [setting.disk, setting.bucket]}
    assert (plan.wanting, plan.down, plan.seen) == ({}, {}, {})
    assert [store.calls for store in setting.stores] == [[], []]


def test_a_changed_database_wants_every_store(setting):
    """Every kind of change counts."""
    change_rows(setting.databases[0].database.path, "state A")
    assert wanting(setting.plan()) == {"app": [setting.disk, setting.bucket]}


def test_a_database_that_was_written_a_moment_ago_is_looked_into(setting):
    """A database that was just written needs a capture, because its time stamps prove nothing yet."""
    setting.databases[0].database.path.touch()
    assert wanting(setting.plan(after=timedelta(0))) == {"app": [setting.disk, setting.bucket]}


def test_a_database_that_is_gone_is_looked_into(setting):
    """The attempt at a snapshot reports what is wrong with it."""
    setting.databases[0].database.path.unlink()
    assert wanting(setting.plan()) == {"app": [setting.disk, setting.bucket]}


def test_a_new_database_wants_every_store(setting):
    """Beside one that is idle."""
    path = setting.home / "new.db"
    create_database(path, rows=5)
    setting.databases.append(ConfiguredDatabase(Database("new", path), ScheduleSettings()))
    plan = setting.plan()
    assert wanting(plan) == {"new": [setting.disk, setting.bucket]}
    assert plan.unchanged == {"app": [setting.disk, setting.bucket]}


def test_a_store_that_lacks_the_newest_snapshot_gets_it(setting):
    """A store that was down when the others got the newest snapshot gets it; the others are left alone."""
    change_rows(setting.databases[0].database.path, "state A")
    setting.back_up(setting.databases[0], setting.configured_stores[:1])
    plan = setting.plan()
    assert wanting(plan) == {"app": [setting.bucket]}
    assert plan.unchanged == {"app": [setting.disk]}


def test_a_new_store_gets_everything(setting):
    """A new store, of which nothing is remembered, gets a snapshot of every database."""
    shutil.rmtree(setting.home / "disk")
    setting.databases.append(setting.add("shop", stores=setting.configured_stores[1:]))
    plan = setting.plan()
    assert wanting(plan) == {"app": [setting.disk], "shop": [setting.disk]}
    assert plan.unchanged == {"app": [setting.bucket], "shop": [setting.bucket]}


def test_a_wiped_store_gets_everything_again(setting):
    """The remembered state of the store does not count."""
    shutil.rmtree(setting.home / "bucket")
    plan = setting.plan()
    assert wanting(plan) == {"app": [setting.bucket]}
    assert plan.unchanged == {"app": [setting.disk]}


def test_another_repository_in_its_place_is_asked_for_every_manifest(tmp_path):
    """A repository that replaces another one is asked for every manifest, and gets the snapshots that it lacks."""
    setting = Setting(tmp_path, "app", "shop")
    shutil.rmtree(tmp_path / "bucket")
    setting.configured_stores[1] = ConfiguredStore(Repository(setting.stores[1], setting.state), {}, timedelta(days=7))
    setting.back_up(setting.databases[0], setting.configured_stores[1:])
    plan = setting.plan()
    assert wanting(plan) == {"shop": [setting.bucket]}
    assert plan.unchanged == {"app": [setting.disk, setting.bucket], "shop": [setting.disk]}
    assert plan.seen == {setting.bucket: ["app"]}


def test_a_daemon_that_has_just_started_asks_for_every_manifest(setting):
    """Much may have happened to a store while it did not run."""
    plan = setting.plan(known_ids={})
    assert plan.seen == {setting.disk: ["app"], setting.bucket: ["app"]}
    assert plan.unchanged == {"app": [setting.disk, setting.bucket]}
    assert [store.calls for store in setting.stores] == [["get"], ["get"]]


@pytest.mark.parametrize("seen", [None, -HOUR - MINUTE, 2 * HOUR], ids=["never", "an hour ago", "in the future"])
def test_a_manifest_that_was_not_seen_lately_is_asked_for(setting, seen):
    """A manifest is asked for once an hour, and after the clock was set, so that a removed one is noticed."""
    seen_at = None if seen is None else datetime.now(UTC) + seen
    setting.remember("app", setting.bucket, seen_at=seen_at)
    plan = setting.plan()
    assert plan.seen == {setting.bucket: ["app"]}
    assert plan.unchanged == {"app": [setting.disk, setting.bucket]}
    for manifest in (setting.home / "bucket/app/snapshots").iterdir():
        manifest.write_bytes(manifest.read_bytes()[:-1])
        plan = setting.plan()
        assert (wanting(plan), plan.seen) == ({"app": [setting.bucket]}, {}), "no reader accepts it"
        manifest.unlink()
    plan = setting.plan()
    assert (wanting(plan), plan.seen) == ({"app": [setting.bucket]}, {})


def test_a_manifest_that_was_seen_lately_is_not_asked_for(setting):
    """A manifest that was seen within the last hour is not asked for."""
    setting.remember("app", setting.bucket, seen_at=datetime.now(UTC) - HOUR + MINUTE)
    assert setting.plan().seen == {}


def test_a_damaged_store_is_never_taken_for_unchanged(setting):
    """The next snapshot repairs what a drill found, even if the database has not changed."""
    setting.remember("app", setting.bucket, is_damaged=True)
    assert wanting(setting.plan()) == {"app": [setting.bucket]}


def test_a_store_that_was_down_is_asked_for_what_it_had(setting):
    """A thousand idle databases need no snapshot each because their store was away for a while."""
    error = StoreUnavailableError("it was down")
    setting.status.update(lambda found: with_down(found, {"app": [(setting.bucket, error)]}, at=datetime.now(UTC)))
    plan = setting.plan()
    assert plan.unchanged == {"app": [setting.disk, setting.bucket]}
    assert plan.seen == {setting.bucket: ["app"]}


def test_a_failed_snapshot_is_tried_again(setting):
    """A failed store does not become current because the database has not changed since."""
    error = StoreUnavailableError("it is down")
    result = BackupResult(database="app", store=setting.bucket, outcome=Outcome.FAILED, error=error)
    path, now = setting.databases[0].database.path, datetime.now(UTC)
    setting.status.update(
        lambda found: with_snapshots(
            found, [result], path=path, at=now, due_by=None, fingerprint=fingerprint(path, now=now)
        )
    )
    assert wanting(setting.plan()) == {"app": [setting.bucket]}


def test_a_database_without_a_snapshot_is_looked_into(setting):
    """An attempt alone proves nothing."""
    setting.remember("app", setting.bucket, snapshot_id=None)
    assert wanting(setting.plan()) == {"app": [setting.bucket]}


def test_a_store_that_is_down_fails_every_database_at_once(tmp_path):
    """The other store goes on; no database waits for the dead one."""
    setting = Setting(tmp_path, "app", "shop")
    setting.stores[1].is_down = True
    change_rows(setting.databases[1].database.path, "state A")
    plan = setting.plan()
    assert down(plan) == {"app": [setting.bucket], "shop": [setting.bucket]}
    assert wanting(plan) == {"shop": [setting.disk]}
    assert plan.unchanged == {"app": [setting.disk]}
    assert "is down on purpose" in plan.error_of("app").message
    assert setting.stores[1].calls == []


def test_a_store_that_goes_down_while_it_is_asked_fails_what_it_has_not_shown(setting):
    """A manifest that a failing store could not show is unseen, and no reason for another snapshot."""
    answers = setting.ask()
    setting.stores[1].is_down = True
    plan = plan_round(
        setting.databases,
        setting.configured_stores,
        answers,
        {},
        setting.status.read(),
        now=datetime.now(UTC) + LATER,
    )
    assert down(plan) == {"app": [setting.bucket]}
    assert plan.seen == {setting.disk: ["app"]}
    assert plan.wanting == {}


def test_stores_are_identified_by_their_repository_id(setting):
    """The id of a store is read from its backupd.json each time; a store without one has none."""
    answers = setting.ask()
    assert answers == Answers({store.url: store.repository.id for store in setting.configured_stores}, {})
    assert None not in answers.ids.values()
    (setting.home / "bucket/backupd.json").unlink()
    assert setting.ask().ids == {**answers.ids, setting.bucket: None}


def test_a_store_that_hangs_costs_a_round_little(setting):
    """A store that hangs counts as down after a while, and the answers of the others are used."""
    reachability = Reachability(patience=timedelta(seconds=0.1))
    setting.stores[1].answers.clear()
    answers = reachability.ask(setting.configured_stores)
    assert list(answers.ids) == [setting.disk]
    assert answers.errors[setting.bucket].message == f"{setting.bucket} has not answered for 0 s"
    setting.stores[1].answers.set()


def test_a_store_that_hangs_is_asked_once_at_a_time(setting):
    """Rounds that come and go leave no threads behind; as soon as it answers, it counts again."""
    reachability = Reachability(patience=timedelta(seconds=0.05))
    reachability.ask(setting.configured_stores)
    before = threading.active_count()
    setting.stores[1].answers.clear()
    setting.stores[1].calls.clear()
    for _ in range(3):
        assert list(reachability.ask(setting.configured_stores).errors) == [setting.bucket]
    assert setting.stores[1].calls == ["get"]
    assert threading.active_count() == before + 1
    setting.stores[1].answers.set()
    wait_until(lambda: reachability.ask(setting.configured_stores).errors == {})
