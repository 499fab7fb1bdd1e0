"""The parent's side of a look at one database: start the child, and do not wait for it for ever."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

from backupd.capture.limits import held_too_long
from backupd.children import answer_of, command_of
from backupd.doctor.look import DatabaseLook
from backupd.errors import BackupdError, BusyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CHILD = command_of("backupd.doctor.child")


def look_at(
    path: Path, *, lock_timeout: float, max_lock: float, deadline: float, command: Sequence[str] = _CHILD
) -> DatabaseLook:
    """What a process like the one that captures finds at `path`. Times are in seconds.

    Raises `BusyError` past the deadline, or when writers would have waited for longer than `max_lock`, and
    `BackupdError` when the process failed. `command` is what looks.
    """
    try:
        answer = answer_of([*command, os.fspath(path), str(lock_timeout), str(max_lock)], deadline=deadline)
    except TimeoutError as error:
        raise _hangs(path, deadline) from error
    if answer.status == -signal.SIGALRM:
        raise held_too_long(os.fspath(path), max_lock)
    if answer.status:
        raise BackupdError(
            f"the process that looks at {path} failed: {answer.last_words or f'status {answer.status}'}",
            hint="please report it with the line above",
        )
    return DatabaseLook.from_values(json.loads(answer.output))


def _hangs(path: Path, deadline: float) -> BusyError:
    return BusyError(
        f"{path} could not be looked at within {deadline:g} s",
        hint="its file system or disk seems to hang: try `ls` on its directory, and look at the system log",
    )
