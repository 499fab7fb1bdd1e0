"""Whether recovery windows are what they claim: commits, added to one snapshot, must give a later one.

The later snapshot was captured from the database itself: it knows nothing of the log that was followed. Page hashes say
what an image is, so that nothing is written to scratch, and of the first snapshot only the indexes of packs are read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

from backupd.backup.baseline import is_hashes_file, map_hashes
from backupd.concurrency import worker_threads
from backupd.errors import BackupdError, DamageError, IdentityNeededError, InterruptedByUserError, NoSuchObjectError
from backupd.format.pack import HASH_BYTES, page_hash
from backupd.format.pagemap import ImageCheck, image_digest
from backupd.format.records import Continuity, ContinuityOutcome
from backupd.repository.windows import is_built_wrong, read_continuity, recovery_windows, usable_anchors
from backupd.restore.replay import ReplayedState, read_segments, replay_steps
from backupd.store.keys import RecordKind
from backupd.verify.results import ContinuityResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from backupd.format import SnapshotId
    from backupd.format.manifest import AnyManifest, AnySummary, Manifest
    from backupd.format.pagemap import PageHashes
    from backupd.format.segment import Anchor
    from backupd.repository.archive import Archive
    from backupd.repository.history import StoredSegment
    from backupd.repository.windows import RecoveryWindow
    from backupd.verify.results import CheckContext

_READERS = 4
_MOST_BYTES = 64 << 20
"""What one check reads of segments: as a rule, all since the check of the day before."""
_LEAST_BYTES = 8 << 10
"""What a small segment counts as: each takes a request."""
_FAR_AHEAD = timedelta(days=1)
_MOST_CANDIDATES = 4096
"""After how many commits the state of a snapshot is looked for: a digest of all page hashes for each."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Two snapshots in one window, by their anchors there, and the segments between them."""

    window: RecoveryWindow
    base: Anchor
    snapshot: Anchor

    @property
    def segments(self) -> Sequence[StoredSegment]:
        first, last = self.window.place_of(self.base.after + 1), self.window.place_of(self.snapshot.by)
        return self.window.segments[first : last + 1]

    @property
    def stored_bytes(self) -> int:
        return sum(stored.size_bytes for stored in self.segments)

    @property
    def candidates(self) -> range:
        """The commits after one of which the state is that of `snapshot`."""
        return range(self.snapshot.after, self.snapshot.by + 1)


def prove_continuity(
    archive: Archive, context: CheckContext, *, newest: Mapping[SnapshotId, Anchor] = MappingProxyType({})
) -> ContinuityResult | None:
    """Check the newest recovery window that has two snapshots, and record the outcome in the store.

    All commits are replayed that were stored since the last check, as far as they are not thinned and 64 MiB of stored
    segments go. A window that is recorded as broken stays so. `newest` has, by window, the place of a snapshot that no
    segment names yet. None when no window has two snapshots, or when what is needed cannot be decrypted here. Expected
    failures are in the result, except what `context.should_stop` raises. Repeatable.
    """
    began = time.monotonic()
    result = ContinuityResult(
        database=archive.database, store=archive.url, window=None, started_at=context.now.astimezone(UTC)
    )
    for is_last in (False, True):
        check = _Check(archive, context, newest)
        try:
            span = check.find_span()
            if span is None:
                return None
            result = replace(result, window=span.window.id, segments_bytes=span.stored_bytes)
            known = check.known(span)
            found = known or check.compare(span, at=result.started_at)
            result = replace(result, found=found, error=_broken(archive, found) if found.is_broken else None)
            if known is None:
                result = replace(result, warning=_recorded(archive, found))
            break
        except IdentityNeededError:
            return None
        except InterruptedByUserError:
            raise
        except BackupdError as error:
            result = replace(result, error=error)
            if is_last or not isinstance(error.__cause__ or error, NoSuchObjectError):
                break
            # A prune has merged segments since they were listed: the merged one has all that they had.
    return replace(result, duration_seconds=time.monotonic() - began)


def has_no_segments(archive: Archive) -> bool:
    """Whether the store is known to have no segment of the database."""
    try:
        return not archive.segments().segments
    except BackupdError:
        return False


