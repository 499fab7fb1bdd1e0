"""Every repository carries the way to restore from it, and no snapshot fails for want of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.cli import CommandLine
from harness.faults import FaultyStore
from harness.notes import change_notes
from harness.place import change_rows, create_database

from backupd.rescue import put_rescue_objects, rescue_objects
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.store.keys import RESCUE_KEY, RESTORE_KEY

if TYPE_CHECKING:
    from pathlib import Path

_DAMAGE = 20
_ID = "0123456789abcdef"


def test_first_snapshot_puts_both_rescue_objects(tmp_path: Path) -> None:
    """Beside backupd.json, private as everything there."""
    create_database(tmp_path / "app.db", rows=10)
    CommandLine(tmp_path).run("now", "app.db")
    for key, content in rescue_objects().items():
        assert (tmp_path / "backups" / key).read_bytes() == content
        assert (tmp_path / "backups" / key).stat().st_mode & 0o777 == 0o600


def test_an_older_repository_gets_them_with_its_next_snapshot(tmp_path: Path) -> None:
    """The next snapshot replaces rescue objects of an older version, even if this machine has put them."""
    create_database(tmp_path / "app.db", rows=10)
    backupd = CommandLine(tmp_path)
    backupd.run("now", "app.db")
    for key in (RESCUE_KEY, RESTORE_KEY):
        (tmp_path / "backups" / key).write_text("of an older version")
    change_notes(tmp_path / "state", lambda _: "the digest of older ones")
    change_rows(tmp_path / "app.db", "changed")
    backupd.run("now", "app.db")
    assert (tmp_path / "backups" / RESCUE_KEY).read_bytes() == rescue_objects()[RESCUE_KEY]


def test_rescue_objects_are_put_once(tmp_path: Path) -> None:
    """Rescue objects are put once into a repository; another repository in the same place gets its own."""
    store, state = FaultyStore(DirectoryStore(tmp_path / "store")), StateDirectory(tmp_path / "state")
    put_rescue_objects(store, state, _ID)
    assert store.calls == ["put", "put"]
    put_rescue_objects(store, state, _ID)
    assert store.calls == ["put", "put"]
    put_rescue_objects(store, state, "another")
    assert store.calls == ["put"] * 4


def test_a_store_that_does_not_take_them_is_asked_again(tmp_path: Path) -> None:
    """A store that refuses the rescue objects raises nothing, and is asked again by the next run."""
    state = StateDirectory(tmp_path / "state")
    for fail_at in (0, 1):
        failing = FaultyStore(DirectoryStore(tmp_path / "store"), fail_at=fail_at)
        put_rescue_objects(failing, state, _ID)
        assert failing.calls == ["put"] * (fail_at + 1)
    put_rescue_objects(DirectoryStore(tmp_path / "store"), state, _ID)
    assert (tmp_path / "store" / RESCUE_KEY).is_file()


def test_a_snapshot_does_not_fail_for_want_of_them(tmp_path: Path) -> None:
    """Something is in the way: there is a warning, a snapshot, and the exit code of success."""
    create_database(tmp_path / "app.db", rows=10)
    (tmp_path / "backups" / RESTORE_KEY / "in the way").mkdir(parents=True)
    finished = CommandLine(tmp_path).run("now", "app.db")
    assert "rescue.py and RESTORE.md could not be put into the store" in finished.stderr
    assert len(list((tmp_path / "backups/app/snapshots").iterdir())) == 1
