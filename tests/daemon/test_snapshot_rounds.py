import shutil
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from harness.command_line import wait_until
from harness.context import PlacedContext, is_idle
from harness.extent import slow
from harness.place import change_rows, connected, create_database

from backupd.capture.unlocked import fingerprint
from backupd.daemon.snapshot_rounds import SnapshotRounds
from backupd.daemon.timetable import Job, Timetable
from backupd.errors import StoreUnavailableError
from backupd.health.planning import with_daemon
from backupd.schedules import Schedule

NIGHTLY = Schedule.parse("0 3 * * *")


class Setting(PlacedContext):
    """Databases, and the rounds over them that a test asks for: the timetable is not at work."""

    def __init__(self, home, *names, **settings):
        super().__init__(home, **settings)
        for name in names:
            create_database(home / f"{name}.db", rows=2)
        self.context.status.update(lambda status: with_daemon(status, pid=1, version="test", at=datetime.now(UTC)))
        self.timetable = Timetable()
        self.rounds = SnapshotRounds(self.context, self.entry, self.timetable)
        in_a_day = Schedule.parse("every 366d")
        self.timetable.add(self.rounds.key, Job(self.rounds.run, in_a_day, None, timedelta(0)))

    @property
    def status(self):
        return self.context.status.read()

    def run(self):
        """Do a scheduled round, and wait for its end."""
        self._began_at = datetime.now(UTC)
        self.rounds.run()
        self.wait()

    def retry(self):
        """Run the planned retry to its end; one must be planned."""
        assert self.retry_at is not None
        self.timetable.remove(f"retry {self.entry.path}")
        self._began_at = datetime.now(UTC)
        self.rounds._retries.run()
        self.wait()

    def wait(self):
        wait_until(lambda: is_idle(self.context.runs))

    @property
    def retry_at(self):
        """The time of the next planned retry."""
        return self.timetable.next_at(f"retry {self.entry.path}")

    def pause(self, first=30):
        """The planned pause in seconds (`first`, doubled any number of times) between the last round and its retry."""
        ended_at = datetime.now(UTC)
        possible = [first * 2**number for number in range(10)]
        return next(
            seconds for seconds in possible if self._began_at <= self.retry_at - timedelta(seconds=seconds) <= ended_at
        )

    def health(self, name, url):
        return self.status.databases[name].stores[url]

    def snapshots(self, store, name):
        """Names of the manifests in a store."""
        return sorted(path.name for path in (self.home / store / name / "snapshots").glob("*.json"))

    def settle(self):
        """Wait until the databases were written so long ago that their time stamps prove something."""
        for path in self.home.glob("*.db"):
            wait_until(lambda path=path: fingerprint(path, now=datetime.now(UTC)) is not None)


@pytest.fixture
def make(tmp_path):
    """Make a setting; its runs end after the test."""
    with Setting.making(tmp_path) as make:
        yield make


def test_a_round_backs_up_every_database_into_every_store(make):
    """A round backs up every database into every store, leaves nothing running, and plans no retry."""
    setting = make("app", "shop")
    setting.run()
    for name in ("app", "shop"):
        for store in ("disk", "bucket"):
            assert len(setting.snapshots(store, name)) == 1
        database = setting.status.databases[name]
        assert database.is_scheduled
        assert database.running_since is None
        assert database.next_run_at == setting.timetable.next_at(setting.rounds.key)
        assert [health.failure for health in database.stores.values()] == [None, None]
    assert setting.retry_at is None
    assert setting.woken.is_set()


def test_a_round_finds_that_nothing_has_changed(make):
    """A round over unchanged databases captures nothing, and they are current as of now."""
    setting = make("app", "shop")
    setting.settle()
    setting.run()
    before = setting.status.databases
    setting.run()
    after = setting.status.databases
    for name, database in after.items():
        for url, health in database.stores.items():
            assert health.last_run == before[name].stores[url].last_run
            assert health.current_at > before[name].stores[url].current_at
            assert health.due_by >= before[name].stores[url].due_by
    change_rows(setting.home / "shop.db", "state A")
    setting.run()
    assert [len(setting.snapshots("disk", name)) for name in ("app", "shop")] == [1, 2]


def test_databases_come_and_go(make):
    """A new file is backed up with the next round; one that is gone is noted, with what is known of it."""
    setting = make("app", "shop")
    setting.run()
    create_database(setting.home / "new.db", rows=2)
    (setting.home / "shop.db").unlink()
    setting.run()
    assert len(setting.snapshots("bucket", "new")) == 1
    gone = setting.status.databases["shop"]
    assert gone.vanished_at is not None
    assert gone.next_run_at is None
    assert setting.status.databases["app"].vanished_at is None
    setting.run()
    assert setting.status.databases["shop"].vanished_at == gone.vanished_at


