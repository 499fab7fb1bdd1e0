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
    created,
    drilled,
    failed,
    healthy,
    recorded,
    snapshot_id,
    with_health,
)
from msgspec.structs import replace

from backupd.backup.results import BackupResult, Outcome
from backupd.errors import AnotherRunError, DamageError, InterruptedByUserError, StoreRefusedError
from backupd.health import Status, StoreHealth
from backupd.health.planning import (
    Plan,
    with_config_problem,
    with_daemon,
    with_daemon_stopped,
    with_entry_problem,
    with_plans,
    with_running,
    with_vanished,
    without_other_entries,
    without_others,
)
from backupd.health.recording import (
    with_all_unchanged,
    with_down,
    with_drill,
    with_prune,
    with_seen,
    with_snapshots,
)
from backupd.health.values import LastRun, Totals
from backupd.prune.pruning import PruneResult
from backupd.retention.holds import Hold

if TYPE_CHECKING:
    from datetime import datetime


def store(status: Status, url: str = DISK, database: str = "app") -> StoreHealth:
    """The health of one database in one store."""
    return status.databases[database].stores[url]


def plan(*stores: str, minutes: int = 15) -> Plan:
    """Every so many minutes, into these stores."""
    return Plan(
        path="/app/app.db",
        stores=stores or (DISK, BUCKET),
        next_run_at=LATER,
        next_drill_at=LATER + HOUR,
        due_after=lambda moment: moment + 2 * minutes * MINUTE,
    )


def test_a_proof_is_due_after_the_last_one_in_whatever_store() -> None:
    """A restart, or a round, changes nothing of that; what was never proven stays due when it was."""
    daily = replace(plan(), proof_due_after=lambda moment: moment + 48 * HOUR)
    status = with_plans(healthy(), {"app": daily}, at=NOON)
    assert status.databases["app"].proof_due_by == NOON + 48 * HOUR
    assert with_plans(status, {"app": daily}, at=LATER).databases["app"].proof_due_by == NOON + 48 * HOUR
    over = NOON + 49 * HOUR
    assert with_plans(status, {"app": daily}, at=over).databases["app"].proof_due_by == NOON + 48 * HOUR
    drill = drilled("proven", store=BUCKET, id=snapshot_id())
    proven = with_drill(status, drill, at=LATER, proof_due_by=LATER + 48 * HOUR)
    assert proven.databases["app"].proof_due_by == LATER + 48 * HOUR
    by_hand = with_drill(status, drilled("intact", store=BUCKET, id=snapshot_id()), at=LATER)
    assert by_hand.databases["app"].proof_due_by == NOON + 48 * HOUR
    assert with_plans(by_hand, {"app": daily}, at=over).databases["app"].proof_due_by == LATER + 48 * HOUR
    failing = with_drill(status, drilled("failed", error=DOWN), at=LATER, proof_due_by=LATER + 48 * HOUR)
    assert failing.databases["app"].proof_due_by == NOON + 48 * HOUR


def test_a_new_plan_makes_nothing_late_that_was_not() -> None:
    """A shorter schedule counts from now on, once: a daemon that restarts all the time gets late by it."""
    status = with_plans(healthy(stores=(DISK,)), {"app": plan(DISK, minutes=24 * 60)}, at=NOON, are_new=True)
    status = with_plans(status, {"app": plan(DISK)}, at=LATER, are_new=True)
    assert store(status).due_by == LATER + 30 * MINUTE
    for minutes in range(0, 50, 10):
        status = with_plans(status, {"app": plan(DISK)}, at=LATER + minutes * MINUTE, are_new=minutes < 40)
    assert store(status).due_by < LATER + 40 * MINUTE


