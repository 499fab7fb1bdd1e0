"""Packs: an index and the compressed images of some pages, in one immutable object.

FORMAT.md, "Pack", is the specification. Nothing here imports numpy: the process that captures has to start fast.
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
"""The most page images that one pack may hold, uncompressed."""

_SKIPPABLE_MAGIC = 0x184D2A5B  # one of the sixteen that RFC 8878, section 3.1.2, sets aside
_PREFIX = struct.Struct("<II4sIII")  # frame magic, frame size, "bkpd", version, page size, pages
_FRAME_HEAD_BYTES = 8
_TAG = b"bkpd"
_ENTRY_BYTES = 4 + HASH_BYTES

MAX_PACK_BYTES = _PREFIX.size + MAX_RAW_BYTES // 512 * _ENTRY_BYTES + MAX_RAW_BYTES + (MAX_RAW_BYTES >> 8) + (1 << 16)
"""No valid pack object is larger: the longest index, and pages that zstd could not compress at all."""

MAX_ENCRYPTED_PACK_BYTES = MAX_PACK_BYTES + (1 << 16) + 16 + -(-MAX_PACK_BYTES // (1 << 16)) * 16
"""The same around it: 64 KiB for age's header, its nonce, and a tag for each 64 KiB (https://age-encryption.org/v1)."""


def page_hash(page: bytes | memoryview) -> bytes:
    """The first 16 bytes of the BLAKE3 of one page image."""
    return blake3(page).digest(length=HASH_BYTES)


@dataclass(frozen=True, slots=True)
class PackIndex:
    """What a pack holds: `page_numbers`, u32 little-endian, strictly ascending; `hashes`, 16 bytes each, same order."""

    page_size: int
    page_numbers: bytes
    hashes: bytes

    @property
    def pages(self) -> int:
        """How many pages the pack holds, at least 1."""
        return len(self.page_numbers) // 4


def index_bytes(pages: int) -> int:
    """How many bytes at the start of a pack of `pages` pages make up its index: what a ranged read has to ask for."""
    return _PREFIX.size + pages * _ENTRY_BYTES


def encode_pack(
    page_size: int, page_numbers: Sequence[int], hashes: bytes, images: bytes | bytearray, *, level: int
) -> bytes:
    """One pack object. `page_numbers` ascend strictly; `hashes` and `images` are in the same order.

    Releases the interpreter lock while it compresses. Raises `FormatError` rather than give a pack that `decode_pack`
    would refuse; what zstd compressed is taken for what it decompresses to.
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
    _reject_other_frame(memoryview(pack)[index_bytes(pages) :], index)
    return pack


def parse_index(data: bytes | memoryview) -> PackIndex:
    """The index at the start of `data`, which may end anywhere after it. Raises `FormatError`."""
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


def _reject_other_frame(frame: memoryview, index: PackIndex) -> None:
    """Raise `FormatError` or `ZstdError` unless `frame` begins as the frame of this index has to."""
    parameters = zstandard.get_frame_parameters(frame)
    if parameters.content_size != index.pages * index.page_size:
        raise FormatError(f"the compressed frame declares another size than {index.pages} pages")
    if not parameters.has_checksum:
        raise FormatError("the compressed frame has no checksum")
    if parameters.dict_id:
        raise FormatError("the compressed frame wants a dictionary")


def decode_pack(data: bytes) -> tuple[PackIndex, bytes]:
    """The index and the page images, in index order. Raises `FormatError`.

    Checks zstd's own checksum over the images; it neither hashes pages nor compares with the object's name. Releases
    the interpreter lock while it decompresses. At most 16 MiB are allocated, whatever `data` claims.
    """
    index = parse_index(data)
    expected = index.pages * index.page_size
    frame = memoryview(data)[index_bytes(index.pages) :]
    try:
        _reject_other_frame(frame, index)
        images = zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError(f"the compressed pages cannot be read: {error}") from error
    if len(images) != expected:
        raise FormatError("the compressed frame holds another size than it declares")
    return index, images