def test_a_store_that_is_down_costs_the_other_nothing(make):
    """A store that is down fails alone and is tried again; the other one gets its snapshot."""
    setting = make("app")
    setting.stores[1].is_down = True
    setting.run()
    assert len(setting.snapshots("disk", "app")) == 1
    assert setting.health("app", setting.disk).failure is None
    assert "is down on purpose" in setting.health("app", setting.bucket).failure.message
    assert setting.pause() == 30


def test_a_database_that_cannot_be_read_costs_the_others_nothing(make):
    """A database that cannot be read fails alone and is tried again; the others get their snapshots."""
    setting = make("app")
    (setting.home / "broken.db").write_bytes(b"no database" * 1000)
    setting.run()
    assert len(setting.snapshots("disk", "app")) == 1
    assert setting.health("broken", setting.disk).failure.count == 1
    assert setting.pause() == 30
    setting.retry()
    assert setting.health("broken", setting.disk).failure.count == 2
    assert setting.pause() == 60


def test_retries_come_after_growing_pauses_until_one_succeeds(make):
    """The next scheduled round begins with the first pause."""
    setting = make("app")
    for store in setting.stores:
        store.is_down = True
    setting.run()
    pauses = [setting.pause()]
    for _ in range(4):
        setting.retry()
        pauses.append(setting.pause())
    assert pauses == [30, 60, 120, 240, 480]
    assert setting.health("app", setting.disk).failure.count == 5
    setting.run()
    assert setting.pause() == 30
    for store in setting.stores:
        store.is_down = False
    setting.retry()
    assert setting.retry_at is None
    assert setting.health("app", setting.disk).failure is None


def test_no_retry_comes_when_the_scheduled_round_is_near(make):
    """The scheduled round takes the database up."""
    setting = make("app")
    setting.timetable.add_once(setting.rounds.key, setting.rounds.run, datetime.now(UTC) + timedelta(seconds=20))
    setting.stores[0].is_down = True
    setting.run()
    assert setting.retry_at is None


def test_a_retry_tries_only_what_has_failed(make):
    """The others are not looked at before their time."""
    setting = make("app")
    (setting.home / "broken.db").write_bytes(b"no database" * 1000)
    setting.run()
    before = setting.health("app", setting.disk)
    setting.heard.reported.clear()
    setting.retry()
    assert setting.health("app", setting.disk).current_at == before.current_at
    assert setting.heard.of("app") == []
    assert setting.heard.of("broken") == ["start", "fail"]


def test_a_retry_that_has_nothing_to_do_sends_no_heartbeat(make):
    """A scheduled round may take the databases up while the retry is about to begin."""
    setting = make("app")
    setting.stores[0].is_down = True
    setting.run()
    setting.rounds._retries.reset()
    setting.heard.reported.clear()
    setting.rounds._retries.run()
    setting.wait()
    assert setting.heard.reported == []


@slow
def test_a_repository_that_a_retry_saw_first_is_still_new_to_the_others(make):
    """A store was replaced, and a retry of one database came before the next round over all: they all want it."""
    setting = make("app", "shop")
    setting.settle()
    setting.run()
    shutil.rmtree(setting.home / "bucket")
    setting.repositories[1].create_if_missing()
    setting.rounds._retries.ended("app", StoreUnavailableError("it was down"))
    setting.rounds._retries.run()
    setting.wait()
    assert [len(setting.snapshots("bucket", name)) for name in ("app", "shop")] == [1, 0]
    setting.run()
    assert [len(setting.snapshots("bucket", name)) for name in ("app", "shop")] == [1, 1]


def test_a_superseded_configuration_plans_no_retry(make):
    """A round of a superseded configuration that fails plans no retry."""
    setting = make("app")
    setting.stores[0].is_down = True
    setting.context.superseded.set()
    setting.run()
    assert setting.retry_at is None


def test_a_superseded_configuration_schedules_no_database(make):
    """A round of a superseded configuration does not put a forgotten database back on schedule."""
    setting = make("app")
    setting.context.superseded.set()
    setting.run()
    assert not any(database.is_scheduled for database in setting.status.databases.values())


