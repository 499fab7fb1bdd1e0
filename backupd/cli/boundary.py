"""The one place where errors become lines or JSON, and an exit code."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from backupd.cli import interrupts, output
from backupd.cli.commands import PROGRAM, backupd
from backupd.errors import BackupdError, ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMPLETION_VARIABLE = "_BACKUPD_COMPLETE"
_DAY_SECONDS = 86_400


def exit_code_of(arguments: Sequence[str]) -> int:
    """Run the command that `arguments` ask for, report what goes wrong, and give the exit code. Never raises."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            # Names of files need not be text.
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return _run(list(arguments))
    except click.exceptions.Exit as request:
        return request.exit_code
    except (KeyboardInterrupt, click.Abort):
        return interrupts.report()
    except BrokenPipeError:
        return ExitCode.DONE
    except Exception as error:  # noqa: BLE001  (the last resort)
        return _report(error)


def _run(arguments: list[str]) -> int:
    instruction = os.environ.get(_COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete  # noqa: PLC0415  (rare)

        return shell_complete(backupd, {}, PROGRAM, _COMPLETION_VARIABLE, instruction)
    _give_up_impossible_zone()
    with backupd.make_context(PROGRAM, arguments) as context:
        return int(backupd.invoke(context) or ExitCode.DONE)


def _give_up_impossible_zone() -> None:
    """Go by UTC where TZ is a day or more away from it: the C library takes that, and Python fails at every time."""
    if max(abs(time.timezone), abs(time.altzone)) < _DAY_SECONDS:
        return
    output.print_warning(f"TZ={os.environ.get('TZ')} is a day or more from UTC, and is not used: times are in UTC")
    os.environ["TZ"] = "UTC"
    time.tzset()


def _report(error: Exception) -> int:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        output.print_note(error.format_message(), is_verbatim=True)
        return ExitCode.USAGE
    expected = _as_expected(error)
    try:
        output.print_failure(expected)
    except BackupdError as unwritable:
        output.print_error(unwritable)
    return expected.exit_code


def _as_expected(error: Exception) -> BackupdError:
    return _usage_error(error) if isinstance(error, click.ClickException) else output.reported(error)


def _usage_error(error: click.ClickException) -> UsageError:
    """What click found wrong, in our two lines."""
    likely = getattr(error, "possibilities", None)
    # click would put what it suggests behind the message.
    message = error.message if likely else error.format_message()
    context = getattr(error, "ctx", None)
    help_text = f"see: {context.command_path if context else PROGRAM} --help"
    hint = f"did you mean {' or '.join(likely)}? {help_text}" if likely else help_text
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint=hint)
