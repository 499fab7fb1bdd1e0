"""The real command line, in a directory of its own and without a terminal, or on one."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness import warm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_PATIENCE_SECONDS = 60.0
_SIZE = r"[0-9.]+ [kMGTP]?B"
_PROGRESS = re.compile(rf"^\S+: {_SIZE} of {_SIZE} \w+ \({_SIZE}/s\), {_SIZE} [\w ]+\n", re.MULTILINE)
COMMAND = [sys.executable, "-m", "backupd"]


@dataclass(frozen=True, slots=True)
class Finished:
    """What one command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.stdout)

    @property
    def lines(self) -> list[str]:
        """Lines of stdout."""
        return self.stdout.splitlines()


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Runs commands in `directory`, with their state in it too."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        """What every command sees; the suite has no variables of its user's."""
        return {
            **os.environ,
            "BACKUPD_STATE_DIR": str(self.directory / "state"),
            "HOME": str(self.directory),
            "TZ": "Europe/Berlin",
        }

    def create_database(self, name: str, *, rows: int = 2000) -> Path:
        """A database in WAL mode with users, and the revision of its schema."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)")
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("INSERT INTO alembic_version VALUES ('5f3a9b')")
            connection.executemany("INSERT INTO users (name) VALUES (?)", ((f"user {row}",) for row in range(rows)))
        return path

    def run(self, *arguments: str, expect: int | None = None, environ: Mapping[str, str] | None = None) -> Finished:
        """Run one command to its end, without its lines of progress; with `expect`, that has to be its exit code."""
        process = warm.start(arguments, directory=self.directory, environment={**self.environment, **(environ or {})})
        try:
            stdout, stderr = process.communicate(timeout=_PATIENCE_SECONDS)
        finally:
            process.kill()
        result = Finished(process.returncode, stdout, without_progress(stderr))
        assert expect is None or result.code == expect, result
        return result

    @contextmanager
    def started(self, *arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
        """A command in a process group of its own, gone after the block. SIGABRT has it print its stacks."""
        with subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=self.directory,
            env={**self.environment, "PYTHONFAULTHANDLER": "1", **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run_on_terminal(
        self, *arguments: str, answer: str = "", columns: int = 120, environ: Mapping[str, str] | None = None
    ) -> Finished:
        """Run one command with a terminal as stdin, stdout and stderr, and type `answer`. All output is in `stdout`."""
        ours, theirs = pty.openpty()
        os.write(ours, answer.encode())
        environment = {**self.environment, "TERM": "xterm-256color", "COLUMNS": str(columns), **(environ or {})}
        with subprocess.Popen(
            [*COMMAND, *arguments], cwd=self.directory, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        ) as process:
            os.close(theirs)
            output = b""
            # Linux reports the end of a terminal as an input/output error.
            with suppress(OSError):
                while select.select([ours], [], [], _PATIENCE_SECONDS)[0] and (block := os.read(ours, 4096)):
                    output += block
            os.close(ours)
        return Finished(process.returncode, output.decode().replace("\r\n", "\n"), "")


def without_progress(stderr: str) -> str:
    """The lines that do not depend on the machine: a command that takes over two seconds reports its progress."""
    return _PROGRESS.sub("", stderr)


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for `condition`, but not for ever."""
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at, "it did not happen"
        time.sleep(0.002)


def names_in(database: Path) -> list[str]:
    """The users' names in a database."""
    with closing(sqlite3.connect(f"file:{database}?immutable=1", uri=True)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM users ORDER BY id")]
