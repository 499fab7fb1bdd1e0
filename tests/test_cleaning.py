from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from harness.extent import examples
from harness.packs import pack_entry
from hypothesis import given, settings
from hypothesis import strategies as st

from backupd.backup.assembly import WrittenPack, assemble
from backupd.backup.relocation import live_pages, pages_to_relocate
from backupd.format.pagemap import encode_page_map

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backupd.format.manifest import PackEntry

"""A busy machine is no reason to fail."""

_PAGE_SIZE = 4096
_PAGES_IN_A_PACK = 2048
_COMPRESSED_SHARE = 0.37
_BUDGET_BYTES = 64 << 20


@dataclass
class Simulated:
    """A database and its newest snapshot, with packs that are never stored; a page compresses to 37 %."""

    page_count: int
    packs: tuple[PackEntry, ...] = ()
    page_map: array[int] = field(default_factory=lambda: array("I"))
    packs_written: int = 0
    pages_changed: int = 0
    pages_stored: int = 0

    def __post_init__(self) -> None:
        self.snapshot(range(1, self.page_count + 1))

    def snapshot(self, changed: Iterable[int], page_count: int | None = None) -> list[int]:
        """Store `changed` (page numbers) and what the rule relocates, as a backup does; gives the latter."""
        self.page_count = page_count or self.page_count
        numbers = np.unique(np.fromiter(changed, dtype=np.int64))
        relocated = np.array(pages_to_relocate(self.packs, self.page_map, _PAGE_SIZE), dtype=np.int64)
        extra = np.setdiff1d(relocated[relocated <= self.page_count], numbers)
        new = [*self._written(numbers), *self._written(extra)] if len(numbers) else []
        self.packs, self.page_map = assemble(
            _PAGE_SIZE, self.page_count, self.packs, self.page_map if self.packs else None, new
        )
        self.pages_changed += len(numbers)
        self.pages_stored += sum(pack.entry.pages for pack in new)
        return relocated.tolist()

    def _written(self, numbers: npt.NDArray[np.int64]) -> Iterable[WrittenPack]:
        for start in range(0, len(numbers), _PAGES_IN_A_PACK):
            part = numbers[start : start + _PAGES_IN_A_PACK]
            self.packs_written += 1
            yield WrittenPack(
                pack_entry(
                    hashlib.sha256(self.packs_written.to_bytes(8)).hexdigest(),
                    stored_bytes=24 + 20 * len(part) + int(len(part) * _PAGE_SIZE * _COMPRESSED_SHARE),
                    pages=len(part),
                ),
                part.astype("<u4").tobytes(),
            )

    @property
    def held_share(self) -> float:
        """Bytes of all packs that are named, by the bytes that the image needs of them."""
        stored = np.array([pack.stored_bytes for pack in self.packs])
        pages = np.array([pack.pages for pack in self.packs])
        return float(stored.sum() / (stored * live_pages(self.page_map, len(self.packs)) / pages).sum())

    @property
    def manifest_bytes(self) -> int:
        """About how large the manifest is."""
        return len(encode_page_map(self.page_map)) + 115 * len(self.packs)


def page_map_of(*live: int) -> array[int]:
    """A page map in which each pack holds so many pages, one pack after the other."""
    return array("I", [number for number, count in enumerate(live, 1) for _ in range(count)])


def test_nothing_moves_while_nothing_is_wasteful():
    """Fresh packs that are full of live pages stay as they are, and so does an empty database."""
    assert pages_to_relocate((), array("I"), _PAGE_SIZE) == []
    database = Simulated(10_000)
    assert pages_to_relocate(database.packs, database.page_map, _PAGE_SIZE) == []
    assert database.snapshot(range(1, 1000)) == []


def test_waste_moves_when_it_passes_half_of_what_is_needed():
    """Nothing moves at 1.5 times the needed bytes; above that, the last pages of the worst pack do."""
    packs = tuple(pack_entry(letter * 64, stored_bytes=2 << 20, pages=1000) for letter in ("a", "b", "c"))
    wasteful, exact = page_map_of(1, 999, 999), page_map_of(100, 900, 1000)
    assert pages_to_relocate(packs, wasteful, _PAGE_SIZE) == [1]
    assert pages_to_relocate(packs, exact, _PAGE_SIZE) == []


def test_packs_that_are_full_never_move_for_waste():
    """Emptying a pack whose pages are all live would win nothing."""
    packs = tuple(pack_entry(letter * 64, stored_bytes=2 << 20, pages=1000) for letter in "ab")
    page_map = page_map_of(10, 1000)
    assert pages_to_relocate(packs, page_map, _PAGE_SIZE) == list(range(1, 11))


