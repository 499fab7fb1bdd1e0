import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from harness.command_line import wait_until
from harness.context import is_idle

from backupd.daemon.runs import Runs
from backupd.errors import BusyError, InterruptedByUserError, StoreUnavailableError

PATIENCE_SECONDS = 30


class Work:
    """Runs that go on until they are let go; how many were at work at the same time, and in which order they began."""

    def __init__(self):
        self.begun = []
        self.ended = []
        self.at_work = set()
        self.most = 0
        self.reported = []
        self._lock = threading.Lock()
        self._gates = {}

    def run(self, name):
        """Run as `Runs` calls it."""
        with self._lock:
            gate = self._gates.setdefault(name, threading.Event())
            assert name not in self.at_work
            self.at_work.add(name)
            self.begun.append(name)
            self.most = max(self.most, len(self.at_work))
        assert gate.wait(PATIENCE_SECONDS)
        with self._lock:
            self.at_work.discard(name)
            self.ended.append(name)

    def keep(self, *names):
        """Let these go on, when they begin the next time, until they are let go."""
        with self._lock:
            for name in names:
                self._gates[name] = threading.Event()

    def let_go(self, *names):
        """Let these end, now or as soon as they begin."""
        with self._lock:
            gates = [self._gates.setdefault(name, threading.Event()) for name in names]
        for gate in gates:
            gate.set()


@pytest.fixture
def work():
    """Runs under control of the test."""
    return Work()


@contextmanager
def running(limit):
    """Runs that are ended after the block."""
    runs = Runs(limit)
    try:
        yield runs
    finally:
        runs.stop(finish_seconds=0, abandon_seconds=0)


def start(runs, work, *names):
    """Start a run of each."""
    for name in names:
        runs.start(name, lambda name=name: work.run(name), lambda error, name=name: work.reported.append((name, error)))


def test_no_more_run_at_the_same_time_than_are_allowed(work):
    """The others wait for their turn, in the order in which they came."""
    with running(2) as runs:
        names = [f"tenant-{number}" for number in range(6)]
        start(runs, work, *names)
        wait_until(lambda: len(work.begun) == 2)
        for number, name in enumerate(names):
            work.let_go(name)
            wait_until(lambda number=number: len(work.begun) >= min(number + 3, 6))
        wait_until(lambda: is_idle(runs))
        assert work.most == 2
        assert work.begun[2:] == names[2:]
        assert sorted(work.ended) == names


def test_a_database_has_one_run_at_a_time(work):
    """A start while it runs or waits counts for that run; after its end, there may be another."""
    with running(1) as runs:
        start(runs, work, "app", "shop")
        start(runs, work, "app", "shop")
        work.let_go("app", "shop")
        wait_until(lambda: is_idle(runs))
        assert work.begun == ["app", "shop"]
        assert work.reported == [("app", None), ("app", None), ("shop", None), ("shop", None)]
        start(runs, work, "app")
        wait_until(lambda: is_idle(runs))
        assert work.begun == ["app", "shop", "app"]


def test_what_another_plan_starts_comes_after_the_run_in_progress(work):
    """A reload may have added a store, and the run that is going on does not know it."""
    reported = []
    with running(1) as runs:
        for plan in ("before", "after", "after"):
            runs.start("app", lambda: work.run("app"), lambda _, plan=plan: reported.append(plan), plan=plan)
        work.let_go("app")
        wait_until(lambda: is_idle(runs))
    assert work.begun == ["app", "app"]
    assert reported == ["before", "after", "after"]


def test_the_end_of_a_run_is_reported_before_the_next_begins(work):
    """A failure that is heard of after the success that followed it would be retried, and shown as the state."""
    reported = []

    def report_slowly(_):
        time.sleep(0.05)
        reported.append(list(work.begun))

    with running(2) as runs:
        for plan in ("before", "after"):
            runs.start("app", lambda: work.run("app"), report_slowly, plan=plan)
        work.let_go("app")
        wait_until(lambda: is_idle(runs))
    assert reported == [["app"], ["app", "app"]]


