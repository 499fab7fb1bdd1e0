from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from harness.statuses import (
    BUCKET,
    DISK,
    DOWN,
    HOUR,
    MINUTE,
    NOON,
    alarms_of,
    created,
    drilled,
    failed,
    healthy,
    recorded,
)
from msgspec.structs import replace

from backupd.errors import StoreRefusedError
from backupd.health.notifications import Notice, notice_for, with_alarms, with_delivered
from backupd.health.planning import with_config_problem, with_vanished, without_others
from backupd.health.recording import with_drill, with_prune
from backupd.prune.pruning import PruneResult

if TYPE_CHECKING:
    from datetime import datetime

    from backupd.health import Status

DAY = timedelta(days=1)


def passed(
    status: Status, now: datetime, *, targets: tuple[str, ...] = ("mail",), lost: tuple[str, ...] = ()
) -> tuple[Status, dict[str, Notice]]:
    """Return what one look at `now` sends each target; messages to the targets in `lost` do not arrive."""
    alarms = alarms_of(status, now)
    status = with_alarms(status, alarms, targets, now=now)
    sent = {}
    for target in targets:
        notice = notice_for(target, status, alarms, now=now, remind_after=HOUR)
        if notice is not None:
            sent[target] = notice
            if target not in lost:
                status = with_delivered(status, target, notice, now=now)
    return status, sent


def only(sent: dict[str, Notice]) -> Notice:
    """The one notice to the one target."""
    (notice,) = sent.values()
    return notice


def failing(*names: str) -> Status:
    """The bucket failed twice for each of these databases, which are not due for years."""
    status = never_due(healthy(*names))
    for name in names or ("app",):
        for at in (NOON, NOON + MINUTE):
            status = recorded(status, failed(name), at=at, due_by=None)
    return status


def never_due(status: Status) -> Status:
    """The status with no time at which a store is due."""
    return replace(
        status,
        databases={
            name: replace(
                database, stores={url: replace(health, due_by=None) for url, health in database.stores.items()}
            )
            for name, database in status.databases.items()
        },
    )


def mended(status: Status, *names: str, at: datetime) -> Status:
    """The bucket works again for these."""
    for name in names or ("app",):
        status = recorded(status, created(name, BUCKET), at=at, due_by=None)
    return status


def test_a_failure_is_sent_once_with_what_since_when_and_what_to_do() -> None:
    """A failure is sent once, with its beginning and a hint, and its end once."""
    status, sent = passed(failing(), NOON + MINUTE)
    assert only(sent) == Notice(
        title=f"backupd PROBLEM: failing: app in {BUCKET}",
        body=(
            f"app is not current in {BUCKET}: s3://bucket/creditrobot does not answer (2 attempts); "
            "last current 2026-11-22 12:00:00Z.\n"
            "Since: 2026-11-22 12:00:00Z\n"
            "What to do: check the network"
        ),
        is_good=False,
        keys=(f"not-current app {BUCKET}",),
    )
    for minutes in range(2, 60):
        status, sent = passed(status, NOON + minutes * MINUTE)
        assert sent == {}
    status, sent = passed(mended(status, at=NOON + 60 * MINUTE), NOON + 60 * MINUTE)
    assert only(sent).title == f"backupd: over: app in {BUCKET}"
    assert only(sent).body == f"Over: app in {BUCKET} (from 2026-11-22 12:01:00Z to 2026-11-22 13:00:00Z)."
    assert only(sent).is_good
    assert status.alarms == {}
    assert passed(status, NOON + 61 * MINUTE) == (status, {})


def test_reminders_come_at_growing_intervals_and_daily_in_the_end() -> None:
    """Reminders come after 1, 2, 4, 8 and 16 hours, then every day."""
    status, sent = passed(failing(), NOON)
    assert only(sent).title.startswith("backupd PROBLEM: failing")
    reminded = []
    for minutes in range(15, 6 * 24 * 60, 15):
        status, sent = passed(status, NOON + minutes * MINUTE)
        if sent:
            assert only(sent).title == f"backupd PROBLEM: still: failing: app in {BUCKET}"
            assert only(sent).body.startswith("Still so: app is not current")
            reminded.append(minutes / 60)
    assert reminded == [1, 3, 7, 15, 31, 55, 79, 103, 127]
    state = status.alarms[f"not-current app {BUCKET}"]
    assert (state.raised_at, state.notified_at, state.times_notified) == (NOON, NOON + 127 * HOUR, 10)


