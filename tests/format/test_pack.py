from __future__ import annotations

import hashlib
import struct
import tracemalloc

import pytest
import zstandard
from harness.packs import decode_pack, encode_pack
from hypothesis import given
from hypothesis import strategies as st

from backupd.format import FormatError
from backupd.format.pack import (
    MAX_PACK_BYTES,
    MAX_RAW_BYTES,
    decode_frame,
    is_index_length,
    page_hash,
    parse_index,
)

"""A busy machine is no reason to fail."""

_PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
_MIB = 1 << 20

page_numbers = st.lists(st.integers(1, 1 << 26), min_size=1, max_size=12, unique=True).map(sorted)


def packed(page_size: int, pages: dict[int, bytes], *, level: int = 3) -> bytes:
    """A pack of `pages`, by number."""
    images = [pages[number] for number in sorted(pages)]
    return encode_pack(page_size, sorted(pages), b"".join(map(page_hash, images)), b"".join(images), level=level)


def noise(number: int, page_size: int) -> bytes:
    """A page that does not compress."""
    return hashlib.shake_256(number.to_bytes(8)).digest(page_size)


_PACK = packed(512, {1: noise(1, 512), 2: bytes(512), 9: b"ab" * 256})
_INDEX = parse_index(_PACK).encoded
_SEVERAL_FRAMES = packed(32768, {number: bytes([number]) * 32768 for number in range(1, 81)})


def _with_frame(content: bytes) -> bytes:
    """The index of `_PACK`, with the right length, before another frame."""
    return _INDEX[:-4] + struct.pack("<I", len(content)) + content


@given(st.sampled_from(_PAGE_SIZES), page_numbers, st.data())
def test_a_pack_gives_back_what_was_put_into_it(page_size: int, numbers: list[int], data: st.DataObject):
    """Page numbers, hashes and images come back in order, for every page size and level."""
    pages = {number: data.draw(st.binary(max_size=64)).ljust(page_size, b"\0") for number in numbers}
    index, images = decode_pack(packed(page_size, pages, level=data.draw(st.integers(1, 19))))
    assert index.page_numbers == struct.pack(f"<{len(numbers)}I", *numbers)
    assert index.hashes == b"".join(page_hash(pages[number]) for number in numbers)
    assert (index.page_size, index.pages) == (page_size, len(numbers))
    assert images == b"".join(pages[number] for number in numbers)


@pytest.mark.parametrize("page_size", _PAGE_SIZES)
def test_a_pack_holds_16_mib_and_not_a_page_more(page_size: int):
    """The limit itself is readable for every page size, even when nothing compresses; one page more is not."""
    most = MAX_RAW_BYTES // page_size
    images = hashlib.shake_256(b"noise").digest(MAX_RAW_BYTES)
    pack = encode_pack(page_size, range(1, most + 1), bytes(16 * most), images, level=1)
    assert len(pack) <= MAX_PACK_BYTES
    assert decode_pack(pack)[1] == images
    with pytest.raises(FormatError, match="outside 1 page to 16 MiB"):
        encode_pack(page_size, range(1, most + 2), bytes(16 * most + 16), images + bytes(page_size), level=1)


@given(page_numbers)
def test_the_index_needs_exactly_its_bytes(numbers: list[int]):
    """The index is read from the beginning of a pack; one byte less is too little."""
    pack = packed(512, dict.fromkeys(numbers, bytes(512)))
    end = 28 + 20 * len(numbers) + 4
    assert is_index_length(end, len(numbers))
    assert parse_index(pack[:end]) == parse_index(pack) == decode_pack(pack)[0]
    with pytest.raises(FormatError, match=r"ends inside its index|shorter than an empty index"):
        parse_index(pack[: end - 1])


def test_each_frame_is_read_alone():
    """With the index, any frame of 1 MiB is read from its own bytes; the last one is shorter."""
    index, images = decode_pack(_SEVERAL_FRAMES)
    assert parse_index(index.encoded) == index
    assert [frame.pages for frame in index.frames] == [32, 32, 16]
    assert index.pack_bytes == len(_SEVERAL_FRAMES)
    for frame in index.frames:
        content = _SEVERAL_FRAMES[frame.offset : frame.offset + frame.length]
        first, end = frame.first_page * index.page_size, (frame.first_page + frame.pages) * index.page_size
        assert decode_frame(index, frame, content) == images[first:end]


def test_a_frame_of_other_pages_is_rejected():
    """The bytes of a frame of another size, or of no frame, are not taken for the one that was asked for."""
    index = parse_index(_SEVERAL_FRAMES)
    first, _, last = index.frames
    for content in (_SEVERAL_FRAMES[last.offset :], _SEVERAL_FRAMES[first.offset :], b"", index.encoded):
        with pytest.raises(FormatError):
            decode_frame(index, first, content)


@pytest.mark.parametrize(("pages", "most_frames"), [(1, 1), (2, 2), (255, 255), (256, 256), (257, 256), (32768, 256)])
def test_an_index_has_a_length_for_each_number_of_frames(pages: int, most_frames: int):
    """From one frame to one for each page, and at most 256."""
    before = 28 + 20 * pages
    found = [length for length in range(before + 4 * 300) if is_index_length(length, pages)]
    assert found == [before + 4 * frames for frames in range(1, most_frames + 1)]


@pytest.mark.parametrize("end", [0, 1, 27, 28, len(_INDEX) - 1, len(_INDEX), len(_INDEX) + 1, len(_PACK) - 1])
def test_a_truncated_pack_is_rejected(end: int):
    """A pack that ends early is rejected wherever it ends."""
    with pytest.raises(FormatError):
        decode_pack(_PACK[:end])


def test_every_flipped_bit_is_found():
    """A single flipped bit never keeps the SHA-256, and the pack is refused or its pages are still right."""
    name, (index, images) = hashlib.sha256(_PACK).digest(), decode_pack(_PACK)
    for bit in range(8 * len(_PACK)):
        damaged = bytearray(_PACK)
        damaged[bit // 8] ^= 1 << bit % 8
        assert hashlib.sha256(damaged).digest() != name
        try:
            found_index, found_images = decode_pack(bytes(damaged))
        except FormatError:
            continue
        # What is left are page numbers and hashes, which zstd's checksum does not cover, and spare bits of the frame.
        assert found_images == images
        assert found_index != index or bit // 8 >= len(_INDEX)


@given(st.binary(max_size=200) | st.binary(max_size=200).map(_with_frame))
def test_arbitrary_bytes_are_a_format_error(data: bytes):
    """Arbitrary bytes raise `FormatError` and no other exception."""
    with pytest.raises(FormatError):
        decode_pack(data)


@given(st.integers(0, len(_PACK) - 1), st.binary(min_size=1, max_size=8), st.integers(0, 8))
def test_any_damage_of_a_pack_is_handled(position: int, replacement: bytes, removed: int):
    """Bytes put in, taken out or replaced give a format error, or a pack of the same shape."""
    damaged = _PACK[:position] + replacement + _PACK[position + removed :]
    try:
        index, images = decode_pack(damaged)
    except FormatError:
        return
    assert len(images) == index.pages * index.page_size
    assert len(index.hashes) == 16 * index.pages


def test_a_forged_pack_cannot_exhaust_memory():
    """However much a frame would expand to, no more is allocated than the index promises: at most 16 MiB."""
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(256 * _MIB))
    undeclared = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(256 * _MIB))
    for frame in (bomb, undeclared):
        tracemalloc.start()
        with pytest.raises(FormatError, match="declares a size other"):
            decode_pack(_with_frame(frame))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < _MIB
