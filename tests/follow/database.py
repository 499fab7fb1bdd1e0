"""A real database with several connections, whose commits are noted in the model, and its files."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

from follow.committed_states import CommittedStates, State
from follow.log_files import HEADER_BYTES
from follow.watched_log import VFS_NAME, Moment, WatchedLog

if TYPE_CHECKING:
    from pathlib import Path
    from random import Random

MOST_PAGES = 60
BUSY = (apsw.BusyError, apsw.LockedError)
_CONNECTIONS = 3
_OPEN = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
_PAGE_SIZES, _PAGE_SIZE_WEIGHTS = (512, 1024, 4096, 65536), (12, 4, 3, 1)
_PADDING_PART = 0.1
"""How many connections repeat a commit up to the end of a sector, as where a sector may be torn."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The files as they were at some time."""

    database: bytes
    log: bytes | None
    state: State
    is_in_log: bool


class Database:
    """The files in a directory, the connections to them, and the model of what was committed."""

    def __init__(self, directory: Path, chosen: Random) -> None:
        self.counts: Counter[str] = Counter()
        self.states = CommittedStates()
        self._database = directory / "app.db"
        self._log = directory / "app.db-wal"
        self._spare = directory / "spare"
        self._watched = WatchedLog(str(self._log))
        self._connections: dict[int | str, apsw.Connection] = {}
        self._is_in_log = False
        """Whether the last commit in the log is the current state."""
        self._head_of_commit = (b"", 0)
        self._returned: tuple[State, bool] | None = None
        self._create(chosen)

    def _poll(self) -> None:
        """Poll, in the middle of what SQLite does. The scene has the follower."""
        raise NotImplementedError

    def _create(self, chosen: Random) -> None:
        connection = self._open(is_calm=True)
        self._connections[0] = connection
        size = chosen.choices(_PAGE_SIZES, _PAGE_SIZE_WEIGHTS)[0]
        self._run(connection, f"PRAGMA page_size = {size}", f"PRAGMA auto_vacuum = {chosen.choice((0, 1, 2, 2))}")
        self._run(connection, "CREATE TABLE first (v)")
        self._committed(connection)
        self._run(connection, "PRAGMA journal_mode = wal", "PRAGMA wal_autocheckpoint = 0")
        self._committed(connection)
        self._run(connection, "CREATE TABLE t (k INTEGER PRIMARY KEY, v BLOB)")
        self._committed(connection)
        self._is_in_log = True
        self._watched.truncated = False

    def _open(self, *, is_calm: bool = False, pads: bool = False) -> apsw.Connection:
        connection = apsw.Connection(f"file:{self._database}?psow={int(not pads)}", flags=_OPEN, vfs=VFS_NAME)
        self._run(connection, f"PRAGMA cache_size = {100 if is_calm else 10}", "PRAGMA wal_autocheckpoint = 0")
        return connection

    def _connection(self, chosen: Random) -> apsw.Connection:
        """One of a few connections, opened if it is not."""
        slot, pads = chosen.randrange(_CONNECTIONS), chosen.random() < _PADDING_PART
        if slot not in self._connections:
            self._connections[slot] = self._open(pads=pads)
        connection = self._connections[slot]
        if connection.in_transaction:
            self._run(connection, "ROLLBACK")
        return connection

    def _run(self, connection: apsw.Connection, *statements: str) -> None:
        for statement in statements:
            connection.execute(statement).fetchall()

    def _mode(self, connection: apsw.Connection) -> str:
        return connection.execute("PRAGMA journal_mode").get

    def _transaction(
        self, connection: apsw.Connection, chosen: Random, rows: int, *, sweeps: int = 0, end: str = "COMMIT"
    ) -> bool:
        """Change rows in a transaction; return whether it could begin."""
        try:
            self._run(connection, "BEGIN IMMEDIATE")
        except BUSY:
            return False
        if connection.execute("PRAGMA page_count").get > MOST_PAGES:
            self._run(connection, "DELETE FROM t WHERE k % 4")
        self._change(connection, chosen, rows)
        for _ in range(sweeps):
            self._run(connection, "UPDATE t SET v = randomblob(length(v))")
        self._end(connection, end)
        return True

    def _change(self, connection: apsw.Connection, chosen: Random, rows: int) -> None:
        size = max(10, (self.states.current.page_size or 512) // chosen.choice((2, 4, 8)))
        for _ in range(rows):
            connection.execute(
                "INSERT OR REPLACE INTO t VALUES (?, randomblob(?))", (chosen.randrange(100), size)
            ).fetchall()

    def _end(self, connection: apsw.Connection, statement: str) -> None:
        if connection.in_transaction:
            self._run(connection, statement)
        self._committed(connection)

    def _committed(self, connection: apsw.Connection) -> None:
        """Note the state as this connection reads it now."""
        if self.states.commit(connection.serialize("main") or b""):
            self._head_of_commit = self._head()
            self._is_in_log = len(self._head_of_commit[0]) == HEADER_BYTES

    def _recovered(self, chosen: Random) -> None:
        """Note which state SQLite finds after a crash."""
        self.states.recover(self._connection(chosen).serialize("main") or b"")

    def _image_after_recovery(self) -> bytes:
        """What a reader would see if the applications were killed now."""
        copy = self._spare.with_name("recovered.db")
        shutil.copyfile(self._database, copy)
        shutil.copyfile(self._log, f"{copy}-wal")
        with apsw.Connection(str(copy)) as connection:
            image = connection.serialize("main")
        connection.close()
        copy.unlink()
        return image or b""

    def _close_all(self, *, is_killed: bool = False) -> None:
        for connection in self._connections.values():
            if is_killed:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.close()
        self._connections.clear()

    def _remove_side_files(self) -> None:
        for suffix in ("-wal", "-shm", "-journal"):
            self._database.with_name(f"app.db{suffix}").unlink(missing_ok=True)

    def _put_back(self, database: bytes, log: bytes | None, *, is_same_file: bool) -> None:
        self._watched.truncated = True
        self._database.write_bytes(database)
        if not is_same_file or log is None:
            self._remove_side_files()
        if log is not None:
            self._log.write_bytes(log)

    def _read_log(self) -> bytes | None:
        try:
            return self._log.read_bytes()
        except FileNotFoundError:
            return None

    def _head(self) -> tuple[bytes, int]:
        """What tells whether the log was begun again: its header, and which file it is."""
        try:
            with self._log.open("rb", buffering=0) as file:
                return file.read(HEADER_BYTES), os.fstat(file.fileno()).st_ino
        except FileNotFoundError:
            return b"", 0

    def _return_to(self, state: State, *, is_in_log: bool) -> None:
        """Make an earlier state the current one, because the files are those of that time."""
        self.states.return_to(state)
        self._returned = (state, is_in_log)

    def _note_what_is_in_log(self) -> None:
        """Keep track of whether the last commit in the log is the current state: not if the log was begun again."""
        head = self._head()
        if self._returned is not None and self._returned[0] is self.states.current:
            self._is_in_log = self._returned[1]
        elif head != self._head_of_commit:
            self._is_in_log = False
        self._head_of_commit = head

    def _plan_polls(self, chosen: Random, *, writes: int = 12) -> None:
        """Poll at some moment of the writes that follow; mostly not at all."""
        if chosen.random() < 0.3:
            moment = Moment(
                chosen.randrange(1, writes), chosen.choice(("before", "after", "torn", "late")), chosen.random()
            )
            self._watched.plan(moment, self._poll)
            self.counts["commits with polls in the middle"] += 1
