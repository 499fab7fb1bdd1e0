"""Tenants whose file or directory cannot give a database its name: they stop no other tenant's backup or restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.extent import slow
from harness.place import content_digest, create_database

if TYPE_CHECKING:
    from pathlib import Path

USAGE, PARTLY_DONE = 2, 3


@pytest.fixture
def tenants(tmp_path: Path) -> CommandLine:
    """Two tenants with usable names, one whose name has a space, and one whose name is taken but for its case."""
    for name in ("acme", "foo bar", "Acme", "zoo"):
        (tmp_path / "data" / name).mkdir(parents=True)
        create_database(tmp_path / "data" / name / "app.db", rows=5)
    pattern = tmp_path / "data" / "*" / "app.db"
    (tmp_path / "backupd.toml").write_text(f"[[databases]]\npath = '{pattern}'\n[[stores]]\nurl = 'backups'\n")
    return CommandLine(tmp_path)


def test_all_others_are_backed_up(tenants: CommandLine) -> None:
    """Each odd name is reported once with a remedy, the others are backed up, and the run is partly done."""
    result = tenants.run("now", code=PARTLY_DONE)
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["Acme", "zoo"]
    taken, space = result.reported("warning")
    assert "'acme'" in taken
    assert "'Acme'" in taken
    assert str(tenants.home / "data" / "foo bar" / "app.db") in space
    assert ["set `name`" in taken, "rename what varies" in space] == [True, True]
    assert len(tenants.json("now", code=PARTLY_DONE)["snapshots"]) == 2


@slow
def test_all_others_can_be_listed_restored_and_pruned(tenants: CommandLine) -> None:
    """Databases beside odd names can be listed, shown, pruned and restored."""
    tenants.run("now", "zoo")
    assert len(tenants.json("list")["snapshots"]) == 1
    assert len(tenants.json("list", "zoo")["snapshots"]) == 1
    tenants.run("show", "zoo@latest")
    tenants.run("prune", "zoo")
    tenants.run("restore", "zoo@latest", "--yes")
    tenants.run("undo", "zoo", "--yes")
    result = tenants.run("restore", "zoo@latest", "--to", "restored.db")
    assert len(result.reported("warning")) == 2
    assert content_digest(tenants.home / "restored.db") == content_digest(tenants.home / "data" / "zoo" / "app.db")


def test_odd_one_that_is_named_is_an_error(tenants: CommandLine) -> None:
    """A file with an odd name that is named on the command line is refused by every command."""
    for path in (tenants.home / "data" / "foo bar" / "app.db", "data/foo bar/app.db"):
        verbs = ("now", "list", "undo", "prune")
        names = ["'foo bar'", tenants.home / "data" / "foo bar"]
        tenants.refusals([([verb, path], USAGE, names) for verb in verbs])
    assert not (tenants.home / "backups").exists()


def test_files_with_unusable_names_alone_are_an_error_that_says_so(tmp_path: Path) -> None:
    """If all files have unusable names, the error gives the name as the reason."""
    (tmp_path / "foo bar").mkdir()
    create_database(tmp_path / "foo bar" / "app.db", rows=5)
    (tmp_path / "backupd.toml").write_text(f"[[databases]]\npath = '{tmp_path}/*/app.db'\n")
    finished = CommandLine(tmp_path).run("now", code=USAGE)
    assert "'foo bar'" in finished.reported("error")[0]
