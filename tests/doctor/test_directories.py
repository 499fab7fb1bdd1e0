from __future__ import annotations

from pathlib import Path

import pytest

from backupd.doctor.databases import DatabaseFacts
from backupd.doctor.directories import DirectoryFacts, check_store_directory, inspect_directory
from backupd.doctor.findings import Subject, Verdict
from backupd.system.mounts import Host, Mount

_STORE = Subject("store /backups")
_ROOT = Mount("/", "overlay", "overlay", is_read_only=False)
_VOLUME = Mount("/backups", "ext4", "/dev/sdb1", is_read_only=False)
_LOOK = DirectoryFacts(Path("/backups"), is_empty=False, device=2, free_bytes=10**9, free_inodes=1000)
_DATABASES = {"app": DatabaseFacts(real_path="/data/app.db", device=1, image_bytes=10**6)}


def _found(
    look: DirectoryFacts = _LOOK,
    host: Host = Host((_ROOT, _VOLUME), is_container=True),  # noqa: B008  (immutable)
    databases: dict[str, DatabaseFacts] = _DATABASES,
    *,
    has_other_place: bool = False,
) -> dict[str, tuple[Verdict, str]]:
    found = check_store_directory(_STORE, look, host, databases, has_other_place=has_other_place)
    return {finding.check: (finding.verdict, finding.message) for finding in found}


def _changed(**changes: object) -> DirectoryFacts:
    values = {name: getattr(_LOOK, name) for name in ("real_path", "is_empty", "device", "free_bytes", "free_inodes")}
    return DirectoryFacts(**{**values, **changes})


def test_a_separate_volume_passes_every_check() -> None:
    """Mounted, on another file system than the database, with free space."""
    assert {check: verdict for check, (verdict, _) in _found().items()} == dict.fromkeys(
        ("mount", "disk", "space"), Verdict.OK
    )


@pytest.mark.parametrize(
    ("is_empty", "expected"), [(True, "perhaps nothing is mounted"), (False, "has content already")]
)
def test_the_root_of_a_container_is_a_warning(expected: str, *, is_empty: bool) -> None:
    """A volume that was not mounted looks like an empty directory: snapshots would go with the container."""
    verdict, message = _found(_changed(is_empty=is_empty), Host((_ROOT,), is_container=True))["mount"]
    assert verdict is Verdict.WARNING
    assert expected in message
    assert _found(_changed(is_empty=is_empty), Host((_VOLUME,), is_container=False))["mount"][0] is Verdict.OK


def test_the_disk_of_the_database_is_a_warning() -> None:
    """A store on the disk of the database is a warning, or a note once another store is on another disk."""
    beside = {"app": DatabaseFacts(real_path="/data/app.db", device=2)}
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
def test_too_little_free_space_is_reported(changes: dict[str, int | None], verdict: Verdict) -> None:
    """No free space is an error, and less than the largest database is a warning."""
    assert _found(_changed(**changes))["space"][0] is verdict


def test_inspection_changes_nothing(tmp_path: Path) -> None:
    """The inspection of a missing directory creates nothing, and reports the facts of the one that will hold it."""
    look = inspect_directory(tmp_path / "not/there")
    assert look.is_empty
    assert look.device == tmp_path.stat().st_dev
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    assert not inspect_directory(tmp_path).is_empty
    assert inspect_directory(tmp_path / "file").is_empty is False
