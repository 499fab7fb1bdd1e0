"""Packs: an index and the compressed images of some pages, in one immutable object.

FORMAT.md, "Pack", is the specification. This module does not import numpy: a capturing process must start fast.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
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

_SKIPPABLE_MAGIC = 0x184D2A5B  # one of the sixteen of skippable frames in RFC 8878, section 3.1.2
_PREFIX = struct.Struct("<II4sIII")  # frame magic, frame size, "bkpd", version, page size, pages
_FRAME_HEAD_BYTES = 8
_TAG = b"bkpd"
_ENTRY_BYTES = 4 + HASH_BYTES

MAX_PACK_BYTES = _PREFIX.size + MAX_RAW_BYTES // 512 * _ENTRY_BYTES + MAX_RAW_BYTES + (MAX_RAW_BYTES >> 8) + (1 << 16)
"""The largest valid pack: the longest index, and pages that zstd could not compress at all."""

MAX_ENCRYPTED_PACK_BYTES = MAX_PACK_BYTES + (1 << 16) + 16 + -(-MAX_PACK_BYTES // (1 << 16)) * 16
"""The largest encrypted pack: 64 KiB for age's header, a nonce, a tag per 64 KiB (https://age-encryption.org/v1)."""


def page_hash(page: bytes | memoryview) -> bytes:
    """Return the first 16 bytes of the BLAKE3 of one page image."""
    return blake3(page).digest(length=HASH_BYTES)


@dataclass(frozen=True, slots=True)
class PackIndex:
    """The index of a pack: `page_numbers`, u32 little-endian, strictly ascending, and `hashes` in the same order."""

    page_size: int
    page_numbers: bytes
    hashes: bytes

    @property
    def pages(self) -> int:
        """The number of pages in the pack, at least 1."""
        return len(self.page_numbers) // 4


def index_bytes(pages: int) -> int:
    """Return the size of the index at the start of a pack with `pages` pages: the length for a ranged read."""
    return _PREFIX.size + pages * _ENTRY_BYTES


def encode_pack(
    page_size: int, page_numbers: Sequence[int], hashes: bytes, images: bytes | memoryview, *, level: int
) -> bytes:
    """Return one pack object. `page_numbers` ascend strictly; `hashes` and `images` are in the same order.

    Releases the interpreter lock while it compresses. Raises `FormatError` rather than return a pack that `decode_pack`
    would reject; it does not decompress the result to check it.
    """
    pages = len(page_numbers)
    prefix = _PREFIX.pack(
        _SKIPPABLE_MAGIC,
        index_bytes(pages) - _FRAME_HEAD_BYTES,
        _TAG,
        FORMAT_VERSION,
        page_size,
        pages,
    )
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
    pack = b"".join((prefix, struct.pack(f"<{pages}I", *page_numbers), hashes, compressor.compress(images)))
    index = parse_index(pack)
    if (index.pages * HASH_BYTES, index.hashes) != (len(hashes), hashes) or len(pack) > MAX_PACK_BYTES:
        raise FormatError(f"a pack of {pages} pages has {len(hashes)} bytes of hashes and {len(pack)} bytes in all")
    _reject_wrong_frame(memoryview(pack)[index_bytes(pages) :], index)
    return pack


def parse_index(data: bytes | memoryview) -> PackIndex:
    """Parse the index at the start of `data`, which may end anywhere after it. Raises `FormatError`."""
    if len(data) < _PREFIX.size:
        raise FormatError("the pack is shorter than an empty index")
    magic, frame_bytes, tag, version, page_size, pages = _PREFIX.unpack_from(data)
    if magic != _SKIPPABLE_MAGIC or tag != _TAG:
        raise FormatError("the object does not begin with a pack index")
    if version > FORMAT_VERSION:
        raise NewerFormatError(f"the pack is of format version {version}, this reader knows {FORMAT_VERSION}")
    if version < 1:
        raise FormatError("the pack claims format version 0")
    if not is_page_size(page_size):
        raise FormatError(f"{page_size} is not a page size")
    if pages < 1 or pages * page_size > MAX_RAW_BYTES:
        raise FormatError(f"the pack claims {pages} pages of {page_size} bytes, outside 1 page to 16 MiB")
    end = index_bytes(pages)
    if frame_bytes != end - _FRAME_HEAD_BYTES:
        raise FormatError(f"the index frame has {frame_bytes} bytes, {pages} pages need {end - _FRAME_HEAD_BYTES}")
    if len(data) < end:
        raise FormatError("the pack ends inside its index")
    middle = _PREFIX.size + 4 * pages
    index = PackIndex(page_size, bytes(data[_PREFIX.size : middle]), bytes(data[middle:end]))
    _reject_unordered_pages(struct.unpack(f"<{pages}I", index.page_numbers))
    return index


def _reject_unordered_pages(numbers: Sequence[int]) -> None:
    if numbers[0] < 1 or numbers[-1] > MAX_IMAGE_PAGES:
        raise FormatError(f"page numbers must be from 1 to {MAX_IMAGE_PAGES}")
    if not all(map(lt, numbers, numbers[1:])):
        raise FormatError("page numbers do not ascend strictly: a page is listed twice or out of order")


def _reject_wrong_frame(frame: memoryview, index: PackIndex) -> None:
    """Raise `FormatError` or `ZstdError` unless `frame` begins as a frame of this index must."""
    parameters = zstandard.get_frame_parameters(frame)
    if parameters.content_size != index.pages * index.page_size:
        raise FormatError(f"the compressed frame declares a size other than {index.pages} pages")
    if not parameters.has_checksum:
        raise FormatError("the compressed frame has no checksum")
    if parameters.dict_id:
        raise FormatError("the compressed frame needs a dictionary")


def decode_pack(data: bytes) -> tuple[PackIndex, bytes]:
    """Return the index and the page images, in the order of the index. Raises `FormatError`.

    Checks zstd's own checksum over the images, but neither page hashes nor the name of the object. Releases
    the interpreter lock while it decompresses. At most 16 MiB are allocated, whatever `data` claims.
    """
    index = parse_index(data)
    expected = index.pages * index.page_size
    frame = memoryview(data)[index_bytes(index.pages) :]
    try:
        _reject_wrong_frame(frame, index)
        images = zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the compressed pages cannot be read: {error}") from error
    if len(images) != expected:
        raise FormatError("the compressed frame has a size other than it declares")
    return index, images
