"""What disks do to stored objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def flip(file: Path, offset: int | None = None) -> None:
    """Turn one bit, in the middle if not elsewhere; an `offset` below 0 counts from the end."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if offset is None else offset] ^= 0x10
    file.write_bytes(content)
