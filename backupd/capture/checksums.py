"""The page checksums of SQLite's checksum VFS: the last 8 bytes of each page, in a database that reserves just these.

Source: https://www.sqlite.org/cksumvfs.html and ext/misc/cksumvfs.c. An application with that VFS gets an I/O error for
a page whose checksum is wrong, and page 1 of an image is never the one that the application wrote: the backup API gives
it counters of its own.
"""

from __future__ import annotations

import struct

CHECKSUM_BYTES = 8
_RESERVED_BYTES_OFFSET = 20
_COUNTER_OFFSETS = (24, 92)
_MODULUS = 1 << 32


def is_sealed(first_page: bytes) -> bool:
    """Whether page 1 has the checksum of its content, whatever its change counter was when that was made.

    A random page that reserves 8 bytes looks so once in 2^32 times.
    """
    if first_page[_RESERVED_BYTES_OFFSET] != CHECKSUM_BYTES:
        return False
    found = struct.unpack("<2I", first_page[-CHECKSUM_BYTES:])
    blank, one = (_sums(_with_counter(first_page, number.to_bytes(4, "little"))) for number in (0, 1))
    # The sums are linear: a counter adds it times a slope to each, and one of both slopes is odd for every page size.
    slopes = [(with_one - without) % _MODULUS for with_one, without in zip(one, blank, strict=True)]
    rests = [(wanted - without) % _MODULUS for wanted, without in zip(found, blank, strict=True)]
    odd = 0 if slopes[0] % 2 else 1
    counter = rests[odd] * pow(slopes[odd], -1, _MODULUS)
    return all((counter * slope - rest) % _MODULUS == 0 for slope, rest in zip(slopes, rests, strict=True))


def without_seal(page: bytes) -> bytes:
    """The page with zeros in place of its checksum."""
    return page[:-CHECKSUM_BYTES] + bytes(CHECKSUM_BYTES)


def sealed(page: bytes) -> bytes:
    """The page with the checksum of its content."""
    return page[:-CHECKSUM_BYTES] + struct.pack("<2I", *_sums(page))


def _with_counter(page: bytes, counter: bytes) -> bytes:
    """Page 1 with this change counter, in both places."""
    image = bytearray(page)
    for offset in _COUNTER_OFFSETS:
        image[offset : offset + 4] = counter
    return bytes(image)


def _sums(page: bytes) -> tuple[int, int]:
    """Two running sums over the little-endian words of the page, without its checksum."""
    words = struct.unpack_from(f"<{len(page) // 4 - 2}I", page)
    first = second = 0
    for left, right in zip(words[::2], words[1::2], strict=True):
        first = (first + left + second) % _MODULUS
        second = (second + right + first) % _MODULUS
    return first, second
