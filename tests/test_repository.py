from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore
from harness.rotation import Rotation

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def rotation(tmp_path: Path) -> Rotation:
    """A place for snapshots."""
    (tmp_path / "rotation").mkdir()
    return Rotation(tmp_path / "rotation")


def test_databases_that_have_only_removed_snapshots_are_found_on_demand(rotation: Rotation) -> None:
    """A database with nothing but trash is found on demand, because it may be wanted back."""
    first = rotation.snapshot("base")
    rotation.snapshot("x")
    rotation.put(f"gone/trash/{first}.json", b"{}")
    rotation.put(f"drilled/drills/{first}.json", b"{}")
    assert rotation.repository().databases() == ["app"]
    assert rotation.repository().databases(with_trash=True) == ["app", "gone"]


def test_foreign_objects_belong_to_no_database(rotation: Rotation) -> None:
    """Foreign objects are those beside the databases; those within a database belong to it."""
    rotation.snapshot("base")
    foreign = ("a b/retention.json", "holidays/beach.jpg", "notes.txt")
    for key in (*foreign, "app/notes.txt", "RESTORE.md", "rescue.py", "other/retention.json", "other/notes.txt"):
        rotation.put(key, b"precious")
    assert rotation.repository().foreign_objects() == [*foreign]


def test_what_is_learned_through_a_wrapped_store_outlasts_it(rotation: Rotation) -> None:
    """A snapshot watches the store by a wrapper; the repository knows afterwards what that run has learned."""
    rotation.snapshot("base")
    repository = rotation.repository()
    watched = FaultyStore(rotation.store)
    assert repository.id is None
    assert repository.through(watched).exists()
    assert watched.calls == ["get"]
    assert repository.id is not None
    repository.ensure_created()
    repository.through(watched).ensure_created()
    assert watched.calls == ["get"]


def test_archive_reads_what_a_snapshot_wrote(rotation: Rotation) -> None:
    """Listing, history, manifest, page map and packs agree; there is one archive for each name."""
    rotation.snapshot("base")
    newest = rotation.snapshot("x")
    archive = rotation.repository().archive("app")
    assert archive is archive.repository.archive("app")
    listing = archive.listing()
    history = archive.history(listing)
    assert [manifest.id for manifest in history.manifests] == sorted(listing.manifests)
    manifest = archive.opened(archive.manifest(newest))
    assert history.newest == manifest
    assert len(archive.page_map(manifest)) == manifest.page_count
    for pack in manifest.packs:
        index, images = archive.pack(pack)
        assert (archive.index(pack), len(images)) == (index, pack.pages * manifest.page_size)
    assert listing.missing(manifest.packs) == []
    assert archive.shows(str(newest))
    (rotation.root / "app" / "snapshots" / f"{newest}.json").unlink()
    assert not archive.shows(str(newest))
