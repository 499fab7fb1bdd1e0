"""An application that commits at a steady rate in WAL mode: one process, and when it made each commit.

    python commits.py DATABASE RATE FILE

Commits RATE times a second until a line comes or its stdin ends, each time with one update of a payment, which writes
three frames. Writes to FILE, for each commit, when it was made (seconds since 1970) and the seconds that it took.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from array import array
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_UPDATE = """
UPDATE payments SET status = iif(status = 'settled', 'refunded', 'settled'), updated_at = datetime('now') WHERE id = ?
"""
_MOST_SECONDS_BEHIND = 0.1
_ENDS_WITHIN_SECONDS = 60.0


class Committing:
    """One process that commits."""

    def __init__(self, process: subprocess.Popen[bytes], file: Path) -> None:
        self._process = process
        self._file = file

    def stop(self) -> list[tuple[float, float]]:
        """End the process; return for each of its commits when it was made, and the seconds that it took."""
        self._process.communicate(b"\n", timeout=_ENDS_WITHIN_SECONDS)
        numbers = array("d", self._file.read_bytes())
        return list(zip(numbers[::2], numbers[1::2], strict=True))


@contextmanager
def committing(database: Path, rate: int) -> Iterator[Committing]:
    """Run one; it has committed once before the block begins."""
    file = database.with_suffix(".commits")
    command = [sys.executable, __file__, str(database), str(rate), str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"running\n"
            yield Committing(process, file)
        finally:
            process.kill()
            file.unlink(missing_ok=True)


def committer(connection: sqlite3.Connection, seed: int = 1) -> Callable[[], None]:
    """A function that commits one update of a payment, another one each time; the same ones for the same `seed`.

    Nothing is flushed: how long the disk takes for that would hide everything else.
    """
    connection.execute("PRAGMA synchronous = off")
    (payments,) = connection.execute("SELECT max(id) FROM payments").fetchone()
    draw = random.Random(seed).randint
    return lambda: connection.execute(_UPDATE, (draw(1, payments),)) and None


def slowest_hundredth(commits: list[tuple[float, float]]) -> float:
    """The seconds that 99 of 100 commits took at most."""
    return quantiles((seconds for _, seconds in commits), n=100)[-1]


def _run(database: str, rate: str, file: str) -> None:
    ended = threading.Thread(target=sys.stdin.readline, daemon=True)
    taken = array("d")
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
        commit = committer(connection)
        ended.start()
        due_at = time.monotonic()
        while ended.is_alive():
            began = time.monotonic()
            commit()
            taken.extend((time.time(), time.monotonic() - began))
            if len(taken) == 2:
                sys.stdout.write("running\n")
                sys.stdout.flush()
            # What it could not do in time is not made up for at once.
            due_at = max(due_at + 1 / int(rate), began - _MOST_SECONDS_BEHIND)
            time.sleep(max(0.0, due_at - time.monotonic()))
        Path(file).write_bytes(taken.tobytes())


if __name__ == "__main__":
    _run(*sys.argv[1:])
