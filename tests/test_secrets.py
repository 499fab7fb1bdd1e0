"""Secrets stay where they were put: nothing that backupd writes, says, stores or starts has one in it."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, Finished, finish
from harness.extent import slow
from harness.loopback import loopback
from harness.place import change_rows, create_database
from harness.site import new_site
from harness.watching import looking_all_the_time

from backupd.system.processes import child_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from harness.loopback import Handler, Loopback, Request
    from harness.s3_server import S3Server
    from harness.site import Site

_MARK = "5ecret"
"""Is in each of them, and in nothing else."""
_KEY = f"the-{_MARK}-of-the-bucket"
_TOKEN = f"the-{_MARK}-session-token"
_HTTP_TOKEN = f"the-{_MARK}-http-token-of-this-test"
_WRONG_KEY_ID = "the-wrong-key-id"
_WRONG_KEY = f"the-wrong-{_MARK}-of-another-bucket"
_PASSWORD = f"the-{_MARK}-password-of-a-target"
_HEARTBEAT = f"the-{_MARK}-uuid-of-a-heartbeat"
_APPLICATION = f"the-{_MARK}-of-the-application"
_BROKEN = """
import sys
from backupd import __main__
from backupd.store.s3 import Requests

def broken(*arguments, **keywords):
    raise RuntimeError("broken on purpose")

Requests.run = broken
sys.argv = ["backupd", "list"]
__main__.main()
"""
_CHILDREN = ("backupd.capture.child", "backupd.live.soundness", "backupd.doctor.database_child")


@dataclass(slots=True)
class _Processes:
    """What /proc showed of processes while something ran: command lines, and the environments of backupd's children."""

    command_lines: set[str] = field(default_factory=set)
    environments: dict[str, set[str]] = field(default_factory=dict)
    earlier: frozenset[Path] = field(default_factory=lambda: frozenset(Path("/proc").iterdir()))

    def look(self) -> None:
        for entry in {*Path("/proc").iterdir()} - self.earlier:
            try:
                # In this order: between fork and exec, a child has the command line of its parent too.
                command = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = entry.joinpath("environ").read_bytes().decode(errors="replace")
            except OSError:
                continue  # it has ended, or belongs to another user
            if "backupd" in command:
                self.command_lines.add(command)
            for child in _CHILDREN:
                if f"-m backupd.system.processes {child}" in command:
                    self.environments.setdefault(child, set()).add(environment)


@contextmanager
def _watched() -> Iterator[_Processes]:
    """Look all the time, in a thread, until the block ends."""
    processes = _Processes()
    with looking_all_the_time(processes.look):
        yield processes


def _refusing(handler: Handler, request: Request) -> None:
    """A server that refuses the keys, and says more than is good for anybody."""
    if request.method in {"PUT", "GET", "HEAD"} and "bucket" in request.path:
        reported = f"{request.headers.get('Authorization')} with {request.headers.get('x-amz-security-token')}"
        handler.error(403, "SignatureDoesNotMatch", reported)
    else:
        handler.answer(500, b"no")


@dataclass(frozen=True, slots=True)
class _Place:
    """A machine with every kind of secret: some in the file, some in variables, some in files that variables name."""

    site: Site
    environ: Mapping[str, str]
    refusing: Loopback
    identity: str

    @property
    def backupd(self) -> CommandLine:
        return CommandLine(self.site.home, **self.environ)

    @property
    def secrets(self) -> tuple[str, ...]:
        return (_MARK, _WRONG_KEY_ID, self.identity.strip().rpartition("\n")[2])


