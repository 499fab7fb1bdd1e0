"""A store whose keys may only put, in plans, checks and the status; tests/iam has it on a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.statuses import BUCKET, DISK, HOUR, NOON, alarms_of, healthy, with_health

from backupd.backup import BackupResult, Outcome
from backupd.config import RetentionSettings, ScheduleSettings, Settings, StoreSettings
from backupd.daemon.timetable import is_drill_missed
from backupd.doctor.directories import StateFacts, check_state
from backupd.doctor.findings import Verdict
from backupd.doctor.unattended import check_schedules
from backupd.health import Status
from backupd.health.planning import Plan, with_plans
from backupd.health.values import DatabaseHealth, Failure, Problem, StoreHealth
from backupd.jobs.configured import ConfiguredStore
from backupd.jobs.prunes import is_pruned_after
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import open_store
from backupd.system.mounts import Host, Mount

if TYPE_CHECKING:
    from pathlib import Path

_PUT_ONLY = StoreSettings(url=BUCKET, put_only=True)
_DAYS = timedelta(days=30)


def _planned(status: Status, *put_only: str, at: datetime = NOON) -> Status:
    plan = Plan(
        path="/app.db",
        stores=(DISK, BUCKET),
        put_only=frozenset(put_only),
        next_run_at=None,
        next_drill_at=NOON + HOUR,
        due_after=lambda moment: moment + _DAYS * 9,
        proof_due_after=lambda moment: moment + HOUR,
    )
    return with_plans(status, {"app": plan}, at=at)


def test_nothing_is_pruned_after_a_snapshot(tmp_path: Path) -> None:
    """The policy would want it; the keys cannot."""
    repository = Repository(open_store(StoreSettings(url=str(tmp_path))), StateDirectory(tmp_path / "state"))
    policy = RetentionSettings(after_snapshot=True)
    result = BackupResult(database="app", store=str(tmp_path), outcome=Outcome.CREATED)
    for put_only in (False, True):
        store = ConfiguredStore(repository, {"app": policy}, _DAYS, is_put_only=put_only)
        assert is_pruned_after(result, store, Status()) is not put_only


def test_a_run_that_found_nothing_new_is_followed_by_a_prune_once_a_day_has_passed(tmp_path: Path) -> None:
    """The last prune still holds then; one that failed or was held is made up for, and so is one that is not known."""
    repository = Repository(open_store(StoreSettings(url=str(tmp_path))), StateDirectory(tmp_path / "state"))
    store = ConfiguredStore(repository, {"app": RetentionSettings()}, _DAYS)
    now = datetime.now(UTC)

    def follows(outcome: Outcome, **health: Any) -> bool:
        known = StoreHealth(**{"snapshot_at": now - HOUR, **health})
        status = Status(databases={"app": DatabaseHealth(path="/app.db", stores={str(tmp_path): known})})
        return is_pruned_after(BackupResult(database="app", store=str(tmp_path), outcome=outcome), store, status)

    assert follows(Outcome.CREATED)
    assert not follows(Outcome.UNCHANGED)
    assert follows(Outcome.UNCHANGED, snapshot_at=now - 25 * HOUR)
    assert follows(Outcome.UNCHANGED, snapshot_at=None)
    assert not follows(Outcome.UNCHANGED, snapshot_at=now - 90 * HOUR, pruned_at=now - HOUR)
    assert follows(Outcome.UNCHANGED, snapshot_at=now - 90 * HOUR, pruned_at=now - 25 * HOUR)
    assert follows(Outcome.UNCHANGED, hold=Problem(since=now, message="it shrank"))
    failure = Failure(since=now, count=1, last_at=now, message="refused", exit_code=10, is_refusal=True)
    assert follows(Outcome.UNCHANGED, prune_failure=failure)


def test_failures_of_prunes_and_drills_end_when_the_keys_become_put_only() -> None:
    """Put-only keys end the alarms of prunes and drills, which never run again here; damage stays."""
    failure = Failure(since=NOON, count=9, last_at=NOON, message="refused", exit_code=10, is_refusal=True)
    hold = Problem(since=NOON, message="it shrank")
    status = with_health(healthy(), store=BUCKET, hold=hold, prune_failure=failure, drill_failure=failure)
    assert {alarm.kind for alarm in alarms_of(status, NOON)} == {
        "held",
        "prune-failing",
        "drill-failed",
    }
    status = _planned(status, BUCKET)
    assert alarms_of(status, NOON) == ()
    assert status.databases["app"].stores[BUCKET].is_put_only
    assert not _planned(status).databases["app"].stores[BUCKET].is_put_only
    damaged = _planned(with_health(healthy(), store=BUCKET, drill_failure=failure, is_damaged=True), BUCKET)
    assert {alarm.kind for alarm in alarms_of(damaged, NOON)} == {"damaged"}


def test_no_test_restore_is_missed_where_none_is_due() -> None:
    """A put-only store misses no test restore; another store of the same database still does."""
    schedule = ScheduleSettings(drills="0 4 * * *", time_zone="Europe/Berlin")
    both = _planned(healthy(), DISK, BUCKET)
    assert not is_drill_missed([*both.databases.values()], schedule, NOON + _DAYS)
    assert "unproven" not in {alarm.kind for alarm in alarms_of(both, NOON + _DAYS)}
    one = _planned(healthy(), BUCKET)
    assert is_drill_missed([*one.databases.values()], schedule, NOON + _DAYS)
    assert "unproven" in {alarm.kind for alarm in alarms_of(one, NOON + _DAYS)}


@pytest.mark.parametrize("others", [(), (StoreSettings(url=DISK),)], ids=["alone", "beside a disk"])
def test_doctor_shows_drills_and_prunes_of_other_stores_only(tmp_path: Path, others: tuple[StoreSettings, ...]) -> None:
    """The doctor shows no drill and no prune if every store is put-only."""
    settings = Settings(state_dir=tmp_path, stores=(_PUT_ONLY, *others))
    found = {finding.check: finding for finding in check_schedules(settings, {}, datetime.now(UTC))}
    for check in ("drills", "prunes"):
        assert found[check].verdict is (Verdict.OK if others else Verdict.NOTE)
        assert "put_only" in found[check].message


def test_a_state_directory_that_goes_is_a_warning(tmp_path: Path) -> None:
    """A state directory that does not last is a warning with put-only keys, and a note with others."""
    look = StateFacts(tmp_path, tmp_path, exists=True, problem=None, free_bytes=10**12)
    host = Host(mounts=(Mount("/", "tmpfs", "tmpfs", is_read_only=False),), is_container=False)
    for stores, verdict in (((_PUT_ONLY,), Verdict.WARNING), ((_with_full_keys(_PUT_ONLY),), Verdict.NOTE)):
        findings = check_state(look, Settings(state_dir=tmp_path, stores=stores), host, largest_bytes=1)
        (found,) = (finding for finding in findings if finding.check == "mount")
        assert found.verdict is verdict
        assert ("put_only" in found.message) is (verdict is Verdict.WARNING)


def _with_full_keys(store: StoreSettings) -> StoreSettings:
    """Return the same store with keys that may do everything."""
    return store.replaced(put_only=False)
