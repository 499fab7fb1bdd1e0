"""Rounds of snapshots: one entry of the configuration at a time, its databases as they are found at that moment.

A round decides quickly, and hands what takes long to `Runs`: no database waits for another one, and no round for an
earlier one.
"""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backupd.config import Database, missing_file_error
from backupd.daemon.discovery import missing_databases
from backupd.daemon.reachability import plan_round
from backupd.daemon.retries import EntryRetries
from backupd.daemon.work import back_up_database, run_drill
from backupd.errors import (
    AnotherRunError,
    BackupdError,
    InterruptedByUserError,
    MissingDatabaseError,
    SourceUnusableError,
)
from backupd.health import planning, recording
from backupd.health.alarms import LOOKS_THAT_MAY_FIND_NOTHING
from backupd.health.heartbeats import Heartbeats
from backupd.jobs.configured import ConfiguredDatabase, ProofDeadlines
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from backupd.config import DatabaseSettings
    from backupd.daemon.reachability import RoundPlan
    from backupd.daemon.timetable import Timetable
    from backupd.daemon.work import Context
    from backupd.health import Status
    from backupd.jobs.configured import ConfiguredStore


@dataclass(frozen=True, slots=True, kw_only=True)
class _Findings:
    """The findings of a round at its beginning."""

    at: datetime
    before: Status
    databases: Sequence[ConfiguredDatabase]
    """All databases of the entry."""
    asked_for: Sequence[ConfiguredDatabase]
    """The databases that the round is about: none while the entry's file is missing."""
    stores: Sequence[ConfiguredStore]
    waiting: Mapping[str, BackupdError]
    """By name, what the databases failed with that it is too early to try again."""
    problem: BackupdError | None
    """Why the entry lacks a database, or has none at all."""
    is_missing: bool
    """Whether that is because a file does not exist yet."""


