from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.statuses import (
    BUCKET,
    DISK,
    DOWN,
    HOUR,
    LATER,
    MINUTE,
    NOON,
    SOON,
    alarms_of,
    created,
    drilled,
    failed,
    healthy,
    recorded,
    snapshot_id,
    with_health,
)
from msgspec.structs import replace

from backupd.errors import DamageError, StoreRefusedError
from backupd.health import Status
from backupd.health.alarms import Alarm, find_alarms, is_healthy
from backupd.health.planning import (
    with_config_problem,
    with_daemon_stopped,
    with_entry_problem,
    with_vanished,
    without_others,
)
from backupd.health.recording import with_damaged_source, with_drill, with_prune
from backupd.prune.pruning import PruneResult
from backupd.retention.holds import Hold

if TYPE_CHECKING:
    from datetime import datetime


def only(status: Status, now: datetime = SOON, alive_at: datetime | None = None) -> Alarm:
    """The one thing that is wrong. It has a hint, and neither text ends in a full stop or breaks the line."""
    (alarm,) = alarms_of(status, now, alive_at)
    assert alarm.hint
    assert alarm.since <= now
    for text in (alarm.message, alarm.hint, alarm.title):
        assert not text.endswith(".")
        assert text.isprintable()
    assert is_healthy(status, [alarm]) is not alarm.is_red
    return alarm


def test_a_healthy_system_has_no_alarms() -> None:
    """A healthy system has no alarms until the very moment when a snapshot is due."""
    assert alarms_of(healthy("a", "b"), NOON + 30 * MINUTE) == ()
    assert is_healthy(healthy(), ())


def test_a_file_that_reads_differently_is_reported_and_stays_healthy() -> None:
    """A file that reads differently is an alarm, not a red one, until a run that reads it finds no difference."""
    differing = replace(created(store=DISK), api_differs=True)
    status = recorded(healthy("app", stores=(DISK,)), differing)
    alarm = only(status)
    assert (alarm.kind, alarm.database, alarm.is_red, alarm.since) == ("read-differs", "app", False, NOON)
    assert "/app/app.db: reading its file gave something else than SQLite reads" in alarm.message
    later = recorded(status, failed(store=DISK), at=NOON + MINUTE)
    assert only(later).since == NOON
    assert only(recorded(later, replace(created(store=DISK), was_read=False), at=NOON + MINUTE)).since == NOON
    assert alarms_of(recorded(later, created(store=DISK, at=NOON + MINUTE), at=NOON + MINUTE)) == ()


def test_a_status_without_databases_is_not_healthy() -> None:
    """A daemon that knows no database backs up none."""
    assert alarms_of(Status()) == ()
    assert not is_healthy(Status(), ())


def test_one_failed_attempt_is_no_alarm_and_two_are() -> None:
    """The first retry succeeds in most cases."""
    once = recorded(healthy(), failed(), at=NOON + MINUTE)
    assert alarms_of(once, NOON + 2 * MINUTE) == ()
    twice = recorded(once, failed(), at=NOON + 2 * MINUTE)
    alarm = only(twice, NOON + 3 * MINUTE)
    assert (alarm.kind, alarm.database, alarm.store, alarm.is_red) == ("failing", "app", BUCKET, True)
    assert alarm.message == (
        f"app is not current in {BUCKET}: s3://bucket/creditrobot does not answer (2 attempts); "
        "last current 2026-11-22 12:00:00Z"
    )
    assert (alarm.hint, alarm.since) == ("check the network", NOON + MINUTE)
    assert alarms_of(recorded(twice, created(store=BUCKET), at=NOON + 4 * MINUTE), NOON + 4 * MINUTE) == ()


def test_a_database_that_fails_and_becomes_late_has_one_alarm() -> None:
    """A database that fails and then becomes late keeps one alarm, so that no target is notified twice."""
    failing = recorded(recorded(healthy(), failed()), failed())
    late = only(with_health(failing, current_at=LATER, due_by=LATER + HOUR), LATER)
    assert (late.kind, late.key) == ("stale", only(failing).key)
    assert late.since == only(failing).since


def test_a_single_failure_explains_why_something_is_late() -> None:
    """A run that took until the database was late."""
    status = with_health(recorded(healthy(), failed()), current_at=LATER, due_by=LATER + HOUR)
    assert "does not answer; last current" in only(status, LATER).message


