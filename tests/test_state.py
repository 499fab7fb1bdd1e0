from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

import msgspec
import pytest
from harness.notes import change_notes

from backupd.errors import AnotherRunError, TargetUnwritableError
from backupd.state import Note, StateDirectory
from backupd.state.catalog import write_atomically

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
NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


class Failure(msgspec.Struct, frozen=True):
    """A record with a value of each type that records use."""

    kind: ClassVar[str] = "failure"

    at: datetime
    message: str
    reasons: dict[str, str] = msgspec.field(default_factory=dict)
    names: tuple[str, ...] = ()
    number: int | None = None


class Other(msgspec.Struct, frozen=True):
    """A record of another kind."""

    kind: ClassVar[str] = "other"

    message: str


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
        with pytest.raises(AnotherRunError, match="another backupd is working on app"), state.lock("app", timeout=0.01):
            pass
        with state.lock("another database", timeout=0):
            pass
        other.kill()
    with state.lock("app", timeout=5):
        pass


def test_lock_file_of_a_run_that_was_killed_at_its_end_is_removed(tmp_path: Path) -> None:
    """A run that was killed before it made its spool, or after it removed that, leaves a lock file alone."""
    state = StateDirectory(tmp_path)
    with state.spool():
        pass
    (tmp_path / "spool/17f3a-0a1b2c3d.lock").touch()
    with state.spool() as spool:
        assert {file.name for file in spool.parent.iterdir()} == {spool.name, f"{spool.name}.lock"}
    assert list((tmp_path / "spool").iterdir()) == []


def test_spools_that_begin_at_once_are_all_there(tmp_path: Path) -> None:
    """A run that looks for what others have left takes no lock file of a run that is just starting for good."""
    state = StateDirectory(tmp_path)

    def begin(_: int) -> bool:
        with state.spool() as spool:
            return spool.is_dir() and spool.with_suffix(".lock").is_file()

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(begin, range(800)))
    assert list((tmp_path / "spool").iterdir()) == []


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


def test_state_directory_is_private_whatever_the_umask(tmp_path: Path) -> None:
    """The state directory is private whatever the umask, because the spool holds pages of the database."""
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


def test_note_stays_until_it_is_replaced_or_removed(tmp_path: Path) -> None:
    """Each kind and key has its own note, whatever the key and the record contain, until it is removed."""
    state = StateDirectory(tmp_path)
    note, another = Note(state, Failure, "app", "s3://bucket/x"), Note(state, Failure, "app", "../../\udcff")
    first, second = Failure(NOON, "größer \udcff"), Failure(NOON, "again", {"a": "b"}, ("x", "y"), 3)
    assert note.read() is None
    note.write(first)
    another.write(second)
    assert Note(StateDirectory(tmp_path), Failure, "app", "s3://bucket/x").read() == first
    note.write(second, is_durable=True)
    assert (note.read(), another.read()) == (second, second)
    assert Note(state, Other, "app", "s3://bucket/x").read() is None
    for _ in range(2):
        note.remove()
        assert note.read() is None
    assert another.read() == second


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[]",
        "7",
        "[" * 100_000,
        b"\xff\xfe",
        "null",
        '{"message": "no time"}',
        '{"at": "yesterday", "message": "x"}',
        '{"at": "2026-11-22T12:00:00", "message": "without a zone"}',
        '{"at": "2026-11-22T12:00:00Z", "message": ["x"]}',
        '{"at": "2026-11-22T12:00:00Z", "message": "x", "reasons": {"a": 1}}',
    ],
    ids=str,
)
def test_note_that_is_damaged_counts_as_absent(tmp_path: Path, text: str | bytes) -> None:
    """A damaged note counts as absent, so that no command fails for it."""
    note = Note(StateDirectory(tmp_path), Failure, "app")
    note.write(Failure(NOON, "x"))
    change_notes(tmp_path, lambda _: text)
    assert note.read() is None
    note.write(Failure(NOON, "y"))
    assert note.read() == Failure(NOON, "y")


def test_state_directory_that_cannot_be_written_takes_no_notes(tmp_path: Path) -> None:
    """The error says so."""
    (tmp_path / "file").touch()
    with pytest.raises(TargetUnwritableError):
        Note(StateDirectory(tmp_path / "file" / "state"), Failure, "app").write(Failure(NOON, "failed"))


def test_what_root_leaves_belongs_to_the_owner_of_the_directory(tmp_path: Path) -> None:
    """A run by root must not keep the service's user from its own state: directories, locks, and page hashes."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    root = tmp_path / "state"
    root.mkdir()
    os.chown(root, 1000, 1001)
    state = StateDirectory(root)
    with state.lock("app", timeout=0):
        file = state.cache("repository", "app") / "hashes"
    write_atomically(file, b"hashes")
    found = [path for path in root.rglob("*") if path.name != "writer"]
    assert {path.name for path in found} >= {"locks", "cache", "repository", "app", "hashes"}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in found} == {(1000, 1001)}
