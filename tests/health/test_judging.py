from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from harness.statuses import (
    BUCKET,
    DISK,
    DOWN,
    HOUR,
    MINUTE,
    NOON,
    Drill,
    created,
    failed,
    healthy,
    recorded,
    snapshot_id,
    with_health,
)

from backupd.errors import DamageError, StoreRefusedError
from backupd.health import Status
from backupd.health.judging import Alarm, is_healthy, judge
from backupd.health.planning import (
    with_config_problem,
    with_daemon_stopped,
    with_entry_problem,
    with_vanished,
    without_others,
)
from backupd.health.recording import with_damaged_source, with_drill, with_prune
from backupd.holds import Hold
from backupd.prune.results import PruneResult

if TYPE_CHECKING:
    from datetime import datetime

LATER = NOON + HOUR
SOON = NOON + MINUTE


def alarms(status: Status, now: datetime = SOON, alive_at: datetime | None = None) -> tuple[Alarm, ...]:
    """What is wrong, by a daemon that lives unless `alive_at` says something else."""
    return judge(status, now=now, alive_at=alive_at or now)


def only(status: Status, now: datetime = SOON, alive_at: datetime | None = None) -> Alarm:
    """The one thing that is wrong. It has a hint, and neither text ends in a full stop or breaks the line."""
    (alarm,) = alarms(status, now, alive_at)
    assert alarm.hint
    assert alarm.since <= now
    for text in (alarm.message, alarm.hint, alarm.title):
        assert not text.endswith(".")
        assert text.isprintable()
    assert is_healthy(status, [alarm]) is not alarm.is_red
    return alarm


def test_a_healthy_system_has_no_alarms() -> None:
    """Until the very moment when it is due."""
    assert alarms(healthy("a", "b"), NOON + 30 * MINUTE) == ()
    assert is_healthy(healthy(), ())


def test_file_that_reads_differently_is_told_and_stays_healthy() -> None:
    """Its snapshots are right, through SQLite alone; a run that fails says nothing of it, and the next may end it."""
    differing = replace(created(store=DISK), api_differs=True)
    status = recorded(healthy("app", stores=(DISK,)), differing)
    alarm = only(status)
    assert (alarm.kind, alarm.database, alarm.is_red, alarm.since) == ("read-differs", "app", False, NOON)
    assert "/app/app.db: reading its file gave something else than SQLite reads" in alarm.message
    later = recorded(status, failed(store=DISK), at=NOON + MINUTE)
    assert only(later).since == NOON
    assert alarms(recorded(later, created(store=DISK, at=NOON + MINUTE), at=NOON + MINUTE)) == ()


def test_nothing_at_all_is_not_healthy() -> None:
    """A daemon that knows no database looks after none."""
    assert alarms(Status()) == ()
    assert not is_healthy(Status(), ())


def test_one_failed_attempt_is_no_alarm_and_two_are() -> None:
    """The first retry mends most."""
    once = recorded(healthy(), failed(), at=NOON + MINUTE)
    assert alarms(once, NOON + 2 * MINUTE) == ()
    twice = recorded(once, failed(), at=NOON + 2 * MINUTE)
    alarm = only(twice, NOON + 3 * MINUTE)
    assert (alarm.kind, alarm.database, alarm.store, alarm.is_red) == ("failing", "app", BUCKET, True)
    assert alarm.message == (
        f"app is not current in {BUCKET}: s3://bucket/creditrobot does not answer (2 attempts); "
        "last current 2026-11-22 12:00:00Z"
    )
    assert (alarm.hint, alarm.since) == ("check the network", NOON + MINUTE)
    assert alarms(recorded(twice, created(store=BUCKET), at=NOON + 4 * MINUTE), NOON + 4 * MINUTE) == ()


def test_what_fails_and_becomes_late_is_one_alarm_all_the_time() -> None:
    """Nobody is told twice."""
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
    assert alarms(back, NOON + 32 * MINUTE) == ()


def test_what_was_never_current_is_late_as_well() -> None:
    """And says so."""
    status = with_health(healthy(stores=(DISK,)), current_at=None)
    assert alarms(status) == ()
    assert only(status, LATER).message.endswith("no run has ended in time; it never was current")


