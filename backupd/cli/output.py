"""What reaches the user: results or one JSON document on stdout, all else on stderr.

Imports nothing that takes time.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import traceback
from typing import TYPE_CHECKING, Any

from backupd.errors import BackupdError, LimitReachedError, TargetUnwritableError, expected
from backupd.logs import printable as printable  # noqa: PLC0414  (for all that print)
from backupd.masking import masked, masked_values

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_COMMAND_WITH_STORE = re.compile(r"\bbackupd (?:now|list|show|verify|restore|undo|prune|forget|undelete)\b(?! --help)")

_unusual_stores: list[str] = []


def remember_unusual_stores(urls: Iterable[str]) -> None:
    """Take the URLs of the stores that this run uses, and that no command uses without being told to: for hints."""
    _unusual_stores[:] = urls


def wants_json() -> bool:
    """Whether this process was asked for JSON; holds when the command line cannot be parsed, too."""
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def print_result(text: str) -> None:
    """Write lines to stdout at once, with secrets masked.

    A reader that went away, such as `head`, is no error. Raises `TargetUnwritableError` when stdout is full.
    """
    _write_result(masked(text))


def _write_result(text: str) -> None:
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
    """Write the one JSON object of this run to stdout, with secrets masked in its values."""
    _write_result(json.dumps(masked_values(document), indent=2))


def print_failure(error: BackupdError) -> None:
    """Report the error that ended the run: as JSON if that was asked for, else (or without stdout) by `print_error`."""
    if wants_json() and sys.stdout is not None:
        print_document({"error": error_values(error)})
    else:
        print_error(error)


def print_error(error: BackupdError, *, subject: str | None = None, store: str | None = None) -> None:
    """Write an `error:` line, with `subject` in front of the message, and the `hint:` line (`store` as there)."""
    print_note(f"error: {subject}: {error.message}" if subject else f"error: {error.message}")
    if error.hint:
        print_hint(error.hint, store=store)


def print_warning(message: str) -> None:
    """Write a `warning:` line to stderr."""
    print_note(f"warning: {message}")


def print_hint(hint: str, *, store: str | None = None) -> None:
    """Write a `hint:` line to stderr; `store` is the URL of the store that it is about, if it is about one."""
    print_note(f"hint: {completed_hint(hint, store=store)}")


def completed_hint(hint: str, *, store: str | None = None) -> str:
    """`hint` with commands that work as they stand: with --store, where they would not find the store of this run."""
    if store is None and len(_unusual_stores) == 1:
        store = _unusual_stores[0]
    if store not in _unusual_stores:
        return hint
    option = f" --store {shlex.quote(store)}"
    return _COMMAND_WITH_STORE.sub(lambda command: command[0] + option, hint)


def print_note(text: str, *, is_verbatim: bool = False) -> None:
    """Write one line to stderr, or several with `is_verbatim`, with secrets masked.

    Nothing can be done about a stderr that is closed.
    """
    if sys.stderr is None:
        return
    text = masked(text)
    try:
        sys.stderr.write((text if is_verbatim else printable(text)) + "\n")
        sys.stderr.flush()
    except OSError:
        return


def error_values(error: BackupdError, *, store: str | None = None) -> dict[str, Any]:
    """An error as JSON shows it; `store` as for `print_hint`."""
    hint = None if error.hint is None else completed_hint(error.hint, store=store)
    return {**error.values(), "hint": hint}


def reported(error: Exception) -> BackupdError:
    """The error itself if it was expected; else a limit of this machine, or a bug, whose traceback goes to stderr."""
    known = expected(error)
    if known is error or isinstance(known, LimitReachedError):
        return known
    if isinstance(error, ImportError) and not (error.name or "").startswith("backupd"):
        from backupd.children import not_loaded  # noqa: PLC0415  (rare)

        return not_loaded("backupd", f"{type(error).__name__}: {error}")
    print_note("".join(traceback.format_exception(error)).rstrip(), is_verbatim=True)
    return known


def _discard_stdout() -> None:
    """Do without stdout from now on; what is still buffered goes nowhere instead of failing once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    sys.stdout = None
