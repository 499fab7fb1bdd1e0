from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from harness.cli import tree
from harness.command_line import wait_until
from harness.extent import sampled, slow
from harness.loopback import loopback
from harness.place import connected
from harness.sink import sink

if TYPE_CHECKING:
    from harness.command_line import CommandLine, Finished
    from harness.loopback import Handler, Request
    from harness.s3_server import S3Server

_S3 = """
[[stores]]
url = "{url}"
endpoint_url = "{endpoint_url}"
access_key_id = "{access_key_id}"
secret_access_key = "{secret_access_key}"
"""
_LISTED_NOTHING = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


def _configure(cli: CommandLine, text: str = "") -> None:
    file = cli.directory / "backupd.toml"
    file.write_text(f'[[databases]]\npath = "app.db"\n{text or _directory_store()}')
    file.chmod(0o600)


def _directory_store(name: str = "backups") -> str:
    return f'[[stores]]\nurl = "{name}"\n'


def _s3_store(server: S3Server, bucket: str) -> str:
    return _S3.format(
        url=f"s3://{bucket}/some",
        endpoint_url=server.endpoint_url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
    )


def _checks(finished: Finished) -> dict[tuple[str, str], dict[str, Any]]:
    assert set(finished.document) == {"checks"}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for check in finished.document["checks"]:
        found.setdefault((check["subject"], check["check"]), check)
    return found


def test_everything_is_checked_and_nothing_is_changed(cli: CommandLine, seaweed: S3Server) -> None:
    """A database in use, a directory and a real bucket: every subject is there, no error, and all is as before."""
    bucket = seaweed.new_bucket()
    _configure(cli, _directory_store() + _s3_store(seaweed, bucket))
    with connected(cli.directory / "app.db", "SELECT * FROM users"):
        before = tree(cli.directory)
        checks = _checks(cli.run("doctor", "--json", expect=0))
        after = tree(cli.directory)
    assert {name for name in after if not name.endswith("-shm")} == {n for n in before if not n.endswith("-shm")}
    assert after["app.db"] == before["app.db"]
    assert seaweed.client().list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    subjects = list(dict.fromkeys(subject for subject, _ in checks))
    assert subjects == [
        "configuration",
        "state directory",
        "database app",
        f"store {cli.directory}/backups",
        f"store s3://{bucket}/some",
        "schedule",
        "notifications",
    ]
    assert {check["verdict"] for check in checks.values()} <= {"ok", "note", "warning"}
    for check in checks.values():
        assert set(check) == {"subject", "check", "verdict", "message", "remedy"}
        assert check["remedy"] or check["verdict"] in {"ok", "note"}


def test_findings_are_printed_under_their_subjects(cli: CommandLine) -> None:
    """Each subject has a title, each check a line with its remedy below, and a summary ends the output."""
    _configure(cli)
    lines = cli.run("doctor", expect=0).lines
    assert lines[0] == "configuration"
    assert any(line.startswith("  ok       opens") and "app.db opens read-only" in line for line in lines)
    assert any(line.startswith("  ok       use ") and "gave the same bytes back" in line for line in lines)
    warned = next(number for number, line in enumerate(lines) if line.startswith("  warning  targets"))
    assert lines[warned + 1].strip().startswith("do: add one of them")
    assert " checks: " in lines[-1]
    assert "ok  " not in cli.run("doctor", "--quiet", expect=0).stdout


def test_lines_fit_a_terminal(cli: CommandLine) -> None:
    """Colours, and no line longer than the terminal is wide, except for words that cannot be broken."""
    _configure(cli)
    finished = cli.run_on_terminal("doctor", columns=80)
    assert finished.code == 0
    assert "\x1b[33mwarning\x1b[0m" in finished.stdout
    plain = finished.stdout.replace("\x1b", "")
    assert all(
        len(line) < 95 for line in plain.splitlines() if " " in line.strip()[20:] and str(cli.directory) not in line
    )


@pytest.mark.parametrize(
    ("text", "code", "subject", "check"),
    [
        ("[capture]\nmax_lok = '3s'\n", 2, "configuration", "file"),
        ("[[databases]]\npath = 'gone.db'\n", 13, "database gone", "opens"),
        ("[[databases]]\npath = 'none/*.db'\n", 13, "configuration", "databases"),
        ("[[stores]]\nurl = 'app.db/backups'\n", 10, "store {}/app.db/backups", "write"),
        ("[[databases]]\npath = 'x/*.db'\n", 2, "configuration", "databases"),
    ],
    ids=["configuration", "database", "pattern", "store", "two of one name"],
)
def test_each_error_has_its_exit_code(cli: CommandLine, text: str, code: int, subject: str, check: str) -> None:
    """An error that doctor finds has the exit code of other commands, and a remedy in the complete JSON document."""
    cli.create_database("x/app.db", rows=1)
    _configure(cli, text)
    checks = _checks(cli.run("doctor", "--json", expect=code))
    found = checks[subject.format(cli.directory), check]
    assert found["verdict"] == "error"
    assert found["remedy"]


def test_nothing_configured_is_an_error(cli: CommandLine) -> None:
    """A container whose configuration is not mounted backs up nothing, and reports it."""
    checks = _checks(cli.run("doctor", "--json", expect=2))
    assert checks["configuration", "databases"]["verdict"] == "error"
    assert not (cli.directory / "backups").exists()


def test_a_database_without_an_entry_is_a_warning(cli: CommandLine) -> None:
    """Everything else is well, and it would be missed only when it is needed."""
    _configure(cli)
    assert ("configuration", "other files") not in _checks(cli.run("doctor", "--json", expect=0))
    path = cli.create_database("users.sqlite3", rows=1)
    check = _checks(cli.run("doctor", "--json", expect=0))["configuration", "other files"]
    assert (check["verdict"], str(path) in check["message"]) == ("warning", True)


