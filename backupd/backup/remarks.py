"""What is worth saying about a new snapshot, by its source and by the snapshots before it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from backupd.format.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import AnyManifest, SourceFacts, Writer
    from backupd.survey import History

_CLOCK_TOLERANCE = timedelta(minutes=1)


def remarks(store: str, history: History, me: Writer, taken: SnapshotId) -> Iterator[str]:
    """Warnings about a snapshot that `me` took after those of `history` in `store`, a URL."""
    newest = history.newest
    if newest is None:
        return
    writer = newest.writer if isinstance(newest, Manifest) else None
    where = f"{writer.path} on {writer.host}" if writer else f"installation {newest.writer_id}"
    if writer and writer.id == me.id and writer.path != me.path:
        yield (
            f"the snapshot before this one was taken from {where}; if that is another database, "
            "give each its own name or store"
        )
    elif _take_turns(history.manifests, me):
        yield (
            f"two writers take turns in {store}: {newest.database} was last written "
            f"from {where}; give each its own store or database name"
        )
    if newest.id.taken_at > taken.taken_at + _CLOCK_TOLERANCE:
        yield f"this machine's clock is behind the newest snapshot, {newest.id}: check the time"
    if writer is None:
        yield (
            f"every page was stored again in {store}: the snapshot before this one is encrypted, and this machine has "
            "no note of what is in it; keep state_dir, which holds such notes"
        )
    for damaged in history.damaged:
        yield f"the manifest of {damaged.id} in {store} is damaged: {damaged.reason}"


def source_remarks(source: SourceFacts, path: Path) -> Iterator[str]:
    """Warnings about the database itself, at `path`, in the state that was captured."""
    if source.tables is None:
        yield (
            "its schema cannot be read: the database is damaged, and was captured as it is; "
            f"check it with: sqlite3 {path} 'PRAGMA integrity_check'"
        )


def _take_turns(manifests: Sequence[AnyManifest], me: Writer) -> bool:
    """Whether somebody else wrote last, after `me` had written before. A host that takes over for good does not count.

    Told by the id or by the place: hosts can have one name, and one without a lasting state directory has many ids.
    """
    by_id = [manifest.writer_id == me.id for manifest in manifests]
    known = [manifest.writer for manifest in manifests if isinstance(manifest, Manifest)]
    by_place = [(writer.host, writer.path) == (me.host, me.path) for writer in known]
    return any(any(is_me) and not is_me[-1] for is_me in (by_id, by_place))
