"""Changes of the status by what the daemon plans and how it runs. Pure, as `recording` is; `at` is now."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from backupd.health.values import (
    DaemonHealth,
    DatabaseHealth,
    Status,
    StoreHealth,
    next_failure,
    next_problem,
    with_database,
    with_databases,
    with_stores,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping
    from datetime import datetime

    from backupd.errors import BackupdError

    _Due = Callable[["Plan", datetime], datetime]

_VANISHED_ARE_REMEMBERED_FOR = timedelta(days=7)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of the daemon for one database."""

    path: os.PathLike[str] | str
    stores: tuple[str, ...]
    """The URLs of its stores."""
    put_only: frozenset[str] = frozenset()
    """The stores whose keys on this machine can neither delete nor read packs."""
    next_run_at: datetime | None
    next_drill_at: datetime | None = None
    proof_due_after: Callable[[datetime], datetime | None] = lambda _: None
    """When a drill must have succeeded again, in any store, after one did at a given time; None when none is due."""
    due_after: Callable[[datetime], datetime]
    """When a database that was current at a given time must be current again: the schedule's next run, and the grace.

    Share one object between the databases of an entry: each time is then worked out only once.
    """


def with_running(status: Status, name: str, *, since: datetime | None) -> Status:
    """Note that a run of a database has begun, or (None) is over."""
    return with_database(status, name, lambda database: replace(database, running_since=since))


def with_plans(status: Status, plans: Mapping[str, Plan], *, at: datetime, are_new: bool = False) -> Status:
    """Note what the daemon plans for these databases: new ones, and ones whose schedule or stores may have changed.

    The deadline of each store follows from when it was current last, otherwise from when the daemon began to back up
    into it: restarts must not move it again and again. What a shorter schedule alone has made late gets as long as that
    schedule allows. A store that is not in the plan is forgotten. `are_new`: the daemon has started, or has read the
    configuration again; then proofs, too, are due by the present schedule.
    """
    known: dict[tuple[object, datetime], datetime] = {}

    def due(plan: Plan, moment: datetime) -> datetime:
        # A cron expression takes 0.2 ms. The databases of one entry share it, and mostly the moment too.
        key = plan.due_after, moment
        if key not in known:
            known[key] = plan.due_after(moment)
        return known[key]

    return with_databases(
        status,
        {name: _planned(status.databases.get(name), plan, at, due, is_new=are_new) for name, plan in plans.items()},
    )


def without_others(status: Status, names: Collection[str]) -> Status:
    """Forget all databases but `names`: they are not configured any more."""
    return _with_databases_that(status, lambda name, _: name in names)


def without_other_entries(status: Status, patterns: Collection[str]) -> Status:
    """Forget the problems of all [[databases]] entries but `patterns`: they are not configured any more."""
    if status.daemon is None:
        return status
    problems = status.daemon.entry_problems
    kept = {pattern: failure for pattern, failure in problems.items() if pattern in patterns}
    return status if len(kept) == len(problems) else replace(status, daemon=replace(status.daemon, entry_problems=kept))


def with_vanished(status: Status, names: Iterable[str], *, at: datetime) -> Status:
    """Note that a pattern does not find these files any more. A week later, a database that stays away is forgotten."""
    status = with_databases(
        status,
        {
            name: replace(database, vanished_at=at, next_run_at=None, next_drill_at=None, running_since=None)
            for name in names
            if (database := status.databases.get(name)) is not None and database.vanished_at is None
        },
    )
    return _with_databases_that(status, lambda _, database: not _is_long_gone(database, at))


def _is_long_gone(database: DatabaseHealth, at: datetime) -> bool:
    return database.vanished_at is not None and at - database.vanished_at >= _VANISHED_ARE_REMEMBERED_FOR


def _with_databases_that(status: Status, is_kept: Callable[[str, DatabaseHealth], bool]) -> Status:
    kept = {name: database for name, database in status.databases.items() if is_kept(name, database)}
    return status if len(kept) == len(status.databases) else replace(status, databases=kept)


def with_daemon(status: Status, *, pid: int, version: str, at: datetime) -> Status:
    """Note that a daemon has started: nothing that an earlier one had begun is running."""
    idle = {
        name: replace(database, running_since=None)
        for name, database in status.databases.items()
        if database.running_since is not None
    }
    return replace(with_databases(status, idle), daemon=DaemonHealth(pid=pid, version=version, started_at=at))


def with_daemon_stopped(status: Status, *, at: datetime) -> Status:
    """Note that the daemon has ended regularly."""
    return status if status.daemon is None else replace(status, daemon=replace(status.daemon, stopped_at=at))


