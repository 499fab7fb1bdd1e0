from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from harness.command_line import CommandLine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def cli(tmp_path: Path) -> CommandLine:
    """A current directory with an application's database in it, and nothing else."""
    return _with_database(tmp_path)


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> CommandLine:
    """Three snapshots of `app` in ./backups, the second one tagged `upgrade`: to be looked at, not changed."""
    cli = _with_database(tmp_path_factory.mktemp("stored"))
    (cli.directory / "app.db").chmod(0o640)
    for number, tags in enumerate(((), ("--tag", "upgrade"), ())):
        with sqlite3.connect(cli.directory / "app.db") as connection:
            connection.execute("UPDATE users SET name = ? WHERE id = 1", (f"state {number}",))
        connection.close()
        cli.run("now", "app.db", *tags, expect=0)
    return cli


@pytest.fixture(scope="session")
def snapshots(stored: CommandLine) -> list[dict[str, Any]]:
    """What `list --json` says of those three, the newest last."""
    found: list[dict[str, Any]] = stored.run("list", "--json", expect=0).document["snapshots"]
    return found


def _with_database(directory: Path) -> CommandLine:
    cli = CommandLine(directory)
    cli.create_database("app.db")
    return cli
