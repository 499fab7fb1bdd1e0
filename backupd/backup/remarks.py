"""What the snapshots before a new one make worth saying about it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import Writer
    from backupd.survey import History

_CLOCK_TOLERANCE = timedelta(minutes=1)


def remarks(store: str, history: History, me: Writer, taken: SnapshotId) -> Iterator[str]:
    """Warnings about a snapshot that `me` took after those of `history` in `store`, a URL."""
    newest = history.newest
    if newest is None:
        return
    where = f"{newest.writer.path} on {newest.writer.host}"
    if newest.writer.id == me.id and newest.writer.path != me.path:
        yield (
            f"the snapshot before this one was taken from {where}; if that is another database, "
            "give each its own name or store"
        )
    elif _take_turns([manifest.writer for manifest in history.manifests], me):
        yield (
            f"two writers take turns in {store}: {newest.database} was last written "
            f"from {where}; give each its own store or database name"
        )
    if newest.id.taken_at > taken.taken_at + _CLOCK_TOLERANCE:
        yield f"this machine's clock is behind the newest snapshot, {newest.id}: check the time"
    for damaged in history.damaged:
        yield f"the manifest of {damaged.id} in {store} is damaged: {damaged.reason}"


def _take_turns(writers: Sequence[Writer], me: Writer) -> bool:
    """Whether somebody else wrote last, after `me` had written before. A host that takes over for good does not count.

    Told by the id or by the place: hosts can have one name, and one without a lasting state directory has many ids.
    """
    by_id = [writer.id == me.id for writer in writers]
    by_place = [(writer.host, writer.path) == (me.host, me.path) for writer in writers]
    return any(any(is_me) and not is_me[-1] for is_me in (by_id, by_place))
