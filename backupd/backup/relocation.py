"""Relocation: the pages of old packs that the next snapshot stores again, so that packs mostly hold live pages. Pure.

There is no other compaction: packs are immutable.
"""

from __future__ import annotations

from bisect import bisect
from typing import TYPE_CHECKING

from backupd.format.pagemap import count_pages, find_pages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.format.manifest import PackEntry
    from backupd.format.pagemap import PageMap

_WASTE_LIMIT = 1.5
_SMALL_PACK_BYTES = 1 << 20
_SMALL_PACKS_LIMIT = 32
_SMALL_TIERS = (1 << 14, 1 << 16, 1 << 18, _SMALL_PACK_BYTES)
_BUDGET_BYTES = 64 << 20
_BUDGET_SHARE = 32


def live_pages(page_map: PageMap, packs: int) -> list[int]:
    """Count the pages of the image that each of `packs` packs holds, by position."""
    return count_pages(page_map, packs)[1:]


def pages_to_relocate(packs: Sequence[PackEntry], page_map: PageMap, page_size: int) -> list[int]:
    """Choose the pages, in ascending order, that the next snapshot should store again. Often there are none.

    Two rules choose packs to empty. While the packs hold more than 1.5 times the bytes that the image needs of them,
    the one with the smallest live share goes. When more than 32 packs are under 1 MiB, the fullest of four tiers of
    size goes, so that a page moves at most a few times. Both within a budget of page
    images: 64 MiB or 1/32 of the image.
    """
    if not packs:
        return []
    live = live_pages(page_map, len(packs))
    budget_pages = max(_BUDGET_BYTES, len(page_map) * page_size // _BUDGET_SHARE) // page_size
    chosen = _within_budget([*_wasteful(packs, live), *_small(packs, live)], live, budget_pages)
    return [index + 1 for index in find_pages(page_map, {position + 1 for position in chosen})]


def _wasteful(packs: Sequence[PackEntry], live: Sequence[int]) -> list[int]:
    """Choose packs to empty by position, worst first, until the rest waste little enough."""
    shares = [count / pack.pages for pack, count in zip(packs, live, strict=True)]
    needed = [pack.stored_bytes * share for pack, share in zip(packs, shares, strict=True)]
    chosen = []
    total, useful = float(sum(pack.stored_bytes for pack in packs)), sum(needed)
    for position in sorted(range(len(packs)), key=shares.__getitem__):
        if total <= _WASTE_LIMIT * useful or live[position] == packs[position].pages:
            break
        chosen.append(position)
        # The live pages come back in a pack without waste.
        total += needed[position] - packs[position].stored_bytes
    return chosen


def _small(packs: Sequence[PackEntry], live: Sequence[int]) -> list[int]:
    """Choose the small packs of the fullest tier by position, when there are too many small ones."""
    tiers: list[list[int]] = [[] for _ in _SMALL_TIERS]
    for position, (pack, count) in enumerate(zip(packs, live, strict=True)):
        if pack.stored_bytes < _SMALL_PACK_BYTES and count:
            tiers[bisect(_SMALL_TIERS, pack.stored_bytes)].append(position)
    return max(tiers, key=len) if sum(map(len, tiers)) > _SMALL_PACKS_LIMIT else []


def _within_budget(chosen: list[int], live: Sequence[int], budget_pages: int) -> list[int]:
    taken = []
    for position in dict.fromkeys(chosen):
        budget_pages -= live[position]
        if budget_pages < 0:
            break
        taken.append(position)
    return taken
