"""Segments in an archive: put, listed, read, and left alone by everything that removes."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from backupd.encryption import NO_ENCRYPTION, Encryption, generate_identity
from backupd.errors import DamageError, IdentityNeededError, UnreadableObjectError
from backupd.format import SnapshotId
from backupd.format.segment import Commit, Segment, SegmentHead, decode_segment, encode_segment
from backupd.repository import Repository
from backupd.repository.history import StoredSegment
from backupd.state import StateDirectory
from backupd.store import StoredObject
from backupd.store.directory import DirectoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.repository.archive import Archive

_WINDOW = SnapshotId("20261129T140000000Z-0badcafe")
_EARLIER = SnapshotId("20261129T130000000Z-ffffffff")
_NOON_MS = 1795953600000
_NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)


def archive_in(root: Path, encryption: Encryption = NO_ENCRYPTION) -> Archive:
    """The archive of `app` in a directory store below `root`."""
    return Repository(DirectoryStore(root / "store"), StateDirectory(root / "state"), encryption).archive("app")


def segment_of(first: int, last: int, *, window: SnapshotId = _WINDOW, database: str = "app") -> bytes:
    """A segment of the commits `first` to `last`, each of which writes page 1."""
    head = SegmentHead(database=database, window=window, first=first, page_size=512)
    commits = [Commit(_NOON_MS + 7, 3, (1,), number.to_bytes(8) * 64) for number in range(first, last + 1)]
    return encode_segment(head, commits, level=1)


def stored(archive: Archive) -> StoredSegment:
    """The only segment of the archive."""
    ((segment,),) = archive.listing().segments.values()
    return segment


def values(segment: Segment) -> object:
    """All that a segment says, to compare."""
    return segment.head, segment.commits, segment.changes(0, 10**12)


def test_a_segment_is_named_by_what_it_is(tmp_path: Path):
    """The key has window, commits, time and SHA-256; a second put has the same key."""
    archive, content = archive_in(tmp_path), segment_of(3, 5)
    key = archive.put_segment(content)
    assert archive.put_segment(content) == key
    assert (key.database, key.window, key.first, key.last) == ("app", _WINDOW, 3, 5)
    assert key.seen_at == _NOON.replace(microsecond=7000)
    assert key.sha256 == hashlib.sha256(content).digest()
    assert (stored(archive).key, stored(archive).size_bytes) == (key, len(content))
    assert values(archive.segment(stored(archive))) == values(decode_segment(content))


def test_an_encrypted_segment_is_read_with_its_key_only(tmp_path: Path):
    """The store gets an age file; without the key, a segment is not damaged, and cannot be read."""
    public, identity = generate_identity(_NOON)
    (tmp_path / "identity").write_text(identity)
    content = segment_of(1, 2)
    key = archive_in(tmp_path, Encryption([public])).put_segment(content)
    assert key.is_encrypted
    assert (tmp_path / "store" / str(key)).read_bytes().startswith(b"age-encryption.org/v1")
    with pytest.raises(IdentityNeededError):
        archive_in(tmp_path).segment(stored(archive_in(tmp_path)))
    reader = archive_in(tmp_path, Encryption(identity_file=tmp_path / "identity"))
    assert values(reader.segment(stored(reader))) == values(decode_segment(content))


def test_a_listing_sorts_segments_by_window(tmp_path: Path):
    """Windows and segments are in the order of their keys, and none of them is foreign."""
    archive = archive_in(tmp_path)
    for content in (segment_of(3, 4), segment_of(1, 2), segment_of(1, 9, window=_EARLIER)):
        archive.put_segment(content)
    listing = archive.listing()
    assert listing.foreign == []
    assert [
        (window, [(each.key.first, each.key.last) for each in segments])
        for window, segments in listing.segments.items()
    ] == [(_EARLIER, [(1, 9)]), (_WINDOW, [(1, 2), (3, 4)])]
    assert archive.repository.foreign_objects() == []


def test_damage_of_each_kind_is_found(tmp_path: Path):
    """A flipped bit, a missing object, and a segment under the key of another are damage."""
    archive = archive_in(tmp_path)
    file = tmp_path / "store" / str(archive.put_segment(segment_of(1, 2)))
    listed = stored(archive)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamageError, match="does not have the SHA-256 that names it"):
        archive.segment(listed)
    file.unlink()
    with pytest.raises(DamageError, match="is missing from"):
        archive.segment(listed)
    for other in ({"first": 2, "last": 3}, {"window": str(_EARLIER)}, {"seen_at": _NOON}, {"database": "other"}):
        moved = replace(listed.key, **other)
        (tmp_path / "store" / str(moved)).parent.mkdir(parents=True, exist_ok=True)
        content[-1] ^= 1
        (tmp_path / "store" / str(moved)).write_bytes(segment_of(1, 2))
        with pytest.raises(DamageError, match="it is not the one that its key names"):
            archive.segment(StoredSegment(moved, StoredObject(str(moved), 1, datetime.now(UTC))))


def test_only_a_segment_of_the_database_is_put(tmp_path: Path):
    """Other bytes, and the segment of another database, reach no store."""
    archive = archive_in(tmp_path)
    with pytest.raises(UnreadableObjectError):
        archive.put_segment(b"no segment")
    with pytest.raises(UnreadableObjectError, match="it is one of other"):
        archive.put_segment(segment_of(1, 1, database="other"))
    assert not (tmp_path / "store").exists()
