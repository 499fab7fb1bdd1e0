"""Tenants who lay names in their own directory that lead to what is not theirs."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.extent import sampled, slow
from harness.place import change_rows, content_digest, create_database
from harness.site import new_site

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARTLY_DONE, USAGE, SOURCE_UNUSABLE = 3, 2, 13
_BOB = 4711

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture
def tenants(tmp_path: Path) -> CommandLine:
    """Two tenants with a snapshot each."""
    for name, rows in (("alice", 5), ("bob", 6)):
        (tmp_path / "data" / name).mkdir(parents=True)
        create_database(_file(tmp_path, name), rows=rows)
    pattern = tmp_path / "data" / "*" / "app.db"
    (tmp_path / "backupd.toml").write_text(f"[[databases]]\npath = '{pattern}'\n[[stores]]\nurl = 'backups'\n")
    backupd = CommandLine(tmp_path)
    backupd.run("now")
    return backupd


def _file(home: Path, name: str) -> Path:
    return home / "data" / name / "app.db"


def _snapshots(backupd: CommandLine, name: str) -> int:
    return len(backupd.json("list", name)["snapshots"])


@pytest.mark.parametrize("lay", sampled([os.symlink, os.link]), ids=["symbolic", "hard"])
def test_name_that_leads_to_a_neighbour_is_no_database(tenants: CommandLine, lay: Callable[..., None]) -> None:
    """A link to a neighbour's file is not backed up, and no restore of its name writes into that file."""
    alice, bob = _file(tenants.home, "alice"), _file(tenants.home, "bob")
    before = content_digest(alice)
    bob.unlink()
    lay(alice, bob)
    change_rows(alice, "changed")
    after = content_digest(alice)
    assert before != after
    finished = tenants.run("now", code=PARTLY_DONE)
    (warning,) = finished.reported("warning")
    assert [str(bob) in warning, str(alice) in warning] == [True, True]
    assert [_snapshots(tenants, name) for name in ("alice", "bob")] == [2, 1]
    tenants.refusal("restore", "bob@latest", "--yes", code=USAGE, names=[alice, bob])
    assert content_digest(alice) == after


def test_link_out_of_the_fixed_part_is_not_followed(tenants: CommandLine) -> None:
    """A link out of the fixed part of a pattern is not followed, unless an entry names it."""
    bob, elsewhere = _file(tenants.home, "bob"), tenants.home / "elsewhere.db"
    shutil.move(bob, elsewhere)
    bob.symlink_to(elsewhere)
    (warning,) = tenants.run("now", code=PARTLY_DONE).reported("warning")
    assert f"{bob} leads to {elsewhere}, outside {tenants.home}/data" in warning
    _file(tenants.home, "alice").unlink()
    tenants.refusal("now", code=SOURCE_UNUSABLE, names=[bob, elsewhere])
    with (tenants.home / "backupd.toml").open("a") as file:
        file.write(f"[[databases]]\nname = 'bob'\npath = '{bob}'\n")
    tenants.run("now", "bob")


def test_link_that_stays_is_followed(tenants: CommandLine) -> None:
    """A tenant may keep the file under another name beside it."""
    bob = _file(tenants.home, "bob")
    shutil.move(bob, bob.with_name("current.sqlite"))
    bob.symlink_to("current.sqlite")
    assert not tenants.run("now").reported("warning")


@slow
@only_root
def test_link_of_a_user_to_the_file_of_another_is_not_followed(tenants: CommandLine) -> None:
    """A user's link to another user's file is not followed; a link of root is."""
    bob, secret = _file(tenants.home, "bob"), tenants.home / "data" / "alice" / "secret.sqlite"
    create_database(secret, rows=7)
    bob.unlink()
    bob.symlink_to(secret)
    os.chown(bob, _BOB, _BOB, follow_symlinks=False)
    (warning,) = tenants.run("now", code=PARTLY_DONE).reported("warning")
    assert f"a symbolic link that uid {_BOB} made leads to {secret}, which belongs to uid 0" in warning
    (tenants.home / "backupd.toml").write_text(f"[[databases]]\nname = 'bob'\npath = '{bob}'\n")
    tenants.refusal("now", code=SOURCE_UNUSABLE, names=[bob, secret, _BOB])
    tenants.refusal("restore", "bob@latest", "--yes", code=SOURCE_UNUSABLE, names=[bob, secret, _BOB])
    tenants.refusal("restore", "bob@latest", "--to", bob, "--force", code=USAGE, names=[bob])
    os.chown(bob, 0, 0, follow_symlinks=False)
    tenants.run("now")


@pytest.mark.parametrize(("first", "second"), sampled([("alice", "ALICE"), ("a-b", "a")]))
def test_second_directory_of_one_name_does_not_evict_the_first(tmp_path: Path, first: str, second: str) -> None:
    """A second directory of one name is skipped, because the first has been backed up before."""
    _tenant(tmp_path, first, "c")
    (tmp_path / "backupd.toml").write_text(f"[[databases]]\npath = '{tmp_path}/data/*/*.db'\n")
    backupd = CommandLine(tmp_path)
    backupd.run("now")
    _tenant(tmp_path, second, "c" if first.lower() == second.lower() else "b-c")
    change_rows(tmp_path / "data" / first / "c.db", "changed")
    (warning,) = backupd.run("now", code=PARTLY_DONE).reported("warning")
    name = f"{first}-c"
    assert [f"'{name}'" in warning, f"{tmp_path}/data/{second}/" in warning] == [True, True]
    assert _snapshots(backupd, name) == 2
    assert len(backupd.json("list")["snapshots"]) == 2


def _tenant(home: Path, directory: str, stem: str) -> None:
    (home / "data" / directory).mkdir(parents=True)
    create_database(home / "data" / directory / f"{stem}.db", rows=5)


def test_two_entries_for_one_file(tmp_path: Path) -> None:
    """The file itself, and not the link to it, in whatever order; and it is said."""
    create_database(tmp_path / "real.db", rows=5)
    (tmp_path / "link.db").symlink_to("real.db")
    entries = "".join(f"[[databases]]\npath = '{name}.db'\n" for name in ("link", "real"))
    (tmp_path / "backupd.toml").write_text(entries)
    finished = CommandLine(tmp_path).run("now", code=PARTLY_DONE)
    assert len(finished.reported("warning")) == 1
    assert len(CommandLine(tmp_path).json("list")["snapshots"]) == 1


@only_root
def test_daemon_leaves_the_planted_one_out_and_says_that_it_is_root(tmp_path: Path) -> None:
    """The others have their snapshots; the link is an alarm of its entry, and comes into no history."""
    for name in ("alice", "bob"):
        (tmp_path / "data" / name).mkdir(parents=True)
        create_database(_file(tmp_path, name), rows=5)
    _file(tmp_path, "bob").unlink()
    _file(tmp_path, "bob").symlink_to(_file(tmp_path, "alice"))
    site = new_site(tmp_path)
    site.configure("data/*/app.db")
    with site.daemon(BACKUPD_RUN_AS_OWNER="true") as daemon:
        reason = daemon.wait_for("this process stays root")["reason"]
        assert reason == f"{_file(tmp_path, 'alice')} belongs to root; capabilities: none"
        problem = daemon.wait_for("databases not found")["error"]["message"]
        assert [str(_file(tmp_path, name)) in problem for name in ("alice", "bob")] == [True, True]
        daemon.wait_for("snapshot", database="alice", outcome="created")
        daemon.stop()
    assert [path.name for path in (tmp_path / "backups").iterdir() if path.name in {"alice", "bob"}] == ["alice"]
