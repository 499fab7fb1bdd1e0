"""The thread that finds alarms and has them reported: after each outcome, and now and then because time passes."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.concurrency import start_thread
from backupd.errors import BackupdError
from backupd.health.alarms import find_alarms, is_healthy
from backupd.health.notifications import AppriseTarget, Notifications
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backupd.config import Settings
    from backupd.health import StatusFile
    from backupd.health.alarms import Alarm

_PERIOD_SECONDS = 20.0
_CLOSE_SECONDS = 0.5
_CATCHING_UP_SECONDS = 120.0


class AlertLoop:
    """A thread that leaves signs of life, finds alarms in the status, and has them reported."""

    def __init__(self, settings: Settings, status: StatusFile) -> None:
        self._status = status
        self._notifications = Notifications(status, _targets(settings), remind_after=settings.health.remind_after)
        self._alive_at = datetime.now(UTC)
        self._caught_up_at = time.monotonic() + _CATCHING_UP_SECONDS
        self._is_writable = True
        self._is_ending = False
        self._woken = threading.Event()
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the thread. Raises `LimitReachedError`."""
        start_thread(self._work, name="alerts")

    def stop(self) -> None:
        """Report what is new, if that takes no longer than a second, and end the thread. Only after `start`."""
        self._is_ending = True
        self._woken.set()
        self._ended.wait(_CLOSE_SECONDS)
        self._notifications.close(_CLOSE_SECONDS)
        with suppress(BackupdError):  # it is outdated in two minutes anyway
            self._status.show_health(is_healthy=False)

    def wake(self) -> None:
        """Look for alarms now, because the status has changed."""
        self._woken.set()

    def reconfigure(self, settings: Settings) -> None:
        """Report to the targets of `settings` from now on."""
        self._notifications.reconfigure(_targets(settings), remind_after=settings.health.remind_after)

    def alarms(self) -> tuple[Alarm, ...]:
        """Find everything that is wrong now. A status that could not be written for two minutes is an alarm too."""
        return find_alarms(self._status.read(), now=datetime.now(UTC), alive_at=self._alive_at)

    def problem(self) -> str | None:
        """Describe the first red alarm; None when the daemon is healthy."""
        return next((f"{alarm.message}\n{alarm.hint}" for alarm in self.alarms() if alarm.is_red), None)

    def _news(self, alarms: Iterable[Alarm]) -> list[Alarm]:
        """The alarms without what was late before the start and is being made up for in these minutes."""
        if time.monotonic() > self._caught_up_at:
            return [*alarms]
        known = self._status.read().alarms
        return [alarm for alarm in alarms if alarm.kind not in {"stale", "unproven"} or alarm.key in known]

    def _work(self) -> None:
        while not self._is_ending:
            with log.catch():
                self._leave_sign_of_life()
                alarms = self.alarms()
                self._show_health(alarms)
                self._notifications.send(self._news(alarms), now=datetime.now(UTC))
            self._woken.wait(_PERIOD_SECONDS)
            self._woken.clear()
        self._ended.set()

    def _leave_sign_of_life(self) -> None:
        with self._reporting_once():
            self._status.touch()
            self._alive_at = datetime.now(UTC)

    def _show_health(self, alarms: Iterable[Alarm]) -> None:
        with self._reporting_once():
            self._status.show_health(is_healthy=is_healthy(self._status.read(), alarms))

    @contextmanager
    def _reporting_once(self) -> Iterator[None]:
        """Log that the state directory cannot be written, once until it can be."""
        try:
            yield
        except BackupdError as error:
            if self._is_writable:
                log.error("the state directory cannot be written", error=error.values())
            self._is_writable = False
        else:
            self._is_writable = True


def _targets(settings: Settings) -> list[AppriseTarget]:
    return [AppriseTarget(each) for each in settings.notifications]
