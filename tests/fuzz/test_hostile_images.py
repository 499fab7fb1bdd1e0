"""Looking at a restored database, which anyone who can write to the store can plant, runs nothing that it says."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import apsw
import pytest

from backupd.errors import UnsupportedFormatError
from backupd.live import intent
from backupd.live.contents import contents_of_image
from backupd.live.files import Replacement
from backupd.live.soundness import examine, opened_image, why_unreadable

if TYPE_CHECKING:
    from pathlib import Path


def _image(file: Path, *statements: str) -> Path:
    with closing(sqlite3.connect(file)) as connection, connection:
        for statement in statements:
            connection.execute(statement)
    return file


def test_functions_with_side_effects_are_not_run(tmp_path: Path) -> None:
    """Functions in a generated column are not run by `integrity_check`, and the table is not checkable then."""
    file = _image(tmp_path / "image.db", "CREATE TABLE t (a)", "INSERT INTO t VALUES ('/tmp/evil.so')")
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = 'CREATE TABLE t (a, b AS (load_extension(a)) STORED)'")
    soundness = examine(file)
    assert "unsafe use of load_extension" in " ".join([*soundness.unchecked, *soundness.findings])
    assert soundness.rows.get("t") is None


def test_views_are_not_run(tmp_path: Path) -> None:
    """A table that turns out to be a view gives nothing."""
    file = _image(tmp_path / "image.db", "CREATE TABLE t (a)", "CREATE VIEW v AS SELECT a FROM t")
    with opened_image(file) as connection, pytest.raises(apsw.SQLError):
        connection.execute("SELECT * FROM v")


def test_no_extension_can_be_loaded(tmp_path: Path) -> None:
    """SQL cannot load an extension into an opened image."""
    with (
        opened_image(_image(tmp_path / "image.db", "CREATE TABLE t (a)")) as connection,
        pytest.raises(apsw.SQLError, match="not authorized"),
    ):
        connection.execute("SELECT load_extension('/tmp/evil.so')")


def test_image_without_hostile_schema_is_examined_normally(tmp_path: Path) -> None:
    """Triggers, views, generated columns, expression indexes and full-text search are examined normally."""
    file = _image(
        tmp_path / "image.db",
        "CREATE TABLE t (a, b AS (upper(a)) STORED)",
        "CREATE INDEX i ON t (lower(a))",
        "CREATE VIEW v AS SELECT a FROM t",
        "CREATE TRIGGER r AFTER INSERT ON t BEGIN UPDATE t SET a = a || '!'; END",
        "CREATE VIRTUAL TABLE f USING fts5 (x)",
        "INSERT INTO t (a) VALUES ('one'), ('two')",
        "INSERT INTO f VALUES ('three')",
    )
    soundness = examine(file)
    assert (soundness.findings, soundness.unchecked) == ([], [])
    assert (soundness.rows["t"], soundness.rows["f"]) == (2, 1)
    assert contents_of_image(file).rows["t"] == 2
    assert why_unreadable(file, contents_of_image(file).page_count, needs_schema=True) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.db"]


@pytest.mark.parametrize("position", range(0, 4096, 97))
def test_altered_bytes_are_examined_without_a_crash(tmp_path: Path, position: int) -> None:
    """An image with an altered byte is examined, or refused with an error of SQLite."""
    file = _image(tmp_path / "image.db", "CREATE TABLE t (a UNIQUE)", "INSERT INTO t VALUES (randomblob(3000))")
    content = bytearray(file.read_bytes())
    content[position] ^= 0xFF
    file.write_bytes(content)
    why_unreadable(file, len(content) // 4096, needs_schema=True)
    try:
        soundness = examine(file)
    except apsw.Error:
        return  # the program around it says so
    assert isinstance(soundness.findings, list)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"version": 1, "replacement": {"image": "a", "inode": 1, "aside": "a\\u0000", "moves": []}}',
        b'{"version": 1, "replacement": {"image": "a", "inode": 1, "aside": "b", "moves": [["", "x"]]}}',
        b'{"version": 1, "replacement": 1}',
        b"",
    ],
    ids=range(5),
)
def test_an_odd_intent_moves_nothing(tmp_path: Path, content: bytes) -> None:
    """A forged or damaged intent, which lies where others may write, is empty or refused."""
    file = tmp_path / "intent"
    file.write_bytes(content)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        values = intent._read(descriptor)
    finally:
        os.close(descriptor)
    if content[:1] in {b"[", b""}:
        assert values == {}
        return
    with pytest.raises(UnsupportedFormatError):
        intent._intent({**values, "token": "0"}, file)


def test_an_intent_names_files_beside_the_database(tmp_path: Path) -> None:
    """Wherever its paths would lead."""
    file = tmp_path / "intent"
    moves = [["/etc/a-wal", "../../b-wal"]]
    replacement = {"image": "/etc/passwd", "inode": 1, "aside": "x/../y", "moves": moves}
    file.write_text(json.dumps({"version": 1, "token": "0", "replacement": replacement}))
    descriptor = os.open(file, os.O_RDONLY)
    try:
        found = intent._intent(intent._read(descriptor), file)
    finally:
        os.close(descriptor)
    assert found.replacement == Replacement("", 1, "y", (("a-wal", "b-wal"),))
