"""Whether packs hold what a manifest says of them, and the image that they make up. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from backupd.format.pack import page_hash
from backupd.format.pagemap import page_hashes

if TYPE_CHECKING:
    import numpy.typing as npt

    from backupd.format.manifest import Manifest
    from backupd.format.pack import PackIndex
    from backupd.format.pagemap import PageHashes, PageMap


class Fitting:
    """What one manifest says of its packs, to be compared with their indexes.

    Several threads may place packs at the same time.
    """

    def __init__(self, manifest: Manifest, page_map: PageMap) -> None:
        self._page_size = manifest.page_size
        self._page_map = page_map
        self._needed = np.bincount(page_map, minlength=len(manifest.packs) + 1)
        self.hashes: PageHashes = np.zeros((manifest.page_count, 2), dtype=np.uint64)
        """Those of the image: of holes, and of what was placed."""
        self.hashes[page_map == 0] = page_hashes(page_hash(bytes(manifest.page_size)))

    def live(self, index: PackIndex, position: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """What the image has in the pack at `position` (from 1): places in the pack, and in the image, both from 0."""
        indices = np.frombuffer(index.page_numbers, dtype="<u4").astype(np.int64) - 1
        within = np.flatnonzero(indices < len(self._page_map))
        places = within[self._page_map[indices[within]] == position]
        return places, indices[places]

    def place(self, index: PackIndex, position: int) -> str | None:
        """Take the hashes of what the image has in the pack at `position` (from 1); or why that is not as it says."""
        if index.page_size != self._page_size:
            return f"it holds pages of another size ({index.page_size} bytes, and the snapshot has {self._page_size})"
        places, indices = self.live(index, position)
        self.hashes[indices] = page_hashes(index.hashes)[places]
        lacking = int(self._needed[position]) - len(places)
        return f"it lacks pages that the snapshot has in it ({lacking})" if lacking else None
