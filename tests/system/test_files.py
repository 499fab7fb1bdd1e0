"""File operations that the system refuses, by real system calls that fail: what is asked for happens in another way."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from faults import system_calls

if TYPE_CHECKING:
    from pathlib import Path

_PRELUDE = """
import os, sys
from pathlib import Path
from backupd.system import files
here = Path(sys.argv[1])
def opened(name, flags=os.O_RDWR | os.O_CREAT):
    return os.open(here / name, flags, 0o600)
"""
_COPY = """
(here / "source").write_bytes(bytes(range(256)) * 20000)
files.copy(opened("source"), opened("target"))
assert (here / "target").read_bytes() == (here / "source").read_bytes()
"""
_RENAME_NEW = """
(here / "first").write_text("first")
(here / "second").write_text("second")
files.rename_new(here / "first", here / "name")
assert sorted(os.listdir(here)) == ["name", "second"]
try:
    files.rename_new(here / "second", here / "name")
except FileExistsError:
    assert (here / "name").read_text() == "first"
    assert sorted(os.listdir(here)) == ["name", "second"]
else:
    raise AssertionError("the name was taken over")
"""
_TAKE_SPACE = """
file = opened("table")
os.write(file, b"kept")
files.take_space(file, 3_000_000)
assert os.fstat(file).st_size == 3_000_000 and os.fstat(file).st_blocks * 512 >= 3_000_000
assert os.pread(file, 6, 0) == b"kept" + bytes(2)
"""
_FLUSH_NAMES = "files.flush_directory(here)"
_SET_MODE = """
file = opened("file")
assert files.set_mode(file, 0o600)
assert not files.set_mode(file, 0o644)
"""
_FREE_BYTES = "assert files.free_bytes(here) is None and files.has_room(here, 10**18)"
_TRY_LOCK = """
try:
    files.try_lock(opened("lock"), here / "lock")
except OSError as error:
    assert "has no locks" in error.strerror and error.filename == str(here / "lock")
else:
    raise AssertionError("locked without a lock")
"""
_LINKS, _CHMODS = ("link", "linkat"), ("fchmod", "fchmodat", "chmod")


@pytest.mark.parametrize(
    ("calls", "error", "program"),
    [
        (("copy_file_range",), "EIO", _COPY),
        (("copy_file_range",), "EPERM", _COPY),
        (("copy_file_range",), "EXDEV", _COPY),
        (_LINKS, "EPERM", _RENAME_NEW),
        (_LINKS, "EOPNOTSUPP", _RENAME_NEW),
        (_LINKS, "EMLINK", _RENAME_NEW),
        (("fallocate",), "EINVAL", _TAKE_SPACE),
        (("fallocate",), "ENOSYS", _TAKE_SPACE),
        (("fsync",), "EINVAL", _FLUSH_NAMES),
        (("fsync",), "EOPNOTSUPP", _FLUSH_NAMES),
        (_CHMODS, "EPERM", _SET_MODE),
        (("statfs", "fstatfs"), "ENOSYS", _FREE_BYTES),
        (("flock",), "ENOLCK", _TRY_LOCK),
        (("flock",), "EOPNOTSUPP", _TRY_LOCK),
    ],
)
def test_operation_works_without_the_system_call(tmp_path: Path, calls: tuple[str, ...], error: str, program: str):
    """An operation succeeds although its preferred system call fails each time."""
    if reason := system_calls.why_not():
        pytest.skip(reason)
    home, log = tmp_path / "home", tmp_path / "log"
    home.mkdir()
    command = [sys.executable, "-c", _PRELUDE + program, str(home)]
    enter = system_calls.injecting(log, calls, error=error, when="1+")
    done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(INJECTED)" in log.read_text()


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_full_disk_stays_an_error(tmp_path: Path, error: str):
    """Zeros would find no room either, and the table must not be mapped without it."""
    if reason := system_calls.why_not():
        pytest.skip(reason)
    command = [sys.executable, "-c", _PRELUDE + _TAKE_SPACE, str(tmp_path)]
    enter = system_calls.injecting(tmp_path / "log", ["fallocate"], error=error, when="1+")
    done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
    assert ", in take_space\n" in done.stderr
    assert "\nOSError: " in done.stderr
