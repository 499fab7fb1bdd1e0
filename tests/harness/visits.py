"""Processes that open a database in WAL mode, book, and note each booking in a ledger once it is committed.

    python -m harness.visits DATABASE END [BOOKINGS PAUSE_SECONDS]

A visit has so many bookings and a pause after each. END says what comes then: `close` the connection and begin the next
visit, `exit` after closing it, or `kill` the process without closing it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from harness.booking import book, connect, ledger_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def start_visits(database: Path, end: str, *, bookings: int = 1, pause_seconds: float = 0) -> subprocess.Popen[bytes]:
    """A process that visits the database; without the packages of the tests, so that it is there at once."""
    arguments = ["-m", "harness.visits", str(database), end, str(bookings), str(pause_seconds)]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-S", *arguments], env=environ)


@contextmanager
def visits(database: Path, *, bookings: int, pause_seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """A process that visits the database until the block ends, by SIGKILL. It may not have ended by then."""
    with start_visits(database, "close", bookings=bookings, pause_seconds=pause_seconds) as process:
        try:
            yield process
            assert process.poll() is None, "the application has ended"
        finally:
            process.kill()


def _visit(database: Path, end: str, bookings: int, pause_seconds: float) -> None:
    ledger = os.open(ledger_of(database), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        asked_at = time.time()
        with closing(connect(database)) as connection:
            for _ in range(bookings):
                number = book(connection)
                os.write(ledger, f"{number} {asked_at} {time.time()}\n".encode())
                if end == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(pause_seconds)
                asked_at = time.time()
        if end == "exit":
            return
        time.sleep(pause_seconds)


if __name__ == "__main__":
    _visit(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