@pytest.fixture
def place(tmp_path: Path, moto: S3Server) -> Iterator[_Place]:
    """Three stores: a bucket, a directory, and a bucket whose server refuses; a target and a heartbeat that fail."""
    home = tmp_path / "home"
    home.mkdir()
    create_database(home / "app.db", rows=3000, journal_mode="wal")
    key_file = tmp_path / "key-of-the-bucket"
    key_file.write_text(_KEY)
    identity = subprocess.run(
        [sys.executable, "-m", "backupd", "keygen", "--output", tmp_path / "identity"],
        check=True,
        capture_output=True,
        text=True,
    )
    recipient = next(
        word for word in (identity.stdout + identity.stderr).replace('"', " ").split() if word.startswith("age1")
    )
    site = new_site(home)
    with loopback(_refusing) as refusing:
        host = refusing.endpoint_url.removeprefix("http://")
        site.configure(
            stores=[
                {
                    "url": f"s3://{moto.new_bucket()}/x",
                    "endpoint_url": moto.endpoint_url,
                    "access_key_id": "AKIAIOSFOD",
                },
                "backups",
                {
                    "url": "s3://bucket-that-refuses/x",
                    "endpoint_url": refusing.endpoint_url,
                    "access_key_id": _WRONG_KEY_ID,
                    "secret_access_key": _WRONG_KEY,
                    "max_attempts": 1,
                },
            ],
            notifications=[{"url": f"json://user:{_PASSWORD}@{host}/{_PASSWORD}"}],
            heartbeats=[{"url": f"{refusing.endpoint_url}/{_HEARTBEAT}"}],
            encryption={"recipients": [recipient]},
        )
        yield _Place(
            site,
            {
                "BACKUPD_STORES__0__SECRET_ACCESS_KEY_FILE": str(key_file),
                "BACKUPD_STORES__0__SESSION_TOKEN": _TOKEN,
                "BACKUPD_HTTP__TOKEN": _HTTP_TOKEN,
                "BACKUPD_IDENTITY_FILE": str(tmp_path / "identity"),
                "AWS_SECRET_ACCESS_KEY": _KEY,
                "DATABASE_PASSWORD": _APPLICATION,
                "PYTHONWARNINGS": "ignore",
            },
            refusing,
            (tmp_path / "identity").read_text(),
        )


def _by_hand(place: _Place) -> list[Finished]:
    """Run each command by hand on a bad day: two stores work, and the third fails."""
    backupd = place.backupd
    change_rows(place.site.home / "app.db", "by hand")
    together = [
        ("now", "--tag", "one"),
        ("now", "--json"),
        ("list",),
        ("list", "--json"),
        ("show", "latest"),
        ("show", "latest", "--json"),
        ("status",),
        ("status", "--json"),
        ("doctor", "--send-test"),
        ("doctor", "--json"),
        ("prune",),
        ("verify", "latest", "--level", "drill", "--store", "backups"),
        ("restore", "latest", "--to", "restored.db"),
        ("restore", "latest", "--to", "not.db", "--store", "s3://bucket-that-refuses/x"),
    ]
    # One after the other where they write; the rest side by side, for the sake of time.
    finished = [finish(backupd.start(*together[0]), code=3)]
    running = [backupd.start(*arguments) for arguments in together[1:]]
    return [*finished, *(_ended(process) for process in running)]


def _ended(process: subprocess.Popen[str]) -> Finished:
    stdout, stderr = process.communicate(timeout=60)
    return Finished(process.returncode, stdout, stderr)


def _wrong(place: _Place) -> list[Finished]:
    """Configurations that are refused, with a secret beside what is wrong or in it."""
    variables: list[dict[str, str]] = [
        {"BACKUPD_STORES__0__SECRET_ACCESS_KEY": _KEY},
        {"BACKUPD_NOTIFICATIONS__0__URL": f"not a URL {_PASSWORD}"},
        {"BACKUPD_HEARTBEATS__0__URL": f"ftp://{_HEARTBEAT}"},
        {"BACKUPD_HTTP__TOKEN": _MARK},
        {"BACKUPD_STORES__0__URL": f"s3://key:{_KEY}@bucket"},
        {"BACKUPD_STORES__0__ENDPOINT_URL": f"https://key:{_KEY}@host"},
        {"BACKUPD_ENCRYPTION__RECIPIENTS": place.secrets[-1]},
    ]
    running = [CommandLine(place.site.home, **{**place.environ, **each}).start("list", "--json") for each in variables]
    return [finish(process, code=2) for process in running]


