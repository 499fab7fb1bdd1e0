"""What the tests of failing system calls share."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.place import change_rows, create_database

from faults import system_calls

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a database, a snapshot of its state `first`, and its later state `second`; only to copy from."""
    if reason := system_calls.why_not():
        pytest.skip(reason)
    home = tmp_path_factory.mktemp("pristine") / "home"
    home.mkdir()
    (home / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
    create_database(home / "app.db", rows=40)
    CommandLine(home).run("now")
    shutil.copy(home / "app.db", home / "first")
    change_rows(home / "app.db", "changed", rows=10)
    shutil.copy(home / "app.db", home / "second")
    return home
