"""Files that SQLite does not read: the error says what each is, and what helps."""

from __future__ import annotations

import gzip
import io
import random
import sqlite3
import zipfile
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from harness.capturing import capture

from backupd.errors import NotADatabaseError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _database(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", ((f"row {number}",) for number in range(500)))
    return path.read_bytes()


def _noise(length: int) -> bytes:
    return random.Random(5).randbytes(length)


def _dump(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump()).encode()


def _zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("app.db", data)
    return buffer.getvalue()


def _wal(path: Path) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("INSERT INTO t VALUES (1)")
        connection.commit()
        return path.with_name(path.name + "-wal").read_bytes()


# What a sound database becomes, and what is said of it.
_FILES: dict[str, tuple[Callable[[bytes, Path], bytes], str, str]] = {
    "wal2": (lambda data, _: data[:18] + b"\3\3" + data[20:], "in WAL2 mode", "journal_mode = wal"),
    "mvcc": (lambda data, _: data[:18] + b"\xff\xff" + data[20:], "in MVCC mode, of Turso", "journal_mode = wal"),
    "newer-version": (lambda data, _: data[:18] + b"\7\7" + data[20:], "version 7 of the file format", "journal_mode"),
    "newer-schema": (lambda data, _: data[:44] + b"\0\0\0\5" + data[48:], "a schema format", "still reads it"),
    "sqlcipher": (lambda data, _: _noise(len(data)), "it is encrypted: its bytes look random", "export a plain copy"),
    "plain-header": (lambda data, _: data[:32] + _noise(len(data) - 32), "behind a header in clear", "without its key"),
    "see": (lambda data, _: _noise(16) + data[16:24] + _noise(len(data) - 24), "only its page size", "plain copy"),
    "zipvfs": (lambda data, _: b"ZV-zlib\0" + data[8:], "ZIPVFS", "plain copy"),
    "gzip": (lambda data, _: gzip.compress(data), "compressed (gzip)", "give the database itself"),
    "zip": (lambda data, _: _zipped(data), "compressed (zip)", "give the database itself"),
    "dump": (lambda _, path: _dump(path), "a dump in SQL", "sqlite3 NEW < DUMP"),
    "postgresql": (lambda *_: b"PGDMP\x01\x0e\x00" + bytes(500), "a dump of PostgreSQL", "SQLite databases alone"),
    "pg-dump-text": (lambda *_: b"--\n-- PostgreSQL database dump\n--\n" * 9, "PostgreSQL", "SQLite databases alone"),
    "mysql": (lambda *_: b"-- MySQL dump 10.13  Distrib 8.0\n" * 9, "a dump of MySQL", "SQLite databases alone"),
    "sqlite2": (lambda *_: b"** This file contains an SQLite 2.1 database **" + bytes(999), "SQLite 2", ".dump"),
    "duckdb": (lambda *_: bytes(8) + b"DUCK" + bytes(4000), "a database of DuckDB", "EXPORT DATABASE"),
    "log": (lambda _, path: _wal(path), "the write-ahead log of a database", "the database file itself"),
    "zeros": (lambda data, _: bytes(len(data)), "nothing but zeros", "restore the newest snapshot"),
    "text": (lambda *_: "Grüße\n".encode() * 999, "a text", "the database file itself"),
    "web-page": (lambda *_: b"<!DOCTYPE html><title>404</title>" * 9, "a web page", "the database file itself"),
    "table-of-numbers": (lambda *_: bytes(range(64)) * 64, "or it is encrypted", "check the path"),
    "page-size": (lambda data, _: data[:16] + b"\x03\x01" + data[18:], "corrupt or encrypted", "sqlite3 FILE .recover"),
    "cut": (lambda data, _: data[:50], "ends inside its header", "sqlite3 FILE .recover"),
}


@pytest.mark.parametrize("kind", _FILES)
def test_error_says_what_a_file_is(tmp_path: Path, kind: str) -> None:
    """The error says what the file is, and suggests a restore or recovery only for a file whose content is lost."""
    path = tmp_path / "app.db"
    made, message, hint = _FILES[kind]
    content = made(_database(path), path)
    path = tmp_path / "foreign.db"
    path.write_bytes(content)
    with pytest.raises(NotADatabaseError) as caught:
        capture(path, tmp_path / "spool")
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert hint in str(caught.value.hint)
    is_lost = kind in {"zeros", "page-size", "cut"}
    assert is_lost or not any(word in str(caught.value.hint) for word in ("restore", ".recover", "the disk"))
    assert path.read_bytes() == content
    assert sorted(each.name for each in tmp_path.iterdir()) == ["app.db", "foreign.db", "spool"]
