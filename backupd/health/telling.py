"""Notifications: what `notices` says is to be told goes out through apprise, in a thread that nothing waits for."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from backupd.config.unattended import SCHEMES_WITH_A_HOST
from backupd.errors import BackupdError
from backupd.health.notices import notice_for, with_alarms, with_told
from backupd.health.sending import Sender, sendable
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from backupd.config.unattended import NotificationSettings
    from backupd.health.file import StatusFile
    from backupd.health.judging import Alarm
    from backupd.health.values import AlarmState

_FIRST_PAUSE = timedelta(minutes=1)
_LONGEST_PAUSE = timedelta(hours=1)


class Target(Protocol):
    """Somebody who is told."""

    @property
    def key(self) -> str:
        """The same as long as the target is, and no secret."""

    @property
    def name(self) -> str:
        """For people, without secrets."""

    def send(self, title: str, body: str, *, is_good: bool) -> bool:
        """Whether it got there. Takes a few seconds at most for each attempt that the service makes."""


@dataclass(frozen=True, slots=True)
class AppriseTarget:
    """One apprise URL."""

    settings: NotificationSettings

    @property
    def key(self) -> str:
        """The beginning of the digest of its URL."""
        return hashlib.sha256(self.settings.url.get_secret_value().encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """The scheme, and the host where that cannot be a token."""
        parts = urlsplit(self.settings.url.get_secret_value())
        return f"{parts.scheme}://{parts.hostname}" if parts.scheme in SCHEMES_WITH_A_HOST else f"{parts.scheme}://..."

    def send(self, title: str, body: str, *, is_good: bool) -> bool:
        """One message. What apprise says of a failure may name the URL, and is told to nobody."""
        apprise = _apprise()
        messenger = apprise.Apprise(asset=apprise.AppriseAsset(app_id="backupd", app_desc="SQLite backups"))
        if not messenger.add(self.settings.url.get_secret_value()):
            return False
        kind = apprise.NotifyType.SUCCESS if is_good else apprise.NotifyType.WARNING
        try:
            return bool(
                messenger.notify(
                    sendable(body), title=sendable(title), notify_type=kind, body_format=apprise.NotifyFormat.TEXT
                )
            )
        except Exception:  # noqa: BLE001  (a hundred plugins, of which none is to end the thread; False is told)
            return False


class Notifications:
    """Tells every target what it does not know yet. Only one object may do that for a status file at a time."""

    def __init__(self, status: StatusFile, targets: Sequence[Target], *, remind_after: timedelta) -> None:
        self._file = status
        self.follow(targets, remind_after=remind_after)
        # What the targets know: from the file at first, then from here, or a full disk would have it all told again.
        self._states: Mapping[str, AlarmState] | None = None
        self._is_noted = True
        self._pauses: dict[str, tuple[datetime, timedelta]] = {}
        self._logged: dict[str, Alarm] = {}
        self._sender = Sender("notifications", self._tell, most=1)

    def follow(self, targets: Sequence[Target], *, remind_after: timedelta) -> None:
        """Tell these from now on; a target that stays is told nothing twice."""
        self._whom = {target.key: target for target in targets}, remind_after

    def tell(self, alarms: Collection[Alarm], *, now: datetime) -> None:
        """Have it told, in a thread, that these alarms are on at `now`. Returns at once; the last call counts."""
        self._sender.put((alarms, now))

    def close(self, timeout: float) -> bool:
        """Tell what is waiting, then stop; after `timeout` seconds it is given up, and told after the next start.

        Gives whether all was told.
        """
        return self._sender.close(timeout)

    def tell_now(self, alarms: Collection[Alarm], *, now: datetime) -> None:
        """The same, in this thread: it returns when everybody was told, or it failed. Raises nothing expected."""
        self._log(alarms)
        targets, remind_after = self._whom
        status = self._file.read()
        status = replace(status, alarms=status.alarms if self._states is None else self._states)
        before = status.alarms
        status = with_alarms(status, alarms, targets.keys(), now=now)
        for key, target in targets.items():
            notice = (
                None
                if self._is_resting(key, now)
                else notice_for(key, status, alarms, now=now, remind_after=remind_after)
            )
            if notice is None:
                continue
            if target.send(notice.title, notice.body, is_good=notice.is_good):
                self._pauses.pop(key, None)
                status = with_told(status, key, notice, now=now)
            else:
                self._rest(target, now)
        self._states = status.alarms
        self._note(is_changed=status.alarms is not before)

    def _tell(self, waiting: tuple[Collection[Alarm], datetime]) -> None:
        alarms, now = waiting
        self.tell_now(alarms, now=now)

    def _is_resting(self, key: str, now: datetime) -> bool:
        tried_at, pause = self._pauses.get(key, (now, timedelta(0)))
        return abs(now - tried_at) < pause

    def _rest(self, target: Target, now: datetime) -> None:
        _, pause = self._pauses.get(target.key, (now, timedelta(0)))
        pause = min(pause * 2 or _FIRST_PAUSE, _LONGEST_PAUSE)
        self._pauses[target.key] = now, pause
        log.warning(
            "a notification could not be sent",
            target=target.name,
            retry_after_seconds=int(pause.total_seconds()),
            hint="see why with the same URL: apprise -vv -b test URL",
        )

    def _note(self, *, is_changed: bool) -> None:
        if self._is_noted and not is_changed:
            return
        states = self._states or {}
        try:
            self._file.update(lambda status: replace(status, alarms=states))
        except BackupdError as error:
            if self._is_noted:
                log.warning(f"who was told of what cannot be noted: {error.message}", hint=error.hint)
            self._is_noted = False
        else:
            self._is_noted = True

    def _log(self, alarms: Collection[Alarm]) -> None:
        """One line for each alarm that is raised, or over, since this process began."""
        on = {alarm.key: alarm for alarm in alarms}
        for key, alarm in on.items():
            if key not in self._logged:
                log.warning(f"alarm: {alarm.message}", **_details(alarm), hint=alarm.hint)
        for key, alarm in self._logged.items():
            if key not in on:
                log.info(f"alarm over: {alarm.title}", **_details(alarm))
        self._logged = on


def _details(alarm: Alarm) -> dict[str, str]:
    values = {"kind": alarm.kind, "database": alarm.database, "store": alarm.store}
    return {name: value for name, value in values.items() if value is not None}


def _apprise() -> Any:
    """Imported with the first message, because it takes half a second; its own log tells URLs."""
    import apprise  # noqa: PLC0415  (as said)

    logger = logging.getLogger("apprise")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
    return apprise
