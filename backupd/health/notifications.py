"""Notifications: each alarm when it is raised, again at growing intervals, and once when it is over.

`notice_for` decides, without I/O, what a target has to be sent; `Notifications` sends it through apprise in a thread
that nothing waits for. What each target knows is in the status, so that a restart repeats nothing and forgets nothing.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, timedelta
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from msgspec.structs import replace

from backupd.config.settings import SCHEMES_WITH_A_HOST
from backupd.errors import BackupdError
from backupd.health.heartbeats import Outbox, sendable
from backupd.health.values import AlarmState, Delivery
from backupd.logs import log

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime

    from backupd.config.settings import NotificationSettings
    from backupd.health.alarms import Alarm
    from backupd.health.file import StatusFile
    from backupd.health.values import Status

_FIRST_PAUSE = timedelta(minutes=1)
_LONGEST_PAUSE = timedelta(hours=1)
_REMIND_AT_LEAST_EVERY = timedelta(days=1)
_SHOWN = 20


class Target(Protocol):
    """A receiver of notifications."""

    @property
    def key(self) -> str:
        """Its key in the status: always the same, and not a secret."""

    @property
    def name(self) -> str:
        """Its name for people, without secrets."""

    def send(self, title: str, body: str, *, is_good: bool) -> bool:
        """Send a message, and return whether it arrived. Takes a few seconds for each attempt of the service."""


@dataclass(frozen=True, slots=True)
class AppriseTarget:
    """One apprise URL."""

    settings: NotificationSettings

    @property
    def key(self) -> str:
        """The beginning of the digest of the URL."""
        return hashlib.sha256(self.settings.url.reveal().encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """The scheme, and the host where that cannot be a token."""
        parts = urlsplit(self.settings.url.reveal())
        return f"{parts.scheme}://{parts.hostname}" if parts.scheme in SCHEMES_WITH_A_HOST else f"{parts.scheme}://..."

    def send(self, title: str, body: str, *, is_good: bool) -> bool:
        """Send one message, and return whether it arrived. What apprise says of a failure may contain the URL."""
        apprise = _apprise()
        messenger = apprise.Apprise(asset=apprise.AppriseAsset(app_id="backupd", app_desc="SQLite backups"))
        if not messenger.add(self.settings.url.reveal()):
            return False
        kind = apprise.NotifyType.SUCCESS if is_good else apprise.NotifyType.WARNING
        try:
            return bool(
                messenger.notify(
                    sendable(body), title=sendable(title), notify_type=kind, body_format=apprise.NotifyFormat.TEXT
                )
            )
        except Exception:  # noqa: BLE001  (none of a hundred plugins may end the thread; the failure is logged)
            return False


class Notifications:
    """Sends every target what is new for it. Only one object may do that for a status file at a time."""

    def __init__(self, status: StatusFile, targets: Sequence[Target], *, remind_after: timedelta) -> None:
        self._file = status
        self.reconfigure(targets, remind_after=remind_after)
        # What the targets know: at first from the file, then from here, or a full disk would have it all sent again.
        self._states: Mapping[str, AlarmState] | None = None
        self._is_noted = True
        self._pauses: dict[str, tuple[datetime, timedelta]] = {}
        self._logged: dict[str, Alarm] = {}
        self._outbox: Outbox[tuple[Collection[Alarm], datetime]] = Outbox("notifications", self._send_waiting, most=1)

    def reconfigure(self, targets: Sequence[Target], *, remind_after: timedelta) -> None:
        """Notify these targets from now on; one that stays gets nothing twice."""
        self._targets = {target.key: target for target in targets}, remind_after

    def send(self, alarms: Collection[Alarm], *, now: datetime) -> None:
        """Send in a thread what is new about the alarms that are on at `now`. Returns at once; the last call counts."""
        self._outbox.put((alarms, now))

    def close(self, timeout: float) -> bool:
        """Send what waits, for at most `timeout` seconds, and stop; the rest is sent after the next start.

        Returns whether all was sent.
        """
        return self._outbox.close(timeout)

    def send_now(self, alarms: Collection[Alarm], *, now: datetime) -> None:
        """Send what is new about these alarms, and return when each target was tried. Raises nothing expected."""
        self._log(alarms)
        targets, remind_after = self._targets
        status = self._file.read()
        status = replace(status, alarms=status.alarms if self._states is None else self._states)
        before = status.alarms
        status = with_alarms(status, alarms, targets.keys(), now=now)
        for key, target in targets.items():
            if self._is_resting(key, now):
                continue
            notice = notice_for(key, status, alarms, now=now, remind_after=remind_after)
            if notice is None:
                continue
            if target.send(notice.title, notice.body, is_good=notice.is_good):
                self._pauses.pop(key, None)
                status = with_delivered(status, key, notice, now=now)
            else:
                self._rest(target, now)
        self._states = status.alarms
        self._note(status.alarms, is_changed=status.alarms is not before)

    def _send_waiting(self, waiting: tuple[Collection[Alarm], datetime]) -> None:
        alarms, now = waiting
        self.send_now(alarms, now=now)

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

    def _note(self, states: Mapping[str, AlarmState], *, is_changed: bool) -> None:
        if self._is_noted and not is_changed:
            return
        try:
            self._file.update(lambda status: replace(status, alarms=states))
        except BackupdError as error:
            if self._is_noted:
                log.warning(f"sent notifications cannot be recorded: {error.message}", hint=error.hint)
            self._is_noted = False
        else:
            self._is_noted = True

    def _log(self, alarms: Collection[Alarm]) -> None:
        """Log each alarm that was raised, or is over, since this process began."""
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
    """Import apprise with the first message, because that takes half a second, and silence its log, which has URLs."""
    import apprise  # noqa: PLC0415  (as said)

    logger = logging.getLogger("apprise")
    logger.handlers = [logging.NullHandler()]
    logger.propagate = False
    return apprise


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One message to one target, about everything that it has to know now."""

    title: str
    body: str
    is_good: bool
    """It is only about alarms that are over."""
    keys: tuple[str, ...]
    """The keys of the alarms that it is about."""


