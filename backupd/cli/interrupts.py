"""Ctrl-C, SIGTERM and a closed terminal: clean up, say so, and be gone within seconds, whatever hangs.

Imports nothing that takes time, so that it can come first.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from backupd.cli import output
from backupd.errors import InterruptedByUserError

if TYPE_CHECKING:
    from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANUP_SECONDS = 2.5
_SHOW_CURSOR = "\x1b[?25h"


def raise_on_signals() -> None:
    """Let each signal that would end the process raise KeyboardInterrupt, once; those that are ignored stay ignored.

    When the blocks that the exception leaves have not finished within 2.5 s, the process ends all the same.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # A second Ctrl-C must not break off the cleaning up after the first.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # A timer of the kernel, not a thread: threads take locks that the interrupted code may hold.
    signal.signal(signal.SIGALRM, _leave_unfinished)
    signal.setitimer(signal.ITIMER_REAL, _CLEANUP_SECONDS)
    raise KeyboardInterrupt


def _leave_unfinished(_number: int, _frame: FrameType | None) -> NoReturn:
    leave(report())


def report() -> int:
    """Say that the run was interrupted; its exit code."""
    if sys.stderr is not None and sys.stderr.isatty():
        # A progress bar that could not end properly has hidden the cursor.
        sys.stderr.write(f"{_SHOW_CURSOR}\n")
    error = InterruptedByUserError(
        "interrupted", hint="nothing half-done is listed or in place; the same command starts again"
    )
    output.print_failure(error)
    return error.exit_code


def leave(code: int) -> NoReturn:
    """End the process now. Threads that wait for a store that does not answer would hold up a normal exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
