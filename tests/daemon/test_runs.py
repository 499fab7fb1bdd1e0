import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from harness.charge import is_idle
from harness.command_line import wait_until

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
        self.told = []
        self._lock = threading.Lock()
        self._gates = {}

    def run(self, name):
        """What `Runs` is given to call."""
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
        runs.start(name, lambda name=name: work.run(name), lambda error, name=name: work.told.append((name, error)))


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
    """What is started while it runs or waits is told of that run; after it has ended, there may be another."""
    with running(1) as runs:
        start(runs, work, "app", "shop")
        start(runs, work, "app", "shop")
        work.let_go("app", "shop")
        wait_until(lambda: is_idle(runs))
        assert work.begun == ["app", "shop"]
        assert work.told == [("app", None), ("app", None), ("shop", None), ("shop", None)]
        start(runs, work, "app")
        wait_until(lambda: is_idle(runs))
        assert work.begun == ["app", "shop", "app"]


def test_what_another_plan_starts_comes_after_the_run_in_progress(work):
    """A reload may have added a store, and the run that is going on does not know it."""
    told = []
    with running(1) as runs:
        for plan in ("before", "after", "after"):
            runs.start("app", lambda: work.run("app"), lambda _, plan=plan: told.append(plan), plan=plan)
        work.let_go("app")
        wait_until(lambda: is_idle(runs))
    assert work.begun == ["app", "app"]
    assert told == ["before", "after", "after"]


def test_many_that_start_at_once_never_run_one_database_twice():
    """Whoever asks, and however often: from several threads, by a schedule and on request."""
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
    """Those that wait begin."""
    with running(1) as runs:
        start(runs, work, "a", "b", "c", "d")
        wait_until(lambda: work.begun == ["a"])
        runs.set_limit(3)
        wait_until(lambda: len(work.begun) == 3)
        assert work.most == 3
        work.let_go("a", "b", "c", "d")
        wait_until(lambda: is_idle(runs))


def test_a_lower_limit_lets_what_runs_finish(work):
    """And begins nothing more until there is room under it."""
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


def test_what_ran_out_of_time_shares_one_slot_and_lets_others_go_first(work):
    """However many there are, and however often they come: until one of them has ended well."""
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


def test_what_ran_out_of_time_has_the_only_slot_when_no_other_wants_it(work):
    """With concurrent_runs = 1 too."""
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
    """Whoever asks for a snapshot before an upgrade gets one that began after the question."""
    with running(1) as runs, ExitStack() as turn:
        runs.start("app", lambda: work.run("app"), lambda _: None)
        wait_until(lambda: work.at_work == {"app"})
        threading.Timer(0.05, work.let_go, ["app"]).start()
        turn.enter_context(runs.turn("app", timeout=PATIENCE_SECONDS))
        assert work.ended == ["app"]
        work.let_go("app")


def test_what_is_started_during_a_turn_comes_after_it(work):
    """What the turn is for may have begun too early for a round, or be no snapshot; once, however many rounds come."""
    with running(1) as runs:
        work.let_go("app")
        with runs.turn("app", timeout=0):
            start(runs, work, "app", "app")
            assert not is_idle(runs)
            assert work.begun == []
        wait_until(lambda: is_idle(runs))
        assert work.begun == ["app"]


def test_a_turn_waits_for_no_other_database(work):
    """Nor for room under the limit."""
    with running(1) as runs:
        start(runs, work, "shop", "blog")
        wait_until(lambda: work.at_work == {"shop"})
        with runs.turn("app", timeout=0):
            assert work.at_work == {"shop"}
        work.let_go("shop", "blog")
        wait_until(lambda: is_idle(runs))


def test_a_turn_that_takes_long_holds_up_only_its_own_database(work):
    """Those behind it in the queue go first, and it comes after the turn."""
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
    """With the database, and how long was waited."""
    with running(1) as runs:
        start(runs, work, "app")
        wait_until(lambda: work.at_work == {"app"})
        with (
            pytest.raises(BusyError, match="a run of app is going on, and has not ended in 0 s"),
            runs.turn("app", timeout=0.01),
        ):
            pytest.fail("it was let in")
        work.let_go("app")
        wait_until(lambda: is_idle(runs))


def test_a_bug_in_one_run_ends_that_run_only(work, capsys):
    """It is told as the failure that it is, and its database can run again."""
    with running(1) as runs:
        runs.start("app", lambda: 1 / 0, work.told.append)
        start(runs, work, "shop")
        work.let_go("shop", "app")
        wait_until(lambda: is_idle(runs))
        assert work.ended == ["shop"]
        told = capsys.readouterr().err
        assert "this is a bug in backupd" in told
        assert "database=app" in told or "database app" in told
        assert "division by zero" in work.told[0].message
        start(runs, work, "app")
        wait_until(lambda: is_idle(runs))
        assert work.ended == ["shop", "app"]


def test_an_expected_failure_is_told_and_nothing_else(work, capsys):
    """Whether it was raised or given."""
    error = StoreUnavailableError("it is down")

    def fail():
        raise error

    with running(1) as runs:
        runs.start("app", fail, work.told.append)
        runs.start("shop", lambda: error, work.told.append)
        wait_until(lambda: is_idle(runs))
    assert work.told == [error, error]
    assert capsys.readouterr().err == ""


def test_stopping_lets_what_runs_finish(work):
    """What waits is not begun, and nothing is abandoned."""
    runs = Runs(1)
    start(runs, work, "app", "shop")
    wait_until(lambda: work.at_work == {"app"})
    threading.Timer(0.05, work.let_go, ["app"]).start()
    assert runs.stop(finish_seconds=PATIENCE_SECONDS, abandon_seconds=0) == []
    assert work.ended == ["app"]
    assert work.begun == ["app"]


def test_stopping_abandons_what_does_not_finish_in_time():
    """It is told to end wherever it asks whether to go on."""
    runs, has_begun, pause, ended_by = Runs(2), threading.Event(), threading.Event(), []

    def run():
        has_begun.set()
        try:
            while True:
                runs.go_on("some progress")
                pause.wait(0.001)
        except InterruptedByUserError as error:
            ended_by.append(error)
            raise

    told = []
    runs.start("shop", run, told.append)
    assert has_begun.wait(PATIENCE_SECONDS)
    assert runs.stop(finish_seconds=0.05, abandon_seconds=PATIENCE_SECONDS) == ["shop"]
    assert [str(error) for error in ended_by] == ["backupd is stopping"]
    wait_until(lambda: is_idle(runs))
    assert told == []


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
    """Neither a run nor a turn, and a turn that was waiting is given up."""
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
