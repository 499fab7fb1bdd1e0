"""Relocation: the pages of old packs that the next snapshot stores again, so that packs mostly hold live pages. Pure.

There is no other compaction: packs are immutable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

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


def live_pages(page_map: PageMap, packs: int) -> npt.NDArray[np.int64]:
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
    stored = np.array([pack.stored_bytes for pack in packs], dtype=np.float64)
    held = np.array([pack.pages for pack in packs], dtype=np.float64)
    budget_pages = max(_BUDGET_BYTES, len(page_map) * page_size // _BUDGET_SHARE) // page_size
    chosen = _within_budget([*_wasteful(stored, held, live), *_small(stored, live)], live, budget_pages)
    is_chosen = np.zeros(len(packs) + 1, dtype=bool)
    is_chosen[np.array(chosen, dtype=np.intp) + 1] = True
    pages: list[int] = (find_pages(page_map, is_chosen) + 1).tolist()
    return pages


def _wasteful(stored: npt.NDArray[np.float64], held: npt.NDArray[np.float64], live: npt.NDArray[np.int64]) -> list[int]:
    """Choose packs to empty by position, worst first, until the rest waste little enough."""
    needed = stored * live / held
    chosen = []
    total, useful = stored.sum(), needed.sum()
    for position in np.argsort(live / held, kind="stable").tolist():
        if total <= _WASTE_LIMIT * useful or live[position] == held[position]:
            break
        chosen.append(position)
        # The live pages come back in a pack without waste.
        total += needed[position] - stored[position]
    return chosen


def _small(stored: npt.NDArray[np.float64], live: npt.NDArray[np.int64]) -> list[int]:
    """Choose the small packs of the fullest tier by position, when there are too many small ones."""
    small = np.flatnonzero((stored < _SMALL_PACK_BYTES) & (live > 0))
    if len(small) <= _SMALL_PACKS_LIMIT:
        return []
    tiers = np.searchsorted(_SMALL_TIERS, stored[small], side="right")
    fullest = int(np.bincount(tiers).argmax())
    members: list[int] = small[tiers == fullest].tolist()
    return members


def _within_budget(chosen: list[int], live: npt.NDArray[np.int64], budget_pages: int) -> list[int]:
    taken = []
    for position in dict.fromkeys(chosen):
        budget_pages -= int(live[position])
        if budget_pages < 0:
            break
        taken.append(position)
    return taken