def _crashed(place: _Place) -> Finished:
    """A bug in the middle of a snapshot, reported with its traceback."""
    reported = subprocess.run(
        [sys.executable, "-c", _BROKEN],
        cwd=place.site.home,
        env={**os.environ, "BACKUPD_STATE_DIR": str(place.site.state), **place.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "broken on purpose" in reported.stderr
    return Finished(reported.returncode, reported.stdout, reported.stderr)


def _by_daemon(place: _Place) -> list[str]:
    """Rounds that succeed and fail, requests with and without the token, a reload that is refused, and an end."""
    site = place.site
    with site.daemon(**place.environ) as daemon:
        change_rows(site.home / "app.db", "by daemon")
        position = daemon.run_again("app")
        daemon.wait_for("snapshot", after=position, store=str(site.store))
        answers = [
            daemon.ask("/snapshots", body="database=app", token=_HTTP_TOKEN),
            daemon.ask("/snapshots", body="database=app", token=f"{_MARK}-and-wrong-as-well"),
            daemon.ask("/healthz"),
            daemon.ask("/metrics"),
        ]
        configured = (site.home / "backupd.toml").read_text()
        (site.home / "backupd.toml").write_text(f'{configured}\n[http]\ntoken = "{_MARK}"\n')
        daemon.signal(signal.SIGHUP)
        daemon.wait_for("the configuration was not reloaded")
        (site.home / "backupd.toml").write_text(configured)
        daemon.stop()
        return [*daemon.lines, daemon.stderr, *(answer.text for answer in answers)]


def _stored(place: _Place, moto: S3Server) -> dict[str, bytes]:
    """Every object of both stores that work, and every file of the state."""
    home = place.site.home
    files = [path for root in (place.site.state, place.site.store) for path in root.rglob("*") if path.is_file()]
    found = {str(path.relative_to(home)): path.read_bytes() for path in files}
    with closing(moto.client()) as client:
        for bucket in client.list_buckets()["Buckets"]:
            for each in client.list_objects_v2(Bucket=bucket["Name"]).get("Contents", []):
                body = client.get_object(Bucket=bucket["Name"], Key=each["Key"])["Body"].read()
                found[f"{bucket['Name']}/{each['Key']}"] = body
    return found


def _spellings(secret: str) -> list[bytes]:
    """The secret as it is, in hexadecimal, and in base64 at each offset."""
    encoded = [base64.b64encode(b"x" * shift + secret.encode())[4 if shift else 0 : -4] for shift in range(3)]
    return [secret.encode(), secret.encode().hex().encode(), *(each for each in encoded if len(each) > 5)]


@slow
def test_no_secret_leaves_its_place(place: _Place, moto: S3Server) -> None:
    """A day by hand and by the daemon, with failures of every kind; then everything is searched for every secret."""
    with _watched() as processes:
        finished = [*_by_hand(place), *_wrong(place), _crashed(place)]
        logged = _by_daemon(place)
    assert processes.environments.keys() == {*_CHILDREN}
    asked = [f"{request.path} {dict(request.headers)}" for request in place.refusing.requests]
    assert any(_HEARTBEAT in each for each in asked), "the secrets were in use"
    assert any(_PASSWORD in each for each in asked), "the secrets were in use"
    texts = {
        **{f"command {number}": f"{each.stdout}{each.stderr}".encode() for number, each in enumerate(finished)},
        **{f"log {number}": line.encode() for number, line in enumerate(logged)},
        **{f"process {number}": each.encode() for number, each in enumerate(sorted(processes.command_lines))},
        **{f"environment of {child}": "\n".join(found).encode() for child, found in processes.environments.items()},
        **_stored(place, moto),
    }
    assert len(texts) > 60
    found = [
        (name, text[max(0, text.index(spelled) - 80) : text.index(spelled) + 80])
        for secret in place.secrets
        for spelled in _spellings(secret)
        for name, text in texts.items()
        if spelled in text
    ]
    assert found == []


def test_children_get_what_they_need_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children get the paths of programs, libraries and time zones, and no variable that may be secret."""
    for name, value in {
        "LC_ALL": "C",
        "PYTHONPATH": "/x",
        "BACKUPD_HTTP__TOKEN": _KEY,
        "AWS_X": _KEY,
        "X": _KEY,
    }.items():
        monkeypatch.setenv(name, value)
    environment = child_environment(SQLITE_TMPDIR="/scratch")
    assert {"PATH", "LC_ALL", "PYTHONPATH"} <= environment.keys()
    assert environment["SQLITE_TMPDIR"] == "/scratch"
    assert _KEY not in environment.values()
