from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine as IsolatedCommandLine
from harness.cli import Runner
from harness.confinement import ANOTHER_UID, another_user, shared_directory
from harness.statuses import (
    BUCKET,
    DISK,
    DOWN,
    HOUR,
    MINUTE,
    NOON,
    created,
    drilled,
    failed,
    healthy,
    recorded,
    snapshot_id,
    with_health,
    with_times,
)
from msgspec.structs import replace

from backupd.health import Status, StatusFile
from backupd.health.codec import Encoder, decode
from backupd.health.planning import with_daemon_stopped, with_running, with_vanished
from backupd.health.recording import with_drill
from backupd.health.recovery import with_following
from backupd.health.values import FollowHealth, Gap, SegmentsHealth
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from harness.command_line import CommandLine

FOLLOW = FollowHealth(
    max_age_seconds=300,
    lag_seconds=4,
    window="20261122T100000000Z-7f3a91c2",
    window_since=NOON - 2 * HOUR,
    last_gap=Gap(at=NOON - 2 * HOUR, reason="the log was removed"),
    gaps=(NOON - 2 * HOUR,),
    gaps_total=1,
)
_COST = """
import os, resource, sys
sys.argv = ["backupd", "status", "--check"]
import click
before = resource.getrusage(resource.RUSAGE_SELF)
from backupd.cli import exit_code_of
code = exit_code_of(sys.argv[1:])
after = resource.getrusage(resource.RUSAGE_SELF)
print(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
print(*sorted(sys.modules))
"""


def moved(status: Status, by: timedelta) -> Status:
    """The status with every time in it moved by `by`, for example from noon of that day in November."""
    text = Encoder().encode(status)
    times = re.compile(r'"(\d{4}-\d\d-\d\dT[0-9:.]+\+00:00)"')
    return decode(times.sub(lambda found: f'"{(datetime.fromisoformat(found[1]) + by).isoformat()}"', text))


def prepare(state_dir: Path, status: Status, *, age: timedelta = timedelta(0), is_alive: bool = True) -> StatusFile:
    """Write the status of noon as if noon was `age` ago, with a daemon that lives or not."""
    file = StatusFile(StateDirectory(state_dir))
    file.update(lambda _: moved(status, datetime.now(UTC) - age - NOON))
    if is_alive:
        file.touch()
    return file


@pytest.fixture
def state(cli: CommandLine) -> Path:
    """The state directory of the commands."""
    return cli.directory / "state"


def followed(status: Status, follow: FollowHealth, lacking: SegmentsHealth | None = None) -> Status:
    """The status with `app`, in WAL mode, being followed, and a bucket that lacks something."""
    app = replace(status.databases["app"], journal_mode="wal")
    status = replace(status, databases={**status.databases, "app": app})
    return with_following(
        status, {"app": follow}, {} if lacking is None else {("app", BUCKET): lacking}, blind_since=None
    )


def test_a_followed_database_has_a_line(cli: CommandLine, state: Path) -> None:
    """One recovery point for all stores where they agree, and one for each where they do not."""
    prepare(state, followed(healthy(), FOLLOW))
    (line,) = [line for line in cli.run("status", expect=0).stdout.splitlines() if line.startswith("app: ")]
    assert re.fullmatch(r"app: recovery point \d+ s ago; window since \S+ \S+; 1 gap in 24 h", line)
    prepare(state, followed(healthy(), FOLLOW, SegmentsHealth(waiting_since=NOON - 2 * HOUR)))
    finished = cli.run("status", expect=0)
    assert re.search(rf"app: recovery point \d+ s ago in {DISK}, 2 h ago in {BUCKET}; window since ", finished.stdout)
    assert f"warning: app can be restored from {BUCKET} up to " in finished.stderr
    points = cli.run("status", "--json", expect=0).document["status"]["recovery_points"]["app"]
    assert points[BUCKET] < points[DISK]


def test_a_database_that_is_not_followed_has_a_line_with_the_reason(cli: CommandLine, state: Path) -> None:
    """The last gap, or the journal mode with what to do about it."""
    closed = replace(FOLLOW, window=None, window_since=None)
    prepare(state, followed(healthy(), closed))
    assert re.search(r"; no window since \S+ \S+: the log was removed; 1 gap in 24 h", cli.run("status").stdout)
    prepare(state, followed(healthy(), replace(closed, last_gap=None, gaps=())))
    assert "; no window yet: no commit has been seen\n" in cli.run("status").stdout
    for journal_mode, said in (("delete", "rollback-journal mode"), (None, "it has had no write-ahead log yet")):
        app = replace(followed(healthy(), closed).databases["app"], journal_mode=journal_mode)
        prepare(state, replace(healthy(), databases={"app": app}))
        finished = cli.run("status", expect=0)
        assert f"app: not followed: {said}\n" in finished.stdout
        assert ("PRAGMA journal_mode=WAL" in finished.stderr) == (journal_mode == "delete")
    assert "recovery" not in cli.run("status", "--check").stdout


