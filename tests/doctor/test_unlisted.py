from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.place import create_database

from backupd.config import Settings, load
from backupd.doctor.findings import Verdict
from backupd.doctor.unlisted import find_unlisted, judge_unlisted

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


def test_a_database_with_another_ending_is_warned_of(tmp_path: Path) -> None:
    """Beside a database that is backed up, which makes everything look well."""
    _create(tmp_path, "data/app.db")
    (tmp_path / "data/notes.txt").write_text("SQLite is nice, and this is text")
    assert find_unlisted(_settings(tmp_path, "data/*.db")) == ()
    assert [*judge_unlisted(())] == []
    other = _create(tmp_path, "data/users.sqlite3")
    (finding,) = judge_unlisted(find_unlisted(_settings(tmp_path, "data/*.db")))
    assert finding.verdict is Verdict.WARNING
    assert f"no entry has {other[0]}: it is not backed up" in finding.message
    assert "[[databases]]" in (finding.remedy or "")
    assert find_unlisted(_settings(tmp_path, "data/*.db", "data/users.sqlite3")) == ()


def test_a_pattern_that_finds_nothing_has_directories_too(tmp_path: Path) -> None:
    """The file that it was meant for is called otherwise."""
    others = _create(tmp_path, "a/data/app.sqlite", "b/data/app.sqlite")
    assert find_unlisted(_settings(tmp_path, "*/data/*.db")) == tuple(others)


def test_what_is_known_otherwise_is_left_out(tmp_path: Path) -> None:
    """What a link leads to, a file that cannot have its name, what is further below, and copies among the state."""
    _create(tmp_path, "data/real.sqlite", "data/b@d.db", "data/deep/er.db", "state/restored.db", "state/app.db")
    (tmp_path / "data/app.db").symlink_to("real.sqlite")
    assert find_unlisted(_settings(tmp_path, "data/*.db", "state/app.db", "gone/other.db")) == ()
    assert find_unlisted(_settings(tmp_path, "state/app.db", state="other")) == (tmp_path / "state/restored.db",)


def test_of_many_some_are_named(tmp_path: Path) -> None:
    """A thousand tenants with a cache each stay one line."""
    (finding,) = judge_unlisted([tmp_path / f"{number}.db" for number in range(9)])
    assert f"{os.fspath(tmp_path)}/4.db and 4 more: they are not backed up" in finding.message
