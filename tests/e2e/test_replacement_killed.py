"""SIGKILL of a restore that puts another file in place: the name always leads to a whole one, and none is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.cli import CommandLine
from harness.extent import in_parts, part_of, sampled, slow
from harness.killing import Homes, content_as_found, kill_at, require_tidy, system_calls

if TYPE_CHECKING:
    from pathlib import Path

_ROWS = 30
_SOURCE_UNUSABLE = 13
_REPLACE = ("restore", "before", "--yes", "--replace", "--app-stopped", "--no-safety-snapshot")
_NO_DATABASE = b"no database at all " * 500
_LOG = b"what was committed last"


@slow
@in_parts
@pytest.mark.parametrize("journal_mode", sampled(["wal", "delete"]))
def test_killed_restore_over_a_readable_database(tmp_path: Path, journal_mode: str, part: int) -> None:
    """After a kill the new file is in place and the old one is kept, or the next command undoes everything."""
    homes = Homes(tmp_path, journal_mode, rows=_ROWS)
    calls = _without_most_writes(system_calls(homes.copy(), *_REPLACE))
    for number, call in enumerate(part_of(calls, part, every=16)):
        home = homes.copy()
        kill_at(call, home, *_REPLACE)
        was_new = homes.whole_content(home) == homes.new
        CommandLine(home).run(*(("now",), ("restore", "latest", "--dry-run"))[number % 2])
        require_tidy(home)
        is_new = homes.whole_content(home) == homes.new
        assert [content_as_found(file) for file in _kept(home)] == ([homes.old] if is_new else [])
        assert is_new == was_new


def _without_most_writes(calls: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """SQLite brings the log into the database page by page."""
    return [(name, number) for name, number in calls if name != "pwrite64" or number % 8 == 1]


def _kept(home: Path) -> list[Path]:
    return [file for file in home.glob("app.db.before-restore-*") if not file.name.endswith(("-wal", "-shm"))]


@slow
@in_parts
def test_killed_restore_over_an_unreadable_file(tmp_path: Path, part: int) -> None:
    """An unreadable file stays together with its log after a kill, and can still be replaced."""
    homes = Homes(tmp_path, "wal", rows=_ROWS)
    calls = system_calls(_damaged(homes.copy()), *_REPLACE)
    for number, call in enumerate(part_of(calls, part, every=16)):
        home = _damaged(homes.copy())
        kill_at(call, home, *_REPLACE)
        was_new = _is_new(homes, home)
        if number % 2:
            CommandLine(home).run(*_REPLACE)
            assert _is_new(homes, home)
        else:
            process = CommandLine(home).start("now")
            process.communicate()
            is_new = _is_new(homes, home)
            assert process.returncode == (0 if is_new else _SOURCE_UNUSABLE)
            assert is_new == was_new
            assert is_new or _kept(home) == []
        require_tidy(home)


def _damaged(home: Path) -> Path:
    (home / "app.db").write_bytes(_NO_DATABASE)
    (home / "app.db-wal").write_bytes(_LOG)
    return home


def _is_new(homes: Homes, home: Path) -> bool:
    """Whether the restored file is in place. The old one and its log have to lie side by side in any case."""
    database, log = home / "app.db", home / "app.db-wal"
    is_new = database.read_bytes() != _NO_DATABASE
    if is_new:
        assert content_as_found(database) == homes.new
    if is_new or not log.exists():
        (database,) = (file for file in _kept(home) if file.read_bytes() == _NO_DATABASE)
        log = database.with_name(f"{database.name}-wal")
    assert database.read_bytes() == _NO_DATABASE
    assert log.read_bytes() == _LOG
    return is_new
