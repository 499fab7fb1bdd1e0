"""What others chose for the process: credentials of other tools, time zones, variables, and what servers say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.extent import sampled, slow
from harness.loopback import loopback
from harness.place import create_database
from harness.site import new_site

from backupd.errors import ExitCode

if TYPE_CHECKING:
    from pathlib import Path

    from harness.loopback import Handler, Request

_TOKEN = "a-Session-Token-that-nobody-may-see"


def _two_stores(home: Path, endpoint_url: str) -> None:
    create_database(home / "app.db", rows=10)
    site = new_site(home)
    # The bucket first: what is wrong with it must not be the end of what comes after it.
    bucket = {"url": "s3://bucket/x", "endpoint_url": endpoint_url, "max_attempts": 1}
    site.configure(stores=[bucket, "backups"], http={"listen": ""})


@slow
@pytest.mark.parametrize("way", sampled(["process", "token file", "garbage", "line break", "proxy"]))
def test_credentials_that_cannot_be_had_cost_one_store_alone(tmp_path: Path, way: str) -> None:
    """Unusable credentials fail one store in every command, with no traceback and no secret."""
    (tmp_path / "config").write_text("[default]\ncredential_process = /nosuch/tool\n")
    (tmp_path / "garbage").write_bytes(b"\xff\xfe[default")
    environ = {
        "token file": {
            "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x",
            "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "none"),
        },
        "process": {"AWS_CONFIG_FILE": str(tmp_path / "config")},
        "garbage": {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "garbage")},
        "line break": {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_SESSION_TOKEN": f"{_TOKEN}\n",
        },
        "proxy": {"HTTP_PROXY": "http://["},
    }[way]
    home = tmp_path / "home"
    home.mkdir()
    _two_stores(home, "http://127.0.0.1:1")
    backupd = CommandLine(home, **environ)
    reported = [
        backupd.run("now", code=ExitCode.PARTLY_DONE),
        backupd.run("list", code=ExitCode.PARTLY_DONE),
        backupd.run("verify", code=ExitCode.PARTLY_DONE),
        backupd.run("prune", code=ExitCode.PARTLY_DONE),
        backupd.run("doctor", "--json", code=ExitCode.STORE_UNAVAILABLE),
        backupd.run("restore", "app@latest", "--to", "restored.db"),
    ]
    assert len([*(home / "backups/app/snapshots").glob("*.json")]) == 1
    assert all("s3://bucket/x" in each.reported("error")[0] for each in reported[:4])
    written = [path.read_bytes() for path in (home / "state").rglob("*") if path.is_file()]
    assert not any(_TOKEN in f"{each.stdout}{each.stderr}" for each in reported)
    assert not any(_TOKEN.encode() in each for each in written)


def test_a_daemon_goes_on_with_the_other_store(tmp_path: Path) -> None:
    """A daemon whose credentials for one store are unusable says so, and backs up into the other."""
    _two_stores(tmp_path, "http://127.0.0.1:1")
    (tmp_path / "config").write_text("[default]\ncredential_process = /nosuch/tool\n")
    with new_site(tmp_path).daemon(AWS_CONFIG_FILE=str(tmp_path / "config")) as daemon:
        daemon.wait_for("snapshot", store=str(tmp_path / "backups"), outcome="created")
        reported = daemon.wait_for("store not asked", store="s3://bucket/x")["error"]["message"]
    assert "the credentials cannot be used: /nosuch/tool: no such file or directory" in reported


def test_what_a_server_says_reaches_no_terminal_and_no_status(tmp_path: Path) -> None:
    """An error of 20 MB with commands for a terminal and with the key's id is a line of a few hundred characters."""

    def answer(handler: Handler, request: Request) -> None:
        code = f"\u202e{request.headers['Authorization']}" + "A" * (20 << 20)
        handler.error(400, code)

    with loopback(answer) as server:
        _two_stores(tmp_path, server.endpoint_url)
        backupd = CommandLine(tmp_path, AWS_ACCESS_KEY_ID="the-Key-Id", AWS_SECRET_ACCESS_KEY="x" * 20)
        said = backupd.run("now", code=ExitCode.PARTLY_DONE)
    assert len(said.stdout + said.stderr) < 2000
    assert "\u202e" not in said.stderr
    status = (tmp_path / "state/status.json").read_text()
    assert len(status) < 20_000
    assert "the-Key-Id" not in f"{said.stderr}{status}"