def test_a_database_is_late_after_its_time_however_quiet_it_is() -> None:
    """A hung run fails nothing."""
    status = with_health(healthy(), due_by=LATER + HOUR)
    alarm = only(status, NOON + 31 * MINUTE)
    assert (alarm.kind, alarm.store, alarm.since) == ("stale", BUCKET, NOON + 30 * MINUTE)
    assert "no run has ended in time" in alarm.message
    assert "log" in alarm.hint
    back = recorded(status, created(store=BUCKET), at=NOON + 31 * MINUTE)
    assert alarms_of(back, NOON + 32 * MINUTE) == ()


def test_a_database_that_was_never_current_becomes_late() -> None:
    """The message says that it never was current."""
    status = with_health(healthy(stores=(DISK,)), current_at=None)
    assert alarms_of(status) == ()
    assert only(status, LATER).message.endswith("no run has ended in time; it never was current")


def test_without_a_schedule_nothing_is_late_and_failures_still_count() -> None:
    """The next `backupd now` by cron may come at any time."""
    status = recorded(Status(), created(), due_by=None)
    assert alarms_of(status, NOON + 365 * 24 * HOUR) == ()
    status = recorded(recorded(status, failed(store=DISK)), failed(store=DISK))
    assert only(status).kind == "failing"


def test_a_store_that_is_down_says_nothing_of_the_others() -> None:
    """A store that is down raises one alarm for each database in it, and none for other stores."""
    status = healthy("a", "b")
    for name in ("a", "b", "a", "b"):
        status = recorded(status, failed(name))
    found = alarms_of(status)
    assert [(alarm.database, alarm.store, alarm.kind) for alarm in found] == [
        ("a", BUCKET, "failing"),
        ("b", BUCKET, "failing"),
    ]
    assert len({alarm.key for alarm in found}) == 2


def test_a_success_from_the_future_proves_nothing() -> None:
    """The clock was a year ahead when it was written: that must not look healthy for a year."""
    year = 365 * 24 * HOUR
    status = recorded(healthy(stores=(DISK,)), created(at=NOON + year), at=NOON + year)
    alarm = only(status, SOON)
    assert (alarm.kind, alarm.since) == ("stale", SOON)
    assert "dated in the future" in alarm.message
    assert "date -u" in alarm.hint
    assert alarms_of(recorded(status, created(at=SOON), at=SOON), SOON + MINUTE) == ()


def test_clocks_may_differ_a_little() -> None:
    """A correction by seconds is no alarm."""
    assert alarms_of(healthy(), NOON - 4 * MINUTE) == ()
    assert only(healthy(stores=(DISK,)), NOON - 6 * MINUTE).kind == "stale"


@pytest.mark.parametrize("seconds", [-121, 121, 10**9])
def test_a_daemon_without_a_sign_of_life_is_silent(seconds: int) -> None:
    """A daemon that hangs, or that left no sign of life since the clock was set back, is silent."""
    alarm = only(healthy(), SOON, SOON - seconds * MINUTE / 60)
    assert (alarm.kind, alarm.is_red) == ("daemon-silent", True)
    assert "process 12" in alarm.message


def test_a_daemon_that_never_left_a_sign_of_life_is_silent() -> None:
    """A daemon that never left a sign of life, as on a full disk, is silent since its start."""
    (alarm,) = find_alarms(healthy(), now=SOON, alive_at=None)
    assert (alarm.kind, alarm.since) == ("daemon-silent", NOON - HOUR)


def test_signs_of_life_are_good_for_two_minutes() -> None:
    """A sign of life within two minutes, before or after, raises no alarm."""
    assert alarms_of(healthy(), SOON, SOON - 2 * MINUTE) == alarms_of(healthy(), SOON, SOON + 2 * MINUTE) == ()


def test_a_stopped_daemon_is_not_silent_but_databases_become_late() -> None:
    """A person stopped it on purpose, and may have forgotten it."""
    status = with_daemon_stopped(healthy(stores=(DISK,)), at=NOON)
    assert alarms_of(status, NOON + 20 * MINUTE, NOON) == ()
    assert only(status, LATER, NOON).kind == "stale"


def test_an_entry_without_files_is_red_until_it_has_some() -> None:
    """Often a volume that is not mounted. A few looks may come before the application has made its first file."""
    status = healthy()
    for _ in range(3):
        status = with_entry_problem(status, "/data/*/app.db", DOWN, at=NOON)
        assert alarms_of(status) == ()
    status = with_entry_problem(status, "/data/*/app.db", DOWN, at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red, alarm.since) == ("nothing-matches", True, NOON)
    assert "/data/*/app.db" in alarm.message
    assert alarms_of(with_entry_problem(status, "/data/*/app.db", None, at=NOON)) == ()


