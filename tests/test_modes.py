"""The modes of files: what backupd writes can be read by its own user only, whatever the umask and the user."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from harness.cli import PLAIN, CommandLine, Runner
from harness.confinement import ANOTHER_UID, another_user, shared_directory
from harness.extent import sampled
from harness.place import change_rows, create_database
from harness.watching import looking_all_the_time

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_CONFIGURATION = """
[[databases]]
path = "app.db"
[[stores]]
url = "backups"
[retention]
keep_last = 1
daily = 0
weekly = 0
monthly = 0
"""
_STORY: Sequence[Sequence[str]] = (
    ("now", "--tag", "one"),
    ("now", "--tag", "two"),
    ("forget", "one"),
    ("prune",),
    ("verify", "--level", "drill"),
    ("restore", "latest", "--yes"),
    ("undo", "--yes"),
    ("restore", "two", "--yes", "--replace", "--app-stopped"),
    ("restore", "two", "--to", "restored.db"),
    ("keygen", "--output", "backupd.key"),
)
_SHORT_STORY = [each for each in _STORY if each[0] in {"now", "keygen"} or "--to" in each]


class _Seen:
    """Every file and directory that was there at some moment, by the modes that it had."""

    def __init__(self, *roots: Path) -> None:
        self._roots = roots
        self.files: dict[str, set[int]] = {}
        self.directories: dict[str, set[int]] = {}

    def look(self) -> None:
        for root in self._roots:
            for directory, _, files in os.walk(root):
                self._note(self.directories, directory)
                for name in files:
                    self._note(self.files, f"{directory}/{name}")

    def _note(self, seen: dict[str, set[int]], path: str) -> None:
        try:
            mode = stat.S_IMODE(os.lstat(path).st_mode)
        except FileNotFoundError:
            return  # it was there for a moment
        seen.setdefault(path, set()).add(mode)

    def open_to_others(self, seen: dict[str, set[int]], mode: int) -> dict[str, set[int]]:
        return {path: modes for path, modes in seen.items() if modes != {mode}}


@contextmanager
def _watched(*roots: Path) -> Iterator[_Seen]:
    seen = _Seen(*roots)
    with looking_all_the_time(seen.look):
        yield seen


@contextmanager
def _runner(uid: int) -> Iterator[Runner]:
    if uid == os.geteuid():
        yield PLAIN
        return
    with another_user() as runner:
        yield runner


@pytest.mark.parametrize(
    ("umask", "uid", "story"), sampled([(0o077, ANOTHER_UID, _SHORT_STORY), (0o000, os.geteuid(), _STORY)])
)
def test_everything_is_private_at_every_moment(umask: int, uid: int, story: Sequence[Sequence[str]]) -> None:
    """State, spool, scratch, cache, locks, status, and a directory store with what is on its way into it."""
    with shared_directory() as home, _runner(uid) as runner:
        create_database(home / "app.db", rows=4000)
        (home / "backupd.toml").write_text(_CONFIGURATION)
        if uid != os.geteuid():
            for path in (home, home / "app.db", home / "backupd.toml"):
                os.chown(path, uid, uid)
        backupd = CommandLine(home, runner=runner)
        with _watched(home / "state", home / "backups") as seen:
            for arguments in story:
                backupd.run(*arguments, umask=umask)
                if arguments[0] == "now":
                    change_rows(home / "app.db", arguments[-1])
        parts = {part for path in seen.directories for part in path.split("/")}
        assert {"locks", "spool", "cache", "app", ".incoming"} <= parts
        # What lasts for a moment only is seen now and then; one of many is always.
        moving = [path for path in seen.files if {".incoming", "spool"} & {*path.split("/")}]
        assert any(not path.endswith(".lock") for path in moving), "nothing was seen on its way"
        assert any("/packs/" in path for path in seen.files)
        assert seen.open_to_others(seen.files, 0o600) == {}
        assert seen.open_to_others(seen.directories, 0o700) == {}
        for name in ("restored.db", "backupd.key"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_first_configuration_is_as_private_as_what_is_in_it(tmp_path: Path, umask: int) -> None:
    """A new configuration with a secret is private; one without it can be read by the daemon's user."""
    create_database(tmp_path / "app.db", rows=1)
    (tmp_path / "key").write_text("never-commit-this")
    backupd = CommandLine(tmp_path)
    named = (
        "init",
        "--database",
        "app.db",
        "--store",
        "s3://bucket/x",
        "--endpoint-url",
        "http://127.0.0.1:9",
        "--access-key-id",
        "id",
    )
    backupd.run(*named, "--secret-access-key-file", "key", "--config", "secret.toml", umask=umask, code=10)
    backupd.run("init", "--database", "app.db", "--store", "backups", "--config", "etc/plain.toml", umask=umask)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("secret.toml", "etc/plain.toml", "etc")]
    assert modes == [0o600, 0o644, 0o755]
