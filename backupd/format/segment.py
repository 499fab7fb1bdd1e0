"""Segments: consecutive commits of a database, taken from its write-ahead log, in one immutable object.

FORMAT.md, "Segments", is the specification. This module does not import numpy: a follower must stay small.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from operator import attrgetter, itemgetter, lt
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import zstandard
from msgspec import Meta

from backupd.format import (
    FORMAT_VERSION,
    MAX_IMAGE_PAGES,
    FormatError,
    NewerFormatError,
    SnapshotId,
    is_page_size,
    lock_page,
)
from backupd.format.seal import Name, Text, Value, decode_versioned_as, values_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

MAX_COMMIT_NUMBER = 10**12 - 1
"""The highest number of a commit in its window."""

MAX_SEGMENT_RAW_BYTES = 64 << 20
"""The most bytes of page images in one segment, uncompressed."""

SEGMENT_LEVEL = 6
"""Measured on 600 commits of the sample database in one minute, 12.2 MB of images, in segments of 10 s (and of 1 s):
level 2 stores 2.54 MB (3.64 MB) in 0.05 s, level 3 2.53 MB in 0.09 s, level 6 2.35 MB (3.45 MB) in 0.19 s, level 9
2.31 MB in 0.22 s, and level 19 2.23 MB in 3.6 s. The last version of each page alone takes 2.32 MB at level 6: later
versions beside earlier ones cost 1 to 2 %. A longer window, long-distance matching, and XOR with the version before
save less than 1 % or nothing."""

_MAX_CONTENT_BYTES = 80 << 20
_MAX_HEAD_BYTES = 1 << 20
_SKIPPABLE_MAGIC = 0x184D2A5B  # one of the sixteen of skippable frames in RFC 8878, section 3.1.2
_PREFIX = struct.Struct("<II4sI")  # frame magic, frame size, "bksg", version
_FRAME_BYTES = 8
_TAG = b"bksg"
_LENGTH = struct.Struct("<I")
_COMMIT = struct.Struct("<QII")  # time seen, pages of the database, number from that of the first commit on
_IMAGE = struct.Struct("<II")  # page number, index of the commit
_LAST_MILLISECOND = 253402300799999  # of the year 9999

MAX_SEGMENT_BYTES = _PREFIX.size + _MAX_CONTENT_BYTES + (_MAX_CONTENT_BYTES >> 8) + (1 << 16)
"""The largest valid segment: content that zstd could not compress at all."""

MAX_ENCRYPTED_SEGMENT_BYTES = MAX_SEGMENT_BYTES + (1 << 16) + 16 + -(-MAX_SEGMENT_BYTES // (1 << 16)) * 16
"""The largest encrypted segment: 64 KiB for age's header, a nonce, a tag per 64 KiB (https://age-encryption.org/v1)."""


class Anchor(Value, frozen=True):
    """The place of a snapshot in a window: its state is that after one of the commits `after` to `by`.

    `after` may be 0: the state before commit 1. The snapshot and the pages of the commits `after + 1` to `n` are
    exactly the state after commit `n`, for each `n` from `by` on.
    """

    snapshot: SnapshotId
    after: Annotated[int, Meta(ge=0, le=MAX_COMMIT_NUMBER)]
    by: Annotated[int, Meta(ge=0, le=MAX_COMMIT_NUMBER)]


class SegmentHead(Value, frozen=True):
    """What a segment says of itself. `encode_segment` fills in `last`, `commits` and `images`."""

    database: Name
    window: SnapshotId
    """The id of the recovery window: the time of its beginning, and a random part."""
    first: Annotated[int, Meta(ge=1, le=MAX_COMMIT_NUMBER)]
    """The number of its first commit in the window, from 1."""
    page_size: int
    anchors: tuple[Anchor, ...] = ()
    gap: Text | None = None
    """Why the window before this one ended; only in the first segment of a window."""
    last: Annotated[int, Meta(ge=0, le=MAX_COMMIT_NUMBER)] = 0
    """The number of its last commit in the window."""
    commits: int = 0
    """How many of the commits `first` to `last` it has: all, unless it was thinned."""
    images: int = 0


class Commit(NamedTuple):
    """One commit: when it was seen (milliseconds since 1970, UTC), the size of the database after it, and its pages.

    `images` has the last version of each page, in the order of `pages`, which ascend strictly. `others` is how many
    commits before it were left out, whose pages are among its own.
    """

    seen_at_ms: int
    page_count: int
    pages: tuple[int, ...]
    images: bytes
    others: int = 0


class SeenCommit(NamedTuple):
    """A commit of a segment without its pages: when it was seen, in ms, and how many pages the database had then.

    `offset` is its number in the window less that of the first commit of the segment.
    """

    seen_at_ms: int
    page_count: int
    offset: int


