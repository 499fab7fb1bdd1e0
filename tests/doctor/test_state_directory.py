from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from backupd.config import EncryptionSettings, load
from backupd.doctor.directories import StateFacts, check_state, inspect_state
from backupd.doctor.findings import Verdict
from backupd.encryption import generate_identity
from backupd.system.mounts import Host, Mount

_MACHINE = Host((Mount("/", "ext4", "/dev/sda1", is_read_only=False),), is_container=False)
_CONTAINER = Host((Mount("/", "overlay", "overlay", is_read_only=False),), is_container=True)
_STATE = StateFacts(Path("/state"), Path("/state"), exists=True, problem=None, free_bytes=10**12)


def test_state_directory_is_tested_by_writing_where_it_exists(tmp_path: Path) -> None:
    """Testing the state directory leaves nothing; a file in its place, or above it, is a problem."""
    assert inspect_state(tmp_path / "deep/state").problem is None
    assert not inspect_state(tmp_path / "deep/state").exists
    assert inspect_state(tmp_path).exists
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/state"):
        findings = [*check_state(inspect_state(path), load(None, {"HOME": "/"}), _MACHINE, largest_bytes=0)]
        assert [(each.check, each.verdict) for each in findings] == [("writable", Verdict.ERROR)], path
    assert inspect_state(Path("/proc/self")).problem is not None


@pytest.mark.parametrize(
    ("free_bytes", "largest_bytes", "verdict"),
    [
        (0, 0, Verdict.ERROR),
        (255 * 10**6, 0, Verdict.WARNING),
        (256 * 10**6, 0, Verdict.OK),
        (10**9, 2 * 10**9, Verdict.WARNING),
    ],
)
def test_space_for_packs_and_for_a_restore_is_checked(free_bytes: int, largest_bytes: int, verdict: Verdict) -> None:
    """Space below packs.spool_limit, or below the size of the largest database, is a warning."""
    look = StateFacts(Path("/state"), Path("/state"), exists=True, problem=None, free_bytes=free_bytes)
    found = {
        each.check: each for each in check_state(look, load(None, {"HOME": "/"}), _MACHINE, largest_bytes=largest_bytes)
    }
    assert found["space"].verdict is verdict


def test_state_that_does_not_last_is_a_note() -> None:
    """Backups do not need it."""
    settings = load(None, {"HOME": "/"})
    found = {each.check: each.verdict for each in check_state(_STATE, settings, _CONTAINER, largest_bytes=0)}
    assert found == {"writable": Verdict.OK, "mount": Verdict.NOTE, "space": Verdict.OK}


@pytest.mark.parametrize("has_key", [False, True])
def test_state_is_worth_keeping_where_packs_cannot_be_read_back(*, has_key: bool) -> None:
    """With encryption and no key, one finding says that losing the state directory costs a full snapshot."""
    settings = load(None, {"HOME": "/"})
    settings = settings.replaced(
        encryption=EncryptionSettings(recipients=(generate_identity(datetime.now(UTC))[0],)),
        identity_file=Path("/key") if has_key else None,
    )
    found = {each.check: each for each in check_state(_STATE, settings, _MACHINE, largest_bytes=0)}
    assert [*found] == (["writable", "space"] if has_key else ["writable", "lasts", "space"])
    if not has_key:
        assert found["lasts"].verdict is Verdict.NOTE
        assert "stores every page again, because packs are encrypted" in found["lasts"].message
    lost = {each.check: each.verdict for each in check_state(_STATE, settings, _CONTAINER, largest_bytes=0)}
    assert lost["mount"] is (Verdict.NOTE if has_key else Verdict.WARNING)
