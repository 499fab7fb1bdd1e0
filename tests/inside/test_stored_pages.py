"""Pages of snapshots and moments, read where they are stored: each is the right one, or an error that says which."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import apsw
import pytest
from harness.faults import FaultyStore
from harness.following import Followed
from harness.stored import Stored

from backupd.encryption import Encryption, generate_identity
from backupd.errors import DamageError
from backupd.inside import pages as pages_module
from backupd.inside.image import opened_point
from backupd.inside.pages import opened_pages
from backupd.repository import Repository
from backupd.repository.moments import RestorePoint, find_restore_point
from backupd.store.cached import CachedStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backupd.inside.pages import PageSource

_MS = timedelta(milliseconds=1)
_FILL = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) "
_CHANGED_IN_A_SNAPSHOT = slice(24, 100)
"""The part of page 1 that a restore fills in: change counter, version-valid-for, and the version of the writer."""


class _Bucket(FaultyStore):
    """A directory that says it is a bucket: what is read of it is cached."""

    @property
    def url(self) -> str:
        return "s3://bucket/of-a-test"


@pytest.fixture(params=["plain", "encrypted"])
def followed(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Followed]:
    """A database with a few hundred pages, snapshots of it, and commits between them and after them."""
    keys = {}
    if request.param == "encrypted":
        public, identity = generate_identity(datetime.now(UTC))
        (tmp_path / "identity").write_text(identity)
        keys["encryption"] = Encryption([public], tmp_path / "identity")
    database = Followed(tmp_path, page_size=1024, **keys)
    database.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT)")
    database.execute(f"{_FILL.format(2000)} INSERT INTO note SELECT i, printf('note %0100d', i) FROM n")
    database.snapshot()
    database.execute("UPDATE note SET text = 'changed' WHERE id % 100 = 0", "DELETE FROM note WHERE id > 1990")
    database.snapshot()
    for number in range(5):
        database.execute(f"INSERT INTO note (text) VALUES (printf('later %01000d', {number}))")
    database.execute("DELETE FROM note WHERE id BETWEEN 500 AND 700", "VACUUM")
    database.cut()
    yield database
    database.close()


def _reject_wrong_pages(pages: PageSource, image: bytes) -> None:
    size = pages.page_size
    assert pages.page_count == len(image) // size
    for number in range(pages.page_count, 0, -1):
        found, expected = bytearray(pages.page(number)), bytearray(image[(number - 1) * size : number * size])
        if number == 1:
            found[_CHANGED_IN_A_SNAPSHOT] = expected[_CHANGED_IN_A_SNAPSHOT] = b""
        assert found == expected, number
    for number in range(2, pages.page_count + 1):
        assert pages.hash_of(number) == pages_module.page_hash(pages.page(number))


@pytest.mark.parametrize("most_frame_bytes", [1, 1 << 20])
def test_every_page_of_every_moment_is_the_right_one(
    followed: Followed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_frame_bytes: int
) -> None:
    """Of snapshots and of commits after them, backwards and with the memory of one frame too."""
    monkeypatch.setattr(pages_module, "_MOST_FRAME_BYTES", most_frame_bytes)
    for state in followed.states[2:]:
        at = (state.seen_at + _MS).isoformat()
        point = find_restore_point([followed.repository], at, database="app", now=state.seen_at + _MS)
        with opened_pages(point, tmp_path) as pages:
            _reject_wrong_pages(pages, state.image)


def test_what_was_read_of_a_bucket_is_not_read_again_and_stays_encrypted(followed: Followed, tmp_path: Path) -> None:
    """The cache holds what the store has; a file of it that was damaged counts as absent."""
    cache = tmp_path / "cache"
    cache.mkdir()
    bucket = _Bucket(followed.repository.store)
    archive = Repository(bucket, followed.repository.state, followed.repository.encryption).archive("app")
    point = RestorePoint(archive, archive.opened(archive.manifest(followed.snapshots[0])))

    def read() -> list[tuple[object, ...]]:
        with opened_point(point, cache) as (_, connection):
            return connection.execute("SELECT * FROM note ORDER BY id").fetchall()

    rows = read()
    assert len(rows) == 2000
    bucket.calls.clear()
    assert read() == rows
    assert bucket.calls == []
    files = [*cache.iterdir()]
    is_plain = any(b"note 00" in file.read_bytes() for file in files)
    assert not (is_plain and followed.repository.encryption.is_on)
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert read() == rows
    assert bucket.calls


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    """What was asked for is given, and the reason is reported."""
    stored = Stored(tmp_path)
    stored.back_up()
    reasons: list[str] = []
    store = CachedStore(stored.store, tmp_path / "missing", on_failure=reasons.append)
    (key,) = (found.key for found in stored.store.list("app/packs/"))
    assert store.get(key, limit_bytes=1 << 24) == stored.store.get(key, limit_bytes=1 << 24)
    assert reasons


def test_the_cache_is_bounded_and_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old files go when there are too many bytes; other objects than packs and segments are never kept."""
    monkeypatch.setattr("backupd.store.cached._COUNTED_AFTER_BYTES", 1)
    stored = Stored(tmp_path)
    stored.back_up(rows=200)
    (key,) = (found.key for found in stored.store.list("app/packs/"))
    cache = tmp_path / "cache"
    cache.mkdir()
    store = CachedStore(stored.store, cache, on_failure=pytest.fail, most_bytes=100_000)
    for number in range(40):
        store.get_range(key, offset=0, length=9000)
        store.get_range(key, offset=number, length=9000)
        assert sum(file.stat().st_size for file in cache.iterdir()) <= 110_000
    counting = FaultyStore(stored.store)
    CachedStore(counting, cache, on_failure=pytest.fail).get_range(key, offset=0, length=9000)
    assert counting.calls == []
    manifest = next(found.key for found in stored.store.list("app/snapshots/"))
    before = {*cache.iterdir()}
    store.get(manifest, limit_bytes=1 << 20)
    assert {*cache.iterdir()} == before