def test_healthy_status_is_one_line(cli: CommandLine, state: Path) -> None:
    """A healthy status is one line, and nothing else is printed."""
    prepare(state, healthy("a", "b", "c"), age=4 * MINUTE)
    finished = cli.run("status", "--check", expect=0)
    assert finished.stdout == "ok: 3 databases current in 2 stores, newest 4 min ago\n"
    assert finished.stderr == ""


def test_line_names_the_oldest_state_too(cli: CommandLine, state: Path) -> None:
    """The line names the oldest state too, and counts databases that were not captured because they are not due."""
    status = with_health(healthy("a", "b"), "a", current_at=NOON - 14 * MINUTE)
    prepare(state, status, age=4 * MINUTE)
    assert cli.run("status", "--check", expect=0).lines == [
        "ok: 2 databases current in 2 stores, newest 4 min ago, oldest 18 min ago"
    ]
    prepare(state, with_health(status, "b", current_at=None), age=4 * MINUTE)
    assert cli.run("status", "--check", expect=0).stdout.endswith(", 1 not due yet\n")


def test_alarms_are_one_line_too(cli: CommandLine, state: Path) -> None:
    """The first of what is red, how much it concerns, and how much there is besides."""
    status = healthy("a", "b", "c")
    for name in ("b", "b", "c", "c"):
        status = recorded(status, failed(name))
    prepare(state, status)
    finished = cli.run("status", "--check", expect=1)
    (line,) = finished.lines
    assert line.startswith(
        f"2 of 3 databases: b is not current in {BUCKET}: s3://bucket/creditrobot does not answer (2 attempts); "
    )
    assert re.search(r", since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+0[12]:00; and 1 more alarm$", line)
    assert finished.stderr == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda status: with_health(status, due_by=NOON - MINUTE), "1 of 1 database: app is not current in /backups"),
        (
            lambda status: with_drill(status, drilled("damaged-store", error=DOWN), at=NOON),
            "1 of 1 database: snapshots",
        ),
        (
            lambda status: with_drill(status, drilled("damaged-source", error=DOWN), at=NOON),
            "app was a damaged database",
        ),
        (lambda status: with_times(status, "app", proof_due_by=NOON - MINUTE), "no test restore of app has succeeded"),
        (lambda status: replace(status, databases={}), "no database is known yet: the daemon has just started"),
        (lambda status: with_health(status, current_at=NOON + HOUR), "dated in the future"),
        (lambda status: replace(status, daemon=None), "backupd run has not run here yet"),
    ],
    ids=["late", "damaged", "source", "unproven", "empty", "future", "no daemon"],
)
def test_every_red_alarm_exits_with_one(
    cli: CommandLine, state: Path, change: Callable[[Status], Status], reason: str
) -> None:
    """Every red alarm exits with code 1 and one line that says what is red."""
    prepare(state, change(healthy()))
    finished = cli.run("status", "--check", expect=1)
    assert reason in finished.lines[0]
    assert len(finished.lines) == 1


def test_daemon_without_a_sign_of_life_is_red(cli: CommandLine, state: Path) -> None:
    """A daemon that has left no sign of life for a while is red, even if its last status was green."""
    prepare(state, healthy(), is_alive=False)
    assert cli.run("status", "--check", expect=1).stdout.startswith("the daemon (process 12) has left no sign of life")
    prepare(state, healthy())
    old = (datetime.now(UTC) - 3 * MINUTE).timestamp()
    os.utime(state / "alive", (old, old))
    assert cli.run("status", "--check", expect=1).stdout.startswith("the daemon (process 12) has left no sign of life")
    StatusFile(StateDirectory(state)).touch()
    cli.run("status", "--check", expect=0)


def test_stopped_daemon_is_not_red_until_something_is_late(cli: CommandLine, state: Path) -> None:
    """A person stopped it on purpose."""
    status = with_times(with_daemon_stopped(healthy(), at=NOON), "app", next_run_at=NOON + HOUR)
    prepare(state, status, age=5 * MINUTE, is_alive=False)
    shown = cli.run("status", expect=0).lines
    assert shown[0] == "the daemon was stopped 5 min ago"
    assert re.split(r"  +", shown[2])[-1] == "-"  # no machine proves anything there
    assert cli.run("status", "--check", expect=0).stdout.endswith("; the daemon was stopped 5 min ago\n")
    prepare(state, status, age=HOUR, is_alive=False)
    cli.run("status", "--check", expect=1)


