"""Page maps: which pack holds each page of a snapshot. FORMAT.md, "Page map", is the specification.

A page map is a numpy array of u32, one entry per page in page order: 0 for a hole (a page of zeros that no pack holds),
otherwise 1 + the position of the pack in the manifest's list.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import zstandard
from blake3 import blake3

from backupd.format import MAX_IMAGE_PAGES, FormatError, lock_page
from backupd.format.pack import page_hash

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backupd.format.pack import PackIndex

PageMap = npt.NDArray[np.uint32]
PageHashes = npt.NDArray[np.uint64]
"""One 16-byte hash per page, in page order: an array of shape (pages, 2), which numpy compares fast."""

_BLOCK_PAGES = 1 << 18


def page_hashes(data: bytes | memoryview | npt.NDArray[np.uint8]) -> PageHashes:
    """View `data`, one 16-byte hash after another, as page hashes, without a copy."""
    return np.frombuffer(data, dtype=np.uint64).reshape(-1, 2)


def encode_page_map(page_map: PageMap) -> str:
    """Encode a page map as a manifest has it: u32 little-endian, zstd, base64."""
    compressor = zstandard.ZstdCompressor(level=9, write_checksum=True)
    return base64.b64encode(compressor.compress(page_map.astype("<u4", copy=False).data)).decode("ascii")


def decode_page_map(text: str, *, page_size: int, page_count: int, packs: int) -> PageMap:
    """Decode the page map of an image with `page_count` pages in `packs` packs. Raises `FormatError`.

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
        raise FormatError("the page map has a hole other than the lock-byte page, or no hole there")
    return page_map


def _decompress_bounded(text: str, size_bytes: int) -> bytes:
    """Return the `size_bytes` bytes of one zstd frame in base64; never allocates more than that."""
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
    """Return the BLAKE3 over the page hashes in page order, in hex: 64 digits that identify the whole image.

    A hole has the hash of a page of zeros, so that the digest depends on the image alone.
    """
    return blake3(np.ascontiguousarray(hashes).view(np.uint8).reshape(-1).data).hexdigest()


def blocks(pages: int) -> Iterator[slice]:
    """Divide so many pages into slices: numpy takes 8 bytes a page for what it counts or looks up at once."""
    return (slice(start, min(start + _BLOCK_PAGES, pages)) for start in range(0, pages, _BLOCK_PAGES))


def count_pages(page_map: PageMap, packs: int) -> npt.NDArray[np.int64]:
    """Count the pages of the image that each of `packs` packs holds, by its number in the page map; first the holes."""
    counts = np.zeros(packs + 1, dtype=np.int64)
    for block in blocks(len(page_map)):
        counts += np.bincount(page_map[block], minlength=packs + 1)
    return counts


def find_pages(page_map: PageMap, is_wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Find the pages (indices from 0, ascending) whose number in the page map is one that `is_wanted` marks."""
    if not is_wanted.any():
        return np.zeros(0, dtype=np.intp)
    found = [np.flatnonzero(is_wanted[page_map[block]]) + block.start for block in blocks(len(page_map))]
    return np.concatenate([np.zeros(0, dtype=np.intp), *found])


class ImageCheck:
    """Checks that the packs of a snapshot contain what its manifest claims, and collects the hashes of its image.

    Threads may place several packs at the same time.
    """

    def __init__(self, page_map: PageMap, *, page_size: int, packs: int) -> None:
        """`packs` is how many packs the manifest names."""
        self._page_size = page_size
        self._page_map = page_map
        self._needed = count_pages(page_map, packs)
        self.hashes: PageHashes = np.zeros((len(page_map), 2), dtype=np.uint64)
        """The page hashes of the image, so far: of holes, and of the packs that were placed."""
        self.hashes[page_map == 0] = page_hashes(page_hash(bytes(page_size)))

    def live(self, index: PackIndex, position: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """Return the pages that the image uses of the pack at `position` (from 1): places in pack and image, from 0."""
        indices = np.frombuffer(index.page_numbers, dtype="<u4").astype(np.int64) - 1
        within = np.flatnonzero(indices < len(self._page_map))
        places = within[self._page_map[indices[within]] == position]
        return places, indices[places]

    def place(self, index: PackIndex, position: int) -> str | None:
        """Take the hashes of the pages that the image uses of a pack; return the reason if the pack does not fit.

        `position` is that of the pack in the manifest, from 1.
        """
        if index.page_size != self._page_size:
            return f"its pages have {index.page_size} bytes, and those of the snapshot have {self._page_size}"
        places, indices = self.live(index, position)
        self.hashes[indices] = page_hashes(index.hashes)[places]
        lacking = int(self._needed[position]) - len(places)
        return f"it lacks pages that the snapshot needs from it ({lacking})" if lacking else None
