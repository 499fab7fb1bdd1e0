from __future__ import annotations

import re
import shutil
import sqlite3
import stat
from contextlib import closing
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from harness.command_line import CommandLine, names_in

from backupd.capture.sink import has_page_checksum, with_page_checksum

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def configured(stored: CommandLine, tmp_path: Path) -> CommandLine:
    """The store of three snapshots, and a configuration that has `app` at live/app.db, where nothing is yet."""
    shutil.copytree(stored.directory / "backups", tmp_path / "backups")
    (tmp_path / "live").mkdir()
    (tmp_path / "backupd.toml").write_text('[[databases]]\npath = "live/app.db"\n')
    return CommandLine(tmp_path)


def test_restore_to_a_file_prints_what_was_checked(
    stored: CommandLine, snapshots: list[dict[str, Any]], tmp_path: Path
) -> None:
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


def test_json_document_has_every_key(stored: CommandLine, snapshots: list[dict[str, Any]], tmp_path: Path) -> None:
    """The whole document, with the target as an absolute path."""
    target = tmp_path / "restored.db"
    snapshot = snapshots[2]
    restored = stored.run("restore", "latest", "--to", str(target), "--json", expect=0).document["restored"]
    assert restored == {
        "id": snapshot["id"],
        "database": "app",
        "store": f"{stored.directory}/backups",
        "commit_at": None,
        "segments": 0,
        "gap": None,
        "target": str(target),
        "way": "file",
        "image_bytes": target.stat().st_size,
        "fetched_bytes": restored["fetched_bytes"],
        "safety_snapshot": None,
        "kept_as": None,
        "pause_seconds": None,
        "duration_seconds": restored["duration_seconds"],
    }
    assert snapshot["stored_bytes"] < restored["fetched_bytes"] < restored["image_bytes"]
    assert 0 < restored["duration_seconds"] < 60


def test_missing_database_is_restored_with_its_mode(configured: CommandLine) -> None:
    """A restore without --to puts a missing database at its configured path, with its former mode."""
    result = configured.run("restore", "latest", expect=0)
    target = configured.directory / "live/app.db"
    assert f" to {target}: " in result.stdout
    assert result.stderr == "hint: the application can be started now, or restarted if it still runs\n"
    assert names_in(target)[0] == "state 2"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def test_without_configuration_the_target_must_be_named(stored: CommandLine) -> None:
    """The hint says how, and where the file once was."""
    result = stored.run("restore", "latest", expect=2)
    assert result.stderr.startswith("error: where to restore app to is not known: it is not configured here\n")
    assert "hint: name the file: --to FILE; it was " in result.stderr
    assert f"{stored.directory}/app.db on " in result.stderr


def test_existing_file_is_refused_without_force(stored: CommandLine, tmp_path: Path) -> None:
    """An existing target, or a leftover of SQLite beside it, is refused without --force and not touched."""
    (tmp_path / "restored.db").write_text("precious")
    refused = stored.run("restore", "latest", "--to", str(tmp_path / "restored.db"), expect=2)
    assert refused.stderr.startswith(f"error: {tmp_path}/restored.db exists already\nhint: ")
    assert (tmp_path / "restored.db").read_text() == "precious"
    (tmp_path / "new.db-wal").write_text("stale")
    leftover = stored.run("restore", "latest", "--to", str(tmp_path / "new.db"), expect=2)
    assert leftover.stderr.startswith(f"error: {tmp_path}/new.db-wal is left of a file that is gone")
    stored.run("restore", "latest", "--to", str(tmp_path / "restored.db"), "--force", expect=0)
    assert names_in(tmp_path / "restored.db")[0] == "state 2"


def test_target_is_refused_before_a_store_is_asked(cli: CommandLine) -> None:
    """The store is no store; the target is what is reported."""
    (cli.directory / "store").touch()
    result = cli.run("restore", "latest", "--to", "no/such/restored.db", "--store", "store", expect=2)
    assert result.stderr.startswith(f"error: the directory {cli.directory}/no/such does not exist\n")
    result = cli.run("restore", "latest", "--to", "-", "--store", "store", expect=2)
    assert result.stderr.startswith("error: a database cannot be restored to standard output\n")