def test_a_file_that_is_missing_is_one_alarm() -> None:
    """The alarm of the entry covers the delay and the failed attempts."""
    status = recorded(recorded(healthy(stores=(DISK,)), failed(store=DISK)), failed(store=DISK))
    for _ in range(4):
        status = with_entry_problem(status, "/app/app.db", DOWN, at=NOON)
    alarm = only(status, LATER)
    assert (alarm.kind, alarm.database) == ("nothing-matches", "app")


def test_a_refused_configuration_is_reported_and_not_red() -> None:
    """The configuration before is in force."""
    status = with_config_problem(healthy(), DOWN, at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red) == ("config-refused", False)
    assert alarms_of(with_config_problem(status, None, at=NOON)) == ()


def test_a_vanished_file_is_reported_once_and_never_late() -> None:
    """A tenant was deleted, or the file was removed by mistake."""
    status = with_vanished(recorded(recorded(healthy("a", "app"), failed()), failed()), ["app"], at=NOON)
    alarm = only(recorded(status, created("a"), created("a", BUCKET), at=LATER), LATER)
    assert (alarm.kind, alarm.database, alarm.is_red, alarm.is_sent_once) == ("vanished", "app", False, True)
    assert alarm.hint == "if it should not be: backupd restore app@latest --to /app/app.db"


def test_a_database_that_is_not_configured_any_more_has_no_alarms() -> None:
    """A database that is no longer configured has no alarms."""
    status = recorded(recorded(healthy("a", "app"), failed()), failed())
    assert len(alarms_of(status)) == 1
    assert alarms_of(without_others(status, {"a"})) == ()


def test_damage_is_red_until_a_drill_succeeds() -> None:
    """The message says what was proven last."""
    proven = with_drill(healthy(), drilled("proven", id=snapshot_id()), at=NOON)
    status = with_drill(proven, drilled("damaged-store", error=DamageError("a pack is gone")), at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red) == ("damaged", True)
    assert f"a pack is gone; last proven: {snapshot_id()} in {DISK}, 2026-11-22 12:00:00Z" in alarm.message
    assert "backupd now app" in alarm.hint
    assert alarms_of(with_drill(status, drilled("proven", id=snapshot_id()), at=SOON)) == ()


def test_what_turned_out_damaged_is_not_recommended() -> None:
    """The alarm names a snapshot, and the store, that nothing is known against; or says that there is none."""
    older, newer = snapshot_id(NOON - HOUR), snapshot_id()
    gone = DamageError("a pack is gone")
    status = with_drill(healthy(), drilled("proven", id=newer), at=NOON)
    own = drilled("damaged-store", id=newer, error=gone, damaged_snapshots=(older, newer))
    assert only(with_drill(status, own, at=SOON)).message.endswith("a pack is gone; no snapshot is known to be proven")
    status = with_drill(status, drilled("proven", store=BUCKET, id=older), at=NOON)
    damaged = with_drill(status, own, at=SOON)
    assert only(damaged).message.endswith(f"; last proven: {older} in {BUCKET}, 2026-11-22 12:00:00Z")
    older_only = drilled(
        "damaged-store", id=snapshot_id(SOON), error=gone, damaged_snapshots=(older, snapshot_id(SOON))
    )
    assert f"last proven: {newer} in {DISK}" in only(with_drill(status, older_only, at=SOON)).message
    source = with_drill(status, drilled("damaged-source", id=newer, error=DamageError("row 7")), at=SOON)
    assert f"last proven: {older} in {BUCKET}" in only(source).message


def test_a_damaged_source_alarms_in_every_store_that_has_it() -> None:
    """A store where a newer snapshot is proven is left out; each alarm ends by itself."""
    found = drilled("damaged-source", id=snapshot_id(), error=DamageError("row 7"))
    elsewhere = with_damaged_source(with_drill(healthy(), found, at=NOON), found, [BUCKET], at=NOON)
    assert {(each.kind, each.store) for each in alarms_of(elsewhere)} == {
        ("damaged-source", DISK),
        ("damaged-source", BUCKET),
    }
    again = with_damaged_source(with_drill(elsewhere, found, at=SOON), found, [BUCKET], at=SOON)
    (known,) = [each for url, each in again.databases["app"].stores.items() if url == BUCKET]
    assert known.drill_failure is not None
    assert (known.drill_failure.count, known.drill_failure.last_at) == (1, NOON)
    sound = with_drill(again, drilled("proven", id=snapshot_id(SOON), store=BUCKET), at=SOON)
    assert [each.store for each in alarms_of(sound)] == [DISK]
    assert [each.store for each in alarms_of(with_damaged_source(sound, found, [BUCKET], at=SOON))] == [DISK]


