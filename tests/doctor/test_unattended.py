from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from harness.databases import entries_by_name
from harness.extent import sampled
from harness.sink import sink

from backupd.config import HeartbeatSettings, NotificationSettings, Settings, load
from backupd.doctor.findings import Verdict
from backupd.doctor.unattended import check_notifications, check_schedules, check_time_zone, send_tests
from backupd.errors import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

# apprise imports it where Python still has it.
_WITH_APPRISE = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
_NOW = datetime(2026, 11, 22, 17, 47, tzinfo=UTC)
_CHECK_ZONE = """
import json, os
from datetime import UTC, datetime
from backupd.config import Settings
from backupd.doctor.unattended import check_time_zone
found = check_time_zone(Settings(), os.environ, datetime(2026, 11, 22, 17, 47, tzinfo=UTC))
print(json.dumps([found.verdict, found.message]))
"""


def _settings(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "backupd.toml"
    file.write_text(text)
    return load(file, {"BACKUPD_STATE_DIR": str(tmp_path)})


def _found(findings: Any) -> list[tuple[str, Verdict, str]]:
    return [(finding.check, finding.verdict, finding.message) for finding in findings]


def test_next_runs_are_shown_in_the_time_zone_of_the_schedule(tmp_path: Path) -> None:
    """Each kind of run has one line, with its next time in the time zone of the schedule."""
    settings = _settings(
        tmp_path,
        '[[databases]]\npath = "app.db"\n'
        '[schedule]\nsnapshots = "15 3 * * *"\ntime_zone = "Asia/Tokyo"\nprunes = "never"\n',
    )
    assert _found(check_schedules(settings, entries_by_name(settings.databases), _NOW)) == [
        ("snapshots", Verdict.OK, "15 3 * * *, next at 2026-11-23 03:15:00+09:00"),
        ("drills", Verdict.OK, "0 4 * * *, next at 2026-11-23 04:00:00+09:00"),
        ("prunes", Verdict.NOTE, "never, except after snapshots"),
    ]


def test_each_schedule_is_shown_with_its_databases(tmp_path: Path) -> None:
    """A schedule without drills is a warning."""
    settings = _settings(
        tmp_path,
        '[[databases]]\npath = "app.db"\n[[databases]]\npath = "b.db"\n[databases.schedule]\nsnapshots = "every 1h"\n'
        'drills = "never"\n',
    )
    found = _found(check_schedules(settings, entries_by_name(settings.databases), _NOW))
    assert [(check, verdict) for check, verdict, _ in found] == [
        ("snapshots", Verdict.OK),
        ("drills", Verdict.OK),
        ("prunes", Verdict.OK),
        ("snapshots", Verdict.OK),
        ("drills", Verdict.WARNING),
        ("prunes", Verdict.OK),
    ]
    assert found[0][2].endswith("(app)")
    assert found[3][2].endswith("(b)")


@pytest.mark.parametrize(
    ("environ", "verdict", "expected"),
    sampled(
        [
            ({"TZ": "Europe/Berlin"}, "ok", "Europe/Berlin (TZ), now 2026-11-22 18:47:00+01:00"),
            ({"TZ": ":Europe/Berlin"}, "ok", "Europe/Berlin (TZ)"),
            ({"TZ": "Europe/Berln"}, "warning", "there is no time zone TZ=Europe/Berln"),
            ({"TZ": "CET-1CEST,M3.5.0,M10.5.0/3"}, "ok", "2026-11-22 18:47:00+01:00"),
            ({"TZ": "<+03>-3"}, "ok", "2026-11-22 20:47:00+03:00"),
            ({"TZ": "CET-1CEST,M3.5.0"}, "warning", "there is no time zone TZ=CET-1CEST,M3.5.0"),
            ({"TZ": '"Europe/Berlin"'}, "warning", 'there is no time zone TZ="Europe/Berlin": schedules use UTC'),
            ({"TZ": "'CET-1CEST'"}, "warning", "there is no time zone TZ='CET-1CEST'"),
            ({"TZ": "/nosuch"}, "warning", "there is no time zone TZ=/nosuch"),
            ({"TZ": ""}, "note", "that of this machine"),
            ({"TZ": "UTC"}, "ok", "UTC (TZ)"),
            ({"TZ": "Europe/Berlin", "TZDIR": "/nowhere"}, "warning", "this system does not know TZ=Europe/Berlin"),
        ],
        fast=4,
    ),
    ids=lambda value: value.get("TZ", "") + value.get("TZDIR", "") if isinstance(value, dict) else None,
)
def test_a_time_zone_that_is_not_used_as_written_is_a_warning(
    environ: dict[str, str], verdict: str, expected: str
) -> None:
    """An unknown name, or a system without zones, silently means UTC; in a process of its own."""
    checked = subprocess.run(
        [sys.executable, "-c", _CHECK_ZONE],
        env={"PATH": os.environ["PATH"], "HOME": "/", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    found, message = json.loads(checked.stdout)
    assert (found, expected in message) == (verdict, True), message


def test_a_configured_time_zone_wins(tmp_path: Path) -> None:
    """A configured time zone takes precedence over TZ, even over one that is unknown."""
    settings = _settings(tmp_path, '[schedule]\ntime_zone = "Europe/Berlin"\n')
    found = check_time_zone(settings, {"TZ": "Nowhere/Else"}, _NOW)
    assert (found.verdict, "18:47:00+01:00" in found.message) == (Verdict.OK, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("targets", Verdict.WARNING)]),
        ('[[notifications]]\nurl = "json://localhost"\n', [("targets", Verdict.OK), ("heartbeats", Verdict.NOTE)]),
        ('[[heartbeats]]\nurl = "http://localhost/x"\n', [("targets", Verdict.NOTE), ("heartbeats", Verdict.OK)]),
        (
            '[[heartbeats]]\nurl = "http://localhost/x"\ndatabase = "ap"\n',
            [("targets", Verdict.NOTE), ("heartbeats", Verdict.OK), ("heartbeats", Verdict.WARNING)],
        ),
    ],
    ids=["none", "notifications", "heartbeats", "a heartbeat of no database"],
)
def test_missing_notification_target_is_a_warning(
    tmp_path: Path, text: str, expected: list[tuple[str, Verdict]]
) -> None:
    """No target at all is a warning, and so is a heartbeat for a database that does not exist."""
    found = _found(check_notifications(_settings(tmp_path, text), ["app"]))
    assert [(check, verdict) for check, verdict, _ in found] == expected


