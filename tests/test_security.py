"""What SECURITY.md owns up to, and that what it refers to is there."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.extent import slow
from harness.pages import ROOT, anchors, links
from harness.place import change_rows, content_digest, create_database

if TYPE_CHECKING:
    from pathlib import Path

_PAGE = ROOT / "SECURITY.md"


def test_every_test_that_it_names_exists() -> None:
    """The table at its end names files of tests, each of which has some."""
    named = re.findall(r"`(tests/[^`]+\.py)`", _PAGE.read_text())
    assert len(named) > 20
    for name in named:
        assert "def test_" in (ROOT / name).read_text(), name


def test_links_of_the_security_page_lead_somewhere() -> None:
    """Every link of SECURITY.md leads to a file of the project, and to a heading if it names one."""
    for target in links(_PAGE):
        name, _, anchor = target.partition("#")
        file = _PAGE.parent / name if name else _PAGE
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def _machine(home: Path, store: Path, *, rows: int) -> CommandLine:
    home.mkdir()
    create_database(home / "app.db", rows=rows)
    (home / "backupd.toml").write_text(f'[[databases]]\npath = "app.db"\n\n[[stores]]\nurl = "{store}"\n')
    return CommandLine(home)


@pytest.fixture
def machine(tmp_path: Path) -> CommandLine:
    """A machine with a snapshot of app.db in a store."""
    machine = _machine(tmp_path / "machine", tmp_path / "store", rows=40)
    machine.run("now")
    return machine


@slow
def test_a_planted_snapshot_is_the_latest_and_the_machine_notices(machine: CommandLine, tmp_path: Path) -> None:
    """A snapshot planted with put keys is the latest; a dry run shows it, and the next snapshot warns."""
    attacker = _machine(tmp_path / "attacker", tmp_path / "store", rows=2)
    planted = attacker.json("now", "--tag", "good")["snapshots"][0]["id"]
    assert machine.json("show", "latest")["snapshot"]["id"] == planted
    machine.run("verify", "app@latest")
    assert "report" in machine.run("restore", "latest", "--dry-run").stdout
    assert str(attacker.home) in machine.run("show", "latest").stdout
    change_rows(machine.home / "app.db", "changed")
    reported = machine.run("now").reported("warning")
    assert any("two writers take turns" in each for each in reported), reported
    assert any("nothing is removed" in each for each in machine.run("prune", code=3).reported("warning"))


@slow
def test_an_older_copy_of_a_store_is_a_valid_store(machine: CommandLine, tmp_path: Path) -> None:
    """What is in it restores, and is old; the next snapshot is whole, whatever the state directory remembers."""
    old = content_digest(machine.home / "app.db")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    change_rows(machine.home / "app.db", "newer")
    machine.run("now")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "copy").rename(tmp_path / "store")
    machine.run("restore", "latest", "--to", "old.db")
    assert content_digest(machine.home / "old.db") == old
    assert machine.json("now")["snapshots"][0]["outcome"] == "created"
    machine.run("restore", "latest", "--to", "new.db")
    assert content_digest(machine.home / "new.db") == content_digest(machine.home / "app.db")
