from __future__ import annotations

import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.capturing import breaking_captures, noted_captures, noting_captures
from harness.command_line import wait_until
from harness.notes import read_notes

if TYPE_CHECKING:
    from harness.command_line import CommandLine

ID = r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}"


def test_first_run_needs_no_configuration(cli: CommandLine) -> None:
    """A path is enough: the snapshot goes to ./backups, one line says so, and nothing else is printed."""
    result = cli.run("now", "app.db", expect=0)
    assert re.fullmatch(
        rf"app  created  {ID}  [0-9.]+ kB, ([0-9]+) of \1 pages changed, [0-9.]+ kB stored in [0-9.]+ s"
        r"; the store lists 1 pack, [0-9.]+ kB"
        rf"  -> {cli.directory}/backups\n",
        result.stdout,
    )
    assert result.stderr == ""


def test_unchanged_database_gets_no_snapshot_but_a_tagged_one(cli: CommandLine) -> None:
    """The line names the snapshot that still holds; --tag and --full make a new one, the latter with every page."""
    first = cli.run("now", "app.db", "--json", expect=0).document["snapshots"][0]
    again = cli.run("now", "app.db", expect=0)
    assert re.match(rf"app  unchanged  {first['id']}  .*nothing changed since this snapshot", again.stdout)
    cli.run("now", "app.db", "--tag", "v1", "--tag", "v1", "--full", expect=0)
    shown = cli.run("show", "v1", "--json", expect=0).document["snapshot"]
    assert shown["tags"] == ["v1"]
    assert shown["base"] == first["id"]
    assert sum(pack["stored_bytes"] for pack in shown["packs"]) == shown["stored_bytes"]


def test_json_document_has_every_key(cli: CommandLine) -> None:
    """The whole document, key by key; stderr stays empty."""
    (cli.directory / "not-a-directory").touch()
    result = cli.run("now", "app.db", "--store", "good", "--store", "not-a-directory", "--json", expect=3)
    good, bad = result.document["snapshots"]
    page_count = good["page_count"]
    assert result.document.keys() == {"snapshots", "pruned"}
    assert result.document["pruned"] == []  # nothing is configured, so nothing is removed
    assert good == {
        "id": good["id"],
        "database": "app",
        "store": f"{cli.directory}/good",
        "outcome": "created",
        "page_size": 4096,
        "page_count": page_count,
        "changed_pages": page_count,
        "stored_bytes": good["stored_bytes"],
        "receipt": {"packs": 1, "stored_bytes": good["stored_bytes"]},
        "replaced_packs": 0,
        "was_read": True,
        "duration_seconds": good["duration_seconds"],
        "error": None,
        "warnings": [],
    }
    assert re.fullmatch(ID, good["id"])
    assert page_count >= 3
    assert 0 < good["stored_bytes"] < page_count * 4096
    assert 0 < good["duration_seconds"] < 60
    assert bad == {
        "id": None,
        "database": "app",
        "store": f"{cli.directory}/not-a-directory",
        "outcome": "failed",
        "page_size": None,
        "page_count": None,
        "changed_pages": None,
        "stored_bytes": 0,
        "receipt": None,
        "replaced_packs": 0,
        "was_read": True,
        "duration_seconds": bad["duration_seconds"],
        "error": {"message": bad["error"]["message"], "hint": bad["error"]["hint"], "exit_code": 10},
        "warnings": [],
    }
    assert f"{cli.directory}/not-a-directory" in bad["error"]["message"]
    assert result.stderr == ""


def test_failing_database_does_not_stop_the_others(cli: CommandLine) -> None:
    """The first of two is no database: it is reported with its name, the second is stored, and the code says partly."""
    (cli.directory / "broken.db").write_text("no database at all, but long enough to have a header\n" * 10)
    result = cli.run("now", "./broken.db", "./app.db", expect=3)
    failed, created = result.lines
    assert re.match(rf"broken  failed  no snapshot made, given up after .*  -> {cli.directory}/backups", failed)
    assert created.startswith("app  created  ")
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: broken: {cli.directory}/broken.db is not an SQLite database")
    assert hint.startswith("hint: ")