def test_live_restore_needs_a_confirmation(configured: CommandLine) -> None:
    """A live restore without --yes is refused where no terminal can ask, and --to does not avoid that."""
    target = configured.create_database("live/app.db", rows=1)
    result = configured.run("restore", "latest", expect=2)
    assert result.stderr.startswith(f"error: the content of {target} would be replaced")
    assert "--yes" in result.stderr
    result = configured.run("restore", "latest", "--to", "live/app.db", "--force", expect=2)
    assert result.stderr.startswith(f"error: {target} is the configured database app\n")
    for arguments in (["--force"], ["--to", "other.db", "--dry-run"], ["--to", "other.db", "--replace"]):
        assert "--to" in configured.run("restore", "latest", *arguments, expect=2).stderr
    assert names_in(target) == ["user 0"]


def test_plan_is_confirmed_on_a_terminal(configured: CommandLine) -> None:
    """The answer no leaves everything as it is and counts as an interruption; yes restores and prints the way back."""
    target = configured.create_database("live/app.db", rows=1)
    refused = configured.run_on_terminal("restore", "latest~1", answer="n\n", columns=400)
    assert refused.code == 130
    assert f"into {target}, live: the application continues" in refused.stdout
    assert "  users     1 -> 2,000  (+1,999)" in refused.stdout
    assert "Restore this now? [y/N]: " in refused.stdout
    assert f"error: nothing was restored: {target} stays as it is" in refused.stdout
    assert names_of(target) == ["user 0"]
    agreed = configured.run_on_terminal("restore", "latest~1", answer="y\n", columns=400)
    assert agreed.code == 0
    assert "live: its writers waited" in agreed.stdout
    assert "hint: to go back: backupd undo app" in agreed.stdout
    assert names_of(target)[0] == "state 1"


def test_dry_run_changes_nothing(configured: CommandLine) -> None:
    """The plan as lines and as JSON, without a question, and no snapshot is taken."""
    target = configured.create_database("live/app.db", rows=1)
    before = target.read_bytes()
    lines = configured.run("restore", "latest", "--dry-run", expect=0).lines
    assert lines[-1] == "nothing was changed: this was a dry run"
    plan = configured.run("restore", "latest", "--dry-run", "--json", expect=0).document["plan"]
    assert plan["tables"] == [
        {"table": "alembic_version", "rows_now": 1, "rows_then": 1},
        {"table": "users", "rows_now": 1, "rows_then": 2000},
    ]
    assert {key: plan[key] for key in ("way", "reason", "target", "schema_changes", "readers_wait")} == {
        "way": "live",
        "reason": None,
        "target": str(target),
        "schema_changes": [],
        "readers_wait": False,
    }
    assert plan["scratch_bytes"] == plan["image_bytes"] < plan["log_bytes"]
    assert 0 < plan["pause_seconds"] < 1
    assert target.read_bytes() == before
    assert len(configured.run("list", "--json", expect=0).document["snapshots"]) == 3


