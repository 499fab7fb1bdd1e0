"""What SQLite makes beside a database belongs to the database's owner, or is not made: for real users and processes."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine, Runner, side_files
from harness.confinement import another_user, shared_directory
from harness.extent import sampled, slow
from harness.place import create_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UID, _GID = 1234, 2345
_WITHOUT_CHOWN = Runner(enter=("setpriv", "--bounding-set", "-chown", "--inh-caps", "-chown", "--"))
_RIGHTS = "-all,+chown,+dac_override,+setgid,+setuid"
_AS_IN_CONTAINER = Runner(enter=("setpriv", f"--bounding-set={_RIGHTS}", "--inh-caps=-all", "--"))
# Opens, writes and closes as fast as it can: each time, SQLite deletes its files and makes them once more.
_APPLICATION = """
import os, sqlite3, sys, time
os.setgroups([])
os.setresgid(2345, 2345, 2345)
os.setresuid(1234, 1234, 1234)
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    connection = sqlite3.connect(sys.argv[1], timeout=20)
    connection.execute("INSERT INTO report (title) VALUES ('more')")
    connection.commit()
    connection.close()
"""
_READER = """
import random, sys, time
from backupd.capture import source
from backupd.errors import BackupdError
refused = read = 0
while refused + read < int(sys.argv[2]):
    time.sleep(random.random() / 300)  # the application has closed its connection by then, or is about to
    try:
        with source.pinned(sys.argv[1], lock_timeout=5):
            read += 1
    except BackupdError as error:
        assert error.exit_code == 13, error.message
        refused += 1
print(refused, read)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to other users")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that every user can write, as a volume on a server may be."""
    with shared_directory() as made:
        made.chmod(0o777)
        yield made


def _database(home: Path, *, journal_mode: str = "wal", mode: int = 0o644) -> Path:
    path = home / "app.db"
    create_database(path, rows=20, journal_mode=journal_mode)
    os.chown(path, _UID, _GID)
    path.chmod(mode)
    return path


@contextmanager
def _application(path: Path, *, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """An application of the database's owner."""
    command = [sys.executable, "-c", _APPLICATION, str(path), str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def _write_as_owner(path: Path) -> None:
    with _application(path, seconds=0.05) as process:
        _, errors = process.communicate()
        assert process.returncode == 0, errors


def _read_beside_application(path: Path, runner: Runner, *, times: int) -> list[int]:
    """Count refused and successful reads while an application must be able to write all the time."""
    environ = [f"{name}={value}" for name, value in runner.environ.items()]
    command = [*runner.enter, "env", *environ, *runner.become, runner.python, "-c", _READER, str(path), str(times)]
    with _application(path, seconds=60) as application:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert application.poll() is None, application.communicate()[1]
    _write_as_owner(path)
    return [int(count) for count in done.stdout.split()]


def test_root_that_may_not_chown_leaves_nothing(home: Path):
    """Root without the right to chown is refused and leaves no side files, so that the owner can still write."""
    path = _database(home)
    command_line = CommandLine(home, runner=_WITHOUT_CHOWN)
    refused = command_line.refusal("now", path, "--store", home / "s", code=13, names=[path, "uid 1234, cannot write"])
    assert 'user: "1234:2345"' in refused.reported("hint")[0]
    assert side_files(path) == []
    _write_as_owner(path)


@pytest.mark.parametrize(
    ("journal_mode", "code", "opens", "owner"), [("wal", 13, "error", "warning"), ("delete", 0, "ok", "note")]
)
def test_doctor_warns_root_that_may_not_chown(home: Path, journal_mode: str, code: int, opens: str, owner: str):
    """The doctor reports to root without chown a refused capture in WAL mode, and a note in rollback mode."""
    path = _database(home, journal_mode=journal_mode)
    command_line = CommandLine(home, runner=_WITHOUT_CHOWN, BACKUPD_DATABASES__0__PATH=str(path))
    checks = {each["check"]: each["verdict"] for each in command_line.json("doctor", code=code)["checks"]}
    assert (checks["opens"], checks["owner"]) == (opens, owner)
    assert side_files(path) == []


@slow
@pytest.mark.parametrize("who", sampled(["another-user", "root-without-chown"]))
def test_application_that_opens_and_closes_is_never_locked_out(home: Path, who: str):
    """A reader never locks out an application whose side files may be gone when SQLite opens them."""
    path = _database(home)
    if who == "root-without-chown":
        _read_beside_application(path, _WITHOUT_CHOWN, times=1500)
    else:
        with another_user() as runner:
            _read_beside_application(path, runner, times=1500)


@slow
@pytest.mark.parametrize("runner", [Runner(), _AS_IN_CONTAINER], ids=["all-rights", "as-in-container"])
def test_files_that_root_makes_have_owner_and_mode_from_the_first_moment(home: Path, runner: Runner):
    """An application that opens one in between would not be able to write either."""
    path = _database(home, mode=0o640)
    _, read = _read_beside_application(path, runner, times=1000)
    assert read == 1000
    CommandLine(home, runner=runner).run("now", path, "--store", home / "s")
    made = side_files(path)
    assert [file.name for file in made] == ["app.db-wal", "app.db-shm"]
    for file in made:
        status = file.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (_UID, _GID, 0o640)


@pytest.mark.parametrize(
    ("directory_mode", "code", "groups"),
    [(0o770, 13, set()), (0o2770, 0, {_GID}), (0o755, 0, {_UID})],
    ids=["group-writes", "set-group-id", "group-only-reads"],
)
def test_side_files_get_the_group_that_writes_the_database(
    home: Path, directory_mode: int, code: int, groups: set[int]
):
    """Side files get the group that may write the database, or reading is refused; other groups do not matter."""
    path = _database(home, mode=0o660)
    os.chown(home, _UID, _GID)
    home.chmod(directory_mode)
    with another_user() as other_user:
        become = ("setpriv", f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups", "--")
        runner = Runner(other_user.enter, become, other_user.python, other_user.environ)
        CommandLine(home, runner=runner).run("now", path, "--store", home / "s", code=code)
    assert {file.stat().st_gid for file in side_files(path)} == groups


@slow
@pytest.mark.parametrize(("journal_mode", "codes"), [("wal", (13, 13)), ("delete", (13, 2))])
def test_restore_in_place_by_root_that_may_not_chown(home: Path, journal_mode: str, codes: tuple[int, int]):
    """A journal that a killed restore leaves would keep the application from its database: nothing is touched."""
    path = _database(home, journal_mode=journal_mode)
    CommandLine(home).run("now", path, "--store", home / "backups", "--tag", "before")
    for file in side_files(path):
        file.unlink()
    (home / "backupd.toml").write_text(f"[[databases]]\npath = '{path}'\n")
    confined = CommandLine(home, runner=_WITHOUT_CHOWN)
    for options, code in zip(([], ["--replace", "--app-stopped"]), codes, strict=True):
        confined.refusal("restore", "app@before", "--yes", *options, code=code, names=["uid 1234"])
    _write_as_owner(path)
