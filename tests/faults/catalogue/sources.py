"""What happens to the databases themselves."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from faults.fault import Fault, Felt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from faults.world import World
    from faults.writer import Writer


def _one(world: World, chosen: Random) -> Writer:
    return world.writers[chosen.choice(sorted(world.writers))]


@contextmanager
def replaced_source(world: World, chosen: Random) -> Iterator[Felt]:
    """Another database replaces the file, by rename."""
    writer = _one(world, chosen)
    writer.kill()
    writer.create()
    writer.start()
    yield lambda: True


@contextmanager
def missing_source(world: World, chosen: Random) -> Iterator[Felt]:
    """The file of the first database is missing, and comes back."""
    writer = world.writers["rollback"]
    writer.stop()
    away = writer.path.with_suffix(".away")
    writer.path.rename(away)
    yield lambda: True
    away.rename(writer.path)
    writer.start()


@contextmanager
def truncated_source(world: World, chosen: Random) -> Iterator[Felt]:
    """The file loses its second half, and is restored."""
    writer = _one(world, chosen)
    writer.stop()
    copy = Path(shutil.copy(writer.path, writer.path.with_suffix(".copy")))
    os.truncate(writer.path, writer.path.stat().st_size // 2)
    yield lambda: True
    copy.replace(writer.path)
    writer.start()


@contextmanager
def garbage_as_source(world: World, chosen: Random) -> Iterator[Felt]:
    """The file has content that is no database, and is restored."""
    writer = world.writers["rollback"]
    writer.stop()
    copy = Path(shutil.copy(writer.path, writer.path.with_suffix(".copy")))
    writer.path.write_bytes(chosen.randbytes(20_000))
    yield lambda: True
    copy.replace(writer.path)
    writer.start()


@contextmanager
def locked_source(world: World, chosen: Random) -> Iterator[Felt]:
    """A process keeps an exclusive lock on the database in rollback-journal mode."""
    writer = world.writers["rollback"]
    with closing(sqlite3.connect(writer.path, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield lambda: True
        connection.execute("ROLLBACK")


@contextmanager
def vacuumed_source(world: World, chosen: Random) -> Iterator[Felt]:
    """VACUUM rewrites every page, while a capture runs."""
    world.request_snapshots()
    _one(world, chosen).tell("VACUUM")
    yield lambda: True


@contextmanager
def switched_journal_mode(world: World, chosen: Random) -> Iterator[Felt]:
    """WAL becomes DELETE, or the other way round, and is switched back."""
    writer = _one(world, chosen)
    other = "delete" if writer.journal_mode == "wal" else "wal"
    writer.tell(f"PRAGMA journal_mode = {other}")
    yield lambda: True
    writer.tell(f"PRAGMA journal_mode = {writer.journal_mode}")


@contextmanager
def changed_page_size(world: World, chosen: Random) -> Iterator[Felt]:
    """The page size changes."""
    writer = _one(world, chosen)
    size = chosen.choice([512, 1024, 8192, 16384, 65536])
    writer.tell(
        "PRAGMA journal_mode = delete",
        f"PRAGMA page_size = {size}",
        "VACUUM",
        f"PRAGMA journal_mode = {writer.journal_mode}",
    )
    yield lambda: True


@contextmanager
def removed_log(world: World, chosen: Random) -> Iterator[Felt]:
    """The application closes its last connection, which removes the write-ahead log, and begins again at once."""
    for _ in range(chosen.randint(1, 3)):
        world.writers["wal"].stop()
        world.writers["wal"].start()
    yield lambda: True


@contextmanager
def truncated_log(world: World, chosen: Random) -> Iterator[Felt]:
    """The application truncates the write-ahead log."""
    world.writers["wal"].tell("PRAGMA wal_checkpoint(TRUNCATE)")
    yield lambda: True


@contextmanager
def grown_source(world: World, chosen: Random) -> Iterator[Felt]:
    """A blob of 24 MB of zeros makes the file many times larger, and is deleted again: then snapshots shrink."""
    writer = _one(world, chosen)
    writer.tell("CREATE TABLE IF NOT EXISTS ballast (blob BLOB)", "INSERT INTO ballast VALUES (zeroblob(24000000))")
    yield lambda: True
    writer.tell("DELETE FROM ballast", "VACUUM")


@contextmanager
def dropped_tables(world: World, chosen: Random) -> Iterator[Felt]:
    """Tables that snapshots have are dropped: rotation is held until that is accepted."""
    writer = _one(world, chosen)
    writer.tell("CREATE TABLE IF NOT EXISTS dropped (id INTEGER PRIMARY KEY)", "INSERT INTO dropped VALUES (NULL)")
    world.run("now", writer.name)
    writer.tell("DROP TABLE dropped", "DROP TABLE IF EXISTS ballast")
    yield lambda: True


FAULTS = (
    Fault(replaced_source),
    Fault(missing_source, stops=("rollback",)),
    Fault(truncated_source),
    Fault(garbage_as_source, stops=("rollback",)),
    Fault(locked_source, stops=("rollback",)),
    Fault(vacuumed_source),
    Fault(switched_journal_mode),
    Fault(changed_page_size),
    Fault(removed_log),
    Fault(truncated_log),
    Fault(grown_source),
    Fault(dropped_tables),
)
