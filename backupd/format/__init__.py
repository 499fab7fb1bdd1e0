"""Repository format, version 1: bytes to values and back, without I/O. FORMAT.md beside this file specifies it."""

from __future__ import annotations

from typing import Final

FORMAT_VERSION: Final = 1

MAX_IMAGE_PAGES = 1 << 26
"""A reader's bound on pages in an image (256 GiB of 4 KiB pages), so that a forged count cannot exhaust memory."""

SMALLEST_PAGE_BYTES = 512
LARGEST_PAGE_BYTES = 65536


class FormatError(ValueError):
    """Bytes that a reader of this format must reject; the text says which rule they break."""


class NewerFormatError(FormatError):
    """Bytes of a format version that this reader does not know."""


def is_page_size(size: int) -> bool:
    """Whether SQLite allows pages of `size` bytes: a power of two from 512 to 65536."""
    return SMALLEST_PAGE_BYTES <= size <= LARGEST_PAGE_BYTES and size & (size - 1) == 0


def lock_page(page_size: int) -> int:
    """Number of the page that holds byte 2**30, which SQLite locks and never writes: always a hole of zeros.

    Source: https://www.sqlite.org/fileformat2.html#the_lock_byte_page
    """
    return (1 << 30) // page_size + 1
