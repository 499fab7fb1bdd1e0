"""What is worth saying about a new snapshot, by its source and by the snapshots before it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from backupd.errors import TargetUnwritableError
from backupd.format.manifest import Manifest
from backupd.store import canonical_url
from backupd.store.keys import SnapshotKey

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from backupd.backup.ground import Ground
    from backupd.capture.process import Pinned
    from backupd.format.ids import SnapshotId
    from backupd.format.manifest import AnyManifest, Writer
    from backupd.state import StateDirectory

_CLOCK_TOLERANCE = timedelta(minutes=1)


def remarks(store: str, ground: Ground, me: Writer, taken: SnapshotId) -> Iterator[str]:
    """Warnings about a snapshot that `me` took on `ground` in `store`, a URL."""
    history = ground.history
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
    if newest.id.taken_at > taken.taken_at + _CLOCK_TOLERANCE and newest.id not in history.implausible:
        yield f"this machine's clock is behind the newest snapshot, {newest.id}: check the time"
    if writer is None and ground.base is None:
        yield (
            f"every page was stored again in {store}: the snapshot before this one is encrypted, and this machine has "
            "no note of what is in it; keep state_dir, which holds such notes"
        )


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Manifests in a store that no snapshot builds on and none waits for: what was found, and what to do about it.

    `news` is a warning for each that was not told before.
    """

    message: str
    hint: str
    news: tuple[str, ...]


def passed_over(database: str, store: str, ground: Ground, state: StateDirectory) -> PassedOver | None:
    """The manifests of `database` in `store`, a URL, that `ground` passes over, as long as they are there.

    What was reported is noted in the state directory; without that note, it is reported again.
    """
    history = ground.history
    unreadable = {damaged.id: f"it cannot be read: {damaged.reason}" for damaged in history.damaged}
    found = {str(each): why for each, why in {**history.implausible, **unreadable, **ground.unusable}.items()}
    subject = f"manifests of {database} in {canonical_url(store)} that are passed over"
    told: dict[str, str] = {}
    with suppress(TargetUnwritableError, ValueError):
        told = dict(json.loads(state.noted(subject) or "{}"))
        # Those that are older than the base were not looked at again.
        base = None if ground.base is None else ground.base.manifest.id
        there = {str(manifest.id) for manifest in history.manifests if manifest.id != base}
        found = {each: why for each, why in told.items() if each in there} | found
        if found != told:
            state.note(subject, json.dumps(found) if found else None)
    if not found:
        return None
    ways = {each: _way_to_remove(database, each, is_readable=each not in map(str, unreadable)) for each in found}
    last = max(found)
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return PassedOver(
        f"{store} holds a manifest that no snapshot builds on, {database}@{last}{others}: {found[last]}",
        ways[last],
        tuple(
            f"{database}@{each} in {store} is passed over, and no snapshot builds on it: {why}; {ways[each]}"
            for each, why in found.items()
            if each not in told
        ),
    )


def _way_to_remove(database: str, snapshot_id: str, *, is_readable: bool) -> str:
    key = SnapshotKey(database, snapshot_id)
    way = f"backupd forget {database}@{snapshot_id}" if is_readable else f"delete {key} by hand"
    return f"look at it: backupd verify {database}@{snapshot_id}; if no machine of yours took it: {way}"


def source_remarks(pinned: Pinned, path: Path) -> Iterator[str]:
    """Warnings about the database itself, at `path`, in the state that was captured."""
    yield from pinned.left_out
    if not pinned.is_schema_readable:
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
