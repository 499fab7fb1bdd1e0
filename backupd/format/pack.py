"""Packs: an index and the compressed images of some pages, in one immutable object.

FORMAT.md, "Pack", is the specification. This module imports little: a capturing process must start fast.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from itertools import accumulate
from operator import lt
from typing import TYPE_CHECKING

import zstandard
from blake3 import blake3

from backupd.format import FORMAT_VERSION, MAX_IMAGE_PAGES, FormatError, NewerFormatError, is_page_size

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_BYTES = 16
MAX_RAW_BYTES = 16 << 20
"""The most bytes of page images in one pack, uncompressed."""

_FRAME_BYTES = 1 << 20
"""A writer's frames hold this much of page images. At low levels, zstd looks back no further anyway: one frame for all
would store 0.5 % less. A reader of one page decompresses all of its frame. The figures are in docs/architecture.md."""

MIN_FRAME_BYTES = 1 << 16
"""The least bytes of page images in each of several frames but the last, which bounds their number."""

_MAX_FRAMES = MAX_RAW_BYTES // MIN_FRAME_BYTES
_SKIPPABLE_MAGIC = 0x184D2A5B  # one of the sixteen of skippable frames in RFC 8878, section 3.1.2
_PREFIX = struct.Struct("<II4sIIII")  # frame magic, frame size, "bkpd", version, page size, pages, pages per frame
_FRAME_HEAD_BYTES = 8
_TAG = b"bkpd"
_ENTRY_BYTES = 4 + HASH_BYTES
_LENGTH_BYTES = 4

_MAX_INDEX_BYTES = _PREFIX.size + MAX_RAW_BYTES // 512 * _ENTRY_BYTES + _MAX_FRAMES * _LENGTH_BYTES
MAX_PACK_BYTES = _MAX_INDEX_BYTES + MAX_RAW_BYTES + (MAX_RAW_BYTES >> 8) + (1 << 16)
"""The largest valid pack: the longest index, and pages that zstd could not compress at all."""

MAX_ENCRYPTED_PACK_BYTES = MAX_PACK_BYTES + (1 << 16) + 16 + -(-MAX_PACK_BYTES // (1 << 16)) * 16
"""The largest encrypted pack: 64 KiB for age's header, a nonce, a tag per 64 KiB (https://age-encryption.org/v1)."""


def page_hash(page: bytes | memoryview) -> bytes:
    """Return the first 16 bytes of the BLAKE3 of one page image."""
    return blake3(page).digest(length=HASH_BYTES)


def index_hash(encoded: bytes) -> str:
    """Return the digest by which a manifest proves an index: the first 16 bytes of its BLAKE3, in hex."""
    return blake3(encoded).hexdigest(length=HASH_BYTES)


def is_index_length(length: int, pages: int) -> bool:
    """Whether the index of a pack with `pages` pages can have `length` bytes."""
    frames, rest = divmod(length - _index_bytes(pages, 0), _LENGTH_BYTES)
    return rest == 0 and 1 <= frames <= min(pages, _MAX_FRAMES)