class SnapshotRounds:
    """The rounds of one entry: by its schedule and, after failures, between its times."""

    def __init__(self, context: Context, entry: DatabaseSettings, timetable: Timetable) -> None:
        self._context = context
        self._entry = entry
        self._timetable = timetable
        self._retries = EntryRetries(
            entry.path,
            timetable,
            context.settings.daemon.retry_after,
            retry=self._round,
            is_over=context.superseded.is_set,
        )
        self._vain_looks = 0  # in a row, for a file that is missing
        self._known_ids: Mapping[str, str] = {}
        # Two rounds at once (a retry beside the scheduled one) would decide by the same status.
        self._turn = threading.Lock()

    @property
    def key(self) -> str:
        """The timetable's key for the scheduled rounds."""
        return f"snapshots {self._entry.path}"

    def run(self) -> None:
        """Do the scheduled round, over all databases of the entry."""
        self._retries.reset()
        self._round(None, is_scheduled=True)

    def new_plans(self, status: Status) -> dict[str, planning.Plan]:
        """Return what this configuration plans for each database of the entry, also for those that are missing."""
        inventory = self._context.discovery.now()
        databases, _ = inventory.databases(self._entry)
        schedule = self._context.settings.schedule_of(self._entry)
        missing = [
            ConfiguredDatabase(Database(name, Path(status.databases[name].path)), schedule)
            for name in missing_databases(self._entry, databases, status)
        ]
        return self._plans([*databases, *missing], inventory.stores)

    def _plans(
        self, databases: Sequence[ConfiguredDatabase], stores: Sequence[ConfiguredStore]
    ) -> dict[str, planning.Plan]:
        if not databases:
            return {}
        # The databases of one entry share its schedule. For a thousand of them, nearly all current at the same moment,
        # each deadline is worked out once.
        first, grace = databases[0], self._context.settings.health.grace
        plan = planning.Plan(
            path=first.database.path,
            stores=tuple(store.url for store in stores),
            put_only=frozenset(store.url for store in stores if store.is_put_only),
            next_run_at=self._timetable.next_at(self.key),
            next_drill_at=self._timetable.next_at(f"drills {self._entry.path}"),
            proof_due_after=ProofDeadlines(first, grace).after,
            due_after=functools.cache(partial(first.due_after, grace=grace)),
        )
        return {each.name: replace(plan, path=each.database.path) for each in databases}

    def _round(self, only: Collection[str] | None, *, is_scheduled: bool = False) -> None:
        try:
            with self._turn:
                self._go_round(only, is_scheduled=is_scheduled)
        except InterruptedByUserError:
            return
        except Exception as error:  # noqa: BLE001  (a round that is lost must be seen, and made up for)
            problem, now = log.unexpected(error, path=self._entry.path), datetime.now(UTC)
            self._context.status.update_or_log(
                lambda status: planning.with_entry_problem(status, self._entry.shown_path, problem, at=now)
            )
            self._retries.want_look()

    def _go_round(self, only: Collection[str] | None, *, is_scheduled: bool) -> None:
        found = self._look(only)
        is_reported = self._is_reported(found, is_scheduled=is_scheduled)
        work = _RoundWork(self._context.heartbeats if is_reported else Heartbeats(()), self._retries, found)
        plan = self._decide(found, is_partial=only is not None)
        if self._context.superseded.is_set():  # another configuration may have taken this entry out meanwhile
            return
        if self._context.following is not None:  # the databases of a pattern come and go
            inventory, superseded = self._context.discovery.now(), self._context.superseded
            self._context.following.configure(self._context.settings, inventory, superseded=superseded)
        problem = self._record(found, plan)
        if problem is not None and is_reported:
            log.error("databases not found", path=self._entry.path, error=problem.values())
        elif problem is not None and self._vain_looks == 1:
            log.info("waiting for the application to create it", path=self._entry.path, found=problem.message)
        _log_plan(self._entry.path, plan)
        self._watch_for_vanished(found.databases)
        work.start_all(plan, self._context, partial(drill_soon, self._context, self._timetable))
        if problem is not None:
            self._retries.want_look()
        work.all_begun()
        self._context.wake()

    def _look(self, only: Collection[str] | None) -> _Findings:
        """Search the patterns, once for the whole round, and choose its databases: these names, or (None) all."""
        now = datetime.now(UTC)
        inventory = self._context.discovery.now()
        databases, problem = inventory.databases(self._entry)
        problem = problem or missing_file_error(self._entry)
        is_missing = isinstance(problem, MissingDatabaseError)
        return _Findings(
            at=now,
            before=self._context.status.read(),
            databases=databases,
            asked_for=[] if is_missing else [each for each in databases if only is None or each.name in only],
            stores=inventory.stores,
            waiting=self._retries.waiting(now=now),
            problem=problem,
            is_missing=is_missing,
        )

    def _is_reported(self, found: _Findings, *, is_scheduled: bool) -> bool:
        """Whether this round is logged and sends heartbeats. Searches for a missing file do so once that is an alarm.

        Until then, the application is about to create it.
        """
        if not found.is_missing:
            self._vain_looks = 0
            return True
        daemon = found.before.daemon
        known = daemon.entry_problems.get(self._entry.shown_path) if daemon else None
        self._vain_looks = 1 + max(self._vain_looks, known.count if known else 0)
        is_awaited = self._vain_looks <= LOOKS_THAT_MAY_FIND_NOTHING
        return not is_awaited and (is_scheduled or self._vain_looks == LOOKS_THAT_MAY_FIND_NOTHING + 1)

    def _decide(self, found: _Findings, *, is_partial: bool) -> RoundPlan:
        """Ask the stores, and decide what each database needs. A look for a file that is missing asks no store."""
        ready = [each for each in found.asked_for if each.name not in found.waiting]
        stores = found.stores if ready else []
        answers = self._context.reachability.ask(stores)
        plan = plan_round(ready, stores, answers, self._known_ids, found.before, now=found.at)
        # After a partial round, the other databases have not been looked for in a repository that is new.
        if stores and not is_partial and not self._context.superseded.is_set():
            self._known_ids = {url: found_id for url, found_id in answers.ids.items() if found_id is not None}
        return plan

    def _record(self, found: _Findings, plan: RoundPlan) -> BackupdError | None:
        """Note everything that this round found in one change of the status, and return the entry's problem."""
        missing = missing_databases(self._entry, found.databases, found.before)
        # When a pattern finds nothing at all, the volume may not be mounted: that does not mean that files are gone.
        gone = [name for name, reason in missing.items() if reason is None] if found.databases else []
        problem = found.problem or _unreachable(missing, found.before)
        plans = self._plans(found.databases, found.stores)

        def recorded(status: Status) -> Status:
            if self._context.superseded.is_set():
                return status
            status = planning.with_entry_problem(status, self._entry.shown_path, problem, at=found.at)
            status = planning.with_vanished(status, gone, at=found.at)
            status = planning.with_plans(status, plans, at=found.at)
            for url, names in plan.seen.items():
                status = recording.with_seen(status, url, names, at=found.at)
            if plan.unchanged:
                due_by = next(iter(plans.values())).due_after(found.at)
                status = recording.with_all_unchanged(status, plan.unchanged, at=found.at, due_by=due_by)
            return recording.with_down(status, plan.down, at=found.at)

        self._context.status.update_or_log(recorded)
        return problem

    def _watch_for_vanished(self, databases: Sequence[ConfiguredDatabase]) -> None:
        known = self._context.status.read()
        missing = missing_databases(self._entry, databases, known, with_vanished=True)
        vanished = [known.databases[name] for name in missing if known.databases[name].vanished_at is not None]
        self._retries.watch([Path(database.path) for database in vanished])


