"""The processes that backupd starts: how, what they may know of it, how long they take, and why one cannot start.

`python -m backupd.children MODULE ARGUMENTS` loads a program and calls its `main`; where it cannot be loaded, it says
so in one line, and ends with the status `NOT_LOADED`.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backupd import errors
from backupd.errors import BackupdError, UsageError, limit_reached
from backupd.trust import way_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Mapping, Sequence

NOT_LOADED = 126
"""The exit status of a child whose program cannot be loaded. A shell says the same of what cannot be run."""

_GONE_WITHIN_SECONDS = 1.0
_NAMES = frozenset(
    ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SQLITE_TMPDIR", "OPENBLAS_NUM_THREADS", "LD_LIBRARY_PATH")
)
# FAKETIME comes with LD_PRELOAD: whoever gives a process another clock or allocator means its children too.
_BEGINNINGS = ("LC_", "PYTHON", "LD_PRELOAD", "FAKETIME")
_INSTALL_ELSEWHERE = (
    "install backupd, with its Python, where that user can read and run it (in /opt or /usr/local, not below /root), "
    "or start it as another user"
)


def child_environment(**more: str) -> dict[str, str]:
    """The variables for a process that only looks at a database, and `more`.

    Those that are needed to run are listed, and not those that are secret: what else the environment holds (keys of
    backupd and of the AWS tools, passwords of the application beside it) nobody here can know.
    """
    passed = {name: value for name, value in os.environ.items() if name in _NAMES or name.startswith(_BEGINNINGS)}
    return {**passed, **more}


def command_of(module: str, *arguments: str) -> list[str]:
    """The command that runs `main` of `module`, a program of backupd."""
    # -P keeps a module of the same name in the current directory from being imported instead of ours.
    return [sys.executable, "-P", "-m", "backupd.children", module, *arguments]


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child; `options` are those of `Popen`. Raises `LimitReachedError` while the system has no room for one.

    Raises `UsageError` where this user cannot run Python, or the program that stands in its place.
    """
    from subprocess import Popen  # noqa: PLC0415  (most commands start none)

    try:
        return Popen(command, **options)  # noqa: S603
    except OSError as error:
        if limit := limit_reached(error):
            raise limit from error
        reject_unreachable_python()
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"uid {os.geteuid()} cannot run {command[0]}: {reason}", hint=_INSTALL_ELSEWHERE) from error


def not_loaded(what: str, reason: str = "it has said above what is missing") -> BackupdError:
    """The error for a child, described as `what`, that ended with `NOT_LOADED`."""
    return UsageError(
        f"{what} could not load its program as uid {os.geteuid()}: {reason}",
        hint=f"install backupd again if something of it is missing; else {_INSTALL_ELSEWHERE}",
    )


class Answer(NamedTuple):
    """What a process wrote, and the status that it ended with, as `Popen.returncode` gives it."""

    status: int
    output: bytes
    last_words: str
    """The last line on stderr."""


def answer_of(command: Sequence[str], *, deadline: float) -> Answer:
    """Run `command` to its end. Raises TimeoutError when that takes longer than `deadline`, in seconds.

    The process is ended then, as `end` says. Raises what `start` does, and `UsageError` when the program could not be
    loaded.
    """
    import subprocess  # noqa: PLC0415  (most commands start none)

    process = start(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        process_group=0,
    )
    try:
        output, told = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    finally:
        end(process)
    last_words = told.decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode == NOT_LOADED:
        raise not_loaded("a process that looks at a database", last_words)
    return Answer(process.returncode, output, last_words)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child if it still runs, and close its pipes. Repeatable.

    One that waits for a dead disk cannot die, and is left behind after a second.
    """
    from subprocess import TimeoutExpired  # noqa: PLC0415  (most commands start none)

    process.kill()
    with suppress(TimeoutExpired):
        process.wait(_GONE_WITHIN_SECONDS)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def error_as_json(error: BackupdError) -> dict[str, Any]:
    """An error as a child tells it to its parent, which raises `error_from_json` of it."""
    return {"error": type(error).__name__, "message": error.message, "hint": error.hint}


def error_from_json(values: Mapping[str, Any]) -> BackupdError:
    """The error in what a child has answered; other keys do not matter."""
    kind: type[BackupdError] = getattr(errors, values["error"])
    return kind(values["message"], hint=values["hint"])


def failure_of(process: str, error: Exception) -> BackupdError:
    """An unexpected exception in a child, described as `process`, as an error: a limit of this machine, or else a bug.

    The traceback of a bug goes to stderr.
    """
    if limit := limit_reached(error):
        return limit
    traceback.print_exception(error)
    return BackupdError(
        f"{process} failed: {type(error).__name__}: {error}", hint="please report it with the lines above"
    )


def reject_unreachable_python() -> None:
    """Raise `UsageError` where this user, who may just have become another one, cannot run backupd once more."""
    for path, right, verb in ((sys.executable, os.X_OK, "run"), (__file__, os.R_OK, "read")):
        if not os.access(path, right):
            closed = _closed_directory(path)
            raise UsageError(
                f"uid {os.geteuid()} cannot {verb} {path}" + (f": {closed} is closed to it" if closed else ""),
                hint=_INSTALL_ELSEWHERE,
            )


def _closed_directory(path: str) -> Path | None:
    """The first directory on the way to what `path` leads to that this user may not enter."""
    way = reversed(Path(way_of(path).real).parents)
    return next((directory for directory in way if not os.access(directory, os.X_OK)), None)


def main() -> None:
    """Run the program that the first argument names; its own arguments follow."""
    module = sys.argv.pop(1)
    try:
        program = importlib.import_module(module)
    except (ImportError, OSError) as error:
        sys.stderr.write(f"{module} cannot be loaded by uid {os.geteuid()}: {type(error).__name__}: {error}\n")
        sys.exit(NOT_LOADED)
    program.main()


if __name__ == "__main__":
    main()