def test_exit_code_of_the_first_error_when_everything_failed(cli: CommandLine) -> None:
    """An error that all stores share is printed once, and its code is that of the run."""
    result = cli.run("now", "./missing.db", "--store", "one", "--store", "two", expect=13)
    assert result.stderr.count("error: ") == 1
    assert f"{cli.directory}/missing.db" in result.stderr
    assert not (cli.directory / "missing.db").exists()


def test_configured_databases_go_to_configured_stores(cli: CommandLine) -> None:
    """Names, patterns and paths of one configuration; a configured path keeps its configured name."""
    cli.create_database("tenants/acme/app.db")
    cli.create_database("tenants/zeta/app.db")
    (cli.directory / "backupd.toml").write_text(
        """
        [[databases]]
        path = "app.db"
        name = "main"
        [[databases]]
        path = "tenants/*/app.db"
        [[databases]]
        path = "gone/*.db"
        [[stores]]
        url = "store-a"
        [[stores]]
        url = "store-b"
        """
    )
    everything = cli.run("now", "--json", expect=0)
    made = [(each["database"], each["store"].rpartition("/")[2]) for each in everything.document["snapshots"]]
    assert made == [(name, store) for name in ("main", "acme", "zeta") for store in ("store-a", "store-b")]
    ids = [each["id"] for each in everything.document["snapshots"]]
    assert ids[0] == ids[1] != ids[2]
    assert everything.stderr == (
        f"warning: no file matches {cli.directory}/gone/*.db; the other databases are backed up\n"
    )
    some = cli.run("now", "./app.db", "acme", "main", "--store", "store-b", "--json", expect=0)
    assert [(each["database"], each["outcome"]) for each in some.document["snapshots"]] == [
        ("main", "unchanged"),
        ("acme", "unchanged"),
    ]
    assert some.stderr == ""


def test_patterns_that_find_nothing_at_all_are_an_error(cli: CommandLine) -> None:
    """A volume that is not mounted must not look like a backup that worked."""
    pattern = {"BACKUPD_DATABASES__0__PATH": f"{cli.directory}/gone/*.db"}
    result = cli.run("now", environ=pattern, expect=13)
    assert result.stderr.startswith(f"error: no file matches {cli.directory}/gone/*.db\nhint: ")
    assert not (cli.directory / "backups").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        ([], "no database is given, and none is configured", "backupd now app.db"),
        (["app.db", "copy/app.db"], "two databases with one name: 'app'", "give one another name: NAME="),
        (["app.db", "--tag", "latest"], "'latest' cannot be a tag", "a tag is a letter"),
        (["app.db", "--store", "ftp://host/x"], "'ftp:' is not a kind of store", "s3://bucket/prefix"),
        (["app.db", "--ful"], "no such option '--ful'", "did you mean --full? see: backupd now --help"),
    ],
    ids=["nothing", "one name twice", "reserved tag", "odd store", "misspelled option"],
)
def test_wrong_usage_is_an_error_and_makes_nothing(
    cli: CommandLine, arguments: list[str], error: str, hint: str
) -> None:
    """Two lines, code 2, and nothing is made."""
    result = cli.run("now", *arguments, expect=2)
    first, second = result.stderr.splitlines()
    assert first.startswith("error: ")
    assert error in first
    assert second.startswith("hint: ")
    assert hint in second
    assert result.stdout == ""
    assert [file.name for file in cli.directory.iterdir()] == ["app.db"]


def test_lost_cache_is_a_note_that_quiet_suppresses(cli: CommandLine) -> None:
    """What the use cases log goes to stderr as `key=value`; --quiet leaves the results alone."""
    cli.run("now", "app.db", expect=0)
    hashes = list((cli.directory / "state/cache").rglob("*.hashes"))
    assert len(hashes) == 1
    hashes[0].unlink()
    result = cli.run("now", "app.db", expect=0)
    assert re.fullmatch(
        r'timestamp=\S+Z level=info event="rebuilding the base from pack indexes" '
        rf"database=app store={cli.directory}/backups\n",
        result.stderr,
    )
    hashes[0].unlink()
    quiet = cli.run("now", "app.db", "-q", expect=0)
    assert (len(quiet.lines), quiet.stderr) == (1, "")
    assert quiet.stdout.startswith("app  unchanged  ")


