from __future__ import annotations

import re
import shlex
import shutil
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.command_line import CommandLine

from backupd.cli.prune import changes, foreign_objects
from backupd.prune import PruneResult

if TYPE_CHECKING:
    from pathlib import Path

ID = r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}"
TIME = r"[0-9-]{10} [0-9:]{8}\+0[12]:00"
CONFIGURATION = """
[[databases]]
path = "app.db"
[[stores]]
url = "backups"
[retention]
keep_last = 2
daily = 0
weekly = 0
monthly = 0
after_snapshot = false
"""


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with four snapshots, of which the configured policy keeps two and the second, which has a tag."""
    cli = CommandLine(tmp_path_factory.mktemp("four"))
    cli.create_database("app.db")
    (cli.directory / "backupd.toml").write_text(CONFIGURATION)
    for number in range(4):
        change(cli, "UPDATE users SET name = hex(randomblob(500)) WHERE id < 100")
        cli.run("now", *(("--tag", "upgrade") if number == 1 else ()), expect=0)
    return cli.directory


@pytest.fixture
def rotating(four: Path, tmp_path: Path) -> CommandLine:
    """A copy of it for one test."""
    shutil.copytree(four, tmp_path, dirs_exist_ok=True)
    return CommandLine(tmp_path)


def change(cli: CommandLine, *statements: str) -> None:
    """Let the application write."""
    with closing(sqlite3.connect(cli.directory / "app.db", isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def ids(cli: CommandLine, *arguments: str) -> list[str]:
    """The ids that `list` or `list --trash` shows."""
    document = cli.run("list", "--json", *arguments, expect=0).document
    return [each["id"] for each in document["trash" if "--trash" in arguments else "snapshots"]]


def objects(cli: CommandLine) -> list[str]:
    """All files in the store."""
    return sorted(str(file) for file in (cli.directory / "backups").rglob("*") if file.is_file())


def test_dry_run_says_what_stays_and_why_and_changes_nothing(rotating: CommandLine) -> None:
    """A dry run has a line for each snapshot, oldest first, and what would be done below them."""
    before = objects(rotating)
    result = rotating.run("prune", "--dry-run", expect=0)
    title, heading, *rows, empty, summary = result.lines
    assert title == f"app in {rotating.directory}/backups"
    assert heading.split() == ["SNAPSHOT", "TAKEN", "SIZE", "DECISION", "REASON"]
    assert all(re.match(rf"{ID}  {TIME}  +[0-9.]+ [km]?B  (keep|remove)  ", row) for row in rows)
    assert [re.split(r"\s{2,}", row)[-2:] for row in rows] == [
        ["remove", "no rule keeps it"],
        ["keep", "tagged"],
        ["keep", "last 2"],
        ["keep", "newest, last 1"],
    ]
    assert (empty, summary) == ("", "app: dry run: 1 snapshot to the trash")
    assert result.stderr == ""
    assert objects(rotating) == before


def test_snapshot_that_no_rule_keeps_goes_to_the_trash_once(rotating: CommandLine) -> None:
    """The document, key by key; the trash waits; and a second run has nothing more to do."""
    first, second, third, fourth = ids(rotating)
    document = rotating.run("prune", "app", "--json", expect=0).document
    (result,) = document.pop("pruned")
    assert document == {"strangers": [], "problems": []}
    assert result == {
        "database": "app",
        "store": f"{rotating.directory}/backups",
        "decisions": [
            {"id": first, "decision": "remove", "reasons": ["no rule keeps it"]},
            {"id": second, "decision": "keep", "reasons": ["tagged"]},
            {"id": third, "decision": "keep", "reasons": ["last 2"]},
            {"id": fourth, "decision": "keep", "reasons": ["newest", "last 1"]},
        ],
        "hold": None,
        "accepted": None,
        "removed": [first],
        "purged": [],
        "deleted_packs": 0,
        "freed_bytes": 0,
        "waiting_packs": 0,
        "waiting_bytes": 0,
        "removed_segments": 0,
        "unfinished": 0,
        "strangers": [],
        "error": None,
    }
    assert (ids(rotating), ids(rotating, "--trash")) == ([second, third, fourth], [first])
    before = objects(rotating)
    again = rotating.run("prune", expect=0)
    assert re.fullmatch(rf"app: nothing was removed; 1 snapshot in the trash, until {TIME}", again.lines[-1])
    assert objects(rotating) == before


def test_shrunk_database_holds_until_it_is_accepted(rotating: CommandLine) -> None:
    """A database that was emptied removes none of its good snapshots: a warning, a hint, and code 3 until accepted."""
    change(rotating, "DELETE FROM users", "VACUUM")
    newest = rotating.run("now", "--json", expect=0).document["snapshots"][0]["id"]
    before = ids(rotating)
    held = rotating.run("prune", expect=3)
    warning, hint = held.stderr.splitlines()
    assert re.fullmatch(
        rf"warning: app: nothing is removed from {rotating.directory}/backups: the newest snapshot, {newest}, has "
        rf"[0-9]+ kB in use, and {ID} had [0-9]+ kB",
        warning,
    )
    assert hint.startswith("hint: if the newest is right: backupd prune app --accept-shrink; if not, ")
    assert "  held  " in held.stdout
    assert "nothing was removed" in held.lines[-1]
    (document,) = rotating.run("prune", "--json", expect=3).document["pruned"]
    assert f"warning: app: nothing is removed from {document['store']}: {document['hold']['message']}" == warning
    assert [each["decision"] for each in document["decisions"]] == ["held", "keep", "held", "keep", "keep"]
    assert ids(rotating) == before
    accepted = rotating.run("prune", "--accept-shrink", expect=0)
    assert accepted.stderr == ""
    assert re.search(rf"^app: accepted: {newest}, with [0-9.]+ kB in use; 2 snapshots to the trash", accepted.lines[-1])
    assert ids(rotating) == [before[1], *before[-2:]]
    rotating.run("prune", expect=0)


def hold_known(cli: CommandLine) -> str | None:
    """What the status says holds the pruning of `app`."""
    stores = cli.run("status", "--json", expect=0).document["status"]["databases"]["app"]["stores"]
    store = stores[f"{cli.directory}/backups"]
    return None if store["hold"] is None else store["hold"]["message"]


def test_accepting_a_shrink_ends_the_alarm(rotating: CommandLine) -> None:
    """Accepting a shrink ends the alarm at once; a dry run accepts nothing, and ends nothing."""
    change(rotating, "DELETE FROM users", "VACUUM")
    newest = rotating.run("now", "--json", expect=0).document["snapshots"][0]["id"]
    rotating.run("prune", "--dry-run", expect=3)
    assert hold_known(rotating) is None
    rotating.run("prune", expect=3)
    assert newest in str(hold_known(rotating))
    rotating.run("prune", "--accept-shrink", "--dry-run", expect=0)
    assert newest in str(hold_known(rotating))
    rotating.run("prune", "app", "--accept-shrink", expect=0)
    assert hold_known(rotating) is None


def test_restored_database_is_held_until_the_shrink_is_accepted(rotating: CommandLine) -> None:
    """A database that was restored is held until the shrink is accepted, and the message says so."""
    good = ids(rotating)[-1]
    change(rotating, "DELETE FROM users", "VACUUM")
    rotating.run("now", expect=0)
    rotating.run("prune", expect=3)
    rotating.run("restore", good, "--to", "good.db", expect=0)
    (rotating.directory / "good.db").replace(rotating.directory / "app.db")
    for sidecar in rotating.directory.glob("app.db-*"):
        sidecar.unlink()
    rotating.run("now", expect=0)
    held = rotating.run("prune", expect=3)
    assert "that is not accepted yet" in held.stderr
    assert "after its restore and a new snapshot, accept too" in held.stderr
    assert hold_known(rotating) is not None
    rotating.run("prune", "app", "--accept-shrink", expect=0)
    assert hold_known(rotating) is None


def test_prune_that_cannot_be_recorded_is_done_with_a_warning(rotating: CommandLine) -> None:
    """Recording is no part of the prune, but without it an alarm that is over may go on."""
    first = ids(rotating)[0]
    (rotating.directory / "state" / "status.json").unlink()
    (rotating.directory / "state" / "status.json").mkdir()
    pruned = rotating.run("prune", "app", expect=0)
    assert first not in ids(rotating)
    warning, hint = pruned.stderr.splitlines()
    assert warning.startswith("warning: app: the status does not know of this prune: the status file ")
    assert hint.startswith("hint: ")


def test_prune_of_an_unconfigured_database_is_not_recorded(rotating: CommandLine) -> None:
    """A prune of a database that is no longer configured does not end its hold."""
    change(rotating, "DELETE FROM users", "VACUUM")
    rotating.run("now", expect=0)
    rotating.run("prune", expect=3)
    (rotating.directory / "backupd.toml").write_text('[[stores]]\nurl = "backups"\n')
    rotating.run("prune", "app", expect=0)
    assert hold_known(rotating) is not None


def test_accepted_shrink_is_printed_and_needs_a_hold(rotating: CommandLine) -> None:
    """The accepted snapshot is printed with its size, in a dry run too; without a hold, none is accepted."""
    before = objects(rotating)
    nothing = rotating.run("prune", "--accept-shrink", "--dry-run", expect=0)
    assert nothing.lines[-1] == "app: dry run: nothing is held, so nothing to accept; 1 snapshot to the trash"
    change(rotating, "DELETE FROM users", "VACUUM")
    newest = rotating.run("now", "--json", expect=0).document["snapshots"][0]["id"]
    would = rotating.run("prune", "--accept-shrink", "--dry-run", expect=0)
    assert re.match(rf"app: dry run: accepted: {newest}, with [0-9.]+ kB in use; ", would.lines[-1])
    rotating.run("prune", "--dry-run", expect=3)
    assert {*before} < {*objects(rotating)}
    (document,) = rotating.run("prune", "--accept-shrink", "--json", expect=0).document["pruned"]
    assert document["accepted"] == newest
    assert rotating.run("prune", "--accept-shrink", "--json", expect=0).document["pruned"][0]["accepted"] is None


def test_hint_names_a_store_that_is_not_configured(rotating: CommandLine) -> None:
    """The commands in a hint name a store that is not configured, and can be typed as they stand."""
    change(rotating, "ALTER TABLE users RENAME TO people")
    rotating.run("now", expect=0)
    (rotating.directory / "backups").rename(rotating.directory / "other disk")
    store = ("--store", "other disk")
    hint = rotating.run("prune", *store, expect=3).stderr.splitlines()[-1]
    document = rotating.run("prune", *store, "--json", expect=3).document
    assert hint == f"hint: {document['pruned'][0]['hold']['hint']}"
    accept, listing = (shlex.split(command)[1:] for command in re.findall(r"backupd [^;]+", hint))
    assert accept == ["prune", "--store", f"{rotating.directory}/other disk", "app", "--accept-shrink"]
    rotating.run(*accept, expect=0)
    rotating.run(*listing, expect=0)
    unknown = rotating.run("show", "1999", *store, expect=12).stderr
    assert f"hint: see what there is with: backupd list --store '{rotating.directory}/other disk'\n" in unknown


def test_work_left_for_the_next_prune_is_printed() -> None:
    """A prune that has used up its time is no failure, and says how much is left."""
    result = PruneResult(database="app", store="/backups", deleted_packs=2, freed_bytes=3000, unfinished=12)
    assert changes(result) == ["2 packs (3.0 kB) freed", "12 more with the next prune"]


def test_another_store_below_this_one_is_reported_as_a_store() -> None:
    """The objects of a store below this one are reported as a store, not as rubbish to be deleted."""
    inner = ["plain/RESTORE.md", "plain/app/snapshots/x.json", "plain/backupd.json"]
    shown = "3 objects of another backupd store that lies below this one, left alone: plain/"
    assert foreign_objects(inner) == shown
    assert foreign_objects([*inner, "z"]) == f"{shown}; 1 object not of backupd, left alone: z"


def test_foreign_objects_of_no_database_are_reported_once_a_store(rotating: CommandLine) -> None:
    """What lies beside the databases is named too, once for each store, when all of them are pruned."""
    for name in ("notes.txt", "photos/cat.jpg", "app/mine.txt"):
        file = rotating.directory / "backups" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    store = f"{rotating.directory}/backups"
    assert f"{store}: 2 objects not of backupd, left alone: notes.txt, photos/cat.jpg" in rotating.run("prune").lines
    document = rotating.run("prune", "--json", expect=0).document
    assert document["strangers"] == [{"store": store, "keys": ["notes.txt", "photos/cat.jpg"]}]
    assert document["pruned"][0]["strangers"] == ["app/mine.txt"]
    assert rotating.run("prune", "app", "--json", expect=0).document["strangers"] == []


def test_lost_tables_hold_removal(rotating: CommandLine) -> None:
    """The tables are named."""
    change(rotating, "ALTER TABLE users RENAME TO people")
    rotating.run("now", expect=0)
    held = rotating.run("prune", expect=3)
    assert re.search(rf"has lost tables that {ID} had: users\n", held.stderr)


def test_failed_snapshot_holds_until_one_succeeds(rotating: CommandLine) -> None:
    """After a failed snapshot nothing is pruned until one succeeds: the old ones may be all there is."""
    database = rotating.directory / "app.db"
    for file in rotating.directory.glob("app.db*"):
        file.rename(file.with_name(f"away-{file.name}"))
    rotating.run("now", expect=13)
    held = rotating.run("prune", expect=3)
    assert f"the last snapshot of app in {rotating.directory}/backups failed at " in held.stderr
    assert f"{database}" in held.stderr
    assert "backupd now app" in held.stderr
    for file in rotating.directory.glob("away-*"):
        file.rename(file.with_name(file.name.removeprefix("away-")))
    rotating.run("now", expect=0)
    rotating.run("prune", expect=0)
    assert len(ids(rotating)) == 3


def test_nothing_is_removed_of_an_unconfigured_database(rotating: CommandLine) -> None:
    """A configuration that is lost, or has no rule: everything stays, and a hint says why."""
    before = ids(rotating)
    store = ("--store", "backups")
    (rotating.directory / "backupd.toml").unlink()
    result = rotating.run("prune", *store, expect=0)
    assert result.stdout.count("no policy") == 4
    assert result.stderr.startswith("hint: app is not configured here, so nothing of it is removed; ")
    (rotating.directory / "backupd.toml").write_text(CONFIGURATION.replace("keep_last = 2", "keep_last = 0"))
    result = rotating.run("prune", *store, expect=0)
    assert result.stdout.count("no policy") == 4
    assert result.stderr == "hint: no rule is configured that removes anything: set one under [retention]\n"
    assert ids(rotating, *store) == before


def test_foreign_objects_are_named_and_left(rotating: CommandLine) -> None:
    """Files of other programs are not backupd's to delete."""
    for name in ("notes.txt", "packs/copy.zst", "snapshots/old.json", "trash/thumbs"):
        file = rotating.directory / "backups/app" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    result = rotating.run("prune", expect=0)
    assert "; 4 objects not of backupd, left alone: app/notes.txt, app/packs/copy.zst, " in result.lines[-1]
    assert " and 1 more" in result.lines[-1]
    assert sum(file.endswith(("notes.txt", "copy.zst", "old.json", "thumbs")) for file in objects(rotating)) == 4


