"""Page maps: which pack holds each page of a snapshot. FORMAT.md, "Page map", is the specification.

A page map is a numpy array of u32, one entry per page in page order: 0 for a hole (a page of zeros that no pack holds),
else 1 + the position of the pack in the manifest's list.
"""

from __future__ import annotations

import base64

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

from backupd.format import MAX_IMAGE_PAGES, FormatError, lock_page

PageMap = npt.NDArray[np.uint32]
PageHashes = npt.NDArray[np.uint64]
"""One 16-byte page hash per page in page order, as an array of shape (pages, 2), which numpy compares fast."""


def page_hashes(data: bytes | memoryview | npt.NDArray[np.uint8]) -> PageHashes:
    """The hashes that lie one behind the other in `data` (16 bytes each), without copying it."""
    return np.frombuffer(data, dtype=np.uint64).reshape(-1, 2)


def encode_page_map(page_map: PageMap) -> str:
    """The text that stands in a manifest: zstd over u32 little-endian, base64."""
    compressor = zstandard.ZstdCompressor(level=9, write_checksum=True)
    return base64.b64encode(compressor.compress(page_map.astype("<u4", copy=False).tobytes())).decode("ascii")


def decode_page_map(text: str, *, page_size: int, page_count: int, packs: int) -> PageMap:
    """The map behind `text`, for an image of `page_count` pages and a list of `packs` packs. Raises `FormatError`.

    Only the lock-byte page may be a hole, and it must be one.
    """
    if not 0 <= page_count <= MAX_IMAGE_PAGES:
        raise FormatError(f"an image of {page_count} pages is outside 0 to {MAX_IMAGE_PAGES}")
    raw = _decompress_bounded(text, 4 * page_count)
    page_map: PageMap = np.frombuffer(raw, dtype="<u4").astype(np.uint32, copy=False)
    if page_count and int(page_map.max()) > packs:
        raise FormatError(f"the page map names pack {int(page_map.max())} of {packs}")
    lock = lock_page(page_size)
    has_lock_page = lock <= page_count
    # Counted, not listed: a forged map may have 2**26 holes.
    if np.count_nonzero(page_map) != page_count - has_lock_page or (has_lock_page and page_map[lock - 1]):
        raise FormatError("the page map has a hole that is not the lock-byte page, or none where that page is")
    return page_map


def _decompress_bounded(text: str, size_bytes: int) -> bytes:
    """The `size_bytes` bytes behind a base64 text of one zstd frame; never allocates more than that."""
    try:
        frame = base64.b64decode(text, validate=True)
        declared = zstandard.get_frame_parameters(frame).content_size
        # zstandard allocates what the frame declares, whatever max_output_size says.
        is_bounded = declared == size_bytes
        raw = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False) if is_bounded else b""
    except (zstandard.ZstdError, ValueError) as error:
        raise FormatError(f"the page map cannot be read: {error}") from error
    if not is_bounded:
        raise FormatError(f"the page map declares {declared} bytes, this image needs {size_bytes}")
    return raw


def image_digest(hashes: PageHashes) -> str:
    """BLAKE3 over the page hashes in page order, in hex: 64 digits that stand for the whole image.

    The hash of a hole is that of a page of zeros, so that the digest depends on the image and on nothing else.
    """
    return blake3(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1).data).hexdigest()
