"""The page map and pack list of a new snapshot, from those of its base and the packs that were written. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backupd.format import lock_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backupd.format.manifest import PackEntry
    from backupd.format.pagemap import PageHashes, PageMap

_COMPARED_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """A pack that was written for the new snapshot; `page_numbers` is u32 little-endian."""

    entry: PackEntry
    page_numbers: bytes


def assemble(
    page_size: int,
    page_count: int,
    base_packs: Sequence[PackEntry],
    base_map: PageMap | None,
    written: Sequence[WrittenPack],
) -> tuple[tuple[PackEntry, ...], PageMap]:
    """Packs and page map of an image of `page_count` pages. Later packs of `written` win; unused packs drop out.

    `base_map` is that of a base of the same page size, or None. Raises ValueError when a page is in no pack.
    """
    page_map = np.zeros(page_count, dtype=np.uint32)
    if base_map is not None:
        kept = min(page_count, len(base_map))
        page_map[:kept] = base_map[:kept]
    packs = [*base_packs] if base_map is not None else []
    for pack in written:
        packs.append(pack.entry)
        numbers = np.frombuffer(pack.page_numbers, dtype="<u4").astype(np.int64)
        page_map[numbers[numbers <= page_count] - 1] = len(packs)  # the image may have shrunk since the pack was full
    lock = lock_page(page_size)
    if lock <= page_count:
        page_map[lock - 1] = 0
    used = np.unique(page_map)
    if np.count_nonzero(page_map) != page_count - (lock <= page_count):
        raise ValueError("a page of the image is in no pack")
    used = used[used > 0]
    renumbered = np.zeros(len(packs) + 1, dtype=np.uint32)
    renumbered[used] = np.arange(1, len(used) + 1, dtype=np.uint32)
    return tuple(packs[position - 1] for position in used.tolist()), renumbered[page_map]


def count_changed(hashes: PageHashes, base_hashes: PageHashes | None) -> int:
    """How many pages of an image differ from the base at the same place; all, when there is no base to compare with."""
    if base_hashes is None:
        return len(hashes)
    common = min(len(hashes), len(base_hashes))
    changed = len(hashes) - common
    for start in range(0, common, _COMPARED_AT_ONCE):
        part = slice(start, min(start + _COMPARED_AT_ONCE, common))
        changed += int((hashes[part] != base_hashes[part]).any(axis=1).sum())
    return changed
