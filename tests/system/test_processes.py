"""A process that backupd cannot start, for whatever reason: plain words and an exit code, and no traceback."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from faults import system_calls
from harness.cli import CommandLine, Finished, Runner
from harness.confinement import another_user, shared_directory
from harness.extent import sampled
from harness.place import create_database

if TYPE_CHECKING:
    from pathlib import Path

_UID, _GID = 1234, 2345
_BROKEN = "raise ImportError('libz.so.1: cannot open shared object file')\n"
_USAGE, _BUSY = 2, 11

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def _require_plain_words(finished: Finished, *words: str) -> None:
    """Require the words in the output, and neither a traceback nor a bug."""
    said = finished.stdout + finished.stderr
    assert "Traceback" not in said, said
    assert "this is a bug" not in said, said
    for word in words:
        assert word in said, said


@only_root
@pytest.mark.parametrize("verb", ["now", "doctor", "list"])
def test_owner_of_the_database_cannot_reach_python(verb: str):
    """A Python below /root, say: which user, which file, and the directory that is closed, before anything is done."""
    with shared_directory() as home, another_user() as runner:
        (home / "data").mkdir()
        create_database(home / "data/app.db", rows=5)
        for path in (home / "data", home / "data/app.db"):
            os.chown(path, _UID, _GID)
        closed = home / "closed"
        closed.mkdir(mode=0o700)
        python = closed / "python"
        python.symlink_to(runner.python)
        command_line = CommandLine(
            home,
            runner=Runner(runner.enter, (), str(python), runner.environ),
            BACKUPD_DATABASES__0__PATH=str(home / "data/app.db"),
            BACKUPD_STORES__0__URL=str(home / "backups"),
            BACKUPD_RUN_AS_OWNER="true",
        )
        finished = command_line.run(verb, code=_USAGE)
        _require_plain_words(
            finished, f"uid {_UID} cannot run {python}: {closed} is not accessible to it", "install backupd"
        )
        assert not (home / "backups").exists() or not [*(home / "backups").iterdir()]


@pytest.mark.parametrize("verb", sampled(["now", "doctor", "verify --level drill"]))
def test_library_that_cannot_be_loaded_is_named(tmp_path: Path, verb: str):
    """A library that cannot be loaded, by a command or its child, is named in the error."""
    create_database(tmp_path / "app.db", rows=5)
    configured = {"BACKUPD_DATABASES__0__PATH": str(tmp_path / "app.db")}
    CommandLine(tmp_path, **configured).run("now")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "apsw.py").write_text(_BROKEN)
    finished = CommandLine(tmp_path, PYTHONPATH=str(broken), **configured).run(*verb.split(), code=_USAGE)
    _require_plain_words(finished, "could not load its program", "libz.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("error", "said", "limit"),
    [
        ("EAGAIN", "no process can be started", "limit of processes"),
        ("ENOMEM", "no memory is left for backupd", "memory limit"),
    ],
)
def test_no_room_for_another_process(tmp_path: Path, error: str, said: str, limit: str):
    """The limit of a container on processes, or its memory: another try can help."""
    if reason := system_calls.why_not():
        pytest.skip(reason)
    create_database(tmp_path / "app.db", rows=5)
    enter = system_calls.injecting(tmp_path / "log", ["vfork", "fork", "clone"], error=error, when="1+")
    finished = CommandLine(tmp_path, runner=Runner(enter=enter)).run("now", "app.db", code=_BUSY)
    _require_plain_words(finished, said)
    assert f"raise the {limit}" in finished.reported("hint")[0]


def test_python_that_has_gone(tmp_path: Path):
    """An upgrade has removed it while backupd runs."""
    create_database(tmp_path / "app.db", rows=5)
    (tmp_path / "usercustomize.py").write_text(f"import sys; sys.executable = {str(tmp_path / 'gone')!r}\n")
    shutil.copy(tmp_path / "usercustomize.py", tmp_path / "sitecustomize.py")
    finished = CommandLine(tmp_path, PYTHONPATH=str(tmp_path)).run("now", "app.db", code=_USAGE)
    _require_plain_words(finished, f"cannot run {tmp_path / 'gone'}")
