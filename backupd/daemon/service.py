"""The daemon from its start to its end: one lock, one timetable, and signals."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from backupd import __version__
from backupd.capture.worker import Workers
from backupd.concurrency import start_thread
from backupd.config import missing_file_error
from backupd.daemon.alert_loop import AlertLoop
from backupd.daemon.discovery import Discovery, missing_databases
from backupd.daemon.following import Following
from backupd.daemon.http import HttpServer
from backupd.daemon.runs import Runs
from backupd.daemon.snapshot_rounds import SnapshotRounds, drill_soon
from backupd.daemon.timetable import ONE_BY_ONE, Job, Timetable, is_drill_missed, is_round_missed
from backupd.daemon.work import Context, back_up_database, run_drills, run_prunes
from backupd.errors import BackupdError, BusyError, UsageError
from backupd.health import StatusFile, planning
from backupd.health.heartbeats import Heartbeats, warn_of_unknown_databases
from backupd.jobs.configured import distinct_stores, duplicate_warnings, open_repositories
from backupd.jobs.prunes import Pruner
from backupd.logs import log
from backupd.privileges import must_change_user, why_still_root
from backupd.schedules import time_zone_problem
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from backupd.config import DatabaseSettings, Settings, StoreSettings
    from backupd.health import Status
    from backupd.repository import Repository
    from backupd.schedules import Schedule

_TICK_SECONDS = 15.0
_ABANDON_SECONDS = 1.5
_HEARTBEATS_SECONDS = 0.5
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def serve(settings: Settings, load: Callable[[], Settings]) -> bool:
    """Back up everything that is configured until SIGTERM or SIGINT. `load` reads the configuration again on SIGHUP.

    Returns whether it has to be started again, because the databases have another owner now. Raises `BusyError` when
    another daemon uses this state directory, and `UsageError` when it cannot listen, or has nothing to do.
    """
    _require_databases(settings)
    state = StateDirectory(settings.state_dir)
    threading.excepthook = _log_bug
    with _only_daemon(state), _signals() as signals:
        return _Service(settings, load, state, signals).run()


class _Service:
    """One run of the daemon."""

    def __init__(
        self, settings: Settings, load: Callable[[], Settings], state: StateDirectory, signals: _Signals
    ) -> None:
        self._load = load
        self._state = state
        self._signals = signals
        self._status = StatusFile(state)
        self._timetable = Timetable()
        self._workers = Workers()
        # An idle daemon keeps no process that captures: each takes 25 MB.
        self._runs = Runs(settings.daemon.concurrent_runs, on_rest=self._workers.end_idle)
        self._alerts = AlertLoop(settings, self._status)
        self._heartbeats = Heartbeats(settings.heartbeats, overall=self._alerts.problem)
        self._pruner = Pruner(state, self._status)
        self._following = Following(state, self._status, self._begin_window)
        self._repositories: Sequence[tuple[StoreSettings, Repository]] = ()
        self._context = self._new_context(settings)
        self._http = HttpServer(self._alerts, self._context)

    def run(self) -> bool:
        """Run until a signal ends the daemon (False), or another process has to take its place (True)."""
        self._http.listen()
        now = datetime.now(UTC)
        self._status.update(lambda status: planning.with_daemon(status, pid=os.getpid(), version=__version__, at=now))
        settings = self._context.settings
        log.info("backupd has started", version=__version__, pid=os.getpid(), config=_source(settings))
        _log_encryption(settings)
        _warn_of_time_zone(settings)
        if reason := why_still_root(settings):
            log.info("this process stays root", reason=reason)
        self._timetable.start()
        self._plan()
        self._alerts.start()
        try:
            return self._wait()
        finally:
            self._stop()

    def _wait(self) -> bool:
        while True:
            number = self._signals.next(timeout=_TICK_SECONDS)
            if number in _STOPPING:
                log.info("backupd is stopping", signal=signal.Signals(number).name)
                return False
            if number is not None:
                self._reload()
            else:
                self._runs.begin_what_waits()
                if self._timetable.clock_has_jumped():
                    log.warning("the clock was set, or the machine was asleep: everything is planned again")
                    self._plan()
            if must_change_user(self._context.settings):
                log.info("the databases have another owner now: starting again as that user")
                return True

    def _stop(self) -> None:
        """End what is running, in time: Docker kills after ten seconds."""
        self._timetable.stop()
        self._http.close()
        following = start_thread(self._following.stop, name="follow-stop")
        finish_seconds = self._context.settings.daemon.stop_timeout.total_seconds()
        abandoned = self._runs.stop(finish_seconds=finish_seconds, abandon_seconds=_ABANDON_SECONDS)
        for name in abandoned:
            log.warning("a run was abandoned", database=name, hint="the next start takes the snapshot")
        following.join(_ABANDON_SECONDS)
        now = datetime.now(UTC)
        self._status.update_or_log(lambda status: planning.with_daemon_stopped(status, at=now))
        self._alerts.stop()
        self._heartbeats.close(timeout=_HEARTBEATS_SECONDS)
        log.info("backupd has stopped", abandoned=abandoned)

    def _reload(self) -> None:
        """Read the configuration again. One that is wrong changes nothing, and is an alarm."""
        try:
            context = self._new_context(self._reloaded())
            self._http.reconfigure(context)
        except BackupdError as error:
            log.error("the configuration was not reloaded: the previous one stays in force", error=error.values())
            self._note_config_problem(error)
            return
        settings = context.settings
        self._replace_context(context)
        self._heartbeats.reconfigure(settings.heartbeats)
        self._runs.set_limit(settings.daemon.concurrent_runs)
        self._alerts.reconfigure(settings)
        self._note_config_problem(None)
        log.info("the configuration was reloaded", config=_source(settings))
        _log_encryption(settings)
        self._plan()

    def _note_config_problem(self, problem: BackupdError | None) -> None:
        now = datetime.now(UTC)
        self._status.update_or_log(lambda status: planning.with_config_problem(status, problem, at=now))
        self._alerts.wake()

    def _reloaded(self) -> Settings:
        settings = self._load()
        _require_databases(settings)
        if settings.state_dir != self._context.settings.state_dir:
            raise UsageError("state_dir cannot be changed while backupd runs", hint="restart backupd for that")
        return settings

    def _new_context(self, settings: Settings) -> Context:
        stores = distinct_stores(settings.stores_or_default)
        encryption = settings.open_encryption()
        self._repositories = open_repositories(stores, self._state, encryption, before=self._repositories)
        return Context(
            settings=settings,
            state=self._state,
            status=self._status,
            discovery=Discovery(settings, self._repositories, self._status),
            runs=self._runs,
            heartbeats=self._heartbeats,
            pruner=self._pruner,
            wake=self._alerts.wake,
            following=self._following,
            workers=self._workers,
        )

    def _replace_context(self, context: Context) -> None:
        """Put `context` in force. Work that began under the one before may finish."""
        self._context.superseded.set()
        self._context = context

    def _plan(self) -> None:
        """Plan everything again, and forget what is not configured any more."""
        self._replace_context(replace(self._context, superseded=threading.Event()))
        context = self._context
        known = self._status.read()
        inventory = context.discovery.now()
        names: set[str] = set()
        for entry in context.settings.databases:
            databases, _ = inventory.databases(entry)
            names.update(each.name for each in databases)
            # The entry's next round reports what has gone, or has reported it within a week.
            names.update(missing_databases(entry, databases, known, with_vanished=True))
        warn_of_unknown_databases(context.settings.heartbeats, names)
        for warning in duplicate_warnings(context.settings.stores):
            log.warning(warning)
        keys = {entry.shown_path for entry in context.settings.databases}
        status = self._status.update_or_log(
            lambda status: planning.without_other_entries(planning.without_others(status, names), keys)
        )
        plan_all(context, self._timetable, status)
        self._following.configure(context.settings, inventory)

    def _begin_window(self, name: str) -> None:
        """Have a snapshot taken of a followed database: without one, nothing in its window can be restored."""
        context = self._context
        inventory = context.discovery.now()
        configured = next((each for each in inventory.all_databases if each.name == name), None)
        if configured is None:
            return
        soon = partial(drill_soon, context, self._timetable)
        run = partial(back_up_database, configured, inventory.stores, context, drill_soon=soon)
        context.runs.start(name, run, lambda _: context.wake(), plan=context.superseded)


def plan_all(context: Context, timetable: Timetable, status: Status) -> None:
    """Replace the timetable by what is configured; what was missed runs at once.

    The status then shows when each database is due and planned by this configuration.
    """
    timetable.clear()
    all_rounds = [_plan_entry(entry, context, timetable, status) for entry in context.settings.databases]
    now = datetime.now(UTC)
    plans = {name: plan for rounds in all_rounds for name, plan in rounds.new_plans(status).items()}

    def planned(found: Status) -> Status:
        # A round that was missed is running already, and may have found that a file has gone.
        gone = _vanished(found) - _vanished(status)
        kept = {name: plan for name, plan in plans.items() if name not in gone}
        return planning.with_plans(found, kept, at=now, are_new=True)

    context.status.update_or_log(planned)


def _vanished(status: Status) -> set[str]:
    return {name for name, database in status.databases.items() if database.vanished_at is not None}


def _plan_entry(entry: DatabaseSettings, context: Context, timetable: Timetable, status: Status) -> SnapshotRounds:
    schedule = context.settings.schedule_of(entry)

    def plan(kind: str, call: Callable[[], None], times: Schedule | None, *, is_missed: bool = False) -> None:
        if times is None:
            return
        key = f"{kind} {entry.path}"
        queue = kind if kind in ONE_BY_ONE else "default"
        timetable.add(key, Job(call, times, schedule.zone, schedule.latest_start, queue), is_missed=is_missed)
        next_run_at = timetable.next_at(key)
        log.info(
            "planned", what=kind, path=entry.path, schedule=str(times), next_run_at=next_run_at, is_missed=is_missed
        )

    now = datetime.now(UTC)
    inventory = context.discovery.now()
    databases, _ = inventory.databases(entry)
    known = [status.databases.get(each.name) for each in databases]
    is_missing = missing_file_error(entry) is not None or bool(missing_databases(entry, databases, status))
    urls = [store.url for store in inventory.stores]
    rounds = SnapshotRounds(context, entry, timetable)
    is_missed = is_missing or is_round_missed(known, urls, schedule, now)
    plan("snapshots", rounds.run, schedule.snapshots, is_missed=is_missed)
    # Where every store is put-only, nothing can be restored to test or pruned from here, and so it is not planned.
    if not all(store.is_put_only for store in inventory.stores):
        is_missed = is_drill_missed(known, schedule, now)
        plan("drills", partial(run_drills, context, entry), schedule.drills, is_missed=is_missed)
        plan("prunes", partial(run_prunes, context, entry), schedule.prunes)
    return rounds


def _require_databases(settings: Settings) -> None:
    """Refuse to run without work: a daemon that backs up nothing must not look healthy."""
    if not settings.databases:
        raise UsageError(
            "no database is configured",
            hint="list one under [[databases]], or set BACKUPD_DATABASES__0__PATH; backupd init helps",
        )


def _log_bug(failed: threading.ExceptHookArgs) -> None:
    """Log an exception that ended a thread; the other threads continue."""
    log.unexpected(failed.exc_value or failed.exc_type())


@contextmanager
def _only_daemon(state: StateDirectory) -> Iterator[None]:
    """Keep other daemons out. Raises `BusyError` when one uses the state directory already."""
    with ExitStack() as held:
        try:
            held.enter_context(state.lock("the work of the daemon", timeout=0))
        except BusyError as error:
            raise BusyError(
                f"backupd run is running already with the state directory {state.root}",
                hint="one is enough; for other databases, give the second another state_dir (BACKUPD_STATE_DIR)",
            ) from error
        yield


class _Signals:
    """The signals that end the daemon or reload its configuration, as they arrive."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def next(self, *, timeout: float) -> int | None:
        """Return the number of the next signal; None when none arrives within `timeout` seconds."""
        return os.read(self._descriptor, 1)[0] if self._poll.poll(timeout * 1000) else None


