"""What changed between two states: equal to a comparison of all rows, whatever the histories; and as SQL."""

from __future__ import annotations

import random
import shutil
import sqlite3
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from harness.extent import in_parts

from backupd.cli.diff import table_lines
from backupd.inside.diff import Difference, Kind, State
from backupd.inside.image import opened_source
from backupd.inside.live import FilePages
from backupd.inside.patch import statements

if TYPE_CHECKING:
    from pathlib import Path

_SCHEMA = """
CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, body TEXT, size INT);
CREATE TABLE named (name TEXT COLLATE NOCASE PRIMARY KEY, value);
CREATE TABLE pair (a, b TEXT, value, PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE TABLE bare (x, y);
CREATE TABLE made (id INTEGER PRIMARY KEY AUTOINCREMENT, a INT, twice AS (a * 2), kept AS (a + 1) STORED);
CREATE INDEX item_name ON item (name);
CREATE TRIGGER item_gone AFTER DELETE ON item BEGIN INSERT INTO bare VALUES ('gone', old.id); END;
CREATE VIEW long AS SELECT * FROM item WHERE length(body) > 10;
"""
_TABLES = {
    "item": ("id", ["id", "name", "body", "size"]),
    "named": ("name", ["name", "value"]),
    "pair": ("a, b", ["a", "b", "value"]),
    "bare": ("rowid", ["x", "y"]),
    "made": ("id", ["id", "a"]),
}


