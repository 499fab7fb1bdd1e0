"""A store whose keys may only put, for those who plan, judge and remember; tests/iam has it on a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.statuses import BUCKET, DISK, HOUR, NOON, healthy, with_health

from backupd.config import RetentionSettings, ScheduleSettings, Settings, StoreSettings
from backupd.daemon.agenda import is_drill_missed
from backupd.doctor.configuration import StateLook, judge_state
from backupd.doctor.findings import Verdict
from backupd.doctor.mounts import Host, Mount
from backupd.doctor.times import judge_schedules
from backupd.health.judging import judge
from backupd.health.planning import Plan, with_plans
from backupd.health.values import Failure, Problem
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store import open_store
from backupd.upkeep.rotation import is_rotated_after
from backupd.upkeep.stores import RotatedStore

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.health import Status

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
    result: Any = type("Result", (), {"database": "app", "error": None})
    for put_only in (False, True):
        rotated = RotatedStore(repository, {"app": policy}, _DAYS, is_put_only=put_only)
        assert is_rotated_after(result, rotated) is not put_only


def test_what_prunes_and_drills_failed_with_ends_with_the_keys() -> None:
    """Nobody here would ever end those alarms: a hold, a prune and a drill that failed. Damage stays."""
    failure = Failure(since=NOON, count=9, last_at=NOON, message="refused", exit_code=10, is_refusal=True)
    hold = Problem(since=NOON, message="it shrank")
    status = with_health(healthy(), store=BUCKET, hold=hold, prune_failure=failure, drill_failure=failure)
    assert {alarm.kind for alarm in judge(status, now=NOON, alive_at=NOON)} == {"held", "prune-failing", "drill-failed"}
    status = _planned(status, BUCKET)
    assert judge(status, now=NOON, alive_at=NOON) == ()
    assert status.databases["app"].stores[BUCKET].is_put_only
    assert not _planned(status).databases["app"].stores[BUCKET].is_put_only
    damaged = _planned(with_health(healthy(), store=BUCKET, drill_failure=failure, is_damaged=True), BUCKET)
    assert {alarm.kind for alarm in judge(damaged, now=NOON, alive_at=NOON)} == {"damaged"}


def test_no_test_restore_is_missed_where_none_is_due() -> None:
    """Neither as an alarm nor as something to make up for; another store of the same database still wants them."""
    schedule = ScheduleSettings(drills="0 4 * * *", time_zone="Europe/Berlin")
    both = _planned(healthy(), DISK, BUCKET)
    assert not is_drill_missed([*both.databases.values()], schedule, NOON + _DAYS)
    assert "unproven" not in {alarm.kind for alarm in judge(both, now=NOON + _DAYS, alive_at=NOON + _DAYS)}
    one = _planned(healthy(), BUCKET)
    assert is_drill_missed([*one.databases.values()], schedule, NOON + _DAYS)
    assert "unproven" in {alarm.kind for alarm in judge(one, now=NOON + _DAYS, alive_at=NOON + _DAYS)}


@pytest.mark.parametrize("others", [(), (StoreSettings(url=DISK),)], ids=["alone", "beside a disk"])
def test_doctor_promises_what_this_machine_does(tmp_path: Path, others: tuple[StoreSettings, ...]) -> None:
    """No drill and no prune where every store is put-only; and with another store, where they are not."""
    settings = Settings(state_dir=tmp_path, stores=(_PUT_ONLY, *others))
    found = {finding.check: finding for finding in judge_schedules(settings, {}, datetime.now(UTC))}
    for check in ("drills", "prunes"):
        assert found[check].verdict is (Verdict.OK if others else Verdict.NOTE)
        assert "put_only" in found[check].message


def test_a_state_directory_that_goes_is_a_warning(tmp_path: Path) -> None:
    """For who cannot read packs, it is what keeps snapshots small; for others, it may go."""
    look = StateLook(tmp_path, tmp_path, exists=True, problem=None, free_bytes=10**12)
    host = Host(mounts=(Mount("/", "tmpfs", "tmpfs", is_read_only=False),), is_container=False)
    for stores, verdict in (((_PUT_ONLY,), Verdict.WARNING), ((_with_full_keys(_PUT_ONLY),), Verdict.NOTE)):
        findings = judge_state(look, Settings(state_dir=tmp_path, stores=stores), host, largest_bytes=1)
        (found,) = (finding for finding in findings if finding.check == "mount")
        assert found.verdict is verdict
        assert ("put_only" in found.message) is (verdict is Verdict.WARNING)


def _with_full_keys(store: StoreSettings) -> StoreSettings:
    """The same store with keys that may do everything."""
    return store.model_copy(update={"put_only": False})