def test_a_new_plan_says_when_proofs_are_due() -> None:
    """A new plan says when a proof is due, if drills come more or less often, were never done, or have ended."""

    def every(hours: int) -> Plan:
        return replace(plan(), proof_due_after=lambda moment: moment + hours * HOUR)

    def due(status: Status) -> datetime | None:
        return status.databases["app"].proof_due_by

    status = with_plans(healthy(), {"app": every(2)}, at=NOON, are_new=True)
    assert due(status) == NOON + 2 * HOUR
    longer = with_plans(status, {"app": every(1000)}, at=LATER, are_new=True)
    assert due(longer) == NOON + 1000 * HOUR
    assert due(with_plans(longer, {"app": every(1000)}, at=NOON + 999 * HOUR, are_new=True)) == NOON + 1000 * HOUR
    assert due(with_plans(longer, {"app": every(3)}, at=LATER, are_new=True)) == NOON + 3 * HOUR
    assert due(with_plans(longer, {"app": every(3)}, at=NOON + 10 * HOUR, are_new=True)) == NOON + 13 * HOUR
    failing = with_drill(status, drilled("failed", error=DOWN), at=LATER)
    without = with_plans(failing, {"app": replace(plan(), next_drill_at=None)}, at=LATER, are_new=True)
    assert (due(without), store(without).drill_failure) == (None, None)
    damaged = with_drill(status, drilled("damaged-store", error=DOWN), at=LATER)
    without = with_plans(damaged, {"app": replace(plan(), next_drill_at=None)}, at=LATER, are_new=True)
    assert store(without).drill_failure is not None


def test_a_clock_that_was_ahead_leaves_no_deadline_behind() -> None:
    """A clock that was ahead and is corrected leaves nothing that is due only in that future."""
    daily = replace(plan(DISK), proof_due_after=lambda moment: moment + 48 * HOUR)
    status = with_plans(Status(), {"app": daily}, at=NOON + 9000 * HOUR, are_new=True)
    status = with_plans(status, {"app": daily}, at=NOON, are_new=True)
    assert store(status).due_by == NOON + 30 * MINUTE
    assert status.databases["app"].proof_due_by == NOON + 48 * HOUR


def test_no_proof_is_due_where_no_drill_is() -> None:
    """No proof is due where no drill is scheduled, or where this machine's keys may read no pack."""
    daily = replace(plan(), proof_due_after=lambda moment: moment + 48 * HOUR)
    status = with_plans(healthy(), {"app": daily}, at=NOON)
    for without in (replace(daily, next_drill_at=None), replace(daily, put_only=frozenset(daily.stores))):
        assert with_plans(status, {"app": without}, at=NOON).databases["app"].proof_due_by is None


def test_a_snapshot_makes_its_store_current() -> None:
    """A snapshot makes its store current as of the moment when the attempt began."""
    status = recorded(Status(), created(at=NOON + 2 * MINUTE))
    assert status.databases["app"].path == "/app/app.db"
    assert not status.databases["app"].is_scheduled
    assert store(status) == StoreHealth(
        current_at=NOON,
        due_by=NOON + 30 * MINUTE,
        fingerprint="1:2:3",
        snapshot_id=str(snapshot_id(NOON + 2 * MINUTE)),
        snapshot_at=NOON + 2 * MINUTE,
        seen_at=NOON,
        last_run=LastRun(
            started_at=NOON,
            duration_seconds=0.25,
            outcome="created",
            stored_bytes=5000,
            changed_pages=12,
            page_count=1000,
            page_size=4096,
        ),
        totals=Totals(snapshots=1, stored_bytes=5000),
    )
    last_run = store(status).last_run
    assert last_run is not None
    assert last_run.image_bytes == 4_096_000


def test_a_capture_that_proved_nothing_changed_makes_it_current_too() -> None:
    """The newest snapshot stays the one that it was."""
    unchanged = replace(created(at=NOON), outcome=Outcome.UNCHANGED, stored_bytes=0, changed_pages=0)
    health = store(recorded(healthy(), unchanged, at=LATER))
    assert (health.current_at, health.snapshot_at, health.seen_at) == (LATER, NOON, LATER)
    assert health.totals == Totals(snapshots=1, stored_bytes=5000)


