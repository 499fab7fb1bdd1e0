"""The command line: each verb has a file that parses, calls a use case, and prints.

Here is how its process starts, is interrupted and ends, and the one place where errors become lines or JSON, and an
exit code. `--help` and completion must answer at once, so only click and the errors are imported before a verb runs;
click itself is imported when signals are handled already.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from backupd.cli import output
from backupd.errors import (
    BackupdError,
    ExitCode,
    InterruptedByUserError,
    LimitReachedError,
    UsageError,
    as_backupd_error,
    limit_reached,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    import click

_PRIVATE_UMASK = 0o077
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEANUP_SECONDS = 2.5
_SHOW_CURSOR = "\x1b[?25h"
_COMPLETION_VARIABLE = "_BACKUPD_COMPLETE"
_DAY_SECONDS = 86_400
_received: list[int] = []
_reserve = [bytes(1 << 20)]
"""Memory to report a failure with when there is none: given back before. Never written to, so it costs only address
space."""


def run_and_exit() -> NoReturn:
    """Run the command line of this process and leave with its exit code."""
    # Every file that a snapshot makes holds content of the database, or describes it.
    os.umask(_PRIVATE_UMASK)
    # numpy's linear algebra would start a thread per core that only spins, and page maps do not use it.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _raise_on_signals()
    try:
        code = exit_code_of(sys.argv[1:])
    except KeyboardInterrupt:
        code = _report_interrupt()
    except (ImportError, MemoryError, OSError, SystemError) as error:
        _reserve.clear()
        limit = limit_reached(error)
        if limit is None:
            raise
        output.print_failure(limit)
        code = limit.exit_code
    _leave(code)


def _raise_on_signals() -> None:
    """Let each signal that would end the process raise KeyboardInterrupt, once; those that are ignored stay ignored.

    When the blocks that the exception leaves have not finished within 2.5 s, the process ends anyway.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    _received.append(number)
    sys.unraisablehook = lambda _: None  # reports of a swallowed KeyboardInterrupt
    # A second Ctrl-C must not break off the cleaning up after the first.
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    # A timer of the kernel, not a thread: threads take locks that the interrupted code may hold.
    signal.signal(signal.SIGALRM, _leave_unfinished)
    signal.setitimer(signal.ITIMER_REAL, _CLEANUP_SECONDS)
    raise KeyboardInterrupt


def _leave_unfinished(_number: int, _frame: FrameType | None) -> NoReturn:
    _leave(_report_interrupt())


def _report_interrupt() -> int:
    """Report that the run was interrupted; the exit code for that."""
    if sys.stderr is not None and sys.stderr.isatty():
        # A progress bar that could not end properly has hidden the cursor.
        sys.stderr.write(f"{_SHOW_CURSOR}\n")
    error = InterruptedByUserError(
        "interrupted", hint="nothing half-done is listed or in place; the same command starts again"
    )
    output.print_failure(error)
    return error.exit_code


def _leave(code: int) -> NoReturn:
    """End the process now. Threads that wait for a store that does not answer would hold up a normal exit."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def exit_code_of(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` ask for, report what goes wrong, and give the exit code.

    Raises nothing once click is imported.
    """
    import click

    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # Names of files need not be text.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return _run(list(arguments))
    except click.exceptions.Exit as request:
        return request.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _report_interrupt()
    except BrokenPipeError:
        return ExitCode.DONE
    except Exception as error:  # noqa: BLE001  (the last resort)
        _reserve.clear()
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            output.print_note(error.format_message(), is_verbatim=True)
            return ExitCode.USAGE
        return _report(_usage_error(error) if isinstance(error, click.ClickException) else reported(error))


def _run(arguments: list[str]) -> int:
    from backupd.cli.verbs import PROGRAM, backupd

    instruction = os.environ.get(_COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete  # rare

        return shell_complete(backupd, {}, PROGRAM, _COMPLETION_VARIABLE, instruction)
    _reject_impossible_zone()
    with backupd.make_context(PROGRAM, arguments) as context:
        return int(backupd.invoke(context) or ExitCode.DONE)


def _reject_impossible_zone() -> None:
    """Use UTC where TZ is a day or more away from it: the C library accepts that, and Python fails at every time."""
    if max(abs(time.timezone), abs(time.altzone)) < _DAY_SECONDS:
        return
    output.print_warning(f"TZ={os.environ.get('TZ')} is a day or more from UTC, and is not used: times are in UTC")
    os.environ["TZ"] = "UTC"
    time.tzset()


def _report(error: BackupdError) -> int:
    try:
        output.print_failure(error)
    except BackupdError as unwritable:
        output.print_error(unwritable)
    return error.exit_code


def _usage_error(error: click.ClickException) -> UsageError:
    """A mistake that click has found, as an error and a hint."""
    likely = getattr(error, "possibilities", None)
    # click would put what it suggests behind the message.
    message = error.message if likely else error.format_message()
    context = getattr(error, "ctx", None)
    help_text = f"see: {context.command_path if context else 'backupd'} --help"
    hint = f"did you mean {' or '.join(likely)}? {help_text}" if likely else help_text
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=hint)


def reported(error: Exception) -> BackupdError:
    """The error itself if it was expected; otherwise a limit of this machine, or a bug, whose traceback is printed."""
    known = as_backupd_error(error)
    if known is error or isinstance(known, LimitReachedError):
        return known
    if _received:  # a library may swallow what a handler raises within it, and fail otherwise
        raise KeyboardInterrupt from error
    if isinstance(error, ImportError) and not (error.name or "").startswith("backupd"):
        from backupd.system.processes import not_loaded  # rare

        return not_loaded("backupd", f"{type(error).__name__}: {error}")
    output.print_note("".join(traceback.format_exception(error)).rstrip(), is_verbatim=True)
    return known