def test_after_years_the_intervals_are_still_a_day() -> None:
    """After years, reminders still come every day, and no number overflows."""
    status, _ = passed(failing(), NOON)
    for days in range(2, 1500):
        status, sent = passed(status, NOON + days * DAY)
        assert len(sent) == 1


def test_a_clock_that_was_set_back_does_not_stop_reminders() -> None:
    """An alarm that was sent in the future is sent again."""
    status, _ = passed(failing(), NOON + 365 * DAY)
    assert only(passed(status, NOON)[1]).title.startswith("backupd PROBLEM: still")


def test_an_alarm_that_is_not_red_is_a_note_and_what_may_be_intended_is_sent_once() -> None:
    """Examples are a vanished file, and a bucket that refuses deletions."""
    refused = PruneResult(database="app", store=DISK, error=StoreRefusedError("no deletions", hint="allow them"))
    status = with_vanished(with_prune(never_due(healthy("app", "b")), refused, at=NOON), ["b"], at=NOON)
    status, sent = passed(status, NOON)
    assert only(sent).title == f"backupd note: prune-failing: pruning of app in {DISK}, and 1 more"
    assert "What to do: allow them" in only(sent).body
    assert "/app/b.db is gone; its snapshots stay" in only(sent).body
    for days in range(1, 5):
        status, sent = passed(status, NOON + days * DAY)
        assert sent == {}


def test_a_store_that_is_down_for_a_thousand_tenants_is_one_message() -> None:
    """The message is short enough to read."""
    names = [f"tenant-{number}" for number in range(1000)]
    status, sent = passed(failing(*names), NOON)
    notice = only(sent)
    assert notice.title == f"backupd PROBLEM: failing: tenant-0 in {BUCKET}, and 999 more"
    assert notice.body.count("What to do") == 20
    assert notice.body.endswith("... and 980 more like these; all of them: backupd status")
    assert len(notice.keys) == 1000
    assert passed(status, NOON + MINUTE)[1] == {}
    _, sent = passed(mended(status, *names, at=NOON), NOON + MINUTE)
    assert only(sent).title == f"backupd: over: tenant-0 in {BUCKET}, and 999 more"


def test_each_target_gets_everything_once_independently_of_the_others() -> None:
    """A message that did not arrive is sent again to that target alone."""
    both = ("mail", "chat")
    status, sent = passed(failing(), NOON, targets=both, lost=("chat",))
    assert set(sent) == {"mail", "chat"}
    status, sent = passed(status, NOON + MINUTE, targets=both, lost=("chat",))
    assert set(sent) == {"chat"}
    status, sent = passed(status, NOON + 2 * MINUTE, targets=both)
    assert set(sent) == {"chat"}
    status, sent = passed(mended(status, at=NOON), NOON + 3 * MINUTE, targets=both, lost=("mail",))
    assert set(sent) == {"mail", "chat"}
    status, sent = passed(status, NOON + 4 * MINUTE, targets=both)
    assert set(sent) == {"mail"}
    assert status.alarms == {}


def test_an_alarm_that_reached_no_target_ends_silently() -> None:
    """An alarm whose first notification did not arrive before it was over ends without a notification."""
    status, sent = passed(failing(), NOON, lost=("mail",))
    assert sent
    status, sent = passed(mended(status, at=NOON), NOON + MINUTE)
    assert (sent, status.alarms) == ({}, {})


def test_an_alarm_that_returns_before_its_end_was_sent_never_ended() -> None:
    """An alarm that returns before its end was sent never ended, and no target is sent either."""
    status, _ = passed(failing(), NOON)
    status, sent = passed(mended(status, at=NOON), NOON + MINUTE, lost=("mail",))
    assert only(sent).is_good
    for _ in range(2):
        status = recorded(status, failed(), at=NOON + 2 * MINUTE)
    status, sent = passed(status, NOON + 3 * MINUTE)
    assert sent == {}
    assert status.alarms[f"not-current app {BUCKET}"].ended_at is None


