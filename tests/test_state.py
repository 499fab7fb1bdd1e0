from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from backupd.errors import AnotherRunError, TargetUnwritableError
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

_SPOOL_AND_DIE = """
import os, signal, sys
from pathlib import Path
from backupd.state import StateDirectory
with StateDirectory(Path(sys.argv[1])).spool() as spool:
    (spool / "pack-0-0").write_bytes(b"left behind")
    os.kill(os.getpid(), signal.SIGKILL)
"""
_HOLD_LOCK = """
import sys
from pathlib import Path
from backupd.state import StateDirectory
with StateDirectory(Path(sys.argv[1])).lock("app", timeout=0):
    print("held", flush=True)
    sys.stdin.read()
"""


def _run(code: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_writer_id_stays_as_long_as_the_directory(tmp_path: Path) -> None:
    """Two installations differ; one is the same on every run."""
    first = StateDirectory(tmp_path / "a").writer_id()
    assert StateDirectory(tmp_path / "a").writer_id() == first
    assert StateDirectory(tmp_path / "b").writer_id() != first


def test_lock_is_held_against_other_processes_until_they_end(tmp_path: Path) -> None:
    """The kernel gives it back even when the holder is killed."""
    state = StateDirectory(tmp_path)
    with _run(_HOLD_LOCK, tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(AnotherRunError, match="another backupd is at work on app"), state.lock("app", timeout=0.01):
            pass
        with state.lock("another database", timeout=0):
            pass
        other.kill()
    with state.lock("app", timeout=5):
        pass


def test_spool_of_a_killed_run_is_removed_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    """Packs that were on their way do not pile up."""
    with _run(_SPOOL_AND_DIE, tmp_path) as killed:
        pass
    assert killed.returncode == -9
    assert len(list((tmp_path / "spool").glob("*/pack-0-0"))) == 1
    state = StateDirectory(tmp_path)
    with state.spool() as first:
        (first / "pack").touch()
        assert list((tmp_path / "spool").glob("*/pack-0-0")) == []
        with state.spool() as second:
            assert first != second
            assert (first / "pack").exists()
    assert list((tmp_path / "spool").iterdir()) == []


def test_everything_is_private(tmp_path: Path) -> None:
    """Whatever the umask: the spool holds pages of the database."""
    before = os.umask(0)
    try:
        with StateDirectory(tmp_path / "state").spool() as spool:
            assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
            assert spool.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_directory_that_cannot_be_made_says_what_to_set(tmp_path: Path) -> None:
    """A file in the way, as when a volume was mounted wrongly."""
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnwritableError, match="state directory") as caught:
        StateDirectory(tmp_path / "file").writer_id()
    assert "BACKUPD_STATE_DIR" in (caught.value.hint or "")


def test_notes_stay_until_they_are_replaced_or_taken_away(tmp_path: Path) -> None:
    """One for each subject, whatever is in its name."""
    state = StateDirectory(tmp_path)
    assert state.noted("app in s3://bucket/x") is None
    state.note("app in s3://bucket/x", "failed: größer")
    state.note("app in ../../x", "another")
    assert StateDirectory(tmp_path).noted("app in s3://bucket/x") == "failed: größer"
    state.note("app in s3://bucket/x", "failed again")
    assert (state.noted("app in s3://bucket/x"), state.noted("app in ../../x")) == ("failed again", "another")
    for _ in range(2):
        state.note("app in s3://bucket/x", None)
        assert state.noted("app in s3://bucket/x") is None


def test_a_state_directory_that_cannot_be_written_takes_no_notes(tmp_path: Path) -> None:
    """Which is said."""
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnwritableError):
        StateDirectory(tmp_path / "file" / "state").note("app", "failed")