@contextmanager
def _signals() -> Iterator[_Signals]:
    # The system may give a signal to any thread, and Python then wakes no other one: a byte that comes through a pipe
    # wakes the main thread.
    outlet, inlet = os.pipe()
    os.set_blocking(inlet, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (*_STOPPING, signal.SIGHUP)}
    woken_before = signal.set_wakeup_fd(inlet)
    try:
        yield _Signals(outlet)
    finally:
        signal.set_wakeup_fd(woken_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        for descriptor in (outlet, inlet):
            os.close(descriptor)


def _source(settings: Settings) -> str | None:
    """Return the path of the configuration file, if there is one."""
    return None if settings.source is None else str(settings.source)


def _log_encryption(settings: Settings) -> None:
    """Log what encryption needs, and what cannot be done here because of it."""
    if not settings.encryption.recipients:
        return
    if settings.identity_file is not None:
        hint = f"{settings.identity_file} is here: who controls this machine can read all snapshots"
    else:
        hint = (
            f"keep {settings.state_dir}: what is encrypted cannot be read back here, and without it the next snapshot "
            "is full; without identity_file, test restores check the stored bytes alone"
        )
    log.info("snapshots are encrypted", recipients=len(settings.encryption.recipients), hint=hint)


def _warn_of_time_zone(settings: Settings) -> None:
    """Warn when clock times in schedules do not mean what TZ says, and the configuration does not say it."""
    wrong = None if settings.schedule.time_zone else time_zone_problem(os.environ, datetime.now(UTC))
    if wrong is not None:
        log.warning(wrong.message, hint=wrong.hint)
