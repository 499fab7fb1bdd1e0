"""From the configuration to the timetable: what is to be done for each entry, and what of it was missed."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from backupd.config import missing_file
from backupd.daemon import chores
from backupd.daemon.charge import missing
from backupd.daemon.rounds import Rounds
from backupd.daemon.timetable import ONE_BY_ONE
from backupd.health import planning
from backupd.logs import log
from backupd.upkeep.drills import last_drill

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from backupd.config import DatabaseSettings, ScheduleSettings
    from backupd.daemon.charge import Charge
    from backupd.daemon.timetable import Timetable
    from backupd.health import DatabaseHealth, Status


def plan_all(charge: Charge, timetable: Timetable, status: Status) -> None:
    """Put all that is configured into the timetable, in place of what is there; what was missed comes at once.

    The status then says when each database is due and planned by this configuration, and not by the one before.
    """
    timetable.clear()
    all_rounds = [_plan_entry(entry, charge, timetable, status) for entry in charge.settings.databases]
    now = datetime.now(UTC)
    plans = {name: plan for rounds in all_rounds for name, plan in rounds.new_plans(status).items()}

    def planned(found: Status) -> Status:
        # A round that was missed is under way already, and may have found that a file has gone.
        gone = {name for name, each in found.databases.items() if each.vanished_at is not None}
        kept = {name: plan for name, plan in plans.items() if name not in gone or _had_vanished(status, name)}
        return planning.with_plans(found, kept, at=now, are_new=True)

    charge.note(planned)


def _had_vanished(status: Status, name: str) -> bool:
    return name in status.databases and status.databases[name].vanished_at is not None


def _plan_entry(entry: DatabaseSettings, charge: Charge, timetable: Timetable, status: Status) -> Rounds:
    now = datetime.now(UTC)
    schedule = charge.settings.schedule_of(entry)
    databases, _ = charge.databases(entry)
    known = [status.databases.get(each.name) for each in databases]
    rounds = Rounds(charge, entry, timetable)
    urls = [repository.url for _, repository in charge.repositories]
    # Where every store is put-only, nothing can be restored to test or pruned from here: it is not promised either.
    has_full_keys = any(not store.put_only for store, _ in charge.repositories)
    is_lost = missing_file(entry) is not None or bool(missing(entry, databases, status))
    is_missed = is_lost or is_round_missed(known, urls, schedule, now)
    for kind, call, times, comes_at_once in (
        ("snapshots", rounds.run, schedule.snapshots, is_missed),
        ("drills", partial(chores.run_drills, charge, entry), schedule.drills, is_drill_missed(known, schedule, now)),
        ("prunes", partial(chores.run_prunes, charge, entry), schedule.prunes, False),
    ):
        if times is not None and (has_full_keys or kind == "snapshots"):
            key = f"{kind} {entry.path}"
            timetable.add(
                key,
                call,
                times,
                schedule.zone,
                jitter=schedule.latest_start,
                is_missed=comes_at_once,
                queue=kind if kind in ONE_BY_ONE else "default",
            )
            log.info(
                "planned",
                what=kind,
                path=entry.path,
                schedule=str(times),
                next_run_at=timetable.next_at(key),
                is_missed=comes_at_once,
            )
    return rounds


def is_round_missed(
    known: Sequence[DatabaseHealth | None], urls: Collection[str], schedule: ScheduleSettings, now: datetime
) -> bool:
    """Whether a database of an entry should have been looked at by `now` (aware) and was not, or failed then.

    `urls` are the stores. A database or store that is not known yet was missed, and so is an entry without databases:
    that is to be told.
    """
    if not known:
        return True
    for database in known:
        if database is None or not database.stores.keys() >= set(urls):
            return True
        for health in database.stores.values():
            if health.failure is not None or health.current_at is None or health.current_at > now:
                return True
            if schedule.snapshots.is_missed(health.current_at, now, schedule.zone):
                return True
    return False


def is_drill_missed(known: Sequence[DatabaseHealth | None], schedule: ScheduleSettings, now: datetime) -> bool:
    """Whether a database with a snapshot should have had a drill by `now` (aware) since its last one, or its first."""
    if schedule.drills is None:
        return False
    for database in known:
        stores = [health for health in database.stores.values() if not health.is_put_only] if database else []
        drilled_at = max((at for health in stores if (at := last_drill(health)) is not None), default=None)
        first_at = min((health.snapshot_at for health in stores if health.snapshot_at is not None), default=None)
        since = drilled_at or first_at
        if since is not None and schedule.drills.is_missed(min(since, now), now, schedule.zone):
            return True
    return False