def _index_bytes(pages: int, frames: int) -> int:
    return _PREFIX.size + pages * _ENTRY_BYTES + frames * _LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame of a pack: its place in the object, in bytes, and its pages, by their places in the index (from 0)."""

    offset: int
    length: int
    first_page: int
    pages: int


@dataclass(frozen=True, slots=True)
class PackIndex:
    """The index of a pack: which pages it holds, and where its frames are. `parse_index` makes it.

    `encoded` are its bytes, everything before the first frame.
    """

    encoded: bytes
    page_size: int
    pages: int
    """The number of pages in the pack, at least 1."""
    pages_per_frame: int
    """The number of pages in each frame but the last, which may have fewer."""

    @property
    def page_numbers(self) -> bytes:
        """The page numbers: u32 little-endian, strictly ascending."""
        return self.encoded[_PREFIX.size : _PREFIX.size + 4 * self.pages]

    @property
    def hashes(self) -> bytes:
        """The page hashes, in the order of the page numbers."""
        return self.encoded[_PREFIX.size + 4 * self.pages : _index_bytes(self.pages, 0)]

    @property
    def frames(self) -> tuple[Frame, ...]:
        """The frames, in their order, which is that of the pages. They lie one after the other behind the index."""
        lengths = struct.unpack_from(
            f"<{-(-self.pages // self.pages_per_frame)}I", self.encoded, _index_bytes(self.pages, 0)
        )
        offsets = accumulate(lengths, initial=len(self.encoded))
        starts = range(0, self.pages, self.pages_per_frame)
        return tuple(
            Frame(offset, length, start, min(self.pages_per_frame, self.pages - start))
            for offset, length, start in zip(offsets, lengths, starts, strict=False)
        )

    @property
    def pack_bytes(self) -> int:
        """The size of the whole pack."""
        last = self.frames[-1]
        return last.offset + last.length


class PackEncoder:
    """Encodes packs one after the other, each in the memory of the one before. Threads must not share it.

    Memory that is given back and taken again for each pack costs a page fault per 4 KiB, twice.
    """

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        self._buffer = io.BytesIO()

    def encode(
        self, page_size: int, page_numbers: Sequence[int], hashes: bytes, images: bytes | memoryview
    ) -> tuple[PackIndex, memoryview]:
        """Return the index of a pack, and the pack, which must be released before the next call.

        `page_numbers` ascend strictly; `hashes` and `images` are in the same order. Releases the interpreter lock while
        it compresses. Raises `FormatError` rather than return a pack that a reader would reject; it does not decompress
        the result to check it.
        """
        pages = len(page_numbers)
        if (len(hashes), len(images)) != (pages * HASH_BYTES, pages * page_size):
            raise FormatError(f"{pages} pages have {len(hashes)} bytes of hashes and {len(images)} bytes of images")
        pages_per_frame = max(1, min(pages, _FRAME_BYTES // page_size))
        index_bytes = _index_bytes(pages, -(-pages // pages_per_frame))
        lengths = self._write_frames(index_bytes, images, pages_per_frame * page_size)
        self._buffer.seek(0)
        frame_bytes = index_bytes - _FRAME_HEAD_BYTES
        prefix = (_SKIPPABLE_MAGIC, frame_bytes, _TAG, FORMAT_VERSION, page_size, pages, pages_per_frame)
        self._buffer.write(_PREFIX.pack(*prefix))
        self._buffer.write(struct.pack(f"<{pages}I", *page_numbers))
        self._buffer.write(hashes)
        self._buffer.write(struct.pack(f"<{len(lengths)}I", *lengths))
        pack = self._buffer.getbuffer()[: index_bytes + sum(lengths)]
        return _checked_index(pack), pack

    def _write_frames(self, start: int, images: bytes | memoryview, frame_bytes: int) -> list[int]:
        """Compress each `frame_bytes` of the images into the buffer from `start` on; return the lengths."""
        self._buffer.seek(start)
        view = memoryview(images)
        parts = (view[at : at + frame_bytes] for at in range(0, len(view), frame_bytes))
        return [self._buffer.write(self._compressor.compress(part)) for part in parts]


def _checked_index(pack: memoryview) -> PackIndex:
    """Return the index of a pack that was written just now. Raises `FormatError` unless all of it can be read."""
    index = parse_pack(pack)
    if len(pack) > MAX_PACK_BYTES:
        raise FormatError(f"a pack of {index.pages} pages has {len(pack)} bytes")
    for frame in index.frames:
        _reject_wrong_frame(pack[frame.offset : frame.offset + frame.length], frame.pages * index.page_size)
    return index


def parse_index(data: bytes | memoryview) -> PackIndex:
    """Parse the index at the start of `data`, which may end anywhere after it. Raises `FormatError`."""
    if len(data) < _PREFIX.size:
        raise FormatError("the pack is shorter than an empty index")
    magic, frame_bytes, tag, version, page_size, pages, pages_per_frame = _PREFIX.unpack_from(data)
    if magic != _SKIPPABLE_MAGIC or tag != _TAG:
        raise FormatError("the object does not begin with a pack index")
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"the pack is of format version {version}, this reader knows {FORMAT_VERSION}")
    if version < 1:
        raise FormatError("the pack claims format version 0")
    _reject_wrong_sizes(page_size, pages, pages_per_frame)
    end = _index_bytes(pages, -(-pages // pages_per_frame))
    if frame_bytes != end - _FRAME_HEAD_BYTES:
        raise FormatError(f"the index frame has {frame_bytes} bytes, {pages} pages need {end - _FRAME_HEAD_BYTES}")
    if len(data) < end:
        raise FormatError("the pack ends inside its index")
    index = PackIndex(bytes(data[:end]), page_size, pages, pages_per_frame)
    _reject_unordered_pages(struct.unpack(f"<{pages}I", index.page_numbers))
    return index


def _reject_wrong_sizes(page_size: int, pages: int, pages_per_frame: int) -> None:
    if not is_page_size(page_size):
        raise FormatError(f"{page_size} is not a page size")
    if pages < 1 or pages * page_size > MAX_RAW_BYTES:
        raise FormatError(f"the pack claims {pages} pages of {page_size} bytes, outside 1 page to 16 MiB")
    if not 1 <= pages_per_frame <= pages:
        raise FormatError(f"the pack claims {pages_per_frame} pages in each frame, outside 1 to {pages}")
    if pages_per_frame < pages and pages_per_frame * page_size < MIN_FRAME_BYTES:
        raise FormatError(f"the pack has several frames of {pages_per_frame * page_size} bytes, less than 64 KiB")


def _reject_unordered_pages(numbers: Sequence[int]) -> None:
    if numbers[0] < 1 or numbers[-1] > MAX_IMAGE_PAGES:
        raise FormatError(f"page numbers must be from 1 to {MAX_IMAGE_PAGES}")
    if not all(map(lt, numbers, numbers[1:])):
        raise FormatError("page numbers do not ascend strictly: a page is listed twice or out of order")


def _reject_other_length(index: PackIndex, length: int) -> None:
    if index.pack_bytes != length:
        raise FormatError(f"the pack has {length} bytes, and its frames end at {index.pack_bytes}")


def _reject_wrong_frame(content: bytes | memoryview, raw_bytes: int) -> None:
    """Raise `FormatError` or `ZstdError` unless `content` begins as a frame of `raw_bytes` of images must."""
    parameters = zstandard.get_frame_parameters(content)
    if parameters.content_size != raw_bytes:
        raise FormatError(f"a compressed frame declares a size other than {raw_bytes} bytes")
    if not parameters.has_checksum:
        raise FormatError("a compressed frame has no checksum")
    if parameters.dict_id:
        raise FormatError("a compressed frame needs a dictionary")


def parse_pack(data: bytes | memoryview) -> PackIndex:
    """Parse the index of a whole pack, whose frames must be exactly the rest of `data`. Raises `FormatError`."""
    index = parse_index(data)
    _reject_other_length(index, len(data))
    return index


def decode_frame(index: PackIndex, frame: Frame, content: bytes | memoryview) -> bytes:
    """Return the page images in `frame`, one of `index.frames`, whose bytes are `content`. Raises `FormatError`.

    Checks zstd's own checksum over the images, but no page hashes. Releases the interpreter lock while it decompresses.
    No more is allocated than `frame` promises, whatever `content` claims.
    """
    raw_bytes = frame.pages * index.page_size
    try:
        _reject_wrong_frame(content, raw_bytes)
        images = zstandard.ZstdDecompressor().decompress(content, max_output_size=raw_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the compressed pages cannot be read: {error}") from error
    if len(images) != raw_bytes:
        raise FormatError("a compressed frame has a size other than it declares")
    return images