def _targets(url: str) -> Settings:
    return Settings(
        notifications=(NotificationSettings(url=f"{url.replace('http', 'json')}/notify-secret"),),
        heartbeats=(HeartbeatSettings(url=f"{url}/beat-secret"),),
    )


@_WITH_APPRISE
def test_each_target_gets_one_message() -> None:
    """A notification that says that it is a test, and one ping."""
    with sink() as server:
        findings = send_tests(_targets(server.url))
        sent = dict(server.received)
    assert [finding.verdict for finding in findings] == [Verdict.OK, Verdict.OK]
    assert sorted(sent) == ["/beat-secret", "/notify-secret"]
    assert all("test by `backupd doctor --send-test`" in body for body in sent.values())


@_WITH_APPRISE
def test_failed_tests_are_reported_without_secrets() -> None:
    """Each test message that fails has a finding, which shows no secret of the URL."""
    with sink() as server:
        server.code = 500
        findings = send_tests(_targets(server.url))
    assert [(each.verdict, each.exit_code) for each in findings] == [(Verdict.ERROR, ExitCode.USAGE)] * 2
    assert "secret" not in "".join(f"{each.message}{each.remedy}" for each in findings)
    assert "the server answered 500" in findings[1].message
    assert "apprise -vv" in (findings[0].remedy or "")
    assert "curl -v URL" in (findings[1].remedy or "")
    assert "apprise" not in (findings[1].remedy or "")


@_WITH_APPRISE
def test_two_targets_on_one_host_have_different_names() -> None:
    """Two targets on one host are named by their places in the configuration, as in its errors."""
    with sink() as server:
        first = _targets(server.url)
        findings = send_tests(Settings(notifications=first.notifications * 2, heartbeats=first.heartbeats * 2))
    assert [each.message.split(":")[0] for each in findings] == [
        "sent to notifications[0] (json",
        "sent to notifications[1] (json",
        "sent to heartbeats[0] (http",
        "sent to heartbeats[1] (http",
    ]


@_WITH_APPRISE
def test_a_target_that_hangs_fails_at_the_time_limit() -> None:
    """The user does not wait longer."""
    with sink() as server:
        server.gate.clear()
        findings = send_tests(_targets(server.url), seconds=0.3)
    assert ["was not sent within 0.3 s" in each.message for each in findings] == [True, True]


@_WITH_APPRISE
def test_a_test_without_targets_is_a_warning() -> None:
    """The user expects that a message arrives."""
    (finding,) = send_tests(Settings())
    assert finding.verdict is Verdict.WARNING
