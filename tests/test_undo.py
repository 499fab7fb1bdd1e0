from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.notes import change_notes, read_notes

from backupd.errors import StoreUnavailableError, TargetUnwritableError, UsageError
from backupd.format import SnapshotId
from backupd.restore.undo import Ending, LastRestore, last_restore, record_new_file, recorded
from backupd.state import StateDirectory

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.state import Note

SAFETY = SnapshotId.new(datetime(2026, 11, 22, 8, tzinfo=UTC), 1)
BEFORE = LastRestore(ending=Ending.DONE, safety_snapshot=SAFETY)


@pytest.fixture
def note(tmp_path: Path) -> Note[LastRestore]:
    """The note about the last restore of a database, which is not written yet."""
    return last_restore(StateDirectory(tmp_path / "state"), "app", tmp_path / "app.db")


def reject_warning(message: str) -> None:
    """Fail on a warning where none is expected."""
    pytest.fail(message)


@pytest.mark.parametrize("before", [None, BEFORE], ids=["first restore", "second restore"])
def test_failed_restore_leaves_the_record_of_the_one_before(
    note: Note[LastRestore], before: LastRestore | None
) -> None:
    """A restore that fails leaves the record of the one before; while it runs, the record is an interrupted one."""
    if before is not None:
        note.write(before)

    def fail() -> None:
        assert note.read() == LastRestore(ending=Ending.INTERRUPTED)
        raise StoreUnavailableError("no way")

    with pytest.raises(StoreUnavailableError), recorded(note, reject_warning):
        fail()
    assert note.read() == (before or LastRestore(ending=Ending.FAILED))


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (LastRestore(ending=Ending.DONE), "was made without a safety snapshot"),
        (
            LastRestore(ending=Ending.DONE, kept_as="/data/app.db.old"),
            "was made without a safety snapshot; the old file is kept as /data/app.db.old",
        ),
        (LastRestore(ending=Ending.NEW_FILE), "found nothing in its place"),
        (LastRestore(ending=Ending.FAILED), "failed, and there was none before it"),
        (LastRestore(ending=Ending.INTERRUPTED), "was interrupted: whether it was done is not known"),
    ],
    ids=["no safety snapshot", "old file kept", "new file", "failed", "interrupted"],
)
def test_restore_without_a_safety_snapshot_cannot_be_undone(record: LastRestore, reason: str) -> None:
    """The error says what became of it."""
    with pytest.raises(UsageError) as caught:
        record.undone_by("app")
    assert caught.value.message == f"the last restore of app {reason}"
    assert BEFORE.undone_by("app") == SAFETY


@pytest.mark.parametrize("safety_snapshot", ["null", '"latest"', "7", "{}", "[]"])
def test_record_that_is_damaged_counts_as_absent(note: Note[LastRestore], tmp_path: Path, safety_snapshot: str) -> None:
    """`undo` then means the newest safety snapshot, as on another machine."""
    note.write(BEFORE)
    (text,) = read_notes(tmp_path / "state").values()
    assert f'"{SAFETY}"' in text
    damaged = text.replace(f'"{SAFETY}"', safety_snapshot)
    change_notes(tmp_path / "state", lambda _: damaged.replace('"done"', '"finished"'))
    assert note.read() is None
    change_notes(tmp_path / "state", lambda _: damaged)
    assert note.read() == (LastRestore(ending=Ending.DONE) if safety_snapshot == "null" else None)


def test_restore_that_cannot_be_recorded_is_still_done(tmp_path: Path) -> None:
    """A state directory that is lost meanwhile is a warning; one that cannot be written stops the restore before."""
    (tmp_path / "file").touch()
    note = last_restore(StateDirectory(tmp_path / "file/state"), "app", tmp_path / "app.db")
    warnings: list[str] = []
    record_new_file(note, warnings.append)
    assert len(warnings) == 1
    assert "state directory" in warnings[0]
    with pytest.raises(TargetUnwritableError), recorded(note, reject_warning):
        pytest.fail("nothing may be restored")