def test_without_a_schedule_nothing_is_late_and_failures_still_count() -> None:
    """Cron runs `backupd now`, and nobody knows when."""
    status = recorded(Status(), created(), due_by=None)
    assert alarms(status, NOON + 365 * 24 * HOUR) == ()
    status = recorded(recorded(status, failed(store=DISK)), failed(store=DISK))
    assert only(status).kind == "failing"


def test_a_store_that_is_down_says_nothing_of_the_others() -> None:
    """One alarm for each database in it."""
    status = healthy("a", "b")
    for name in ("a", "b", "a", "b"):
        status = recorded(status, failed(name))
    found = alarms(status)
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
    assert alarms(recorded(status, created(at=SOON), at=SOON), SOON + MINUTE) == ()


def test_clocks_may_differ_a_little() -> None:
    """A correction by seconds is no alarm."""
    assert alarms(healthy(), NOON - 4 * MINUTE) == ()
    assert only(healthy(stores=(DISK,)), NOON - 6 * MINUTE).kind == "stale"


@pytest.mark.parametrize("seconds", [-121, 121, 10**9])
def test_a_daemon_without_a_sign_of_life_is_silent(seconds: int) -> None:
    """Whether it hangs, or the clock was set back since and it left none after that."""
    alarm = only(healthy(), SOON, SOON - seconds * MINUTE / 60)
    assert (alarm.kind, alarm.is_red) == ("daemon-silent", True)
    assert "process 12" in alarm.message


def test_a_daemon_that_never_left_a_sign_of_life_is_silent() -> None:
    """A full disk from the beginning."""
    (alarm,) = judge(healthy(), now=SOON, alive_at=None)
    assert (alarm.kind, alarm.since) == ("daemon-silent", NOON - HOUR)


def test_signs_of_life_are_good_for_two_minutes() -> None:
    """On both sides."""
    assert alarms(healthy(), SOON, SOON - 2 * MINUTE) == alarms(healthy(), SOON, SOON + 2 * MINUTE) == ()


def test_a_daemon_that_was_stopped_is_not_silent_but_things_get_late() -> None:
    """Somebody meant to, and may have forgotten."""
    status = with_daemon_stopped(healthy(stores=(DISK,)), at=NOON)
    assert alarms(status, NOON + 20 * MINUTE, NOON) == ()
    assert only(status, LATER, NOON).kind == "stale"


def test_an_entry_without_files_is_red_until_it_has_some() -> None:
    """Often a volume that is not mounted. A few looks may come before the application has made its first file."""
    status = healthy()
    for _ in range(3):
        status = with_entry_problem(status, "/data/*/app.db", DOWN, at=NOON)
        assert alarms(status) == ()
    status = with_entry_problem(status, "/data/*/app.db", DOWN, at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red, alarm.since) == ("nothing-matches", True, NOON)
    assert "/data/*/app.db" in alarm.message
    assert alarms(with_entry_problem(status, "/data/*/app.db", None, at=NOON)) == ()


def test_a_file_that_is_missing_is_one_alarm() -> None:
    """That it is late, and that attempts failed, is said by the same one."""
    status = recorded(recorded(healthy(stores=(DISK,)), failed(store=DISK)), failed(store=DISK))
    for _ in range(4):
        status = with_entry_problem(status, "/app/app.db", DOWN, at=NOON)
    alarm = only(status, LATER)
    assert (alarm.kind, alarm.database) == ("nothing-matches", "app")


def test_a_refused_configuration_is_told_and_not_red() -> None:
    """The one before is in force."""
    status = with_config_problem(healthy(), DOWN, at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red) == ("config-refused", False)
    assert alarms(with_config_problem(status, None, at=NOON)) == ()


def test_a_file_that_vanished_is_told_once_and_not_late() -> None:
    """A tenant was deleted, or somebody made a mistake."""
    status = with_vanished(recorded(recorded(healthy("a", "app"), failed()), failed()), ["app"], at=NOON)
    alarm = only(recorded(status, created("a"), created("a", BUCKET), at=LATER), LATER)
    assert (alarm.kind, alarm.database, alarm.is_red, alarm.is_told_once) == ("vanished", "app", False, True)
    assert alarm.hint == "if it should not be: backupd restore app@latest --to /app/app.db"


