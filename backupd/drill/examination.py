"""Let SQLite look through a restored image, in a process of its own that can be ended at any moment."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from backupd.children import NOT_LOADED, child_environment, command_of, end, not_loaded, start
from backupd.errors import BackupdError, BusyError, LimitReachedError, TargetUnwritableError
from backupd.live.soundness import Soundness

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_TICK_SECONDS = 0.1


def examine(file: Path, *, deadline: float, should_stop: Callable[[], None]) -> Soundness:
    """What SQLite finds in the image `file`, beside which scratch may be written; `deadline` is in seconds.

    Raises `BusyError` after the deadline, `TargetUnwritableError` when the image cannot be read for reasons of this
    machine, `BackupdError` when the process ends unasked, and what `should_stop` raises.
    """
    answer = file.with_name("soundness.json")
    command = command_of("backupd.live.soundness", str(file))
    give_up_at = time.monotonic() + deadline
    with answer.open("wb") as output:
        # In a process group of its own: Ctrl-C goes to the whole group, and this one decides what becomes of it.
        process = start(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            env=child_environment(SQLITE_TMPDIR=str(file.parent)),
            process_group=0,
        )
    try:
        while process.poll() is None:
            should_stop()
            if time.monotonic() > give_up_at:
                raise BusyError(
                    f"SQLite did not look through the restored database within {deadline:.0f} s",
                    hint="raise capture.deadline, or find out what slows down the disk of the state directory",
                )
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(_TICK_SECONDS, deadline))
    finally:
        end(process)
    return _read(answer, process.returncode)


def _read(answer: Path, status: int) -> Soundness:
    if status == NOT_LOADED:
        raise not_loaded("the process in which SQLite looks through the restored database")
    if status:
        kind = LimitReachedError if -status in {signal.SIGKILL, signal.SIGABRT} else BackupdError
        raise kind(
            f"the process in which SQLite looked through the restored database ended with status {status}",
            hint="memory may have run out, or the database made SQLite crash; drill an older snapshot to compare",
        )
    values = json.loads(answer.read_text(encoding="utf-8"))
    if "failure" in values:
        raise TargetUnwritableError(
            f"the restored database cannot be read from the state directory: {values['failure']}",
            hint="look at the memory and the disk of this machine; nothing is known about the database",
        )
    return Soundness(**values)