def drill_soon(context: Context, timetable: Timetable, configured: ConfiguredDatabase) -> None:
    """Plan a drill of one database for now, if drills of it are scheduled at all."""
    if configured.schedule.drills is not None:
        call = partial(run_drill, context, configured)
        timetable.add_once(f"drill {configured.name}", call, datetime.now(UTC), queue="drills")


class _RoundWork:
    """The databases of one round: starts their snapshots, and reports to the heartbeats how each and the round end.

    Snapshots end in threads of their own.
    """

    def __init__(self, heartbeats: Heartbeats, retries: EntryRetries, found: _Findings) -> None:
        self._heartbeats = heartbeats
        self._retries = retries
        self._found = found
        names = [each.name for each in (found.databases if found.is_missing else found.asked_for)]
        self._lock = threading.Lock()
        self._waiting = len(names) + 1
        self._error = found.problem
        for name in (None, *names):
            heartbeats.started(name)

    def start_all(self, plan: RoundPlan, context: Context, drill_soon: Callable[[ConfiguredDatabase], None]) -> None:
        """Have each database backed up that needs it. A snapshot that is being taken already counts for this round."""
        if self._found.is_missing:
            for configured in self._found.databases:
                self._ended(configured.name, self._found.problem)
        for configured in self._found.asked_for:
            name = configured.name
            if name in self._found.waiting:
                self._ended(name, self._found.waiting[name])
            elif name in plan.wanting:
                run = partial(back_up_database, configured, plan.wanting[name], context, drill_soon=drill_soon)
                on_end = partial(self._run_ended, name, plan.error_of(name), context.wake)
                context.runs.start(name, run, on_end, plan=context.superseded)
            else:
                self._attempt_ended(name, plan.error_of(name))

    def all_begun(self) -> None:
        """Let the round end when its last database has."""
        self._count(None)

    def _run_ended(
        self, name: str, down: BackupdError | None, wake: Callable[[], None], error: BackupdError | None
    ) -> None:
        """`down` is why another of its stores could not even be asked."""
        self._attempt_ended(name, error or down)
        wake()

    def _attempt_ended(self, name: str, error: BackupdError | None) -> None:
        # That another run is working on it is no failure, neither here nor in the status; but it is tried again.
        self._ended(name, None if isinstance(error, AnotherRunError) else error)
        self._retries.ended(name, error)

    def _ended(self, name: str, error: BackupdError | None) -> None:
        self._heartbeats.finished(name, error)
        self._count(error)

    def _count(self, error: BackupdError | None) -> None:
        with self._lock:
            self._waiting -= 1
            self._error = self._error or error
            is_over = not self._waiting
        if is_over:
            self._heartbeats.finished(None, self._error)


def _log_plan(path: str, plan: RoundPlan) -> None:
    down = {url: error for errors in plan.down.values() for url, error in errors}
    for url, error in down.items():
        names = [name for name, errors in plan.down.items() if url in dict(errors)]
        log.error("store not asked", store=url, databases=len(names), error=error.values())
    unchanged = [name for name in plan.unchanged if name not in plan.wanting and name not in plan.down]
    if unchanged:
        log.info("nothing changed", databases=len(unchanged), path=path)


def _unreachable(missing: Mapping[str, OSError | None], status: Status) -> BackupdError | None:
    """Return why the first of the missing files that are not simply gone cannot be backed up."""
    for name, reason in missing.items():
        if reason is not None:
            return SourceUnusableError(
                f"{status.databases[name].path} cannot be reached any more: {reason.strerror}",
                hint=f"check its directory's owner and mode: backupd runs as uid {os.geteuid()}",
            )
    return None
