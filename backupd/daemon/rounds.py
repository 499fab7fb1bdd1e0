"""Rounds of snapshots: one entry of the configuration at a time, its databases as they are found at that moment.

A round decides quickly, and hands on what takes long: no database waits for another one's, nor the next round for this.
"""

from __future__ import annotations

import functools
import os
import threading
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backupd.config import Database, missing_file
from backupd.daemon.asking import plan_round
from backupd.daemon.charge import missing
from backupd.daemon.chores import run_drill
from backupd.daemon.retries import BackOff, Retries
from backupd.daemon.runs import ran_out_of_time
from backupd.daemon.snapshots import look_after
from backupd.errors import (
    AnotherRunError,
    BackupdError,
    InterruptedByUserError,
    MissingDatabaseError,
    SourceUnusableError,
)
from backupd.health import planning, recording
from backupd.health.heartbeats import Heartbeats
from backupd.health.judging import LOOKS_THAT_MAY_FIND_NOTHING
from backupd.logs import log
from backupd.upkeep.configured import Configured, ProofsDue

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from backupd.config import DatabaseSettings
    from backupd.daemon.asking import Round
    from backupd.daemon.charge import Charge
    from backupd.daemon.timetable import Timetable
    from backupd.health import Status
    from backupd.upkeep.stores import RotatedStore

# What is noted as failed when a file is missing, or cannot be a database: there is no name for that.
_NOT_FOUND = ""
_LOOK_AT_LEAST_EVERY = timedelta(seconds=30)


