"""The parent's side of a look at one database: start the child, and do not wait for it for ever."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from backupd.capture.limits import looked_at
from backupd.children import command_of
from backupd.doctor.look import DatabaseLook

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_CHILD = command_of("backupd.doctor.child")


def look_at(
    path: Path, *, lock_timeout: float, max_lock: float, deadline: float, command: Sequence[str] = _CHILD
) -> DatabaseLook:
    """What a process like the one that captures finds at `path`. Times are in seconds.

    `command` is what looks. Raises as `limits.looked_at`.
    """
    text = os.fspath(path)
    looked = [*command, text, str(lock_timeout), str(max_lock)]
    return DatabaseLook.from_values(looked_at(text, looked, max_lock=max_lock, deadline=deadline))