def test_change_of_revision_must_be_allowed(configured: CommandLine) -> None:
    """A change of the Alembic revision must be allowed: in scripts by an option, on a terminal by its own question."""
    target = configured.create_database("live/app.db", rows=1)
    with closing(sqlite3.connect(target)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '6b0c1d'")
    refused = configured.run("restore", "latest", "--yes", expect=2)
    assert "error: the Alembic revision changes from 6b0c1d to 5f3a9b" in refused.stderr
    assert "--allow-revision-change" in refused.stderr
    asked = configured.run_on_terminal("restore", "latest", answer="n\n", columns=400)
    assert (asked.code, "may not fit the restored schema. Continue?" in asked.stdout) == (130, True)
    assert names_of(target) == ["user 0"]
    configured.run("restore", "latest", "--yes", "--allow-revision-change", expect=0)
    assert names_of(target)[0] == "state 2"


def test_undo_restores_what_was_there_and_can_be_undone(configured: CommandLine) -> None:
    """An undo restores the safety snapshot of the last restore, and can be undone the same way."""
    target = configured.create_database("live/app.db", rows=1)
    refused = configured.run("undo", "--yes", expect=12).stderr
    assert refused.startswith("error: there is no restore to undo: no safety snapshot of app is known")
    assert "hint: to go back to an older state: backupd list" in refused
    restored = configured.run("restore", "latest", "--yes", "--json", expect=0).document["restored"]
    assert (restored["way"], restored["kept_as"]) == ("live", None)
    assert restored["pause_seconds"] < 2
    undone = configured.run("undo", "app", "--yes", "--json", expect=0).document["restored"]
    assert undone["id"] == restored["safety_snapshot"]
    assert names_of(target) == ["user 0"]
    configured.run("undo", "--yes", expect=0)
    assert names_of(target)[0] == "state 2"
    shown = configured.run("show", "before-restore~1", "--json", expect=0).document["snapshot"]
    assert (shown["id"], shown["kind"]) == (undone["safety_snapshot"], "before-restore")
    latest = configured.run("show", "latest", "--json", expect=0).document["snapshot"]
    assert latest["kind"] == "regular"


def test_path_is_never_taken_for_another_file_of_that_name(configured: CommandLine) -> None:
    """`else/app.db` is not the configured live/app.db."""
    live = configured.create_database("live/app.db", rows=1)
    other = configured.create_database("else/app.db", rows=3)
    configured.run("restore", "latest", "--database", "else/app.db", "--yes", expect=0)
    assert names_of(live) == ["user 0"]
    assert names_of(other)[0] == "state 2"
    configured.run("undo", "./else/app.db", "--yes", expect=0)
    assert (len(names_of(live)), len(names_of(other))) == (1, 3)


def test_undo_means_the_last_restore(configured: CommandLine) -> None:
    """An older safety snapshot is not passed off as that of a restore without one; a failed restore does not count."""
    target = configured.create_database("live/app.db", rows=1)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        _fail_to_restore(configured)
    refused = configured.run("undo", "--yes", expect=2)
    assert "error: the last restore of app failed, and there was none before it\n" in refused.stderr
    configured.run("restore", "latest", "--yes", expect=0)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        _fail_to_restore(configured)
    configured.run("undo", "--yes", expect=0)
    assert names_of(target) == ["user 0"]
    configured.run("restore", "latest~1", "--yes", "--no-safety-snapshot", expect=0)
    refused = configured.run("undo", "--yes", expect=2)
    assert "error: the last restore of app was made without a safety snapshot\n" in refused.stderr
    assert "backupd restore app@before-restore --dry-run" in refused.stderr
    assert names_of(target)[0] == "state 1"
    target.unlink()
    configured.run("restore", "latest", expect=0)
    assert "found nothing in its place" in configured.run("undo", "--yes", expect=2).stderr


def _fail_to_restore(cli: CommandLine) -> None:
    failed = cli.run("restore", "latest~1", "--yes", environ={"BACKUPD_CAPTURE__LOCK_TIMEOUT": "100ms"})
    assert failed.code == 11


def test_undo_refuses_the_safety_snapshot_of_another_file(configured: CommandLine) -> None:
    """An undo of a configured database refuses the safety snapshot of another file with its name."""
    live = configured.create_database("live/app.db", rows=1)
    configured.create_database("else/app.db", rows=3)
    configured.run("restore", "latest", "--database", "else/app.db", "--yes", expect=0)
    refused = configured.run("undo", "app", "--yes", expect=2)
    assert f"is of {configured.directory}/else/app.db\n" in refused.stderr
    assert names_of(live) == ["user 0"]


def test_pause_in_rollback_mode_is_printed(configured: CommandLine) -> None:
    """Readers too, and for how long: in the line for people as in the document for scripts."""
    target = configured.create_database("live/app.db", rows=1)
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    restored = configured.run("restore", "latest", "--yes", expect=0)
    assert re.search(r", live: its writers and readers waited [0-9]\.[0-9]{2} s; ", restored.stdout)
    undone = configured.run("undo", "--yes", "--json", expect=0).document["restored"]
    assert 0 < undone["pause_seconds"] < undone["duration_seconds"]


def test_long_pause_in_rollback_mode_is_a_question_of_its_own(configured: CommandLine) -> None:
    """A pause of more than two seconds, as planned for a database of 500 MB, is a question of its own."""
    target = configured.create_database("live/app.db", rows=1)
    pages = 500_000_000 // 4096
    with closing(sqlite3.connect(target)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    # A sparse file, with pages that were never written.
    with target.open("r+b") as file:
        file.seek(28)
        file.write(pages.to_bytes(4, "big"))
        file.truncate(pages * 4096)
    asked = configured.run_on_terminal("restore", "latest", answer="n\n", columns=400)
    assert asked.code == 130
    assert re.search(r"The application may wait for about [23]\.[0-9] s, longer than some timeouts are", asked.stdout)
    assert len(names_of(target)) == 1


def test_without_configuration_the_file_may_be_named(stored: CommandLine, tmp_path: Path) -> None:
    """Without a configuration, restore and undo take the path of the database, and the hint repeats it."""
    shutil.copytree(stored.directory / "backups", tmp_path / "backups")
    cli = CommandLine(tmp_path)
    target = cli.create_database("app.db", rows=1)
    restored = cli.run("restore", "latest", "--database", "app.db", "--yes", expect=0)
    assert f"hint: to go back: backupd undo {target}\n" in restored.stderr
    assert names_of(target)[0] == "state 2"
    cli.run("undo", "app.db", "--yes", expect=0)
    assert names_of(target) == ["user 0"]


def test_safety_snapshot_that_fails_stops_the_restore(configured: CommandLine) -> None:
    """A restore stops if its safety snapshot fails in every store, unless --no-safety-snapshot is given."""
    target = configured.create_database("live/app.db", rows=1)
    (configured.directory / "closed").touch()
    configuration = '[[databases]]\npath = "live/app.db"\n[[stores]]\nurl = "closed"\n'
    (configured.directory / "backupd.toml").write_text(configuration)
    failed = configured.run("restore", "latest", "--store", "backups", "--yes", expect=10)
    assert "error: the safety snapshot failed, so nothing was restored: " in failed.stderr
    assert "--no-safety-snapshot" in failed.stderr
    assert names_of(target) == ["user 0"]
    (configured.directory / "backupd.toml").write_text(configuration + '[[stores]]\nurl = "backups"\n')
    warned = configured.run("restore", "latest", "--store", "backups", "--yes", expect=0)
    assert "warning: the safety snapshot is not in every store: " in warned.stderr
    (configured.directory / "backupd.toml").write_text(configuration)
    without = configured.run(
        "restore", "latest~1", "--store", "backups", "--yes", "--no-safety-snapshot", "--json", expect=0
    )
    assert without.document["restored"]["safety_snapshot"] is None
    assert names_of(target)[0] == "state 1"


def _seal_pages(path: Path) -> None:
    """Give each page the checksum that an application with SQLite's checksum VFS would."""
    image = path.read_bytes()
    path.write_bytes(b"".join(with_page_checksum(image[start : start + 4096]) for start in range(0, len(image), 4096)))


def test_database_with_page_checksums_is_replaced(configured: CommandLine) -> None:
    """SQLite without the application's VFS would leave a page 1 that this does not read any more."""
    target = configured.directory / "live/app.db"
    with closing(apsw.Connection(str(target))) as connection:
        connection.reserve_bytes(reserve=8)
        connection.execute("CREATE TABLE users (name TEXT); INSERT INTO users VALUES ('one')")
    _seal_pages(target)
    configured.run("now", expect=0)
    with closing(apsw.Connection(str(target))) as connection:
        connection.execute("UPDATE users SET name = 'two'")
    _seal_pages(target)
    before = target.read_bytes()
    refused = configured.run("restore", "latest", "--yes", expect=2)
    assert "checksum VFS, which only the application can write" in refused.stderr
    assert "--replace --app-stopped" in refused.stderr
    assert target.read_bytes() == before
    configured.run("restore", "latest", "--replace", "--app-stopped", "--yes", expect=0)
    assert has_page_checksum(target.read_bytes()[:4096])
    with closing(sqlite3.connect(target)) as connection:
        assert connection.execute("SELECT name FROM users").fetchall() == [("one",)]


def test_replacement_keeps_the_old_file(configured: CommandLine) -> None:
    """A replacement needs --app-stopped, keeps the old file, and says to start the application afterwards."""
    target = configured.create_database("live/app.db", rows=1)
    refused = configured.run("restore", "latest", "--replace", "--yes", expect=2)
    assert "an idle connection in rollback mode is invisible" in refused.stderr
    replaced = configured.run("restore", "latest", "--replace", "--app-stopped", "--yes", expect=0)
    (kept,) = (configured.directory / "live").glob("app.db.before-restore-*")
    assert f"the old file is kept as {kept}" in replaced.stdout
    assert "hint: start the application" in replaced.stderr
    assert names_in(target)[0] == "state 2"
    assert names_in(kept) == ["user 0"]


def names_of(database: Path) -> list[str]:
    """The users' names in a database that may have a log."""
    with closing(sqlite3.connect(database)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM users ORDER BY id")]


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