def test_a_run_asked_for_while_the_last_is_reported_is_a_new_one(work):
    """What changed after the end of a run is not in it."""
    with running(1) as runs:
        runs.start("app", lambda: work.run("app"), lambda _: start(runs, work, "app"))
        work.let_go("app")
        wait_until(lambda: is_idle(runs))
        assert work.begun == ["app", "app"]
        assert work.reported == [("app", None)]


def test_stopping_waits_for_the_reports(work):
    """What a run reports at its end is not lost because the daemon stops."""
    reported = []

    def report_slowly(error):
        time.sleep(0.05)
        reported.append(error)

    runs = Runs(1)
    runs.start("app", lambda: work.run("app"), report_slowly)
    wait_until(lambda: work.begun)
    work.let_go("app")
    assert runs.stop(finish_seconds=PATIENCE_SECONDS, abandon_seconds=0) == []
    assert reported == [None]


def test_many_that_start_at_once_never_run_one_database_twice():
    """Several threads start runs by schedule and on request."""
    at_work, twice = set(), []
    lock = threading.Lock()

    def run(name):
        with lock:
            if name in at_work:
                twice.append(name)
            at_work.add(name)
        with lock:
            at_work.discard(name)

    def ask(runs, seed):
        for number in range(200):
            name = f"tenant-{(number * seed) % 5}"
            if seed % 2:
                runs.start(name, lambda name=name: run(name), lambda _: None)
            else:
                with runs.turn(name, timeout=PATIENCE_SECONDS):
                    run(name)
            runs.set_limit(1 + number % 3)

    with running(2) as runs:
        threads = [threading.Thread(target=ask, args=(runs, seed)) for seed in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        wait_until(lambda: is_idle(runs))
    assert twice == []


def test_a_higher_limit_holds_at_once(work):
    """Runs that wait begin."""
    with running(1) as runs:
        start(runs, work, "a", "b", "c", "d")
        wait_until(lambda: work.begun == ["a"])
        runs.set_limit(3)
        wait_until(lambda: len(work.begun) == 3)
        assert work.most == 3
        work.let_go("a", "b", "c", "d")
        wait_until(lambda: is_idle(runs))


def test_a_lower_limit_lets_running_ones_finish(work):
    """A lower limit lets the current runs finish, and none begins until there is room under it."""
    with running(3) as runs:
        start(runs, work, "a", "b", "c", "d")
        wait_until(lambda: len(work.begun) == 3)
        runs.set_limit(1)
        work.let_go("a", "b")
        wait_until(lambda: len(work.ended) == 2)
        assert work.at_work == {"c"}
        work.let_go("c")
        wait_until(lambda: work.at_work == {"d"})
        work.let_go("d")
        wait_until(lambda: is_idle(runs))


def test_the_same_limit_again_lets_no_more_run(work):
    """A configuration that is reloaded often does not double the runs each time."""
    with running(1) as runs:
        start(runs, work, "a", "b")
        wait_until(lambda: work.begun == ["a"])
        for _ in range(5):
            runs.set_limit(1)
        start(runs, work, "c")
        work.let_go("a", "b", "c")
        wait_until(lambda: is_idle(runs))
        assert work.most == 1
        assert work.begun == ["a", "b", "c"]


def test_databases_that_ran_out_of_time_share_one_slot_and_go_last(work):
    """Databases that ran out of time share one slot and go last, each until one of its runs succeeds."""
    slow, good = ["slow-1", "slow-2", "slow-3"], ["good-1", "good-2"]

    def time_out(name):
        work.run(name)
        raise BusyError(f"{name} hangs")

    with running(2) as runs:
        work.let_go(*slow)
        for name in slow:
            runs.start(name, lambda name=name: time_out(name), lambda _: None)
        wait_until(lambda: is_idle(runs))
        work.keep(*slow)
        start(runs, work, "first")
        wait_until(lambda: work.at_work == {"first"})
        start(runs, work, *slow)
        wait_until(lambda: work.at_work == {"first", "slow-1"})
        start(runs, work, *good)
        work.let_go("first", *good)
        wait_until(lambda: set(good) <= set(work.ended))
        assert work.at_work == {"slow-1"}
        work.let_go("slow-1")
        wait_until(lambda: work.at_work == {"slow-2"})
        work.let_go("slow-2", "slow-3")
        wait_until(lambda: is_idle(runs))
        work.keep("slow-1", "slow-2")
        start(runs, work, "slow-1", "slow-2")
        wait_until(lambda: work.at_work == {"slow-1", "slow-2"})
        work.let_go("slow-1", "slow-2")
        wait_until(lambda: is_idle(runs))


def test_a_database_that_ran_out_of_time_gets_the_only_slot_when_it_is_free(work):
    """A database that ran out of time gets the only slot when concurrent_runs is 1."""
    with running(1) as runs:
        work.let_go("slow")

        def time_out():
            work.run("slow")
            raise BusyError("it hangs")

        for _ in range(2):
            runs.start("slow", time_out, lambda _: None)
            wait_until(lambda: is_idle(runs))
        assert work.begun == ["slow", "slow"]


def test_a_turn_waits_for_the_run_in_progress(work):
    """A request for a snapshot before an upgrade gets one that began after the request."""
    with running(1) as runs, ExitStack() as turn:
        runs.start("app", lambda: work.run("app"), lambda _: None)
        wait_until(lambda: work.at_work == {"app"})
        threading.Timer(0.05, work.let_go, ["app"]).start()
        turn.enter_context(runs.turn("app", timeout=PATIENCE_SECONDS))
        assert work.ended == ["app"]
        work.let_go("app")


def test_a_run_that_is_started_during_a_turn_comes_after_it(work):
    """A run that is started during a turn comes after it, once, however many rounds start it."""
    with running(1) as runs:
        work.let_go("app")
        with runs.turn("app", timeout=0):
            start(runs, work, "app", "app")
            assert not is_idle(runs)
            assert work.begun == []
        wait_until(lambda: is_idle(runs))
        assert work.begun == ["app"]


def test_a_turn_waits_for_no_other_database(work):
    """A turn waits neither for other databases nor for room under the limit."""
    with running(1) as runs:
        start(runs, work, "shop", "blog")
        wait_until(lambda: work.at_work == {"shop"})
        with runs.turn("app", timeout=0):
            assert work.at_work == {"shop"}
        work.let_go("shop", "blog")
        wait_until(lambda: is_idle(runs))


def test_a_long_turn_delays_only_its_own_database(work):
    """Databases behind it in the queue go first."""
    with running(1) as runs:
        work.let_go("app", "shop")
        start(runs, work, "blog")
        wait_until(lambda: work.at_work == {"blog"})
        start(runs, work, "app", "shop")
        with runs.turn("app", timeout=0):
            work.let_go("blog")
            wait_until(lambda: work.ended == ["blog", "shop"])
        wait_until(lambda: is_idle(runs))
        assert work.ended == ["blog", "shop", "app"]


def test_a_turn_that_does_not_come_in_time_is_refused(work):
    """A turn that does not come in time is refused, with the database and the time that was waited."""
    with running(1) as runs:
        start(runs, work, "app")
        wait_until(lambda: work.at_work == {"app"})
        with (
            pytest.raises(BusyError, match="a run of app is in progress, and has not ended in 0 s"),
            runs.turn("app", timeout=0.01),
        ):
            pytest.fail("it was let in")
        work.let_go("app")
        wait_until(lambda: is_idle(runs))


def test_a_bug_in_one_run_ends_that_run_only(work, capsys):
    """A bug in one run is reported as its failure, and the database can run again."""
    errors = []
    with running(1) as runs:
        runs.start("app", lambda: 1 / 0, errors.append)
        start(runs, work, "shop")
        work.let_go("shop", "app")
        wait_until(lambda: is_idle(runs))
        assert work.ended == ["shop"]
        reported = capsys.readouterr().err
        assert "this is a bug in backupd" in reported
        assert "database=app" in reported or "database app" in reported
        assert ["division by zero" in error.message for error in errors] == [True]
        start(runs, work, "app")
        wait_until(lambda: is_idle(runs))
        assert work.ended == ["shop", "app"]


def test_an_expected_failure_is_reported_and_not_logged_as_a_bug(work, capsys):
    """An expected failure, raised or returned, is reported and not logged as a bug."""
    error = StoreUnavailableError("it is down")

    def fail():
        raise error

    with running(1) as runs:
        runs.start("app", fail, work.reported.append)
        runs.start("shop", lambda: error, work.reported.append)
        wait_until(lambda: is_idle(runs))
    assert work.reported == [error, error]
    assert capsys.readouterr().err == ""


def test_stopping_lets_running_ones_finish(work):
    """Waiting runs do not begin, and nothing is abandoned."""
    runs = Runs(1)
    start(runs, work, "app", "shop")
    wait_until(lambda: work.at_work == {"app"})
    threading.Timer(0.05, work.let_go, ["app"]).start()
    assert runs.stop(finish_seconds=PATIENCE_SECONDS, abandon_seconds=0) == []
    assert work.ended == ["app"]
    assert work.begun == ["app"]


def test_stopping_abandons_runs_that_do_not_finish_in_time():
    """The run is interrupted at its next check."""
    runs, has_begun, pause, ended_by = Runs(2), threading.Event(), threading.Event(), []

    def run():
        has_begun.set()
        try:
            while True:
                runs.abandoned.check("some progress")
                pause.wait(0.001)
        except InterruptedByUserError as error:
            ended_by.append(error)
            raise

    reported = []
    runs.start("shop", run, reported.append)
    assert has_begun.wait(PATIENCE_SECONDS)
    assert runs.stop(finish_seconds=0.05, abandon_seconds=PATIENCE_SECONDS) == ["shop"]
    assert [str(error) for error in ended_by] == ["backupd is stopping"]
    wait_until(lambda: is_idle(runs))
    assert reported == []


def test_stopping_does_not_wait_for_what_never_ends(work):
    """A run that hangs is named, and the stop is over in its time."""
    runs = Runs(2)
    start(runs, work, "app", "shop")
    wait_until(lambda: work.at_work == {"app", "shop"})
    before = time.monotonic()
    assert runs.stop(finish_seconds=0.05, abandon_seconds=0.05) == ["app", "shop"]
    assert time.monotonic() - before < PATIENCE_SECONDS / 2
    work.let_go("app", "shop")


def test_nothing_begins_after_the_stop(work):
    """After the stop neither a run nor a turn begins, and a turn that was waiting is refused."""
    runs, refused = Runs(1), []
    start(runs, work, "app")
    wait_until(lambda: work.at_work == {"app"})

    def wait_for_turn():
        try:
            with runs.turn("app", timeout=PATIENCE_SECONDS):
                pytest.fail("it was let in")
        except InterruptedByUserError as error:
            refused.append(str(error))

    waiting = threading.Thread(target=wait_for_turn)
    waiting.start()
    runs.stop(finish_seconds=0, abandon_seconds=0)
    waiting.join(PATIENCE_SECONDS)
    assert refused == ["backupd is stopping"]
    start(runs, work, "shop")
    assert work.begun == ["app"]
    with pytest.raises(InterruptedByUserError), runs.turn("shop", timeout=0):
        pytest.fail("it was let in")
    work.let_go("app")


def test_rest_is_reported_after_the_last_run_alone(work):
    """What is kept for runs that follow each other is given up when the last has ended, whatever became of it."""
    rested = []
    runs = Runs(1, on_rest=lambda: rested.append(sorted(work.ended)))
    try:
        start(runs, work, "app", "shop", "users")
        for name in ("app", "shop", "users"):
            assert rested == []
            wait_until(lambda name=name: name in work.begun)
            work.let_go(name)
        wait_until(lambda: is_idle(runs))
        assert rested == [["app", "shop", "users"]]
        runs.start("app", lambda: 1 // 0, work.reported.append)
        wait_until(lambda: len(rested) == 2)
    finally:
        runs.stop(finish_seconds=0, abandon_seconds=0)
