"""How long the statements of an application take while something else is done: one process that writes, one that reads.

    python waits.py DATABASE STATEMENT THINKING_SECONDS

Executes STATEMENT again and again, with a pause of THINKING_SECONDS in between, until a line with a time of the
monotonic clock comes. Prints in JSON what the statements took that ended before that time, and those that ended later.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WRITE = "UPDATE payments SET updated_at = datetime('now') WHERE id = (SELECT abs(random()) % max(id) + 1 FROM payments)"
READ = "SELECT * FROM payments WHERE id = (SELECT abs(random()) % max(id) + 1 FROM payments)"
PROBE = "BEGIN EXCLUSIVE"
"""Waits for the lock of a writer and gives it back: in rollback-journal mode, this changes nothing in the file."""
_PATIENCE_SECONDS = 60
# Without it, in rollback mode the writer alone makes the reader wait for seconds.
_THINKING_SECONDS = 0.002
# The busy handler of SQLite sleeps for up to 100 ms, by which a wait would look longer than the lock was held.
_PROBED_AGAIN_AFTER_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that one statement took, in the middle and at most."""

    median: float
    longest: float


class Application:
    """One process that executes one statement again and again."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def waits(self, mark: float) -> tuple[Waits, Waits]:
        """End the process and return how long its statements took, before and after `mark` of the monotonic clock."""
        answer, _ = self._process.communicate(f"{mark}\n")
        before, after = json.loads(answer)
        return Waits(*before), Waits(*after)


@contextmanager
def application(database: Path, statement: str, thinking_seconds: float = _THINKING_SECONDS) -> Iterator[Application]:
    """Run one; it has executed its statement before the block begins."""
    command = [sys.executable, __file__, str(database), statement, str(thinking_seconds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield Application(process)
        finally:
            process.kill()


def _run(database: str, statement: str, thinking_seconds: str) -> None:
    asked: list[str] = []
    threading.Thread(target=lambda: asked.append(sys.stdin.readline()), daemon=True).start()
    taken = []
    execute, patience = (_probe, 0) if statement == PROBE else (_execute, _PATIENCE_SECONDS)
    with closing(sqlite3.connect(database, timeout=patience, isolation_level=None)) as connection:
        execute(connection, statement)
        sys.stdout.write("running\n")
        sys.stdout.flush()
        while not asked:
            started = time.monotonic()
            execute(connection, statement)
            ended = time.monotonic()
            taken.append((ended, ended - started))
            time.sleep(float(thinking_seconds))
    mark = float(asked[0])
    parts = [[seconds for ended, seconds in taken if (ended > mark) == is_after] for is_after in (False, True)]
    sys.stdout.write(json.dumps([(median(part), max(part)) for part in parts]))


def _execute(connection: sqlite3.Connection, statement: str) -> None:
    connection.execute(statement).fetchall()


def _probe(connection: sqlite3.Connection, statement: str) -> None:
    while not _has_begun(connection, statement):
        time.sleep(_PROBED_AGAIN_AFTER_SECONDS)
    connection.execute("ROLLBACK")


def _has_begun(connection: sqlite3.Connection, statement: str) -> bool:
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True


if __name__ == "__main__":
    _run(*sys.argv[1:])
