"""What may lie at the path of a database and beside it: main files, logs and journals, sound and otherwise.

Made by real SQLite, as far as it makes such files. On disk, SQLite's journal modes are what they leave between two
transactions: no journal (DELETE), an empty one (TRUNCATE), one with a blank header (PERSIST), a log (WAL).
"""

from __future__ import annotations

import random
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_KILLED = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
os.kill(os.getpid(), 9)
"""
_FILL = "INSERT INTO t SELECT randomblob(600) FROM (VALUES (1), (2), (3), (4), (5), (6), (7), (8)) AS a, t LIMIT 30"
_LOG_HEADER, _FRAME_HEADER = 32, 24
_SUPER_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination of main file, log and journal, by the names of its parts."""

    main: str
    log: str
    journal: str

    @property
    def is_lost(self) -> bool:
        """Whether SQLite would delete what lies beside a main file that it takes for empty."""
        is_alone = self.log in {"none", "empty"} and self.journal in {"none", "empty"}
        return self.main in {"missing", "empty", "one-byte"} and not is_alone


def killed(path: Path, *statements: str) -> None:
    """Run `statements` in a process that is killed after the last."""
    subprocess.run([sys.executable, "-c", _KILLED, path, *statements], check=False)


class Parts:
    """The content of each kind of main file, log and journal; None for one that is not there."""

    def __init__(self, scratch: Path) -> None:
        with_log, log = _with_log(scratch / "logged.db", 4096)
        _, small_log = _with_log(scratch / "small.db", 1024)
        _, other_log = _with_log(scratch / "other.db", 4096)
        sound, hot = _with_hot_journal(scratch / "hot.db", 4096)
        _, other_hot = _with_hot_journal(scratch / "other-hot.db", 1024)
        self.mains: dict[str, bytes | None] = {
            "missing": None,
            "empty": b"",
            "one-byte": b"\0",
            "short": sound[:50],
            "cut": sound[:4096],
            "foreign": random.Random(1).randbytes(8192),
            "read-only": sound[:18] + b"\3\1" + sound[20:],
            "sound": sound,
            "sound-with-log": with_log,
        }
        self.logs: dict[str, bytes | None] = {
            "none": None,
            "empty": b"",
            "sound": log,
            "torn": log[:-2000],
            "of-another": other_log,
            "other-page-size": small_log,
            "other-byte-order": _summed_in_other_order(log),
            "no-log": b"not a log at all",
        }
        self.journals: dict[str, bytes | None] = {
            "none": None,
            "empty": b"",
            "finished": bytes(28) + hot[28:],
            "hot": hot,
            "foreign": other_hot,
            "super": hot + _super_journal(b"/nowhere/app.db-mj0123456789", 4096),
        }

    def cells(self) -> Iterator[Cell]:
        """Every combination."""
        return (Cell(*names) for names in product(self.mains, self.logs, self.journals))

    def lay_out(self, cell: Cell, directory: Path) -> Path:
        """The files of `cell` in `directory`, which is made; the path of the database."""
        directory.mkdir(parents=True)
        database = directory / "app.db"
        for suffix, content in (
            ("", self.mains[cell.main]),
            ("-wal", self.logs[cell.log]),
            ("-journal", self.journals[cell.journal]),
        ):
            if content is not None:
                database.with_name(f"app.db{suffix}").write_bytes(content)
        return database


def _with_log(path: Path, page_size: int) -> tuple[bytes, bytes]:
    """A database in WAL mode, and the log that holds nearly all of it."""
    killed(
        path,
        f"PRAGMA page_size = {page_size}",
        "PRAGMA journal_mode = WAL",
        "PRAGMA wal_autocheckpoint = 0",
        "CREATE TABLE t (a)",
        "INSERT INTO t VALUES (randomblob(600))",
        *[_FILL] * 3,
    )
    return path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()


def _with_hot_journal(path: Path, page_size: int) -> tuple[bytes, bytes]:
    """A database in rollback mode, and a journal of a transaction in it that was killed."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA page_size = {page_size}")
        connection.execute("CREATE TABLE t (a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(bytes(600),)] * 50)
    sound = path.read_bytes()
    killed(path, "PRAGMA cache_size = 2", "BEGIN", "UPDATE t SET a = randomblob(600)")
    return sound, path.with_name(f"{path.name}-journal").read_bytes()


def _super_journal(name: bytes, page_size: int) -> bytes:
    """The end of a journal that belongs to a transaction over several files.

    Source: https://www.sqlite.org/src/file/src/pager.c, `writeSuperJournal`.
    """
    page = (1 << 30) // page_size + 1
    return struct.pack(">I", page) + name + struct.pack(">II", len(name), sum(name)) + _SUPER_JOURNAL_MAGIC


def _summed_in_other_order(log: bytes) -> bytes:
    """Return a log as a machine of the other byte order writes it.

    Source: https://www.sqlite.org/fileformat2.html#walformat.
    """
    is_big = not log[3] & 1
    page_size = int.from_bytes(log[8:12], "big")
    sums = (0, 0)
    header = log[:3] + bytes([log[3] ^ 1]) + log[4:24]
    sums = _sums(header, sums, is_big=is_big)
    done = [header, struct.pack(">II", *sums)]
    for at in range(_LOG_HEADER, len(log), _FRAME_HEADER + page_size):
        frame, page = log[at : at + 16], log[at + _FRAME_HEADER : at + _FRAME_HEADER + page_size]
        sums = _sums(page, _sums(frame[:8], sums, is_big=is_big), is_big=is_big)
        done += [frame, struct.pack(">II", *sums), page]
    return b"".join(done)


def _sums(content: bytes, sums: tuple[int, int], *, is_big: bool) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{'>' if is_big else '<'}{len(content) // 4}I", content)
    for one, other in zip(words[::2], words[1::2], strict=True):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + other + first) & 0xFFFFFFFF
    return first, second
