from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from harness.command_line import CommandLine

if TYPE_CHECKING:
    from pathlib import Path

ID = r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}"
TIME = r"[0-9-]{10} [0-9:]{8}\+0[12]:00"


@pytest.fixture
def copied(stored: CommandLine, tmp_path: Path) -> CommandLine:
    """Three snapshots of `app`, the second one tagged `upgrade`, in two stores that are configured."""
    shutil.copytree(stored.directory, tmp_path, dirs_exist_ok=True)
    shutil.copytree(tmp_path / "backups", tmp_path / "archive")
    (tmp_path / "backupd.toml").write_text(
        '[[databases]]\npath = "app.db"\n[[stores]]\nurl = "backups"\n[[stores]]\nurl = "archive"\n'
        'retention = {grace = "30d"}\n'
    )
    return CommandLine(tmp_path)


def listed(cli: CommandLine, *arguments: str) -> list[tuple[str, str]]:
    """Store and id of all that `list`, or `list --trash`, shows."""
    document: dict[str, Any] = cli.run("list", "--json", *arguments, expect=0).document
    found = document["trash" if "--trash" in arguments else "snapshots"]
    return [(each["store"].rpartition("/")[2], each["id"]) for each in found]


def test_snapshot_is_forgotten_in_every_store_and_undeleted(
    copied: CommandLine, snapshots: list[dict[str, Any]]
) -> None:
    """One line for each store says until when the snapshot can come back; undeleted, it is the same byte for byte."""
    first, second, third = (each["id"] for each in snapshots)
    manifests = [copied.directory / store / "app/snapshots" / f"{second}.json" for store in ("backups", "archive")]
    before = [manifest.read_bytes() for manifest in manifests]
    result = copied.run("forget", "upgrade", expect=0)
    assert [re.sub(TIME, "TIME", line) for line in result.lines] == [
        f"app  forgotten  {second}  can be undeleted until TIME  -> {copied.directory}/{store}"
        for store in ("backups", "archive")
    ]
    assert listed(copied) == [(store, each) for store in ("backups", "archive") for each in (first, third)]
    assert listed(copied, "--trash") == [("backups", second), ("archive", second)]
    (hint,) = result.stderr.splitlines()
    assert hint == f"hint: to bring it back: backupd undelete app@{second}"
    result = copied.run(*hint.partition("backupd ")[2].split(), expect=0)
    assert result.lines == [
        f"app  undeleted  {second}  stays until it is forgotten  -> {copied.directory}/{store}"
        for store in ("backups", "archive")
    ]
    assert [manifest.read_bytes() for manifest in manifests] == before
    assert listed(copied, "--trash") == []
    copied.run("restore", second, "--to", "restored.db", expect=0)


def test_references_are_resolved_before_anything_is_removed(
    copied: CommandLine, snapshots: list[dict[str, Any]]
) -> None:
    """`latest~1` and `latest~2` are what they were when the command was typed; one that is named twice goes once."""
    first, second, third = (each["id"] for each in snapshots)
    result = copied.run("forget", "latest~1", "latest~2", first, "--store", "archive", "--json", expect=0)
    assert [each["id"] for each in result.document["forgotten"]] == [second, first]
    for each in result.document["forgotten"]:
        assert each.keys() == {"id", "database", "store", "gone_after", "error"}
        assert (each["store"], each["error"]) == (f"{copied.directory}/archive", None)
    assert listed(copied, "--store", "archive") == [("archive", third)]
    assert len(listed(copied, "--store", "backups")) == 3


def test_newest_snapshot_cannot_be_forgotten(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """The newest snapshot of a store is not forgotten there; a store in which it is not the newest removes it."""
    refused = copied.run("forget", "latest", expect=2)
    assert refused.stderr.count("is the newest snapshot of app in ") == 2
    assert refused.stdout == ""
    newest = snapshots[2]["id"]
    (copied.directory / "archive/app/snapshots" / f"{newest}.json").unlink()
    partly = copied.run("forget", "upgrade", "--json", expect=3)
    assert [each["error"] is None for each in partly.document["forgotten"]] == [True, False]
    assert len(listed(copied)) == 4


def test_undelete_refuses_a_snapshot_whose_packs_are_gone(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """A snapshot that cannot be restored does not come back: damage in one store, and the other's is used."""
    second = snapshots[1]["id"]
    copied.run("forget", second, expect=0)
    for pack in (copied.directory / "backups/app/packs").iterdir():
        pack.unlink()
    result = copied.run("undelete", second, "--json", expect=3)
    assert [each["store"].rpartition("/")[2] for each in result.document["undeleted"]] == ["archive"]
    (problem,) = result.document["problems"]
    assert problem["exit_code"] == 20
    assert "are gone from" in problem["message"]


def test_snapshot_that_is_not_there_is_an_error(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """A snapshot that is not in the trash or the store, no snapshot, and two names that disagree are errors."""
    empty = copied.run("undelete", "latest", expect=12)
    assert empty.stderr.startswith(f"error: no snapshot latest in the trash of {copied.directory}/backups, ")
    assert "backupd list --trash" in empty.stderr
    copied.run("undelete", snapshots[0]["id"], expect=12)
    copied.run("forget", "1999", expect=12)
    copied.run("undelete", "app@latest", "--database", "shop", expect=2)
    copied.run("forget", expect=2)


def test_undelete_asks_which_of_several_databases(copied: CommandLine) -> None:
    """An undelete that could mean either asks which one."""
    copied.create_database("shop.db")
    for options in ([], ["--full"]):
        copied.run("now", "shop.db", "--store", "backups", *options, expect=0)
    copied.run("forget", "app@latest~1", "shop@latest~1", "--store", "backups", expect=0)
    asked = copied.run("undelete", "latest", expect=12)
    assert re.search(rf"hint: say which one: app@{ID}, shop@{ID}\n", asked.stderr)
    copied.run("undelete", "shop@latest", expect=0)
    assert [store for store, _ in listed(copied, "--trash")] == ["backups"]
    copied.run("undelete", "latest", "--database", "app", expect=0)
    assert listed(copied, "--trash") == []


def test_ids_in_the_trash_are_completed(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """The completions behind `undelete`."""
    second = snapshots[1]["id"]
    copied.run("forget", second, expect=0)
    environ = {"_BACKUPD_COMPLETE": "bash_complete", "COMP_WORDS": "backupd undelete ", "COMP_CWORD": "2"}
    assert copied.run(environ=environ).lines == [f"plain,{second}"]