class Rounds:
    """The rounds of one entry: by its schedule and, after failures, between its times."""

    def __init__(self, charge: Charge, entry: DatabaseSettings, timetable: Timetable) -> None:
        self._charge = charge
        self._entry = entry
        self._timetable = timetable
        self._retries = Retries(charge.settings.daemon.retry_after)
        self._looks = 0  # for a missing file, in vain, one after the other
        self._back_off = BackOff(charge.settings.daemon.retry_after)
        self._known_ids: Mapping[str, str] = {}
        # Two rounds at once (a retry beside the scheduled one) would decide by the same status.
        self._turn = threading.Lock()

    @property
    def key(self) -> str:
        """What the timetable knows this entry's rounds by."""
        return f"snapshots {self._entry.path}"

    @property
    def _retry_key(self) -> str:
        return f"retry {self._entry.path}"

    @property
    def _look_key(self) -> str:
        return f"look {self._entry.path}"

    def run(self) -> None:
        """The scheduled round, over all databases of the entry."""
        self._timetable.remove(self._retry_key)
        self._retries.begin_anew()
        self._round(None, is_scheduled=True)

    def _retry(self) -> None:
        names = self._retries.take()
        if names:  # a scheduled round may have taken them up at the same moment
            self._round(None if _NOT_FOUND in names else names)

    def _round(self, only: Collection[str] | None, *, is_scheduled: bool = False) -> None:
        try:
            self._go_round(only, is_scheduled=is_scheduled)
        except InterruptedByUserError:
            return
        except Exception as error:  # noqa: BLE001  (a round that is lost must be seen, and made up for)
            failed, now = log.unexpected(error, path=self._entry.path), datetime.now(UTC)
            self._charge.note(
                lambda status: planning.with_entry_problem(status, self._entry.shown_path, failed, at=now)
            )
            self._want_retry(_NOT_FOUND)

    def _go_round(self, only: Collection[str] | None, *, is_scheduled: bool) -> None:
        with self._turn:
            now = datetime.now(UTC)
            sight = self._charge.look()
            databases, problem = sight.databases(self._entry)
            problem = problem or missing_file(self._entry)
            is_missing = isinstance(problem, MissingDatabaseError)
            asked_for = [] if is_missing else [each for each in databases if only is None or each.name in only]
            waiting = self._back_off.waiting(now=now)
            meant = [each for each in asked_for if each.name not in waiting]
            before = self._charge.status.read()
            is_told = self._is_told(problem, before, is_scheduled=is_scheduled)
            heartbeats = self._charge.heartbeats if is_told else Heartbeats(())
            end = _RoundEnd(heartbeats, [each.name for each in (databases if is_missing else asked_for)], problem)
            stores = sight.stores if meant else []  # a look for a file that is missing asks no store
            answers = self._charge.questions.ask(stores)
            plan = plan_round(meant, stores, answers, self._known_ids, before, now=now)
            if self._charge.is_over.is_set():  # another configuration may have taken this entry out meanwhile
                return
            # The databases that a retry leaves out have not been asked for in a new repository.
            if only is None and stores:
                self._known_ids = {url: found for url, found in answers.ids.items() if found is not None}
            lost = missing(self._entry, databases, before)
            gone = [name for name, reason in lost.items() if reason is None] if databases else []
            problem = problem or _out_of_reach(lost, before)
            self._record(databases, plan, problem, gone, now)
            self._log(plan, problem, is_told=is_told)
            self._look_for_vanished(databases)
        for configured in databases if is_missing else ():
            end.finished(configured.name, problem)
        for configured in asked_for:
            error = waiting.get(configured.name) or plan.error_of(configured.name)
            if configured.name in waiting:
                end.finished(configured.name, error)
            elif wanting := plan.wanting.get(configured.name):
                self._start(configured, wanting, error, end)
            else:
                self._finish(configured.name, error, end)
        if problem is not None:
            self._want_retry(_NOT_FOUND)
        end.all_begun()
        self._charge.wake()

    def _is_told(self, problem: BackupdError | None, before: Status, *, is_scheduled: bool) -> bool:
        """Whether a round with this problem is news: looks for a missing file are, when it becomes an alarm.

        Until then, the application is about to make it.
        """
        if not isinstance(problem, MissingDatabaseError):
            self._looks = 0
            return True
        known = before.daemon and before.daemon.entry_problems.get(self._entry.shown_path)
        self._looks = 1 + max(self._looks, known.count if known else 0)
        is_awaited = self._looks <= LOOKS_THAT_MAY_FIND_NOTHING
        return not is_awaited and (is_scheduled or self._looks == LOOKS_THAT_MAY_FIND_NOTHING + 1)

    def _look_for_vanished(self, databases: Sequence[Configured]) -> None:
        """Have a round soon after a file that had vanished is there again. Until then, looking costs a `stat` each."""
        status = self._charge.status.read()
        lost = missing(self._entry, databases, status, with_vanished=True)
        paths = [Path(status.databases[name].path) for name in lost if status.databases[name].vanished_at is not None]

        def look() -> None:
            if any(os.path.exists(path) for path in paths):  # noqa: PTH110  (Path.exists raises where it may not look)
                self._round(None)
            elif not self._charge.is_over.is_set():
                self._timetable.add_once(self._look_key, look, datetime.now(UTC) + _LOOK_AT_LEAST_EVERY)

        if paths:
            self._timetable.add_once(self._look_key, look, datetime.now(UTC) + _LOOK_AT_LEAST_EVERY)

    def _start(
        self, configured: Configured, stores: Sequence[RotatedStore], error: BackupdError | None, end: _RoundEnd
    ) -> None:
        """Have a snapshot taken as soon as there is room; one that is going on counts for this round too.

        `error` is what another of its stores failed with already.
        """

        def on_end(failed: BackupdError | None) -> None:
            self._finish(configured.name, failed or error, end)
            self._charge.wake()

        run = partial(look_after, configured, stores, self._charge, drill_soon=self._drill_soon)
        self._charge.runs.start(configured.name, run, on_end, plan=self._charge.is_over)

    def _drill_soon(self, configured: Configured) -> None:
        if configured.schedule.drills is not None:
            call = partial(run_drill, self._charge, configured)
            self._timetable.add_once(f"drill {configured.name}", call, datetime.now(UTC), queue="drills")

    def _finish(self, name: str, error: BackupdError | None, end: _RoundEnd) -> None:
        # That somebody else is at work on it is no failure, as little as it is in the status; but it is tried again.
        end.finished(name, None if isinstance(error, AnotherRunError) else error)
        if error is None or not ran_out_of_time(error):
            self._back_off.ended(name)
        if error is not None and ran_out_of_time(error):
            self._want_late_retry(name, error)
        elif error is not None:
            self._want_retry(_NOT_FOUND if isinstance(error, MissingDatabaseError) else name)

    def _want_late_retry(self, name: str, error: BackupdError) -> None:
        """Try a database that ran out of time again by itself: the others of the entry have their own pauses."""
        at = self._back_off.failed(name, error, now=datetime.now(UTC))
        if not self._charge.is_over.is_set():
            log.warning("it ran out of time, and waits before the next try", database=name, next_try_at=at.isoformat())
            self._timetable.add_once(f"{self._retry_key} {name}", partial(self._round, [name]), at)

    def _want_retry(self, name: str) -> None:
        want = self._retries.want_look if name == _NOT_FOUND else self._retries.want
        at = want(name, now=datetime.now(UTC), next_run_at=self._timetable.next_at(self.key))
        # A run that began under an earlier configuration must not go on by it.
        if at is not None and not self._charge.is_over.is_set():
            self._timetable.add_once(self._retry_key, self._retry, at)

    def new_plans(self, status: Status) -> dict[str, planning.Plan]:
        """What is meant by this configuration for each database of the entry, those of `status` that are gone too."""
        databases, _ = self._charge.databases(self._entry)
        schedule = self._charge.settings.schedule_of(self._entry)
        gone = [
            Configured(Database(name, Path(status.databases[name].path)), schedule)
            for name in missing(self._entry, databases, status)
        ]
        every = [*databases, *gone]
        return self._plans(every, functools.cache(partial(_due_after, every, grace=self._charge.settings.health.grace)))

    def _record(
        self,
        databases: Sequence[Configured],
        plan: Round,
        problem: BackupdError | None,
        gone: Sequence[str],
        now: datetime,
    ) -> None:
        """Everything that this round found, in one change of the status."""
        # For a thousand databases of one schedule, nearly all of them current at the same moment.
        due_after = functools.cache(partial(_due_after, databases, grace=self._charge.settings.health.grace))
        plans = self._plans(databases, due_after)

        def recorded(status: Status) -> Status:
            if self._charge.is_over.is_set():
                return status
            status = planning.with_entry_problem(status, self._entry.shown_path, problem, at=now)
            status = planning.with_vanished(status, gone, at=now)
            status = planning.with_plans(status, plans, at=now)
            for url, names in plan.seen.items():
                status = recording.with_seen(status, url, names, at=now)
            if databases:
                status = recording.with_all_unchanged(status, plan.unchanged, at=now, due_by=due_after(now))
            return recording.with_down(status, plan.down, at=now)

        self._charge.note(recorded)

    def _plans(
        self, databases: Sequence[Configured], due_after: Callable[[datetime], datetime]
    ) -> dict[str, planning.Plan]:
        if not databases:
            return {}
        urls = tuple(repository.url for _, repository in self._charge.repositories)
        put_only = frozenset(repository.url for store, repository in self._charge.repositories if store.put_only)
        next_run_at = self._timetable.next_at(self.key)
        next_drill_at = self._timetable.next_at(f"drills {self._entry.path}")
        proofs_due = ProofsDue(databases[0], self._charge.settings.health.grace)
        return {
            each.name: planning.Plan(
                path=each.database.path,
                stores=urls,
                put_only=put_only,
                next_run_at=next_run_at,
                next_drill_at=next_drill_at,
                proof_due_after=proofs_due.after,
                due_after=due_after,
            )
            for each in databases
        }

    def _log(self, plan: Round, problem: BackupdError | None, *, is_told: bool) -> None:
        if problem is not None and is_told:
            log.error("databases not found", path=self._entry.path, error=problem.values())
        elif problem is not None and self._looks == 1:
            log.info("waiting for the application to create it", path=self._entry.path, found=problem.message)
        down = {url: error for errors in plan.down.values() for url, error in errors}
        for url, error in down.items():
            names = [name for name, errors in plan.down.items() if url in dict(errors)]
            log.error("store not asked", store=url, databases=len(names), error=error.values())
        unchanged = [name for name in plan.unchanged if name not in plan.wanting and name not in plan.down]
        if unchanged:
            log.info("nothing changed", databases=len(unchanged), path=self._entry.path)


