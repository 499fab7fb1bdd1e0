from __future__ import annotations

import struct
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from backupd.format import FormatError, NewerFormatError, SnapshotId
from backupd.format.segment import (
    MAX_SEGMENT_RAW_BYTES,
    Anchor,
    Changes,
    Commit,
    SegmentHead,
    decode_segment,
    encode_segment,
    thinned,
)

_WINDOW = SnapshotId("20261129T140000000Z-0badcafe")
_SNAPSHOT = SnapshotId("20261129T140001000Z-7f3a91c2")
_NOON = 1795960800000
_SIZE = 512
_MIB = 1 << 20


def page(text: str) -> bytes:
    """A page that begins with `text`."""
    return text.encode().ljust(_SIZE, b"\0")


def commit(number: int, *pages: int, page_count: int = 9) -> Commit:
    """Commit `number`, whose pages say which commit wrote them."""
    images = b"".join(page(f"page {each} of commit {number}") for each in pages)
    return Commit(_NOON + number, page_count, pages, images)


_HEAD = SegmentHead(database="app", window=_WINDOW, first=5, page_size=_SIZE)
_COMMITS = (commit(5, 1, 3), commit(6, 3), commit(7, 1, 2, 3, 9))
_SEGMENT = encode_segment(_HEAD, _COMMITS, level=3)


def framed(content: bytes) -> bytes:
    """A segment with this content, right or wrong."""
    return _SEGMENT[:16] + zstandard.ZstdCompressor(write_checksum=True).compress(content)


def test_a_segment_says_what_its_commits_are():
    """Head, times, sizes of the database and pages of each commit come back."""
    head = replace(_HEAD, anchors=(Anchor(snapshot=_SNAPSHOT, after=4, by=6),), gap="the log was truncated")
    segment = decode_segment(encode_segment(head, _COMMITS, level=3))
    assert segment.head == replace(head, last=7, commits=3, images=7)
    assert (segment.first, segment.last) == (5, 7)
    assert segment.commits == tuple((each.seen_at_ms, each.page_count, index) for index, each in enumerate(_COMMITS))
    assert [segment.pages_of(number) for number in (5, 6, 7)] == [each.pages for each in _COMMITS]


@pytest.mark.parametrize(
    ("after", "until", "expected"),
    [
        (4, 7, {1: 7, 2: 7, 3: 7, 9: 7}),
        (0, 99, {1: 7, 2: 7, 3: 7, 9: 7}),
        (4, 6, {1: 5, 3: 6}),
        (4, 5, {1: 5, 3: 5}),
        (5, 6, {3: 6}),
        (6, 6, {}),
        (7, 9, {}),
    ],
)
def test_changes_are_the_last_version_of_each_page(after: int, until: int, expected: dict[int, int]):
    """Only commits within the limits count, and of those the last that wrote a page."""
    images = b"".join(page(f"page {number} of commit {by}") for number, by in expected.items())
    assert decode_segment(_SEGMENT).changes(after, until) == Changes(tuple(expected), images)


def test_a_thinned_segment_has_the_last_commit_of_each_step():
    """What others of the same step wrote is among its pages; times, numbers and every later state are the same."""
    numbers = (0, 5, 59_999, 60_000, 200_000)
    written = [commit(5 + index, 1 + index % 2, 3) for index in range(len(numbers))]
    start = _NOON - _NOON % 60_000
    written = [each._replace(seen_at_ms=start + ms) for each, ms in zip(written, numbers, strict=True)]
    whole = decode_segment(encode_segment(_HEAD, written, level=3))
    assert not whole.is_thinned
    kept = thinned(whole.with_images(), 60_000)
    assert [(each.seen_at_ms - start, each.others, each.pages) for each in kept] == [
        (59_999, 2, (1, 2, 3)),
        (60_000, 0, (2, 3)),
        (200_000, 0, (1, 3)),
    ]
    short = decode_segment(encode_segment(_HEAD, kept, level=3))
    assert short.is_thinned
    assert (short.first, short.last, short.numbers) == (5, 9, [7, 8, 9])
    assert [short.index_of(number) for number in range(5, 10)] == [0, 0, 0, 1, 2]
    assert [short.changes(4, until) for until in (7, 8)] == [whole.changes(4, until) for until in (7, 8)]
    assert short.changes(5, 7) == whole.changes(4, 7)  # those of the commits before that were left out, too
    assert short.changes(4, 9) == whole.changes(4, 9)
    assert thinned(short.with_images(), 60_000) == short.with_images() == kept