def test_a_database_that_ran_out_of_time_waits_alone(make):
    """Rounds leave it out until its own pause is over, it is an alarm all the while, and others have their own."""
    setting = make("app", "locked", capture={"lock_timeout": "100ms"}, daemon={"retry_after": "1h"})
    with connected(setting.home / "locked.db", "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
        setting.run()
        assert len(setting.snapshots("disk", "app")) == 1
        assert setting.retry_at is None
        own_retry = f"retry {setting.entry.path} locked"
        pause = setting.timetable.next_at(own_retry) - datetime.now(UTC)
        assert timedelta(minutes=59) < pause <= timedelta(hours=1)
        change_rows(setting.home / "app.db", "state A")
        setting.run()
        assert len(setting.snapshots("disk", "app")) == 2
        failure = setting.health("locked", setting.disk).failure
        assert failure.count == 1
        assert "locked.db stayed locked by the application" in failure.message
        assert setting.heard.of("locked") == ["start", "fail"] * 2
        assert setting.heard.of(None) == ["start", "fail"] * 2


def test_a_run_in_progress_is_not_started_again(make):
    """Several rounds pass while the database is in use."""
    setting = make("app")
    with setting.context.runs.turn("app", timeout=0):
        setting.rounds.run()
        setting.rounds.run()
        assert not (setting.home / "disk/app").exists()
    setting.wait()
    assert setting.health("app", setting.disk).totals.snapshots == 1


def test_an_entry_that_finds_nothing_is_a_problem(make):
    """An entry that matches no file is a problem until it does, which is tried again soon."""
    setting = make()
    setting.run()
    problem = setting.status.daemon.entry_problems[setting.entry.path]
    assert problem.message == f"no file matches {setting.entry.path}"
    assert setting.heard.reported == []
    assert setting.pause(first=5) == 5
    create_database(setting.home / "app.db", rows=2)
    setting.retry()
    assert setting.status.daemon.entry_problems == {}
    assert len(setting.snapshots("disk", "app")) == 1


@pytest.mark.parametrize("pattern", ["*.db", "app.db"])
def test_a_missing_database_is_looked_for_twice_a_minute_for_ever(make, pattern):
    """Half a minute long the application may be making it; then heartbeats hear of it, once and in each round."""
    setting = make(pattern=pattern)
    setting.run()
    pauses = []
    for _ in range(40):
        pauses.append((setting.retry_at - datetime.now(UTC)).total_seconds())
        setting.retry()
    assert [round(pause) for pause in pauses] == [5, 10, 20, *[30] * 37]
    assert setting.status.daemon.entry_problems[setting.entry.path].is_transient
    assert setting.heard.of(None) == ["start", "fail"]
    assert not any(store.calls for store in setting.stores)
    setting.run()
    assert setting.heard.of(None) == ["start", "fail"] * 2
    assert setting.heard.of("app") == (["start", "fail"] * 2 if pattern == "app.db" else [])
    create_database(setting.home / "app.db", rows=2)
    setting.retry()
    assert setting.status.daemon.entry_problems == {}
    assert len(setting.snapshots("disk", "app")) == 1


def test_a_vanished_file_that_comes_back_has_a_round_soon(make):
    """A vanished file is looked for twice a minute, without store calls, and backed up when it is back."""
    setting = make("app", "shop")
    setting.run()
    kept = (setting.home / "shop.db").rename(setting.home / "elsewhere")
    setting.run()
    look_key = f"look {setting.entry.path}"
    look = setting.timetable._scheduler.get_job(setting.timetable._ids[look_key]).func
    assert (setting.timetable.next_at(look_key) - datetime.now(UTC)).total_seconds() <= 30
    calls = [len(store.calls) for store in setting.stores]
    look()
    assert [len(store.calls) for store in setting.stores] == calls
    kept.rename(setting.home / "shop.db")
    setting.timetable.remove(look_key)
    look()
    setting.wait()
    assert setting.status.databases["shop"].vanished_at is None
    assert setting.timetable.next_at(look_key) is None


def test_heartbeats_are_sent_for_each_database_and_for_the_round(make):
    """A round sends a start and an end for each database and for itself, its own end last."""
    setting = make("app", "shop")
    setting.run()
    wait_until(lambda: len(setting.heard.of(None)) == 2)
    assert setting.heard.of(None) == setting.heard.of("app") == setting.heard.of("shop") == ["start", "well"]
    assert setting.heard.reported[-1] == (None, "well")
    setting.stores[1].is_down = True
    setting.heard.reported.clear()
    setting.run()
    wait_until(lambda: len(setting.heard.of(None)) == 2)
    assert setting.heard.of(None) == setting.heard.of("app") == ["start", "fail"]


def test_due_times_follow_the_schedule_the_jitter_and_the_grace(make):
    """A database may be current for as long as all three allow, and no longer."""
    schedule = {"snapshots": "0 3 * * *", "jitter": "10m", "time_zone": "Europe/Berlin"}
    setting = make("app", schedule=schedule, health={"grace": "20m"})
    setting.run()
    health = setting.health("app", setting.disk)
    zone = setting.context.settings.schedule.zone
    assert health.due_by == NIGHTLY.next_after(health.current_at, zone) + timedelta(minutes=30)


def test_rounds_go_on_when_the_status_cannot_be_written(make):
    """A backup is worth more than the account of it."""
    setting = make("app")
    with suppress(FileNotFoundError):
        (setting.home / "state/status.json").unlink()
    (setting.home / "state/status.json").mkdir()
    setting.run()
    assert len(setting.snapshots("disk", "app")) == 1