def test_everything_that_is_made_is_private(cli: CommandLine) -> None:
    """State and store are readable for their owner only; the database, its directory and its mode are untouched."""
    before = {file: file.stat().st_mode for file in (cli.directory, cli.directory / "app.db")}
    cli.run("now", "app.db", "--store", "a/b/backups", expect=0)
    made = [*(cli.directory / "a").rglob("*"), *(cli.directory / "state").rglob("*")]
    assert len(made) > 10
    assert {stat.S_IMODE(file.stat().st_mode) & 0o077 for file in made} == {0}
    assert {file: file.stat().st_mode for file in before} == before


def test_terminal_shows_a_progress_bar(cli: CommandLine) -> None:
    """A bar while it runs, and then the same line as without a terminal."""
    with sqlite3.connect(cli.directory / "app.db") as connection:
        connection.execute("INSERT INTO users (name) SELECT hex(randomblob(1000)) FROM users")
    connection.close()
    result = cli.run_on_terminal("now", "app.db")
    assert result.code == 0
    assert "━" in result.stdout
    assert re.search(rf"app  created  {ID}  ", result.stdout)


_ROTATION = """
[[databases]]
path = "app.db"
[[stores]]
url = "backups"
[retention]
keep_last = 1
daily = 0
weekly = 0
monthly = 0
"""


def test_snapshot_is_followed_by_a_prune(cli: CommandLine) -> None:
    """`now` prunes after the snapshot and reports what was removed, in a line and in JSON, unless switched off."""
    (cli.directory / "backupd.toml").write_text(_ROTATION)
    assert len(cli.run("now", expect=0).lines) == 1
    created, removed = cli.run("now", "--full", expect=0).lines
    assert created.startswith("app  created  ")
    assert removed == f"app: 1 snapshot to the trash  -> {cli.directory}/backups"
    document = cli.run("now", "--full", "--json", expect=0).document
    (pruned,) = document["pruned"]
    assert [len(pruned["decisions"]), len(pruned["removed"]), pruned["hold"], pruned["error"]] == [2, 1, None, None]
    assert [line[:12] for line in cli.run("now", "--full", "-q", expect=0).lines] == ["app  created", "app: 1 snaps"]
    off = {"BACKUPD_RETENTION__AFTER_SNAPSHOT": "false"}
    assert cli.run("now", "--full", "--json", environ=off, expect=0).document["pruned"] == []
    assert len(cli.run("list", "--json", expect=0).document["snapshots"]) == 2


def test_another_file_of_a_configured_name_is_not_pruned(cli: CommandLine) -> None:
    """A file that only shares a configured database's name is not pruned; a link to the configured file is."""
    (cli.directory / "backupd.toml").write_text(_ROTATION)
    cli.run("now", expect=0)
    cli.create_database("other/app.db")
    for _ in range(2):
        assert cli.run("now", "other/app.db", "--full", "--json", expect=0).document["pruned"] == []
    assert len(cli.run("list", "--json", expect=0).document["snapshots"]) == 3
    (cli.directory / "link.db").symlink_to("app.db")
    assert len(cli.run("now", "./link.db", "--full", "--json", expect=0).document["pruned"]) == 1


