"""The real command line: `python -m backupd` in a process, a directory and an environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_ENDS_WITHIN_SECONDS = 60
_SIDE_FILES = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command gave: its exit code and what it wrote."""

    code: int
    stdout: str
    stderr: str

    def told(self, kind: str) -> list[str]:
        """The lines of stderr that begin with `error: `, `hint: ` or `warning: `, without that."""
        start = f"{kind}: "
        return [line.removeprefix(start) for line in self.stderr.splitlines() if line.startswith(start)]

    @property
    def document(self) -> Any:
        """The JSON on stdout, which has nothing else."""
        return json.loads(self.stdout)


@dataclass(frozen=True, slots=True)
class Runner:
    """How a process is to be started: what stands before it, the interpreter, and variables that it needs."""

    prefix: Sequence[str] = ()
    python: str = sys.executable
    environ: Mapping[str, str] = field(default_factory=dict)


PLAIN = Runner()


class CommandLine:
    """Runs commands in `home`, with their state in `home/state`. `environ` is what each of them gets besides."""

    def __init__(self, home: Path, *, state: str = "state", runner: Runner = PLAIN, **environ: str) -> None:
        self.home = home
        self.state = home / state
        self._runner = runner
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "PYTHONWARNINGS": "error",
            "AWS_EC2_METADATA_DISABLED": "true",
            "BACKUPD_STATE_DIR": str(self.state),
            **runner.environ,
            **environ,
        }

    def start(self, *arguments: str | Path, umask: int = -1) -> subprocess.Popen[str]:
        """A running command, in a session of its own."""
        return subprocess.Popen(
            [*self._runner.prefix, self._runner.python, "-m", "backupd", *map(str, arguments)],
            cwd=self.home,
            env=self._environ,
            umask=umask,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str | Path, code: int = 0, umask: int = -1) -> Finished:
        """Run a command to its end, which has to come with `code`."""
        return finish(self.start(*arguments, umask=umask), code=code)

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        """The document that a command with `--json` gives."""
        finished = self.run(*arguments, "--json", code=code)
        assert not finished.told("error"), finished.stderr
        return finished.document

    def refusal(self, *arguments: str | Path, code: int, names: Sequence[object]) -> Finished:
        """Run a command that fails with one `error:` line, in which all of `names` stand, and one `hint:` line.

        Beside its state it leaves nothing, and changes nothing, in `home`.
        """
        before = tree(self.home, without=self.state)
        finished = self.run(*arguments, code=code)
        (error,) = finished.told("error")
        (hint,) = finished.told("hint")
        for name in names:
            assert str(name) in error
        assert hint
        assert finished.stdout == ""
        assert tree(self.home, without=self.state) == before
        assert self.spooled() == []
        return finished

    def spooled(self) -> list[str]:
        """What lies in the spool: nothing, when no run is going on."""
        spool = self.state / "spool"
        return sorted(entry.name for entry in spool.iterdir()) if spool.is_dir() else []


def finish(process: subprocess.Popen[str], *, code: int = 0) -> Finished:
    """Wait for a command, which has to end in time, without a traceback, and with `code`."""
    try:
        stdout, stderr = process.communicate(timeout=_ENDS_WITHIN_SECONDS)
    finally:
        process.kill()
    finished = Finished(process.returncode, stdout, stderr)
    assert finished.code == code, finished
    assert "Traceback" not in finished.stderr, finished.stderr
    return finished


def tree(root: Path, *, without: Path | None = None) -> dict[str, tuple[object, ...]]:
    """All that is in a directory and can be changed: names, modes, owners, and of files the times and the content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        if without is not None and path.is_relative_to(without):
            continue
        status = path.lstat()
        facts: tuple[object, ...] = (stat.filemode(status.st_mode), status.st_uid, status.st_gid)
        if stat.S_ISREG(status.st_mode):
            facts = (*facts, status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        found[str(path.relative_to(root))] = facts
    return found


def side_files(database: Path) -> list[Path]:
    """SQLite's files beside a database."""
    return [path for suffix in _SIDE_FILES if (path := database.with_name(database.name + suffix)).exists()]


def wait_until(condition: Callable[[], object], *, within: float = 20.0) -> None:
    """Return as soon as `condition` holds; AssertionError when it does not in time."""
    give_up_at = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up_at, f"{condition} does not come true"
        os.sched_yield()
