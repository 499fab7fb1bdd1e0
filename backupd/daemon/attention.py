"""Whoever has to be told: after each outcome, and now and then because time makes things stale."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backupd.errors import BackupdError
from backupd.health.judging import judge
from backupd.health.telling import AppriseTarget, Notifications
from backupd.logs import log

if TYPE_CHECKING:
    from backupd.config import Settings
    from backupd.health import StatusFile
    from backupd.health.judging import Alarm

_PERIOD_SECONDS = 20.0
_CLOSE_SECONDS = 0.5
_CATCHING_UP_SECONDS = 120.0


class Attention:
    """A thread that leaves signs of life, judges the status, and has the alarms told."""

    def __init__(self, settings: Settings, status: StatusFile) -> None:
        self._status = status
        self._notifications = Notifications(status, _targets(settings), remind_after=settings.health.remind_after)
        self._alive_at = datetime.now(UTC)
        self._caught_up_at = time.monotonic() + _CATCHING_UP_SECONDS
        self._is_writable = True
        self._is_ending = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._work, name="attention", daemon=True)

    def start(self) -> None:
        """Begin, with the status as it is now."""
        self._thread.start()

    def stop(self) -> None:
        """Tell what is to be told, if that takes no longer than a second, and end."""
        self._is_ending = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_SECONDS)
        self._notifications.close(_CLOSE_SECONDS)

    def wake(self) -> None:
        """Look now: the status has changed."""
        self._woken.set()

    def follow(self, settings: Settings) -> None:
        """Tell others from now on."""
        self._notifications.follow(_targets(settings), remind_after=settings.health.remind_after)

    def alarms(self) -> tuple[Alarm, ...]:
        """Everything that is wrong now. That the status cannot be written is, after two minutes."""
        return judge(self._status.read(), now=datetime.now(UTC), alive_at=self._alive_at)

    def problem(self) -> str | None:
        """The first thing that is wrong enough to make this unhealthy, or None."""
        return next((f"{alarm.message}\n{alarm.hint}" for alarm in self.alarms() if alarm.is_red), None)

    def _news(self) -> list[Alarm]:
        """The alarms, but for what was late before the start and is being made up for in these minutes."""
        alarms = self.alarms()
        if time.monotonic() > self._caught_up_at:
            return [*alarms]
        known = self._status.read().alarms
        return [alarm for alarm in alarms if alarm.kind not in {"stale", "unproven"} or alarm.key in known]

    def _work(self) -> None:
        while not self._is_ending:
            try:
                self._leave_a_sign()
                self._notifications.tell(self._news(), now=datetime.now(UTC))
            except Exception as error:  # noqa: BLE001  (whoever is to tell of bugs must not end by one)
                log.unexpected(error)
            self._woken.wait(_PERIOD_SECONDS)
            self._woken.clear()

    def _leave_a_sign(self) -> None:
        try:
            self._status.touch()
        except BackupdError as error:
            if self._is_writable:
                log.error("the state directory cannot be written", error=error.values())
            self._is_writable = False
            return
        self._is_writable = True
        self._alive_at = datetime.now(UTC)


def _targets(settings: Settings) -> list[AppriseTarget]:
    return [AppriseTarget(each) for each in settings.notifications]
