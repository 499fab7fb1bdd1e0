from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from harness.command_line import CommandLine

from backupd.format import SnapshotId
from backupd.format.records import CheckOutcome, Drill
from backupd.state import StateDirectory
from backupd.state.runs import Run, record_runs

if TYPE_CHECKING:
    from pathlib import Path

ID = r"[0-9]{8}T[0-9]{9}Z-[0-9a-f]{8}"


@pytest.fixture
def copied(stored: CommandLine, tmp_path: Path) -> CommandLine:
    """The three snapshots in a place where they may be damaged."""
    shutil.copytree(stored.directory, tmp_path, dirs_exist_ok=True)
    return CommandLine(tmp_path)


def damage(store: Path, snapshot_id: str) -> None:
    """Flip a bit in a manifest."""
    manifest = store / "app/snapshots" / f"{snapshot_id}.json"
    content = bytearray(manifest.read_bytes())
    content[len(content) // 2] ^= 1
    manifest.write_bytes(content)


def test_table_has_whole_ids_and_the_newest_last(stored: CommandLine) -> None:
    """Aligned columns without a terminal: id, local time with offset, age, sizes, tags and revision."""
    result = stored.run("list", expect=0)
    title, heading, *rows = result.lines
    assert title == f"app in {stored.directory}/backups"
    assert heading.split() == ["ID", "TAKEN", "AGE", "SIZE", "STORED", "PROVEN", "TAGS", "ALEMBIC"]
    ids = [row.split()[0] for row in rows]
    assert len(ids) == 3
    assert ids == sorted(ids)
    pattern = rf"{ID}  [0-9-]+ [0-9:]+\+0[12]:00  [0-9]+ (s|min) ago +[0-9.]+ kB +[0-9.]+ k?B  - +(-|upgrade) +5f3a9b"
    assert all(re.fullmatch(pattern, row) for row in rows)
    assert [row.split()[-2] for row in rows] == ["-", "upgrade", "-"]
    assert result.stderr == ""


def test_what_test_restores_found_is_shown(
    stored: CommandLine, copied: CommandLine, snapshots: list[dict[str, Any]]
) -> None:
    """The table, JSON and `show` say when a snapshot was proven, or that it is damaged."""
    outcomes = (CheckOutcome.PROVEN, CheckOutcome.DAMAGED_SOURCE, CheckOutcome.DAMAGED_STORE)
    at = datetime.now(UTC) - timedelta(hours=2)
    (copied.directory / "backups/app/drills").mkdir()
    for snapshot, outcome in zip(snapshots, outcomes, strict=True):
        drill = Drill(snapshot=SnapshotId(snapshot["id"]), database="app", outcome=outcome, at=at)
        (copied.directory / f"backups/app/drills/{snapshot['id']}.json").write_bytes(drill.encode())
    rows = copied.run("list", expect=0).lines[2:]
    assert [cell in row for row, cell in zip(rows, ("2 h ago", "damaged source", "DAMAGED"), strict=True)] == [True] * 3
    shown = f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
    found = copied.run("list", "--json", expect=0).document["snapshots"]
    assert [(each["proven_at"], each["damage"]) for each in found] == [(shown, None), (None, "source"), (None, "store")]
    assert "DAMAGED in the store" in copied.run("show", "latest", expect=0).stdout
    document = copied.run("show", snapshots[0]["id"], "--json", expect=0).document["snapshot"]
    assert (document["proven_at"], document["intact_at"], document["damage"]) == (shown, None, None)
    assert "never: no test restore has looked at it" in stored.run("show", "latest", expect=0).stdout


def test_json_document_has_every_key(stored: CommandLine) -> None:
    """Every key of every snapshot, under the names of the manifest."""
    document = stored.run("list", "app", "--json", expect=0).document
    first, second, third = document["snapshots"]
    assert document == {"snapshots": [first, second, third], "windows": [], "problems": []}
    taken_at = datetime.fromisoformat(second["taken_at"])
    assert timedelta(0) < datetime.now(UTC) - taken_at < timedelta(hours=1)
    assert second == {
        "id": second["id"],
        "database": "app",
        "store": f"{stored.directory}/backups",
        "taken_at": f"{taken_at:%Y-%m-%dT%H:%M:%S}.{taken_at.microsecond // 1000:03}Z",
        "kind": "regular",
        "tags": ["upgrade"],
        "sequence": 2,
        "base": first["id"],
        "page_size": 4096,
        "page_count": first["page_count"],
        "changed_pages": second["changed_pages"],
        "image_bytes": first["page_count"] * 4096,
        "stored_bytes": second["stored_bytes"],
        "proven_at": None,
        "intact_at": None,
        "damage": None,
        "is_replayed": False,
        "is_encrypted": False,
        "image_digest": second["image_digest"],
        "journal_mode": "wal",
        "encoding": "UTF-8",
        "user_version": 0,
        "application_id": 0,
        "alembic_revisions": ["5f3a9b"],
    }
    assert f"{taken_at:%Y%m%dT%H%M%S}{taken_at.microsecond // 1000:03}Z" == second["id"].partition("-")[0]
    assert 0 < second["changed_pages"] < second["page_count"]
    assert first["base"] is None


def test_path_means_its_name_even_when_the_file_is_gone(stored: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """`list app.db` is the command of a user who has just lost app.db."""
    assert stored.run("list", "elsewhere/app.db", "--json", expect=0).document["snapshots"] == snapshots


def test_unknown_database_names_the_known_ones(stored: CommandLine) -> None:
    """Code 12, with what there is, as one object."""
    as_json = stored.run("list", "ap", "--json", expect=12)
    assert as_json.document == {
        "error": {
            "message": f"no snapshots of a database ap in {stored.directory}/backups",
            "hint": "there are some of: app",
            "exit_code": 12,
        }
    }
    assert as_json.stderr == ""


def test_empty_store_is_no_error(cli: CommandLine) -> None:
    """An empty store, and a configured database without a snapshot, say so and leave nothing behind."""
    result = cli.run("list", expect=0)
    assert result.stdout == f"no snapshots in {cli.directory}/backups\n"
    assert result.stderr == "hint: take one with: backupd now\n"
    configured = {"BACKUPD_DATABASES__0__PATH": str(cli.directory / "app.db")}
    listed = cli.run("list", "app", "--json", environ=configured, expect=0).document
    assert listed == {"snapshots": [], "windows": [], "problems": []}
    assert not (cli.directory / "backups").exists()


def test_store_that_fails_does_not_hide_the_others(copied: CommandLine) -> None:
    """What the other one holds is listed; the code says that it is not everything."""
    (copied.directory / "down").touch()
    stores = {"BACKUPD_STORES__0__URL": "down", "BACKUPD_STORES__1__URL": "backups"}
    result = copied.run("list", environ=stores, expect=3)
    assert len(result.lines) == 5
    assert result.stderr.startswith(f"error: store {copied.directory}/down is not a directory\nhint: ")


def test_damaged_manifest_is_reported_beside_the_others(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """The damaged one is named with its store, as text and as JSON, and the code is that of damage."""
    damaged = snapshots[1]["id"]
    damage(copied.directory / "backups", damaged)
    shutil.rmtree(copied.directory / "state")
    result = copied.run("list", "--json", expect=20)
    assert len(result.document["snapshots"]) == 2
    (problem,) = result.document["problems"]
    assert problem["exit_code"] == 20
    assert f"app@{damaged} in {copied.directory}/backups" in problem["message"]
    people = copied.run("list", expect=20)
    assert people.stderr.startswith(f"error: {problem['message']}\nhint: ")
    assert damaged not in people.stdout


def test_several_databases_are_listed_apart(copied: CommandLine) -> None:
    """Each database has its own heading and its own order."""
    copied.create_database("other.db")
    copied.run("now", "other.db", expect=0)
    blocks = copied.run("list", expect=0).stdout.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == [
        f"app in {copied.directory}/backups",
        f"other in {copied.directory}/backups",
    ]


def test_narrow_terminal_never_cuts_an_id(stored: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """Lines break, ids do not lose a digit."""
    result = stored.run_on_terminal("list", columns=40)
    assert result.code == 0
    assert all(snapshot["id"] in result.stdout for snapshot in snapshots)


def timelines(stdout: str) -> list[str]:
    """The lines between titles and tables, without colours."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", stdout).splitlines()
    titles = [number for number, line in enumerate(lines) if re.match(r"\w+ in /", line)]
    return [line for number in titles for line in lines[number + 1 : number + 3] if line]


def test_terminal_gets_a_timeline_under_each_title(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """From the oldest snapshot to now, as wide as the terminal, and explained once for all databases."""
    copied.create_database("other.db")
    copied.run("now", "other.db", expect=0)
    drill = Drill(
        snapshot=SnapshotId(snapshots[2]["id"]), database="app", outcome=CheckOutcome.PROVEN, at=datetime.now(UTC)
    )
    (copied.directory / "backups/app/drills").mkdir()
    (copied.directory / f"backups/app/drills/{snapshots[2]['id']}.json").write_bytes(drill.encode())
    app, explained, other = timelines(copied.run_on_terminal("list", columns=100).stdout)
    assert re.fullmatch(r"[0-9]+ (s|min) ago [○·]*●·* now", app)
    assert re.fullmatch(r"[0-9]+ (s|min) ago ·*○·* now", other)
    assert len(app) == len(other) == 100
    assert explained == "· no snapshot  ○ snapshot  ● proven"


def test_timeline_shows_attempts_that_failed_and_manifests_that_cannot_be_read(
    copied: CommandLine, snapshots: list[dict[str, Any]]
) -> None:
    """What this machine remembers of failed runs, and what is damaged in the store, has its places."""
    oldest = datetime.fromisoformat(snapshots[0]["taken_at"])
    damage(copied.directory / "backups", snapshots[2]["id"])
    failed = oldest + (datetime.now(UTC) - oldest) * 0.99
    record_runs(
        StateDirectory(copied.directory / "state"),
        [Run("app", f"{copied.directory}/backups", failed, 0.1, "failed", None, None, None, 0, "the store is down")],
    )
    finished = copied.run_on_terminal("list", columns=300)
    assert finished.code == 20
    line, explained = timelines(finished.stdout)
    assert re.fullmatch(r"[0-9]+ (s|min) ago [○·]*[✗⊗][·!]*!·* now", line)
    assert explained.endswith("! attempt failed")


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "iso-8859-1"}, {"LC_ALL": "C"}, {"LANG": "POSIX"}])
def test_terminal_without_unicode_gets_ascii(stored: CommandLine, environ: dict[str, str]) -> None:
    """No character of timeline and table needs more than ASCII, and none is escaped."""
    stdout = stored.run_on_terminal("list", environ={"LC_ALL": "", "LANG": "", **environ}).stdout
    line, explained = timelines(stdout)
    assert re.fullmatch(r"[0-9]+ (s|min) ago [.o]+ now", line)
    assert explained == ". no snapshot  o snapshot"
    assert stdout.isascii()
    assert "\\u" not in stdout
    assert " -----" in stdout


def test_timeline_needs_no_colour(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """With NO_COLOR the characters are the same, and none of them has a colour."""
    drill = Drill(
        snapshot=SnapshotId(snapshots[2]["id"]), database="app", outcome=CheckOutcome.PROVEN, at=datetime.now(UTC)
    )
    (copied.directory / "backups/app/drills").mkdir()
    (copied.directory / f"backups/app/drills/{snapshots[2]['id']}.json").write_bytes(drill.encode())
    coloured = copied.run_on_terminal("list").stdout
    plain = copied.run_on_terminal("list", environ={"NO_COLOR": "1"}).stdout
    assert "\x1b[32m●" in coloured
    assert "\x1b[3" not in plain
    assert "●" in timelines(plain)[0]


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_no_timeline_where_none_is_wanted(stored: CommandLine, option: str) -> None:
    """JSON and quiet output have none on a terminal, and neither has a pipe."""
    assert " ago " in timelines(stored.run_on_terminal("list").stdout)[0]
    assert " now\n" not in stored.run_on_terminal("list", option).stdout
    assert " now\n" not in stored.run("list", expect=0).stdout


def test_trash_says_what_was_removed_why_and_until_when(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """A table and a document of their own; three days are the grace when nothing is configured."""
    second = snapshots[1]
    assert copied.run("list", "--trash", expect=0).stdout == f"nothing is in the trash of {copied.directory}/backups\n"
    copied.run("forget", "upgrade", expect=0)
    title, heading, row = copied.run("list", "--trash", expect=0).lines
    assert title == f"removed from app in {copied.directory}/backups"
    assert re.split(r"\s{2,}", heading) == ["SNAPSHOT", "TAKEN", "REMOVED", "GONE AFTER", "SIZE", "WHY"]
    time = r"[0-9-]{10} [0-9:]{8}\+0[12]:00"
    assert re.fullmatch(rf"{second['id']}  {time}  {time}  {time}  +[0-9.]+ kB  forgotten by hand", row)
    document = copied.run("list", "app", "--trash", "--json", expect=0).document
    (entry,) = document["trash"]
    assert document == {"trash": [entry], "problems": []}
    assert entry == {
        "id": second["id"],
        "database": "app",
        "store": f"{copied.directory}/backups",
        "taken_at": second["taken_at"],
        "removed_at": entry["removed_at"],
        "gone_after": entry["gone_after"],
        "kind": "regular",
        "tags": ["upgrade"],
        "image_bytes": second["image_bytes"],
        "reason": "forgotten by hand",
    }
    removed_at, gone_after = (datetime.fromisoformat(entry[key]) for key in ("removed_at", "gone_after"))
    assert timedelta(0) < datetime.now(UTC) - removed_at < timedelta(minutes=5)
    assert gone_after - removed_at == timedelta(days=3)
    assert copied.run("list", "shop", "--trash", expect=0).stdout.startswith("nothing of shop is in the trash of ")


def test_trash_of_a_database_that_has_nothing_else(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """Snapshots in the trash are listed and can be undeleted when every manifest is gone."""
    copied.run("forget", "upgrade", expect=0)
    shutil.rmtree(copied.directory / "backups/app/snapshots")
    (entry,) = copied.run("list", "--trash", "--json", expect=0).document["trash"]
    assert entry["id"] == snapshots[1]["id"]
    copied.run("undelete", "latest", expect=0)
    assert [each["id"] for each in copied.run("list", "--json", expect=0).document["snapshots"]] == [entry["id"]]


def test_damaged_trash_is_a_problem_beside_the_rest(copied: CommandLine, snapshots: list[dict[str, Any]]) -> None:
    """A damaged object in the trash is named with the code of damage, and the rest is listed and can be undeleted."""
    first, second, _ = (each["id"] for each in snapshots)
    copied.run("forget", first, second, expect=0)
    entry = copied.directory / "backups/app/trash" / f"{second}.json"
    entry.write_bytes(entry.read_bytes()[:-10])
    result = copied.run("list", "--trash", "--json", expect=20)
    assert [each["id"] for each in result.document["trash"]] == [first]
    (problem,) = result.document["problems"]
    assert problem["exit_code"] == 20
    assert f"app@{second}" in problem["message"]
    assert f"error: {problem['message']}" in copied.run("list", "--trash", expect=20).stderr
    assert copied.run("undelete", "latest", "--json", expect=3).document["problems"] == [problem]
    copied.run("forget", first, expect=0)
    assert copied.run("undelete", first, "--json", expect=0).document["problems"] == []
    assert f"app@{second}" in copied.run("undelete", second, expect=20).stderr