def test_failures_are_counted_from_the_first_and_move_no_due_time() -> None:
    """Late is late, however often it is tried."""
    status = recorded(healthy(), failed(), at=LATER)
    status = recorded(status, failed(error=DamageError("it is odd", hint="look")), at=LATER + MINUTE)
    health = store(status, BUCKET)
    assert health.failure is not None
    assert (health.failure.since, health.failure.last_at, health.failure.count) == (LATER, LATER + MINUTE, 2)
    assert (health.failure.message, health.failure.hint, health.failure.exit_code) == ("it is odd", "look", 20)
    assert (health.current_at, health.due_by, health.fingerprint) == (NOON, NOON + 30 * MINUTE, None)
    assert (health.totals.failures, health.totals.snapshots) == (2, 1)
    assert store(status) == store(healthy())
    assert store(recorded(status, created(store=BUCKET), at=LATER), BUCKET).failure is None


def test_store_that_always_failed_has_a_due_time() -> None:
    """A store that was never current is due at the time of its first failure."""
    status = recorded(Status(), failed(), due_by=LATER)
    assert store(recorded(status, failed(), at=LATER, due_by=LATER + HOUR), BUCKET).due_by == LATER


def test_being_stopped_is_no_failure() -> None:
    """SIGTERM says nothing about a store."""
    stopped = recorded(healthy(), failed(error=InterruptedByUserError("backupd is stopping")), at=LATER)
    assert store(stopped, BUCKET).failure is None
    assert store(stopped, BUCKET).totals.failures == 0
    assert store(stopped, BUCKET).current_at == NOON


def test_a_store_that_failed_has_no_fingerprint() -> None:
    """What another store has says nothing about this one."""
    status = with_snapshots(
        healthy(), [created(), failed()], path="/app/app.db", at=LATER, due_by=None, fingerprint="4:5:6"
    )
    assert (store(status).fingerprint, store(status, BUCKET).fingerprint) == ("4:5:6", None)


def test_a_round_without_changes_is_recorded_at_once() -> None:
    """What is not known, or was not asked, stays as it was."""
    status = with_health(healthy("a", "b", "c"), "b", failure=store(recorded(healthy(), failed()), BUCKET).failure)
    checked = {"a": (DISK, BUCKET), "b": (DISK,), "z": (DISK,)}
    after = with_all_unchanged(status, checked, at=LATER, due_by=LATER + HOUR)
    assert [store(after, url, name).current_at for name in "abc" for url in (DISK, BUCKET)] == [
        LATER,
        LATER,
        LATER,
        NOON,
        NOON,
        NOON,
    ]
    assert store(after, DISK, "b").failure is None
    assert store(after, DISK, "a").due_by == LATER + HOUR
    assert store(after, DISK, "a").fingerprint == "1:2:3"
    assert after.databases["c"] is status.databases["c"]
    assert "z" not in after.databases


def test_stores_that_could_not_be_asked_have_failed() -> None:
    """A store that could not be asked in a round has failed for the databases concerned, and for no others."""
    after = with_down(healthy("a", "b"), {"a": [(BUCKET, DOWN)], "z": [(BUCKET, DOWN)]}, at=LATER)
    failure = store(after, BUCKET, "a").failure
    assert failure is not None
    assert (failure.message, failure.count, store(after, BUCKET, "a").totals.failures) == (DOWN.message, 1, 1)
    assert after.databases["a"].stores[DISK] == healthy("a").databases["a"].stores[DISK]
    assert after.databases["b"] == healthy("b").databases["b"]


def test_manifests_are_seen() -> None:
    """A manifest that was seen is recorded for databases that are known, and ignored for others."""
    assert store(with_seen(healthy(), DISK, ["app", "other"], at=LATER)).seen_at == LATER


