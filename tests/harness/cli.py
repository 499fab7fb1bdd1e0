"""The real command line, started by whom and where a test says, and what a refused command may leave: nothing."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness import command_line, warm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_ENDS_WITHIN_SECONDS = 60
Running = subprocess.Popen[str] | warm.WarmProcess
_SIDE_FILES = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True)
class Finished(command_line.Finished):
    """What a command gave: its exit code and what it wrote."""

    def reported(self, kind: str) -> list[str]:
        """The lines of stderr that begin with `error: `, `hint: ` or `warning: `, without that."""
        start = f"{kind}: "
        return [line.removeprefix(start) for line in self.stderr.splitlines() if line.startswith(start)]


@dataclass(frozen=True, slots=True)
class Runner:
    """The way to start a process: commands that enter namespaces and become a user, interpreter, variables."""

    enter: Sequence[str] = ()
    become: Sequence[str] = ()
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
            **{name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")},
            **runner.environ,
            **environ,
        }

    def start(self, *arguments: str | Path, umask: int = -1) -> subprocess.Popen[str]:
        """A running command, in a session of its own."""
        return subprocess.Popen(
            [*self._start_of_command(), "-m", "backupd", *map(str, arguments)],
            cwd=self.home,
            env=self._environ,
            umask=umask,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _start_of_command(self) -> list[str]:
        runner = self._runner
        # Entering a mount namespace ends in its root directory.
        directory = ("env", "-C", str(self.home)) if runner.enter else ()
        return [*runner.enter, *directory, *runner.become, runner.python]

    def run(self, *arguments: str | Path, code: int = 0, umask: int = -1) -> Finished:
        """Run a command to its end, which has to come with `code`."""
        return finish(self._start_warm(*arguments, umask=umask), code=code)

    def _start_warm(self, *arguments: str | Path, umask: int = -1) -> Running:
        """A running command that was quick to start, unless the runner asks for something special."""
        if self._runner.enter or self._runner.become or self._runner.python != sys.executable:
            return self.start(*arguments, umask=umask)
        return warm.start(
            [*map(str, arguments)], directory=self.home, environment=self._environ, umask=umask, is_session=True
        )

    def json(self, *arguments: str | Path, code: int = 0) -> Any:
        """The document that a command with `--json` gives."""
        finished = self.run(*arguments, "--json", code=code)
        assert not finished.reported("error"), finished.stderr
        return finished.document

    def refusal(self, *arguments: str | Path, code: int, names: Sequence[object]) -> Finished:
        """Run a command that has to be refused: see `refusals`."""
        return self.refusals([(arguments, code, names)])[0]

    def refusals(self, commands: Sequence[tuple[Sequence[str | Path], int, Sequence[object]]]) -> list[Finished]:
        """Run commands side by side, each of which ends with its code, one `error:` line, and one `hint:` line.

        All of its names stand in the error. Beside the state, nothing in `home` is changed or left behind.
        """
        before = tree(self.home, without=self.state)
        processes = [self._start_warm(*arguments) for arguments, _, _ in commands]
        results = [_ended(process) for process in processes]
        for finished, (_, code, names) in zip(results, commands, strict=True):
            _require(finished, code)
            assert (len(finished.reported("error")), len(finished.reported("hint"))) == (1, 1), finished
            assert all(str(name) in finished.reported("error")[0] for name in names), (finished, names)
        assert tree(self.home, without=self.state) == before
        assert self.spooled() == []
        return results

    def spooled(self) -> list[str]:
        """What lies in the spool: nothing, when no run is going on."""
        spool = self.state / "spool"
        return sorted(entry.name for entry in spool.iterdir()) if spool.is_dir() else []


def finish(process: Running, *, code: int = 0) -> Finished:
    """Wait for a command, which has to end in time, without a traceback, and with `code`."""
    finished = _ended(process)
    _require(finished, code)
    return finished


def _ended(process: Running) -> Finished:
    try:
        stdout, stderr = process.communicate(timeout=_ENDS_WITHIN_SECONDS)
    finally:
        process.kill()
    return Finished(process.returncode, stdout, command_line.without_progress(stderr))


def _require(finished: Finished, code: int) -> None:
    assert finished.code == code, finished
    assert "Traceback" not in finished.stderr, finished.stderr


def tree(root: Path, *, without: Path | None = None) -> dict[str, tuple[object, ...]]:
    """All in a directory that can be changed: names, modes, owners, and the times and content of files."""
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