def test_a_database_that_is_not_configured_any_more_is_not_judged() -> None:
    """Whatever was wrong with it."""
    status = recorded(recorded(healthy("a", "app"), failed()), failed())
    assert len(alarms(status)) == 1
    assert alarms(without_others(status, {"a"})) == ()


def test_damage_is_red_until_a_drill_succeeds() -> None:
    """The message says what was proven last."""
    proven = with_drill(healthy(), Drill("proven", id=snapshot_id()), at=NOON)
    status = with_drill(proven, Drill("damaged-store", error=DamageError("a pack is gone")), at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red) == ("damaged", True)
    assert f"a pack is gone; last proven: {snapshot_id()} in {DISK}, 2026-11-22 12:00:00Z" in alarm.message
    assert "backupd now app" in alarm.hint
    assert alarms(with_drill(status, Drill("proven", id=snapshot_id()), at=SOON)) == ()


def test_what_turned_out_damaged_is_not_recommended() -> None:
    """The alarm names a snapshot, and the store, that nothing is known against; or says that there is none."""
    older, newer = snapshot_id(NOON - HOUR), snapshot_id()
    gone = DamageError("a pack is gone")
    status = with_drill(healthy(), Drill("proven", id=newer), at=NOON)
    own = Drill("damaged-store", id=newer, error=gone, damaged_snapshots=(older, newer))
    assert only(with_drill(status, own, at=SOON)).message.endswith("a pack is gone; no snapshot is known to be proven")
    status = with_drill(status, Drill("proven", store=BUCKET, id=older), at=NOON)
    damaged = with_drill(status, own, at=SOON)
    assert only(damaged).message.endswith(f"; last proven: {older} in {BUCKET}, 2026-11-22 12:00:00Z")
    older_only = Drill("damaged-store", id=snapshot_id(SOON), error=gone, damaged_snapshots=(older, snapshot_id(SOON)))
    assert f"last proven: {newer} in {DISK}" in only(with_drill(status, older_only, at=SOON)).message
    source = with_drill(status, Drill("damaged-source", id=newer, error=DamageError("row 7")), at=SOON)
    assert f"last proven: {older} in {BUCKET}" in only(source).message


def test_a_damaged_source_alarms_in_every_store_that_has_it() -> None:
    """But for one where a newer snapshot is proven; each ends by itself, and no turn of a drill is lost."""
    found = Drill("damaged-source", id=snapshot_id(), error=DamageError("row 7"))
    elsewhere = with_damaged_source(with_drill(healthy(), found, at=NOON), found, [BUCKET], at=NOON)
    assert {(each.kind, each.store) for each in alarms(elsewhere)} == {
        ("damaged-source", DISK),
        ("damaged-source", BUCKET),
    }
    again = with_damaged_source(with_drill(elsewhere, found, at=SOON), found, [BUCKET], at=SOON)
    (known,) = [each for url, each in again.databases["app"].stores.items() if url == BUCKET]
    assert known.drill_failure is not None
    assert (known.drill_failure.count, known.drill_failure.last_at) == (1, NOON)
    sound = with_drill(again, Drill("proven", id=snapshot_id(SOON), store=BUCKET), at=SOON)
    assert [each.store for each in alarms(sound)] == [DISK]
    assert [each.store for each in alarms(with_damaged_source(sound, found, [BUCKET], at=SOON))] == [DISK]


def test_a_proof_by_another_machine_is_known_here() -> None:
    """What is found intact here, and proven where the key is, is proven; never with a time in the future."""
    found = Drill("damaged-source", id=snapshot_id(), error=DamageError("row 7"))
    intact = Drill("intact", id=snapshot_id(SOON), proven_at=SOON)
    status = with_drill(with_drill(healthy(), found, at=NOON), intact, at=LATER)
    assert alarms(status) == ()
    health = status.databases["app"].stores[DISK]
    assert (health.proven_id, health.proven_at, health.intact_at) == (str(snapshot_id(SOON)), SOON, LATER)
    earlier = with_drill(status, Drill("intact", id=snapshot_id(), proven_at=NOON), at=LATER)
    assert earlier.databases["app"].stores[DISK].proven_at == SOON
    ahead = with_drill(status, Drill("intact", id=snapshot_id(LATER), proven_at=LATER + HOUR), at=LATER)
    assert ahead.databases["app"].stores[DISK].proven_at == SOON


