from __future__ import annotations

import re
import shutil
import stat
from typing import TYPE_CHECKING, Any

import pytest
from harness.command_line import CommandLine, names_in

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def configured(stored: CommandLine, tmp_path: Path) -> CommandLine:
    """The store of three snapshots, and a configuration that has `app` at live/app.db, where nothing is yet."""
    shutil.copytree(stored.directory / "backups", tmp_path / "backups")
    (tmp_path / "live").mkdir()
    (tmp_path / "backupd.toml").write_text('[[databases]]\npath = "live/app.db"\n')
    return CommandLine(tmp_path)


def test_to_a_file(stored: CommandLine, snapshots: list[dict[str, Any]], tmp_path: Path) -> None:
    """One line says which snapshot, when, from where, to which file, how much, and what was checked."""
    target = tmp_path / "restored.db"
    snapshot = snapshots[1]
    result = stored.run("restore", "upgrade", "--to", str(target), expect=0)
    assert re.fullmatch(
        rf"restored app@{snapshot['id']} \([0-9-]+ [0-9:]+\+0[12]:00, [0-9]+ (s|min) ago\) "
        rf"from {stored.directory}/backups to {target}: [0-9.]+ kB in [0-9.]+ s; "
        r"every pack and the whole image have their checksums, and SQLite opens it\n",
        result.stdout,
    )
    assert result.stderr == ""
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert names_in(target)[0] == "state 1"
    assert [file.name for file in tmp_path.iterdir()] == ["restored.db"]


def test_json_document_is_complete(stored: CommandLine, snapshots: list[dict[str, Any]], tmp_path: Path) -> None:
    """The whole document, with the target as an absolute path."""
    target = tmp_path / "restored.db"
    snapshot = snapshots[2]
    restored = stored.run("restore", "latest", "--to", str(target), "--json", expect=0).document["restored"]
    assert restored == {
        "id": snapshot["id"],
        "database": "app",
        "store": f"{stored.directory}/backups",
        "target": str(target),
        "image_bytes": target.stat().st_size,
        "fetched_bytes": restored["fetched_bytes"],
        "duration_seconds": restored["duration_seconds"],
    }
    assert snapshot["stored_bytes"] < restored["fetched_bytes"] < restored["image_bytes"]
    assert 0 < restored["duration_seconds"] < 60


def test_to_the_configured_path_with_its_mode(configured: CommandLine) -> None:
    """Without --to it goes where the application looks for it, with the mode that it had."""
    result = configured.run("restore", "latest", expect=0)
    target = configured.directory / "live/app.db"
    assert f" to {target}: " in result.stdout
    assert result.stderr == "hint: the application can be started now\n"
    assert names_in(target)[0] == "state 2"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_without_configuration_the_target_must_be_named(stored: CommandLine) -> None:
    """The hint says how, and where the file once was."""
    result = stored.run("restore", "latest", expect=2)
    assert result.stderr.startswith("error: where to restore app to is not known: it is not configured here\n")
    assert "hint: name the file: --to FILE; it was " in result.stderr
    assert f"{stored.directory}/app.db on " in result.stderr


def test_existing_file_is_refused_without_force(stored: CommandLine, tmp_path: Path) -> None:
    """Nothing is touched; a leftover of SQLite beside the target is in the way too."""
    (tmp_path / "restored.db").write_text("precious")
    refused = stored.run("restore", "latest", "--to", str(tmp_path / "restored.db"), expect=2)
    assert refused.stderr.startswith(f"error: {tmp_path}/restored.db exists already\nhint: ")
    assert (tmp_path / "restored.db").read_text() == "precious"
    (tmp_path / "new.db-wal").write_text("stale")
    leftover = stored.run("restore", "latest", "--to", str(tmp_path / "new.db"), expect=2)
    assert leftover.stderr.startswith(f"error: {tmp_path}/new.db-wal is left from another database")
    stored.run("restore", "latest", "--to", str(tmp_path / "restored.db"), "--force", expect=0)
    assert names_in(tmp_path / "restored.db")[0] == "state 2"


def test_target_is_refused_before_a_store_is_asked(cli: CommandLine) -> None:
    """The store is no store; the target is what is reported."""
    (cli.directory / "store").touch()
    result = cli.run("restore", "latest", "--to", "no/such/restored.db", "--store", "store", expect=2)
    assert result.stderr.startswith(f"error: the directory {cli.directory}/no/such does not exist\n")
    result = cli.run("restore", "latest", "--to", "-", "--store", "store", expect=2)
    assert result.stderr.startswith("error: a database can not be restored to standard output\n")


def test_replacing_the_live_database_needs_a_yes(configured: CommandLine) -> None:
    """Nobody can be asked without a terminal, so --force alone is refused, however the file is named."""
    target = configured.create_database("live/app.db", rows=1)
    for arguments in ([], ["--to", "live/app.db"]):
        result = configured.run("restore", "latest", "--force", *arguments, expect=2)
        assert result.stderr.startswith(f"error: {target} would be replaced")
        assert "--yes" in result.stderr
        assert names_in(target) == ["user 0"]
    configured.run("restore", "latest", "--force", "--yes", expect=0)
    assert names_in(target)[0] == "state 2"


def test_confirmation_on_a_terminal(configured: CommandLine) -> None:
    """No leaves everything as it is and is an interruption; yes replaces it."""
    target = configured.create_database("live/app.db", rows=1)
    refused = configured.run_on_terminal("restore", "latest~1", "--force", answer="n\n", columns=400)
    assert refused.code == 130
    assert f"Replace {target} with app@" in refused.stdout
    assert f"error: nothing was restored: {target} stays as it is" in refused.stdout
    assert names_in(target) == ["user 0"]
    agreed = configured.run_on_terminal("restore", "latest~1", "--force", answer="y\n", columns=400)
    assert agreed.code == 0
    assert names_in(target)[0] == "state 1"


def test_damaged_pack_leaves_no_file(stored: CommandLine, tmp_path: Path) -> None:
    """The pack, its store and the snapshots that need it are named; no part of a file stays."""
    shutil.copytree(stored.directory / "backups", tmp_path / "backups")
    cli = CommandLine(tmp_path)
    largest = max((tmp_path / "backups/app/packs").iterdir(), key=lambda pack: pack.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    result = cli.run("restore", "latest", "--to", "out.db", expect=20)
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: pack app/packs/{largest.name} in {tmp_path}/backups ")
    assert hint.startswith("hint: ")
    assert {file.name for file in tmp_path.iterdir()} == {"backups", "state"}
