"""The kit of threads: calls that can be left behind, one call at a time, cancellation."""

import threading

import pytest

from backupd.concurrency import Cancellation, PendingCalls, has_ended, start_call, start_calls
from backupd.errors import InterruptedByUserError, LimitReachedError, StoreUnavailableError
from backupd.logs import log


def test_a_call_gives_its_result_or_raises_its_exception():
    """The caller learns of both where it asks for the result; waiting itself never raises."""
    fails = start_call(lambda: 1 // 0, name="fails")
    assert has_ended(fails, within_seconds=10)
    with pytest.raises(ZeroDivisionError):
        fails.result()
    assert start_call(lambda: 7, name="works").result(10) == 7


def test_a_call_that_hangs_can_be_left_behind():
    """The wait ends at its limit, and the future shows later that the call has ended after all."""
    released = threading.Event()
    hangs = start_call(released.wait, name="hangs")
    assert not has_ended(hangs, within_seconds=0.01)
    released.set()
    assert has_ended(hangs, within_seconds=10)


def test_calls_run_a_few_at_a_time_and_those_that_wait_can_be_dropped():
    """A waiting call that is dropped is never made, and the others give their results."""
    released = threading.Event()
    made = []
    calls = {"hangs": released.wait, "waits": lambda: made.append("waits"), "last": lambda: made.append("last")}
    outcomes = start_calls(calls, most=1, name="few")
    assert outcomes["waits"].cancel()
    released.set()
    assert has_ended(outcomes["last"], within_seconds=10)
    assert made == ["last"]
    assert start_calls({}, most=4, name="none") == {}


def test_no_thread_is_a_limit(monkeypatch):
    """A system that gives no thread is reported as what it is, to the caller."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LimitReachedError):
        start_call(lambda: None, name="refused")
    calls: PendingCalls[object] = PendingCalls("refused")
    with pytest.raises(LimitReachedError):
        calls.start("disk", lambda: None)
    monkeypatch.undo()
    assert calls.start("disk", lambda: 7).result(10) == 7


def test_one_call_at_a_time_for_each_key():
    """A second call for a key gets the outcome of the first while that runs; other keys are not held up."""
    released = threading.Event()
    calls: PendingCalls[object] = PendingCalls("ask")
    first = calls.start("disk", released.wait)
    assert calls.start("disk", lambda: "not made") is first
    assert calls.start("bucket", lambda: "made").result(10) == "made"
    released.set()
    assert first.result(10) is True
    assert calls.start("disk", lambda: "made").result(10) == "made"


def test_cancelled_work_stops_with_the_first_reason():
    """What runs goes on until a stop is requested, and learns why; later reasons do not replace the first."""
    cancellation = Cancellation()
    cancellation.check("progress is ignored")
    assert not cancellation.is_requested
    cancellation.request(InterruptedByUserError("backupd is stopping"))
    cancellation.request(StoreUnavailableError("too late"))
    assert cancellation.is_requested
    with pytest.raises(InterruptedByUserError, match="stopping"):
        cancellation.check()


def test_a_failure_in_a_thread_is_logged_and_does_not_end_it(capsys):
    """An exception in a block is logged and does not end the code after it."""
    with log.catch(database="app"):
        raise ZeroDivisionError
    with log.catch(database="app"):
        raise StoreUnavailableError("no answer")
    lines = capsys.readouterr().err
    assert "this is a bug in backupd" in lines
    assert "Traceback" in lines
    assert "given up" in lines


def test_only_a_failure_that_was_not_expected_is_logged(capsys):
    """A caller that reports expected errors in its result does not find them in the log as well."""
    expected = StoreUnavailableError("no answer")
    assert log.failure(expected) is expected
    assert capsys.readouterr().err == ""
    assert "bug" in log.failure(ZeroDivisionError()).message
    assert "this is a bug in backupd" in capsys.readouterr().err
