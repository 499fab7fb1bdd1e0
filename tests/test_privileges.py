"""The user that a process becomes which root has started, by processes that are really started by root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from harness.confinement import shared_directory
from harness.extent import sampled

from backupd.config import Settings
from backupd.errors import SourceUnusableError
from backupd.privileges import active_state_dir, become_owner, must_change_user, owner_of, restart

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_UID, _GID = 1234, 2345
_ANOTHER = 3456

# Prints what it is after each step, and starts again as the daemon would.
_PROCESS = """
import json, os, subprocess, sys
from pathlib import Path
from backupd.config import Settings
from backupd.privileges import become_owner, must_change_user, restart, why_still_root

settings = Settings.read(json.loads(sys.argv[1]))
os.setuid(int(os.environ.pop("UID_OF_THE_TEST", "0")))
own = become_owner(settings)
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
inner = subprocess.run(["grep", "^Cap[PE]", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
print(json.dumps({
    "inherited": [int(line.split()[1], 16) for line in inner.splitlines()], "why_root": why_still_root(own),
    "uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(), "home": os.environ["HOME"],
    "state_dir": str(own.state_dir), "capabilities": [int(status[f"Cap{which}"], 16) for which in ("Prm", "Eff")],
}), flush=True)
if sys.argv[2:]:
    database = Path(sys.argv[2])
    if not database.exists():
        database.touch()
        os.chown(database, 1234, 2345)
    if must_change_user(own):
        restart(own)
"""

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change to another user")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that every user can reach, with an empty one for the databases."""
    with shared_directory() as made:
        made.chmod(0o755)
        (made / "instance").mkdir()
        yield made


def _settings(home: Path, *patterns: str, **others: Any) -> dict[str, Any]:
    return {
        "run_as_owner": True,
        "state_dir": str(home / "state"),
        "databases": [{"path": str(home / pattern)} for pattern in patterns or ("instance/*.db",)],
        "stores": [{"url": str(home / "backups")}],
        **others,
    }


def _run(settings: dict[str, Any], *arguments: str, user: int = 0) -> list[dict[str, Any]]:
    """What each process printed that ran, one after the other, under one process id."""
    ran = subprocess.run(
        [sys.executable, "-c", _PROCESS, json.dumps(settings), *arguments],
        # Late, because other users may not be able to read this Python.
        env={**os.environ, "HOME": "/root", "UID_OF_THE_TEST": str(user)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def _database(path: Path, uid: int = _UID, gid: int = _GID) -> Path:
    path.touch()
    os.chown(path, uid, gid)
    return path


def _owners(*paths: Path) -> list[int]:
    return [path.stat().st_uid for path in paths]


@only_root
def test_it_becomes_the_owner_of_the_database_and_nothing_more(home):
    """User and group of the file, no other group, no capability, and a home that it can write to."""
    (home / "state").mkdir()
    _database(home / "instance/app.db")
    (process,) = _run(_settings(home))
    assert process["uids"] == [_UID] * 3
    assert process["gids"] == [_GID] * 3
    assert process["groups"] == []
    assert process["capabilities"] == [0, 0]
    assert process["state_dir"] == process["home"] == str(home / f"state/{_UID}")
    assert _owners(home / "state", home / f"state/{_UID}") == [0, _UID]


@only_root
def test_the_first_database_that_exists_counts(home):
    """The first configured database that exists, and is no directory, gives the user."""
    (home / "instance/directory.db").mkdir()
    _database(home / "instance/second.db")
    _database(home / "instance/third.db", _ANOTHER)
    patterns = ("instance/first.db", "instance/d*.db", "instance/second.db", "instance/third.db")
    (process,) = _run(_settings(home, *patterns))
    assert process["uids"] == [_UID] * 3


@only_root
@pytest.mark.parametrize("pattern", ["instance/app.db", "instance/*.db", "instance/*/app.db", "inst*/tenants/x/app.db"])
def test_until_there_is_a_database_its_directory_counts(home, pattern):
    """The nearest one that exists, also when the pattern has wildcards in its directories."""
    os.chown(home / "instance", _UID, _GID)
    (process,) = _run(_settings(home, pattern))
    assert process["uids"] == [_UID] * 3


@only_root
def test_root_s_own_databases_are_left_to_root(home):
    """A process stays root if the database is root's, with its state where every user has some."""
    _database(home / "instance/app.db", 0, 0)
    (process,) = _run(_settings(home))
    assert process["uids"] == [0] * 3
    assert process["home"] == "/root"
    assert process["state_dir"] == str(home / "state/0")


@only_root
def test_root_that_stays_keeps_no_capability_that_it_does_not_need(home):
    """A process that stays root for root's files keeps no capability, and says why it is root."""
    database = _database(home / "instance/app.db", 0, 0)
    (process,) = _run(_settings(home))
    assert process["capabilities"] == process["inherited"] == [0, 0]
    assert process["why_root"] == f"{database} belongs to root; capabilities: none"


@only_root
@pytest.mark.parametrize("of_another", ["instance", "backups", "instance/z.db"])
def test_root_that_stays_keeps_the_rights_over_what_is_not_its_own(home, of_another):
    """Root keeps only the rights over another user's directory, store or database, if there is one."""
    database = _database(home / "instance/app.db", 0, 0)
    (home / "backups").mkdir()
    _database(home / of_another)
    (process,) = _run(_settings(home))
    assert process["uids"] == [0] * 3
    assert process["capabilities"] == process["inherited"] == [1 << 0 | 1 << 1 | 1 << 3] * 2
    assert process["why_root"] == f"{database} belongs to root; capabilities: CHOWN, DAC_OVERRIDE, FOWNER"


@only_root
def test_root_that_gave_rights_up_ends_when_it_needs_them(home, monkeypatch):
    """A process that gave up rights which it needs again ends, so that it is started again from outside."""
    _database(home / "instance/app.db", 0, 0)
    settings = Settings.read(_settings(home))
    monkeypatch.setattr("backupd.privileges._given_up", 1 << 1)
    assert not must_change_user(settings)
    database = _database(home / "instance/new.db")
    assert must_change_user(settings)
    database.unlink()
    _database(home / "instance/app.db")
    with pytest.raises(SourceUnusableError, match=f"now belongs to uid {_UID}"):
        restart(settings)


def _of(path: Path, uid: int, gid: int) -> Path:
    os.chown(path, uid, gid, follow_symlinks=False)
    return path


@only_root
@pytest.mark.parametrize("uid", sampled([_ANOTHER, 0]))
@pytest.mark.parametrize("plant", ["link", "link inside", "hard link", "moved", "link to a directory"])
def test_the_application_does_not_choose_the_user(home, plant, uid):
    """A name that leads to a file or directory of root or of a third user does not give the user."""
    inner = home / "instance/tenant"
    inner.mkdir()
    _of(home / "instance", _UID, _GID)
    _of(inner, _UID, _GID)
    (home / "elsewhere").mkdir()
    other = _database(home / "elsewhere/app.db", uid, uid)
    _of(home / "elsewhere", uid, uid)
    name = inner / "000.db"
    match plant:
        case "link":
            name.symlink_to(other)
        case "link inside":
            name.symlink_to(_database(home / "instance/other", uid, uid))
        case "hard link":
            name.hardlink_to(other)
        case "moved":
            other.rename(name)
        case "link to a directory":
            name = home / "instance/000"
            name.symlink_to(home / "elsewhere")
    if name.is_symlink():
        _of(name, _UID, _GID)
    if plant != "moved":  # alone, the file of another is as good as any
        (process,) = _run(_settings(home, "instance/*/*.db"))
        assert process["uids"] == [_UID] * 3
    _database(inner / "app.db")
    (process,) = _run(_settings(home, "instance/*/*.db"))
    assert process["uids"] == [_UID] * 3


@only_root
def test_a_link_in_an_entry_without_wildcards_does_not_choose_either(home):
    """A link in an entry without wildcards does not give the user, neither at the start nor later."""
    _of(home / "instance", _UID, _GID)
    (home / "instance/app.db").symlink_to("/etc/passwd")
    _of(home / "instance/app.db", _UID, _GID)
    processes = _run(_settings(home, "instance/app.db"), "/etc/passwd")
    assert [process["uids"] for process in processes] == [[_UID] * 3]


@only_root
def test_a_directory_that_another_user_leads_elsewhere_is_not_handed_over(home):
    """An empty one of root would be theirs."""
    _database(home / "instance/app.db")
    (home / "empty").mkdir()
    (home / "backups").symlink_to("empty")
    _of(home / "backups", _UID, _GID)
    _run(_settings(home))
    assert _owners(home / "empty") == [0]


@only_root
def test_a_process_that_is_not_root_keeps_its_user(home):
    """A user other than root was chosen on purpose."""
    (process,) = _run(_settings(home), user=_ANOTHER)
    assert process["uids"] == [_ANOTHER] * 3
    assert process["state_dir"] == str(home / f"state/{_ANOTHER}")


@only_root
def test_nothing_happens_unless_it_is_asked_for(home):
    """Outside the container, backupd runs as the user that starts it."""
    _database(home / "instance/app.db")
    (process,) = _run(_settings(home, run_as_owner=False))
    assert process["uids"] == [0] * 3
    assert process["state_dir"] == str(home / "state")


@only_root
def test_a_store_that_is_new_or_empty_is_handed_over(home):
    """A new or empty store, as Docker or a new file system makes it, is given to the user."""
    _database(home / "instance/app.db")
    (home / "empty/lost+found").mkdir(parents=True)
    stores = [{"url": str(home / name)} for name in ("empty", "new")]
    _run(_settings(home, stores=stores))
    assert _owners(home / "empty", home / "empty/lost+found", home / "new") == [_UID, 0, _UID]


@only_root
def test_what_is_in_a_directory_never_changes_hands(home):
    """A directory with other files, which may be another user's, keeps its owner, and so do they."""
    _database(home / "instance/app.db")
    (home / "backups").mkdir()
    (home / "backups/other").touch()
    _run(_settings(home))
    assert _owners(home / "backups", home / "backups/other", home / "instance") == [0, 0, 0]


@only_root
def test_root_starts_again_as_the_owner_of_a_database_that_came_later(home):
    """Root starts again under one process id as the owner of a database that was created later."""
    first, second = _run(_settings(home), str(home / "instance/app.db"))
    assert first["uids"] == [0] * 3
    assert second["uids"] == [_UID] * 3
    assert second["capabilities"] == [0, 0]


@only_root
def test_who_is_not_root_any_more_ends_and_says_why(home, monkeypatch):
    """A supervisor must restart it; the message names the new owner of the database."""
    database = _database(home / "instance/app.db")
    settings = Settings.read(_settings(home))
    monkeypatch.setattr(os, "geteuid", lambda: _ANOTHER)
    assert must_change_user(settings)
    with pytest.raises(SourceUnusableError, match=f"{database} now belongs to uid {_UID}.* as uid {_ANOTHER}"):
        restart(settings)


def test_a_process_with_a_chosen_user_does_not_restart(tmp_path, monkeypatch):
    """A database of another user is then an error of its own, and no reason to restart endlessly."""
    monkeypatch.setattr("backupd.privileges._WAS_STARTED_AS_ROOT", False)
    (tmp_path / "app.db").touch()
    settings = Settings.read(_settings(tmp_path, "app.db"))
    monkeypatch.setattr(os, "geteuid", lambda: _ANOTHER)
    assert not must_change_user(settings)
    assert become_owner(settings).state_dir == tmp_path / f"state/{_ANOTHER}"


def test_without_databases_there_is_no_owner():
    """A container that only lists or restores to files."""
    assert owner_of(()) is None


def test_the_daemon_is_found_at_home(tmp_path):
    """The active state directory is the one with the newest sign of life, or the newest status, or the parent."""
    assert active_state_dir(tmp_path / "missing") == tmp_path / "missing"
    assert active_state_dir(tmp_path) == tmp_path
    for seconds, (home, name) in enumerate([("0", "status.json"), ("1000", "status.json"), ("0", "alive")]):
        (tmp_path / home).mkdir(exist_ok=True)
        (tmp_path / home / name).touch()
        os.utime(tmp_path / home / name, (seconds, seconds + 1))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/alive").touch()
    assert active_state_dir(tmp_path) == tmp_path / "0"
    (tmp_path / "0/alive").unlink()
    assert active_state_dir(tmp_path) == tmp_path / "1000"