def test_another_run_that_is_at_work_is_no_failure() -> None:
    """`backupd now` of a large database, beside the daemon: it is not late yet, and would say so in time."""
    busy = AnotherRunError("another backupd is working on app", hint="wait until it has finished")
    status = recorded(healthy(), failed(error=busy), at=LATER)
    assert store(status, BUCKET).failure is None
    assert store(status, BUCKET).totals == store(healthy(), BUCKET).totals
    assert store(status, BUCKET).fingerprint == "1:2:3"
    assert store(status, BUCKET).due_by == store(healthy(), BUCKET).due_by
    down = recorded(healthy(), failed())
    assert store(recorded(down, failed(error=busy), at=LATER), BUCKET).failure == store(down, BUCKET).failure
    pruned = with_prune(down, PruneResult(database="app", store=DISK, error=busy), at=LATER)
    assert pruned.databases == down.databases
    assert with_drill(down, drilled("failed", error=busy), at=LATER).databases == down.databases


def test_a_hold_is_as_old_as_its_beginning() -> None:
    """A hold keeps its beginning, and ends with the first prune that is not held."""
    held = PruneResult(database="app", store=DISK, hold=Hold("it has shrunk", hint="accept it"))
    status = with_prune(with_prune(healthy(), held, at=NOON), held, at=LATER)
    hold = store(status).hold
    assert hold is not None
    assert (hold.since, hold.message, hold.hint) == (NOON, "it has shrunk", "accept it")
    assert store(with_prune(status, PruneResult(database="app", store=DISK), at=LATER)).hold is None


def test_a_prune_that_fails_is_no_failed_snapshot() -> None:
    """A refusal is remembered as one."""
    refused = PruneResult(database="app", store=DISK, error=StoreRefusedError("no deletions here"))
    status = with_prune(with_prune(healthy(), refused, at=NOON), refused, at=LATER)
    failure = store(status).prune_failure
    assert failure is not None
    assert (failure.count, failure.is_refusal, failure.is_transient) == (2, True, False)
    assert store(status).failure is None
    assert store(with_prune(status, PruneResult(database="app", store=DISK), at=LATER)).prune_failure is None
    assert with_prune(Status(), refused, at=NOON) == Status()


def test_a_drill_proves_or_finds_damage() -> None:
    """Damage stays until a drill succeeds, whatever else goes wrong with the next ones."""
    proven = with_drill(healthy(), drilled("proven", id=snapshot_id()), at=LATER)
    assert (store(proven).proven_id, store(proven).proven_at) == (str(snapshot_id()), LATER)
    damaged = with_drill(proven, drilled("damaged-store", id=snapshot_id(), findings=("page 3 differs",)), at=LATER)
    failure = store(damaged).drill_failure
    assert failure is not None
    assert "page 3 differs" in failure.message
    assert str(snapshot_id()) in failure.message
    assert store(damaged).is_damaged
    assert store(damaged).fingerprint is None
    assert (store(damaged).proven_id, store(damaged).proven_at) == (None, None)  # that snapshot proves nothing now
    unreachable = with_drill(damaged, drilled("failed", error=DOWN), at=LATER + HOUR)
    assert store(unreachable).drill_failure == replace(failure, last_at=LATER + HOUR, count=2)
    assert store(unreachable).is_damaged
    again = with_drill(unreachable, drilled("proven", id=snapshot_id()), at=LATER + HOUR)
    assert (store(again).is_damaged, store(again).drill_failure) == (False, None)


def test_a_drill_that_cannot_look_leaves_a_damaged_source_as_it_was() -> None:
    """A drill that fails leaves a damaged source damaged, with its findings."""
    damaged = with_drill(healthy(), drilled("damaged-source", id=snapshot_id(), findings=("row 7",)), at=NOON)
    health = store(with_drill(damaged, drilled("failed", error=DOWN), at=LATER))
    assert health.is_source_damaged
    assert health.drill_failure is not None
    assert ("row 7" in health.drill_failure.message, health.drill_failure.count) == (True, 2)


@pytest.mark.parametrize("outcome", ["failed", "damaged-source"])
def test_a_drill_that_fails_for_another_reason_leaves_the_store_undamaged(outcome: str) -> None:
    """A store that is down, or a database that was broken before it was captured."""
    health = store(with_drill(healthy(), drilled(outcome, error=DOWN), at=LATER))
    assert health.drill_failure is not None
    assert health.drill_failure.message == DOWN.message
    assert (health.is_damaged, health.fingerprint) == (False, "1:2:3")


