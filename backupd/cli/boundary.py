"""The one place where errors become lines or JSON, and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import click

from backupd.cli import interrupts, output
from backupd.cli.commands import PROGRAM, backupd
from backupd.errors import BackupdError, ExitCode, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMPLETION_VARIABLE = "_BACKUPD_COMPLETE"


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
    except click.exceptions.NoArgsIsHelpError as error:
        output.print_note(error.format_message(), is_verbatim=True)
        return ExitCode.USAGE
    except click.ClickException as error:
        return _failed(_usage_error(error))
    except BackupdError as error:
        return _failed(error)
    except (KeyboardInterrupt, click.Abort):
        return interrupts.report()
    except BrokenPipeError:
        return ExitCode.DONE
    except Exception as error:  # noqa: BLE001  (the last resort)
        output.print_note(traceback.format_exc().rstrip(), is_verbatim=True)
        return _failed(output.bug(error))


def _run(arguments: list[str]) -> int:
    instruction = os.environ.get(_COMPLETION_VARIABLE)
    if instruction:
        from click.shell_completion import shell_complete  # noqa: PLC0415  (rare)

        return shell_complete(backupd, {}, PROGRAM, _COMPLETION_VARIABLE, instruction)
    with backupd.make_context(PROGRAM, arguments) as context:
        return int(backupd.invoke(context) or ExitCode.DONE)


def _failed(error: BackupdError) -> int:
    try:
        output.print_failure(error)
    except BackupdError as unwritable:
        output.print_error(unwritable)
    return error.exit_code


def _usage_error(error: click.ClickException) -> UsageError:
    """What click found wrong, in our two lines."""
    message = getattr(error, "message", "") if isinstance(error, click.NoSuchOption) else error.format_message()
    likely = getattr(error, "possibilities", None)
    if likely:
        message = error.message
    context = getattr(error, "ctx", None)
    hints = [f"did you mean {' or '.join(likely)}?"] if likely else []
    hints.append(f"see: {context.command_path if context else PROGRAM} --help")
    return UsageError(message[:1].lower() + message[1:].rstrip("."), hint="; ".join(hints).replace("?; ", "? "))
