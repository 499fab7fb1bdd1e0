"""Output for the user: results, tables or one JSON document on stdout, everything else and progress on stderr.

Imports nothing that takes time.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
import time
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from backupd.errors import (
    BackupdError,
    TargetUnwritableError,
    masked,
    masked_values,
)
from backupd.logs import printable as printable  # noqa: PLC0414  (for all that print)
from backupd.quantities import age as age  # noqa: PLC0414
from backupd.quantities import count as count  # noqa: PLC0414
from backupd.quantities import local_time as local_time  # noqa: PLC0414
from backupd.quantities import seconds as seconds  # noqa: PLC0414
from backupd.quantities import size as size  # noqa: PLC0414
from backupd.quantities import utc_time as utc_time  # noqa: PLC0414

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

_COMMAND_WITH_STORE = re.compile(
    r"\bbackupd (?:now|list|show|query|dump|diff|recover|verify|restore|undo|prune|forget|undelete)\b(?! --help)"
)

_COMMANDS_IN_DATA = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_MOST_DRAWN_ROWS = 500
_UNBOUNDED_WIDTH = 100_000
_SIMPLE_HEAD_IN_ASCII = "    \n    \n -- \n    \n    \n    \n    \n    \n"
_QUIET_START_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 5.0

Cells: TypeAlias = tuple[str, ...]
Group: TypeAlias = tuple[str, "Sequence[Cells]"]

_unusual_stores: list[str] = []


def remember_unusual_stores(urls: Iterable[str]) -> None:
    """Keep the URLs of the stores that only --store has chosen: the commands in hints need the option too."""
    _unusual_stores[:] = urls


def wants_json() -> bool:
    """Whether the command line asks for JSON, even if it cannot be parsed."""
    arguments = sys.argv[1:]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def print_result(text: str) -> None:
    """Write lines to stdout at once, with secrets masked.

    A reader that went away, such as `head`, is no error. Raises `TargetUnwritableError` when stdout is full.
    """
    _write_result(masked(text))


def print_line(text: str) -> None:
    """Write one line to stdout with `print_result`, with characters escaped that are not printable."""
    print_result(printable(text))


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


def write_data(parts: Iterable[str]) -> None:
    """Write content of a database to stdout as it is, in UTF-8; on a terminal, with characters escaped that command it.

    Secrets are not masked: the data would be another one. A reader that went away ends it, and is no error. Raises
    `TargetUnwritableError` when stdout is full.
    """
    if sys.stdout is None:
        return
    is_terminal = sys.stdout.isatty()
    try:
        for part in parts:
            text = _COMMANDS_IN_DATA.sub(lambda found: ascii(found[0])[1:-1], part) if is_terminal else part
            sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _discard_stdout()
    except OSError as error:
        _discard_stdout()
        raise TargetUnwritableError(
            f"standard output cannot be written: {error.strerror}", hint="free some space, or write elsewhere"
        ) from error


def print_data(text: str) -> None:
    """Write lines to stdout at once as `write_data` does: made of content of a database, which is not masked."""
    write_data([text, "\n"])


def print_document(document: Mapping[str, Any]) -> None:
    """Write the one JSON object of this run to stdout, with secrets masked in its values."""
    import msgspec

    # Python's own encoder takes twenty times as long when it has to indent, which is a second for 10,000 snapshots.
    _write_result(msgspec.json.format(json.dumps(masked_values(document)), indent=2))


def print_failure(error: BackupdError) -> None:
    """Report the error that ended the run: as JSON if the command line asks for it, otherwise by `print_error`."""
    if wants_json() and sys.stdout is not None:
        print_document({"error": error_values(error)})
    else:
        print_error(error)


def print_error(error: BackupdError, *, subject: str | None = None, store: str | None = None) -> None:
    """Write an `error:` line, with `subject` in front of the message, and its `hint:` line (see `print_hint`)."""
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
    """A hint whose commands work as they stand: with --store where they would not find the store of this run."""
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
    """An error in JSON documents; `store` is the URL of the store that its hint is about, if it is about one."""
    hint = None if error.hint is None else completed_hint(error.hint, store=store)
    return {**error.values(), "hint": hint}


def _discard_stdout() -> None:
    """Give stdout up: what is still buffered is discarded instead of failing once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    sys.stdout = None


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def is_unicode() -> bool:
    """Whether stdout shows characters that are not ASCII.

    Python writes UTF-8 where the locale is called C; a user who asked for that may have a terminal that shows no such
    characters. In a container no locale is set at all, and the terminal is that of the host.
    """
    if sys.stdout is None or not (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf"):
        return False
    return (os.environ.get("LC_ALL") or os.environ.get("LANG")) not in {"C", "POSIX"}


def columns() -> int:
    """The width of the terminal, or what COLUMNS says."""
    return shutil.get_terminal_size().columns


def table(
    headings: Sequence[str],
    groups: Sequence[Group],
    *,
    lines: Sequence[Sequence[str]] = (),
    colours: Mapping[str, str] | None = None,
) -> str:
    """A table for each group, under its title: drawn by rich on a terminal, otherwise aligned columns. No cell is cut.

    A heading that begins with `>` has its column aligned to the right. On a terminal, `lines` of each group stand
    between its title and its table; `colours` names the characters in them that have a colour.
    """
    clean = [(printable(title), [tuple(map(printable, row)) for row in rows]) for title, rows in groups]
    if is_terminal():
        return _drawn(headings, clean, lines or [()] * len(clean), colours or {})
    return _aligned(headings, clean)


def _aligned(headings: Sequence[str], groups: Sequence[Group]) -> str:
    lines = iter(_aligned_rows(headings, [row for _, rows in groups for row in rows]))
    heading = next(lines)
    blocks = ("\n".join([title, heading, *islice(lines, len(rows))]) for title, rows in groups)
    return "\n\n".join(blocks)


def _aligned_rows(headings: Sequence[str], rows: Sequence[Cells]) -> Iterator[str]:
    """Yield the headings and the rows as lines with aligned columns."""
    heading = tuple(text.removeprefix(">") for text in headings)
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    for row in (heading, *rows):
        cells = (
            cell.rjust(width) if text.startswith(">") else cell.ljust(width)
            for cell, width, text in zip(row, widths, headings, strict=True)
        )
        yield "  ".join(cells).rstrip()


def _drawn(
    headings: Sequence[str], groups: Sequence[Group], lines: Sequence[Sequence[str]], colours: Mapping[str, str]
) -> str:
    from rich.box import SIMPLE_HEAD, Box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = Console()
    box = SIMPLE_HEAD if is_unicode() else Box(_SIMPLE_HEAD_IN_ASCII, ascii=True)
    tables: list[Table | Text] = []
    for _, rows in groups:
        if len(rows) > _MOST_DRAWN_ROWS:  # rich takes a millisecond for each
            tables.append(Text("\n".join(_aligned_rows(headings, rows)), no_wrap=True))
            continue
        table = Table(box=box, pad_edge=False)
        for text in headings:
            justify = "right" if text.startswith(">") else "left"
            table.add_column(text.removeprefix(">"), justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for row in rows:
            table.add_row(*map(Text, row))
        tables.append(table)
    unbounded = terminal.options.update(max_width=_UNBOUNDED_WIDTH)
    widest = max(terminal.measure(table, options=unbounded).maximum for table in tables)
    # Wider than the terminal breaks lines, which is ugly; rich's alternative would be to cut ids, which is useless.
    console = Console(
        file=io.StringIO(), width=max(terminal.width, widest), force_terminal=True, no_color=terminal.no_color
    )
    with console.capture() as captured:
        for (title, _), under_title, part in zip(groups, lines, tables, strict=True):
            console.print(Text(title), soft_wrap=True)
            for line in under_title:
                shown = Text(line)
                for colour, characters in colours.items():
                    shown.highlight_regex(f"[{re.escape(characters)}]", colour)
                console.print(shown, soft_wrap=True)
            console.print(part)
    return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


class Report(Protocol):
    """A callback for progress: bytes of the image done, bytes in all (0: not known yet), and bytes moved."""

    def __call__(self, done_bytes: int, image_bytes: int, moved_bytes: int) -> None:
        """Report progress, from any thread, but from one at a time."""


@contextmanager
def shown_progress(subject: str, *, done: str, moved: str, is_quiet: bool) -> Iterator[Report]:
    """Show what is reported while the block runs. `done` and `moved` say what happened to the bytes: "captured"."""
    if is_quiet or sys.stderr is None:
        yield lambda done_bytes, image_bytes, moved_bytes: None  # noqa: ARG005
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(subject, moved) as report:
            yield report
    else:
        yield ProgressLines(subject, done=done, moved=moved, write=print_note, clock=time.monotonic)


class ProgressLines:
    """Writes a line at most every five seconds, and none in the first two: most runs are over by then."""

    def __init__(
        self, subject: str, *, done: str, moved: str, write: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._subject = subject
        self._done, self._moved = done, moved
        self._write = write
        self._clock = clock
        self._started_at = clock()
        self._next_at = self._started_at + _QUIET_START_SECONDS

    def __call__(self, done_bytes: int, image_bytes: int, moved_bytes: int) -> None:
        """Write a line if it is time for one."""
        now = self._clock()
        if now < self._next_at or not image_bytes:
            return
        self._next_at = now + _SECONDS_BETWEEN_LINES
        rate = done_bytes / (now - self._started_at)
        self._write(
            f"{self._subject}: {size(done_bytes)} of {size(image_bytes)} {self._done} "
            f"({size(rate)}/s), {size(moved_bytes)} {self._moved}"
        )


@contextmanager
def _bar(subject: str, moved: str) -> Iterator[Report]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[moved]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escape(subject), total=None, moved="")

        def report(done_bytes: int, image_bytes: int, moved_bytes: int) -> None:
            progress.update(
                task,
                completed=done_bytes,
                total=image_bytes or None,
                moved=f"{size(moved_bytes)} {moved}",
            )

        yield report
