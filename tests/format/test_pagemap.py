from __future__ import annotations

import base64
import subprocess
import sys
from array import array

import pytest
import zstandard
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from backupd.format import MAX_IMAGE_PAGES, FormatError, is_page_size, lock_page
from backupd.format.pack import page_hash
from backupd.format.pagemap import decode_page_map, encode_page_map, image_digest

"""A busy machine is no reason to fail."""

_PAGE_SIZES = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]


def mapped(*entries: int) -> str:
    """The text of a page map."""
    return encode_page_map(array("I", entries))


@given(st.lists(st.integers(1, 9), max_size=200), st.sampled_from(_PAGE_SIZES))
def test_a_page_map_comes_back(entries: list[int], page_size: int):
    """What was encoded is decoded, for images that end before the lock-byte page."""
    text = mapped(*entries)
    decoded = decode_page_map(text, page_size=page_size, page_count=len(entries), packs=9)
    assert decoded.tolist() == entries


@pytest.mark.parametrize("page_size", _PAGE_SIZES)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_the_lock_page_is_the_only_hole(page_size: int, beyond: int):
    """A map whose size is around the lock-byte page has a hole exactly where SQLite leaves one."""
    page_count = lock_page(page_size) + beyond
    assert (lock_page(page_size) - 1) * page_size == 1 << 30
    wrong = array("I", [1]) * page_count
    right = wrong[:]
    if beyond >= 0:
        right[lock_page(page_size) - 1] = 0
    wrong[0] = 0
    decoded = decode_page_map(encode_page_map(right), page_size=page_size, page_count=page_count, packs=1)
    assert decoded == memoryview(right)
    with pytest.raises(FormatError, match="has a hole other than the lock-byte page"):
        decode_page_map(encode_page_map(wrong), page_size=page_size, page_count=page_count, packs=1)


@pytest.mark.parametrize(
    ("entries", "page_count", "packs", "reason"),
    [
        ([1, 2], 3, 2, "declares 8 bytes, this image needs 12"),
        ([1, 2], 1, 2, "declares 8 bytes, this image needs 4"),
        ([1, 2], 0, 2, "declares 8 bytes, this image needs 0"),
        ([], 1, 2, "declares 0 bytes, this image needs 4"),
        ([1, 3], 2, 2, "names pack 3 of 2"),
        ([1, 0xFFFFFFFF], 2, 2, "names pack 4294967295 of 2"),
        ([1], 1, 0, "names pack 1 of 0"),
        ([1, 0], 2, 2, "has a hole"),
        ([1], MAX_IMAGE_PAGES + 1, 1, "outside 0 to 67108864"),
        ([1], -1, 1, "outside 0 to 67108864"),
    ],
)
def test_a_map_that_does_not_fit_is_rejected(entries: list[int], page_count: int, packs: int, reason: str):
    """A map of another image or another list of packs is rejected."""
    with pytest.raises(FormatError, match=reason):
        decode_page_map(mapped(*entries), page_size=4096, page_count=page_count, packs=packs)


def test_an_empty_image_has_an_empty_map():
    """0 pages need no packs and no entries."""
    assert decode_page_map(mapped(), page_size=512, page_count=0, packs=0).tolist() == []


@given(st.text() | st.binary(max_size=64).map(lambda raw: base64.b64encode(raw).decode()), st.integers(0, 20))
def test_arbitrary_text_is_a_format_error(text: str, page_count: int):
    """Arbitrary text raises `FormatError` and no other exception."""
    with pytest.raises(FormatError):
        decode_page_map(text, page_size=4096, page_count=page_count, packs=3)


@given(st.integers(0, 51), st.binary(min_size=1, max_size=4))
def test_any_damage_of_a_map_is_handled(position: int, replacement: bytes):
    """A damaged frame is a format error, or a map of the right size that names existing packs."""
    frame = base64.b64decode(mapped(*[1, 2, 3] * 20))
    damaged = frame[:position] + replacement + frame[position + len(replacement) :]
    try:
        decoded = decode_page_map(base64.b64encode(damaged).decode(), page_size=4096, page_count=60, packs=3)
    except FormatError:
        return
    assert (len(decoded), min(decoded) >= 1, max(decoded) <= 3) == (60, True, True)


_MEASURED = """
import base64, resource, sys
from backupd.format import FormatError
from backupd.format.pagemap import decode_page_map
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_page_map(sys.stdin.read(), page_size=512, page_count=int(sys.argv[1]), packs=1)
except FormatError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize(
    ("size_bytes", "page_count", "reason", "limit_kib"),
    [(64 << 20, 4, "declares", 1 << 12), (4 << 26, 1 << 26, "has a hole", 300 << 10)],
)
def test_a_forged_map_cannot_exhaust_memory(size_bytes: int, page_count: int, reason: str, limit_kib: int):
    """A few bytes that stand for many, and as many holes as pages, cost at most the memory of a map of this size."""
    compressor = zstandard.ZstdCompressor().compressobj(size=size_bytes)
    chunks = [compressor.compress(bytes(1 << 20)) for _ in range(size_bytes >> 20)]
    text = base64.b64encode(b"".join(chunks) + compressor.flush())
    command = [sys.executable, "-c", _MEASURED, str(page_count)]
    result = subprocess.run(command, input=text, capture_output=True, check=True)
    grown_kib, _, error = result.stdout.decode().partition(" ")
    assert reason in error
    assert int(grown_kib) < limit_kib


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=20))
def test_the_image_digest_is_blake3_over_the_hashes(hashes: list[bytes]):
    """The digest is that which any BLAKE3 tool prints for the page hashes, joined."""
    joined = b"".join(hashes)
    assert image_digest(joined) == image_digest(bytearray(joined)) == blake3(joined).hexdigest()


def test_a_page_hash_is_half_of_a_blake3():
    """16 bytes, the beginning of the digest that any BLAKE3 tool prints."""
    page = bytes(range(256)) * 2
    assert page_hash(page).hex() == blake3(page).hexdigest()[:32]


@given(st.integers(-(1 << 20), 1 << 20))
def test_page_sizes_are_those_of_sqlite(size: int):
    """A page size is a power of two from 512 to 65536, and nothing else."""
    assert is_page_size(size) == (size in _PAGE_SIZES)