def record_broken(archive: Archive, found: Continuity) -> str | None:
    """Record a broken window in an archive, too, if that has segments of it; return why it could not be, if so."""
    try:
        if found.window not in archive.segments().segments:
            return None
    except BackupdError as error:
        return error.message
    return _recorded(archive, found)


def _recorded(archive: Archive, found: Continuity) -> str | None:
    """Put the outcome into the store; return why it could not be, if so."""
    try:
        archive.put_record(RecordKind.CONTINUITY, found.window, found.encode())
    except BackupdError as error:
        return error.message
    return None


class _Check:
    """One check of an archive. Its methods raise `DamageError`, `IdentityNeededError` and the errors of `Store`."""

    def __init__(self, archive: Archive, context: CheckContext, newest: Mapping[SnapshotId, Anchor]) -> None:
        self._archive = archive
        self._newest = newest
        self._now = context.now
        self._should_stop = context.should_stop
        self._checked: Mapping[SnapshotId, Continuity] = {}

    def find_span(self) -> _Span | None:
        """Choose two snapshots in the newest window that has two: the newest, and one from before all that is new."""
        windows = recovery_windows(self._archive.segments())
        if not windows:
            return None
        self._checked = read_continuity(self._archive)
        snapshots = {each.id: each for each in self._archive.history().manifests if each.image_bytes}
        left = _MOST_BYTES
        for window in reversed(windows):
            if window.id.taken_at - self._now > _FAR_AHEAD:  # forged, or a clock was wrong: it would hide all others
                continue
            segments = _affordable(window, left)
            if span := self._span_in(window, segments, snapshots):
                return span
            left -= sum(max(stored.size_bytes, _LEAST_BYTES) for stored in segments)
        return None

    def _span_in(
        self, window: RecoveryWindow, segments: Sequence[StoredSegment], snapshots: Mapping[SnapshotId, AnySummary]
    ) -> _Span | None:
        """Choose two snapshots whose anchors are in `segments`, the last ones of `window`."""
        record = self._checked.get(window.id)
        newest = self._newest.get(window.id)
        is_known = newest is not None and newest.snapshot in snapshots and newest.by <= window.last
        anchors = [newest] if newest is not None and is_known else []
        whole_from = window.last + 1
        for segment in read_segments(self._archive, [*reversed(segments)]):
            self._should_stop()
            if segment.is_thinned:  # the state of a snapshot may be that after a commit that was left out
                break
            whole_from = min(whole_from, segment.first)
            size = segment.head.page_size
            usable = usable_anchors(window, segment, snapshots)
            anchors += (
                each
                for each in usable
                if snapshots[each.snapshot].page_size == size and each.after + 1 >= segments[0].key.first
            )
            read = [each for each in anchors if snapshots[each.snapshot].replayed is None]
            if record is not None and _has_all_since(read, record):
                break
        anchors.sort(key=lambda anchor: (anchor.by, anchor.after))
        for place in range(len(anchors) - 1, 0, -1):
            later = anchors[place]
            if snapshots[later.snapshot].replayed is not None:  # it was built from the commits that it would prove
                continue
            older = [each for each in anchors[:place] if each.after < later.after and each.by <= later.after]
            if older and later.after >= whole_from and later.by - later.after <= _MOST_CANDIDATES:
                known = [each for each in older if record is not None and each.snapshot == record.snapshot]
                return _Span(window, (known or older)[0], later)
        return None

    def known(self, span: _Span) -> Continuity | None:
        """Return the record of a window that was found broken: what is stored since does not make it whole."""
        record = self._checked.get(span.window.id)
        return record if record is not None and record.is_broken else None

    def compare(self, span: _Span, *, at: datetime) -> Continuity:
        """Replay the commits of `span`, and compare the states at its end with the later snapshot.

        A mismatch counts when a second look, with the segments read again, gives it, too.
        """
        base, snapshot = (self._archive.manifest(each.snapshot) for each in (span.base, span.snapshot))
        wanted = self._archive.opened(snapshot).image_digest
        opened = self._archive.opened(base)
        hashes = self._page_hashes(opened)
        first_page = self._first_page(opened, hashes)

        def look() -> int | None:
            state = ReplayedState(hashes, first_page, page_size=base.page_size, most_pages=snapshot.page_count)
            return self._first_equal(span, state, base, snapshot.page_count, wanted)

        by = look() or look()
        return Continuity(
            database=self._archive.database,
            window=span.window.id,
            outcome=ContinuityOutcome.PROVEN if by else ContinuityOutcome.BROKEN,
            base=base.id,
            after=span.base.after,
            snapshot=snapshot.id,
            by=by or span.snapshot.by,
            at=at,
        )

    def _first_equal(
        self, span: _Span, state: ReplayedState, base: AnyManifest, page_count: int, wanted: str
    ) -> int | None:
        """Return the commit of `span` after which there are `page_count` pages with the image digest `wanted`, if any.

        `state` is that of `base`, and takes the commits.
        """
        candidates = span.candidates
        for step in replay_steps(self._archive, span.segments, span.base.after, candidates, of=base):
            self._should_stop()
            state.take(step)
            if step.until in candidates and step.page_count == page_count and state.digest(page_count) == wanted:
                return step.until
        return None

    def _page_hashes(self, manifest: Manifest) -> PageHashes:
        """Return the page hashes of a snapshot: as this machine remembers them, or from the indexes of its packs."""
        file = self._archive.catalog.hashes(manifest.id)
        if is_hashes_file(file, manifest):
            return map_hashes(file)
        page_map = self._archive.page_map(manifest)
        fitting = ImageCheck(page_map, page_size=manifest.page_size, packs=len(manifest.packs))
        with worker_threads(_READERS, name="indexes") as threads:
            for position, index in enumerate(threads.map(self._archive.index, manifest.packs), 1):
                self._should_stop()
                if reason := fitting.place(index, position):
                    pack = self._archive.pack_key(manifest.packs[position - 1])
                    raise DamageError(f"pack {pack} in {self._archive.url}: {reason}")
        if image_digest(fitting.hashes) != manifest.image_digest:
            raise DamageError(
                f"the packs of snapshot {manifest.id} in {self._archive.url} do not make up its image",
                hint=f"see which is damaged: backupd verify {manifest.database}@{manifest.id}",
            )
        return fitting.hashes

    def _first_page(self, manifest: Manifest, hashes: PageHashes) -> bytes:
        pack = self._archive.pack(manifest.packs[self._archive.page_map(manifest)[0] - 1])
        page = pack.images(pack.index.frames[0])[: manifest.page_size]
        if page_hash(page) != hashes[:HASH_BYTES]:
            raise DamageError(f"pack {pack.name} holds another page 1 than it says")
        return page


