from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.place import create_database

from backupd.config import Settings, load
from backupd.doctor.configuration import check_unlisted, find_protected, find_unlisted
from backupd.doctor.findings import Verdict

if TYPE_CHECKING:
    from pathlib import Path


def _settings(tmp_path: Path, *patterns: str, state: str = "state") -> Settings:
    file = tmp_path / "backupd.toml"
    file.write_text("".join(f'[[databases]]\npath = "{pattern}"\n' for pattern in patterns))
    return load(file, {"BACKUPD_STATE_DIR": str(tmp_path / state)})


def _create(tmp_path: Path, *names: str) -> list[Path]:
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        create_database(path, rows=1)
    return paths


def _found(settings: Settings) -> tuple[Path, ...]:
    return find_unlisted(settings, find_protected(settings).paths)


def test_a_database_with_another_ending_is_a_warning(tmp_path: Path) -> None:
    """A database beside those that a pattern matches is a warning if its ending keeps it from being backed up."""
    _create(tmp_path, "data/app.db")
    (tmp_path / "data/notes.txt").write_text("SQLite is nice, and this is text")
    assert _found(_settings(tmp_path, "data/*.db")) == ()
    assert [*check_unlisted(())] == []
    other = _create(tmp_path, "data/users.sqlite3")
    (finding,) = check_unlisted(_found(_settings(tmp_path, "data/*.db")))
    assert finding.verdict is Verdict.WARNING
    assert f"no entry has {other[0]}: it is not backed up" in finding.message
    assert "[[databases]]" in (finding.remedy or "")
    assert _found(_settings(tmp_path, "data/*.db", "data/users.sqlite3")) == ()


def test_directories_of_a_pattern_without_files_are_searched(tmp_path: Path) -> None:
    """The file that it was meant for has another name."""
    others = _create(tmp_path, "a/data/app.sqlite", "b/data/app.sqlite")
    assert _found(_settings(tmp_path, "*/data/*.db")) == tuple(others)


def test_known_files_are_left_out(tmp_path: Path) -> None:
    """The target of a link, a file with an invalid name, files further below, and copies in the state directory."""
    _create(tmp_path, "data/real.sqlite", "data/b@d.db", "data/deep/er.db", "state/restored.db", "state/app.db")
    (tmp_path / "data/app.db").symlink_to("real.sqlite")
    assert _found(_settings(tmp_path, "data/*.db", "state/app.db", "gone/other.db")) == ()
    assert _found(_settings(tmp_path, "state/app.db", state="other")) == (tmp_path / "state/restored.db",)


def test_many_unlisted_files_are_one_line(tmp_path: Path) -> None:
    """Many unlisted files are one line that names some and counts the others."""
    (finding,) = check_unlisted([tmp_path / f"{number}.db" for number in range(9)])
    assert f"{os.fspath(tmp_path)}/4.db and 4 more: they are not backed up" in finding.message