def test_status_is_red_where_nothing_ever_ran(cli: CommandLine, state: Path) -> None:
    """A status is red where no daemon ever ran, and the check creates nothing."""
    finished = cli.run("status", "--check", expect=1)
    assert finished.lines == [f"backupd run has not run here yet (there is no sign of it in {state})"]
    assert not state.exists()
    shown = cli.run("status", expect=0)
    assert "nothing is known yet" in shown.stdout
    assert cli.run("status", "--json", expect=0).document["status"]["is_healthy"] is False


@pytest.mark.parametrize("content", [b"{", b'{"version":2}'])
def test_unreadable_status_file_is_red_in_one_line(cli: CommandLine, state: Path, content: bytes) -> None:
    """Damaged, or of a newer backupd."""
    prepare(state, healthy())
    (state / "status.json").write_bytes(content)
    finished = cli.run("status", "--check", expect=1)
    assert finished.lines[0].startswith(f"the status is not known: the status file {state}/status.json ")
    assert len(finished.lines) == 1
    assert cli.run("status").code in {20, 21}


def test_wrong_configuration_is_red_in_one_line(cli: CommandLine) -> None:
    """Docker knows no other codes than 0 and 1."""
    (cli.directory / "backupd.toml").write_text("stat_dir = 'x'")
    finished = cli.run("status", "--check", expect=1, environ={"BACKUPD_STATE_DIR": ""})
    assert finished.lines[0].startswith("the status is not known: ")
    assert len(finished.lines) == 1


def test_state_directory_may_be_configured(cli: CommandLine) -> None:
    """The state directory comes from the configuration where no variable sets it."""
    prepare(cli.directory / "elsewhere", healthy())
    (cli.directory / "backupd.toml").write_text("state_dir = 'elsewhere'")
    cli.run("status", "--check", expect=0, environ={"BACKUPD_STATE_DIR": ""})
    cli.run("status", "--check", expect=1)


def test_health_check_imports_little_and_is_fast(cli: CommandLine, state: Path) -> None:
    """The health check, which runs twice a minute, imports nothing heavy and takes less than 0.3 s."""
    prepare(state, healthy("a"))
    output = _cost(cli)
    seconds, modules = float(output[1]), set(output[2].split())
    heavy = {
        "numpy",
        "boto3",
        "botocore",
        "apscheduler",
        "structlog",
        "rich",
        "apprise",
        "prometheus_client",
    }
    assert not modules & (heavy | {"backupd.config", "backupd.backup", "ssl", "asyncio"})
    assert seconds < 0.3  # 0.05 s where nothing else runs