def test_a_damaged_source_ends_the_damage_of_the_store() -> None:
    """Every byte was read, and was right: what is wrong now is the database, and no store has to be mended."""
    damaged = with_drill(healthy(), drilled("damaged-store", id=snapshot_id(), findings=("page 3 differs",)), at=NOON)
    assert store(damaged).is_damaged
    health = store(with_drill(damaged, drilled("damaged-source", id=snapshot_id(), findings=("row 7",)), at=LATER))
    assert not health.is_damaged
    assert health.drill_failure is not None
    assert "row 7" in health.drill_failure.message
    assert health.proven_at is None


def test_a_drill_that_sqlite_cannot_check_in_full_proves_the_bytes() -> None:
    """A drill that SQLite cannot check in full counts as a proof, because every byte was there."""
    status = with_drill(healthy(), drilled("failed", error=DOWN), at=NOON)
    health = store(with_drill(status, drilled("not-checkable", id=snapshot_id()), at=LATER))
    assert (health.drill_failure, health.proven_at, health.is_damaged) == (None, LATER, False)


def test_a_plan_says_when_each_store_is_due() -> None:
    """A store is due from when it was current, a new one from now on; a changed schedule counts at once."""
    status = with_plans(healthy(stores=(DISK,)), {"app": plan(), "new": plan()}, at=LATER)
    app = status.databases["app"]
    assert (app.is_scheduled, app.next_run_at, app.next_drill_at) == (True, LATER, LATER + HOUR)
    assert (store(status).due_by, store(status, BUCKET).due_by) == (NOON + 30 * MINUTE, LATER + 30 * MINUTE)
    assert store(status, DISK, "new") == StoreHealth(due_by=LATER + 30 * MINUTE, planned_since=LATER)
    weekly = with_plans(status, {"app": plan(minutes=7 * 24 * 60)}, at=LATER)
    assert store(weekly).due_by == NOON + 14 * 24 * HOUR
    assert store(with_plans(status, {"app": plan(DISK)}, at=LATER)) == store(status)
    assert BUCKET not in with_plans(status, {"app": plan(DISK)}, at=LATER).databases["app"].stores


def test_a_schedule_that_is_shared_is_asked_once_for_each_time() -> None:
    """A thousand tenants of one entry, which are as they were."""
    asked = []

    def due_after(moment: datetime) -> datetime:
        asked.append(moment)
        return moment + HOUR

    names = [f"tenant-{number}" for number in range(10)]
    shared = replace(plan(), due_after=due_after)
    status = with_plans(healthy(*names), dict.fromkeys([*names, "new"], shared), at=LATER)
    assert sorted(asked) == [NOON, LATER]
    assert store(status, BUCKET, "tenant-9").due_by == NOON + HOUR
    assert store(status, BUCKET, "new").due_by == LATER + HOUR


def test_a_daemon_that_restarts_all_the_time_is_late_in_the_end() -> None:
    """A store that never was current stays due when it was first."""
    status = Status()
    for minutes in range(10):
        status = with_plans(status, {"app": plan()}, at=NOON + minutes * MINUTE)
    assert store(status).due_by == NOON + 30 * MINUTE


def test_what_is_not_configured_any_more_is_forgotten() -> None:
    """A database that is no longer configured is forgotten; one that vanished is, after a week."""
    status = with_vanished(healthy("a", "b", "c"), ["b", "unknown"], at=NOON)
    assert status.databases["b"].vanished_at == NOON
    assert with_vanished(status, ["b"], at=LATER) == status
    assert set(without_others(status, {"a", "b"}).databases) == {"a", "b"}
    assert set(without_others(status, {"a"}).databases) == {"a"}
    assert set(with_vanished(status, [], at=NOON + 8 * 24 * HOUR).databases) == {"a", "c"}
    assert without_others(status, {"a", "b", "c"}) is status


