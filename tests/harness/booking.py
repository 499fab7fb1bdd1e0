"""An application that books one number with each commit, in WAL mode, and keeps a ledger to compare with."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SCHEMA = "CREATE TABLE IF NOT EXISTS booking (number INTEGER PRIMARY KEY, body BLOB NOT NULL)"
_BODY_BYTES = 300


class Application:
    """A process that books one number after the other, and appends each to a ledger once it is committed."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self._ledger = ledger_of(path)
        self.process = process

    @property
    def acknowledged(self) -> int:
        """The last number that is known to be committed."""
        return len(self._ledger.read_bytes().splitlines())

    def wait_for(self, bookings: int, *, within_seconds: float = 60.0) -> int:
        """Wait until so many more are committed. Returns how many there are."""
        until, give_up_at = self.acknowledged + bookings, time.monotonic() + within_seconds
        while (now := self.acknowledged) < until:
            assert time.monotonic() < give_up_at, "the application does not book any more"
            time.sleep(0.01)
        return now

    def stop(self) -> int:
        """End it by SIGKILL: its log stays. Returns how many bookings are known to be committed."""
        self.process.kill()
        self.process.wait()
        return self.acknowledged


def ledger_of(path: Path) -> Path:
    """The ledger of the application whose database is `path`."""
    return path.with_suffix(".ledger")


@contextmanager
def application(path: Path, *, pause_seconds: float = 0.005, pragmas: Iterable[str] = ()) -> Iterator[Application]:
    """A running application with a database in WAL mode, which it makes; it has booked something before the block."""
    arguments = [sys.executable, __file__, str(path), str(pause_seconds), *pragmas]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"booking\n"
            yield Application(path, process)
        finally:
            process.kill()


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a database in WAL mode, which is made if it does not exist, that has no open transaction."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute(_SCHEMA)
    return connection


def book(connection: sqlite3.Connection, times: int = 1) -> int:
    """Commit so many times, one booking each. Returns the last number."""
    number = 0
    for _ in range(times):
        cursor = connection.execute("INSERT INTO booking (body) VALUES (randomblob(?))", (_BODY_BYTES,))
        number = int(cursor.lastrowid or 0)
    return number


def _book_for_ever(path: Path, pause_seconds: float, *pragmas: str) -> None:
    with closing(connect(path)) as connection, ledger_of(path).open("ab", buffering=0) as ledger, suppress(OSError):
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        (before,) = connection.execute("SELECT coalesce(max(number), 0) FROM booking").fetchone()
        ledger.truncate(0)
        ledger.write(b"".join(b"%d\n" % number for number in range(1, before + 1)))
        sys.stdout.write("booking\n")
        sys.stdout.flush()
        while True:
            ledger.write(b"%d\n" % book(connection))
            time.sleep(pause_seconds)


if __name__ == "__main__":
    _book_for_ever(Path(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
