"""Memory does not grow with the database: it is not mapped whole, and 128 MB are enough for whatever is done."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.command_line import COMMAND, CommandLine
from harness.extent import slow
from harness.memory import memory_limited_to, peak_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DATABASE_BYTES = 300 << 20
_ROW_BYTES = 3000
_MOST_ANONYMOUS_BYTES = 115 << 20
# Three processes have 20 MB of programs each, and 32 MB of the database may be mapped.
_MOST_MAPPED_BYTES = 120 << 20
_CONTAINER_BYTES = 128 << 20
_CHANGE = "UPDATE t SET a = hex(randomblob(1500)) WHERE rowid % 1000 = 0"
_TOUCH = "UPDATE t SET a = a WHERE rowid = 1"


@pytest.fixture(scope="module", params=["wal", "delete"])
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of 300 MB that compresses by half, in one of the two journal modes."""
    path = tmp_path_factory.mktemp("original") / "app.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {request.param}")
        connection.execute("PRAGMA synchronous = off")
        connection.execute("CREATE TABLE t (a)")
        connection.execute(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "INSERT INTO t SELECT hex(randomblob(?)) FROM n",
            (_DATABASE_BYTES // _ROW_BYTES, _ROW_BYTES // 2),
        )
    return path


@pytest.fixture
def line(original: Path, tmp_path: Path) -> CommandLine:
    """A command line in a directory with a copy of the database, which is in no page cache of the commands' group."""
    shutil.copy(original, tmp_path / "app.db")
    return CommandLine(tmp_path)


def _environment(line: CommandLine) -> dict[str, str]:
    # Beside a writer, a busy machine may need longer under the lock than is allowed otherwise.
    return {**line.environment, "BACKUPD_CAPTURE__MAX_LOCK": "1m"}


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        connection.execute("PRAGMA synchronous = off")
        connection.execute(statement)


@contextmanager
def _committing(path: Path) -> Iterator[None]:
    """Commit all the time, so that a database in rollback mode is read without a lock."""
    has_ended = threading.Event()

    def commit() -> None:
        while not has_ended.wait(0.02):
            _execute(path, "UPDATE t SET a = hex(randomblob(1500)) WHERE rowid = 7")

    thread = threading.Thread(target=commit)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


@slow
@pytest.mark.timeout(900)
def test_memory_is_bounded_and_the_source_is_not_mapped_whole(line: CommandLine) -> None:
    """First, changed and touched snapshots, a restore and a drill of 300 MB hold about 100 MB, and map little of it."""
    path = line.directory / "app.db"
    peaks = {}

    def run(what: str, *arguments: str) -> None:
        peaks[what] = peak_of([*COMMAND, *arguments], directory=line.directory, environment=_environment(line))

    run("first", "now", "app.db")
    _execute(path, _CHANGE)
    run("changed", "now", "app.db")
    _execute(path, _TOUCH)
    run("touched", "now", "app.db")
    with _committing(path):
        run("busy", "now", "app.db", "--full")
    run("restored", "restore", "latest", "--to", "out.db")
    run("drilled", "verify", "--level", "drill")
    assert {what: peak for what, peak in peaks.items() if peak.anonymous > _MOST_ANONYMOUS_BYTES} == {}
    assert {what: peak for what, peak in peaks.items() if peak.mapped > _MOST_MAPPED_BYTES} == {}
    assert peaks["touched"].anonymous < peaks["first"].anonymous


@slow
@pytest.mark.timeout(900)
def test_container_of_128_mb_is_large_enough(line: CommandLine) -> None:
    """Nothing is killed for want of memory in a container of 128 MB, page cache included."""
    path = line.directory / "app.db"
    with memory_limited_to(_CONTAINER_BYTES) as processes:

        def run(*arguments: str) -> None:
            inside = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(processes), *COMMAND, *arguments]
            subprocess.run(inside, cwd=line.directory, env=_environment(line), check=True, stdout=subprocess.DEVNULL)

        run("now", "app.db")
        _execute(path, _CHANGE)
        run("now", "app.db")
        with _committing(path):
            run("now", "app.db", "--full")
        run("restore", "latest", "--to", "out.db")
        run("verify", "--level", "drill")
