from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from backupd.config import entries_by_name, load
from backupd.doctor.findings import Verdict
from backupd.doctor.times import judge_listeners, judge_schedules, judge_time_zone

if TYPE_CHECKING:
    from pathlib import Path

_NOW = datetime(2026, 11, 22, 17, 47, tzinfo=UTC)
_JUDGE_ZONE = """
import json, os
from datetime import UTC, datetime
from backupd.config import Settings
from backupd.doctor.times import judge_time_zone
found = judge_time_zone(Settings(), os.environ, datetime(2026, 11, 22, 17, 47, tzinfo=UTC))
print(json.dumps([found.verdict, found.message]))
"""


def _settings(tmp_path: Path, text: str) -> Any:
    file = tmp_path / "backupd.toml"
    file.write_text(text)
    return load(file, {"BACKUPD_STATE_DIR": str(tmp_path)})


def _found(findings: Any) -> list[tuple[str, Verdict, str]]:
    return [(finding.check, finding.verdict, finding.message) for finding in findings]


def test_next_runs_are_told_by_the_clocks_of_the_schedule(tmp_path: Path) -> None:
    """One line for each kind of run, in the time zone in which it was written."""
    settings = _settings(
        tmp_path,
        '[[databases]]\npath = "app.db"\n'
        '[schedule]\nsnapshots = "15 3 * * *"\ntime_zone = "Asia/Tokyo"\nprunes = "never"\n',
    )
    assert _found(judge_schedules(settings, entries_by_name(settings.databases), _NOW)) == [
        ("snapshots", Verdict.OK, "15 3 * * *, next at 2026-11-23 03:15:00+09:00"),
        ("drills", Verdict.OK, "0 4 * * *, next at 2026-11-23 04:00:00+09:00"),
        ("prunes", Verdict.NOTE, "never, besides after snapshots"),
    ]


def test_databases_with_schedules_of_their_own(tmp_path: Path) -> None:
    """Each schedule is told once, with whose it is; no test restores at all is a warning."""
    settings = _settings(
        tmp_path,
        '[[databases]]\npath = "app.db"\n[[databases]]\npath = "b.db"\n[databases.schedule]\nsnapshots = "every 1h"\n'
        'drills = "never"\n',
    )
    found = _found(judge_schedules(settings, entries_by_name(settings.databases), _NOW))
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
    ("environ", "verdict", "told"),
    [
        ({"TZ": "Europe/Berlin"}, "ok", "Europe/Berlin (TZ), now 2026-11-22 18:47:00+01:00"),
        ({"TZ": ":Europe/Berlin"}, "ok", "Europe/Berlin (TZ)"),
        ({"TZ": "Europe/Berln"}, "warning", "there is no time zone TZ=Europe/Berln"),
        ({"TZ": "CET-1CEST,M3.5.0,M10.5.0/3"}, "ok", "2026-11-22 18:47:00+01:00"),
        ({"TZ": "<+03>-3"}, "ok", "2026-11-22 20:47:00+03:00"),
        ({"TZ": "CET-1CEST,M3.5.0"}, "warning", "there is no time zone TZ=CET-1CEST,M3.5.0"),
        ({"TZ": '"Europe/Berlin"'}, "warning", 'there is no time zone TZ="Europe/Berlin": schedules go by UTC'),
        ({"TZ": "'CET-1CEST'"}, "warning", "there is no time zone TZ='CET-1CEST'"),
        ({"TZ": "/nosuch"}, "warning", "there is no time zone TZ=/nosuch"),
        ({"TZ": ""}, "note", "that of this machine"),
        ({"TZ": "UTC"}, "ok", "UTC (TZ)"),
        ({"TZ": "Europe/Berlin", "TZDIR": "/nowhere"}, "warning", "this system does not know TZ=Europe/Berlin"),
    ],
    ids=lambda value: value.get("TZ", "") + value.get("TZDIR", "") if isinstance(value, dict) else None,
)
def test_the_time_zone_that_is_meant_is_the_one_that_counts(environ: dict[str, str], verdict: str, told: str) -> None:
    """A name that nobody knows, or a system without zones, silently means UTC: in a process of its own."""
    judged = subprocess.run(
        [sys.executable, "-c", _JUDGE_ZONE],
        env={"PATH": os.environ["PATH"], "HOME": "/", **environ},
        capture_output=True,
        text=True,
        check=True,
    )
    found, message = json.loads(judged.stdout)
    assert (found, told in message) == (verdict, True), message


def test_a_configured_time_zone_needs_no_system(tmp_path: Path) -> None:
    """Whatever TZ says."""
    settings = _settings(tmp_path, '[schedule]\ntime_zone = "Europe/Berlin"\n')
    found = judge_time_zone(settings, {"TZ": "Nowhere/Else"}, _NOW)
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
    ids=["nobody", "notifications", "heartbeats", "a heartbeat of no database"],
)
def test_whether_anybody_would_be_told(tmp_path: Path, text: str, expected: list[tuple[str, Verdict]]) -> None:
    """Nobody at all is a warning; a heartbeat for a name that does not exist is one too."""
    found = _found(judge_listeners(_settings(tmp_path, text), ["app"]))
    assert [(check, verdict) for check, verdict, _ in found] == expected
