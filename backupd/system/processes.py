"""Processes: how children start, which variables they get, how they end, why one could not start; and the own heap.

`python -m backupd.system.processes MODULE ARGUMENTS` imports a program and calls its `main`. When it cannot be
imported, it prints one line and exits with `NOT_LOADED`.
"""

from __future__ import annotations

import importlib
import os
import select
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from backupd import errors
from backupd.errors import BackupdError, UsageError, limit_reached
from backupd.system.trust import way_of

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping, Sequence

NOT_LOADED = 126
"""The exit status of a child whose program cannot be loaded; shells use it for what cannot be run."""

_GONE_WITHIN_SECONDS = 1.0
_READ_BYTES = 1 << 16
_M_ARENA_MAX = -8
_PASSED_NAMES = frozenset(
    ("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "SQLITE_TMPDIR", "OPENBLAS_NUM_THREADS", "LD_LIBRARY_PATH")
)
# FAKETIME comes with LD_PRELOAD: another clock or allocator is meant for the children too.
_PASSED_PREFIXES = ("LC_", "PYTHON", "LD_PRELOAD", "FAKETIME")
_INSTALL_ELSEWHERE = (
    "install backupd, with its Python, where that user can read and run it (in /opt or /usr/local, not below /root), "
    "or start it as another user"
)


def use_one_heap() -> None:
    """Let all threads allocate from one heap, whose free end goes back to the system; call this before there are any.

    By itself glibc gives each thread a heap that it never shrinks by less than twice the largest buffer: after a drill
    of any size that is 34 MB, for as long as the process lives. Source: mallopt(3), M_ARENA_MAX and M_TRIM_THRESHOLD.
    """
    import ctypes  # noqa: PLC0415  (most programs never need it)

    with suppress(AttributeError, OSError):  # another C library, which has no such heaps
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def child_environment(**more: str) -> dict[str, str]:
    """Return the variables for a process that only reads a database, and `more`.

    Only variables that are needed to run are passed: others may be secrets, such as keys of backupd and of the AWS
    tools, or passwords of the application.
    """
    passed = {
        name: value for name, value in os.environ.items() if name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
    }
    return {**passed, **more}


def command_of(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main` of `module`, a program of backupd."""
    # -P prevents the import of modules with the same names from the current directory.
    return [sys.executable, "-P", "-m", "backupd.system.processes", module, *arguments]


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a child; `options` are those of `Popen`. Raises `LimitReachedError` at a limit of the system.

    Raises `UsageError` when this user cannot run Python, or the program in its place.
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


def start_with_pipes(module: str) -> subprocess.Popen[bytes]:
    """Start `module`, a program of backupd, with pipes to its stdin and from its stdout. Raises as `start` does.

    It is in a process group of its own: Ctrl-C goes to the whole group, and the parent decides when the child ends.
    """
    from subprocess import PIPE  # noqa: PLC0415  (most commands start none)

    return start(command_of(module), stdin=PIPE, stdout=PIPE, env=child_environment(), process_group=0)


def lines_of(
    pipe: IO[bytes], *, tick_seconds: float, on_read: Callable[[], None] = lambda: None
) -> Iterator[bytes | None]:
    """Yield each line that comes through `pipe` until its end, and None every `tick_seconds` while none comes.

    `on_read` is called when something was read, be it only a part of a line.
    """
    descriptor = pipe.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    rest = b""
    while True:
        if not poll.poll(tick_seconds * 1000):
            yield None
            continue
        chunk = os.read(descriptor, _READ_BYTES)
        if not chunk:
            return
        on_read()
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def not_loaded(what: str, reason: str = "the lines above say what is missing") -> BackupdError:
    """Return the error for a child, described as `what`, that ended with `NOT_LOADED`."""
    return UsageError(
        f"{what} could not load its program as uid {os.geteuid()}: {reason}",
        hint=f"install backupd again if parts of it are missing; otherwise {_INSTALL_ELSEWHERE}",
    )


class Answer(NamedTuple):
    """The output of a process, and its exit status, as `Popen.returncode` gives it."""

    status: int
    output: bytes
    last_words: str
    """The last line on stderr."""


def answer_of(command: Sequence[str], *, deadline: float) -> Answer:
    """Run `command` to its end. Raises TimeoutError after `deadline` seconds, when it ends the process, as `end` does.

    Raises the errors of `start`, and `UsageError` when the program could not be loaded.
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
        output, messages = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    finally:
        end(process)
    last_words = messages.decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode == NOT_LOADED:
        raise not_loaded("a process that reads a database", last_words)
    return Answer(process.returncode, output, last_words)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child if it still runs, and close its pipes. Repeatable.

    A process that waits for a dead disk cannot end; it is left behind after a second.
    """
    from subprocess import TimeoutExpired  # noqa: PLC0415  (most commands start none)

    process.kill()
    with suppress(TimeoutExpired):
        process.wait(_GONE_WITHIN_SECONDS)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def error_as_json(error: BackupdError) -> dict[str, Any]:
    """Return an error as a child sends it to its parent, which raises `error_from_json` of it."""
    return {"error": type(error).__name__, "message": error.message, "hint": error.hint}


def error_from_json(values: Mapping[str, Any]) -> BackupdError:
    """Return the error in a child's answer, whose other keys are ignored."""
    kind: type[BackupdError] = getattr(errors, values["error"])
    return kind(values["message"], hint=values["hint"])


def failure_of(process: str, error: Exception) -> BackupdError:
    """Translate an unexpected exception in a child, described as `process`; the traceback of a bug goes to stderr."""
    if limit := limit_reached(error):
        return limit
    traceback.print_exception(error)
    return BackupdError(
        f"{process} failed: {type(error).__name__}: {error}", hint="please report it with the lines above"
    )


def reject_unreachable_python() -> None:
    """Raise `UsageError` when this user, who may have changed since the start, cannot run backupd again."""
    for path, right, verb in ((sys.executable, os.X_OK, "run"), (__file__, os.R_OK, "read")):
        if not os.access(path, right):
            closed = _closed_directory(path)
            raise UsageError(
                f"uid {os.geteuid()} cannot {verb} {path}" + (f": {closed} is not accessible to it" if closed else ""),
                hint=_INSTALL_ELSEWHERE,
            )


def _closed_directory(path: str) -> Path | None:
    """Return the first directory on the way to the target of `path` that this user may not enter."""
    way = reversed(Path(way_of(path).real).parents)
    return next((directory for directory in way if not os.access(directory, os.X_OK)), None)


def main() -> None:
    """Run the program named by the first argument, with the arguments after it."""
    module = sys.argv.pop(1)
    try:
        program = importlib.import_module(module)
    except (ImportError, OSError) as error:
        sys.stderr.write(f"{module} cannot be loaded by uid {os.geteuid()}: {type(error).__name__}: {error}\n")
        sys.exit(NOT_LOADED)
    program.main()


if __name__ == "__main__":
    main()
