"""A database of which every committed state is recorded: its connections, a second process, and the ledger.

Each line of the ledger is JSON. It is written at its time `at`, when the ledger has every state that began before `at`.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from harness.states import digests, facts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    Change = Callable[[sqlite3.Connection], object]

BUSY_SECONDS = 60
FEW_PAGES = 5
"""So small a cache makes a transaction spill."""

_SCHEMA = "CREATE TABLE item (id INTEGER PRIMARY KEY, number, body BLOB); CREATE INDEX item_number ON item (number)"


def change_rows(connection: sqlite3.Connection, chosen: random.Random, part: float) -> None:
    """Rewrite a part of all rows, each with as many bytes as before, so that the file mostly keeps its size."""
    (top,) = connection.execute("SELECT coalesce(max(id), 0) FROM item").fetchone()
    ids = sorted(chosen.sample(range(1, top + 1), min(top, 1 + int(part * top))))
    rows = ((chosen.randrange(1000), _body(chosen, number), number) for number in ids)
    connection.executemany("UPDATE item SET number = ?, body = ? WHERE id = ?", rows)


def add_rows(connection: sqlite3.Connection, chosen: random.Random, count: int) -> None:
    """Add rows, in the gaps that deletions left and behind the last."""
    (top,) = connection.execute("SELECT coalesce(max(id), 0) FROM item").fetchone()
    ids = chosen.sample(range(1, top + count + 1), count)
    rows = ((number, chosen.randrange(1000), _body(chosen, number)) for number in ids)
    connection.executemany("INSERT OR REPLACE INTO item VALUES (?, ?, ?)", rows)


def _body(chosen: random.Random, number: int) -> bytes:
    return chosen.randbytes(12_000 if number % 97 == 0 else 100 + number * 37 % 1300)


def connect(path: Path, *pragmas: str) -> sqlite3.Connection:
    """A connection that waits for locks, and leaves transactions to its user."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