def with_alarms(status: Status, alarms: Collection[Alarm], targets: Collection[str], *, now: datetime) -> Status:
    """Note which alarms are on at `now`, and which are over that a target was notified of.

    `targets` are the keys of the present targets: what others know is forgotten.
    """
    on = {alarm.key: alarm for alarm in alarms} if targets else {}
    titles = {alarm.title for alarm in on.values()}
    states = {}
    for key, state in status.alarms.items():
        deliveries = {target: delivery for target, delivery in state.deliveries.items() if target in targets}
        if key in on:
            states[key] = replace(state, deliveries=deliveries, ended_at=None)
        elif deliveries and state.title not in titles and not _is_forgotten(key, state, status):
            states[key] = replace(state, deliveries=deliveries, ended_at=state.ended_at or now)
    for key, alarm in on.items():
        if key not in states:
            states[key] = AlarmState(raised_at=now, title=alarm.title, database=alarm.database)
    return status if states == status.alarms else replace(status, alarms=states)


def notice_for(
    target: str, status: Status, alarms: Collection[Alarm], *, now: datetime, remind_after: timedelta
) -> Notice | None:
    """Return what `target` has to be sent now, by a status from `with_alarms`; None when nothing is new for it."""
    raised = [alarm for alarm in alarms if target not in status.alarms[alarm.key].deliveries]
    reminded = [
        alarm
        for alarm in alarms
        if _is_reminder_due(alarm, status.alarms[alarm.key].deliveries.get(target), now, remind_after)
    ]
    over = {
        key: state for key, state in status.alarms.items() if state.ended_at is not None and target in state.deliveries
    }
    if not raised and not reminded and not over:
        return None
    blocks = [
        *_blocks("", raised),
        *_blocks("Still so: ", reminded),
        *_shortened([f"Over: {_end(state, status)}." for state in over.values()]),
    ]
    return Notice(
        title=_title(raised, reminded, [state.title for state in over.values()]),
        body="\n\n".join(blocks),
        is_good=not raised and not reminded,
        keys=(*(alarm.key for alarm in (*raised, *reminded)), *over),
    )


def with_delivered(status: Status, target: str, notice: Notice, *, now: datetime) -> Status:
    """Note that `target` got `notice`. An alarm that is over is forgotten once every target was notified of its end."""
    states = dict(status.alarms)
    for key in notice.keys:
        state = states.get(key)
        if state is None:
            continue
        deliveries = dict(state.deliveries)
        before = deliveries.pop(target, None)
        if state.ended_at is None:
            deliveries[target] = Delivery(at=now, times=before.times + 1 if before else 1)
        if deliveries:
            states[key] = replace(state, deliveries=deliveries)
        else:
            del states[key]
    return replace(status, alarms=states)


def _is_reminder_due(alarm: Alarm, delivery: Delivery | None, now: datetime, remind_after: timedelta) -> bool:
    """Whether an alarm has to be sent again: after a while, then after twice as long, and so on.

    A clock that was set back by as much causes it too.
    """
    if delivery is None or alarm.is_sent_once:
        return False
    # The limit keeps the power of two within reason after years.
    pause: timedelta = remind_after * 2 ** min(delivery.times - 1, 20)
    return abs(now - delivery.at) >= min(pause, max(_REMIND_AT_LEAST_EVERY, remind_after))


def _is_forgotten(key: str, state: AlarmState, status: Status) -> bool:
    """Whether the status has forgotten a file that vanished long ago: that does not mean that it has come back."""
    return key.startswith("vanished ") and state.database not in status.databases


def _end(state: AlarmState, status: Status) -> str:
    """Describe in what way an alarm is over."""
    database = status.databases.get(state.database) if state.database else None
    if state.database is not None and database is None:
        return f"{state.title}: it is not configured any more"
    if database is not None and database.vanished_at is not None:
        return f"{state.title}: {database.path} is gone"
    return f"{state.title} (from {_time(state.raised_at)} to {_time(state.ended_at or state.raised_at)})"


def _blocks(prefix: str, alarms: Sequence[Alarm]) -> list[str]:
    return _shortened(
        [f"{prefix}{alarm.message}.\nSince: {_time(alarm.since)}\nWhat to do: {alarm.hint}" for alarm in alarms]
    )


def _shortened(texts: list[str]) -> list[str]:
    """Cut the list of a store that is down for a thousand databases to what a person can read."""
    more = len(texts) - _SHOWN
    return texts if more <= 0 else [*texts[:_SHOWN], f"... and {more} more like these; all of them: backupd status"]


def _title(raised: Sequence[Alarm], reminded: Sequence[Alarm], ended: Sequence[str]) -> str:
    alarms = raised or reminded
    if not alarms:
        return f"backupd: over: {_and_more(ended[0], len(ended))}"
    word = "PROBLEM" if any(alarm.is_red for alarm in alarms) else "note"
    again = "" if raised else "still: "
    return f"backupd {word}: {again}{_and_more(f'{alarms[0].kind}: {alarms[0].title}', len(alarms))}"


def _and_more(first: str, count: int) -> str:
    return first if count == 1 else f"{first}, and {count - 1} more"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