def with_config_problem(status: Status, error: BackupdError | None, *, at: datetime) -> Status:
    """Note that a changed configuration was refused, or (None) accepted."""
    if status.daemon is None:
        return status
    problem = None if error is None else next_problem(status.daemon.config_problem, error, at)
    return replace(status, daemon=replace(status.daemon, config_problem=problem))


def with_entry_problem(status: Status, pattern: str, error: BackupdError | None, *, at: datetime) -> Status:
    """Note that a [[databases]] entry, known by its path, gives no databases, or (None) does again."""
    if status.daemon is None:
        return status
    problems = dict(status.daemon.entry_problems)
    failure = next_failure(problems.pop(pattern, None), error, at)
    if failure is not None:
        problems[pattern] = failure
    return replace(status, daemon=replace(status.daemon, entry_problems=problems))


def _planned(database: DatabaseHealth | None, plan: Plan, at: datetime, due: _Due, *, is_new: bool) -> DatabaseHealth:
    known = database.stores if database else {}
    has_drills = plan.next_drill_at is not None

    def planned(url: str, health: StoreHealth) -> StoreHealth:
        health = _with_put_only(health, is_so=url in plan.put_only)
        if is_new and not has_drills:
            health = _without_failed_drill(health)
        planned_since = min(health.planned_since or health.current_at or at, at)
        fresh = due(plan, health.current_at or planned_since)
        due_by = _deadline(health.due_by, fresh, at, lambda: due(plan, at))
        return replace(health, planned_since=planned_since, due_by=due_by)

    stores = {url: planned(url, known.get(url) or StoreHealth()) for url in plan.stores}
    return replace(
        database or DatabaseHealth(path=str(plan.path)),
        path=str(plan.path),
        is_scheduled=True,
        next_run_at=plan.next_run_at,
        next_drill_at=plan.next_drill_at,
        proof_due_by=_proof_due_by(database.proof_due_by if database else None, stores, plan, at, is_new=is_new),
        vanished_at=None,
        stores=stores,
    )


def _deadline(before: datetime | None, fresh: datetime, at: datetime, from_now: Callable[[], datetime]) -> datetime:
    """Return the deadline `fresh` of the present plan, in place of the earlier one `before`.

    If it is over and the earlier one is not, it is so by the new plan alone: work by that plan has only begun. It is
    put off once and no more, or a daemon that restarts all the time would never be late.
    """
    if fresh > at or (before is not None and before <= at):
        return fresh
    return from_now() if before is None else min(before, from_now())


def _proof_due_by(
    earlier: datetime | None, stores: Mapping[str, StoreHealth], plan: Plan, at: datetime, *, is_new: bool
) -> datetime | None:
    """Return the next deadline after the last proof, or without one, after the daemon began to back up the database.

    Unless the plan is new, a deadline that is not over stays as it is: each drill sets it again, and a thousand
    schedules take long to work out.
    """
    if plan.next_drill_at is None or plan.put_only.issuperset(plan.stores):
        return None
    if earlier is not None and earlier > at and not is_new:
        return earlier
    proofs = [moment for health in stores.values() for moment in health.proofs_at]
    begun = [health.planned_since for health in stores.values() if health.planned_since is not None]
    # A proof that is dated in the future comes from a wrong clock.
    since = max((moment for moment in proofs if moment <= at), default=min(begun, default=at))
    fresh = plan.proof_due_after(min(since, at))
    return None if fresh is None else _deadline(earlier, fresh, at, lambda: plan.proof_due_after(at) or fresh)


def _without_failed_drill(health: StoreHealth) -> StoreHealth:
    """Forget why the last drill failed, which would never end where none is planned. Damage that it found stays."""
    is_found = health.is_damaged or health.is_source_damaged
    return health if is_found else replace(health, drill_failure=None)


def with_put_only(status: Status, name: str, stores: Mapping[str, bool]) -> Status:
    """Note for these stores (URLs) of a database whether the keys can neither delete nor read packs."""
    for url, is_so in stores.items():
        status = with_stores(status, {name: url}, partial(_with_put_only, is_so=is_so))
    return status


def _with_put_only(health: StoreHealth, *, is_so: bool) -> StoreHealth:
    """Forget why the last prune or drill failed, which would never end where neither is done any more.

    Damage stays: a snapshot, or a drill on another machine, ends it.
    """
    if not is_so or health.is_put_only:
        return replace(health, is_put_only=is_so)
    drill_failure = health.drill_failure if health.is_damaged else None
    return replace(health, is_put_only=True, hold=None, prune_failure=None, drill_failure=drill_failure)