def test_hold_is_reported_at_every_run_and_is_no_failure(cli: CommandLine) -> None:
    """A snapshot of a database that has suddenly shrunk is a good snapshot; what was there before stays."""
    (cli.directory / "backupd.toml").write_text(_ROTATION)
    cli.run("now", expect=0)
    with closing(sqlite3.connect(cli.directory / "app.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM users")
        connection.execute("VACUUM")
    for outcome in ("created", "unchanged"):
        result = cli.run("now", expect=0)
        (line,) = result.lines
        assert line.startswith(f"app  {outcome}  ")
        warning, hint = result.stderr.splitlines()
        assert warning.startswith(f"warning: app: nothing is removed from {cli.directory}/backups: the newest snapshot")
        assert "--accept-shrink" in hint
    assert len(cli.run("list", "--json", expect=0).document["snapshots"]) == 2


def test_nothing_is_pruned_after_a_failed_snapshot(cli: CommandLine) -> None:
    """A store whose snapshot failed is not pruned; when the source failed, no store is."""
    (cli.directory / "backupd.toml").write_text(_ROTATION + '[[stores]]\nurl = "other"\n')
    off = {"BACKUPD_RETENTION__AFTER_SNAPSHOT": "false"}
    cli.run("now", environ=off, expect=0)
    cli.run("now", "--full", environ=off, expect=0)
    (cli.directory / "other/app/packs").rename(cli.directory / "other/app/away")
    (cli.directory / "other/app/packs").touch()
    pruned = cli.run("now", "--full", "--json", expect=3).document["pruned"]
    assert [each["store"].rpartition("/")[2] for each in pruned] == ["backups"]
    (cli.directory / "app.db").unlink()
    assert cli.run("now", "--json", expect=13).document["pruned"] == []


def test_snapshot_that_was_killed_counts_as_failed(cli: CommandLine) -> None:
    """A killed run cannot record its failure, so it is recorded before: nothing is removed until one succeeds."""
    (cli.directory / "backupd.toml").write_text(_ROTATION)
    cli.run("now", expect=0)
    state = cli.directory / "state"
    lasting = read_notes(state)
    with closing(sqlite3.connect(cli.directory / "app.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        with cli.started("now") as process:
            wait_until(lambda: read_notes(state) != lasting)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    held = cli.run("prune", expect=3)
    assert re.search(
        rf"the last snapshot of app in {cli.directory}/backups failed at \S+Z: it was interrupted", held.stderr
    )
    cli.run("now", expect=0)
    cli.run("prune", expect=0)


def test_another_file_of_a_configured_name_ends_no_failure(cli: CommandLine) -> None:
    """A file with a configured database's name neither ends nor causes a failure of the configured one."""
    (cli.directory / "backupd.toml").write_text(_ROTATION)
    cli.create_database("other/app.db")
    (cli.directory / "app.db").rename(cli.directory / "away.db")
    cli.run("now", expect=13)
    cli.run("now", "other/app.db", expect=0)
    cli.run("prune", expect=3)
    (cli.directory / "away.db").rename(cli.directory / "app.db")
    cli.run("now", expect=0)
    cli.run("now", "other/missing/app.db", expect=13)
    cli.run("prune", "--dry-run", expect=0)


def test_hint_names_the_store_that_is_not_configured(cli: CommandLine) -> None:
    """A hint to accept a shrink names the store that it is about, if that one is not configured."""
    (cli.directory / "backupd.toml").write_text(_ROTATION)
    stores = ("--store", "one", "--store", "two", "--store", "backups")
    cli.run("now", *stores, expect=0)
    with closing(sqlite3.connect(cli.directory / "app.db", isolation_level=None)) as connection:
        connection.execute("ALTER TABLE users RENAME TO people")
    hints = [line for line in cli.run("now", *stores, expect=0).stderr.splitlines() if line.startswith("hint: ")]
    assert [re.search(r"backupd prune (.*?)app --accept-shrink", hint)[1] for hint in hints] == [
        f"--store {cli.directory}/one ",
        f"--store {cli.directory}/two ",
        "",
    ]


def test_two_stores_that_are_one_directory_are_a_warning(cli: CommandLine) -> None:
    """Two entries make one copy only; the warning comes once in every run."""
    (cli.directory / "backupd.toml").write_text(_ROTATION + '[[stores]]\nurl = "link"\n')
    (cli.directory / "link").symlink_to("backups")
    warning = (
        f"warning: the stores {cli.directory}/backups and {cli.directory}/link are one directory, and count as one\n"
    )
    first = cli.run("now", expect=0)
    assert (len(first.lines), first.stderr) == (1, warning)
    oldest = cli.run("list", "--json", expect=0).document["snapshots"][0]["id"]
    cli.run("now", "--full", environ={"BACKUPD_RETENTION__AFTER_SNAPSHOT": "false"}, expect=0)
    assert cli.run("forget", oldest, "-q", expect=0).stderr == warning


def test_store_is_one_however_it_is_spelled(cli: CommandLine) -> None:
    """A link to it, and a way around, are the configured store with its own policy; each is used once."""
    (cli.directory / "backupd.toml").write_text(
        _ROTATION.replace('url = "backups"', 'url = "backups"\nretention = {keep_last = 2}')
    )
    cli.run("now", expect=0)
    (cli.directory / "link").symlink_to("backups")
    stores = ("--store", "link", "--store", "state/../backups", "--store", "backups")
    cli.run("now", *stores, "--full", expect=0)
    document = cli.run("now", *stores, "--full", "--json", expect=0).document
    assert [each["store"] for each in document["snapshots"]] == [f"{cli.directory}/backups"]
    assert [len(each["removed"]) for each in document["pruned"]] == [1]
    assert len(cli.run("list", "--store", "link", "--json", expect=0).document["snapshots"]) == 2


def test_bug_in_one_database_costs_no_other_its_snapshot(cli: CommandLine) -> None:
    """A bug in one database leaves the others their snapshots, and the run is partly done; alone, it is a bug."""
    names = ("a", "bad", "c")
    for name in names:
        cli.create_database(f"{name}.db", rows=2)
    environ = breaking_captures(cli.directory / "broken", "/bad.db")
    paths = [f"{name}.db" for name in names]
    result = cli.run("now", *paths, "--json", expect=3, environ=environ)
    assert {each["database"]: each["outcome"] for each in result.document["snapshots"]} == {
        "a": "created",
        "bad": "failed",
        "c": "created",
    }
    error = next(each["error"] for each in result.document["snapshots"] if each["error"] is not None)
    assert error["message"].startswith("this is a bug in backupd: JSONDecodeError")
    assert error["exit_code"] == 1
    assert "Traceback" in result.stderr
    alone = cli.run("now", "bad.db", expect=1, environ=environ)
    assert "error: bad: this is a bug in backupd" in alone.stderr


@pytest.mark.parametrize(("names", "processes"), [(["a"], 1), (["a", "b", "c"], 1), (["a", "text", "c", "d"], 2)])
def test_databases_of_a_run_are_captured_by_one_process(cli: CommandLine, names: list[str], processes: int) -> None:
    """The results are in the order of the arguments; a file that is no database costs one more process."""
    for name in names:
        if name == "text":
            (cli.directory / "text.db").write_text("no database\n" * 100)
        else:
            cli.create_database(f"{name}.db", rows=2)
    environ = noting_captures(cli.directory / "noted")
    found = cli.run("now", *(f"{name}.db" for name in names), "--json", environ=environ).document
    assert [each["database"] for each in found["snapshots"]] == names
    failed = [each["database"] for each in found["snapshots"] if each["outcome"] == "failed"]
    assert failed == [name for name in names if name == "text"]
    assert noted_captures(cli.directory / "noted") == processes


_COUNTING = """
import sys
searched = open(sys.argv.pop(1), "w", buffering=1)
sys.addaudithook(lambda event, arguments: print(arguments[0], file=searched) if event == "glob.glob" else None)
from backupd.__main__ import main
main()
"""


def test_each_configured_pattern_is_searched_once(cli: CommandLine) -> None:
    """Each pattern is searched once in a run, because a search through thousands of tenants takes a while."""
    for name in ("acme", "zeta"):
        cli.create_database(f"tenants/{name}.db", rows=10)
    (cli.directory / "backupd.toml").write_text(
        """
        [[databases]]
        path = "tenants/*.db"
        [[databases]]
        path = "gone/*.db"
        [[stores]]
        url = "store-a"
        [[stores]]
        url = "store-b"
        """
    )
    for names in ((), ("acme",)):
        log = cli.directory / "searched"
        subprocess.run(
            [sys.executable, "-c", _COUNTING, str(log), "now", *names],
            cwd=cli.directory,
            env=cli.environment,
            check=True,
            capture_output=True,
        )
        searched = log.read_text().splitlines()
        for pattern in ("tenants/*.db", "gone/*.db"):
            assert searched.count(f"{cli.directory}/{pattern}") == 1, searched
