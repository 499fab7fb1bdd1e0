"""Packs in tests: what a manifest says of one, and all of its pages."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from backupd.format.manifest import PackEntry
from backupd.format.pack import PackEncoder, decode_frame, index_hash, parse_index, parse_pack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.format.pack import PackIndex


def pack_entry(sha256: str, *, stored_bytes: int, pages: int) -> PackEntry:
    """What a manifest says of a pack that is not encrypted, with one frame, and that nothing reads."""
    return PackEntry(
        sha256=sha256, stored_bytes=stored_bytes, pages=pages, index_bytes=28 + 20 * pages + 4, index_hash="0" * 32
    )


def entry_of(content: bytes) -> PackEntry:
    """What a manifest says of the pack `content`, which is not encrypted."""
    index = parse_index(content)
    return PackEntry(
        sha256=hashlib.sha256(content).hexdigest(),
        stored_bytes=len(content),
        pages=index.pages,
        index_bytes=len(index.encoded),
        index_hash=index_hash(index.encoded),
    )


def encode_pack(
    page_size: int, page_numbers: Sequence[int], hashes: bytes, images: bytes | memoryview, *, level: int
) -> bytes:
    """One pack, as `PackEncoder` makes it. Raises what that raises."""
    return bytes(PackEncoder(level).encode(page_size, page_numbers, hashes, images)[1])


def decode_pack(data: bytes) -> tuple[PackIndex, bytes]:
    """The index of a pack and its page images, in the order of the index. Raises `FormatError`."""
    index, view = parse_pack(data), memoryview(data)
    return index, b"".join(
        decode_frame(index, frame, view[frame.offset : frame.offset + frame.length]) for frame in index.frames
    )