def test_a_new_target_hears_of_what_is_on_and_an_old_one_is_forgotten() -> None:
    """After a reload a new target is notified of current alarms, and a former one is forgotten."""
    status, _ = passed(failing(), NOON)
    status, sent = passed(status, NOON + MINUTE, targets=("chat",))
    assert set(sent) == {"chat"}
    assert only(sent).title.startswith("backupd PROBLEM: failing")
    assert set(status.alarms[f"not-current app {BUCKET}"].deliveries) == {"chat"}


def test_without_targets_nothing_is_remembered() -> None:
    """The status is not even written."""
    status = failing()
    assert passed(status, NOON, targets=())[0] is status
    known, _ = passed(status, NOON)
    assert passed(known, NOON, targets=())[0].alarms == {}


def test_the_same_alarms_change_nothing() -> None:
    """Unchanged alarms leave the status as it is, so that it is not written each time."""
    status, _ = passed(failing(), NOON)
    assert passed(status, NOON + MINUTE)[0] is status


def test_an_alarm_of_a_database_that_was_taken_out_ends_in_those_words() -> None:
    """The end of an alarm says that its database is no longer configured, not that it is well."""
    status, _ = passed(failing("a", "app"), NOON)
    _, sent = passed(without_others(status, {"a"}), NOON + MINUTE)
    assert only(sent).body == f"Over: app in {BUCKET}: it is not configured any more."


def test_an_alarm_of_a_file_that_vanished_ends_in_those_words() -> None:
    """The message about a file that vanished has the end of its other alarm, too."""
    status, _ = passed(failing("app"), NOON)
    status, sent = passed(with_vanished(status, ["app"], at=NOON), NOON + MINUTE)
    assert only(sent).title == "backupd note: vanished: app"
    assert only(sent).body.endswith(f"Over: app in {BUCKET}: /app/app.db is gone.")
    assert passed(status, NOON + 2 * MINUTE)[1] == {}


def test_a_file_that_returns_is_sent_and_one_that_is_forgotten_is_not() -> None:
    """A vanished file is forgotten after a week."""
    status, _ = passed(with_vanished(never_due(healthy("a", "app")), ["app"], at=NOON), NOON)
    _, sent = passed(never_due(mended(status, at=NOON)), NOON + MINUTE)
    assert only(sent).title == "backupd: over: app"
    status, sent = passed(without_others(status, {"a"}), NOON + 8 * DAY)
    assert (sent, status.alarms) == ({}, {})


def test_damage_after_a_failed_drill_is_sent_and_does_not_end_it() -> None:
    """Damage after a damaged source is sent as a problem that became worse, not as the end of the first."""
    status = never_due(healthy())
    status, _ = passed(with_drill(status, drilled("damaged-source", error=DOWN), at=NOON), NOON)
    status, sent = passed(with_drill(status, drilled("damaged-store", error=DOWN), at=NOON), NOON + MINUTE)
    assert only(sent).title == f"backupd PROBLEM: damaged: drill of app in {DISK}"
    assert "Over" not in only(sent).body
    assert list(status.alarms) == [f"damaged app {DISK}"]


@pytest.mark.parametrize("remind_after", [30 * DAY])
def test_remind_after_may_be_longer_than_a_day(remind_after: timedelta) -> None:
    """The limit of a day is for intervals that grow, not for the configured one."""
    status = with_config_problem(never_due(healthy()), DOWN, at=NOON)
    alarms = alarms_of(status, NOON)
    status = with_alarms(status, alarms, {"mail"}, now=NOON)
    notice = notice_for("mail", status, alarms, now=NOON, remind_after=remind_after)
    assert notice is not None
    status = with_delivered(status, "mail", notice, now=NOON)
    for days, expected in ((29, False), (30, True)):
        again = notice_for("mail", status, alarms, now=NOON + days * DAY, remind_after=remind_after)
        assert (again is not None) is expected