def test_damage_is_an_error_that_names_page_and_pack(tmp_path: Path) -> None:
    """Rows in other frames are still read."""
    stored = Stored(tmp_path)
    snapshot = stored.back_up(rows=2000)
    archive = stored.repository().archive("app")
    point = RestorePoint(archive, archive.opened(archive.manifest(snapshot)))
    pack = stored.packs()[0]
    content = bytearray(pack.read_bytes())
    content[-1000] ^= 1
    pack.write_bytes(content)
    with opened_point(point, tmp_path) as (_, connection):
        assert connection.execute("SELECT length(a) FROM t WHERE rowid = 1").fetchall() == [(3000,)]
        with pytest.raises(apsw.IOError):
            connection.execute("SELECT sum(length(a)) FROM t").fetchall()
    with (
        pytest.raises(DamageError, match=rf"page \d+ of snapshot {snapshot} cannot be read: .*{pack.name}"),
        opened_point(point, tmp_path) as (_, connection),
    ):
        connection.execute("SELECT sum(length(a)) FROM t").fetchall()


def test_a_point_query_reads_a_few_frames(tmp_path: Path) -> None:
    """A row costs the way to it in the tree: not the table."""
    stored = Stored(tmp_path)
    snapshot = stored.back_up(rows=8000)
    counting = stored.counting()
    archive = stored.repository(counting).archive("app")
    point = RestorePoint(archive, archive.opened(archive.manifest(snapshot)))
    counting.calls.clear()
    with opened_point(point, tmp_path) as (_, connection):
        assert connection.execute("SELECT length(a) FROM t WHERE rowid = 4000").fetchall() == [(3000,)]
    assert counting.calls.count("get_range") <= 8
    assert json.dumps(counting.calls).count("get") <= 8
