"""Page maps: which pack holds each page of a snapshot. FORMAT.md, "Page map", is the specification.

A page map is a sequence of u32, one entry per page in page order: 0 for a hole (a page of zeros that no pack holds),
otherwise 1 + the position of the pack in the manifest's list.

Importing numpy takes longer than all that a snapshot of 1 GB does with its map, so it is imported for packs alone.
"""

from __future__ import annotations

import base64
import struct
import sys
from array import array
from itertools import compress, count
from operator import ne
from typing import TYPE_CHECKING, TypeAlias

import zstandard
from blake3 import blake3

from backupd.format import MAX_IMAGE_PAGES, FormatError, lock_page
from backupd.format.pack import HASH_BYTES, page_hash

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from mmap import mmap

    import numpy as np
    import numpy.typing as npt

    from backupd.format.pack import PackIndex

PageMap: TypeAlias = "array[int] | memoryview"
PageHashes: TypeAlias = "bytes | bytearray | mmap"
"""One 16-byte hash per page, joined in page order."""

_each_hash = struct.Struct(f"{HASH_BYTES}s").iter_unpack


def u32_from(data: bytes) -> PageMap:
    """View `data`, u32 little-endian one after another, as numbers, without a copy where the machine has that order."""
    if sys.byteorder == "little":
        return memoryview(data).cast("I")
    numbers = array("I", data)
    numbers.byteswap()
    return numbers


def encode_page_map(page_map: array[int]) -> str:
    """Encode a page map as a manifest has it: u32 little-endian, zstd, base64."""
    if sys.byteorder != "little":
        page_map = page_map[:]
        page_map.byteswap()
    compressor = zstandard.ZstdCompressor(level=9, write_checksum=True)
    return base64.b64encode(compressor.compress(memoryview(page_map))).decode("ascii")


def decode_page_map(text: str, *, page_size: int, page_count: int, packs: int) -> PageMap:
    """Decode the page map of an image with `page_count` pages in `packs` packs. Raises `FormatError`.

    Only the lock-byte page may be a hole, and it must be one.
    """
    if not 0 <= page_count <= MAX_IMAGE_PAGES:
        raise FormatError(f"an image of {page_count} pages is outside 0 to {MAX_IMAGE_PAGES}")
    page_map = u32_from(_decompress_bounded(text, 4 * page_count))
    highest = max(page_map, default=0)
    if highest > packs:
        raise FormatError(f"the page map names pack {highest} of {packs}")
    lock = lock_page(page_size)
    # Not listed: a forged map may have 2**26 holes.
    has_hole = not all(page_map[: lock - 1]) or not all(page_map[lock:])
    if has_hole or any(page_map[lock - 1 : lock]):
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
    return blake3(hashes).hexdigest()


def differences(hashes: PageHashes, others: PageHashes) -> Iterator[bool]:
    """Tell for each page whether its hash in `hashes` is another one than in `others`, which has as many."""
    return map(ne, _each_hash(hashes), _each_hash(others))


def count_pages(page_map: PageMap, packs: int) -> list[int]:
    """Count the pages of the image that each of `packs` packs holds, by its number in the page map; first the holes."""
    counts = [0] * (packs + 1)
    for number in page_map:
        counts[number] += 1
    return counts


def find_pages(page_map: PageMap, wanted: Collection[int]) -> array[int]:
    """Find the pages (indices from 0, ascending) whose number in the page map is one of `wanted`."""
    if not wanted:
        return array("I")
    return array("I", compress(count(), map(wanted.__contains__, page_map)))


class ImageCheck:
    """Checks that the packs of a snapshot contain what its manifest claims, and collects the hashes of its image.

    Threads may place several packs at the same time.
    """

    def __init__(self, page_map: PageMap, *, page_size: int, packs: int) -> None:
        """`packs` is how many packs the manifest names."""
        self._page_size = page_size
        self._page_map = page_map
        self._needed = count_pages(page_map, packs)
        self.hashes = bytearray(len(page_map) * HASH_BYTES)
        """The page hashes of the image, so far: of holes, and of the packs that were placed."""
        for hole in find_pages(page_map, {0}) if self._needed[0] else ():
            self.hashes[hole * HASH_BYTES : (hole + 1) * HASH_BYTES] = page_hash(bytes(page_size))

    def live(self, index: PackIndex, position: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """Return the pages that the image uses of the pack at `position` (from 1): places in pack and image, from 0."""
        import numpy as np  # noqa: PLC0415  (most programs read no packs)

        indices = np.frombuffer(index.page_numbers, dtype="<u4").astype(np.int64) - 1
        within = np.flatnonzero(indices < len(self._page_map))
        places = within[np.frombuffer(self._page_map, dtype=np.uint32)[indices[within]] == position]
        return places, indices[places]

    def place(self, index: PackIndex, position: int) -> str | None:
        """Take the hashes of the pages that the image uses of a pack; return the reason if the pack does not fit.

        `position` is that of the pack in the manifest, from 1.
        """
        import numpy as np  # noqa: PLC0415  (most programs read no packs)

        if index.page_size != self._page_size:
            return f"its pages have {index.page_size} bytes, and those of the snapshot have {self._page_size}"
        places, indices = self.live(index, position)
        whole_hash = np.dtype((np.void, HASH_BYTES))
        np.frombuffer(self.hashes, whole_hash)[indices] = np.frombuffer(index.hashes, whole_hash)[places]
        lacking = self._needed[position] - len(places)
        return f"it lacks pages that the snapshot needs from it ({lacking})" if lacking else None