class Recorded:
    """One database with its first connection, and at times a second one, in this process.

    The committed image is in `image`, and its number, which is the `user_version`, in `number`.
    """

    def __init__(self, path: Path, ledger: Path, chosen: random.Random) -> None:
        self.path = path
        self.mode = "delete"
        self.number = 0
        self.image = b""
        self._content = ""
        self.connection: sqlite3.Connection
        self._chosen = chosen
        self._ledger = ledger.open("ab", buffering=0)
        self._second: sqlite3.Connection | None = None

    # What is committed

    @contextmanager
    def changing(self, *, is_commit: bool = True) -> Iterator[None]:
        """Record the state that the block leaves; it commits once at most, or, if `is_commit` is false, not at all."""
        begun = time.monotonic()
        yield
        image = self.bytes_now()
        if image == self.image:
            return
        self.image = image
        exact, content = digests(image)
        if not is_commit and content != self._content:
            self.write_down(violation="a rollback has changed what readers see")
        self._content = content
        self.write_down(begun=begun, is_commit=is_commit, exact=exact, content=content, facts=facts_of(image))

    def bytes_now(self) -> bytes:
        """The file, or, in WAL mode, what a new connection reads; the cache of one that wrote may differ from both.

        The descriptor stays open as long as the connections: closing it would drop SQLite's locks.
        """
        if self.mode == "wal":
            with closing(connect(self.path)) as reader:
                return reader.serialize()
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)

    def journal_now(self) -> bytes:
        """The rollback journal; nothing when there is none."""
        try:
            return self.path.with_name(f"{self.path.name}-journal").read_bytes()
        except FileNotFoundError:
            return b""

    def write_down(self, **values: Any) -> None:
        """Append a line to the ledger."""
        self._ledger.write(json.dumps({**values, "at": time.monotonic()}).encode() + b"\n")

    def commit(self, change: Change, connection: sqlite3.Connection | None = None, *, is_counted: bool = True) -> None:
        """Run one transaction. Only one that is not counted may leave the header as it was."""
        connection = connection or self.connection
        with self.changing():
            connection.execute("BEGIN IMMEDIATE")
            change(connection)
            if is_counted:
                self.count(connection)
            connection.execute("COMMIT")

    def count(self, connection: sqlite3.Connection) -> None:
        """Give the state that the open transaction will commit its number."""
        self.number += 1
        connection.execute(f"PRAGMA user_version = {self.number}")

    # Opening and closing

    def create(self, path: Path) -> None:
        """Make a complete new database in `path`."""
        chosen = self._chosen
        with closing(connect(path, "synchronous = OFF", "journal_mode = MEMORY", *self.layout())) as connection:
            connection.executescript(_SCHEMA)
            connection.execute("BEGIN")
            add_rows(connection, chosen, chosen.choice((150, 400, 1000, 2500, 2500)))
            self.count(connection)
            connection.execute("COMMIT")

    def layout(self) -> tuple[str, str]:
        """A random page size, and a random way to make the file smaller."""
        page_size = self._chosen.choice((512, 1024, 4096, 4096, 4096, 8192, 65536))
        return f"page_size = {page_size}", f"auto_vacuum = {self._chosen.choice(('NONE', 'FULL', 'INCREMENTAL'))}"

    def open(self) -> None:
        """Open the first connection, in the journal mode of before; SQLite itself remembers WAL mode only."""
        mode = () if self.mode == "wal" else (f"journal_mode = {self.mode}",)
        synchronous = self._chosen.choice(("OFF",) * 7 + ("NORMAL",))
        self.connection = connect(self.path, f"synchronous = {synchronous}", *mode)
        self._descriptor = os.open(self.path, os.O_RDONLY)

    def second(self) -> sqlite3.Connection:
        """Another connection of this process, in journal mode DELETE or WAL."""
        if self._second is None:
            self._second = connect(self.path, "synchronous = OFF")
        return self._second

    def close(self) -> None:
        """Close all connections, and then the descriptor."""
        self._close_second()
        self.connection.close()
        os.close(self._descriptor)

    def _close_second(self) -> None:
        if self._second is not None:
            self._second.close()
            self._second = None

    def replace(self) -> None:
        """Put another complete database in the place of this one."""
        self.close()
        other = self.path.with_name("other.db")
        self.create(other)
        with self.changing():
            other.replace(self.path)
            self.open()

    def change_mode(self, mode: str) -> None:
        """Change the journal mode. To and from WAL, no other process may have the database open."""
        give_up_at = time.monotonic() + BUSY_SECONDS
        self._close_second()
        with self.changing():
            while self.mode != mode:
                with suppress(sqlite3.OperationalError):
                    (self.mode,) = self.connection.execute(f"PRAGMA journal_mode = {mode}").fetchone()
                if time.monotonic() > give_up_at:
                    raise TimeoutError(f"the journal mode stayed {self.mode} instead of {mode}")


class Partner:
    """The second process, which uses the database only when it is asked to. It starts when it is needed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None

    def ask(self, word: str, number: int, seed: int) -> None:
        """Have it `commit` state `number`, or begin to `spill`, and wait until it has."""
        if self._process is None:
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([word, number, seed]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer == "done\n", f"the second process answered {answer!r}"

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def be_partner(path: Path) -> None:
    """The second process: each line on stdin is a transaction, which commits or spills for ever."""
    for line in sys.stdin:
        word, number, seed = json.loads(line)
        chosen = random.Random(seed)
        mode = chosen.choice(("DELETE", "PERSIST", "TRUNCATE"))
        with closing(connect(path, "synchronous = OFF", f"cache_size = {FEW_PAGES}")) as connection:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                connection.execute(f"PRAGMA journal_mode = {mode}").fetchall()
            connection.execute("BEGIN IMMEDIATE")
            change_rows(connection, chosen, 0.02)
            while word == "spill":
                change_rows(connection, chosen, 0.2)
                add_rows(connection, chosen, 20)
                _answer()
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        _answer()


def _answer() -> None:
    sys.stdout.write("done\n")
    sys.stdout.flush()
