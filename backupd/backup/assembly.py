"""The parts of a new snapshot: its page map, its packs and its manifest."""

from __future__ import annotations

import os
import socket
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backupd import __version__
from backupd.backup.baseline import map_hashes
from backupd.backup.results import KnownImage
from backupd.format import lock_page
from backupd.format.manifest import Manifest, Writer
from backupd.format.pack import HASH_BYTES
from backupd.format.pagemap import count_pages, differences, encode_page_map, u32_from

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from backupd.backup.baseline import Baseline
    from backupd.backup.results import SinceImage, SnapshotRequest
    from backupd.capture.process import Pinned
    from backupd.format import SnapshotId
    from backupd.format.manifest import PackEntry, Replayed
    from backupd.format.pagemap import PageHashes, PageMap

_LONGEST_HOST = 255
_COMPARED_BYTES = 64 * HASH_BYTES
"""Page hashes are compared so many at once, and one by one where these differ."""


@dataclass(frozen=True, slots=True)
class Image:
    """The image of a capture. `id` carries the time at which it was current; `hashes` is a file.

    `since` is what it was built from, None when the database was read. `api_differs` as in `BackupResult`.
    """

    id: SnapshotId
    pinned: Pinned
    hashes: Path
    digest: str
    first_page: bytes
    since: SinceImage | None = None
    api_differs: bool = False

    @property
    def replayed(self) -> Replayed | None:
        """Where in the log it comes from; None when the database was read."""
        return None if self.since is None else self.since.replayed

    def is_image_of(self, manifest: Manifest) -> bool:
        """Whether a snapshot with this manifest has the same content."""
        return (self.pinned.page_size, self.pinned.page_count, self.digest) == (
            manifest.page_size,
            manifest.page_count,
            manifest.image_digest,
        )

    def to_build_on(self) -> KnownImage | None:
        """What later images need of it; None where not all is known that they would take over from it."""
        pinned = self.pinned
        pages = pinned.revision_pages
        if pages is None or pinned.left_out or not pinned.is_schema_readable or not pinned.page_count:
            return None
        return KnownImage(
            read_at=self.id.taken_at if self.since is None else self.since.image.read_at,
            digest=self.digest,
            page_size=pinned.page_size,
            page_count=pinned.page_count,
            first_page=self.first_page,
            facts=pinned.facts,
            revision_pages=pages,
            file=pinned.file if self.since is None else self.since.image.file,
            replayed=self.replayed,
        )


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
) -> tuple[tuple[PackEntry, ...], array[int]]:
    """Compute packs and page map of an image of `page_count` pages. Later packs of `written` win, unused ones drop out.

    `base_map` is that of a base of the same page size, or None. Raises ValueError when a page is in no pack.
    """
    page_map = array("I")
    packs = []
    if base_map is not None:
        page_map.frombytes(memoryview(base_map)[:page_count].cast("B"))
        packs = [*base_packs]
    page_map.frombytes(bytes((page_count - len(page_map)) * page_map.itemsize))
    for pack in written:
        packs.append(pack.entry)
        for number in u32_from(pack.page_numbers):
            if number <= page_count:  # the image may have shrunk since the pack was full
                page_map[number - 1] = len(packs)
    lock = lock_page(page_size)
    if lock <= page_count:
        page_map[lock - 1] = 0
    counts = count_pages(page_map, len(packs))
    if counts[0] != (lock <= page_count):
        raise ValueError("a page of the image is in no pack")
    used = [position for position in range(1, len(packs) + 1) if counts[position]]
    if len(used) < len(packs):
        renumbered = [0] * (len(packs) + 1)
        for number, position in enumerate(used, 1):
            renumbered[position] = number
        page_map = array("I", [renumbered[number] for number in page_map])
    return tuple(packs[position - 1] for position in used), page_map


def count_changed(hashes: PageHashes, base_hashes: PageHashes | None) -> int:
    """Count the pages of an image that differ from the base at the same place: all pages without a base."""
    if base_hashes is None:
        return len(hashes) // HASH_BYTES
    common = min(len(hashes), len(base_hashes))
    changed = (len(hashes) - common) // HASH_BYTES
    for start in range(0, common, _COMPARED_BYTES):
        part = slice(start, min(start + _COMPARED_BYTES, common))
        if hashes[part] != base_hashes[part]:
            changed += sum(differences(hashes[part], base_hashes[part]))
    return changed


def assemble_manifest(
    image: Image,
    baseline: Baseline,
    request: SnapshotRequest,
    written: Sequence[WrittenPack],
    writer: Writer,
    database: str,
) -> Manifest:
    """Build the manifest of the snapshot of `image` that follows `baseline`; `written` are its new packs, in order."""
    pinned, newest, base = image.pinned, baseline.history.newest, baseline.base
    comparable = base if base is not None and base.manifest.page_size == pinned.page_size else None
    builds_on = None if baseline.is_full else comparable
    packs, page_map = assemble(
        pinned.page_size,
        pinned.page_count,
        builds_on.manifest.packs if builds_on else (),
        builds_on.page_map if builds_on else None,
        written,
    )
    return Manifest(
        id=image.id,
        sequence=newest.sequence + 1 if newest else 1,
        base=base.manifest.id if base else newest.id if newest else None,
        database=database,
        kind=request.kind,
        tags=request.tags,
        page_size=pinned.page_size,
        page_count=pinned.page_count,
        changed_pages=count_changed(map_hashes(image.hashes), comparable.read_hashes() if comparable else None),
        stored_bytes=sum(pack.entry.stored_bytes for pack in written),
        image_digest=image.digest,
        packs=packs,
        page_map=encode_page_map(page_map),
        replayed=image.replayed,
        source=pinned.facts,
        writer=writer,
    )


def describe_writer(pinned: Pinned, writer_id: str, path: Path) -> Writer:
    """Say who takes a snapshot of the database at `path`, in the state that was `pinned`."""
    return Writer(
        id=writer_id,
        host=_text(socket.gethostname())[:_LONGEST_HOST],
        path=_text(path),
        uid=pinned.uid,
        gid=pinned.gid,
        mode=pinned.mode,
        backupd_version=__version__,
    )


def _text(name: str | os.PathLike[str]) -> str:
    """Return a name from the system as text that every reader accepts, with escapes for bytes that are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")