def test_a_drill_that_fails_is_red_at_once_unless_another_may_succeed() -> None:
    """Drills are rare: what nobody has to mend may wait for one more."""
    once = with_drill(healthy(), Drill("failed", error=DOWN), at=NOON)
    assert alarms(once) == ()
    alarm = only(with_drill(once, Drill("failed", error=DOWN), at=SOON))
    assert (alarm.kind, alarm.is_red) == ("drill-failed", True)
    assert "does not answer (2 attempts); no snapshot is known to be proven" in alarm.message


def test_a_damaged_source_is_another_alarm_than_a_damaged_store() -> None:
    """Who mends the one has nothing to mend in the other; each ends with a drill that succeeds."""
    damaged = DamageError("row 7 is missing from index i", hint="check the live one with: sqlite3 app.db")
    source = with_drill(healthy(), Drill("damaged-source", id=snapshot_id(), error=damaged), at=NOON)
    alarm = only(source)
    assert (alarm.kind, alarm.is_red, alarm.store) == ("damaged-source", True, DISK)
    assert "row 7 is missing from index i; no snapshot is known to be proven" in alarm.message
    assert "backupd now" not in alarm.hint
    store = with_drill(source, Drill("damaged-store", id=snapshot_id(), error=damaged), at=SOON)
    assert (only(store).kind, only(store).since) == ("damaged", SOON)
    back = with_drill(store, Drill("damaged-source", id=snapshot_id(), error=damaged), at=SOON)
    assert only(back).kind == "damaged-source"
    assert alarms(with_drill(back, Drill("proven", id=snapshot_id()), at=SOON)) == ()


def test_a_schema_that_cannot_be_read_is_a_damaged_source_at_once() -> None:
    """No drill has to come first, and it is over with the next capture that can read it."""
    status = recorded(healthy(), replace(created(), is_schema_readable=False), at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red, alarm.store) == ("damaged-source", True, DISK)
    assert "its schema cannot be read" in alarm.message
    found = with_drill(status, Drill("damaged-source", id=snapshot_id(), error=DamageError("malformed")), at=NOON)
    assert only(found).key == alarm.key
    assert "malformed" in only(found).message
    assert alarms(recorded(status, created(), at=SOON)) == ()


def test_what_cannot_be_decrypted_is_no_alarm() -> None:
    """Every stored byte was right: that ends damage of the store, and says nothing of the source."""
    intact = Drill("intact", id=snapshot_id())
    damaged = with_drill(healthy(), Drill("damaged-store", error=DamageError("a pack is gone")), at=NOON)
    assert alarms(with_drill(damaged, intact, at=SOON)) == ()
    (health,) = (
        each for url, each in with_drill(damaged, intact, at=SOON).databases["app"].stores.items() if url == DISK
    )
    assert (health.intact_id, health.intact_at, health.proven_at) == (str(snapshot_id()), SOON, None)
    source = with_drill(healthy(), Drill("damaged-source", error=DamageError("row 7")), at=NOON)
    assert only(with_drill(source, intact, at=SOON)).kind == "damaged-source"
    late = with_drill(with_drill(healthy(), intact, at=NOON), Drill("failed", error=DamageError("no")), at=SOON)
    assert f"last found intact: {snapshot_id()} in {DISK}, 2026-11-22 12:00:00Z" in only(late).message


def _with_proof_due(status: Status, due_by: datetime | None) -> Status:
    databases = {name: replace(each, proof_due_by=due_by) for name, each in status.databases.items()}
    return replace(status, databases=databases)