def _affordable(window: RecoveryWindow, most_bytes: int) -> Sequence[StoredSegment]:
    """Return as many of the last segments of `window` as may be read."""
    first = len(window.segments)
    while first and (most_bytes := most_bytes - max(window.segments[first - 1].size_bytes, _LEAST_BYTES)) >= 0:
        first -= 1
    return window.segments[first:]


def _has_all_since(anchors: Sequence[Anchor], record: Continuity) -> bool:
    """Whether `anchors` go back to the snapshot that the last check has proven, and have a newer one."""
    known = [each for each in anchors if each.snapshot == record.snapshot]
    return bool(known) and any(each.after > known[-1].by for each in anchors)


def _broken(archive: Archive, found: Continuity) -> DamageError:
    checked = {found.window: found}
    built = [each.id for each in archive.history().manifests if is_built_wrong(each, checked)]
    others = f", but for {built[0]} to {built[-1]}, which were built from these commits" if built else ""
    return DamageError(
        f"the recovery window {found.window} of {archive.database} in {archive.url} is broken: commits "
        f"{found.after + 1} to {found.by}, added to snapshot {found.base}, do not give snapshot {found.snapshot}, "
        "which was captured independently of them",
        hint=f"restore moments after {found.base.taken_at:%Y-%m-%d %H:%M:%SZ} from snapshots{others}: backupd list "
        f"{archive.database}; report this with the log of the daemon, and what else writes to the database",
    )