class Changes(NamedTuple):
    """The last version of each page that some commits wrote: page numbers, strictly ascending, and their images."""

    pages: tuple[int, ...]
    images: bytes


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment that was read. `decode_segment` makes it."""

    head: SegmentHead
    commits: tuple[SeenCommit, ...]
    _table: tuple[tuple[int, int], ...]
    """Page number and index of the commit of each image, ascending."""
    _images: memoryview

    @property
    def first(self) -> int:
        """The number of its first commit in the window."""
        return self.head.first

    @property
    def last(self) -> int:
        """The number of its last commit in the window."""
        return self.head.last

    @property
    def is_thinned(self) -> bool:
        """Whether commits were left out: of these, only the pages are there, as those of later ones."""
        return self.head.commits < self.last - self.first + 1

    @property
    def numbers(self) -> list[int]:
        """The numbers of its commits in the window, ascending; the last one is `last`."""
        return [self.first + commit.offset for commit in self.commits]

    @property
    def image_bytes(self) -> int:
        """The size of all its page images."""
        return len(self._images)

    def index_of(self, number: int) -> int:
        """Return the index of the first commit whose number in the window is `number` or above, up to `last`."""
        return bisect_left(self.commits, number - self.first, key=attrgetter("offset"))

    def pages_of(self, number: int) -> tuple[int, ...]:
        """The numbers of the pages that commit `number` (in the window) wrote, ascending."""
        index = self.index_of(number)
        return tuple(page for page, commit in self._table if commit == index)

    def with_images(self) -> list[Commit]:
        """All of its commits with their pages, as `encode_segment` takes them."""
        size = self.head.page_size
        places: list[list[int]] = [[] for _ in self.commits]
        for place, (_, commit) in enumerate(self._table):
            places[commit].append(place)
        offsets = [-1, *(commit.offset for commit in self.commits)]
        return [
            Commit(
                commit.seen_at_ms,
                commit.page_count,
                tuple(self._table[place][0] for place in of_commit),
                b"".join([self._images[place * size : (place + 1) * size] for place in of_commit]),
                commit.offset - before - 1,
            )
            for commit, of_commit, before in zip(self.commits, places, offsets, strict=False)
        ]

    def changes(self, after: int, until: int) -> Changes:
        """The last version of each page in the commits above `after`, up to `until`, by their numbers in the window."""
        newest = dict(self.newest(after, until))
        return Changes(tuple(newest), b"".join(newest.values()))

    def newest(self, after: int, until: int) -> Iterator[tuple[int, memoryview]]:
        """Yield what `changes` has, page by page: their numbers, strictly ascending, and their images."""
        low, high = self.index_of(after + 1), self.index_of(until + 1)
        places = {page: place for place, (page, commit) in enumerate(self._table) if low <= commit < high}
        size = self.head.page_size
        for page, place in places.items():
            yield page, self._images[place * size : (place + 1) * size]


def thinned(commits: Iterable[Commit], step_ms: int) -> list[Commit]:
    """Return the last one of those `commits` that were seen in the same `step_ms` since 1970, with the pages of all.

    `commits` follow each other.
    """
    kept = []
    for _, run in groupby(commits, key=lambda commit: commit.seen_at_ms // step_ms):
        images: dict[int, memoryview] = {}
        others = -1
        for commit in run:
            view, others = memoryview(commit.images), others + commit.others + 1
            size = len(view) // max(1, len(commit.pages))
            images |= {page: view[i * size : (i + 1) * size] for i, page in enumerate(commit.pages)}
        pages = tuple(sorted(images))
        joined = b"".join([images[page] for page in pages])
        kept.append(Commit(commit.seen_at_ms, commit.page_count, pages, joined, others))
    return kept


def encode_segment(head: SegmentHead, commits: Sequence[Commit], *, level: int) -> bytes:
    """Return one segment object with `commits`, which continue each other. What `head` says of them is filled in.

    `level` is that of zstd. `SEGMENT_LEVEL` suits what a web service commits.
    Releases the interpreter lock while it compresses. Raises `FormatError` rather than return a segment that
    `decode_segment` would reject.
    """
    size = head.page_size
    if any(len(commit.images) != len(commit.pages) * size for commit in commits):
        raise FormatError(f"a commit does not have {size} bytes for each of its pages")
    images = sorted(
        (page, index, place) for index, commit in enumerate(commits) for place, page in enumerate(commit.pages)
    )
    offsets = [*accumulate((commit.others + 1 for commit in commits), initial=-1)][1:]
    last = head.first + offsets[-1] if offsets else 0
    counted = msgspec.structs.replace(head, last=last, commits=len(commits), images=len(images))
    encoded = msgspec.json.encode(values_of(counted))
    content = b"".join(
        (
            _LENGTH.pack(len(encoded)),
            encoded,
            *(_pack_commit(commit, offset) for commit, offset in zip(commits, offsets, strict=True)),
            *(_IMAGE.pack(page, index) for page, index, _ in images),
            *(memoryview(commits[index].images)[place * size : (place + 1) * size] for _, index, place in images),
        )
    )
    _parse(content)
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    return _PREFIX.pack(_SKIPPABLE_MAGIC, _FRAME_BYTES, _TAG, FORMAT_VERSION) + compressor.compress(content)


def _pack_commit(commit: Commit, offset: int) -> bytes:
    try:
        return _COMMIT.pack(commit.seen_at_ms, commit.page_count, offset)
    except struct.error as error:
        raise FormatError(f"a commit has numbers out of range: {error}") from error


def decode_segment(data: bytes) -> Segment:
    """Return the segment in `data`, which is not encrypted. Raises `FormatError`, `NewerFormatError`.

    Checks zstd's own checksum, and not the name of the object. At most 80 MiB are allocated, whatever `data` claims.
    """
    if len(data) < _PREFIX.size:
        raise FormatError("the segment is shorter than its prefix")
    magic, frame_bytes, tag, version = _PREFIX.unpack_from(data)
    if magic != _SKIPPABLE_MAGIC or tag != _TAG:
        raise FormatError("the object does not begin as a segment")
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"the segment is of format version {version}, this reader knows {FORMAT_VERSION}")
    if version < 1 or frame_bytes != _FRAME_BYTES:
        raise FormatError("the prefix of the segment is not that of format version 1")
    return _parse(_decompressed(memoryview(data)[_PREFIX.size :]))


def _decompressed(frame: memoryview) -> bytes:
    """Return the content of one zstd frame that is all of `frame`. Raises `FormatError`."""
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if parameters.content_size > _MAX_CONTENT_BYTES:  # also when it is not known
            raise FormatError("the content declares no size, or more than 80 MiB")
        if not parameters.has_checksum or parameters.dict_id:
            raise FormatError("the content has no checksum, or needs a dictionary")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the content cannot be read: {error}") from error
    if len(content) != parameters.content_size:
        raise FormatError("the content has a size other than it declares")
    return content


def _parse(content: bytes) -> Segment:
    """Return the segment whose decompressed content is `content`. Raises `FormatError`."""
    head, start = _parse_head(content)
    table_start = start + head.commits * _COMMIT.size
    images_start = table_start + head.images * _IMAGE.size
    images_bytes = head.images * head.page_size
    if images_bytes > MAX_SEGMENT_RAW_BYTES or images_start + images_bytes != len(content):
        raise FormatError(f"{head.commits} commits and {head.images} images do not make {len(content)} bytes")
    view = memoryview(content)
    commits = tuple(map(SeenCommit._make, _COMMIT.iter_unpack(view[start:table_start])))
    table = tuple(_IMAGE.iter_unpack(view[table_start:images_start]))
    _reject_odd_commits(commits, head)
    _reject_odd_table(table, head)
    return Segment(head, commits, table, view[images_start:])


def _parse_head(content: bytes) -> tuple[SegmentHead, int]:
    """Return the head, and where it ends."""
    if len(content) < _LENGTH.size:
        raise FormatError("the content is shorter than the length of its head")
    (length,) = _LENGTH.unpack_from(content)
    end = _LENGTH.size + length
    if length > _MAX_HEAD_BYTES or end > len(content):
        raise FormatError(f"a head of {length} bytes is longer than the content or 1 MiB")
    head = decode_versioned_as("segment", lambda _: SegmentHead, content[_LENGTH.size : end])
    if not is_page_size(head.page_size):
        raise FormatError(f"page_size: {head.page_size} is not a page size")
    # A commit writes at least one page, which bounds what commits take in memory.
    if not 1 <= head.commits <= min(head.images, head.last - head.first + 1):
        raise FormatError(
            f"{head.commits} commits from {head.first} to {head.last} with {head.images} images are out of range"
        )
    if any(not anchor.after <= anchor.by <= head.last for anchor in head.anchors):
        raise FormatError(f"an anchor is not within the commits up to {head.last}")
    return head, end


def _reject_odd_commits(commits: Sequence[SeenCommit], head: SegmentHead) -> None:
    if any(before.offset >= after.offset for before, after in pairwise(commits)):
        raise FormatError("the numbers of commits do not ascend strictly")
    if head.first + commits[-1].offset != head.last:
        raise FormatError(f"its last commit is {head.first + commits[-1].offset}, and its head says {head.last}")
    if any(before.seen_at_ms > after.seen_at_ms for before, after in pairwise(commits)):
        raise FormatError("a commit was seen before the one that it follows")
    if commits[-1].seen_at_ms > _LAST_MILLISECOND:
        raise FormatError("a commit was seen after the year 9999")
    if not all(1 <= commit.page_count <= MAX_IMAGE_PAGES for commit in commits):
        raise FormatError(f"a commit leaves a number of pages outside 1 to {MAX_IMAGE_PAGES}")


def _reject_odd_table(table: Sequence[tuple[int, int]], head: SegmentHead) -> None:
    if not all(map(lt, table, table[1:])):
        raise FormatError("the images do not ascend strictly by page and commit")
    if table[0][0] < 1 or table[-1][0] > MAX_IMAGE_PAGES:
        raise FormatError(f"page numbers must be from 1 to {MAX_IMAGE_PAGES}")
    hole = lock_page(head.page_size)
    place = bisect_left(table, (hole, 0))
    has_hole = place < len(table) and table[place][0] == hole
    if has_hole or max(map(itemgetter(1), table)) >= head.commits:
        raise FormatError("an image is of a commit beyond the last one, or of the lock-byte page")