@pytest.mark.parametrize(("small", "moved"), [(32, 0), (33, 33)])
def test_small_packs_are_merged_when_there_are_more_than_32(small: int, moved: int):
    """32 packs under 1 MiB may stay; with one more they all become one."""
    packs = tuple(pack_entry(f"{number:064x}", stored_bytes=30_000, pages=20) for number in range(small))
    page_map = page_map_of(*[20] * small)
    assert len(pages_to_relocate(packs, page_map, _PAGE_SIZE)) == 20 * moved


def test_the_fullest_tier_is_merged():
    """Packs of one size are merged with each other, so that a page moves a few times and not in every snapshot."""
    sizes = [1_000] * 10 + [30_000] * 13 + [100_000] * 5 + [600_000] * 5 + [1 << 20] * 40
    packs = tuple(pack_entry(f"{number:064x}", stored_bytes=size, pages=1) for number, size in enumerate(sizes))
    page_map = page_map_of(*[1] * len(packs))
    assert pages_to_relocate(packs, page_map, _PAGE_SIZE) == list(range(11, 24))


@settings(max_examples=examples(50))
@given(st.data())
def test_the_budget_is_kept_and_pages_are_live(data: st.DataObject):
    """At most 64 MiB or 1/32 of the image move: whole packs, in ascending page numbers."""
    page_size = data.draw(st.sampled_from([512, 4096, 65536]))
    live = data.draw(st.lists(st.integers(0, 256), min_size=1, max_size=80))
    packs = tuple(
        pack_entry(
            f"{position:064x}",
            stored_bytes=data.draw(st.integers(100, 3 << 20)),
            pages=max(1, count + data.draw(st.integers(0, 256))),
        )
        for position, count in enumerate(live)
    )
    page_map = page_map_of(*live)
    np.random.default_rng(0).shuffle(np.frombuffer(page_map, dtype=np.uint32))
    pages = pages_to_relocate(packs, page_map, page_size)
    assert pages == sorted(set(pages))
    assert len(pages) * page_size <= max(_BUDGET_BYTES, len(page_map) * page_size // 32)
    emptied = {page_map[page - 1] for page in pages}
    assert sum(live[position - 1] for position in emptied) == len(pages)


def test_the_lock_byte_hole_never_moves():
    """The page that is in no pack is not asked for, even when all others are."""
    packs = tuple(pack_entry(f"{number:064x}", stored_bytes=30_000, pages=1) for number in range(40))
    page_map = array("I", range(41))
    assert pages_to_relocate(packs, page_map, 65536) == list(range(2, 42))


@settings(max_examples=examples(15))
@given(
    st.integers(1, 6000),
    st.lists(st.tuples(st.integers(0, 2000), st.floats(0.8, 1.2)), min_size=1, max_size=30),
    st.integers(0, 2**32 - 1),
)
def test_waste_stays_bounded_over_any_history(page_count: int, history: list[tuple[int, float]], seed: int):
    """After any mixture of changes, growth and shrinking, a few quiet snapshots bring the waste below the limit."""
    random = np.random.default_rng(seed)
    database = Simulated(page_count)
    for changed, growth in history:
        before = database.page_count
        after = max(1, int(before * growth))
        database.snapshot([*random.integers(1, after + 1, changed), *range(before + 1, after + 1)], after)
    for _ in range(8):
        database.snapshot([1])
    # Indexes and headers of packs with a page or two weigh more than their images.
    assert database.held_share <= 1.6
    assert len(database.packs) <= 40 + database.page_count // 500


@pytest.mark.parametrize("pages_that_change", [20_000, 200])
def test_many_small_snapshots_name_few_packs(pages_that_change: int):
    """500 snapshots of 20 changed pages, anywhere or in one place, leave few packs, little waste and few moves."""
    random = np.random.default_rng(7)
    database = Simulated(20_000)
    most_packs = 0
    for _ in range(500):
        database.snapshot(random.integers(1, pages_that_change + 1, 20))
        most_packs = max(most_packs, len(database.packs))
    assert most_packs <= 60
    assert database.held_share <= 1.5
    assert database.manifest_bytes < 60_000
    assert database.pages_stored <= 4 * (database.pages_changed + 20_000)


def test_a_quiet_database_does_not_move_at_all():
    """A snapshot without a change stores nothing, however wasteful the packs are."""
    database = Simulated(5_000)
    for start in range(1, 5_000, 50):
        database.snapshot(range(start, start + 20))
    stored = database.pages_stored
    database.snapshot([])
    assert database.pages_stored == stored