def test_damaged_manifest_stops_a_prune(rotating: CommandLine) -> None:
    """The packs that it needs are not known: code 20, and nothing is removed."""
    before = ids(rotating)
    manifest = rotating.directory / "backups/app/snapshots" / f"{before[2]}.json"
    manifest.write_bytes(manifest.read_bytes()[:-10])
    result = rotating.run("prune", expect=20)
    assert result.stderr.startswith(f"error: app: the manifest of app@{before[2]} in ")
    assert (rotating.directory / "backups/app/snapshots" / f"{before[0]}.json").exists()


def test_store_that_fails_does_not_stop_the_prune_of_another(rotating: CommandLine) -> None:
    """Partly done: the good one is pruned; when there is no good one, the error's code."""
    (rotating.directory / "no-directory").touch()
    (rotating.directory / "backupd.toml").write_text(CONFIGURATION + '[[stores]]\nurl = "no-directory"\n')
    document = rotating.run("prune", "--json", expect=3).document
    assert [len(each["removed"]) for each in document["pruned"]] == [1]
    assert [each["exit_code"] for each in document["problems"]] == [10]
    result = rotating.run("prune", "--store", "no-directory", expect=10)
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""


def test_stores_and_databases_may_have_policies_of_their_own(rotating: CommandLine) -> None:
    """The store's beats the database's."""
    shutil.copytree(rotating.directory / "backups", rotating.directory / "archive")
    (rotating.directory / "backupd.toml").write_text(
        '[[databases]]\npath = "app.db"\n[databases.retention]\nkeep_last = 1\ndaily = 0\nweekly = 0\nmonthly = 0\n'
        '[[stores]]\nurl = "backups"\n[[stores]]\nurl = "archive"\nretention = {keep_last = 9}\n'
    )
    pruned = rotating.run("prune", "--json", expect=0).document["pruned"]
    assert [len(each["removed"]) for each in pruned] == [2, 0]


def test_wrong_usage_is_an_error(rotating: CommandLine) -> None:
    """An unknown database, a store with nothing in it, and a shrinking that is accepted for several at once."""
    unknown = rotating.run("prune", "shop", expect=12)
    assert unknown.stderr.startswith("error: no snapshots of a database shop in ")
    assert rotating.run("prune", "--store", "empty", expect=0).stdout == f"no snapshots in {rotating.directory}/empty\n"
    shutil.copy(rotating.directory / "app.db", rotating.directory / "other.db")
    rotating.run("now", "other.db", expect=0)
    several = rotating.run("prune", "--accept-shrink", expect=2)
    assert several.stderr == (
        "error: --accept-shrink is for one database\nhint: say which one: backupd prune NAME --accept-shrink\n"
    )
    assert len(ids(rotating, "app")) == 4


def test_empty_name_is_no_name(stored: CommandLine) -> None:
    """`backupd prune "$UNSET"` does not mean every database."""
    for verb in (["prune"], ["list"], ["show", "latest", "--database"]):
        refused = stored.run(*verb, "", expect=2)
        assert refused.stderr.startswith("error: '' cannot be the name of a database\n")
