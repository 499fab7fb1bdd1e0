"""Repository format, version 1: bytes to values and back, without I/O. FORMAT.md in this directory specifies it."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final, Self

FORMAT_VERSION: Final = 1

MAX_IMAGE_PAGES = 1 << 26
"""A reader's limit on the pages of an image (256 GiB of 4 KiB pages): a forged count cannot exhaust memory."""

SMALLEST_PAGE_BYTES = 512
LARGEST_PAGE_BYTES = 65536

_SNAPSHOT_ID = re.compile(r"[0-9]{8}T(?!24)[0-9]{9}Z-[0-9a-f]{8}")


class FormatError(ValueError):
    """Bytes break a rule of the format, and every reader must reject them."""


class NewerFormatError(FormatError):
    """Bytes have a format version that this reader does not know."""


def is_page_size(size: int) -> bool:
    """Whether SQLite allows pages of `size` bytes: a power of two from 512 to 65536."""
    return SMALLEST_PAGE_BYTES <= size <= LARGEST_PAGE_BYTES and size & (size - 1) == 0


def lock_page(page_size: int) -> int:
    """Return the number of the page with byte 2**30, which SQLite locks and never writes: always a hole of zeros.

    Source: https://www.sqlite.org/fileformat2.html#the_lock_byte_page
    """
    return (1 << 30) // page_size + 1


class SnapshotId(str):
    """The id of a snapshot: its time (UTC, milliseconds) and 32 random bits, such as `20261122T085557123Z-7f3a91c2`.

    Ids sort by time, for display only: the newest snapshot is the one with the highest `sequence` in its manifest.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Take `text` as an id. Raises `FormatError` for one of another form, or with a time that does not exist."""
        if not _SNAPSHOT_ID.fullmatch(text):
            raise FormatError(f"{text!r} is not a snapshot id")
        snapshot_id = super().__new__(cls, text)
        try:
            _ = snapshot_id.taken_at
        except ValueError as error:
            raise FormatError(f"{text!r} is not a snapshot id: no such date") from error
        return snapshot_id

    @classmethod
    def new(cls, taken_at: datetime, random_bits: int) -> Self:
        """Return the id of a snapshot taken at `taken_at` (aware), with the low 32 of `random_bits`."""
        utc = taken_at.astimezone(UTC)
        milliseconds = utc.microsecond // 1000
        return cls(f"{utc.year:04}{utc:%m%dT%H%M%S}{milliseconds:03}Z-{random_bits & 0xFFFFFFFF:08x}")

    @property
    def taken_at(self) -> datetime:
        """The time of the snapshot, aware, UTC, to the millisecond."""
        return datetime.fromisoformat(f"{self[:15]}.{self[15:18]}+00:00")
