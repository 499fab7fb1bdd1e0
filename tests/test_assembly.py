from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

import pytest
from harness.packs import pack_entry
from hypothesis import given
from hypothesis import strategies as st

from backupd.backup.assembly import WrittenPack, assemble, count_changed
from backupd.format import lock_page
from backupd.format.pagemap import decode_page_map, encode_page_map, find_pages

if TYPE_CHECKING:
    from array import array

    from backupd.format.manifest import PackEntry

"""A busy machine is no reason to fail."""


def written(name: str, *numbers: int) -> WrittenPack:
    """A pack that was just written, which `name` tells from others."""
    entry = pack_entry(hashlib.sha256(name.encode()).hexdigest(), stored_bytes=1000, pages=max(1, len(numbers)))
    return WrittenPack(entry, struct.pack(f"<{len(numbers)}I", *numbers))


def where(packs: tuple[PackEntry, ...], page_map: array[int]) -> dict[int, PackEntry]:
    """The pack of every page, by page number."""
    return {number: packs[position - 1] for number, position in enumerate(page_map.tolist(), 1) if position}


def test_a_first_snapshot_names_what_was_written():
    """The map of a first snapshot, which has no base, is that of the packs that were written."""
    first, second = written("first", 1, 3), written("second", 2)
    packs, page_map = assemble(512, 3, (), None, [first, second])
    assert packs == (first.entry, second.entry)
    assert page_map.tolist() == [1, 2, 1]


def test_of_two_packs_that_hold_a_page_the_later_one_counts():
    """A page that SQLite delivered twice is read from the pack that was written last."""
    packs, page_map = assemble(512, 2, (), None, [written("early", 1, 2), written("late", 2)])
    assert page_map.tolist() == [1, 2]
    assert len(packs) == 2


def test_packs_without_a_live_page_drop_out():
    """A pack whose pages all changed is not named any more, and the others move up."""
    base_packs, base_map = assemble(512, 3, (), None, [written("a", 1), written("b", 2), written("c", 3)])
    new = written("d", 1, 2)
    packs, page_map = assemble(512, 3, base_packs, base_map, [new])
    assert packs == (base_packs[2], new.entry)
    assert page_map.tolist() == [2, 2, 1]


def test_an_image_that_shrinks_forgets_the_pages_beyond_its_end():
    """Pages of the base beyond the new end are in no map, and nor are packs that held only these."""
    base_packs, base_map = assemble(512, 4, (), None, [written("a", 1, 2), written("b", 3, 4)])
    packs, page_map = assemble(512, 2, base_packs, base_map, [])
    assert (packs, page_map.tolist()) == ((base_packs[0],), [1, 1])


def test_an_empty_image_names_nothing():
    """0 pages need no pack, whatever the base had."""
    base_packs, base_map = assemble(512, 1, (), None, [written("a", 1)])
    packs, page_map = assemble(512, 0, base_packs, base_map, [])
    assert (packs, page_map.tolist()) == ((), [])


@pytest.mark.parametrize(("page_count", "numbers"), [(1, ()), (3, (1, 2)), (3, (2, 3))])
def test_a_page_in_no_pack_is_a_bug(page_count: int, numbers: tuple[int, ...]):
    """A manifest whose map would have a hole in the data is never made."""
    with pytest.raises(ValueError, match="a page of the image is in no pack"):
        assemble(512, page_count, (), None, [written("a", *numbers)])


@pytest.mark.parametrize("beyond", [-1, 0, 2])
def test_the_lock_byte_page_is_a_hole(beyond: int):
    """The page that SQLite never writes is in no pack, and a reader takes the map."""
    lock = lock_page(65536)
    numbers = [number for number in range(1, lock + beyond + 1) if number != lock]
    packs, page_map = assemble(65536, lock + beyond, (), None, [written("a", *numbers)])
    assert find_pages(page_map, {0}).tolist() == ([lock - 1] if beyond >= 0 else [])
    text = encode_page_map(page_map)
    decoded = decode_page_map(text, page_size=65536, page_count=lock + beyond, packs=len(packs))
    assert decoded.tolist() == page_map.tolist()


def test_growing_beyond_the_lock_byte_page_makes_a_hole():
    """An image that grows over the lock-byte page keeps its pages and gets the hole."""
    lock = lock_page(65536)
    base_packs, base_map = assemble(65536, lock - 1, (), None, [written("a", *range(1, lock))])
    _, page_map = assemble(65536, lock + 1, base_packs, base_map, [written("b", lock + 1)])
    assert page_map[lock - 2 :].tolist() == [1, 0, 2]


@given(
    st.integers(0, 20),
    st.lists(st.tuples(st.integers(0, 20), st.lists(st.integers(1, 20), unique=True, max_size=20)), max_size=8),
)
def test_a_history_reads_every_page_from_the_pack_that_wrote_it_last(
    first_count: int, history: list[tuple[int, list[int]]]
):
    """After any history of growth, shrinking and changes, each page is in the newest pack that has it."""
    packs, page_map = assemble(512, first_count, (), None, [written("0", *range(1, first_count + 1))])
    expected = where(packs, page_map)
    for step, (page_count, changed) in enumerate(history, 1):
        grown = set(range(1, page_count + 1)) - set(expected)
        numbers = sorted(grown | {number for number in changed if number <= page_count})
        new = written(str(step), *numbers)
        packs, page_map = assemble(512, page_count, packs, page_map, [new])
        expected = {number: expected.get(number, new.entry) for number in range(1, page_count + 1)}
        expected |= dict.fromkeys(numbers, new.entry)
        assert where(packs, page_map) == expected
        assert set(packs) == set(expected.values())
        assert len(set(packs)) == len(packs)


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_changed_pages_are_those_that_differ_at_their_place(new: list[int], old: list[int]):
    """Every page beyond the base counts, and every other one whose hash is another."""
    hashes, base = (b"".join(each.to_bytes(16) for each in image) for image in (new, old))
    differing = sum(one != other for one, other in zip(new, old, strict=False))
    assert count_changed(hashes, base) == differing + max(0, len(new) - len(old))
    assert count_changed(hashes, None) == len(new)


def test_changed_pages_are_counted_across_the_blocks_of_a_large_image():
    """The comparison goes block by block, and counts at their borders too."""
    base = bytes(16 * 130)
    hashes = bytearray(base)
    for page in (0, 63, 64, 129):
        hashes[16 * page + 15] = 7
    assert count_changed(hashes, base) == 4
