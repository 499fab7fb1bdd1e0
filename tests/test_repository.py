from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.rotation import Rotation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    """A place for snapshots."""
    (tmp_path / "rotation").mkdir()
    return Rotation(tmp_path / "rotation")


def test_databases_that_have_only_removed_snapshots_are_found_on_demand(rotation: Rotation) -> None:
    """Somebody may want one back."""
    first = rotation.snapshot("base")
    rotation.snapshot("x")
    rotation.put(f"gone/trash/{first}.json", b"{}")
    rotation.put(f"drilled/drills/{first}.json", b"{}")
    assert rotation.repository().databases() == ["app"]
    assert rotation.repository().databases(with_trash=True) == ["app", "gone"]


def test_strangers_belong_to_no_database(rotation: Rotation) -> None:
    """Nor to the format at all; those beside the objects of a database are that database's."""
    rotation.snapshot("base")
    strangers = ("a b/retention.json", "holidays/beach.jpg", "notes.txt")
    for key in (*strangers, "app/notes.txt", "RESTORE.md", "rescue.py", "other/retention.json", "other/notes.txt"):
        rotation.put(key, b"precious")
    assert rotation.repository().strangers() == [*strangers]