class _RoundEnd:
    """Tells the heartbeats when a round, and each database of it, begins and ends. Runs end in their own threads."""

    def __init__(self, heartbeats: Heartbeats, names: Sequence[str], problem: BackupdError | None) -> None:
        self._heartbeats = heartbeats
        self._lock = threading.Lock()
        self._waiting = len(names) + 1
        self._error = problem
        heartbeats.started(None)
        for name in names:
            heartbeats.started(name)

    def finished(self, name: str, error: BackupdError | None) -> None:
        self._heartbeats.finished(name, error)
        self._count(error)

    def all_begun(self) -> None:
        self._count(None)

    def _count(self, error: BackupdError | None) -> None:
        with self._lock:
            self._waiting -= 1
            self._error = self._error or error
            is_over = not self._waiting
        if is_over:
            self._heartbeats.finished(None, self._error)


def _out_of_reach(lost: Mapping[str, OSError | None], status: Status) -> BackupdError | None:
    """Why the first of the files that are not simply gone cannot be backed up."""
    for name, reason in lost.items():
        if reason is not None:
            return SourceUnusableError(
                f"{status.databases[name].path} cannot be reached any more: {reason.strerror}",
                hint=f"check its directory's owner and mode: backupd runs as uid {os.geteuid()}",
            )
    return None


def _due_after(databases: Sequence[Configured], moment: datetime, *, grace: timedelta) -> datetime:
    """When the databases of one entry, which share its schedule, have to be current again."""
    return databases[0].due_after(moment, grace)
