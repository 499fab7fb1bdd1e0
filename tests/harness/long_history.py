"""A database with as many snapshots as a test asks for, written by the project's own code in one process.

Ten thousand take half a minute: no process is started for each, and nothing is flushed to the disk.
"""

from __future__ import annotations

import hashlib
import itertools
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from backupd.backup import SnapshotRequest, back_up
from backupd.backup.assembly import WrittenPack, assemble
from backupd.config import Database, Settings
from backupd.format import SnapshotId
from backupd.format.manifest import encode_manifest
from backupd.format.pack import HASH_BYTES, page_hash
from backupd.format.pagemap import encode_page_map, image_digest
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from backupd.store.keys import SnapshotKey
from harness.packs import decode_pack, encode_pack, entry_of

if TYPE_CHECKING:
    from pathlib import Path

    from backupd.format.manifest import Manifest
    from backupd.repository.archive import Archive

_CONTENT_BYTES = 100_000
_CHANGED_AT = 64
_INTERVAL = timedelta(minutes=15)


class UnflushedStore(DirectoryStore):
    """A directory store that leaves it to the kernel when objects reach the disk."""

    def put(self, key: str, content: bytes | Path, *, sha256: bytes) -> None:
        """Write one object in place; the first of a directory is put as usual, so that its modes are right."""
        file = self._root / key
        if not isinstance(content, bytes) or not file.parent.exists():
            super().put(key, content, sha256=sha256)
            return
        file.write_bytes(content)
        file.chmod(0o600)


def write_long_history(
    database: Path,
    store: Path,
    snapshots: int,
    *,
    name: str = "app",
    ended_at: datetime | None = None,
    interval: timedelta = _INTERVAL,
) -> list[SnapshotId]:
    """Make `database` of about 100 kB, and a repository at `store` with `snapshots` (at least 1) of it, oldest first.

    Each snapshot differs from the one before in one page, and is `interval` younger; the last was taken at `ended_at`
    (aware; by default `interval` ago), and `database` has its content but for the change counter of SQLite. All of them
    restore to a sound database.
    """
    _make_database(database)
    scratch = database.with_name(f"{database.name}-first-state")
    repository = Repository(UnflushedStore(store), StateDirectory(scratch))
    (result,) = back_up(
        Database(name, database), [repository], Settings(), request=SnapshotRequest(), on_progress=lambda _: None
    )
    if result.id is None:
        raise RuntimeError(f"no snapshot of {database}: {result.error}")
    archive = repository.archive(name)
    manifest = archive.opened(archive.manifest(result.id))
    # The first one was taken now. All others are older: one that has its content, and an earlier time, replaces it.
    started_at = (ended_at or datetime.now(UTC) - interval) - (snapshots - 1) * interval
    history = _History(archive, database, manifest)
    ids = [history.add(started_at + number * interval, number) for number in range(snapshots)]
    archive.delete_manifest(manifest.id)
    history.write_database()
    return ids


def _make_database(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE documents (content BLOB)")
        connection.execute("INSERT INTO documents VALUES (zeroblob(?))", (_CONTENT_BYTES,))


class _History:
    """The newest snapshot and what the next one needs of it."""

    def __init__(self, archive: Archive, database: Path, first: Manifest) -> None:
        self._archive = archive
        self._database = database
        self._newest = first
        self._map = archive.page_map(first)
        self._images: dict[int, bytes] = {}
        for pack in first.packs:
            content = archive.repository.store.get(archive.pack_key(pack), limit_bytes=pack.most_bytes)
            index, images = decode_pack(content)
            for position, number in enumerate(np.frombuffer(index.page_numbers, dtype="<u4").tolist()):
                self._images[number] = images[position * first.page_size : (position + 1) * first.page_size]
        self._hashes = bytearray(b"".join(page_hash(self._images[number]) for number in sorted(self._images)))
        # The pages of the one long value, but for the last: past their first bytes they hold nothing but its content.
        self._changed = itertools.cycle(range(3, first.page_count))

    def add(self, taken_at: datetime, number: int) -> SnapshotId:
        """Change one page and write a snapshot of that, the way a capture and a commit would. Its id."""
        newest, page = self._newest, next(self._changed)
        image = bytearray(self._images[page])
        image[_CHANGED_AT : _CHANGED_AT + 32] = hashlib.sha256(number.to_bytes(8)).digest()
        self._images[page] = bytes(image)
        digest = page_hash(self._images[page])
        self._hashes[(page - 1) * HASH_BYTES : page * HASH_BYTES] = digest
        written = self._put_pack(page, digest)
        packs, self._map = assemble(newest.page_size, newest.page_count, newest.packs, self._map, [written])
        snapshot_id = SnapshotId.new(taken_at, number)
        self._newest = replace(
            newest,
            id=snapshot_id,
            # The first of the history takes the place of the snapshot that it was made from.
            sequence=number + 1,
            base=newest.id if number else None,
            changed_pages=1,
            stored_bytes=written.entry.stored_bytes,
            image_digest=image_digest(self._hashes),
            packs=packs,
            page_map=encode_page_map(self._map),
        )
        # Not `Archive.commit`, which lists the store each time.
        key = str(SnapshotKey(self._archive.database, str(snapshot_id)))
        self._archive.repository.put_object(key, encode_manifest(self._newest))
        return snapshot_id

    def _put_pack(self, page: int, digest: bytes) -> WrittenPack:
        content = encode_pack(self._newest.page_size, [page], digest, self._images[page], level=2)
        entry = entry_of(content)
        self._archive.repository.store.put(self._archive.pack_key(entry), content, sha256=bytes.fromhex(entry.sha256))
        return WrittenPack(entry, page.to_bytes(4, "little"))

    def write_database(self) -> None:
        """Give the database the content of the newest snapshot, whose first page SQLite's backup has completed."""
        with self._database.open("r+b") as file:
            for number, image in self._images.items():
                if number > 1:
                    file.seek((number - 1) * self._newest.page_size)
                    file.write(image)