def test_variables_replace_a_file(cli: CommandLine) -> None:
    """A container without a file gets no advice to write one."""
    variables = {"BACKUPD_DATABASES__0__PATH": "app.db", "BACKUPD_STORES__0__URL": "backups"}
    check = _checks(cli.run("doctor", "--json", environ=variables, expect=0))["configuration", "file"]
    assert (check["verdict"], check["remedy"]) == ("ok", None)


@slow
def test_many_databases_stay_on_one_screen(cli: CommandLine) -> None:
    """One database represents all that have the same findings; JSON has each of them."""
    for number in range(25):
        cli.create_database(f"tenants/t{number:02}/app.db", rows=1)
    (cli.directory / "tenants/t07/app.db").write_bytes(b"no database" * 20)
    (cli.directory / "backupd.toml").write_text(f'[[databases]]\npath = "tenants/*/app.db"\n{_directory_store()}')
    lines = cli.run("doctor", expect=13).lines
    assert "database t07" in lines
    assert "database t06" not in lines
    assert [line for line in lines if line.startswith("databases t01, t02, ") and " and 15 more: " in line]
    assert len(lines) < 60
    checks = _checks(cli.run("doctor", "--json", expect=13))
    assert {subject for subject, _ in checks if subject.startswith("database ")} == {
        f"database t{number:02}" for number in range(25)
    }


def test_test_messages_are_sent_on_demand_only(cli: CommandLine) -> None:
    """Only `--send-test` sends a message, one to each target."""
    with sink() as server:
        host = server.url.removeprefix("http://")
        targets = f'[[notifications]]\nurl = "json://{host}/n"\n[[heartbeats]]\nurl = "{server.url}/h"\n'
        _configure(cli, _directory_store() + targets)
        cli.run("doctor", expect=0)
        assert server.received == []
        checks = cli.run("doctor", "--send-test", "--json", expect=0).document["checks"]
        assert sorted(server.paths) == ["/h", "/n"]
    assert [check["verdict"] for check in checks if check["check"] == "test"] == ["ok", "ok"]


@slow
def test_a_hanging_store_does_not_hide_the_others(cli: CommandLine) -> None:
    """The directory beside it is checked; the store that never answers is an error within its time limit."""
    never = threading.Event()

    def silent(_handler: Handler, _request: Request) -> None:
        never.wait(60)

    with loopback(silent) as server:
        text = _S3.format(
            url="s3://bucket/x", endpoint_url=server.endpoint_url, access_key_id="a", secret_access_key="b"
        )
        _configure(cli, f'{_directory_store()}{text}time_limit = "1s"\n')
        started = time.monotonic()
        checks = _checks(cli.run("doctor", "--json", expect=10))
        never.set()
    assert time.monotonic() - started < 15
    assert checks["store s3://bucket/x", "write"]["verdict"] == "error"
    assert checks[f"store {cli.directory}/backups", "delete"]["verdict"] == "ok"


@pytest.mark.parametrize("number", sampled([signal.SIGINT, signal.SIGTERM]), ids=lambda number: number.name)
def test_interrupted_doctor_leaves_nothing_in_a_store(cli: CommandLine, number: signal.Signals) -> None:
    """The object was written and is being read back when the signal comes: it is deleted before the process ends."""
    stored: dict[str, bytes] = {}
    is_reading, never = threading.Event(), threading.Event()

    def answer(handler: Handler, request: Request) -> None:
        if request.method == "PUT":
            stored[request.path] = request.body
            handler.answer(200)
        elif request.method == "DELETE":
            stored.pop(request.path, None)
            handler.answer(204)
        elif request.path in stored:
            is_reading.set()
            never.wait(30)
        else:
            handler.answer(200, _LISTED_NOTHING, Content_Type="application/xml")

    with loopback(answer) as server:
        text = _S3.format(
            url="s3://bucket/x", endpoint_url=server.endpoint_url, access_key_id="a", secret_access_key="b"
        )
        _configure(cli, text)
        with cli.started("doctor") as process:
            wait_until(is_reading.is_set)
            assert len(stored) == 1
            process.send_signal(number)
            process.communicate(timeout=30)
            assert process.returncode == 130
        never.set()
    assert stored == {}


def test_the_key_of_the_probe_is_random(cli: CommandLine) -> None:
    """Two doctors at the same time never use one object."""
    seen: list[str] = []

    def refuse(handler: Handler, request: Request) -> None:
        seen.append(hashlib.sha256(request.path.encode()).hexdigest())
        handler.error(403, "AccessDenied")

    with loopback(refuse) as server:
        text = _S3.format(
            url="s3://bucket/x", endpoint_url=server.endpoint_url, access_key_id="a", secret_access_key="b"
        )
        _configure(cli, text)
        for _ in range(2):
            cli.run("doctor", expect=10)
    assert len(set(seen)) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can stay root")
def test_root_that_cannot_become_an_owner_is_reported(cli: CommandLine) -> None:
    """Root that stays root is a note, with the database that is the reason and the capabilities."""
    _configure(cli, _directory_store())
    checks = _checks(cli.run("doctor", "--json", environ={"BACKUPD_RUN_AS_OWNER": "true"}))
    check = checks["configuration", "user"]
    assert check["verdict"] == "note"
    assert check["message"] == f"backupd stays root: {cli.directory}/app.db belongs to root; capabilities: none"
    assert ("configuration", "user") not in _checks(cli.run("doctor", "--json"))
