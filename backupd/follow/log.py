"""One write-ahead log, read while others write it: its commits in their order, or the reason why some may be missing.

The log is a header and frames, each of which has one page. A frame counts when it has the salts of the header and a
checksum that continues that of the frame before, and a transaction counts when its last frame says so
(https://www.sqlite.org/fileformat2.html#walformat). A `Position` is what the next poll needs to continue.

A log that was checkpointed is written again from its beginning, with the first salt one higher. What was added to the
old log since the last poll is still there if the new frames have not come so far: they are written one after the other,
so that the frame behind the position, and the one at it, show whether they have. Every doubt is a `Gap`.

Nothing here opens the database. The log has no locks that opening and closing could drop.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from backupd.format import is_page_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    import numpy.typing as npt

MOST_COMMIT_BYTES = 64 << 20
"""The most bytes of page images in one commit that is followed; a larger one is a gap, and a snapshot costs less."""

REMOVED = "the log was removed: the last connection was closed, or the journal mode changed"
REPLACED = "another log is in its place"

_MOST_POLL_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20
_FEWEST_FRAMES_AT_ONCE = 32
_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint sequence, two salts, two words of checksum
_FRAME = struct.Struct(">6I")  # page number, database size after a commit or 0, two salts, two words of checksum
_FRAME_WORDS = _FRAME.size // 4
_LITTLE_ENDIAN, _BIG_ENDIAN = 0x377F0682, 0x377F0683
_VERSION = 3007000
_WORD = 0xFFFFFFFF
_COARSEST_TIMESTAMP_NS = 50_000_000
_TRUST_STAT_SECONDS = 60.0
_WRITTEN_OVER = "the log was written over before it was read to its end"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_Pair = tuple[int, int]


class Position(NamedTuple):
    """How far a log has been read: up to a commit, or up to its header."""

    boot: str
    """The boot of the machine. A loss of power may take frames out of the middle of what was not yet synced."""
    device: int
    inode: int
    page_size: int
    is_big_endian: bool
    """The order of the bytes in words that the checksums add: that of the machine that began the log."""
    salts: _Pair
    frame: int
    """The number of the last frame of the last commit, from 1; 0 at the header."""
    checksum: _Pair
    """The checksum of that frame, or of the header."""
    start: int
    """The number of the first frame of the last commit; 0 at the header."""
    start_checksum: _Pair
    """The checksum before that frame. A commit whose writer was killed before it made it known is written over from
    there by the next one, whose first frames may be the same."""


class LogCommit(NamedTuple):
    """One committed transaction: the last version of each page that it wrote, by ascending page number."""

    page_size: int
    page_count: int
    """The size of the database after it, in pages."""
    pages: tuple[int, ...]
    images: bytes


class Gap(NamedTuple):
    """Commits may be missing here."""

    reason: str


class _Header(NamedTuple):
    is_big_endian: bool
    page_size: int
    salts: _Pair
    checksum: _Pair


class _Frame(NamedTuple):
    number: int
    page: int
    page_count: int
    """The size of the database after the commit that this frame ends; 0 in all others."""
    checksum: _Pair
    image: memoryview


class _Pending:
    """The frames of the transaction that is being read: the last version of each page."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._first: _Frame | None = None
        self.checksum_before: _Pair = (0, 0)
        """The checksum before its first frame."""
        self._images: dict[int, bytes] = {}
        self._frames = 0
        self._is_too_large = False

    @property
    def first(self) -> _Frame:
        """Its first frame."""
        if self._first is None:
            raise RuntimeError("the transaction has no frame")
        return self._first

    @property
    def has_frames(self) -> bool:
        """Whether it has begun."""
        return self._frames > 0

    @property
    def is_one_frame(self) -> bool:
        """Whether it has one frame."""
        return self._frames == 1

    def add(self, frame: _Frame) -> None:
        """Take the next frame."""
        self._first = self._first or frame
        self._frames += 1
        self._images[frame.page] = bytes(frame.image)  # a view would keep all that was read with it
        if len(self._images) * self._page_size > MOST_COMMIT_BYTES:
            self._is_too_large = True
            self._images.clear()

    def commit(self, page_count: int) -> LogCommit | Gap:
        """Return what the transaction wrote, or a gap when that is too much; the next one begins with the next frame.

        Pages beyond the size of the database, `page_count`, are left out.
        """
        pages = tuple(sorted(page for page in self._images if page <= page_count))
        commit = LogCommit(self._page_size, page_count, pages, b"".join([self._images[page] for page in pages]))
        is_too_large = self._is_too_large
        self.clear()
        return Gap(f"a transaction wrote more than {MOST_COMMIT_BYTES >> 20} MiB") if is_too_large else commit

    def clear(self) -> None:
        """Begin the next transaction."""
        self._first, self._frames, self._is_too_large = None, 0, False
        self._images.clear()


