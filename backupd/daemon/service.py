"""The daemon from its start to its end: one lock, one timetable, and signals."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd import __version__
from backupd.daemon.agenda import plan_all
from backupd.daemon.attention import Attention
from backupd.daemon.charge import Charge, missing
from backupd.daemon.http import HttpServer
from backupd.daemon.rotations import Rotations
from backupd.daemon.runs import Runs
from backupd.daemon.timetable import Timetable
from backupd.errors import BackupdError, BusyError, UsageError
from backupd.health import StatusFile, planning
from backupd.health.heartbeats import Heartbeats, warn_of_unknown_databases
from backupd.logs import log
from backupd.owner import should_be_another, why_still_root
from backupd.schedules import misunderstood_zone
from backupd.state import StateDirectory
from backupd.upkeep.stores import each_once, open_repositories, twin_warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backupd.config import Settings

_TICK_SECONDS = 15.0
_ABANDON_SECONDS = 1.5
_LAST_WORDS_SECONDS = 0.5
_STOPPING = (signal.SIGTERM, signal.SIGINT)


def serve(settings: Settings, load: Callable[[], Settings]) -> bool:
    """Look after everything that is configured until SIGTERM or SIGINT. `load` reads the configuration anew on SIGHUP.

    Gives whether it is to be started once more, because the databases have another owner now. Raises `BusyError` when
    another daemon has this state directory, and `UsageError` when it cannot listen, or has nothing to do.
    """
    _require_databases(settings)
    state = StateDirectory(settings.state_dir)
    threading.excepthook = _tell_of_bug
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
        self._runs = Runs(settings.daemon.concurrent_runs)
        self._attention = Attention(settings, self._status)
        self._heartbeats = Heartbeats(settings.heartbeats, overall=self._attention.problem)
        self._rotations = Rotations(state, self._status)
        self._charge = self._new_charge(settings)
        self._http = HttpServer(self._attention)

    def run(self) -> bool:
        self._http.listen(self._charge)
        now = datetime.now(UTC)
        self._status.update(lambda status: planning.with_daemon(status, pid=os.getpid(), version=__version__, at=now))
        source = self._charge.settings.source
        log.info("backupd has started", version=__version__, pid=os.getpid(), config=source and str(source))
        _tell_encryption(self._charge.settings)
        _tell_time_zone(self._charge.settings)
        if reason := why_still_root(self._charge.settings):
            log.info("this process stays root", reason=reason)
        self._timetable.start()
        self._plan()
        self._attention.start()
        try:
            return self._wait()
        finally:
            self._stop()

    def _wait(self) -> bool:
        """Until a signal ends it (False), or somebody else has to go on in its place (True)."""
        while True:
            number = self._signals.next(timeout=_TICK_SECONDS)
            if number is None:
                self._runs.begin_what_waits()
                if self._timetable.clock_has_jumped():
                    log.warning("the clock was set, or the machine was asleep: everything is planned anew")
                    self._plan()
                if should_be_another(self._charge.settings):
                    log.info("the databases have another owner now: starting again as that user")
                    return True
                continue
            if number in _STOPPING:
                log.info("backupd is stopping", signal=signal.Signals(number).name)
                return False
            self._reload()
            if should_be_another(self._charge.settings):
                return True

    def _stop(self) -> None:
        """End what is going on, in time: Docker kills after ten seconds."""
        self._timetable.stop()
        self._http.close()
        finish_seconds = self._charge.settings.daemon.stop_timeout.total_seconds()
        abandoned = self._runs.stop(finish_seconds=finish_seconds, abandon_seconds=_ABANDON_SECONDS)
        for name in abandoned:
            log.warning("a run was abandoned", database=name, hint="the next start takes the snapshot")
        self._charge.note(lambda status: planning.with_daemon_stopped(status, at=datetime.now(UTC)))
        self._attention.stop()
        self._heartbeats.close(timeout=_LAST_WORDS_SECONDS)
        log.info("backupd has stopped", abandoned=abandoned)

    def _reload(self) -> None:
        """Take the configuration as it is now; one that is wrong changes nothing, and is an alarm."""
        try:
            charge = self._new_charge(self._loaded_anew())
            self._http.listen(charge)
        except BackupdError as error:
            log.error("the configuration was not reloaded: the one before holds", error=error.values())
            refused = error
            self._charge.note(lambda status: planning.with_config_problem(status, refused, at=datetime.now(UTC)))
            self._attention.wake()
            return
        self._charge.is_over.set()
        self._charge = charge
        self._heartbeats.follow(charge.settings.heartbeats)
        self._runs.set_limit(charge.settings.daemon.concurrent_runs)
        self._attention.follow(charge.settings)
        self._charge.note(lambda status: planning.with_config_problem(status, None, at=datetime.now(UTC)))
        self._attention.wake()
        log.info("the configuration was reloaded", config=charge.settings.source and str(charge.settings.source))
        _tell_encryption(charge.settings)
        self._plan()

    def _loaded_anew(self) -> Settings:
        settings = self._load()
        _require_databases(settings)
        if settings.state_dir != self._charge.settings.state_dir:
            raise UsageError("state_dir cannot be changed while backupd runs", hint="restart backupd for that")
        return settings

    def _new_charge(self, settings: Settings) -> Charge:
        return Charge(
            settings=settings,
            state=self._state,
            status=self._status,
            runs=self._runs,
            heartbeats=self._heartbeats,
            rotations=self._rotations,
            repositories=open_repositories(
                each_once(settings.stores_or_default), self._state, settings.open_encryption()
            ),
            wake=self._attention.wake,
        )

    def _plan(self) -> None:
        """Plan everything again; what goes on by the plan before may finish."""
        self._charge.is_over.set()
        self._charge = replace(self._charge, is_over=threading.Event())
        known = self._status.read()
        names: set[str] = set()
        for entry in self._charge.settings.databases:
            databases, _ = self._charge.databases(entry)
            names.update(each.name for each in databases)
            # Of what has gone, the entry's round still has to tell, or has told within a week.
            names.update(missing(entry, databases, known, with_vanished=True))
        warn_of_unknown_databases(self._charge.settings.heartbeats, names)
        for warning in twin_warnings(self._charge.settings.stores):
            log.warning(warning)
        keys = {entry.shown_path for entry in self._charge.settings.databases}
        status = self._charge.note(
            lambda status: planning.without_other_entries(planning.without_others(status, names), keys)
        )
        plan_all(self._charge, self._timetable, status)


def _require_databases(settings: Settings) -> None:
    """Whoever runs this wants something backed up: with nothing to do, it must not look well."""
    if not settings.databases:
        raise UsageError(
            "no database is configured",
            hint="list one under [[databases]], or set BACKUPD_DATABASES__0__PATH; backupd init helps",
        )


def _tell_of_bug(failed: threading.ExceptHookArgs) -> None:
    """In the log, where whoever looks after this looks; the other threads go on."""
    log.unexpected(failed.exc_value or failed.exc_type())


@contextmanager
def _only_daemon(state: StateDirectory) -> Iterator[None]:
    """Keep another daemon out. Raises `BusyError` when one is in."""
    with ExitStack() as held:
        try:
            held.enter_context(state.lock("the work of the daemon", timeout=0))
        except BusyError as error:
            raise BusyError(
                f"backupd run is at work already on the state directory {state.root}",
                hint="one is enough; for other databases, give the second another state_dir (BACKUPD_STATE_DIR)",
            ) from error
        yield


class _Signals:
    """The signals that end the daemon or reload its configuration, as they come."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    def next(self, *, timeout: float) -> int | None:
        """The number of the next one; None when none has come in `timeout` seconds."""
        return os.read(self._descriptor, 1)[0] if self._poll.poll(timeout * 1000) else None


@contextmanager
def _signals() -> Iterator[_Signals]:
    # The system may give a signal to any thread, and Python then wakes no other: what wakes the main thread is a byte
    # that comes through a pipe.
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


def _tell_encryption(settings: Settings) -> None:
    """Say what encryption needs, and what it takes away, before somebody finds out."""
    if not settings.encryption.recipients:
        return
    if settings.identity_file is not None:
        hint = f"{settings.identity_file} is here: whoever has this machine can read the past"
    else:
        hint = (
            f"keep {settings.state_dir}: what is encrypted cannot be read back here, and without it the next snapshot "
            "is full; without identity_file, test restores check the stored bytes alone"
        )
    log.info("snapshots are encrypted", recipients=len(settings.encryption.recipients), hint=hint)


def _tell_time_zone(settings: Settings) -> None:
    """Say that clock times in schedules do not mean what TZ was to say, where nothing else says it."""
    wrong = None if settings.schedule.time_zone else misunderstood_zone(os.environ, datetime.now(UTC))
    if wrong is not None:
        log.warning(wrong.message, hint=wrong.hint)
