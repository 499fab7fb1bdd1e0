"""A pattern that finds nothing because a directory is closed to this user: `now`, daemon and doctor say the same."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.confinement import ANOTHER_UID, another_user, shared_directory
from harness.place import create_database

from backupd.config import DatabaseSettings, Settings, no_match_error
from backupd.daemon.discovery import Inventory
from backupd.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_OWNER = 10001
_HINT = f"run backupd as uid {_OWNER}, or let uid {ANOTHER_UID} read and enter that directory"


@contextmanager
def _closed(pattern: str, closed: str, mode: int, **environ: str) -> Iterator[tuple[CommandLine, str, Path]]:
    """Commands as another user, for a pattern on whose way to data/b/app.db is a directory with `mode`."""
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
def test_a_closed_directory_is_reported(pattern: str, closed: str, mode: int) -> None:
    """A pattern behind a closed directory is an error that names the directory, with the remedy as its hint."""
    with _closed(pattern, closed, mode) as (cli, whole, directory):
        said = cli.run("now", code=ExitCode.SOURCE_UNUSABLE)
        assert said.reported("error") == [f"no file matches {whole}: uid {ANOTHER_UID} may not search {directory}"]
        assert said.reported("hint") == [_HINT]


def test_doctor_reports_a_closed_directory() -> None:
    """The doctor reports a closed directory with the message and the remedy of `now`."""
    with _closed("data/b/*.db", "data/b", 0o750) as (cli, whole, directory):
        checks = cli.run("doctor", "--json", code=ExitCode.SOURCE_UNUSABLE).document["checks"]
        (found,) = [each for each in checks if (each["check"], each["verdict"]) == ("databases", "error")]
        assert found["message"] == f"no file matches {whole}: uid {ANOTHER_UID} may not search {directory}"
        assert found["remedy"] == _HINT


def test_other_databases_are_backed_up() -> None:
    """Other databases are backed up, and a warning says why the pattern matches nothing."""
    other = {"BACKUPD_DATABASES__1__PATH": "data/other.db", "BACKUPD_STORES__0__URL": "state/backups"}
    with _closed("data/b/*.db", "data/b", 0o750, **other) as (cli, whole, directory):
        create_database(directory.parent / "other.db", rows=1)
        (warning,) = cli.run("now", code=ExitCode.DONE).reported("warning")
        assert warning.startswith(f"no file matches {whole}: uid {ANOTHER_UID} may not search {directory}; the other")


def test_a_directory_that_may_be_entered_needs_no_list(tmp_path: Path) -> None:
    """A missing file in directories that may be entered is just missing: the error names no directory."""
    (tmp_path / "data/b").mkdir(parents=True)
    pattern = f"{tmp_path}/data/*/app.db"
    error = no_match_error(pattern, f"{tmp_path}/gone/*/*.db")
    assert error.message == f"no file matches {pattern} or {tmp_path}/gone/*/*.db"
    assert error.hint is not None
    assert "another name" in error.hint
    assert "volume is mounted" in error.hint


def test_the_daemon_reports_a_pattern_without_a_match(tmp_path: Path) -> None:
    """The daemon reports a pattern without a match with the error of `now`."""
    entry = DatabaseSettings(path=f"{tmp_path}/*.db")
    settings = Settings(state_dir=tmp_path, databases=(entry,))
    databases, problem = Inventory(settings, ()).databases(settings.databases[0])
    expected = no_match_error(entry.path)
    assert databases == []
    assert problem is not None
    assert (type(problem), problem.message, problem.hint) == (type(expected), expected.message, expected.hint)
