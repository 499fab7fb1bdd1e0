from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from harness.faults import FaultyStore
from harness.kept_workers import kept_workers
from harness.packs import decode_pack
from harness.place import create_database
from harness.rotation import Rotation
from msgspec.structs import replace

from backupd.backup import SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.config.stores import EncryptionSettings
from backupd.encryption import Encryption, generate_identity
from backupd.errors import DamageError
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.store import Store


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
        found = archive.pack(pack)
        assert archive.index(pack) == found.index
        assert sum(len(found.images(frame)) for frame in found.index.frames) == pack.pages * manifest.page_size
    assert listing.missing(manifest.packs) == []
    assert archive.shows(str(newest))
    (rotation.root / "app" / "snapshots" / f"{newest}.json").unlink()
    assert not archive.shows(str(newest))


class _RangeStore(FaultyStore):
    """Notes each range that is read."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.ranges: list[tuple[int, int]] = []

    def get_range(self, key: str, *, offset: int, length: int) -> bytes:
        self.ranges.append((offset, length))
        return super().get_range(key, offset=offset, length=length)


def test_an_index_is_read_alone_and_proven(rotation: Rotation) -> None:
    """Exactly the index is read; a flipped bit in it, another digest, or no such pack is damage."""
    newest = rotation.snapshot("base")
    store = _RangeStore(rotation.store)
    archive = rotation.repository(store=store).archive("app")
    (pack,) = archive.opened(archive.manifest(newest)).packs
    file = rotation.root / archive.pack_key(pack)
    whole = file.read_bytes()
    store.calls.clear()
    assert archive.index(pack) == decode_pack(whole)[0]
    assert (store.calls, store.ranges) == (["get_range"], [(0, pack.index_bytes)])
    with pytest.raises(DamageError, match="does not have the digest in the manifest"):
        archive.index(replace(pack, index_hash="0" * 32))
    file.write_bytes(whole[:30] + bytes([whole[30] ^ 1]) + whole[31:])
    with pytest.raises(DamageError, match="does not have the digest in the manifest"):
        archive.index(pack)
    file.unlink()
    with pytest.raises(DamageError, match="is missing"):
        archive.index(pack)


def test_an_encrypted_pack_shows_nothing_of_its_index(tmp_path: Path) -> None:
    """The manifest has neither length nor digest of its index, which is read with all of the pack."""
    create_database(tmp_path / "app.db", rows=3)
    recipient, secret = generate_identity(datetime.now(UTC))
    (tmp_path / "key").write_text(secret)
    encryption = Encryption((recipient,), tmp_path / "key")
    repository = Repository(DirectoryStore(tmp_path / "store"), StateDirectory(tmp_path / "state"), encryption)
    (result,) = back_up(
        Database("app", tmp_path / "app.db"),
        [repository],
        Settings(encryption=EncryptionSettings(recipients=(recipient,))),
        request=SnapshotRequest(),
        on_progress=lambda _: None,
        workers=kept_workers(),
    )
    (file,) = (tmp_path / "store/app/snapshots").iterdir()
    assert b"index_" not in file.read_bytes()
    archive = repository.archive("app")
    assert result.id is not None
    (pack,) = archive.opened(archive.manifest(result.id)).packs
    assert (pack.encryption, pack.index_bytes, pack.index_hash) == ("age", None, None)
    assert archive.index(pack).pages == pack.pages