class LogFollower:
    """Reads one log with every `poll`. `path` is that of the log; it need not exist.

    With a `position`, it continues from there if that can be proven. Without one, and after each gap, it begins with
    the last commit in the log: who began to read just before may not have seen that one yet, and has seen all others.
    """

    def __init__(self, path: str | os.PathLike[str], position: Position | None = None) -> None:
        self.position = position
        """After the last commit that `poll` has returned; None when there is nothing to continue from."""
        self.is_behind = False
        """Whether the last poll left commits for the next one, to bound its memory."""
        self.path = os.fspath(path)
        self._descriptor: int | None = None
        self._file: _Pair | None = None
        self._seen: tuple[int, int, int, int] | None = None
        self._looked_at = 0.0
        self._is_header_torn = False
        self._largest = 0
        """The size of the log when it was largest, as far as its frames are followed without a gap."""
        self._frames_at_once = _FEWEST_FRAMES_AT_ONCE
        """How many frames to read first: a little more than the last time. Behind the new ones are those of a log that
        was written over, and reading them, too, costs as much."""
        self._valid_frames = 0
        """How many frames of the log were valid at the last look, committed or not."""

    @property
    def is_open(self) -> bool:
        """Whether it has a log open, which the next poll compares with the file at the path."""
        return self._descriptor is not None

    @property
    def open_frames(self) -> int:
        """How many frames of a transaction that is not committed yet the last look has read."""
        return 0 if self.position is None else max(0, self._valid_frames - self.position.frame)

    def look_closely(self) -> None:
        """Let the next poll read the log even if `stat` shows no change."""
        self._seen = None

    def close(self) -> None:
        """Close the log. Repeatable."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._file, self._seen, self._largest = None, None, None, 0

    def poll(self) -> list[LogCommit | Gap]:
        """Return what was committed since the last poll, in order, and a gap wherever a commit may be missing.

        Raises OSError when the log cannot be read; nothing is lost by that. Never returns one commit twice.
        """
        try:
            found = os.lstat(self.path)
            if self._shows_nothing_new(found):
                return []
            reason = self._open(found)
        except FileNotFoundError:
            self.close()
            reason = REMOVED
        if reason is not None:
            return self._lost(reason)
        self.is_behind = False
        happened = list(self._read())
        self._largest = max(self._largest, found.st_size)
        return happened

    def is_at_rest(self) -> bool:
        """Whether a poll would find nothing, as `stat` tells. Changes nothing: `poll` looks for itself."""
        if self._seen is None or self.is_behind or time.monotonic() - self._looked_at >= _TRUST_STAT_SECONDS:
            return False
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) == self._seen

    def _shows_nothing_new(self, found: os.stat_result) -> bool:
        """Whether the log looks as at the last poll, and was quiet for long enough before that for `stat` to tell."""
        seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        now = time.monotonic()
        is_quiet = time.time_ns() - found.st_mtime_ns > _COARSEST_TIMESTAMP_NS
        if seen == self._seen and not self.is_behind and now - self._looked_at < _TRUST_STAT_SECONDS:
            return True
        self._seen, self._looked_at = seen if is_quiet else None, now
        return False

    def _lost(self, reason: str) -> list[LogCommit | Gap]:
        """Give up the position, if there is one: the gap, or nothing when there is nothing to lose."""
        self._seen, self.is_behind = None, False
        if self.position is None:
            return []
        self.position = None
        return [Gap(reason)]

    def _open(self, found: os.stat_result) -> str | None:
        """Open the file at the path unless it is open; return why what is there does not continue the position."""
        file = (found.st_dev, found.st_ino)
        if file != self._file:
            self.close()
            # O_NONBLOCK: a pipe in its place must not hang.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            self._descriptor = descriptor
            opened = os.fstat(descriptor)
            if not stat.S_ISREG(opened.st_mode):
                self.close()
                return "something that is no file is in the place of the log"
            self._file = file = (opened.st_dev, opened.st_ino)
        if self.position is None:
            return None
        if self.position.boot != boot_id():
            return "the machine was restarted"
        if (self.position.device, self.position.inode) != file:
            return REPLACED
        return None

    def _read(self) -> Iterator[LogCommit | Gap]:
        header = self._header()
        if header is None:
            yield from self._without_header()
            return
        self._is_header_torn = False
        if self.position is None:
            yield from self._begin(header)
            return
        if header.page_size != self.position.page_size:
            yield from self._begin_again(header, "the page size changed")
            return
        if header.salts == self.position.salts:
            position = self.position
            if self._is_where_it_was(header):
                commits = list(self._commits(header))
                if self._is_last_commit_whole(position, header):
                    yield from commits
                    return
            again = self._header()
            if again is None or again.salts == header.salts:
                yield from self._begin_again(header, "the log went back: what was written last was replaced")
                return
            header = again  # it was reset between the two looks
        yield from self._after_reset(header)

    def _without_header(self) -> Iterator[LogCommit | Gap]:
        """An empty log, or one whose header is being written: only the next poll can tell."""
        if self._size() == 0:
            yield from self._lost("the log was truncated")
        elif self._is_header_torn:
            yield from self._lost("the header of the log is not valid")
        self._is_header_torn = True
        self._seen = None

    def _after_reset(self, header: _Header) -> Iterator[LogCommit | Gap]:
        """Continue behind a reset of the log, if all of what it had before can be proven to be there still."""
        position = self._known
        if header.salts[0] != (position.salts[0] + 1) & _WORD:
            yield from self._begin_again(header, "the log was begun again, perhaps more than once")
            return
        if not self._is_in_place(position):
            yield from self._begin_again(header, _WRITTEN_OVER)
            return
        old = header._replace(salts=position.salts, is_big_endian=position.is_big_endian)
        tail = list(self._commits(old, limit=MOST_COMMIT_BYTES))
        if self.is_behind:
            yield from self._begin_again(header, "too much was committed since the last look")
            return
        if not self._is_old_end(position, old, header):
            self.position = position
            yield from self._begin_again(header, _WRITTEN_OVER)
            return
        yield from tail
        self.position = self._at_header(header)
        yield from self._commits(header)

    def _is_old_end(self, before: Position, old: _Header, header: _Header) -> bool:
        """Whether the log `header` has not come as far as the position `before`, and the old log was not cut there.

        Frames are written in their order, each with its own salts first: as long as the frame at `before` is the old
        one, all behind it are. SQLite may cut the file at the first commit after a reset (`journal_size_limit`): then
        the frame behind the last valid one is missing. So it is when the log has never been longer.
        """
        frame_bytes = _FRAME.size + before.page_size
        end, size = _HEADER.size + self._valid_frames * frame_bytes, self._size()
        is_uncut = size >= end + frame_bytes or (size == end and size >= self._largest)
        # What ends the old log is older than it: a new frame may have written over a commit. A frame has no salts while
        # its transaction is open, if that has written one of its frames again.
        is_written_over = self._frame(self._valid_frames + 1, before.page_size)[2:4] in {header.salts, (0, 0)}
        if not is_uncut or is_written_over or not self._is_last_commit_whole(before, old):
            return False
        # After the size: as long as this frame is the old one, no new one has made the log longer.
        return self._is_in_place(before) and self._header() == header

    def _is_in_place(self, position: Position) -> bool:
        """Whether the frame at the position is where it was. Not at a header: the one that was there is gone."""
        return position.frame > 0 and self._frame(position.frame, position.page_size)[4:] == position.checksum

    def _begin_again(self, header: _Header, reason: str) -> Iterator[LogCommit | Gap]:
        yield from self._lost(reason)
        yield from self._begin(header)

    def _begin(self, header: _Header) -> Iterator[LogCommit | Gap]:
        """Take the last commit in the log, and nothing before it."""
        self.position = self._at_header(header)
        self._largest = 0
        last: LogCommit | Gap | None = None
        self.is_behind = True
        while self.is_behind:
            for each in self._commits(header):
                last = each
        if self._header() != header:  # it was reset meanwhile: what comes last is not known
            self.position = None
            self._seen = None
        elif isinstance(last, LogCommit):
            yield last

    def _at_header(self, header: _Header) -> Position:
        device, inode = self._file or (0, 0)
        return Position(
            boot=boot_id(),
            device=device,
            inode=inode,
            page_size=header.page_size,
            is_big_endian=header.is_big_endian,
            salts=header.salts,
            frame=0,
            checksum=header.checksum,
            start=0,
            start_checksum=(0, 0),
        )

    def _commits(self, header: _Header, limit: int = _MOST_POLL_BYTES) -> Iterator[LogCommit | Gap]:
        """Yield the commits behind the position, which follows them; at most about `limit` bytes of images."""
        self.is_behind = False
        pending = _Pending(header.page_size)
        taken = 0
        self._valid_frames, checksum = self._known.frame, self._known.checksum
        for frame in self._frames(header, self._known):
            self._valid_frames = frame.number
            if not pending.has_frames:
                pending.checksum_before = checksum
            checksum = frame.checksum
            pending.add(frame)
            if not frame.page_count:
                continue
            if pending.is_one_frame and self._is_padding(frame):
                self.position = self._known._replace(frame=frame.number, checksum=frame.checksum)
                pending.clear()
                continue
            self.position = self._known._replace(
                frame=frame.number,
                checksum=frame.checksum,
                start=pending.first.number,
                start_checksum=pending.checksum_before,
            )
            commit = pending.commit(frame.page_count)
            yield commit
            taken += len(commit.images) if isinstance(commit, LogCommit) else 0
            if taken >= limit:
                self.is_behind = True
                return

    def _is_padding(self, frame: _Frame) -> bool:
        """Whether a commit of one frame repeats the one before: SQLite fills a sector where writes may tear one.

        https://www.sqlite.org/c3ref/c_iocap_atomic.html, SQLITE_IOCAP_POWERSAFE_OVERWRITE. It belongs to that commit.
        """
        before = self._known
        if not before.frame:
            return False
        length = _FRAME.size + before.page_size
        data = os.pread(self._fileno, length, _HEADER.size + (before.frame - 1) * length)
        if len(data) < length:
            return False
        page, page_count, *_ = _FRAME.unpack_from(data)
        return (page, page_count) == (frame.page, frame.page_count) and data[_FRAME.size :] == frame.image

    def _frames(self, header: _Header, position: Position) -> Iterator[_Frame]:
        """Yield the frames behind `position` that belong to the log `header`."""
        frame_bytes = _FRAME.size + header.page_size
        most = max(1, _CHUNK_BYTES // frame_bytes)
        per_chunk = min(most, self._frames_at_once)
        number, checksum = position.frame, position.checksum
        while True:
            data = os.pread(self._fileno, per_chunk * frame_bytes, _HEADER.size + number * frame_bytes)
            frames = len(data) // frame_bytes
            if not frames:
                return
            chunk = _Chunk(header, data, frames)
            view, start = memoryview(data), _FRAME.size
            for page, page_count, checksum in chunk.valid(checksum):  # noqa: B020  (each continues the one before)
                number += 1
                yield _Frame(number, page, page_count, checksum, view[start : start + header.page_size])
                start += frame_bytes
            if chunk.is_at_end or frames < per_chunk:
                self._frames_at_once = max(_FEWEST_FRAMES_AT_ONCE, (number - position.frame) * 5 // 4)
                return
            per_chunk = most

    def _is_where_it_was(self, header: _Header) -> bool:
        """Whether the log, with the salts of the position, still has the commit that the position is behind."""
        position = self._known
        if not position.frame:  # before the first commit, each writer may put the header again
            self.position = self._at_header(header)
            return True
        last = self._frame(position.frame, position.page_size)
        return (last[2:4], last[4:]) == (position.salts, position.checksum)

    def _is_last_commit_whole(self, position: Position, header: _Header) -> bool:
        """Whether the frames of the last commit still continue each other, as far as no reset wrote over them.

        It need not be looked at if valid frames follow: who wrote them knew of the commit. `header` is that of the log
        that has the commit.
        """
        if self._valid_frames > position.frame or not position.frame:
            return True
        low, high = position.start, position.frame
        while low < high:  # to the first one that was not written over
            middle = (low + high) // 2
            if self._frame(middle, position.page_size)[2:4] == position.salts:
                high = middle
            else:
                low = middle + 1
        before = position._replace(frame=low - 1, checksum=position.start_checksum)
        if low > position.start:
            checksum = self._frame(low, position.page_size)[4:]
            before = position._replace(frame=low, checksum=(checksum[0], checksum[1]) if checksum else (0, 0))
        if before.frame == position.frame:
            return True
        frames = self._frames(header, before)
        return any(frame.number == position.frame and frame.checksum == position.checksum for frame in frames)

    def _frame(self, number: int, page_size: int) -> tuple[int, ...]:
        """Return the six words before the page of a frame, counted from 1; none of them when the log ends there."""
        data = os.pread(self._fileno, _FRAME.size, _HEADER.size + (number - 1) * (_FRAME.size + page_size))
        return _FRAME.unpack(data) if len(data) == _FRAME.size else ()

    def _header(self) -> _Header | None:
        """Read the header; None when it is not a valid one."""
        data = os.pread(self._fileno, _HEADER.size, 0)
        if len(data) < _HEADER.size:
            return None
        magic, version, page_size, _, *rest = _HEADER.unpack(data)
        if magic not in (_LITTLE_ENDIAN, _BIG_ENDIAN) or version != _VERSION or not is_page_size(page_size):
            return None
        header = _Header(magic == _BIG_ENDIAN, page_size, (rest[0], rest[1]), (rest[2], rest[3]))
        return header if _checksum_of_header(data, is_big_endian=header.is_big_endian) == header.checksum else None

    def _size(self) -> int:
        return os.fstat(self._fileno).st_size

    @property
    def _fileno(self) -> int:
        if self._descriptor is None:
            raise RuntimeError("the log is not open")
        return self._descriptor

    @property
    def _known(self) -> Position:
        if self.position is None:
            raise RuntimeError("there is no position to continue from")
        return self.position


class _Chunk:
    """Frames that were read at once, and whose checksums are computed at once.

    SQLite's checksum adds two words after two words, modulo 2**32: s0 += x0 + s1, s1 += x1 + s0. That is linear: a
    whole frame is two sums of products, and the two sums before it count with the factors of a matrix.
    """

    def __init__(self, header: _Header, data: bytes, frames: int) -> None:
        import numpy as np  # noqa: PLC0415  (most logs are idle most of the time)

        width = _FRAME_WORDS + header.page_size // 4
        words = np.frombuffer(data, ">u4", count=frames * width).reshape(frames, width)
        heads = words[:, :_FRAME_WORDS].astype(np.int64)
        is_ours = (heads[:, 2] == header.salts[0]) & (heads[:, 3] == header.salts[1])
        ours = frames if is_ours.all() else int(np.argmin(is_ours))
        checked = np.frombuffer(data, ">u4" if header.is_big_endian else "<u4", count=ours * width)
        weights, self._factors = _weights(header.page_size)
        self._sums = checked.astype(np.uint32, copy=False).reshape(ours, width) @ weights
        self._heads = heads[:ours]
        self.is_at_end = ours < frames

    def valid(self, checksum: _Pair) -> Iterator[tuple[int, int, _Pair]]:
        """Yield page number, database size and checksum of each frame, as long as the checksums follow `checksum`."""
        import numpy as np  # noqa: PLC0415  (as above)

        # Each checksum follows the stored one before it, which is right as long as all before it are.
        stored = self._heads[:, 4:].astype(np.uint32)
        before = np.empty_like(stored)
        before[:1] = checksum
        before[1:] = stored[:-1]
        is_valid = (before @ self._factors + self._sums == stored).all(axis=1)
        valid = len(is_valid) if is_valid.all() else int(np.argmin(is_valid))
        self.is_at_end = self.is_at_end or valid < len(is_valid)
        for page, page_count, _, _, s0, s1 in self._heads[:valid].tolist():
            yield page, page_count, (s0, s1)


@lru_cache(maxsize=8)
def _weights(page_size: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return the factors of the words of a frame for both sums, and the matrix of those of the two sums before it.

    The words are those of the whole frame, and those that the checksum leaves out, the salts and itself, count nothing.
    """
    import numpy as np  # noqa: PLC0415  (as in `_Chunk`)

    covered = [0, 1, *range(_FRAME_WORDS, _FRAME_WORDS + page_size // 4)]
    weights = np.zeros((_FRAME_WORDS + page_size // 4, 2), dtype=np.uint32)
    a, b, c, d = 1, 0, 0, 1
    for x0, x1 in zip(reversed(covered[::2]), reversed(covered[1::2]), strict=True):
        weights[x0] = (a + b) & _WORD, (c + d) & _WORD
        weights[x1] = b, d
        a, b, c, d = (a + b) & _WORD, (a + 2 * b) & _WORD, (c + d) & _WORD, (c + 2 * d) & _WORD
    return weights, np.array([[a, c], [b, d]], dtype=np.uint32)


def _checksum_of_header(data: bytes, *, is_big_endian: bool) -> _Pair:
    s0 = s1 = 0
    words = struct.unpack(">6I" if is_big_endian else "<6I", data[:24])
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) & _WORD
        s1 = (s1 + x1 + s0) & _WORD
    return s0, s1


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the id of this boot of the machine; empty where the system does not tell it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
