"""Looking into snapshots and bringing rows back, through the command line."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from harness.cli import CommandLine
from harness.place import change_rows, connected, content_digest, create_database

if TYPE_CHECKING:
    from pathlib import Path

    from harness.place import Place
    from harness.s3_server import S3Server

USAGE, STORE, BUSY, NO_SUCH, DAMAGE = 2, 10, 11, 12, 20
_CONFIGURATION = '[[databases]]\npath = "app.db"\n[[stores]]\nurl = "backups"\n'


@pytest.fixture
def place(place: Place) -> Place:
    """Three snapshots of a database that is configured."""
    (place.home / "backupd.toml").write_text(_CONFIGURATION)
    return place


def _execute(file: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection, connection:
        return [connection.execute(each).fetchall() for each in statements]


def test_rows_that_were_deleted_by_mistake_are_found_read_and_brought_back(place: Place) -> None:
    """The story of README: `diff` shows them, `query` reads them, `recover` writes them, `undo` returns."""
    backupd, database = place.backupd, place.database
    backupd.run("now")
    before = content_digest(database)
    _execute(database, "DELETE FROM report WHERE id BETWEEN 10 AND 19", "UPDATE report SET title = 'new' WHERE id = 1")
    damaged = content_digest(database)
    (would_change,) = backupd.json("restore", "latest", "--dry-run")["plan"]["rows"]
    assert (would_change["added"], would_change["removed"], would_change["changed"]) == (10, 0, 1)
    found = backupd.json("diff", "latest", "live")
    (report,) = found["tables"]
    assert (report["added"], report["removed"], report["changed"]) == (0, 10, 1)
    assert {row["key"][0] for row in report["rows"]} <= {1, *range(10, 20)}
    rows = backupd.json("query", "latest", "SELECT id, title FROM report WHERE id = 12")
    assert rows == {"columns": ["id", "title"], "rows": [[12, "state 2"]]}
    plan = backupd.json("recover", "latest", "report")["plan"]
    assert (plan["missing"], plan["different"], plan["only_live"], plan["conflicts"]) == (10, 1, 0, [])
    assert content_digest(database) == damaged
    with connected(database, "SELECT count(*) FROM report"):
        done = backupd.json("recover", "latest", "report", "--overwrite", "--yes")["recovered"]
    assert done["safety_snapshot"]
    assert content_digest(database) == before
    backupd.run("undo", "app", "--yes")
    assert content_digest(database) == damaged


def test_recover_inserts_only_what_is_missing_and_wanted(place: Place) -> None:
    """Rows that differ, and those that only the live table has, stay as they are."""
    backupd, database = place.backupd, place.database
    _execute(
        database,
        "DELETE FROM report WHERE id < 5",
        "UPDATE report SET title = 'mine' WHERE id = 100",
        "INSERT INTO report VALUES (9999, 'own', NULL)",
    )
    backupd.run(
        "recover", "latest", "REPORT", "--where", "id = 2 OR title = 'nothing'", "--yes", "--no-safety-snapshot"
    )
    assert _execute(
        database,
        "SELECT count(*) FROM report WHERE id < 5",
        "SELECT title FROM report WHERE id IN (100, 9999) ORDER BY id",
    ) == [[(1,)], [("mine",), ("own",)]]


def test_conflicts_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    """A unique value that is taken, and a parent that is missing: nothing is written, and the hint says what helps."""
    database = tmp_path / "app.db"
    (tmp_path / "backupd.toml").write_text(_CONFIGURATION)
    _execute(
        database,
        "CREATE TABLE team (id INTEGER PRIMARY KEY)",
        "CREATE TABLE member (id INTEGER PRIMARY KEY, mail TEXT UNIQUE, team INT REFERENCES team)",
        "INSERT INTO team VALUES (1), (2)",
        "INSERT INTO member VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 1)",
    )
    backupd = CommandLine(tmp_path)
    backupd.run("now")
    _execute(
        database,
        "DELETE FROM member WHERE id < 3",
        "INSERT INTO member VALUES (7, 'a', 1)",
        "DELETE FROM team WHERE id = 2",
    )
    before = content_digest(database)
    refused = backupd.run("recover", "latest", "member", "--yes", code=USAGE)
    assert "UNIQUE constraint failed: member.mail" in refused.stderr
    assert "a foreign key of member names a row that team does not have" in refused.stderr
    assert "nothing was changed" in refused.stderr
    assert content_digest(database) == before
    backupd.run("recover", "latest", "team", "--yes")
    backupd.run("recover", "latest", "member", "--where", "id = 2", "--yes")
    assert _execute(database, "SELECT id FROM member ORDER BY id") == [[(2,), (3,), (7,)]]


def test_recover_runs_triggers_and_leaves_everything_when_one_fails(tmp_path: Path) -> None:
    """Triggers run as when the application inserts the rows, so that an index that they keep is right afterwards."""
    database = tmp_path / "app.db"
    (tmp_path / "backupd.toml").write_text(_CONFIGURATION)
    _execute(
        database,
        "CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)",
        "CREATE TABLE length (id INTEGER PRIMARY KEY, n INT)",
        "CREATE TRIGGER made AFTER INSERT ON note BEGIN INSERT INTO length VALUES (new.id, length(new.text)); END",
        "INSERT INTO note VALUES (1, 'one'), (2, 'three')",
    )
    backupd = CommandLine(tmp_path)
    backupd.run("now")
    _execute(database, "DELETE FROM note", "DELETE FROM length WHERE id = 2")
    before = content_digest(database)
    refused = backupd.run("recover", "latest", "note", "--yes", code=USAGE)
    assert "length.id" in refused.stderr
    assert content_digest(database) == before
    backupd.run("recover", "latest", "note", "--where", "id = 2", "--yes")
    assert _execute(database, "SELECT * FROM length ORDER BY id") == [[(1, 3), (2, 5)]]


def test_a_snapshot_in_a_bucket_is_read_through_a_private_cache(seaweed: S3Server, tmp_path: Path) -> None:
    """Encrypted, and with the key: what is on disk afterwards shows nothing, and belongs to its owner alone."""
    backupd = CommandLine(tmp_path)
    public = backupd.run("keygen", "--output", "key").stdout.strip()
    create_database(tmp_path / "app.db", rows=3000)
    change_rows(tmp_path / "app.db", "a title that is secret", rows=3000)
    (tmp_path / "backupd.toml").write_text(
        f'[[databases]]\npath = "app.db"\n[encryption]\nrecipients = ["{public}"]\n[[stores]]\n'
        f'url = "s3://{seaweed.new_bucket()}/x"\nendpoint_url = "{seaweed.endpoint_url}"\n'
        f'access_key_id = "{seaweed.access_key_id}"\nsecret_access_key = "{seaweed.secret_access_key}"\n'
    )
    backupd.run("now")
    statement = "SELECT count(*), min(title), sum(length(body)) FROM report"
    refused = backupd.run("query", "latest", statement, code=USAGE)
    assert "--identity" in refused.stderr
    rows = backupd.json("query", "latest", statement, "--identity", "key")["rows"]
    assert rows == [[3000, "a title that is secret", 3_000_000]]
    cache = backupd.state / "reading"
    files = [*cache.iterdir()]
    assert files
    assert cache.stat().st_mode & 0o77 == 0
    assert all(file.stat().st_mode & 0o77 == 0 and b"secret" not in file.read_bytes() for file in files)
    dumped = backupd.run("dump", "latest", "--identity", "key", "--to", "app.sql")
    assert dumped.stdout == ""
    with closing(sqlite3.connect(tmp_path / "loaded.db")) as connection:
        connection.executescript((tmp_path / "app.sql").read_text())
    assert content_digest(tmp_path / "loaded.db") == content_digest(tmp_path / "app.db")


def test_the_sql_of_a_diff_turns_one_state_into_the_other(place: Place) -> None:
    """Applied to a restored copy of the first one."""
    backupd = place.backupd
    _execute(
        place.database,
        "ALTER TABLE report ADD COLUMN mark INT DEFAULT 3",
        "CREATE TABLE extra (x)",
        "INSERT INTO extra VALUES (1)",
        "DROP INDEX report_title",
    )
    backupd.run("now")
    sql = backupd.run("diff", place.ids[0], "latest", "--sql").stdout
    backupd.run("restore", place.ids[0], "--to", "old.db")
    with closing(sqlite3.connect(place.home / "old.db")) as connection:
        connection.executescript(sql)
    assert _execute(place.home / "old.db", "SELECT * FROM report", "SELECT * FROM extra") == _execute(
        place.database, "SELECT * FROM report", "SELECT * FROM extra"
    )


def test_mistakes_are_one_line_and_change_nothing(place: Place) -> None:
    """Each refusal names what is wrong."""
    place.backupd.refusals(
        [
            (("query", "latest", "SELEC"), USAGE, ["SELEC"]),
            (("query", "latest", "DELETE FROM report"), USAGE, ["cannot be changed"]),
            (("query", "latest", "SELECT 1; SELECT 2"), USAGE, ["more than one"]),
            (("query", "latest", "ATTACH '/tmp/other.db' AS other"), USAGE, ["attached"]),
            (("query", "latest"), USAGE, ["no statement"]),
            (("query", "latest", "SELECT load_extension('x')"), USAGE, ["not authorized"]),
            (("query", "nothing", "SELECT 1"), NO_SUCH, ["nothing"]),
            (("dump", "latest", "nope"), USAGE, ["nope"]),
            (("dump", "latest", "--format", "csv"), USAGE, ["one table"]),
            (("dump", "latest", "--format", "sqlite"), USAGE, ["standard output"]),
            (("dump", "latest", "report", "--where", "nope = 1"), USAGE, ["nope"]),
            (("dump", "latest", "--to", "app.db"), USAGE, ["app.db", "exists"]),
            (("diff", "live", "live"), USAGE, ["live"]),
            (("diff", "latest~1", "latest", "nope"), USAGE, ["nope"]),
            (("diff", "latest~1", "latest", "report", "--sql"), USAGE, ["--sql"]),
            (("recover", "latest", "nope", "--yes"), USAGE, ["nope"]),
            (("recover", "latest", "report", "--yes", "--dry-run"), USAGE, ["--dry-run"]),
            (("recover", "latest", "report", "--where", "nope = 1"), USAGE, ["nope"]),
        ]
    )


def test_what_only_the_application_knows_is_not_needed_to_dump(tmp_path: Path) -> None:
    """A key with a collation of the application: dumped, and not compared, with the reason."""
    (tmp_path / "backupd.toml").write_text(_CONFIGURATION)
    with closing(sqlite3.connect(tmp_path / "app.db")) as connection, connection:
        connection.create_collation("mine", lambda one, other: (one > other) - (one < other))
        connection.execute("CREATE TABLE word (text TEXT COLLATE mine PRIMARY KEY) WITHOUT ROWID")
        connection.execute("INSERT INTO word VALUES ('\x1b[2J'), ('a')")
    backupd = CommandLine(tmp_path)
    backupd.run("now")
    assert "INSERT INTO \"word\" VALUES('a');" in backupd.run("dump", "latest").stdout
    assert "collation that only the application knows" in backupd.run("diff", "latest", "live").stdout
    assert "backupd dump" in backupd.run("query", "latest", "SELECT * FROM word", code=USAGE).stderr
    shown = backupd.run("query", "latest", "SELECT 1 AS '\x1b]0;x'").stdout
    assert "\x1b" not in shown


def test_a_statement_without_end_is_given_up(place: Place) -> None:
    """After the seconds that it has."""
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    refused = place.backupd.run("query", "latest", endless, "--timeout", "0.5", code=BUSY)
    assert "given up after 0.5 s" in refused.stderr


def test_damage_is_told_with_the_page_and_the_rest_is_read(place: Place) -> None:
    """A pack that lost a byte."""
    for pack in (place.store / "app/packs").iterdir():
        content = bytearray(pack.read_bytes())
        content[-500] ^= 1
        pack.write_bytes(content)
    refused = place.backupd.run("query", "latest", "SELECT sum(length(body)) FROM report", code=DAMAGE)
    assert "cannot be read" in refused.stderr
    assert "app/packs/" in refused.stderr


def test_diff_of_moments_shows_what_happened_between_them(place: Place) -> None:
    """Any two references; a table that is named; as many rows as are asked for; JSON has all of it."""
    found = place.backupd.json("diff", place.ids[0], place.ids[2], "report", "--rows", "3")
    (report,) = found["tables"]
    assert (report["changed"], len(report["rows"])) == (300, 3)
    assert report["rows"][0]["before"]["title"] == "state 0"
    text = place.backupd.run("diff", place.ids[2], place.ids[2]).stdout
    assert "1 table with the same rows" in text
    assert json.dumps(found)