@pytest.mark.parametrize("way", ["plan", "snapshot"])
def test_file_that_comes_back_is_backed_up_again(way: str) -> None:
    """Found by its pattern, or backed up by hand."""
    status = with_vanished(healthy(), ["app"], at=NOON)
    back = with_plans(status, {"app": plan()}, at=LATER) if way == "plan" else recorded(status, created())
    assert back.databases["app"].vanished_at is None


def test_what_vanished_is_forgotten_after_a_week_of_rounds() -> None:
    """A daemon that runs for years plans nothing again."""
    status = with_vanished(healthy("a", "b"), ["b"], at=NOON)
    assert with_vanished(status, [], at=NOON + 6 * 24 * HOUR) is status
    assert set(with_vanished(status, [], at=NOON + 8 * 24 * HOUR).databases) == {"a"}
    assert set(with_vanished(status, ["a"], at=NOON + 8 * 24 * HOUR).databases) == {"a"}


def test_entries_that_are_not_configured_any_more_are_forgotten() -> None:
    """A typo in a pattern that was put right does not stay red."""
    status = with_entry_problem(healthy(), "/dta/*.db", DOWN, at=NOON)
    status = with_entry_problem(status, "/data/*.db", DOWN, at=NOON)
    after = without_other_entries(status, ["/data/*.db", "/new/*.db"])
    assert after.daemon is not None
    assert set(after.daemon.entry_problems) == {"/data/*.db"}
    assert without_other_entries(after, ["/data/*.db"]) is after
    assert without_other_entries(Status(), []) == Status()


def test_running_database_is_recorded() -> None:
    """A running database is recorded with its start, until it ends."""
    status = with_running(healthy(), "app", since=NOON)
    assert status.databases["app"].running_since == NOON
    assert with_running(status, "app", since=None).databases["app"].running_since is None
    assert with_running(status, "z", since=NOON) is status


def test_a_daemon_that_starts_finds_nothing_running() -> None:
    """What a killed one had begun has ended; what was wrong with its configuration is not known to be."""
    status = with_running(with_config_problem(healthy(), DOWN, at=NOON), "app", since=NOON)
    after = with_daemon(status, pid=99, version="2", at=LATER)
    assert after.databases["app"].running_since is None
    assert after.daemon is not None
    assert (after.daemon.pid, after.daemon.version, after.daemon.started_at) == (99, "2", LATER)
    assert (after.daemon.config_problem, after.daemon.stopped_at) == (None, None)
    stopped = with_daemon_stopped(after, at=LATER)
    assert stopped.daemon is not None
    assert stopped.daemon.stopped_at == LATER


def test_problems_of_the_configuration_last_from_their_beginning() -> None:
    """A problem of the configuration keeps its beginning, until it is over."""
    status = with_config_problem(with_config_problem(healthy(), DOWN, at=NOON), DOWN, at=LATER)
    status = with_entry_problem(with_entry_problem(status, "/data/*.db", DOWN, at=NOON), "/data/*.db", DOWN, at=LATER)
    assert status.daemon is not None
    assert status.daemon.config_problem is not None
    assert status.daemon.config_problem.since == NOON
    entry = status.daemon.entry_problems["/data/*.db"]
    assert (entry.since, entry.last_at, entry.count) == (NOON, LATER, 2)
    status = with_entry_problem(with_config_problem(status, None, at=LATER), "/data/*.db", None, at=LATER)
    assert status == healthy()


def test_nothing_is_remembered_of_a_daemon_that_never_was() -> None:
    """No problem is recorded where no daemon has run that could have a configuration."""
    for change in (
        with_config_problem(Status(), DOWN, at=NOON),
        with_entry_problem(Status(), "/data/*.db", DOWN, at=NOON),
        with_daemon_stopped(Status(), at=NOON),
    ):
        assert change == Status()


def test_a_result_without_an_id_keeps_the_snapshot_that_is_known() -> None:
    """A run that found nothing to capture keeps the id of the newest snapshot."""
    unchanged = BackupResult(database="app", store=DISK, outcome=Outcome.UNCHANGED)
    assert store(recorded(healthy(), unchanged, at=LATER)).snapshot_id == str(snapshot_id())