def _cost(cli: CommandLine) -> list[str]:
    finished = subprocess.run(
        [sys.executable, "-c", _COST],
        cwd=cli.directory,
        env=cli.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return finished.stdout.splitlines()


def test_proof_counts_more_than_intact_bytes_of_the_same_snapshot(cli: CommandLine, state: Path) -> None:
    """A machine without the key shows when another one has proven the snapshot."""
    proven = drilled("intact", id=snapshot_id(), proven_at=NOON - 2 * HOUR)
    status = with_drill(healthy(stores=(DISK,)), proven, at=NOON)
    prepare(state, status, age=4 * MINUTE)
    assert "  intact " not in cli.run("status", expect=0).stdout
    newer = drilled("intact", id=snapshot_id(NOON + MINUTE))
    prepare(state, with_drill(status, newer, at=NOON + MINUTE), age=4 * MINUTE)
    assert "  intact " in cli.run("status", expect=0).stdout


def test_table_has_every_database_in_every_store(cli: CommandLine, state: Path) -> None:
    """The table has a row for every database in every store; warnings and hints below say what is wrong."""
    status = healthy("a", "app", "b", "c")
    status = recorded(recorded(status, failed("a")), failed("a"))
    status = with_vanished(with_running(recorded(status, failed("app")), "app", since=NOON), ["c"], at=NOON)
    status = with_times(with_health(status, "b", current_at=None, snapshot_id=None), "a", next_run_at=NOON + HOUR)
    status = with_drill(status, drilled("proven", database="b", store=BUCKET), at=NOON - 2 * HOUR)
    prepare(state, status, age=4 * MINUTE)
    finished = cli.run("status", expect=0)
    title, heading, *rows = finished.lines
    assert re.fullmatch(
        r"the daemon \(process 12, version 0\.1\.0\) was started 64 min ago; last sign of life \d s ago", title
    ) or re.fullmatch(r"the daemon .* was started 1 h ago; last sign of life \d s ago", title)
    assert heading.split() == ["DATABASE", "STORE", "STATE", "CURRENT", "SNAPSHOT", "PROVEN", "NEXT", "RUN"]
    cells = [re.split(r"  +", row) for row in rows]
    assert [row[:4] for row in cells] == [
        ["a", DISK, "current", "4 min ago"],
        ["a", BUCKET, "failing", "4 min ago"],
        ["app", DISK, "running", "4 min ago"],
        ["app", BUCKET, "running", "4 min ago"],
        ["b", DISK, "waiting", "never"],
        ["b", BUCKET, "current", "4 min ago"],
        ["c", DISK, "vanished", "4 min ago"],
        ["c", BUCKET, "vanished", "4 min ago"],
    ]
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\+0[12]:00", cells[0][6])
    assert cells[0][4:6] == ["20261122T120000000Z-7f3a91c2", "never"]
    assert (cells[4][4:], cells[5][5:]) == (["-", "never", "-"], ["2 h ago", "-"])
    lines = finished.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["warning", "hint"] * 2
    assert lines[0].startswith(f"warning: a is not current in {BUCKET}")
    assert lines[1] == "hint: check the network"
    assert "/app/c.db is gone" in lines[2]


def test_status_without_a_daemon_shows_manual_runs(cli: CommandLine) -> None:
    """Cron runs `backupd now`: nothing is ever late, and it says so."""
    file = StatusFile(StateDirectory(cli.directory / "state"))
    file.update(
        lambda _: moved(recorded(Status(), created(), created(store=BUCKET), due_by=None), datetime.now(UTC) - NOON)
    )
    finished = cli.run("status", expect=0)
    assert finished.lines[0] == "no daemon has run here: this is what backupd now has done, and nothing counts as late"
    assert [re.split(r"  +", row)[2] for row in finished.lines[2:]] == ["current", "current"]
    assert finished.stderr == ""


def test_json_document_has_the_status_and_the_alarms(cli: CommandLine, state: Path) -> None:
    """The status by its names, and what is wrong; --check still decides the exit code."""
    prepare(state, recorded(recorded(healthy(), failed()), failed()))
    document = cli.run("status", "--json", expect=0).document["status"]
    assert document["is_healthy"] is False
    assert document["daemon"]["pid"] == 12
    assert document["databases"]["app"]["stores"][BUCKET]["failure"]["count"] == 2
    (alarm,) = document["alarms"]
    assert alarm.keys() == {
        "kind", "database", "store", "message", "hint", "since", "is_red", "told_at", "times_told"
    }  # fmt: skip
    assert (alarm["kind"], alarm["is_red"], alarm["times_told"]) == ("failing", True, 0)
    assert document["alive_at"].endswith("Z")
    assert cli.run("status", "--check", "--json", expect=1).document["status"].keys() == document.keys()
    prepare(state, healthy())
    assert cli.run("status", "--check", "--json", expect=0).document["status"]["is_healthy"] is True


def test_user_who_may_not_read_the_status_gets_one_line() -> None:
    """A user who may not read the status is reported so, instead of that all is well or that nothing ever ran."""
    with another_user() as runner, shared_directory() as home:
        prepare(home / "state", healthy())
        finished = IsolatedCommandLine(home, runner=runner).run("status", "--check", code=1)
        (line,) = finished.stdout.splitlines()
        assert line.startswith("the status is not known: ")
        assert f"Permission denied for user {ANOTHER_UID}" in line
        assert str(home / "state") in line


def test_root_that_may_not_read_the_state_becomes_its_owner() -> None:
    """Root without capabilities becomes the owner of the state directory to read it, as in a container."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away, and drop capabilities")
    with shared_directory() as home:
        (home / "state").mkdir(mode=0o700)
        os.chown(home / "state", ANOTHER_UID, ANOTHER_UID)
        prepare(home / "state", healthy())
        dropped = "-dac_override,-dac_read_search,-fowner"
        confined = Runner(become=("setpriv", f"--bounding-set={dropped}", f"--inh-caps={dropped}", "--"))
        finished = IsolatedCommandLine(home, runner=confined).run("status", "--check")
        assert finished.stdout.startswith("ok: 1 database current in 2 stores")
