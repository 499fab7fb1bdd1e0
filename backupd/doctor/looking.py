"""The parent's side of a look at one database: start the child, and do not wait for it for ever."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from backupd.children import NOT_LOADED, child_environment, command_of, not_loaded, start
from backupd.doctor.look import DatabaseLook
from backupd.errors import BackupdError, BusyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CHILD = command_of("backupd.doctor.child")
_GONE_WITHIN_SECONDS = 1.0


def look_at(path: Path, *, lock_timeout: float, deadline: float, command: Sequence[str] = _CHILD) -> DatabaseLook:
    """What a process like the one that captures finds at `path`. Times are in seconds.

    Raises `BusyError` past the deadline, `BackupdError` when the process failed, and what `children.start` raises.
    `command` is what looks.
    """
    process = start(
        [*command, os.fspath(path), str(lock_timeout)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
        process_group=0,
    )
    try:
        output, told = process.communicate(timeout=deadline)
    except subprocess.TimeoutExpired as error:
        raise _hangs(path, deadline) from error
    finally:
        _end(process)
    if process.returncode:
        reason = told.decode(errors="replace").strip().rpartition("\n")[2] or f"status {process.returncode}"
        if process.returncode == NOT_LOADED:
            raise not_loaded(f"the process that looks at {path}", reason)
        raise BackupdError(
            f"the process that looks at {path} failed: {reason}", hint="please report it with the line above"
        )
    return DatabaseLook.from_values(json.loads(output))


def _hangs(path: Path, deadline: float) -> BusyError:
    return BusyError(
        f"{path} could not be looked at within {deadline:g} s",
        hint="its file system or disk seems to hang: try `ls` on its directory, and look at the system log",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and close its pipes; one that waits for a dead disk cannot die, and is left behind."""
    process.kill()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_GONE_WITHIN_SECONDS)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
