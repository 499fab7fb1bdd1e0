"""A database with a history of snapshots in a directory store, made once and copied for each test."""

from __future__ import annotations

import hashlib
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.cli import CommandLine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROWS = 300
_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement)
print("ready", flush=True)
sys.stdin.read()
"""


def create_database(path: Path, *, rows: int = _ROWS, row_bytes: int = 1000, journal_mode: str = "delete") -> None:
    """A database with `row_bytes` of content that cannot be compressed in each row."""
    chosen = random.Random(3)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("CREATE TABLE report (id INTEGER PRIMARY KEY, title TEXT, body BLOB)")
        connection.execute("CREATE INDEX report_title ON report (title)")
        values = ((f"report {number}", chosen.randbytes(row_bytes)) for number in range(rows))
        connection.executemany("INSERT INTO report (title, body) VALUES (?, ?)", values)


def change_rows(path: Path, title: str, *, rows: int = 1) -> None:
    """Give the first rows another title."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE report SET title = ? WHERE id <= ?", (title, rows))


def content_digest(path: Path) -> str:
    """A digest of the schema and every row, after `integrity_check`. For files that no process has open."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        digest = hashlib.sha256()
        tables = connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()
        for name, sql in tables:
            digest.update(f"{name} {sql}\n".encode())
            if sql and sql.startswith("CREATE TABLE"):
                for row in connection.execute(f'SELECT rowid, * FROM "{name}"'):
                    digest.update(b"\0".join(each if isinstance(each, bytes) else repr(each).encode() for each in row))
        return digest.hexdigest()


@contextmanager
def connected(path: Path, *statements: str) -> Iterator[subprocess.Popen[str]]:
    """An application in a process of its own that has executed `statements` and keeps its connection open."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as application:
        try:
            assert application.stdout is not None
            assert application.stdout.readline() == "ready\n"
            yield application
        finally:
            application.kill()


@dataclass(frozen=True, slots=True)
class Place:
    """`home` holds app.db, backups/ with its snapshots `ids`, the oldest first, and state/."""

    home: Path
    backupd: CommandLine
    ids: tuple[str, ...]

    @property
    def database(self) -> Path:
        return self.home / "app.db"

    @property
    def store(self) -> Path:
        return self.home / "backups"

    def manifest(self, number: int) -> Path:
        return self.store / "app/snapshots" / f"{self.ids[number]}.json"

    def copy(self, home: Path) -> Place:
        """Copy everything into another directory, which does not exist yet."""
        shutil.copytree(self.home, home, symlinks=True)
        return Place(home, CommandLine(home), self.ids)


def make_place(home: Path) -> Place:
    """Three snapshots: a first one, one of a small change, and a full one that shares no pack with the others."""
    backupd = CommandLine(home)
    database = home / "app.db"
    create_database(database)
    ids = []
    for number, options in enumerate([["--tag", "first"], ["--tag", "second"], ["--tag", "full", "--full"]]):
        change_rows(database, f"state {number}", rows=300 if "--full" in options else 1)
        ids.append(backupd.json("now", "app.db", *options)["snapshots"][0]["id"])
    return Place(home, backupd, tuple(ids))
