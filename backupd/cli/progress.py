"""How far a capture or a restore is, on stderr: a bar on a terminal, else now and then a line."""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from backupd.cli import output, quantities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_QUIET_START_SECONDS = 2.0
_SECONDS_BETWEEN_LINES = 5.0


class Report(Protocol):
    """Takes how many bytes of the image are done, of how many (0: not known yet), and how many bytes were moved."""

    def __call__(self, done_bytes: int, image_bytes: int, moved_bytes: int) -> None:
        """From any thread, but one at a time."""


@contextmanager
def shown_progress(subject: str, *, done: str, moved: str, is_quiet: bool) -> Iterator[Report]:
    """Show what is reported while the block runs. `done` and `moved` say what happened to the bytes: "captured"."""
    if is_quiet or sys.stderr is None:
        yield lambda done_bytes, image_bytes, moved_bytes: None  # noqa: ARG005
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(subject, moved) as report:
            yield report
    else:
        yield ProgressLines(subject, done=done, moved=moved, write=output.print_note, clock=time.monotonic)


class ProgressLines:
    """At most a line every five seconds, and none in the first two: most runs are over by then."""

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
            f"{self._subject}: {quantities.size(done_bytes)} of {quantities.size(image_bytes)} {self._done} "
            f"({quantities.size(rate)}/s), {quantities.size(moved_bytes)} {self._moved}"
        )


@contextmanager
def _bar(subject: str, moved: str) -> Iterator[Report]:
    from rich.console import Console  # noqa: PLC0415  (only on a terminal)
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
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
                moved=f"{quantities.size(moved_bytes)} {moved}",
            )

        yield report
