"""What reaches the user: results or one JSON document on stdout, all else on stderr.

Imports nothing that takes time.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from backupd.errors import BackupdError, ExitCode, TargetUnwritableError

if TYPE_CHECKING:
    from collections.abc import Mapping


def wants_json() -> bool:
    """Whether this process was asked for JSON; holds when the command line cannot be parsed, too."""
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def print_result(text: str) -> None:
    """Write lines to stdout at once.

    A reader that went away, such as `head`, is no error. Raises `TargetUnwritableError` when stdout is full.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError as error:
        _discard_stdout()
        raise TargetUnwritableError(
            f"standard output cannot be written: {error.strerror}",
            hint="the work itself was done; check with: backupd list",
        ) from error


def print_document(document: Mapping[str, Any]) -> None:
    """Write the one JSON object of this run to stdout."""
    print_result(json.dumps(document, indent=2))


def print_failure(error: BackupdError) -> None:
    """Report the error that ended the run: as JSON if that was asked for, else (or without stdout) by `print_error`."""
    if wants_json() and sys.stdout is not None:
        print_document({"error": error_values(error)})
    else:
        print_error(error)


def print_error(error: BackupdError, *, subject: str | None = None) -> None:
    """Write an `error:` line, with `subject` in front of the message, and the `hint:` line to stderr."""
    print_note(f"error: {subject}: {error.message}" if subject else f"error: {error.message}")
    if error.hint:
        print_note(f"hint: {error.hint}")


def print_warning(message: str) -> None:
    """Write a `warning:` line to stderr."""
    print_note(f"warning: {message}")


def print_note(text: str, *, is_verbatim: bool = False) -> None:
    """Write one line to stderr, or several with `is_verbatim`; nothing can be done about one that is closed."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write((text if is_verbatim else printable(text)) + "\n")
        sys.stderr.flush()
    except OSError:
        return


def error_values(error: BackupdError) -> dict[str, Any]:
    """An error as JSON shows it."""
    return {"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}


def printable(text: str) -> str:
    """`text` on one line: file names and stores can bring line breaks and commands for the terminal with them."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def bug(error: Exception) -> BackupdError:
    """What an unexpected exception is told as."""
    assert BackupdError.exit_code is ExitCode.BUG  # noqa: S101
    return BackupdError(
        f"this is a bug in backupd: {type(error).__name__}: {error}",
        hint="please report it with the lines above; what is listed can still be restored",
    )


def _discard_stdout() -> None:
    """Do without stdout from now on; what is still buffered goes nowhere instead of failing once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    sys.stdout = None
