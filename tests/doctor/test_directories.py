from __future__ import annotations

from pathlib import Path

import pytest

from backupd.doctor.directories import DirectoryLook, judge, look_at
from backupd.doctor.findings import Subject, Verdict
from backupd.doctor.look import DatabaseLook
from backupd.doctor.mounts import Host, Mount

_STORE = Subject("store /backups")
_ROOT = Mount("/", "overlay", "overlay", is_read_only=False)
_VOLUME = Mount("/backups", "ext4", "/dev/sdb1", is_read_only=False)
_LOOK = DirectoryLook(Path("/backups"), is_empty=False, device=2, free_bytes=10**9, free_inodes=1000)
_DATABASES = {"app": DatabaseLook(real_path="/data/app.db", device=1, image_bytes=10**6)}


def _found(
    look: DirectoryLook = _LOOK,
    host: Host = Host((_ROOT, _VOLUME), is_container=True),  # noqa: B008  (immutable)
    databases: dict[str, DatabaseLook] = _DATABASES,
    *,
    has_other_place: bool = False,
) -> dict[str, tuple[Verdict, str]]:
    found = judge(_STORE, look, host, databases, has_other_place=has_other_place)
    return {finding.check: (finding.verdict, finding.message) for finding in found}


def _changed(**changes: object) -> DirectoryLook:
    values = {name: getattr(_LOOK, name) for name in ("real_path", "is_empty", "device", "free_bytes", "free_inodes")}
    return DirectoryLook(**{**values, **changes})


def test_a_volume_of_its_own_is_well() -> None:
    """Mounted, on another file system than the database, with room."""
    assert {check: verdict for check, (verdict, _) in _found().items()} == dict.fromkeys(
        ("mount", "disk", "space"), Verdict.OK
    )


@pytest.mark.parametrize(("is_empty", "told"), [(True, "perhaps nothing is mounted"), (False, "has content already")])
def test_the_root_of_a_container_is_no_place(told: str, *, is_empty: bool) -> None:
    """A volume that was not mounted looks like an empty directory: snapshots would go with the container."""
    verdict, message = _found(_changed(is_empty=is_empty), Host((_ROOT,), is_container=True))["mount"]
    assert verdict is Verdict.WARNING
    assert told in message
    assert _found(_changed(is_empty=is_empty), Host((_VOLUME,), is_container=False))["mount"][0] is Verdict.OK


def test_the_disk_of_the_database() -> None:
    """One disk for both is a warning, and a note once there is another store elsewhere."""
    beside = {"app": DatabaseLook(real_path="/data/app.db", device=2)}
    verdict, message = _found(databases=beside)["disk"]
    assert verdict is Verdict.WARNING
    assert "same file system as app" in message
    assert _found(databases=beside, has_other_place=True)["disk"][0] is Verdict.NOTE


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"free_bytes": 0}, Verdict.ERROR),
        ({"free_inodes": 0}, Verdict.ERROR),
        ({"free_inodes": None}, Verdict.OK),
        ({"free_bytes": 999_999}, Verdict.WARNING),
        ({"free_bytes": 1_000_000}, Verdict.OK),
    ],
)
def test_room(changes: dict[str, int | None], verdict: Verdict) -> None:
    """None at all is an error, less than the largest database a warning."""
    assert _found(_changed(**changes))["space"][0] is verdict


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Of a directory that does not exist, the facts are those of what will hold it."""
    look = look_at(tmp_path / "not/there")
    assert look.is_empty
    assert look.device == tmp_path.stat().st_dev
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    assert not look_at(tmp_path).is_empty
    assert look_at(tmp_path / "file").is_empty is False