def test_a_proof_by_another_machine_is_known_here() -> None:
    """A snapshot that is intact here and proven elsewhere counts as proven, never with a time in the future."""
    found = drilled("damaged-source", id=snapshot_id(), error=DamageError("row 7"))
    intact = drilled("intact", id=snapshot_id(SOON), proven_at=SOON)
    status = with_drill(with_drill(healthy(), found, at=NOON), intact, at=LATER)
    assert alarms_of(status) == ()
    health = status.databases["app"].stores[DISK]
    assert (health.proven_id, health.proven_at, health.intact_at) == (str(snapshot_id(SOON)), SOON, LATER)
    earlier = with_drill(status, drilled("intact", id=snapshot_id(), proven_at=NOON), at=LATER)
    assert earlier.databases["app"].stores[DISK].proven_at == SOON
    ahead = with_drill(status, drilled("intact", id=snapshot_id(LATER), proven_at=LATER + HOUR), at=LATER)
    assert ahead.databases["app"].stores[DISK].proven_at == SOON


def test_a_drill_that_fails_is_red_at_once_unless_another_may_succeed() -> None:
    """Drills are rare: a failure that may pass by itself waits for one more."""
    once = with_drill(healthy(), drilled("failed", error=DOWN), at=NOON)
    assert alarms_of(once) == ()
    alarm = only(with_drill(once, drilled("failed", error=DOWN), at=SOON))
    assert (alarm.kind, alarm.is_red) == ("drill-failed", True)
    assert "does not answer (2 attempts); no snapshot is known to be proven" in alarm.message


def test_a_damaged_source_is_another_alarm_than_a_damaged_store() -> None:
    """A damaged source and a damaged store are two alarms, and each ends with a drill that succeeds."""
    damaged = DamageError("row 7 is missing from index i", hint="check the live one with: sqlite3 app.db")
    source = with_drill(healthy(), drilled("damaged-source", id=snapshot_id(), error=damaged), at=NOON)
    alarm = only(source)
    assert (alarm.kind, alarm.is_red, alarm.store) == ("damaged-source", True, DISK)
    assert "row 7 is missing from index i; no snapshot is known to be proven" in alarm.message
    assert "backupd now" not in alarm.hint
    store = with_drill(source, drilled("damaged-store", id=snapshot_id(), error=damaged), at=SOON)
    assert (only(store).kind, only(store).since) == ("damaged", SOON)
    back = with_drill(store, drilled("damaged-source", id=snapshot_id(), error=damaged), at=SOON)
    assert only(back).kind == "damaged-source"
    assert alarms_of(with_drill(back, drilled("proven", id=snapshot_id()), at=SOON)) == ()


def test_a_schema_that_cannot_be_read_is_a_damaged_source_at_once() -> None:
    """A schema that cannot be read is a damaged source without a drill, until a capture can read it."""
    status = recorded(healthy(), replace(created(), is_schema_readable=False), at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red, alarm.store) == ("damaged-source", True, DISK)
    assert "its schema cannot be read" in alarm.message
    found = with_drill(status, drilled("damaged-source", id=snapshot_id(), error=DamageError("malformed")), at=NOON)
    assert only(found).key == alarm.key
    assert "malformed" in only(found).message
    assert only(recorded(status, replace(created(), was_read=False), at=SOON)).key == alarm.key
    assert alarms_of(recorded(status, created(), at=SOON)) == ()


def test_what_cannot_be_decrypted_is_no_alarm() -> None:
    """Every stored byte was right: that ends damage of the store, and says nothing of the source."""
    intact = drilled("intact", id=snapshot_id())
    damaged = with_drill(healthy(), drilled("damaged-store", error=DamageError("a pack is gone")), at=NOON)
    assert alarms_of(with_drill(damaged, intact, at=SOON)) == ()
    (health,) = (
        each for url, each in with_drill(damaged, intact, at=SOON).databases["app"].stores.items() if url == DISK
    )
    assert (health.intact_id, health.intact_at, health.proven_at) == (str(snapshot_id()), SOON, None)
    source = with_drill(healthy(), drilled("damaged-source", error=DamageError("row 7")), at=NOON)
    assert only(with_drill(source, intact, at=SOON)).kind == "damaged-source"
    late = with_drill(with_drill(healthy(), intact, at=NOON), drilled("failed", error=DamageError("no")), at=SOON)
    assert f"last found intact: {snapshot_id()} in {DISK}, 2026-11-22 12:00:00Z" in only(late).message


def _with_proof_due(status: Status, due_by: datetime | None) -> Status:
    databases = {name: replace(each, proof_due_by=due_by) for name, each in status.databases.items()}
    return replace(status, databases=databases)


