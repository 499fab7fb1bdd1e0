from __future__ import annotations

import pytest
from harness.sink import sink

from backupd.config import HeartbeatSettings, NotificationSettings, Settings
from backupd.doctor.findings import Verdict
from backupd.doctor.trials import send_tests
from backupd.errors import ExitCode

# apprise imports it where Python still has it.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


def _settings(url: str) -> Settings:
    return Settings(
        notifications=(NotificationSettings(url=f"{url.replace('http', 'json')}/notify-secret"),),
        heartbeats=(HeartbeatSettings(url=f"{url}/beat-secret"),),
    )


def test_each_target_gets_one_message() -> None:
    """A notification that says that it is a test, and one sign of life."""
    with sink() as server:
        findings = send_tests(_settings(server.url))
        sent = dict(server.received)
    assert [finding.verdict for finding in findings] == [Verdict.OK, Verdict.OK]
    assert sorted(sent) == ["/beat-secret", "/notify-secret"]
    assert all("test by `backupd doctor --send-test`" in body for body in sent.values())


def test_what_fails_is_told_without_secrets() -> None:
    """Each has its own finding, with the host and never with the rest of the URL."""
    with sink() as server:
        server.code = 500
        findings = send_tests(_settings(server.url))
    assert [(each.verdict, each.exit_code) for each in findings] == [(Verdict.ERROR, ExitCode.USAGE)] * 2
    assert "secret" not in "".join(f"{each.message}{each.remedy}" for each in findings)
    assert "the server answered 500" in findings[1].message
    assert "apprise -vv" in (findings[0].remedy or "")
    assert "curl -v URL" in (findings[1].remedy or "")
    assert "apprise" not in (findings[1].remedy or "")


def test_two_targets_on_one_host_can_be_told_apart() -> None:
    """By their place in the configuration, as its errors name them."""
    with sink() as server:
        first = _settings(server.url)
        findings = send_tests(Settings(notifications=first.notifications * 2, heartbeats=first.heartbeats * 2))
    assert [each.message.split(":")[0] for each in findings] == [
        "sent to notifications[0] (json",
        "sent to notifications[1] (json",
        "sent to heartbeats[0] (http",
        "sent to heartbeats[1] (http",
    ]


def test_a_target_that_hangs_is_not_waited_for() -> None:
    """After its time it counts as failed."""
    with sink() as server:
        server.gate.clear()
        findings = send_tests(_settings(server.url), seconds=0.3)
    assert ["was not sent within 0.3 s" in each.message for each in findings] == [True, True]


def test_nobody_to_send_to_is_a_warning() -> None:
    """Who asks for a test believes that somebody is told."""
    (finding,) = send_tests(Settings())
    assert finding.verdict is Verdict.WARNING