commits = st.lists(
    st.dictionaries(st.integers(1, 40), st.binary(min_size=1, max_size=8), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
)


@given(commits, st.integers(1, 10**12 - 10), st.integers(1, 19))
def test_a_segment_gives_back_what_was_put_into_it(written: list[dict[int, bytes]], first: int, level: int):
    """The changes of each span of commits are those of a replay, at every level."""
    made = [
        Commit(_NOON, 40, tuple(sorted(pages)), b"".join(pages[each].ljust(_SIZE, b"\0") for each in sorted(pages)))
        for pages in written
    ]
    segment = decode_segment(encode_segment(replace(_HEAD, first=first), made, level=level))
    for start in range(len(written)):
        for end in range(start, len(written) + 1):
            replayed: dict[int, bytes] = {}
            for pages in written[start:end]:
                replayed |= pages
            changes = segment.changes(first - 1 + start, first - 1 + end)
            assert changes.pages == tuple(sorted(replayed))
            assert changes.images == b"".join(replayed[each].ljust(_SIZE, b"\0") for each in sorted(replayed))


def decoded_or_rejected(data: bytes) -> bool:
    """Whether `data` is decoded. Fails on any error but that of the format."""
    try:
        decode_segment(data)
    except FormatError:
        return False
    return True


def test_damage_at_each_byte_is_rejected():
    """A segment with one changed byte, or cut anywhere, never crashes the reader and gives no other commits."""
    golden = decode_segment(_SEGMENT)
    for place in range(len(_SEGMENT)):
        assert not decoded_or_rejected(_SEGMENT[:place])
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(_SEGMENT)
            damaged[place] ^= change
            if decoded_or_rejected(bytes(damaged)):  # bits of the frame's header that mean nothing
                found = decode_segment(bytes(damaged))
                assert (found.head, found.commits) == (golden.head, golden.commits)
                assert found.changes(0, 9) == golden.changes(0, 9)
    assert not decoded_or_rejected(_SEGMENT + b"\0")


@given(st.binary(max_size=300), st.integers(0, 200))
def test_forged_content_is_rejected(noise: bytes, place: int):
    """Content that its writer forged, behind right checksums, is rejected or decoded, and crashes nothing."""
    content = zstandard.ZstdDecompressor().decompress(_SEGMENT[16:])
    decoded_or_rejected(framed(noise))
    decoded_or_rejected(framed(content[:place] + noise + content[place + len(noise) :]))


def changed(**values: object) -> bytes:
    """The content of a segment of one commit and one page, with other values."""
    defaults = {"head": b"", "commits": struct.pack("<QII", _NOON, 9, 0), "table": struct.pack("<II", 1, 0)}
    parts = defaults | {"images": bytes(_SIZE)} | values
    head = parts["head"] or (
        b'{"format":1,"database":"app","window":"%s","first":5,"last":5,"page_size":512,"commits":1,"images":1}'
        % _WINDOW.encode()
    )
    assert isinstance(head, bytes)
    return struct.pack("<I", len(head)) + b"".join((head, parts["commits"], parts["table"], parts["images"]))  # type: ignore[arg-type]


def head_with(old: str, new: str) -> bytes:
    """The head of `changed`, with something replaced."""
    head = changed()[4:].partition(b"}")[0] + b"}"
    assert old.encode() in head
    return head.replace(old.encode(), new.encode())


def anchored(snapshot: str, after: int, by: int) -> bytes:
    """The head of `changed`, with an anchor."""
    anchor = f'"images":1,"anchors":[{{"snapshot":"{snapshot}","after":{after},"by":{by}}}]'
    return head_with('"images":1', anchor)


def test_the_shortest_content_is_decoded():
    """What the next test changes is right before that."""
    assert decoded_or_rejected(framed(changed()))
    assert decoded_or_rejected(framed(changed(head=anchored(_SNAPSHOT, 5, 5))))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "shorter than the length of its head"),
        (struct.pack("<I", 9) + b"{}", "longer than the content"),
        (changed(head=b"[]"), "does not name its version"),
        (changed(head=head_with('"first":5', '"first":0')), "first: Expected `int` >= 1"),
        (changed(head=head_with("app", "../app")), "database: "),
        (changed(head=head_with(_WINDOW, "now")), "window: 'now' is not a snapshot id"),
        (changed(head=head_with("512", "500")), "500 is not a page size"),
        (changed(head=head_with('"commits":1', '"commits":0')), "0 commits from 5 to 5"),
        (changed(head=head_with('"commits":1', '"commits":2')), "2 commits from 5 to 5"),
        (changed(head=head_with('"images":1', '"images":-1')), "-1 images are out of range"),
        (changed(head=head_with('"images":1', '"images":1000000')), "do not make"),
        (changed(head=head_with('"first":5', '"first":999999999999,"commits":2')), "a key is repeated"),
        (changed(head=head_with('"last":5', '"last":4')), "from 5 to 4 with"),
        (changed(head=head_with('"last":5', '"last":6')), "its last commit is 5, and its head says 6"),
        (changed(commits=struct.pack("<QII", _NOON, 9, 1)), "its last commit is 6, and its head says 5"),
        (changed(head=anchored(_SNAPSHOT, 4, 3)), "an anchor is not within"),
        (changed(head=anchored(_SNAPSHOT, 4, 6)), "an anchor is not within"),
        (changed(head=anchored("x", 4, 5)), "is not a snapshot id"),
        (changed(images=bytes(_SIZE - 1)), "do not make"),
        (changed(images=bytes(_SIZE + 1)), "do not make"),
        (changed(commits=struct.pack("<QII", _NOON, 0, 0)), "outside 1 to"),
        (changed(commits=struct.pack("<QII", _NOON, (1 << 26) + 1, 0)), "outside 1 to"),
        (changed(commits=struct.pack("<QII", (1 << 64) - 1, 9, 0)), "after the year 9999"),
        (changed(table=struct.pack("<II", 0, 0)), "page numbers must be from 1"),
        (changed(table=struct.pack("<II", (1 << 26) + 1, 0)), "page numbers must be from 1"),
        (changed(table=struct.pack("<II", 1, 1)), "of a commit beyond the last one"),
        (changed(table=struct.pack("<II", (1 << 30) // 512 + 1, 0)), "lock-byte page"),
    ],
)
def test_each_rule_rejects_a_segment(content: bytes, reason: str):
    """Content that breaks one rule is rejected because of that rule."""
    with pytest.raises(FormatError, match=reason):
        decode_segment(framed(content))


def test_commits_and_images_are_in_order():
    """Times that go back, and images out of order or twice, are rejected."""
    with pytest.raises(FormatError, match="seen before"):
        encode_segment(_HEAD, [commit(6, 1), commit(5, 1)], level=3)
    with pytest.raises(FormatError, match="do not ascend strictly"):
        encode_segment(_HEAD, [commit(5, 1, 1)], level=3)
    content = zstandard.ZstdDecompressor().decompress(_SEGMENT[16:])
    ascending, swapped = struct.pack("<4I", 1, 0, 1, 2), struct.pack("<4I", 1, 2, 1, 0)
    assert content.count(ascending) == 1
    with pytest.raises(FormatError, match="do not ascend strictly"):
        decode_segment(framed(content.replace(ascending, swapped)))


def test_a_writer_makes_nothing_that_a_reader_rejects():
    """Commits that make no valid segment are refused when they are encoded."""
    with pytest.raises(FormatError, match="0 commits"):
        encode_segment(_HEAD, [], level=3)
    with pytest.raises(FormatError, match="512 bytes for each"):
        encode_segment(_HEAD, [Commit(_NOON, 9, (1, 2), bytes(_SIZE))], level=3)
    with pytest.raises(FormatError, match="out of range"):
        encode_segment(_HEAD, [Commit(-1, 9, (1,), bytes(_SIZE))], level=3)
    too_much = MAX_SEGMENT_RAW_BYTES // _SIZE + 1
    with pytest.raises(FormatError, match="do not make"):
        encode_segment(_HEAD, [Commit(_NOON, 9, tuple(range(1, too_much + 1)), bytes(too_much * _SIZE))], level=1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (_SEGMENT[:15], "shorter than its prefix"),
        (b"\x5c" + _SEGMENT[1:], "does not begin as a segment"),
        (_SEGMENT[:8] + b"bkpd" + _SEGMENT[12:], "does not begin as a segment"),
        (_SEGMENT[:4] + b"\x09" + _SEGMENT[5:], "not that of format version 1"),
        (_SEGMENT[:12] + b"\0" + _SEGMENT[13:], "not that of format version 1"),
        (_SEGMENT[:16] + zstandard.ZstdCompressor().compress(changed()), "no checksum"),
        (framed(changed()) + zstandard.ZstdCompressor().compress(b""), "unused data"),
        (_SEGMENT[:16] + zstandard.ZstdCompressor(write_content_size=False).compress(b"x"), "declares no size"),
    ],
)
def test_each_rule_rejects_an_object(data: bytes, reason: str):
    """Objects that are no segment around a right content are rejected."""
    with pytest.raises(FormatError, match=reason):
        decode_segment(data)


def test_a_newer_segment_is_told_from_damage():
    """A version above 1 is a newer format."""
    with pytest.raises(NewerFormatError):
        decode_segment(_SEGMENT[:12] + b"\2" + _SEGMENT[13:])
    with pytest.raises(NewerFormatError):
        decode_segment(framed(changed(head=head_with('"format":1', '"format":2'))))


def test_forged_sizes_allocate_nothing():
    """A frame that claims 80 MiB or more, or commits without end, takes no more memory than it has bytes."""
    header = bytes.fromhex("28b52ffd") + b"\xe4" + struct.pack("<Q", 80 * _MIB + 1)
    forged = [
        _SEGMENT[:16] + header + bytes(100),
        framed(changed(head=head_with('"commits":1,"images":1', '"commits":100000000,"images":100000000'))),
        framed(changed(head=head_with('"commits":1', '"commits":900000000000'))),
    ]
    for data in forged:
        tracemalloc.start()
        with pytest.raises(FormatError):
            decode_segment(data)
        assert tracemalloc.get_traced_memory()[1] < _MIB
        tracemalloc.stop()