@pytest.mark.parametrize(
    ("zone", "warnings"),
    sampled(
        [
            ("CET-1CEST,M3.5.0,M10.5.0/3", []),
            ('"Europe/Berlin"', ['there is no time zone TZ="Europe/Berlin": schedules use UTC']),
            ("Nonsense", ["there is no time zone TZ=Nonsense: schedules use UTC"]),
            ("/etc/passwd", ["there is no time zone TZ=/etc/passwd: schedules use UTC"]),
            (":/etc/localtime", []),
        ]
    ),
)
def test_a_time_zone_that_a_library_does_not_know_changes_nothing(
    tmp_path: Path, zone: str, warnings: list[str]
) -> None:
    """What failed is tried again, and when TZ means nothing, that is said once."""
    site = new_site(tmp_path)
    site.configure()
    create_database(tmp_path / "app.db", rows=1)
    site.store.touch()
    with site.daemon(TZ=zone) as daemon:
        daemon.wait_for("store not asked", patience_seconds=20)
        site.store.unlink()
        daemon.wait_for("snapshot", outcome="created", patience_seconds=20)
        daemon.reload()
        assert [event["event"] for event in daemon.events if "time zone" in event["event"]] == warnings


@pytest.mark.parametrize(
    "command", sampled([["list"], ["doctor"], ["show", "latest"], ["verify"], ["prune"], ["status"]], fast=2)
)
def test_a_time_zone_a_day_from_utc_is_not_used(tmp_path: Path, command: list[str]) -> None:
    """The C library takes it, and Python has no time in it: no bug, but a warning, and times in UTC."""
    create_database(tmp_path / "app.db", rows=1)
    new_site(tmp_path).configure()
    CommandLine(tmp_path).run("now", code=ExitCode.DONE)
    usual, said = (CommandLine(tmp_path, TZ=zone).run(*command) for zone in ("UTC", "CET-25"))
    assert said.code == usual.code
    warning = "TZ=CET-25 is a day or more from UTC, and is not used: times are in UTC"
    assert said.reported("warning") == [warning, *usual.reported("warning")]


def test_values_in_quotes_make_no_directory(tmp_path: Path) -> None:
    """A value in quotes, as `docker run --env-file` passes it, is refused by its variable, and nothing is created."""
    create_database(tmp_path / "app.db", rows=1)
    quoted = {
        "BACKUPD_STORES__0__URL": f'"{tmp_path}/backups"',
        "BACKUPD_STATE_DIR": f"'{tmp_path}/state'",
        "BACKUPD_DATABASES__0__PATH": f"{tmp_path}/app.db\r",
    }
    before = {path.name for path in tmp_path.iterdir()}
    for variable, value in quoted.items():
        said = CommandLine(tmp_path, **{variable: value}).run("now", "app.db", code=ExitCode.USAGE)
        assert said.reported("error")[0].startswith(f"{variable}: ")
    for variable in ("BACKUPD_CONFIG", "BACKUPD_STATE_DIR"):
        said = CommandLine(tmp_path, **{"BACKUPD_CONFIG": f"{tmp_path}/x", variable: f'"{tmp_path}/new/x"'}).run(
            "init", "--yes", code=ExitCode.USAGE
        )
        assert said.reported("error")[0].startswith(f"{variable}: ")
    assert {path.name for path in tmp_path.iterdir()} == before


def test_service_links_of_kubernetes_are_none_of_ours(tmp_path: Path) -> None:
    """Beside services called backupd and backupd-metrics, everything starts as elsewhere."""
    create_database(tmp_path / "app.db", rows=1)
    links = {}
    for service in ("BACKUPD", "BACKUPD_METRICS"):
        links |= {
            f"{service}_SERVICE_HOST": "10.0.0.9",
            f"{service}_SERVICE_PORT": "9620",
            f"{service}_PORT": "tcp://10.0.0.9:9620",
            f"{service}_PORT_9620_TCP_PROTO": "tcp",
        }
    said = CommandLine(tmp_path, **links).run("now", "app.db", "--json")
    assert json.loads(said.stdout)["snapshots"][0]["outcome"] == "created"
