"""Log files byte by byte, written from SQLite's documentation (fileformat2.html#walformat), not from our own reader."""

from __future__ import annotations

import struct
from typing import NamedTuple

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
LITTLE_ENDIAN, BIG_ENDIAN = 0x377F0682, 0x377F0683
_VERSION = 3007000
_MASK = 0xFFFFFFFF


class LogHeader(NamedTuple):
    """The header of a log."""

    magic: int
    page_size: int
    sequence: int
    salts: tuple[int, int]
    checksum: tuple[int, int]


class Frame(NamedTuple):
    """One frame; `page_count` is 0 unless it ends a commit."""

    page: int
    page_count: int
    image: bytes


def header_of(log: bytes) -> LogHeader | None:
    """The header, if there is one; its checksum is not checked."""
    if len(log) < HEADER_BYTES:
        return None
    magic, _, page_size, sequence, *rest = struct.unpack_from(">8I", log)
    return LogHeader(magic, page_size, sequence, (rest[0], rest[1]), (rest[2], rest[3]))


def frame_offset(frame: int, page_size: int) -> int:
    """Where frame number `frame` (from 1) begins."""
    return HEADER_BYTES + (frame - 1) * (FRAME_HEADER_BYTES + page_size)


def log_bytes(frames: list[Frame], *, page_size: int, salts: tuple[int, int], magic: int, sequence: int = 0) -> bytes:
    """A whole log."""
    order = ">" if magic == BIG_ENDIAN else "<"
    head = struct.pack(">6I", magic, _VERSION, page_size, sequence, *salts)
    sums = _checksum(head, (0, 0), order)
    parts = [head, struct.pack(">2I", *sums)]
    for frame in frames:
        start = struct.pack(">2I", frame.page, frame.page_count)
        sums = _checksum(start + frame.image, sums, order)
        parts += [start, struct.pack(">4I", *salts, *sums), frame.image]
    return b"".join(parts)


def committed_frames(log: bytes) -> list[Frame]:
    """The frames up to the last valid commit."""
    header = header_of(log)
    if header is None or header.magic not in (LITTLE_ENDIAN, BIG_ENDIAN):
        return []
    order = ">" if header.magic == BIG_ENDIAN else "<"
    sums, size, frames, committed = header.checksum, header.page_size, [], 0
    for offset in range(HEADER_BYTES, len(log) - FRAME_HEADER_BYTES - size + 1, FRAME_HEADER_BYTES + size):
        page, count, *rest = struct.unpack_from(">6I", log, offset)
        image = log[offset + FRAME_HEADER_BYTES :][:size]
        sums = _checksum(log[offset : offset + 8] + image, sums, order)
        if (rest[0], rest[1]) != header.salts or (rest[2], rest[3]) != sums:
            break
        frames.append(Frame(page, count, image))
        committed = len(frames) if count else committed
    return frames[:committed]


def _checksum(data: bytes, sums: tuple[int, int], order: str) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _MASK
        second = (second + odd + first) & _MASK
    return first, second
