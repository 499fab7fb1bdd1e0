"""What a recovery writes, and what it refuses: no row of the live table is ever lost by it."""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, closing, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backupd.errors import UsageError
from backupd.inside.diff import Difference, State
from backupd.inside.image import opened_file
from backupd.inside.recover import Recovery
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _database(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(";\n".join(statements))


def _rows(file: Path, table: str = "t") -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()


@contextmanager
def _recovery(directory: Path, table: str = "t", *, overwrites: bool = False) -> Iterator[Recovery]:
    """A recovery of `table` from before.db into live.db, as it is now."""
    (directory / "copy.db").write_bytes((directory / "live.db").read_bytes())
    with ExitStack() as opened:
        states = [
            State.of(*opened.enter_context(opened_file(directory / name, directory, page_size=4096)))
            for name in ("before.db", "copy.db")
        ]
        difference = Difference(*states)
        pair = next(pair for pair in difference.table_pairs() if pair.after.name == table)
        yield Recovery(difference, pair, where=None, overwrites=overwrites)


def _recover(directory: Path, table: str = "t", *, overwrites: bool = False) -> list[str]:
    """Recover if the plan has no conflicts; their reasons."""
    with _recovery(directory, table, overwrites=overwrites) as recovery:
        trial = directory / "trial.db"
        trial.write_bytes((directory / "live.db").read_bytes())
        conflicts = [each.reason for each in recovery.plan(trial).conflicts]
        if not conflicts:
            recovery.carry_out(directory / "live.db", StateDirectory(directory / "state"), None, lock_timeout=5)
        return conflicts


def _prepare(directory: Path, schema: str, rows: str, live: str, *statements: str) -> None:
    """Make both states: `rows` in the snapshot, and `live` and `statements` afterwards."""
    for name in ("before.db", "live.db"):
        _database(directory / name, schema, f"INSERT INTO t VALUES {rows}")
    _database(directory / "live.db", live, *statements)


@pytest.mark.parametrize(
    ("schema", "live", "reason"),
    [
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, m UNIQUE ON CONFLICT REPLACE)", "(9, 'a')", "UNIQUE"),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, m UNIQUE ON CONFLICT IGNORE)", "(9, 'a')", "UNIQUE"),
        (
            (
                "CREATE TABLE t (id INTEGER PRIMARY KEY, m); "
                "CREATE TRIGGER g AFTER INSERT ON t WHEN new.m = 'a' BEGIN DELETE FROM t WHERE id > 5; END"
            ),
            "(9, 'z')",
            "a trigger removes other rows",
        ),
        (
            (
                "CREATE TABLE t (id INTEGER PRIMARY KEY, m); CREATE TABLE is_on (x);"
                "CREATE TRIGGER g BEFORE INSERT ON t WHEN EXISTS (SELECT 1 FROM is_on) BEGIN SELECT RAISE(IGNORE); END"
            ),
            "(9, 'z'); INSERT INTO is_on VALUES (1)",
            "a trigger keeps it from being written",
        ),
        (
            (
                "CREATE TABLE t (id INTEGER PRIMARY KEY, m); CREATE TABLE is_on (x);"
                "CREATE TRIGGER g BEFORE INSERT ON t WHEN EXISTS (SELECT 1 FROM is_on)"
                " BEGIN SELECT RAISE(ROLLBACK, 'never'); END"
            ),
            "(9, 'z'); INSERT INTO is_on VALUES (1)",
            "never",
        ),
    ],
    ids=["replace", "ignore", "deleting trigger", "ignoring trigger", "rolling back trigger"],
)
def test_what_would_cost_a_live_row_or_not_be_written_is_a_conflict(
    tmp_path: Path, schema: str, live: str, reason: str
) -> None:
    """What the table or a trigger says about conflicts does not count, and nothing is written."""
    _prepare(tmp_path, schema, "(1, 'a'), (2, 'b')", "DELETE FROM t WHERE id = 1", f"INSERT INTO t VALUES {live}")
    before = _rows(tmp_path / "live.db")
    conflicts = _recover(tmp_path)
    assert conflicts
    assert all(reason in each for each in conflicts)
    assert _rows(tmp_path / "live.db") == before


def test_a_row_with_null_in_its_key_comes_back_once(tmp_path: Path) -> None:
    """The rowid tells such a row from another one: a second recovery finds it there."""
    _prepare(tmp_path, "CREATE TABLE t (a, b, v, PRIMARY KEY (a, b))", "(1, NULL, 'x'), (2, 2, 'y')", "DELETE FROM t")
    for _ in range(2):
        assert _recover(tmp_path) == []
        assert _rows(tmp_path / "live.db") == [(1, None, "x"), (2, 2, "y")]


def test_children_that_would_lose_their_parent_are_a_conflict(tmp_path: Path) -> None:
    """Foreign keys of other tables are checked too."""
    _prepare(
        tmp_path,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, code UNIQUE); CREATE TABLE child (code REFERENCES t (code))",
        "(1, 'A')",
        "UPDATE t SET code = 'B'",
        "INSERT INTO child VALUES ('B')",
    )
    assert _recover(tmp_path, overwrites=True) == ["a foreign key of child names a row that t does not have"]
    assert _rows(tmp_path / "live.db") == [(1, "B")]


def test_what_the_application_wrote_after_the_plan_is_not_overwritten(tmp_path: Path) -> None:
    """The row is another one by now, or is gone: nothing is written."""
    state = StateDirectory(tmp_path / "state")
    _prepare(tmp_path, "CREATE TABLE t (a, b)", "(1, 'old'), (2, 'old')", "UPDATE t SET b = 'new'")
    for change in ("UPDATE t SET b = 'newer' WHERE a = 2", "DELETE FROM t WHERE a = 2", "DROP TABLE t"):
        with _recovery(tmp_path, overwrites=True) as recovery:
            (tmp_path / "trial.db").write_bytes((tmp_path / "live.db").read_bytes())
            assert recovery.plan(tmp_path / "trial.db").different == 2
            _database(tmp_path / "live.db", change)
            before = (tmp_path / "live.db").read_bytes()
            with pytest.raises(UsageError, match=r"nothing was changed|no such table"):
                recovery.carry_out(tmp_path / "live.db", state, None, lock_timeout=5)
            assert (tmp_path / "live.db").read_bytes() == before
        if "DROP" not in change:
            _database(tmp_path / "live.db", "DELETE FROM t", "INSERT INTO t VALUES (1, 'new'), (2, 'new')")
