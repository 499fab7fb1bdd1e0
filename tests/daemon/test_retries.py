from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from backupd.daemon.retries import BackOff, Retries
from backupd.errors import BusyError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
FIRST_PAUSE = timedelta(seconds=30)
LOCKED = BusyError("it is locked")


def pauses(retries, next_run_at, *, start=NOW, most=100):
    """The pauses before each attempt of a database that fails every time, until no retry is planned any more."""
    found, now = [], start
    while len(found) < most and (at := retries.want("app", now=now, next_run_at=next_run_at)) is not None:
        found.append(at - now)
        now = at
        assert retries.take() == {"app"}
    return found


def test_pauses_double_until_the_next_scheduled_time():
    """Half a minute, a minute, two, four; then the scheduled run comes before another retry would."""
    found = pauses(Retries(FIRST_PAUSE), NOW + timedelta(minutes=15))
    assert [pause.total_seconds() for pause in found] == [30, 60, 120, 240]


@given(st.timedeltas(timedelta(seconds=1), timedelta(hours=1)), st.timedeltas(timedelta(minutes=1), timedelta(days=30)))
def test_no_retry_comes_at_the_next_scheduled_time_or_after_it(first_pause, until_next):
    """Retries end before the next scheduled time, and each pause is twice the one before."""
    found = pauses(Retries(first_pause), NOW + until_next)
    assert sum(found, timedelta(0)) < until_next
    assert found == [first_pause * 2**number for number in range(len(found))]
    assert sum(found, timedelta(0)) + first_pause * 2 ** len(found) >= until_next


def test_without_a_next_run_retries_continue():
    """The pauses stay numbers that a calendar can hold, for centuries."""
    found = pauses(Retries(timedelta(seconds=1)), None, most=25)
    assert found[:4] == [timedelta(seconds=2**number) for number in range(4)]
    assert found[-1] == found[-2] == timedelta(seconds=2**20)


def test_a_scheduled_round_begins_with_the_first_pause_again():
    """A scheduled round takes up all that waits for a retry, and pauses begin with the first one again."""
    retries = Retries(FIRST_PAUSE)
    pauses(retries, NOW + timedelta(minutes=15))
    retries.want("app", now=NOW, next_run_at=None)
    retries.reset()
    assert retries.take() == frozenset()
    assert retries.want("app", now=NOW, next_run_at=None) == NOW + FIRST_PAUSE


def test_search_for_a_missing_file_is_no_attempt():
    """Minutes of them must not put the next try of a database that is there at last off by hours."""
    retries = Retries(FIRST_PAUSE)
    for _ in range(40):
        assert retries.want_look("", now=NOW, next_run_at=None) <= NOW + timedelta(seconds=30)
        retries.take()
    assert retries.want("app", now=NOW, next_run_at=NOW + timedelta(days=1)) == NOW + FIRST_PAUSE


def test_databases_that_fail_together_are_tried_again_together():
    """One retry is planned for all databases that failed: a store that is down is asked once."""
    retries = Retries(FIRST_PAUSE)
    assert retries.want("app", now=NOW, next_run_at=None) == NOW + FIRST_PAUSE
    assert retries.want("shop", now=NOW + timedelta(seconds=10), next_run_at=None) is None
    assert retries.want("app", now=NOW + timedelta(seconds=20), next_run_at=None) is None
    assert retries.take() == {"app", "shop"}
    assert retries.take() == frozenset()


def test_a_failure_during_the_retry_plans_the_next_one():
    """A failure during a retry plans the next one after twice the pause, whichever database it is."""
    retries = Retries(FIRST_PAUSE)
    retries.want("app", now=NOW, next_run_at=None)
    retries.take()
    assert retries.want("shop", now=NOW, next_run_at=None) == NOW + 2 * FIRST_PAUSE
    assert retries.take() == {"shop"}


def test_a_failure_just_before_the_scheduled_time_waits_for_that():
    """A failure just before the scheduled time plans no retry, and a later failure plans one for both."""
    retries = Retries(FIRST_PAUSE)
    assert retries.want("app", now=NOW, next_run_at=NOW + FIRST_PAUSE) is None
    assert retries.want("shop", now=NOW, next_run_at=NOW + 2 * FIRST_PAUSE) == NOW + FIRST_PAUSE
    assert retries.take() == {"app", "shop"}


def test_what_ran_out_of_time_has_pauses_of_its_own():
    """A database that ran out of time waits twice as long each time, up to 15 minutes, until it succeeds."""
    back_off, now, found = BackOff(FIRST_PAUSE), NOW, []
    for _ in range(8):
        at = back_off.failed("slow", LOCKED, now=now)
        assert back_off.waiting(now=at - timedelta(seconds=1)) == {"slow": LOCKED}
        assert back_off.waiting(now=at) == {}
        found.append((at - now).total_seconds())
        now = at
    assert found == [30, 60, 120, 240, 480, 900, 900, 900]
    assert back_off.failed("shop", LOCKED, now=now) == now + FIRST_PAUSE
    back_off.ended("shop")
    assert back_off.waiting(now=now) == {}
    back_off.ended("slow")
    assert back_off.failed("slow", LOCKED, now=now) == now + FIRST_PAUSE