def test_drills_that_stop_are_noticed() -> None:
    """Whoever is to prove that snapshots restore may not just fall silent; a drill in any store is enough."""
    never = _with_proof_due(healthy(), SOON)
    assert alarms(never, SOON) == ()
    alarm = only(never, SOON + MINUTE)
    assert (alarm.kind, alarm.is_red, alarm.database, alarm.store) == ("unproven", True, "app", None)
    assert "none ever succeeded" in alarm.message
    proven = with_drill(never, Drill("proven", id=snapshot_id()), at=SOON, proof_due_by=LATER)
    assert alarms(proven, SOON + MINUTE) == ()
    assert (
        "the last one that succeeded was that of 2026-11-22 12:01:00Z"
        in only(_with_proof_due(proven, SOON), SOON + MINUTE).message
    )
    assert alarms(_with_proof_due(healthy(), None), LATER - HOUR + MINUTE) == ()
    empty = with_health(healthy(stores=(DISK,)), snapshot_id=None)
    assert alarms(_with_proof_due(empty, NOON), SOON) == ()


def test_a_drill_that_fails_says_why_nothing_is_proven() -> None:
    """One alarm for one cause."""
    failing = with_drill(_with_proof_due(healthy(), NOON), Drill("damaged-store", error=DamageError("gone")), at=NOON)
    assert only(failing).kind == "damaged"


def test_pruning_that_a_drill_holds_is_told_by_the_alarm_of_the_drill() -> None:
    """Somebody who mends the store ends both; on a machine that knows only of the hold, that is told."""
    held = PruneResult(database="app", store=DISK, hold=Hold("it is damaged", hint="mend it", ends_by_itself=True))
    status = with_prune(healthy(), held, at=NOON)
    assert only(status).kind == "held"
    assert only(with_drill(status, Drill("damaged-store", error=DamageError("gone")), at=NOON)).kind == "damaged"
    shrunk = PruneResult(database="app", store=DISK, hold=Hold("it has shrunk", hint="accept it"))
    both = with_drill(
        with_prune(healthy(), shrunk, at=NOON), Drill("damaged-store", error=DamageError("gone")), at=NOON
    )
    assert [alarm.kind for alarm in alarms(both)] == ["damaged", "held"]


def test_pruning_that_is_held_is_told_and_not_red() -> None:
    """Nothing is lost by waiting."""
    held = PruneResult(
        database="app", store=DISK, hold=Hold("app has shrunk", hint="backupd prune app --accept-shrink")
    )
    status = with_prune(healthy(), held, at=NOON)
    alarm = only(status)
    assert (alarm.kind, alarm.is_red, alarm.is_told_once) == ("held", False, False)
    assert alarm.hint == "backupd prune app --accept-shrink"
    assert alarms(with_prune(status, PruneResult(database="app", store=DISK), at=SOON)) == ()


def test_pruning_that_fails_is_told_and_not_red() -> None:
    """A bucket that refuses deletions may be meant to: once. One that is down, when it stays down."""
    refused = PruneResult(database="app", store=DISK, error=StoreRefusedError("no deletions"))
    alarm = only(with_prune(healthy(), refused, at=NOON))
    assert (alarm.kind, alarm.is_red, alarm.is_told_once) == ("prune-failing", False, True)
    down = PruneResult(database="app", store=DISK, error=DOWN)
    once = with_prune(healthy(), down, at=NOON)
    assert alarms(once) == ()
    alarm = only(with_prune(once, down, at=NOON))
    assert (alarm.is_red, alarm.is_told_once) == (False, False)


def test_what_is_red_comes_first() -> None:
    """Whoever reads one line reads the worst."""
    held = PruneResult(database="a", store=DISK, hold=Hold("shrunk", hint="look"))
    status = with_prune(healthy("a", "b"), held, at=NOON)
    status = recorded(recorded(status, failed("b")), failed("b"))
    assert [alarm.kind for alarm in alarms(with_config_problem(status, DOWN, at=NOON))] == [
        "failing",
        "config-refused",
        "held",
    ]


def test_keys_tell_every_alarm_apart() -> None:
    """Damage that follows a failed drill is news."""
    failed_drill = with_drill(healthy(), Drill("damaged-source", error=DOWN), at=NOON)
    damaged = with_drill(failed_drill, Drill("damaged-store", error=DOWN), at=NOON)
    assert only(failed_drill).key != only(damaged).key
    assert only(failed_drill).title == only(damaged).title
    both = replace(healthy(), databases={**healthy().databases, **damaged.databases})
    assert len({alarm.key for alarm in alarms(both)}) == len(alarms(both))
