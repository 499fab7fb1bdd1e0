"""How long the statements of an application take while something else is done: one process that writes, one that reads.

    python waits.py DATABASE STATEMENT

Executes STATEMENT every few milliseconds, until a line with a time of the monotonic clock comes. Tells in JSON what the
statements took that ended before that time, and those that ended later.
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
_PATIENCE_SECONDS = 60
# Without it, in rollback mode the writer alone makes the reader wait for seconds.
_THINKING_SECONDS = 0.002


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
        """What its statements took that ended before `mark`, of the monotonic clock, and those after it. Ends it."""
        answer, _ = self._process.communicate(f"{mark}\n")
        before, after = json.loads(answer)
        return Waits(*before), Waits(*after)


@contextmanager
def application(database: Path, statement: str) -> Iterator[Application]:
    """Run one; it has executed its statement before the block begins."""
    command = [sys.executable, __file__, str(database), statement]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            yield Application(process)
        finally:
            process.kill()


def _run(database: str, statement: str) -> None:
    asked: list[str] = []
    threading.Thread(target=lambda: asked.append(sys.stdin.readline()), daemon=True).start()
    taken = []
    with closing(sqlite3.connect(database, timeout=_PATIENCE_SECONDS, isolation_level=None)) as connection:
        connection.execute(statement).fetchall()
        sys.stdout.write("running\n")
        sys.stdout.flush()
        while not asked:
            started = time.monotonic()
            connection.execute(statement).fetchall()
            ended = time.monotonic()
            taken.append((ended, ended - started))
            time.sleep(_THINKING_SECONDS)
    mark = float(asked[0])
    parts = [[seconds for ended, seconds in taken if (ended > mark) == is_after] for is_after in (False, True)]
    sys.stdout.write(json.dumps([(median(part), max(part)) for part in parts]))


if __name__ == "__main__":
    _run(*sys.argv[1:])
