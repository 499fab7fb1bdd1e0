"""A test for everybody who would be told of a failure: whether it arrives, only they can say."""

from __future__ import annotations

import platform
from concurrent.futures import wait
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from backupd.doctor.times import NOTIFICATIONS
from backupd.doctor.unwaited import started
from backupd.errors import ExitCode
from backupd.health.heartbeats import host_of, send_once
from backupd.health.telling import AppriseTarget

if TYPE_CHECKING:
    from concurrent.futures import Future

    from backupd.config import HeartbeatSettings, NotificationSettings, Settings
    from backupd.doctor.findings import Finding

_SECONDS = 30.0
_TEXT = "This is a test by `backupd doctor --send-test`. Nothing is wrong, and nothing needs to be done."
_ASK_APPRISE = "check the URL, its credentials and the network; apprise says more with: apprise -vv -b test URL"
_ASK_THE_URL = "check the URL and the network; more is said by: curl -v URL"


class _Trial(NamedTuple):
    name: str
    """Where it is in the configuration, because two may be on one host, and the part of its URL that is no secret."""
    remedy: str
    outcome: Future[str | None]


def send_tests(settings: Settings, *, seconds: float = _SECONDS) -> list[Finding]:
    """Send a test to each notification target and heartbeat, all at once; a finding for each, without secrets.

    For a heartbeat the test is a sign of life, as after a run that ended well: others than that not every service has.
    Waits at most `seconds`.
    """
    trials = [
        *(
            _Trial(
                f"notifications[{position}] ({AppriseTarget(each).name})", _ASK_APPRISE, started(partial(_notify, each))
            )
            for position, each in enumerate(settings.notifications)
        ),
        *(
            _Trial(f"heartbeats[{position}] ({host_of(each)})", _ASK_THE_URL, started(partial(_beat, each)))
            for position, each in enumerate(settings.heartbeats)
        ),
    ]
    wait([trial.outcome for trial in trials], timeout=seconds)
    if not trials:
        return [
            NOTIFICATIONS.warning(
                "test",
                "there is nobody to send a test to",
                "configure [[notifications]] or [[heartbeats]] first",
            )
        ]
    return [_finding(trial, seconds) for trial in trials]


def _notify(settings: NotificationSettings) -> str | None:
    title = f"backupd on {platform.node()}: a test"
    return None if AppriseTarget(settings).send(title, _TEXT, is_good=True) else "it could not be sent"


def _beat(settings: HeartbeatSettings) -> str | None:
    return send_once(settings, _TEXT)


def _finding(trial: _Trial, seconds: float) -> Finding:
    problem = trial.outcome.result() if trial.outcome.done() else f"it was not sent within {seconds:g} s"
    if problem is None:
        return NOTIFICATIONS.ok("test", f"sent to {trial.name}: look whether it arrived")
    return NOTIFICATIONS.error("test", f"the test to {trial.name} failed: {problem}", trial.remedy, ExitCode.USAGE)
