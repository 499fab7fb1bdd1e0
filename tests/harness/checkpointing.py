"""Programs that checkpoint a database in WAL mode by themselves: Litestream, and a process that does as it does.

Litestream keeps a read transaction open, so that no other connection resets the log, and checkpoints when it has read
it. Then it commits something of its own, with which SQLite begins the log again.

    python -m harness.checkpointing DATABASE
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.booking import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONFIGURATION = """
logging:
  level: warn
dbs:
  - path: {database}
    monitor-interval: 200ms
    checkpoint-interval: 1s
    min-checkpoint-page-count: 500
    replica:
      url: file://{replica}
"""
_SEQUENCE = "CREATE TABLE IF NOT EXISTS sequence (id INTEGER PRIMARY KEY, number INTEGER NOT NULL)"
_NEXT = "INSERT INTO sequence VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET number = number + 1"
_MODES = ("PASSIVE", "PASSIVE", "RESTART")
_PAUSE_SECONDS = 2.0


@contextmanager
def litestream(database: Path) -> Iterator[None]:
    """Litestream, which replicates the database until the block ends. Skips the test where it is missing."""
    if shutil.which("litestream") is None:
        pytest.skip("needs the program litestream")
    configuration = database.with_name("litestream.yml")
    configuration.write_text(_CONFIGURATION.format(database=database, replica=database.with_name("replica")))
    with _beside(["litestream", "replicate", "-config", str(configuration)]):
        yield
    assert [*database.with_name("replica").rglob("*.ltx")], "Litestream has replicated nothing"


@contextmanager
def checkpointer(database: Path) -> Iterator[None]:
    """A process that treats the log as Litestream does, until the block ends."""
    with _beside([sys.executable, "-m", "harness.checkpointing", str(database)]):
        yield


@contextmanager
def _beside(command: list[str]) -> Iterator[None]:
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, env=environ) as process:
        try:
            yield
            assert process.poll() is None, f"{command[0]} has ended"
        finally:
            process.kill()


def resets(database: Path) -> int:
    """A number that grows by one with each reset of the log: its first salt."""
    return int.from_bytes(Path(f"{database}-wal").read_bytes()[16:20], "big")


def _checkpoint(database: Path) -> None:
    with closing(connect(database)) as reader, closing(connect(database)) as writer:
        writer.execute("PRAGMA wal_autocheckpoint = 0")
        writer.execute(_SEQUENCE)
        for mode in cycle(_MODES):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM sequence").fetchone()
            time.sleep(_PAUSE_SECONDS)
            reader.execute("ROLLBACK")
            writer.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
            writer.execute(_NEXT)


if __name__ == "__main__":
    _checkpoint(Path(sys.argv[1]))