class History:
    """Random changes of one database."""

    def __init__(self, file: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.connection = sqlite3.connect(file, isolation_level=None)
        choice = self.random.choice
        self.connection.execute(f"PRAGMA page_size = {choice([512, 1024, 4096])}")
        self.connection.execute(f"PRAGMA auto_vacuum = {choice([0, 0, 1])}")
        self.connection.execute(f"PRAGMA encoding = '{choice(['UTF-8', 'UTF-8', 'UTF-16le'])}'")
        self.connection.executescript(_SCHEMA)

    def text(self) -> str | bytes | float | int | None:
        choice = self.random.choice
        length = choice([0, 3, 20, 200, 5000]) if self.random.random() < 0.3 else 8
        return choice([None, 1, 1.0, "1", b"1", 2**62, "\0n", "x" * length, self.random.randbytes(length)])

    def go_on(self, steps: int) -> None:
        choose, execute = self.random.random, self.connection.execute
        execute("BEGIN")
        for _ in range(steps):
            key, kind = self.random.randrange(400), choose()
            if kind < 0.4:
                execute("INSERT OR REPLACE INTO item VALUES (?,?,?,?)", (key, self.text(), self.text(), key))
                execute("INSERT OR REPLACE INTO pair VALUES (?,?,?)", (key % 40, f"k{key % 7}", self.text()))
            elif kind < 0.55:
                execute("INSERT OR REPLACE INTO named VALUES (?,?)", (choose() < 0.1 or f"N{key}", self.text()))
                execute("INSERT INTO bare VALUES (?,?)", (self.text(), key))
                execute("INSERT INTO made (a) VALUES (?)", (key,))
            elif kind < 0.7:
                execute("DELETE FROM item WHERE id BETWEEN ? AND ?", (key, key + self.random.randrange(30)))
                execute("DELETE FROM pair WHERE a = ?", (key % 40,))
                execute("DELETE FROM bare WHERE y = ?", (key,))
            elif kind < 0.8:  # of the same length: SQLite writes over it
                execute("UPDATE item SET body = substr(body, 1, length(body) - 1) || 'é' WHERE id = ?", (key,))
                execute("UPDATE named SET name = upper(name) WHERE name = ?", (f"n{key}",))
            elif kind < 0.9:
                execute("UPDATE item SET size = size + 1 WHERE id % 50 = ?", (key % 50,))
                execute("INSERT OR IGNORE INTO named VALUES (NULL, ?)", (key,))
            else:
                execute("UPDATE OR IGNORE made SET a = a + 1 WHERE id = ?", (key,))
                execute("UPDATE OR REPLACE named SET name = 'M' || name WHERE name = ?", (f"N{key}",))
        execute("COMMIT")
        if choose() < 0.1:
            execute("VACUUM")


def _rows(file: Path, table: str) -> dict[Any, tuple[Any, ...]]:
    """All rows of a table by what identifies them: each value with its type."""
    key, columns = _TABLES[table]
    rowid = ", rowid" if table == "named" else ""
    with closing(sqlite3.connect(file)) as connection:
        connection.text_factory = bytes
        values = ", ".join(f"typeof({column}), {column}" for column in columns)
        rows = connection.execute(f"SELECT {key}, '|', {values}{rowid} FROM {table}").fetchall()
    found = {}
    for row in rows:
        place = row.index(b"|")
        values = row[place + 1 : place + 1 + 2 * len(columns)]
        identity = row[:place] if None not in row[:place] else ("rowid", row[-1])
        found[tuple(each.lower() if isinstance(each, bytes) and table == "named" else each for each in identity)] = (
            values
        )
    return found


def _expected(before: Path, after: Path, table: str) -> dict[Kind, int]:
    old, new = _rows(before, table), _rows(after, table)
    return {
        Kind.ADDED: len(new.keys() - old.keys()),
        Kind.REMOVED: len(old.keys() - new.keys()),
        Kind.CHANGED: sum(old[key] != new[key] for key in old.keys() & new.keys()),
    }


def _state(file: Path, opened: ExitStack, scratch: Path) -> State:
    with closing(sqlite3.connect(file)) as connection:
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    pages = FilePages(opened.enter_context(file.open("rb")).fileno(), page_size)
    return State.of(pages, opened.enter_context(opened_source(pages, scratch)))


def _check(directory: Path, seed: int) -> None:
    before, after = directory / f"{seed}-before.db", directory / f"{seed}-after.db"
    history = History(after, seed)
    history.go_on(history.random.choice([0, 30, 600]))
    shutil.copy(after, before)
    history.go_on(history.random.choice([1, 1, 3, 40, 500]))
    history.connection.close()
    with ExitStack() as opened:
        difference = Difference(*(_state(file, opened, directory) for file in (before, after)))
        for pair in difference.table_pairs():
            counts = dict.fromkeys((Kind.ADDED, Kind.REMOVED, Kind.CHANGED), 0)
            for change in difference.row_changes(pair):
                counts[change.kind] += 1
            assert counts == _expected(before, after, pair.after.name), (seed, pair.after.name)
        sql = "".join(statements(difference))
    with closing(sqlite3.connect(before)) as connection:
        connection.executescript(sql)
    for table in _TABLES:
        if table not in {"named", "bare"}:
            assert _rows(before, table) == _rows(after, table), (seed, table)
    for file in (before, after):
        file.unlink()


@in_parts
def test_the_rows_that_changed_are_found_whatever_the_history(tmp_path: Path, part: int) -> None:
    """All kinds of tables, values and page sizes: as many changes as a comparison of all rows finds; the SQL works."""
    for seed in range(part * 40, part * 40 + 40):
        _check(tmp_path, seed)


def _counts(directory: Path, before: str, after: str) -> dict[str, Any]:
    """How many rows of each kind the tables have, of two states that are made by statements."""
    files = directory / "one.db", directory / "other.db"
    for file, statements_of in zip(files, (before, after), strict=True):
        with closing(sqlite3.connect(file)) as connection:
            connection.executescript(statements_of)
    with ExitStack() as opened:
        difference = Difference(*(_state(file, opened, directory) for file in files))
        return {
            pair.after.name: sorted(str(change.kind) for change in difference.row_changes(pair))
            for pair in difference.table_pairs()
        }


def test_a_key_that_becomes_the_rowid_or_no_longer_is_one_still_identifies(tmp_path: Path) -> None:
    """Rows are matched by their key, whatever their rowids are."""
    rows = "INSERT INTO t VALUES (7, 'a'), (5, 'b'), (9, 'c')"
    before = f"CREATE TABLE t (id INTEGER PRIMARY KEY, v); {rows};"
    after = f"CREATE TABLE t (id INT PRIMARY KEY, v); {rows}; UPDATE t SET v = 'x' WHERE id = 5;"
    assert _counts(tmp_path, before, after) == {"t": ["changed"]}


def test_keys_that_are_no_text_are_found(tmp_path: Path) -> None:
    """Rows whose rowids moved are the same rows."""
    values = "(CAST(x'ff41' AS TEXT), 1), ('b', 2)"
    schema = "CREATE TABLE t (k TEXT PRIMARY KEY, v); CREATE TABLE w (k TEXT PRIMARY KEY, v) WITHOUT ROWID;"
    fill = f"INSERT INTO t VALUES {values}; INSERT INTO w VALUES {values};"
    after = f"{schema} INSERT INTO t VALUES ('0', 0); {fill} INSERT INTO w VALUES ('0', 0);"
    assert _counts(tmp_path, schema + fill, after) == {"t": ["added"], "w": ["added"]}


def test_texts_of_utf_16_that_are_none_differ(tmp_path: Path) -> None:
    """A surrogate that stands alone is not the pair that SQLite makes of it."""
    made = "PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);"
    made += " INSERT INTO t VALUES (1, CAST({} AS TEXT));"
    assert _counts(tmp_path, made.format("x'00D84100'"), made.format("x'00D841DC'")) == {"t": ["changed"]}


def test_columns_that_only_one_state_has_are_told(tmp_path: Path) -> None:
    """Columns of one state cannot be compared, and their table is not counted as the same."""
    before, after = tmp_path / "one.db", tmp_path / "other.db"
    for file, column in ((before, "v"), (after, "w")):
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(f"CREATE TABLE t (a INTEGER PRIMARY KEY, {column})")
    with ExitStack() as opened:
        difference = Difference(*(_state(file, opened, tmp_path) for file in (before, after)))
        (pair,) = difference.table_pairs()
        assert pair.columns_of_one == ("v", "w")
        assert [*table_lines(difference, [pair], 1)] == ["t  not compared: what only one state has: v, w"]
