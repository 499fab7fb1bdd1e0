"""What a follower asks of the kernel: it observes a log, and no application can notice it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import apsw
import pytest

_FOLLOWER = """
import sys
from backupd.follow.log import LogFollower

follower = LogFollower("app.db-wal")
for _ in sys.stdin:
    print(" ".join(type(each).__name__ for each in follower.poll()), flush=True)
follower.close()
"""
_OBSERVING = {"pread64", "close", "stat", "lstat", "fstat", "newfstatat", "statx", "openat", "open"}


def _require_strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs the program strace")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the permission to trace a process")


def test_a_follower_only_looks_at_the_log_and_reads_it(tmp_path):
    """Through commits, a reset, the end of the log and a new one: no lock, no write, no look at the database itself."""
    _require_strace()
    trace = tmp_path / "trace"
    home = tmp_path / "home"
    home.mkdir()
    command = ["strace", "-f", "-qq", "-y", "-o", trace, sys.executable, "-P", "-c", _FOLLOWER]
    follower = subprocess.Popen(command, cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def poll() -> str:
        follower.stdin.write("\n")
        follower.stdin.flush()
        return follower.stdout.readline().strip()

    def run(*statements: str) -> None:
        for statement in statements:
            database.execute(statement).fetchall()

    with follower:
        said = [poll()]
        database = apsw.Connection(str(home / "app.db"))
        run("PRAGMA journal_mode = wal", "CREATE TABLE t (v)", "INSERT INTO t VALUES (zeroblob(9000))")
        said.append(poll())
        run("INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)")
        said.append(poll())
        run("PRAGMA wal_checkpoint(RESTART)", "INSERT INTO t VALUES (3)")
        said.append(poll())
        database.close()
        said.append(poll())
        database = apsw.Connection(str(home / "app.db"))
        run("INSERT INTO t VALUES (4)")
        said += [poll(), poll()]
        database.close()
        follower.stdin.close()

    assert follower.returncode == 0
    assert said[:5] == ["", "LogCommit", "LogCommit LogCommit", "LogCommit", "Gap"]
    assert "LogCommit" in said[5:]
    calls = [line.partition(" ")[2].strip() for line in trace.read_text().splitlines() if "app.db" in line]
    calls = [call for call in calls if not call.startswith("execve(")]
    assert {call.partition("(")[0] for call in calls} <= _OBSERVING
    assert [call for call in calls if re.search(r"app\.db(?!-wal)", call)] == []
    opened = [call for call in calls if call.startswith("open")]
    assert opened
    assert [call for call in opened if "O_RDONLY" not in call or "O_CREAT" in call] == []