def test_drills_that_stop_are_noticed() -> None:
    """Drills must not stop silently; a drill in any store is enough."""
    never = _with_proof_due(healthy(), SOON)
    assert alarms_of(never, SOON) == ()
    alarm = only(never, SOON + MINUTE)
    assert (alarm.kind, alarm.is_red, alarm.database, alarm.store) == ("unproven", True, "app", None)
    assert "none ever succeeded" in alarm.message
    proven = with_drill(never, drilled("proven", id=snapshot_id()), at=SOON, proof_due_by=LATER)
    assert alarms_of(proven, SOON + MINUTE) == ()
    assert (
        "the last one that succeeded was that of 2026-11-22 12:01:00Z"
        in only(_with_proof_due(proven, SOON), SOON + MINUTE).message
    )
    assert alarms_of(_with_proof_due(healthy(), None), LATER - HOUR + MINUTE) == ()
    empty = with_health(healthy(stores=(DISK,)), snapshot_id=None)
    assert alarms_of(_with_proof_due(empty, NOON), SOON) == ()


def test_a_drill_that_fails_says_why_nothing_is_proven() -> None:
    """A drill that found damage is one alarm, with none beside it that nothing is proven."""
    failing = with_drill(_with_proof_due(healthy(), NOON), drilled("damaged-store", error=DamageError("gone")), at=NOON)
    assert only(failing).kind == "damaged"


def test_pruning_that_a_drill_holds_is_part_of_the_alarm_of_the_drill() -> None:
    """A repair of the store ends both; a machine that knows only of the hold reports it."""
    held = PruneResult(database="app", store=DISK, hold=Hold("it is damaged", hint="mend it", ends_by_itself=True))
    status = with_prune(healthy(), held, at=NOON)
    assert only(status).kind == "held"
    assert only(with_drill(status, drilled("damaged-store", error=DamageError("gone")), at=NOON)).kind == "damaged"
    shrunk = PruneResult(database="app", store=DISK, hold=Hold("it has shrunk", hint="accept it"))
    both = with_drill(
        with_prune(healthy(), shrunk, at=NOON), drilled("damaged-store", error=DamageError("gone")), at=NOON
    )
    assert [alarm.kind for alarm in alarms_of(both)] == ["damaged", "held"]


def test_pruning_that_is_held_is_reported_and_not_red() -> None:
    """A hold is an alarm that is not red, because nothing is lost by waiting."""
    held = PruneResult(
        database="app", store=DISK, hold=Hold("app has shrunk", hint="backupd prune app --accept-shrink")
    )
    status = with_prune(healthy(), held, at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red, alarm.is_sent_once) == ("held", False, False)
    assert alarm.hint == "backupd prune app --accept-shrink"
    assert alarms_of(with_prune(status, PruneResult(database="app", store=DISK), at=SOON)) == ()


def test_pruning_that_fails_is_reported_and_not_red() -> None:
    """A bucket that refuses deletions is reported once, one that is down when it stays down."""
    refused = PruneResult(database="app", store=DISK, error=StoreRefusedError("no deletions"))
    alarm = only(with_prune(healthy(), refused, at=NOON))
    assert (alarm.kind, alarm.is_red, alarm.is_sent_once) == ("prune-failing", False, True)
    down = PruneResult(database="app", store=DISK, error=DOWN)
    once = with_prune(healthy(), down, at=NOON)
    assert alarms_of(once) == ()
    alarm = only(with_prune(once, down, at=NOON))
    assert (alarm.is_red, alarm.is_sent_once) == (False, False)


def test_red_alarms_come_first() -> None:
    """A reader of one line reads the worst."""
    held = PruneResult(database="a", store=DISK, hold=Hold("shrunk", hint="look"))
    status = with_prune(healthy("a", "b"), held, at=NOON)
    status = recorded(recorded(status, failed("b")), failed("b"))
    assert [alarm.kind for alarm in alarms_of(with_config_problem(status, DOWN, at=NOON))] == [
        "failing",
        "config-refused",
        "held",
    ]


def test_every_alarm_has_its_own_key() -> None:
    """Damage that follows a failed drill is a new alarm."""
    failed_drill = with_drill(healthy(), drilled("damaged-source", error=DOWN), at=NOON)
    damaged = with_drill(failed_drill, drilled("damaged-store", error=DOWN), at=NOON)
    assert only(failed_drill).key != only(damaged).key
    assert only(failed_drill).title == only(damaged).title
    both = replace(healthy(), databases={**healthy().databases, **damaged.databases})
    assert len({alarm.key for alarm in alarms_of(both)}) == len(alarms_of(both))
