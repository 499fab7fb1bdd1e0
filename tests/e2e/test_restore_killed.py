"""SIGKILL of a live restore: the old content or the new, and the next command tidies up."""

from __future__ import annotations

import time
from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.command_line import wait_until
from harness.extent import sampled, slow
from harness.killing import Homes, kill, kill_at, require_tidy, system_calls
from harness.place import connected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ROWS, _FEW_ROWS = 4000, 30
_RESTORE = ("restore", "before", "--yes")
_NEXT = (("now",), ("restore", "latest", "--dry-run"))


@contextmanager
def _home(homes: Homes, *, is_open: bool) -> Iterator[Path]:
    """A copy of the directory, and perhaps an application that has the database open."""
    home = homes.copy()
    if not is_open:
        yield home
        return
    with connected(home / "app.db", "SELECT count(*) FROM report"):
        yield home


def _intent(home: Path) -> Path:
    return home / ".app.db.backupd-restoring"


def _require_whole_and_tidy(homes: Homes, home: Path, number: int) -> None:
    """The next command, either of two, cleans up and leaves the content as it is."""
    content = homes.whole_content(home)
    CommandLine(home).run(*_NEXT[number % len(_NEXT)])
    require_tidy(home)
    assert homes.whole_content(home) == content


_ALL = [("wal", True), ("delete", False), ("wal", False), ("delete", True)]


@pytest.mark.parametrize(
    ("journal_mode", "is_open", "kills"),
    sampled([("wal", True, 2), ("delete", False, 2), *((*each, 6) for each in _ALL)]),
)
def test_killed_restore_leaves_a_whole_database(
    tmp_path: Path, journal_mode: str, *, is_open: bool, kills: int
) -> None:
    """A restore killed at any moment, even while it writes into the database, leaves a whole one."""
    homes, moments = Homes(tmp_path, journal_mode, rows=_ROWS), Random(3)
    whole, writing = _seconds_of_a_run(homes.copy())
    was_killed_writing = False
    for number in range(kills):
        with _home(homes, is_open=is_open) as home:
            process = CommandLine(home).start(*_RESTORE)
            if number % 2:
                kill(process, after_seconds=whole * moments.uniform(0.4, 1))
            else:
                wait_until(_intent(home).exists)
                kill(process, after_seconds=writing * number / kills)
            was_killed_writing |= _intent(home).exists()
            _require_whole_and_tidy(homes, home, number // 2)
    assert was_killed_writing


def _seconds_of_a_run(home: Path) -> tuple[float, float]:
    """The seconds that the whole command takes, and its part from its first write into the database."""
    started = time.monotonic()
    process = CommandLine(home).start(*_RESTORE)
    wait_until(_intent(home).exists)
    writing_since = time.monotonic()
    process.communicate()
    return time.monotonic() - started, time.monotonic() - writing_since


@slow
@pytest.mark.parametrize(
    ("journal_mode", "is_open", "every"),
    sampled([("wal", True, 3), ("delete", False, 4), *((*each, 1) for each in _ALL)]),
)
def test_restore_killed_at_each_system_call_leaves_a_whole_database(
    tmp_path: Path, journal_mode: str, *, is_open: bool, every: int
) -> None:
    """A restore killed in place of a call that writes, flushes or removes a file leaves a whole database."""
    homes = Homes(tmp_path, journal_mode, rows=_FEW_ROWS)
    command = (*_RESTORE, "--no-safety-snapshot")
    with _home(homes, is_open=is_open) as home:
        calls = _some(system_calls(home, *command))
    for number, call in enumerate(calls[::every]):
        with _home(homes, is_open=is_open) as home:
            kill_at(call, home, *command)
            _require_whole_and_tidy(homes, home, number)


def _some(calls: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """A few of them: of the many writes the one in the middle, and of the others the last of each kind."""
    last = dict(calls)
    return [(name, number // 2 + 1 if name == "pwrite64" else number) for name, number in last.items()]
