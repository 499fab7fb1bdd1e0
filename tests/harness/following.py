"""A database in WAL mode whose commits are stored in segments: what a follower does, without one.

The log is read when no process writes it, so that no checksum of it is needed.
"""

from __future__ import annotations

import shutil
import sqlite3
import struct
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from backupd.backup import SnapshotRequest, back_up
from backupd.config import Database, Settings
from backupd.encryption import NO_ENCRYPTION, Encryption
from backupd.format import SnapshotId
from backupd.format.pack import page_hash
from backupd.format.segment import Anchor, Commit, SegmentHead, encode_segment
from backupd.repository import Repository
from backupd.state import StateDirectory
from backupd.store.directory import DirectoryStore
from harness.kept_workers import kept_workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.store.keys import SegmentKey

_HEADER_BYTES = 32
_FRAME_HEADER = struct.Struct(">6I")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def commits_in(log: Path) -> Iterator[Commit]:
    """The commits in a `-wal` file, without the times when they were seen.

    Source: https://www.sqlite.org/fileformat2.html#the_write_ahead_log. Frames with the salts of the header count.
    """
    content = log.read_bytes()
    size = int.from_bytes(content[8:12], "big")
    pages: dict[int, bytes] = {}
    for start in range(_HEADER_BYTES, len(content), _FRAME_HEADER.size + size):
        number, page_count, *salts = _FRAME_HEADER.unpack_from(content, start)[:4]
        if struct.pack(">2I", *salts) != content[16:24]:
            return
        image = start + _FRAME_HEADER.size
        pages[number] = content[image : image + size]
        if page_count:
            numbers = tuple(sorted(pages))
            yield Commit(0, page_count, numbers, b"".join(pages[each] for each in numbers))
            pages = {}


def checkpointed(database: Path) -> bytes:
    """The bytes of a database in WAL mode as they are when its log is empty: those of a copy of it."""
    with TemporaryDirectory() as directory:
        copy = Path(directory) / "copy.db"
        for suffix in ("", "-wal"):
            shutil.copy(f"{database}{suffix}", f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return copy.read_bytes()


def with_counter(image: bytes, page_size: int) -> bytes:
    """The image with the change counter that FORMAT.md, section 8, gives it."""
    first, rest = bytearray(image[:page_size]), image[page_size:]
    first[24:28] = first[92:96] = bytes(4)
    hashes = b"".join(page_hash(rest[start : start + page_size]) for start in range(0, len(rest), page_size))
    first[24:28] = first[92:96] = blake3(bytes(first) + hashes).digest()[:4]
    return bytes(first) + rest


class State(NamedTuple):
    """The state after one commit: when it was seen, and the image that a restore of it gives."""

    seen_at: datetime
    image: bytes


class Followed:
    """The database `app.db` in `home`, and its archive in `home/backups`. Each statement is one commit."""

    def __init__(self, home: Path, *, page_size: int = 4096, encryption: Encryption = NO_ENCRYPTION) -> None:
        self.path = home / "app.db"
        self.repository = Repository(DirectoryStore(home / "backups"), StateDirectory(home / "state"), encryption)
        self.archive = self.repository.archive("app")
        self.states: list[State] = []
        """Those of all commits, in all windows."""
        self.snapshots: list[SnapshotId] = []
        self._page_size = page_size
        self._pending: list[Commit] = []
        self._anchors: list[Anchor] = []
        self._connection = sqlite3.connect(self.path, isolation_level=None)
        for pragma in (f"page_size = {page_size}", "journal_mode = WAL", "wal_autocheckpoint = 0"):
            self._connection.execute(f"PRAGMA {pragma}")
        self.begin_window(None)

    def close(self) -> None:
        """Close the application's connection."""
        self._connection.close()

    def begin_window(self, gap: str | None) -> None:
        """Begin a recovery window, because of a gap."""
        self._window = SnapshotId.new(_EPOCH + timedelta(milliseconds=self._tick()), len(self.states))
        self._gap, self._first, self._count = gap, 1, 0

    def execute(self, *statements: str) -> State:
        """Make each statement a commit, but for those of a transaction that go before its COMMIT.

        Returns the state after the last one.
        """
        for statement in statements:
            self._connection.execute(statement)
            if self._connection.in_transaction:
                continue
            commit = list(commits_in(Path(f"{self.path}-wal")))[-1]
            seen_at_ms = self._tick()
            self._pending.append(commit._replace(seen_at_ms=seen_at_ms))
            self._count += 1
            image = with_counter(checkpointed(self.path), self._page_size)
            self.states.append(State(_EPOCH + timedelta(milliseconds=seen_at_ms), image))
        return self.states[-1]

    def miss(self, statement: str) -> None:
        """Make a commit that is not followed."""
        self._connection.execute(statement)

    def snapshot(self, *, after: int | None = None, by: int | None = None) -> SnapshotId:
        """Take a snapshot, whose anchor is in the next segment: after the last commit, or a wider span around it."""
        self._tick()
        (result,) = back_up(
            Database(name="app", path=self.path),
            [self.repository],
            Settings(),
            request=SnapshotRequest(),
            on_progress=lambda _: None,
            workers=kept_workers(),
        )
        assert result.id is not None
        span = (self._count if each is None else each for each in (after, by))
        self._anchors.append(Anchor(snapshot=result.id, after=next(span), by=next(span)))
        self.snapshots.append(result.id)
        return result.id

    def cut(self, *, level: int = 1) -> SegmentKey:
        """Store the commits since the last cut in a segment."""
        head = SegmentHead(
            database="app",
            window=self._window,
            first=self._first,
            page_size=self._page_size,
            anchors=tuple(self._anchors),
            gap=self._gap if self._first == 1 else None,
        )
        key = self.archive.put_segment(encode_segment(head, self._pending, level=level))
        self._first, self._pending, self._anchors = self._count + 1, [], []
        return key

    @staticmethod
    def _tick() -> int:
        """Wait for the next millisecond, because times of commits and snapshots differ; return it."""
        before = time.time_ns() // 1_000_000
        while (now := time.time_ns() // 1_000_000) == before:
            time.sleep(0.0005)
        return now
