"""Dumps: loaded into an empty database they give the same content, types included, whatever is in it."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import apsw
import pytest
from harness.extent import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.errors import UsageError
from backupd.inside.dump import Form, as_csv, as_json, as_sql, parts_of, write_database
from backupd.inside.image import opened_source
from backupd.inside.live import FilePages
from backupd.inside.tables import Undecodable, read_schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCHEMA = """
CREATE TABLE "odd ""name" (id INTEGER PRIMARY KEY AUTOINCREMENT, "a b" TEXT, blob BLOB, any, real REAL);
CREATE TABLE made (a INT, twice AS (a * 2), kept TEXT AS (a || 'x') STORED);
CREATE TABLE flat (k1, k2 TEXT COLLATE NOCASE, v, PRIMARY KEY (k2 DESC, k1)) WITHOUT ROWID;
CREATE TABLE exact (i INTEGER, r REAL, t TEXT, b BLOB, x ANY) STRICT;
CREATE TABLE rowid (rowid TEXT, oid INT);
CREATE VIRTUAL TABLE found USING fts5(body);
CREATE INDEX "an index" ON flat (v) WHERE v IS NOT NULL;
CREATE VIEW shown AS SELECT * FROM made -- all of it
;
CREATE TRIGGER counted AFTER INSERT ON made BEGIN INSERT INTO exact (i) VALUES (new.a); END;
PRAGMA user_version = -7;
PRAGMA application_id = 99;
"""
_TABLES = ['"odd ""name"', "made", "flat", "exact", '"rowid"', "found_content", "found_data", "sqlite_sequence"]
_TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["\0", "a\0b", "';--", '\r\n"x"', "é\U0001f600"]
)
_VALUE = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.sampled_from([float("inf"), float("-inf"), 1e300, 5e-324, 0.1, 1.0, 2.0**53])
    | _TEXT
    | st.binary(max_size=12)
)


def _fill(file: Path, encoding: str, rows: list[tuple[Any, ...]]) -> None:
    with closing(apsw.Connection(str(file))) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute(_SCHEMA)
        for number, (one, other) in enumerate(rows):
            text = one if isinstance(one, str) else None
            connection.execute('INSERT INTO "odd ""name" VALUES (?,?,?,?,?)', (None, other, one, other, one))
            connection.execute("INSERT INTO made (a) VALUES (?)", (number,))
            connection.execute("INSERT OR IGNORE INTO flat VALUES (?,?,?)", (number, f"k{number}", one))
            connection.execute("INSERT INTO exact (t, x) VALUES (?,?)", (text, other))
            connection.execute("INSERT INTO rowid VALUES (?,?)", (other, one))
            connection.execute("INSERT INTO found VALUES (?)", (str(one),))
        # Bytes that are no text in any encoding.
        connection.execute("INSERT INTO exact (t) VALUES (CAST(x'ff00fed8ff' AS TEXT))")
        connection.execute('DELETE FROM "odd ""name" WHERE id % 3 = 0')
        connection.execute("ANALYZE")


def _content(file: Path) -> dict[str, Any]:
    """Everything in a database that a dump has: each value as its type and its bytes."""
    with closing(apsw.Connection(str(file))) as connection:
        found: dict[str, Any] = {"schema": [*connection.execute("SELECT type, name, sql FROM sqlite_schema")]}
        for name in ("user_version", "application_id", "encoding"):
            found[name] = connection.pragma(name)
        for table in [*_TABLES, "sqlite_stat1"]:
            columns = [row[1] for row in connection.execute(f"PRAGMA table_xinfo({table})")]
            values = ", ".join(
                f'typeof("{each}"), CASE typeof("{each}") WHEN \'text\' THEN CAST("{each}" AS BLOB) ELSE "{each}" END'
                for each in columns
            )
            found[table] = sorted(map(repr, connection.execute(f"SELECT {values} FROM {table}")))
    return found


def _with_connection(file: Path, opened: ExitStack) -> apsw.Connection:
    with closing(sqlite3.connect(file)) as connection:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    pages = FilePages(opened.enter_context(file.open("rb")).fileno(), page_size)
    return opened.enter_context(opened_source(pages, file.parent))


def _without_virtual(content: dict[str, Any]) -> dict[str, Any]:
    """The content without the virtual table, which the dump names in a comment."""
    schema = [row for row in content["schema"] if "VIRTUAL" not in str(row[2])]
    return {**content, "schema": sorted(map(repr, schema))}


@settings(max_examples=examples(100))
@given(
    rows=st.lists(st.tuples(_VALUE, _VALUE), max_size=8), encoding=st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"])
)
def test_a_dump_gives_the_same_content(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]], encoding: str
) -> None:
    """The statements, and the database that is made of them, have every value with its type."""
    directory = tmp_path_factory.mktemp("dump")
    file, loaded = directory / "app.db", directory / "loaded.db"
    _fill(file, encoding, rows)
    expected = _without_virtual(_content(file))
    with ExitStack() as opened:
        connection = _with_connection(file, opened)
        schema = read_schema(connection)
        tables = schema.selected((), where="app")
        sql = "".join(as_sql(connection, schema, tables, is_whole=True))
        write_database(directory / "written.db", as_sql(connection, schema, tables, is_whole=True))
    assert "-- the virtual table found is left out" in sql
    with closing(apsw.Connection(str(loaded))) as connection:
        connection.execute(sql)
    assert _without_virtual(_content(loaded)) == expected
    assert _without_virtual(_content(directory / "written.db")) == expected


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[apsw.Connection]:
    """A connection to a database with a few rows of each kind."""
    file = tmp_path / "app.db"
    _fill(file, "UTF-8", [(None, 'a,"b"\r\n'), (b"\0\xff", float("inf")), (2**63 - 1, ""), ("é", -0.5)])
    with ExitStack() as stack:
        yield _with_connection(file, stack)


def test_csv_is_read_back_by_others(opened: apsw.Connection) -> None:
    """NULL and an empty text differ, a blob is hex, and quotes and line ends survive."""
    table = read_schema(opened).tables['odd "name']
    text = "".join(as_csv(opened, table))
    assert [*csv.reader(io.StringIO(text, newline=""))] == [
        ["id", "a b", "blob", "any", "real"],
        ["1", 'a,"b"\r\n', "", 'a,"b"\r\n', ""],
        ["2", "Inf", "X'00FF'", "inf", "X'00FF'"],
        ["4", "-0.5", "é", "-0.5", "é"],
    ]
    assert text.splitlines()[0] == "id,a b,blob,any,real"


def test_json_has_every_value(opened: apsw.Connection) -> None:
    """Integers of 64 bits stay whole, and what JSON has no form for is an object."""
    tables = [read_schema(opened).tables["rowid"]]
    document = json.loads("".join(as_json(opened, tables)))
    assert document == {
        "rowid": [
            {"rowid": 'a,"b"\r\n', "oid": None},
            {"rowid": "Inf", "oid": {"base64": "AP8="}},
            {"rowid": "", "oid": 2**63 - 1},
            {"rowid": "-0.5", "oid": "é"},
        ]
    }


def test_a_condition_chooses_rows(opened: apsw.Connection) -> None:
    """Only those that meet it are dumped, in each form."""
    schema = read_schema(opened)
    tables = [schema.tables["made"]]
    for form in (Form.SQL, Form.CSV, Form.JSON):
        text = "".join(parts_of(opened, schema, tables, form, "twice > 2 OR 0", is_whole=False))
        assert ("2" in text, "0" in text) == (True, False)


def test_tables_are_found_whatever_their_case_and_a_virtual_one_is_refused(opened: apsw.Connection) -> None:
    """The refusal names the tables that hold its rows."""
    schema = read_schema(opened)
    assert [table.name for table in schema.selected(["MADE", "made"], where="app")] == ["made"]
    with pytest.raises(UsageError, match="virtual table") as refused:
        schema.selected(["found"], where="app")
    assert "found_content" in str(refused.value.hint)
    with pytest.raises(UsageError, match="no table 'nope'"):
        schema.selected(["nope"], where="app")


def test_a_text_that_is_none_comes_as_its_bytes(opened: apsw.Connection) -> None:
    """The rows before it and after it come once."""
    text = "".join(as_csv(opened, read_schema(opened).tables["exact"], "t IS NOT NULL"))
    assert text.splitlines()[1:] == [",,é,,-0.5", ",,X'FF00FED8FF',,"]
    assert isinstance(Undecodable(b"\xff"), bytes)


def test_odd_databases_load(tmp_path: Path) -> None:
    """Without a table that counts, but with the numbers of one that did; and a CR at the end of a line stays."""
    file = tmp_path / "app.db"
    with closing(apsw.Connection(str(file))) as connection:
        connection.execute(
            "CREATE TABLE a (id INTEGER PRIMARY KEY AUTOINCREMENT); INSERT INTO a VALUES (1); DROP TABLE a"
        )
        connection.execute("CREATE TABLE b (x); INSERT INTO b VALUES ('one\r\ntwo')")
    with ExitStack() as opened:
        connection = _with_connection(file, opened)
        schema = read_schema(connection)
        sql = "".join(as_sql(connection, schema, schema.selected((), where="app"), is_whole=True))
    assert "\r" not in sql
    with closing(sqlite3.connect(tmp_path / "loaded.db")) as connection:
        connection.executescript(sql)
        assert connection.execute("SELECT x FROM b").fetchall() == [("one\r\ntwo",)]
