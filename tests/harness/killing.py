"""SIGKILL of a running command with all its processes, after some time or at one of its system calls; and what it left.

Every kill has a directory of its own, with the same database and snapshot in it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from harness.cli import CommandLine, Runner, finish, side_files
from harness.command_line import wait_until
from harness.place import connected, content_digest, create_database

_CALLS = ["pwrite64", "copy_file_range", "ftruncate", "fdatasync", "fsync", "linkat", "renameat", "unlinkat"]
_CALLS += ["?link", "?rename", "?unlink"]  # not on every processor
_SUFFIXES = ("", "-wal", "-shm", "-journal")


def kill(process: subprocess.Popen[str], *, after_seconds: float = 0.0) -> None:
    """Kill a command of `CommandLine.start` when it has not ended in that time; return when nothing of it lives."""
    with suppress(ProcessLookupError):
        time.sleep(after_seconds)
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not processes_of(process.pid))


def processes_of(session: int) -> list[int]:
    """Living processes (zombies do not count) of the session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found


def system_calls(home: Path, *arguments: str) -> list[tuple[str, int]]:
    """What a command in `home` does to app.db and the files beside it: (call, n) for the n-th one of its name.

    Each process and thread of it counts for itself, as strace counts when it injects. Runs the command to its end.
    Skips the test where strace is missing or not permitted.
    """
    _require_strace()
    log = home.with_name(f"{home.name}.trace")
    finished = finish(_traced(home, log).start(*arguments))
    assert finished.code == 0
    seen: Counter[tuple[str, str]] = Counter()
    calls: dict[tuple[str, int], None] = {}
    for task, name in re.findall(r"^(\d+) +([a-z0-9]+)\(", log.read_text(), re.MULTILINE):
        seen[task, name] += 1
        calls[name, seen[task, name]] = None
    return list(calls)


def kill_at(call: tuple[str, int], home: Path, *arguments: str) -> None:
    """Run a command in `home` of which a process is killed in place of one of its `system_calls`.

    That may be one that it has started to look at the database. Skips the test as `system_calls` does.
    """
    _require_strace()
    name, number = call
    log = home.with_name(f"{home.name}.trace")
    process = _traced(home, log, "-e", f"inject={name}:signal=KILL:when={number}").start(*arguments)
    process.communicate()
    assert "killed by SIGKILL" in log.read_text(), call
    wait_until(lambda: not processes_of(process.pid))


def _require_strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs the program strace")
    probe = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"tracing is not permitted here: {probe.stderr.strip()}")


def _traced(home: Path, log: Path, *options: str) -> CommandLine:
    names = [f"app.db{suffix}" for suffix in _SUFFIXES] + [
        ".app.db.backupd-partial/image",
        ".app.db.backupd-partial",
        ".app.db.backupd-restoring",
        "",
    ]
    paths = [part for name in names for part in ("-P", str(home / name))]
    enter = ("strace", "-f", "-qq", "-o", str(log), "-e", f"trace={','.join(_CALLS)}", *paths, *options, "--")
    return CommandLine(home, runner=Runner(enter=enter))


def content_as_found(database: Path) -> str:
    """The digest of what an application would see that opens `database` next; nothing is touched."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / database.name
        for file in (database, *side_files(database)):
            if not file.name.endswith("-shm"):
                shutil.copy(file, copy.with_name(file.name))
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return content_digest(copy)


class Homes:
    """Directories that are all alike: a database app.db, and a snapshot tagged `before`.

    `old` is the digest of the database's content, `new` that of the snapshot's.
    """

    def __init__(self, root: Path, journal_mode: str, *, rows: int) -> None:
        self._root = root
        self._copies = 0
        pristine = root / "pristine"
        pristine.mkdir()
        (pristine / "backupd.toml").write_text("[[databases]]\npath = 'app.db'\n")
        create_database(pristine / "app.db", rows=rows, journal_mode=journal_mode)
        CommandLine(pristine).run("now", "--tag", "before")
        self.new = content_as_found(pristine / "app.db")
        # The application is killed: in WAL mode, the change is in the log only.
        with connected(pristine / "app.db", f"UPDATE report SET title = 'changed' WHERE id <= {rows // 4}"):
            pass
        self.old = content_as_found(pristine / "app.db")

    def copy(self) -> Path:
        """A directory that nothing has happened to."""
        self._copies += 1
        return shutil.copytree(self._root / "pristine", self._root / f"copy-{self._copies}")

    def whole_content(self, home: Path) -> str:
        """The content of the database there, which has to be the old or the new."""
        content = content_as_found(home / "app.db")
        assert content in {self.old, self.new}
        return content


def require_tidy(home: Path) -> None:
    """Require that nothing of a killed restore is left in `home`."""
    assert [path.name for path in home.iterdir() if ".backupd-" in path.name] == []
    journal = home / "app.db-journal"
    # Source: https://www.sqlite.org/fileformat2.html#the_rollback_journal: it counts if its header is not zero.
    assert not journal.exists() or journal.read_bytes()[:1] in {b"", b"\0"}
    assert CommandLine(home).spooled() == []
