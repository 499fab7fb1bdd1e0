"""A pattern that finds nothing because a directory is closed to this user: `now`, daemon and doctor say the same."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.confinement import ANOTHER_UID, another_user, shared_directory
from harness.place import create_database

from backupd.config import DatabaseSettings, Settings, nothing_found
from backupd.daemon.sight import Sight
from backupd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OWNER = 10001
_HINT = f"run backupd as uid {_OWNER}, or let uid {ANOTHER_UID} read and enter that directory"


@contextmanager
def _closed(pattern: str, closed: str, mode: int, **environ: str) -> Iterator[tuple[CommandLine, str, Path]]:
    """Commands as a stranger, for a pattern on whose way to data/b/app.db is a directory with `mode`."""
    with another_user() as runner, shared_directory() as home:
        (home / "data/b").mkdir(parents=True)
        create_database(home / "data/b/app.db", rows=1)
        os.chown(home / closed, _OWNER, _OWNER)
        (home / closed).chmod(mode)
        (home / "state").mkdir()
        (home / "state").chmod(0o777)
        whole = f"{home}/{pattern}"
        yield CommandLine(home, runner=runner, BACKUPD_DATABASES__0__PATH=whole, **environ), whole, home / closed


@pytest.mark.parametrize(
    ("pattern", "closed", "mode"),
    [
        ("data/b/*.db", "data/b", 0o750),
        ("data/b/*.db", "data/b", 0o751),
        ("data/b/*.db", "data", 0o754),
        ("data/*/app.db", "data/b", 0o754),
        ("data/*/app.db", "data", 0o750),
    ],
)
def test_the_directory_and_its_owner_are_told(pattern: str, closed: str, mode: int) -> None:
    """Whatever lacks there: the volume is mounted, and looking for a wrong path would take hours."""
    with _closed(pattern, closed, mode) as (cli, whole, directory):
        said = cli.run("now", code=ExitCode.SOURCE_UNUSABLE)
        assert said.told("error") == [f"no file matches {whole}: uid {ANOTHER_UID} may not look into {directory}"]
        assert said.told("hint") == [_HINT]


def test_doctor_says_the_same() -> None:
    """With the remedy that helps."""
    with _closed("data/b/*.db", "data/b", 0o750) as (cli, whole, directory):
        checks = cli.run("doctor", "--json", code=ExitCode.SOURCE_UNUSABLE).document["checks"]
        (found,) = [each for each in checks if (each["check"], each["verdict"]) == ("databases", "error")]
        assert found["message"] == f"no file matches {whole}: uid {ANOTHER_UID} may not look into {directory}"
        assert found["remedy"] == _HINT


def test_other_databases_are_backed_up() -> None:
    """And the warning says why this pattern gives none."""
    other = {"BACKUPD_DATABASES__1__PATH": "data/other.db", "BACKUPD_STORES__0__URL": "state/backups"}
    with _closed("data/b/*.db", "data/b", 0o750, **other) as (cli, whole, directory):
        create_database(directory.parent / "other.db", rows=1)
        (warning,) = cli.run("now", code=ExitCode.DONE).told("warning")
        assert warning.startswith(
            f"no file matches {whole}: uid {ANOTHER_UID} may not look into {directory}; the other"
        )


def test_a_directory_that_may_be_entered_needs_no_list(tmp_path: Path) -> None:
    """Where a name can be asked for, a file that is not there is just not there."""
    (tmp_path / "data/b").mkdir(parents=True)
    pattern = f"{tmp_path}/data/*/app.db"
    error = nothing_found(pattern, f"{tmp_path}/gone/*/*.db")
    assert error.message == f"no file matches {pattern} or {tmp_path}/gone/*/*.db"
    assert error.hint is not None
    assert "called otherwise" in error.hint
    assert "volume is mounted" in error.hint


def test_the_daemon_says_the_same(tmp_path: Path) -> None:
    """What an entry lacks comes from one place."""
    entry = DatabaseSettings(path=f"{tmp_path}/*.db")
    settings = Settings(state_dir=tmp_path, databases=(entry,))
    databases, problem = Sight(settings, ()).databases(settings.databases[0])
    expected = nothing_found(entry.path)
    assert databases == []
    assert problem is not None
    assert (type(problem), problem.message, problem.hint) == (type(expected), expected.message, expected.hint)
