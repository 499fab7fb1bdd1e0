"""The application: a process that commits for ever, notes each commit in its ledger, and does what it is asked for."""

from __future__ import annotations

import json
import select
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.ledger import CELLS, Ledger, Scribe, State, body, digest_of, touched

if TYPE_CHECKING:
    from collections.abc import Sequence

_PAUSE_SECONDS = 0.04
_ANSWERS_WITHIN_SECONDS = 60
SCHEMA = """
CREATE TABLE state (only INTEGER PRIMARY KEY, generation TEXT NOT NULL, number INTEGER NOT NULL, digest TEXT NOT NULL);
CREATE TABLE cell (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX cell_number ON cell (number);
"""


def create(path: Path, ledger: Path, generation: str, *, journal_mode: str) -> None:
    """A new database in its first state, in place of what is there."""
    state = State(generation, 0)
    digest = f"{digest_of((cell, 0) for cell in range(CELLS)):064x}"
    scribe = Scribe(ledger)
    scribe.begin(state, digest)
    temporary = path.with_name(f"{path.name}.new")
    with closing(sqlite3.connect(temporary)) as connection, connection:
        connection.executescript(SCHEMA)
        connection.execute("INSERT INTO state VALUES (1, ?, 0, ?)", (generation, digest))
        connection.executemany(
            "INSERT INTO cell VALUES (?, 0, ?)", ((cell, body(state, cell)) for cell in range(CELLS))
        )
    with closing(sqlite3.connect(temporary)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        if journal_mode != "wal":
            # More than is copied under one lock: beside so many commits, it is read between them.
            connection.executescript("CREATE TABLE ballast (content); INSERT INTO ballast VALUES (zeroblob(40000000))")
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    temporary.replace(path)
    scribe.done(state)
    scribe.close()


class Writer:
    """A running application with the database `path`, or one that is stopped or was killed."""

    def __init__(self, path: Path, ledger: Path, *, journal_mode: str) -> None:
        self.path = path
        self.name = path.stem
        self.journal_mode = journal_mode
        self.ledger_file = ledger
        self.ledger = Ledger(ledger)
        self._process: subprocess.Popen[str] | None = None
        self._generations = 0

    def create(self) -> None:
        """Begin a new database, in place of what is there."""
        self._generations += 1
        create(self.path, self.ledger_file, f"{self.name}-{self._generations}", journal_mode=self.journal_mode)

    def start(self) -> None:
        """Commit from now on."""
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(self.path), str(self.ledger_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._require_answer()

    def tell(self, *statements: str) -> None:
        """Have SQL executed between two commits."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(statements) + "\n")
        self._process.stdin.flush()
        self._require_answer()

    def stop(self) -> None:
        """Let it close its database; the last connection checkpoints the WAL."""
        assert self._process is not None
        self._process.communicate()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _require_answer(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _ANSWERS_WITHIN_SECONDS)
        answer = self._process.stdout.readline() if ready else "no answer"
        assert answer == "done\n", f"{self.name}: {answer}"


def _commit_for_ever(path: str, ledger: Path) -> None:
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    generation, number, digest = connection.execute("SELECT generation, number, digest FROM state").fetchone()
    scribe = Scribe(ledger)
    # After a kill, or with another file here, the state of the database is not known.
    scribe.begin(State(generation, number), digest)
    scribe.done(State(generation, number))
    cells = dict(connection.execute("SELECT id, number FROM cell").fetchall())
    _answer()
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], _PAUSE_SECONDS)
        if ready:
            line = sys.stdin.readline()
            if not line:
                break
            _execute(connection, json.loads(line))
            _answer()
        number += 1
        _commit(connection, scribe, State(generation, number), cells)
    connection.close()


def _commit(connection: sqlite3.Connection, scribe: Scribe, state: State, cells: dict[int, int]) -> None:
    written = touched(state)
    cells.update(dict.fromkeys(written, state.number))
    digest = f"{digest_of(cells.items()):064x}"
    scribe.begin(state, digest)
    connection.execute("BEGIN IMMEDIATE")
    rows = [(state.number, body(state, cell), cell) for cell in written]
    connection.executemany("UPDATE cell SET number = ?, body = ? WHERE id = ?", rows)
    connection.execute("UPDATE state SET number = ?, digest = ?", (state.number, digest))
    connection.execute("COMMIT")
    scribe.done(state)


def _execute(connection: sqlite3.Connection, statements: Sequence[str]) -> None:
    for statement in statements:
        connection.execute(statement).fetchall()


def _answer() -> None:
    sys.stdout.write("done\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _commit_for_ever(sys.argv[1], Path(sys.argv[2]))
